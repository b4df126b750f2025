"""Accuracy: counted by hand, the same for any batch size; speed: of what was asked for."""

from typing import Any

import pytest
import torch
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import Tensor, nn

from models import build_criterion
from utils.checkpoints.state import Best
from utils.config import get_config
from utils.training.evaluation import Evaluation, evaluate, measure_throughput

CPU = torch.device("cpu")
LOGITS = torch.tensor([[3.0, 2, 1, 0, -1, -2], [0, 1, 2, 3, 4, 5], [0, 9, 0, 0, 0, 0]])
LABELS = torch.tensor([0, 0, 1])


def evaluation_of(logits: Tensor, labels: Tensor, batch_size: int = 2) -> Evaluation:
    batches = list(zip(logits.split(batch_size), labels.split(batch_size), strict=True))
    return evaluate(
        nn.Identity(), batches, lambda x: x, logits.shape[1], device=CPU, amp_dtype=torch.float32
    )


def test_accuracy_and_loss_equal_those_computed_by_hand() -> None:
    evaluation = evaluation_of(LOGITS, LABELS)
    assert evaluation.images.tolist() == [2, 1, 0, 0, 0, 0]
    assert evaluation.correct1.tolist() == [1, 1, 0, 0, 0, 0]
    assert evaluation.correct5.tolist() == [1, 1, 0, 0, 0, 0]  # label 0 came last of six
    assert evaluation.acc1 == pytest.approx(200 / 3)
    assert str(evaluation) == "* Acc@1 66.667 Acc@5 66.667"
    expected = nn.functional.cross_entropy(LOGITS, LABELS)
    assert evaluation.loss == pytest.approx(float(expected))
    plain = evaluation.to_plain(list("abcdef"))
    assert plain["per_class"][0] == {"index": 0, "name": "a", "images": 2, "acc1": 50.0}
    assert plain["per_class"][2] == {"index": 2, "name": "c", "images": 0, "acc1": None}
    assert plain["images"] == 3


def test_classes_of_one_name_keep_their_own_figures() -> None:
    """A checkpoint may hold such names: ImageNet's words have two cranes."""
    names = ["crane", "maillot", "crane", "maillot", "a", "b"]
    reported = evaluation_of(LOGITS, LABELS).to_plain(names)["per_class"]
    assert [entry["name"] for entry in reported] == names
    assert [entry["images"] for entry in reported] == [2, 1, 0, 0, 0, 0]


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_any_batch_size_counts_every_image_once(batch_size: int) -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(101, 8), torch.randint(8, (101,))
    evaluation = evaluation_of(logits, labels, batch_size)
    assert int(evaluation.images.sum()) == 101
    assert int(evaluation.correct1.sum()) == int((logits.argmax(1) == labels).sum())
    assert evaluation.images.tolist() == labels.bincount(minlength=8).tolist()


def test_fewer_than_five_classes_have_a_top_5_of_100() -> None:
    assert evaluation_of(LOGITS[:, :3], LABELS).acc5 == 100.0


def test_a_network_of_nans_has_no_accuracy() -> None:
    with pytest.raises(ValueError, match="loss of the evaluation is nan"):
        evaluation_of(LOGITS * float("nan"), LABELS)


def test_evaluation_leaves_the_network_as_it_was() -> None:
    model = nn.Sequential(nn.Dropout(0.9))
    batches = [(LOGITS, LABELS)]
    arguments: dict[str, Any] = dict(device=CPU, amp_dtype=torch.float32)
    evaluation = evaluate(model, batches, lambda x: x, 6, **arguments)
    assert model.training
    assert evaluation.acc1 == pytest.approx(200 / 3)  # nothing was dropped


def test_the_first_of_equal_epochs_is_the_best() -> None:
    best = Best()
    assert [best.update(acc1, epoch) for epoch, acc1 in enumerate((3.0, 5.0, 5.0, 4.0))] == [
        True, True, False, False,
    ]  # fmt: skip
    assert (best.acc1, best.epoch) == (5.0, 1)


def test_throughput_counts_whole_batches() -> None:
    model = nn.Linear(4, 4)
    assert measure_throughput(model, torch.ones(8, 4), torch.float32, seconds=0.02) > 0
    assert not model.training


def test_the_criterion_is_timms() -> None:
    cfg = get_config()
    soft = torch.rand(3, 6).softmax(dim=1)
    found = build_criterion(cfg, soft_targets=True)(LOGITS, soft)
    torch.testing.assert_close(found, SoftTargetCrossEntropy()(LOGITS, soft))
    found = build_criterion(cfg, soft_targets=False)(LOGITS, LABELS)
    torch.testing.assert_close(found, LabelSmoothingCrossEntropy(0.1)(LOGITS, LABELS))
