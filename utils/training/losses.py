"""The loss of a batch, a scalar, for each stage."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

Normalize = Callable[[Tensor], Tensor]
Augment = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
ComputeLoss = Callable[[nn.Module, Sequence[Tensor]], Tensor]


def pretrain_loss(normalize: Normalize) -> ComputeLoss:
    """The masked loss of a batch of images and masks."""

    def compute_loss(model: nn.Module, batch: Sequence[Tensor]) -> Tensor:
        image, mask = batch
        loss: Tensor = model(normalize(image), mask)
        return loss

    return compute_loss


def finetune_loss(criterion: nn.Module, normalize: Normalize, augment: Augment) -> ComputeLoss:
    """`criterion` on a batch of images and labels after normalization and augmentation."""

    def compute_loss(model: nn.Module, batch: Sequence[Tensor]) -> Tensor:
        image, target = augment(normalize(batch[0]), batch[1])
        loss: Tensor = criterion(model(image).float(), target)
        return loss

    return compute_loss
