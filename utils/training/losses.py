"""What each stage makes of a batch: its loss, a scalar."""

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
    """`criterion` of a batch of images and labels, which is augmented and mixed."""

    def compute_loss(model: nn.Module, batch: Sequence[Tensor]) -> Tensor:
        image, target = augment(normalize(batch[0]), batch[1])
        loss: Tensor = criterion(model(image).float(), target)
        return loss

    return compute_loss
