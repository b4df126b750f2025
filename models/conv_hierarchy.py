"""The hierarchy that ConvNets share: stem, mask token, stages, norm, head."""

from collections.abc import Sequence

import torch
from timm.layers import to_2tuple, trunc_normal_
from torch import Tensor, nn

from models.layers import require_shape, require_size, run_block


class ConvStage(nn.Module):
    """Blocks of one resolution; `downsample`, which only some ConvNets have, comes before them."""

    def __init__(self, blocks: Sequence[nn.Module], downsample: nn.Module | None = None) -> None:
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.ModuleList(blocks)

    def forward(self, features: Tensor, recompute: bool = False) -> Tensor:
        """(B, C, h, w) -> (B, C', h / 2, w / 2), rounded up; in the first stage (B, C', h, w)."""
        if self.downsample is not None:
            features = self.downsample(features)
        for block in self.blocks:
            features = run_block(block, features, recompute=recompute)
        return features


class ConvHierarchy(nn.Module):
    """A ConvNet of any number of stages; classifies images, or encodes them for SimMIM.

    `stem` turns (B, C, H, W) into `stem_features` maps of H/patch x W/patch, where the mask token
    replaces hidden positions; `hide_pixels` makes hidden pixels 0 before it, for stems whose cells
    overlap. `image_size` is a side or (height, width); `num_classes` 0 leaves the head out;
    `use_mask_token` adds the token; `section` is for errors.
    """

    def __init__(
        self,
        section: str,
        stem: nn.Module,
        stages: Sequence[ConvStage],
        norm: nn.Module,
        *,
        stem_features: int,
        num_features: int,
        in_chans: int,
        patch_size: int,
        image_size: int | tuple[int, int],
        hide_pixels: bool = False,
        drop_rate: float = 0.0,
        num_classes: int = 1000,
        use_mask_token: bool = False,
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        if drop_rate:
            raise ValueError(
                f"MODEL.DROP_RATE is {drop_rate}, and {section} has no dropout: expected 0 "
                "(MODEL.DROP_PATH_RATE drops whole blocks)"
            )
        self.image_size: tuple[int, int] = to_2tuple(image_size)
        self.in_chans, self.patch_size = in_chans, patch_size
        self.stride = patch_size * 2 ** (len(stages) - 1)
        self.depths = [len(stage.blocks) for stage in stages]
        self.num_features, self.num_layers = num_features, sum(self.depths)
        self.hide_pixels, self.use_checkpoint = hide_pixels, use_checkpoint

        self.patch_embed = stem
        if use_mask_token:
            self.mask_token = nn.Parameter(torch.zeros(1, stem_features, 1, 1))
            trunc_normal_(self.mask_token, std=0.02)
        self.stages = nn.ModuleList(stages)
        self.norm = norm
        self.head = nn.Linear(num_features, num_classes) if num_classes else None

    @property
    def blocks(self) -> list[nn.Module]:
        """All blocks, first to last."""
        return [block for stage in self.stages for block in stage.blocks]  # type: ignore[union-attr]  # torch types modules of a list loosely

    def forward_features(self, image: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, C, H, W) -> (B, num_features, H/stride, W/stride), rounded up.

        Patches where `mask` (B, H/patch, W/patch) is True are replaced by the mask token.
        """
        require_shape(image, self.in_chans, self.image_size)
        if mask is None:
            features = self.patch_embed(image)
        else:
            mask = mask.unsqueeze(1)
            if self.hide_pixels:
                pixels = mask.repeat_interleave(self.patch_size, 2)
                pixels = pixels.repeat_interleave(self.patch_size, 3)
                image = image.masked_fill(pixels, 0.0)  # the mean, since images are normalized
            features = self.patch_embed(image)
            features = torch.where(mask, self.mask_token.to(features.dtype), features)
        for stage in self.stages:
            features = stage(features, recompute=self.use_checkpoint and self.training)
        encoded: Tensor = self.norm(features)
        return encoded

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, H, W) -> logits (B, num_classes); without a head, pooled features."""
        pooled = self.forward_features(image).mean(dim=(2, 3))
        return pooled if self.head is None else self.head(pooled)

    def layer_of(self, name: str) -> int:
        """Layer id: 0 of the stem, i + 1 of block i and a reduction after it, n + 1 of all else."""
        part, *rest = name.split(".")
        if part in ("patch_embed", "mask_token"):
            return 0
        if part != "stages":
            return self.num_layers + 1
        before = sum(self.depths[: int(rest[0])])
        return before + int(rest[2]) + 1 if rest[1] == "blocks" else before

    def no_weight_decay(self, name: str) -> bool:
        """Whether it is the mask token; biases, norms and layer scales never decay."""
        return name == "mask_token"


def require_stages(
    depths: Sequence[int],
    depths_name: str,
    image_size: int | tuple[int, int],
    patch_size: int,
    patch_name: str,
) -> None:
    """Raise ValueError unless there are stages, for which the image is large enough."""
    if not depths:
        raise ValueError(f"{depths_name} is [], expected the blocks of at least one stage")
    require_size(to_2tuple(image_size), patch_size, len(depths), patch_name)
