"""Transforms of fine-tuning and evaluation: the reference's pixels, reproducible chance."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import auto_augment

from data import build_batch_augmentation, build_train_dataset, build_train_loader
from data.transforms import Normalizer, eval_transform, train_transform
from tests.support.fake_gpu import GPU, fake_gpu
from tests.support.golden_cases import GOLDEN, read_golden
from utils.config import get_config
from utils.randomness import UPDATE_STREAM, seed_all

CASES = read_golden("eval_transform.json")
CPU = torch.device("cpu")
SMALL: list[Any] = ["DATA.DATASET", "shapes", "DATA.IMG_SIZE", 32, "DATA.NUM_SHAPES", 16]
SMALL += ["DATA.BATCH_SIZE", 8]


@pytest.mark.parametrize("name", sorted(CASES))
def test_the_evaluation_transform_gives_the_references_pixels(name: str) -> None:
    case = CASES[name]
    picture = Image.open(GOLDEN / f"eval_{name}.png")
    assert list(picture.size) == case["size"]
    image = eval_transform(case["img_size"], "bicubic", case["crop"])(picture)
    assert image.dtype == torch.uint8
    result = Normalizer()(image[None])[0].numpy()
    assert list(result.shape) == case["shape"]
    expected = np.load(GOLDEN / "eval_transform.npz")[name]
    np.testing.assert_allclose(result[:, ::9, ::9], expected, rtol=0, atol=1e-5)
    assert result.mean() == pytest.approx(case["mean"], abs=1e-5)
    assert result.std() == pytest.approx(case["std"], abs=1e-5)


def batches_of(workers: int, epoch: int) -> list[Any]:
    cfg = get_config(None, [*SMALL, "DATA.NUM_WORKERS", workers])
    loader: Any = build_train_loader(cfg, build_train_dataset(cfg), CPU)
    loader.sampler.set_position(epoch)
    return list(loader)


def test_augmented_samples_are_the_same_for_any_number_of_workers() -> None:
    expected = batches_of(0, epoch=1)
    for workers in (1, 2):
        for (image, label), (image0, label0) in zip(batches_of(workers, 1), expected, strict=True):
            assert torch.equal(image, image0)
            assert torch.equal(label, label0)
    assert expected[0][0].dtype == torch.uint8
    assert expected[0][1].dtype == torch.int64
    assert not torch.equal(batches_of(0, epoch=2)[0][0], expected[0][0])


@pytest.mark.parametrize(
    ("scale", "augment", "message"),
    [
        ([0.08, 1.0], "rand-q9", "AUG.AUTO_AUGMENT is 'rand-q9', which timm does not know"),
        ([0.0, 1.0], "none", r"AUG.CROP_SCALE is \[0.0, 1.0\]"),
        ([0.5], "none", "AUG.CROP_SCALE"),
    ],
)
def test_unknown_augmentations_are_refused(scale: list[float], augment: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train_transform(32, "bicubic", scale, 0.4, augment)


def augmented(*opts: Any, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    augment = build_batch_augmentation(get_config(None, [*SMALL, *opts]), 10, CPU)
    seed_all(UPDATE_STREAM, seed)
    return augment(
        torch.ones(8, 3, 32, 32) * torch.arange(8.0)[:, None, None, None], torch.arange(8)
    )


def test_mixing_makes_soft_targets_that_add_up_to_1() -> None:
    image, target = augmented()
    assert target.shape == (8, 10)
    torch.testing.assert_close(target.sum(dim=1), torch.ones(8))
    off = 0.1 / 10  # label smoothing
    assert float(target.min()) == pytest.approx(off)
    assert ((target > off + 1e-6).sum(dim=1) <= 2).all()  # an image and its partner
    again, _ = augmented()
    assert torch.equal(image, again)
    assert not torch.equal(image, augmented(seed=1)[0])


def test_without_mixing_labels_stay_and_erasing_is_an_option() -> None:
    off = ["AUG.MIXUP", 0.0, "AUG.CUTMIX", 0.0]
    image, target = augmented(*off, "AUG.REPROB", 0.0)
    assert torch.equal(target, torch.arange(8))
    assert all((image[index] == index).all() for index in range(8))
    image, _ = augmented(*off, "AUG.REPROB", 1.0)
    assert all((image[index] != index).any() for index in range(8))
    image, _ = augmented("AUG.MIXUP", 0.0, "AUG.CUTMIX", 0.0, "AUG.CUTMIX_MINMAX", [0.2, 0.8])
    assert image.shape == (8, 3, 32, 32)


def test_an_odd_batch_cannot_be_paired() -> None:
    with pytest.raises(ValueError, match="BATCH_SIZE is 7; Mixup and CutMix pair images"):
        augmented("DATA.BATCH_SIZE", 7)
    augmented("DATA.BATCH_SIZE", 7, "AUG.MIXUP", 0.0, "AUG.CUTMIX", 0.0)


@pytest.mark.parametrize("name", sorted(auto_augment.NAME_TO_OP))
def test_every_operation_of_autoaugment_takes_every_magnitude(name: str) -> None:
    picture = Image.effect_noise((16, 16), 80).convert("RGB")
    for magnitude in range(11):
        changed = auto_augment.AugmentOp(name, prob=1.0, magnitude=magnitude)(picture)
        assert changed.size == picture.size


def test_a_picture_without_any_bits_is_black() -> None:
    """As Pillow did before version 13: RandAugment keeps 0 bits at its largest magnitude."""
    picture = Image.effect_noise((16, 16), 80).convert("RGB")
    operation = auto_augment.AugmentOp("PosterizeIncreasing", prob=1.0, magnitude=10)
    operation.magnitude_std = 0
    assert operation(picture).getextrema() == ((0, 0),) * 3


def test_loader_workers_get_no_tensor_on_a_gpu() -> None:
    """A worker that is not forked receives a copy of the data set."""
    with fake_gpu():
        normalize = Normalizer()
        normalize(torch.empty(2, 3, 4, 4, dtype=torch.uint8, device=GPU))
        assert normalize.mean.is_cuda
        copied = normalize.__getstate__()
        assert not any(values.is_cuda for values in copied.values())
        assert vars(normalize).keys() == copied.keys()
