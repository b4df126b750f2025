"""Every key of the configuration with extreme values: accepted, or refused in one line."""

import functools
import math
from typing import Any

import pytest
import torch

from data import (
    build_batch_augmentation,
    build_mask,
    build_pretrain_dataset,
    build_train_dataset,
)
from lr_scheduler import build_scheduler
from models import build_classifier, build_criterion, build_pretrain_model
from optimizer import build_optimizer, scale_lr
from utils.config import get_config, keys_below
from utils.config.defaults import DEFAULTS, FLOAT_LISTS, OPTIONAL, SIZES
from utils.config.limits import FOLDER_NAMES, PATHS, RANGES
from utils.config.values import value_of

NAMES = (*PATHS, *FOLDER_NAMES)
KINDS = ("swin", "swinv2", "vit", "resnet", "convnext")
SMALL: list[Any] = ["DATA.DATASET", "shapes", "DATA.IMG_SIZE", 32, "DATA.MASK_PATCH_SIZE", 16]
SMALL += ["DATA.BATCH_SIZE", 2, "DATA.NUM_SHAPES", 4, "TRAIN.WARMUP_EPOCHS", 0]
for section in ("SWIN", "SWINV2"):
    SMALL += [f"MODEL.{section}.DEPTHS", [1, 1], f"MODEL.{section}.NUM_HEADS", [1, 2]]
    SMALL += [f"MODEL.{section}.EMBED_DIM", 16]
SMALL += ["MODEL.VIT.DEPTH", 2, "MODEL.VIT.EMBED_DIM", 16, "MODEL.VIT.NUM_HEADS", 2]
SMALL += ["MODEL.RESNET.LAYERS", [1, 1], "MODEL.CONVNEXT.DEPTHS", [1, 1]]
SMALL += ["MODEL.CONVNEXT.DIMS", [16, 32]]
KEYS = list(keys_below(DEFAULTS))

NUMBERS: list[Any] = [-1, 0, 1, 3, 10**5, 2**31, 2**63, 10**30, 10**400, -(10**30)]
NUMBERS += [-1.0, 0.0, 0.5, 1.0, 1e-300, 1e6, 1e38, 1e308, math.inf, -math.inf, math.nan]
LISTS: list[Any] = [[], [-1], [0], [0.5], [10**400], [math.nan], [math.inf], [32, 10**5], [[]]]
LISTS += [[math.nan] * 2, [10**30] * 2, [1.0, 1.0], [0, 0], [None], ["x"], [True], [1] * 1000]
TEXTS = ["", "{[]: 1}", "{{1}}", "9" * 500 + "+1j", "x" * 300, "\0", "\ud800", "a/../../b", "..\n"]
TEXTS += ["/absolute", "..", "yes", "1e999", "-1e999", "[" * 500, "rand-n100000000", "rand-n1_000"]
TEXTS += ["augmix-w100000-d100000", "rand-m99999999-mmax9999999", "rand-mstd1e400", "rand-tx-n2"]
OTHERS: list[Any] = [True, None, {}, {"a": 1}, {1: 2}, [], -1, math.nan, "yes", "{[]: 1}", "x"]


def values_for(key: str) -> list[Any]:
    """Those of the key's own kind, and some that are not."""
    default = OPTIONAL.get(key, value_of(DEFAULTS, key))
    if isinstance(default, str | bool):
        return [*TEXTS, *OTHERS]
    if isinstance(default, list | tuple) or key in SIZES:
        return [*LISTS, *NUMBERS, *OTHERS]
    return [*NUMBERS, *TEXTS[:5], *OTHERS]


def build_all(key: str, value: Any) -> None:
    """What a run makes of a key before it begins: models without numbers, but real pictures."""
    if key.startswith("DATA.BLOCK."):
        build_mask(get_config(None, [*SMALL, "DATA.MASK", "block", key, value]), 4)()
    cfg = get_config(None, [*SMALL, key, value])
    part = key.split(".")[1].lower() if key.startswith("MODEL.") else ""
    for kind in (part,) if part in KINDS else KINDS if key == "DATA.IMG_SIZE" else ("swin",):
        if key.startswith(("DATA.", "MODEL.")) and key not in NAMES:
            models = build_models(get_config(None, [*SMALL, "MODEL.TYPE", kind, key, value]))
            prepare(cfg, *models)
    if key.startswith("TRAIN."):
        prepare(cfg, *small_models())
    if key.startswith(("AUG.", "DATA.")):
        build_train_dataset(cfg)[0, 0]
        augment = build_batch_augmentation(cfg, 10, torch.device("cpu"))
        augment(torch.zeros(2, 3, 32, 32), torch.zeros(2, dtype=torch.long))
    build_criterion(cfg, soft_targets=False)


def build_models(cfg: Any) -> tuple[Any, Any]:
    with torch.device("meta"):
        model: Any = build_pretrain_model(cfg)
        classifier: Any = build_classifier(cfg, min(cfg.MODEL.NUM_CLASSES, 10))
    build_pretrain_dataset(cfg, patch_size=model.encoder.patch_size)[0, 0]
    return model, classifier


@functools.cache
def small_models() -> tuple[Any, Any]:
    return build_models(get_config(None, SMALL))


def prepare(cfg: Any, *models: Any) -> None:
    images = cfg.DATA.BATCH_SIZE * max(cfg.TRAIN.ACCUMULATION_STEPS, 1)
    for built in models:
        optimizer = build_optimizer(cfg, built, scale_lr(cfg.TRAIN.BASE_LR, images))
        rates = dict(warmup_lr=cfg.TRAIN.WARMUP_LR, min_lr=cfg.TRAIN.MIN_LR)
        build_scheduler(cfg, optimizer, 2, **rates).step()


@pytest.mark.parametrize("key", KEYS)
def test_an_extreme_value_is_accepted_or_refused_in_one_line(key: str) -> None:
    messages = []
    for value in values_for(key):
        try:
            build_all(key, value)
        except ValueError as error:
            messages.append(str(error))
    assert [text for text in messages if "\n" in text or len(text) >= 1000] == []


def test_every_number_has_a_range() -> None:
    numbers = {
        key
        for key in KEYS
        if isinstance(OPTIONAL.get(key, value_of(DEFAULTS, key)), int | float | list | tuple)
        and not isinstance(value_of(DEFAULTS, key), bool)
    }
    assert set(RANGES) == numbers


@pytest.mark.parametrize("key", [*FLOAT_LISTS, "MODEL.SWIN.DEPTHS"])
def test_lists_with_values_that_are_no_numbers_are_refused(key: str) -> None:
    with pytest.raises(ValueError, match=f"{key} is .*nan.*expected list of numbers"):
        get_config(None, [key, [0.5, math.nan]])


@pytest.mark.parametrize("key", PATHS)
def test_a_name_that_no_file_can_have_is_refused(key: str) -> None:
    for name in ("a" * 300, "a/" * 4000, "\0", "\ud800"):
        with pytest.raises(ValueError, match=f"{key} is .*, which is no name of a file"):
            get_config(None, [key, name])
