"""Updates of every recipe on a GPU that is not there: no waiting, and attention as kernels take it.

The backward pass needs a real one, and so do averaged weights, of which timm makes a generator
there (tests/gpu).
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.codebooks import write_codebook
from tests.support.fake_gpu import GPU, Attentions, Waits, fake_gpu
from tests.support.recipe_updates import PRETRAIN, RECIPES, build_loop, short_recipe
from utils.checkpoints.state import TrainState
from utils.training.engine import train_one_epoch


def train(
    monkeypatch: pytest.MonkeyPatch,
    recipe: str,
    precision: torch.dtype = torch.bfloat16,
    spoil: Callable[[Tensor], object] = lambda loss: None,
    opts: Sequence[Any] = (),
) -> tuple[TrainState, Attentions]:
    """Two updates of two images, of which the last must not wait; what attention was given."""
    cfg = short_recipe(recipe, *opts)
    attentions = Attentions()
    with fake_gpu(), attentions:
        loop = build_loop(cfg, GPU, precision, updates=1)

        def backward(loss: Tensor) -> None:
            """What a fake GPU cannot do."""
            spoil(loss)
            for parameter in loop.model.parameters():
                parameter.grad = torch.empty_like(parameter)

        monkeypatch.setattr(Tensor, "backward", backward)
        train_one_epoch(loop)  # constants move to the device
        attentions.calls.clear()
        loop.state.position.complete_epoch()
        with Waits():
            train_one_epoch(loop)
    return loop.state, attentions


@pytest.mark.parametrize("recipe", RECIPES)
def test_an_update_of_a_recipe_does_not_wait_and_gives_attention_what_fused_kernels_take(
    monkeypatch: pytest.MonkeyPatch, recipe: str
) -> None:
    state, attentions = train(monkeypatch, recipe)
    assert state.position.update == 2
    encoder: Any = getattr(state.model, "encoder", state.model)
    attends = short_recipe(recipe).MODEL.TYPE in ("swin", "swinv2", "vit")
    assert len(attentions.calls) == (len(encoder.blocks) if attends else 0)
    for query, key, value, bias in attentions.calls:
        assert query.dtype == key.dtype == value.dtype == torch.bfloat16
        assert query.stride(-1) == key.stride(-1) == value.stride(-1) == 1
        assert bias is not None
        assert bias.dtype == query.dtype
        assert bias.stride(-1) == 1, "kernels refuse it"
        assert all(stride % 8 == 0 for stride in bias.stride()[:-1]), "torch copies it"
    if getattr(encoder, "rel_pos_bias", None) is not None:
        shared = {
            call[3].untyped_storage()._cdata for call in attentions.calls if call[3] is not None
        }
        assert len(shared) == 1, "it is made once in an update, not in each block"


def test_scaled_gradients_do_not_wait_either(monkeypatch: pytest.MonkeyPatch) -> None:
    _, attentions = train(monkeypatch, PRETRAIN, torch.float16)
    assert {query.dtype for query, *_ in attentions.calls} == {torch.float16}


@pytest.mark.parametrize("target", ["color_bins", "color_clusters", "pixels", "normalized_pixels"])
def test_no_target_of_colours_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    """Tokens do: their tokenizer runs on the CPU."""
    write_codebook(tmp_path / "x.safetensors", 4)
    opts = ["MODEL.SIMMIM.TARGET", target, "MODEL.SIMMIM.TARGET_SHRINK", 4]
    opts += ["MODEL.SIMMIM.COLOR_CLUSTERS.CODEBOOK", str(tmp_path / "x.safetensors")]
    opts += ["MODEL.SIMMIM.COLOR_CLUSTERS.NUMBER", 4]
    loss = "cross_entropy" if target.startswith("color") else "smooth_l1"
    opts += ["MODEL.SIMMIM.LOSS", loss, "MODEL.SIMMIM.SCOPE", "all"]
    state, _ = train(monkeypatch, PRETRAIN, opts=opts)
    assert state.position.update == 2


@pytest.mark.parametrize("head", ["mlp", "inverse_swin_tiny"])
def test_no_head_waits_and_its_attention_is_as_kernels_take_it(
    monkeypatch: pytest.MonkeyPatch, head: str
) -> None:
    _, attentions = train(monkeypatch, PRETRAIN, opts=["MODEL.SIMMIM.DECODER", head])
    assert len(attentions.calls) == (8 if head == "mlp" else 8 + 12)
    for query, _, _, bias in attentions.calls:
        assert bias is not None
        assert bias.dtype == query.dtype == torch.bfloat16
        assert all(stride % 8 == 0 for stride in bias.stride()[:-1]), "torch copies it"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda loss: loss.item(),
        lambda loss: loss.expand(2).cpu(),
        lambda loss: loss.cpu(),
        lambda loss: loss.to("cpu", non_blocking=True),
        lambda loss: loss + torch.tensor(1.0).to(GPU),
        lambda loss: loss.expand(2)[torch.tensor([0, 1])],
        lambda loss: loss.expand(2) + torch.ones(2).to(GPU),
        lambda loss: loss.expand(2)[loss.expand(2) > 0],
    ],
    ids=[
        "number",
        "copy",
        "number to the CPU",
        "later",
        "number to the GPU",
        "index on the CPU",
        "copy from the CPU",
        "size",
    ],
)
def test_whatever_makes_the_host_wait_is_found(
    monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Tensor], object]
) -> None:
    with pytest.raises((AssertionError, RuntimeError), match=r"wait|aten|data"):
        train(monkeypatch, PRETRAIN, spoil=spoil)
