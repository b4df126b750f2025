"""Which patches are hidden: made once from the sizes, then called for every picture."""

import math
from collections.abc import Callable

import torch
from timm.layers import to_2tuple
from torch import Tensor

from utils.messages import require_divisible

Size = int | tuple[int, int]  # a side, or height and width


class RandomMask:
    """Hide ceil(cells * ratio) square cells, drawn uniformly without replacement (section 3.1).

    `image_size` is a side or (height, width); a call gives a bool tensor (height / patch_size,
    width / patch_size), True = hidden.
    ValueError where the sizes do not divide, or nothing or everything would be hidden.
    """

    def __init__(
        self,
        image_size: Size = 192,
        mask_patch_size: int = 32,
        patch_size: int = 4,
        mask_ratio: float = 0.6,
    ) -> None:
        height, width = to_2tuple(image_size)
        for side in (height, width):
            require_divisible(side, mask_patch_size, "DATA.IMG_SIZE", "DATA.MASK_PATCH_SIZE")
        require_divisible(mask_patch_size, patch_size, "DATA.MASK_PATCH_SIZE", "PATCH_SIZE")
        if not 0 < mask_ratio < 1:
            raise ValueError(f"DATA.MASK_RATIO is {mask_ratio}, expected between 0 and 1")
        self.cells = height // mask_patch_size, width // mask_patch_size
        self.scale = mask_patch_size // patch_size
        self.num_hidden = math.ceil(math.prod(self.cells) * mask_ratio)
        if self.num_hidden == math.prod(self.cells):
            raise ValueError(
                f"DATA.MASK_RATIO is {mask_ratio}, which hides every one of {self.num_hidden} "
                "cell(s) and leaves nothing visible; give less, or more and smaller cells"
            )

    def __call__(self) -> Tensor:
        """Draw one mask."""
        mask = torch.zeros(math.prod(self.cells), dtype=torch.bool)
        mask[torch.randperm(len(mask))[: self.num_hidden]] = True
        mask = mask.view(self.cells)
        return mask.repeat_interleave(self.scale, 0).repeat_interleave(self.scale, 1)


# (image_size, mask_patch_size, patch_size, mask_ratio) -> what draws a mask from torch's generator
MASKS: dict[str, Callable[[Size, int, int, float], Callable[[], Tensor]]] = {"random": RandomMask}
