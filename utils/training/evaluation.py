"""Accuracy of a classifier, every image counted once on any number of processes, and its speed."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from utils.processes.group import largest_over_processes, sum_over_processes
from utils.processes.sharding import is_sharded, mixed_precision


class Batches(Sized, Protocol):
    """Batches of images and labels, whose number is known."""

    def __iter__(self) -> Iterator[Any]: ...


@dataclass(frozen=True)
class Evaluation:
    """Counts of one pass over a data set: per class (num_classes,), and the mean loss."""

    images: Tensor
    correct1: Tensor
    correct5: Tensor
    loss: float
    unreadable: int = 0

    @property
    def acc1(self) -> float:
        """Top-1 accuracy in percent."""
        return 100 * int(self.correct1.sum()) / int(self.images.sum())

    @property
    def acc5(self) -> float:
        """Top-5 accuracy in percent; 100 where there are five classes or fewer."""
        return 100 * int(self.correct5.sum()) / int(self.images.sum())

    def __str__(self) -> str:
        return f"* Acc@1 {self.acc1:.3f} Acc@5 {self.acc5:.3f}"

    def to_plain(self, classes: Sequence[str]) -> dict[str, Any]:
        """Everything as numbers for a JSON file; a class without images has accuracy None."""
        per_class = zip(classes, self.images.tolist(), self.correct1.tolist(), strict=True)
        return {
            "acc1": self.acc1,
            "acc5": self.acc5,
            "loss": self.loss,
            "images": int(self.images.sum()),
            "unreadable": self.unreadable,
            # A list: names that a file gives to its classes may occur twice.
            "per_class": [
                {
                    "index": index,
                    "name": name,
                    "images": images,
                    "acc1": 100 * correct / images if images else None,
                }
                for index, (name, images, correct) in enumerate(per_class)
            ],
        }


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Batches,
    prepare: Callable[[Tensor], Tensor],
    num_classes: int,
    *,
    device: torch.device,
    amp_dtype: torch.dtype,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
    between: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Evaluate this process's share `batches` and add up the shares; call it in all processes.

    A label -1 - k is that of a picture of class k that could not be read: it counts as wrong.
    `prepare` makes of images what the model takes, `progress` shows how far it is, `between` is
    called after every batch, equally often in all processes. ValueError where outputs are not
    finite.
    """
    was_training = model.training
    model.eval()
    counts = torch.zeros(3, num_classes, dtype=torch.int64, device=device)
    sums = torch.zeros(2, dtype=torch.float64, device=device)  # losses, readable pictures
    num_missing = _batches_behind(len(batches), device, is_sharded(model))

    def classify(image: Tensor) -> Tensor:
        with mixed_precision(model, device, amp_dtype):
            logits: Tensor = model(prepare(image.to(device, non_blocking=True)))
        return logits

    for image, label in progress(batches):
        label = label.to(device, non_blocking=True)
        readable = label >= 0
        label = torch.where(readable, label, -1 - label)
        logits = classify(image)
        ranking = logits.topk(min(5, num_classes), dim=1).indices  # (B, 5)
        hits = (ranking == label[:, None]) & readable[:, None]
        found = torch.stack((torch.ones_like(label), hits[:, 0].long(), hits.any(dim=1).long()))
        counts.index_add_(1, label, found)
        losses = F.cross_entropy(logits.float(), label, reduction="none")
        sums += torch.stack(
            (torch.where(readable, losses, 0).sum().double(), readable.sum().double())
        )
        between()
    for _ in range(num_missing):
        if is_sharded(model):  # whose processes compute in step
            classify(image)
        between()
    model.train(was_training)
    images, correct1, correct5 = sum_over_processes(counts).cpu()
    loss_sum, readable_sum = sum_over_processes(sums).tolist()
    loss = loss_sum / max(readable_sum, 1)
    if not math.isfinite(loss):
        raise ValueError(f"the loss of the evaluation is {loss}: the weights are no use")
    return Evaluation(images, correct1, correct5, loss, int(images.sum()) - round(readable_sum))


def _batches_behind(number: int, device: torch.device, sharded: bool) -> int:
    """How many batches others have more."""
    most, least = (sign * largest_over_processes(sign * number, device) for sign in (1, -1))
    if sharded and least == 0:
        raise ValueError("a sharded model is evaluated on at least one image per process")
    return most - number


@torch.no_grad()
def measure_throughput(
    model: nn.Module, image: Tensor, amp_dtype: torch.dtype, *, seconds: float
) -> float:
    """Images per second that `model` classifies in batches `image`, on one process.

    Timed for `seconds` and at least three batches, after a warm-up of a fifth of that.
    """
    model.eval()

    def classify_for(seconds: float) -> float:
        """Images per second over at least three batches."""
        num_batches, elapsed, start = 0, 0.0, time.perf_counter()
        while num_batches < 3 or elapsed < seconds:
            with mixed_precision(model, image.device, amp_dtype):
                model(image)
            if image.device.type == "cuda":
                torch.cuda.synchronize(image.device)
            num_batches += 1
            elapsed = time.perf_counter() - start
        return num_batches * len(image) / elapsed

    classify_for(seconds / 5)
    return classify_for(seconds)
