"""Evaluation in float32: the same result for any batch size, and TF32 only where asked for."""

from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from models import build_classifier
from tests.support.golden_cases import case_input, fill_by_rule
from tests.support.small_encoders import OURS, SMALL
from utils.config import get_config
from utils.training.evaluation import evaluate
from utils.training.run import set_up_device

pytestmark = pytest.mark.gpu

IMAGES, CLASSES = 65, 10


@pytest.mark.parametrize("kind", OURS)
def test_accuracy_and_logits_do_not_depend_on_the_batch_size(
    kind: str, device: torch.device
) -> None:
    cfg = get_config(None, [*SMALL[kind], "MODEL.NAME", "finetune", "MODEL.NUM_CLASSES", CLASSES])
    model: Any = build_classifier(cfg, CLASSES)
    fill_by_rule(model)
    model = model.to(device).eval()
    image, _ = case_input("evaluation", IMAGES, 32, 8, 4, torch.float32)
    seen: list[torch.Tensor] = []
    hook = model.register_forward_hook(lambda module, inputs, logits: seen.append(logits.cpu()))
    with torch.no_grad():
        label = model(image.to(device)).argmax(dim=1).cpu()
    label[::3] = 0  # about two thirds are right
    results = []
    for size in (1, 7, 64):
        seen.clear()
        loader: Any = DataLoader(TensorDataset(image, label), size)
        evaluation = evaluate(
            model, loader, lambda image: image, CLASSES, device=device, amp_dtype=torch.float32
        )
        results.append((evaluation.acc1, torch.cat(seen)))
    hook.remove()
    assert len({acc1 for acc1, _ in results}) == 1
    assert 50 < results[0][0] < 100
    for _, logits in results[1:]:
        torch.testing.assert_close(logits, results[0][1], rtol=0, atol=1e-4)


@pytest.mark.parametrize("asked", [False, True])
def test_tf32_is_used_only_where_it_is_asked_for(asked: bool, device: torch.device) -> None:
    set_up_device(get_config(None, ["DEVICE", device.type, "TRAIN.TF32", asked]))
    assert torch.backends.cuda.matmul.allow_tf32 is asked
    assert torch.backends.cudnn.allow_tf32 is asked
    if device.type == "cpu":
        return
    if torch.cuda.get_device_capability(device) < (8, 0):
        pytest.skip("this GPU has no TF32")
    torch.manual_seed(0)
    one, other = (torch.randn(1024, 1024, device=device) for _ in range(2))
    exact = one.double() @ other.double()
    error = ((one @ other).double() - exact).norm() / exact.norm()
    assert bool(error > 1e-4) == asked
