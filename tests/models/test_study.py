"""Every combination of the paper's heads, targets and losses trains, also with the other scope."""

from pathlib import Path
from typing import Any

import pytest
import torch

from models.build import DECODERS, LOSSES, TARGETS
from tests.support.codebooks import write_codebook, write_tokenizer
from tests.support.small_encoders import sample, small_model

NUMBERS = ("pixels", "normalized_pixels")
COMBINATIONS = [
    (target, loss)
    for target in TARGETS
    for loss in LOSSES
    if (target in NUMBERS) == (loss != "cross_entropy")
]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Options that name a codebook and a tokenizer."""
    folder: Path = tmp_path_factory.mktemp("files")
    write_codebook(folder / "x.safetensors", 6)
    write_tokenizer(folder / "x.onnx", side=1)
    return [
        *("MODEL.SIMMIM.COLOR_CLUSTERS.CODEBOOK", str(folder / "x.safetensors")),
        *("MODEL.SIMMIM.COLOR_CLUSTERS.NUMBER", 6),
        *("MODEL.SIMMIM.TOKENS.FILE", str(folder / "x.onnx"), "MODEL.SIMMIM.TOKENS.SHRINK", 2),
        *("MODEL.SIMMIM.TOKENS.PATCH_SIZE", 2, "MODEL.SIMMIM.TOKENS.VOCABULARY", 11),
        *("MODEL.SIMMIM.NORM_TARGET.PATCH_SIZE", 5),
    ]


@pytest.mark.parametrize(
    ("head", "scope"), [("linear", "all"), *((head, "hidden") for head in DECODERS)]
)
@pytest.mark.parametrize(("target", "loss"), COMBINATIONS)
def test_a_head_learns_a_target_by_a_loss(
    files: list[Any], head: str, target: str, loss: str, scope: str
) -> None:
    """The loss of a batch is lower after an update on it."""
    names = {"DECODER": head, "TARGET": target, "LOSS": loss, "SCOPE": scope}
    opts = [word for key, name in names.items() for word in (f"MODEL.SIMMIM.{key}", name)]
    shrink = 1 if target == "tokens" else 2  # a feature stands for 4 x 4 pixels of the target
    model = small_model("swin", "MODEL.SIMMIM.TARGET_SHRINK", shrink, *opts, *files).eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    image, mask = sample(model)
    before = model(image, mask)
    before.backward()
    optimizer.step()
    assert model(image, mask) < before
