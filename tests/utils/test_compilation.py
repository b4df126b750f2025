"""TRAIN.COMPILE: the same numbers, the same names, and clear refusals."""

from pathlib import Path

import pytest
import torch

import main_simmim
from models import build_pretrain_model
from tests.support.small_runs import call, run_folder, write_config
from utils.compilation import compile_parts
from utils.config import get_config

CPU = torch.device("cpu")
# Compiling takes seconds for each block of another kind.
ONE_STAGE = ["MODEL.SWIN.NUM_HEADS", "[1]", "MODEL.VIT.DEPTH", 1, "MODEL.SWIN.DEPTHS"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "what"),
    [("swin", "blocks"), ("vit", "model"), ("resnet", "blocks"), ("resnet", "model")],
)
def test_a_compiled_model_has_the_loss_gradients_and_names_of_the_eager_one(
    tmp_path: Path, kind: str, what: str
) -> None:
    opts = ["MODEL.DROP_PATH_RATE", 0.0, *ONE_STAGE, "[2]", "MODEL.RESNET.LAYERS", [1]]
    opts += ["TRAIN.USE_CHECKPOINT", kind == "resnet"]
    cfg = get_config(str(write_config(tmp_path, kind)), opts)
    model = build_pretrain_model(cfg).double()
    names = list(model.state_dict())
    cells = 32 // model.encoder.patch_size
    image, mask = torch.rand(4, 3, 32, 32).double(), torch.rand(4, cells, cells) < 0.6
    expected = model(image, mask)
    expected.backward()
    gradients = {name: value.grad for name, value in model.named_parameters()}
    assert all(gradient is not None for gradient in gradients.values())
    model.zero_grad(set_to_none=True)
    compile_parts(model, what, CPU)
    loss = model(image, mask)
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
    assert list(model.state_dict()) == names
    for name, value in model.named_parameters():
        torch.testing.assert_close(value.grad, gradients[name], rtol=1e-8, atol=1e-12)
    counts = [value for name, value in model.named_buffers() if name.endswith("batches_tracked")]
    assert all(count == 2 for count in counts), "statistics follow each forward pass once"


@pytest.mark.slow
def test_a_compiled_run_is_resumed_without_compiling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = ("--cfg", write_config(tmp_path), "--output", tmp_path)
    arguments = (*start, "--opts", "TRAIN.EPOCHS", 1, *ONE_STAGE, "[1]", "TRAIN.COMPILE")
    assert call(monkeypatch, main_simmim, *arguments, "blocks") == 0
    assert call(monkeypatch, main_simmim, *arguments, "none") == 0
    assert "nothing is left to train" in (run_folder(tmp_path) / "log_rank0.txt").read_text()


def test_other_values_of_compile_are_refused() -> None:
    with pytest.raises(ValueError, match=r"TRAIN\.COMPILE is 'everything'; choices: none"):
        get_config(None, ["TRAIN.COMPILE", "everything"])


def test_a_missing_compiler_is_named_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    model = build_pretrain_model(get_config(str(write_config(tmp_path))))
    with pytest.raises(ValueError, match=r"C\+\+ compiler.*no-such-compiler"):
        compile_parts(model, "blocks", CPU)
