"""Loaders: the same sample is the same whoever loads it, and no two masks repeat."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from data import (
    build_eval_dataset,
    build_pretrain_dataset,
    build_train_dataset,
    build_train_loader,
)
from data.datasets import PretrainDataset
from data.masking import MASKS
from data.samplers import EpochSampler
from data.transforms import Normalizer
from tests.support.picture_files import jpeg, write_tar
from utils.config import get_config

OPTS: list[Any] = [
    *("DATA.DATASET", "shapes", "DATA.NUM_SHAPES", 48, "DATA.IMG_SIZE", 32),
    *("DATA.MASK_PATCH_SIZE", 4, "DATA.BATCH_SIZE", 8),
]


def dataset_of(*opts: Any) -> tuple[Any, PretrainDataset]:
    cfg = get_config(None, [*OPTS, *opts])
    return cfg, build_pretrain_dataset(cfg, patch_size=4)


def epoch_of(workers: int, epoch: int, mask: str = "random") -> list[tuple[Tensor, Tensor]]:
    cfg, dataset = dataset_of("DATA.NUM_WORKERS", workers, "DATA.MASK", mask)
    loader: Any = build_train_loader(cfg, dataset, torch.device("cpu"))
    loader.sampler.set_position(epoch)
    return [tuple(batch) for batch in loader]


@pytest.mark.parametrize("mask", MASKS)
def test_batches_are_the_same_for_any_number_of_workers(mask: str) -> None:
    expected = epoch_of(workers=0, epoch=1, mask=mask)
    assert len(expected) == 6
    for workers in (1, 2):
        for batch, other in zip(epoch_of(workers, epoch=1, mask=mask), expected, strict=True):
            assert torch.equal(batch[0], other[0])
            assert torch.equal(batch[1], other[1])


def test_persistent_workers_follow_the_epoch() -> None:
    cfg, dataset = dataset_of("DATA.NUM_WORKERS", 2)
    loader: Any = build_train_loader(cfg, dataset, torch.device("cpu"))
    for epoch in (0, 1):
        loader.sampler.set_position(epoch)
        masks = torch.cat([mask for _, mask in loader])
        assert torch.equal(masks, torch.cat([mask for _, mask in epoch_of(0, epoch)]))


def test_processes_share_an_epoch_as_one_process_would_take_it() -> None:
    """Batch k of two processes is batch k of one process with twice the batch."""
    _, dataset = dataset_of()
    whole = list(EpochSampler(len(dataset), 1, 0, seed=0))
    parts = [list(EpochSampler(len(dataset), 2, rank, seed=0)) for rank in (0, 1)]
    assert sorted(parts[0] + parts[1]) == sorted(whole)
    for batch in range(3):
        together = [key for part in parts for key in part[batch * 8 : batch * 8 + 8]]
        assert sorted(together) == sorted(whole[batch * 16 : batch * 16 + 16])


def test_no_two_samples_epochs_or_workers_repeat_a_mask() -> None:
    masks = [mask for epoch in range(4) for _, mask in epoch_of(workers=2, epoch=epoch)]
    flat = torch.cat(masks).flatten(1)
    assert len(torch.unique(flat, dim=0)) == len(flat) == 4 * 48


def test_another_seed_gives_other_samples() -> None:
    _, one = dataset_of()
    _, other = dataset_of("SEED", 1)
    assert not torch.equal(one[0, 5][0], other[0, 5][0])
    assert not torch.equal(one[0, 5][1], other[0, 5][1])


def test_loading_a_sample_leaves_the_callers_randomness_alone() -> None:
    _, dataset = dataset_of()
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    dataset[0, 0]
    assert torch.equal(torch.rand(3), expected)


def test_images_arrive_as_bytes_and_masks_as_cells() -> None:
    _, dataset = dataset_of()
    image, mask = dataset[0, 0]
    assert (image.dtype, image.shape) == (torch.uint8, (3, 32, 32))
    assert (mask.dtype, mask.shape) == (torch.bool, (8, 8))


def test_normalizing_can_be_undone() -> None:
    image = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    normalize = Normalizer()
    assert torch.equal(normalize.undo(normalize(image)), image)
    white = normalize(torch.full((1, 3, 1, 1), 255, dtype=torch.uint8)).flatten()
    assert white.tolist() == pytest.approx(
        [(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, 0.594 / 0.225]
    )


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["DATA.BATCH_SIZE", 49], "holds 48 images, fewer than one update needs: 49"),
        (["TRAIN.ACCUMULATION_STEPS", 7], "56 .8 x 7 micro-batches"),
        (["DATA.DATASET", "imagnet"], "choices: imagenet, shards, cifar10, shapes"),
        (["DATA.MASK", "blocks"], "choices: random, square, block"),
    ],
)
def test_data_that_cannot_be_loaded_are_an_error(opts: list[Any], message: str) -> None:

    def build() -> None:
        cfg, dataset = dataset_of(*opts)
        build_train_loader(cfg, dataset, torch.device("cpu"))

    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("dataset", ["imagenet", "csv", "shards"])
def test_one_class_is_refused_with_what_it_holds(tmp_path: Path, dataset: str) -> None:
    """Class folders one folder too deep would be a single class, of which each guess is right."""
    for part in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / part / "images" / name).mkdir(parents=True)
            (tmp_path / part / "images" / name / "1.jpg").write_bytes(jpeg())
        rows = "path,label\ntrain/images/a/1.jpg,images\ntrain/images/b/1.jpg,images\n"
        (tmp_path / f"{part}.csv").write_text(rows)
        members = {"images/a/1.jpg": jpeg(), "images/a/1.cls": b"0"}
        members |= {"images/b/1.jpg": jpeg(), "images/b/1.cls": b"0"}
        write_tar(tmp_path / part / "0.tar", members)
        (tmp_path / part / "classes.txt").write_text("images\n")
    cfg = get_config(None, ["DATA.DATASET", dataset, "DATA.DATA_PATH", str(tmp_path)])
    words = r"all 2 training pictures are of one class, images \(.*a/1\.jpg to .*b/1\.jpg\), from"
    with pytest.raises(ValueError, match=words) as error:
        build_train_dataset(cfg)
    assert "\n" not in str(error.value)
    assert len(build_eval_dataset(cfg, ["images"])) == 2  # evaluation may see one class
