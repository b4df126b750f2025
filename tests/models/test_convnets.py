"""ResNet and ConvNeXt: timm's numbers, published sizes, hidden pixels, batch norm."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.models.convnext import ConvNeXt as TimmConvNeXt
from timm.models.resnet import Bottleneck
from timm.models.resnet import ResNet as TimmResNet
from torch import Tensor, nn

from models import build_classifier, build_pretrain_model, load_classifier, load_pretrained
from tests.support.small_encoders import SMALL, sample, small_model
from utils.config import get_config
from utils.randomness import MODEL_STREAM, seed_all

CONVNETS = ("resnet", "convnext")
# Published: torchvision's and timm's models; ResNet-50 has 25,557,032 with a 7 x 7 stem.
SIZES = {
    "swin_tiny": 28_288_354,
    "swin_small": 49_606_258,
    "vit_tiny": 5_684_092,
    "vit_small": 21_984_016,
    "vit_large": 304_161_192,
    "resnet50": 25_557_032 - 3 * 64 * (7**2 - 3**2),
    "resnet50x4": 383_540_456,
    "convnext_tiny": 28_589_128,
    "convnext_small": 50_223_688,
    "convnext_base": 88_591_464,
    "convnext_large": 197_767_336,
}
RENAMED: dict[str, list[tuple[str, Any]]] = {
    "resnet": [
        (r"^conv1", "patch_embed.proj"),
        (r"^bn1", "patch_embed.norm"),
        (r"^layer(\d)\.", lambda match: f"stages.{int(match[1]) - 1}.blocks."),
        (r"^fc", "head"),
    ],
    "convnext": [
        (r"^stem\.0", "patch_embed.proj"),
        (r"^stem\.1", "patch_embed.norm"),
        (r"^norm_pre", "norm"),
        (r"^head\.fc", "head"),
    ],
}


def of_timm(kind: str) -> nn.Module:
    """timm's small ResNet with SimMIM's stem, or ConvNeXt with the last norm before the mean."""
    if kind == "convnext":
        sizes: Any = dict(depths=(2, 1, 2, 1), dims=(16, 24, 32, 40))
        return TimmConvNeXt(**sizes, num_classes=7, ls_init_value=1.0, head_norm_first=True)
    model = TimmResNet(Bottleneck, (2, 1, 1, 1), num_classes=7, zero_init_last=False)
    model.conv1 = nn.Conv2d(3, 64, 3, stride=2, padding=1, bias=False)
    model.maxpool = nn.MaxPool2d(2)
    return model


def renamed(kind: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    found = {}
    for name, value in weights.items():
        for pattern, own in RENAMED[kind]:
            name = re.sub(pattern, own, name)
        found[name] = value
    return found


def statistics_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in model.state_dict().items() if "running" in name}


@pytest.mark.parametrize("block", SIZES)
def test_a_block_of_a_configuration_has_the_published_number_of_parameters(block: str) -> None:
    path = Path(f"configs/_base_/{block}.yaml")
    with torch.device("meta"):
        model = build_classifier(get_config(str(path)), 1000)
    number = sum(parameter.numel() for parameter in model.parameters())
    assert number == SIZES[block]
    stated = re.search(r"(\d+) M parameters", path.read_text())
    assert stated is not None
    assert int(stated[1]) == round(number / 1e6)


@pytest.mark.parametrize("kind", CONVNETS)
@torch.no_grad()
def test_logits_equal_those_of_timm_with_the_same_weights(kind: str) -> None:
    torch.manual_seed(0)
    theirs, image = of_timm(kind), torch.randn(4, 3, 64, 64)
    theirs(image)  # in training, so that batch norms have statistics
    sizes = {
        "resnet": ["MODEL.RESNET.LAYERS", [2, 1, 1, 1]],
        "convnext": [
            "MODEL.CONVNEXT.DEPTHS",
            [2, 1, 2, 1],
            "MODEL.CONVNEXT.DIMS",
            [16, 24, 32, 40],
        ],
    }
    opts = ["MODEL.TYPE", kind, *sizes[kind], "DATA.IMG_SIZE", 64, "MODEL.DROP_PATH_RATE", 0.0]
    ours = build_classifier(get_config(None, opts), 7)
    ours.load_state_dict(renamed(kind, theirs.state_dict()))
    torch.testing.assert_close(ours.eval()(image), theirs.eval()(image), rtol=1e-5, atol=1e-5)


def test_in_the_papers_form_a_hidden_pixel_reaches_only_the_cells_below_and_right_of_it() -> None:
    """By default it reaches none (tests/models/test_encoders.py)."""
    model = small_model("resnet", "MODEL.RESNET.HIDE_PIXELS", False).eval()
    image, mask = torch.zeros(1, 3, 32, 32), torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[0, 2, 2] = True
    changed = image.clone()
    changed[..., 11, 11] = 1.0  # the last row and column of cell (2, 2)
    tokens: list[Tensor] = []
    model.encoder.stages[0].register_forward_pre_hook(lambda _, inputs: tokens.append(inputs[0]))
    for picture in (image, changed):
        model.encoder.forward_features(picture, mask)
    differs = (tokens[0] != tokens[1]).any(dim=1)[0].nonzero().tolist()
    assert differs == [[2, 3], [3, 2], [3, 3]]


def test_hidden_pixels_change_neither_loss_nor_statistics_of_training() -> None:
    found = []
    for value in torch.tensor([0.0, 5.0]):
        model = small_model("resnet").train()
        image, mask = sample(model)
        pixels = mask.repeat_interleave(4, 1).repeat_interleave(4, 2).unsqueeze(1)
        changed = torch.where(pixels, value, image)
        found.append((model.predict(changed, mask), statistics_of(model)))
    assert torch.equal(found[0][0], found[1][0])
    for name, value in found[0][1].items():
        assert torch.equal(value, found[1][1][name])


def test_recomputation_updates_running_statistics_once() -> None:
    states = []
    for recompute in (False, True):
        model = small_model("resnet", "TRAIN.USE_CHECKPOINT", recompute).train()
        model(*sample(model)).backward()
        states.append(model.state_dict())
    assert states[0]["encoder.patch_embed.norm.num_batches_tracked"] == 1
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


@pytest.mark.parametrize("kind", CONVNETS)
def test_a_block_and_what_reduces_after_it_have_its_layer_id(kind: str) -> None:
    encoder = small_model(kind).encoder  # blocks of its stages: 2, 1, 1
    assert encoder.layer_of("stages.0.blocks.1.conv.weight") == 2
    assert encoder.layer_of("stages.1.downsample.1.weight") == 2
    assert encoder.layer_of("stages.1.blocks.0.downsample.0.weight") == 3
    assert encoder.layer_of("stages.2.blocks.0.conv.weight") == 4


@pytest.mark.parametrize("kind", CONVNETS)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_fine_tuning_begins_with_weights_and_statistics_of_pre_training(
    kind: str, channels: int, tmp_path: Path
) -> None:
    pretrained = small_model(kind).train()
    pretrained(*sample(pretrained))
    torch.save({"model": pretrained.state_dict()}, tmp_path / "x.pth")
    opts = [*SMALL[kind], f"MODEL.{kind.upper()}.IN_CHANS", channels]
    model = build_classifier(get_config(None, opts), 5)
    report = load_pretrained(model, tmp_path / "x.pth")
    assert set(report.initialized) == {"head.weight", "head.bias"}
    assert set(report.left_over) == {"mask_token", "decoder.0.weight", "decoder.0.bias"}
    assert report.resized == (() if channels == 3 else ("patch_embed.proj.weight",))
    for name, value in statistics_of(model).items():
        assert torch.equal(value, pretrained.encoder.state_dict()[name])
    assert model(torch.zeros(2, channels, 32, 32)).shape == (2, 5)
    torch.save({"model": model.state_dict()}, tmp_path / "y.pth")
    loaded, _ = load_classifier(tmp_path / "y.pth", get_config(None, opts), pytest.fail)
    image = torch.randn(2, channels, 32, 32)
    assert torch.equal(loaded(image), model.eval()(image))


@pytest.mark.parametrize("name", ["resnet101", "swin3", "convnextv2", "efficientnet_b0", ""])
def test_another_encoder_is_refused_with_the_choices(name: str) -> None:
    with pytest.raises(
        ValueError, match=r"MODEL\.TYPE is '.*'; choices: swin, swinv2, vit, resnet, convnext$"
    ):
        build_pretrain_model(get_config(None, ["MODEL.TYPE", name]))


@pytest.mark.parametrize(
    ("kind", "opts", "message"),
    [
        (
            "resnet",
            ["MODEL.DROP_RATE", 0.1],
            r"DROP_RATE is 0\.1, and MODEL\.RESNET has no dropout",
        ),
        ("convnext", ["MODEL.DROP_RATE", 0.1], r"DROP_RATE is 0\.1, and MODEL\.CONVNEXT has no"),
        ("convnext", ["MODEL.CONVNEXT.DIMS", [8]], r"DEPTHS \[2, 1, 1\] and DIMS \[8\] differ"),
        ("resnet", ["DATA.IMG_SIZE", 34], r"IMG_SIZE is 34, which the stride of MODEL\.RESNET's"),
        ("resnet", ["DATA.IMG_SIZE", 12], r"IMG_SIZE is 12, too small for 3 stages"),
        ("convnext", ["DATA.IMG_SIZE", 34], r"MODEL\.CONVNEXT\.PATCH_SIZE = 4 does not divide"),
        ("resnet", ["MODEL.RESNET.LAYERS", []], "LAYERS"),
        ("convnext", ["MODEL.CONVNEXT.DIMS", [], "MODEL.CONVNEXT.DEPTHS", []], "DEPTHS|DIMS"),
        ("resnet", ["MODEL.RESNET.WIDTH", 0], r"WIDTH is 0"),
    ],
)
def test_sizes_that_do_not_fit_are_one_line(kind: str, opts: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        small_model(kind, *opts)
    assert "\n" not in str(caught.value)


@torch.no_grad()
def test_convnets_start_as_published() -> None:
    seed_all(MODEL_STREAM, 0)
    resnet, convnext = (small_model(kind).encoder for kind in CONVNETS)
    block = resnet.stages[0].blocks[0]
    assert block.conv2.weight.std() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)
    assert (block.bn3.weight == 0).all()
    block = convnext.stages[2].blocks[0]
    assert block.mlp.fc1.weight.std() == pytest.approx(0.02, rel=0.05)
    assert (block.mlp.fc1.bias == 0).all()
    default: Any = build_classifier(get_config(None, ["MODEL.TYPE", "convnext"]), 2)
    assert (default.blocks[0].gamma == 1e-6).all()
