"""Every key of the configuration with extreme values: accepted, or refused in one line."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from data import build_batch_augmentation
from data.build import build_pretrain_dataset
from data.transforms import train_transform
from lr_scheduler import build_scheduler
from models import build_classifier, build_criterion, build_pretrain_model
from optimizer import build_optimizer, scale_lr
from utils.config import config_of, get_config, keys_below
from utils.defaults import DEFAULTS, FLOAT_LISTS, OPTIONAL
from utils.limits import RANGES
from utils.values import value_of

SMALL: list[Any] = ["DATA.DATASET", "shapes", "DATA.IMG_SIZE", 32, "DATA.MASK_PATCH_SIZE", 16]
SMALL += ["DATA.BATCH_SIZE", 2, "DATA.NUM_SHAPES", 4, "TRAIN.WARMUP_EPOCHS", 0]
for name in ("SWIN", "SWINV2"):
    SMALL += [f"MODEL.{name}.DEPTHS", [1, 1], f"MODEL.{name}.NUM_HEADS", [1, 2]]
    SMALL += [f"MODEL.{name}.EMBED_DIM", 16]
SMALL += ["MODEL.VIT.DEPTH", 2, "MODEL.VIT.EMBED_DIM", 16, "MODEL.VIT.NUM_HEADS", 2]
KEYS = list(keys_below(DEFAULTS))

INTEGERS = [-1, 0, 1, 2, 3, 7, 64, 10**3, 10**5, 2**31, 2**63, 10**30, 10**400, -(10**30)]
FLOATS = [-1.0, 0.0, 0.5, 1.0, 1e-300, 1e6, 1e308, math.inf, -math.inf, math.nan]
NUMBERS = [*INTEGERS, *FLOATS]
LISTS = [[], *([number] for number in NUMBERS), *([number] * 2 for number in NUMBERS)]
LISTS += [[32, 10**5], [1, 2, 3, 4], [[]], [None], ["x"], [True], [1] * 1000]
TEXTS = ["", "{[]: 1}", "{{1}}", "9" * 500 + "+1j", "x" * 300, "\0", "\ud800", "a/../../b"]
TEXTS += ["/abs", "..", "yes", "1e999", "-1e999", "[" * 500, "\n", "rand-n100000000", "rand-n1_000"]
TEXTS += ["augmix-w100000-d100000", "rand-m99999999-mmax9999999", "rand-mstd1e400", "rand-n2-p99"]
VALUES: list[Any] = [*NUMBERS, *LISTS, *TEXTS, True, False, None, {}, {"a": 1}, {1: 2}]


@contextmanager
def refused_in_one_line() -> Iterator[None]:
    """Inside, a ValueError of one line may be raised, and nothing else."""
    try:
        yield
    except ValueError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 1000


def build_all(key: str, value: Any) -> None:
    """Everything that is made of a configuration before a run begins."""
    cfg = config_of({}, "", [*SMALL, key, value])
    for kind in (
        ("swin", "swinv2", "vit")
        if key.startswith(("DATA.IMG", "TRAIN.USE"))
        else (key.split(".")[1].lower() if key.startswith(("MODEL.SWIN", "MODEL.VIT")) else "swin",)
    ):
        cfg = get_config(None, [*SMALL, "MODEL.TYPE", kind, key, value])
        with torch.device("meta"):
            model: Any = build_pretrain_model(cfg)
            classifier: Any = build_classifier(cfg, min(cfg.MODEL.NUM_CLASSES, 10))
        dataset = build_pretrain_dataset(cfg, patch_size=model.encoder.patch_size)
        if dataset.mask is not None and max(torch.tensor(cfg.DATA.IMG_SIZE).flatten()) <= 1000:
            dataset[0, 0]
        for built in (model, classifier):
            images = cfg.DATA.BATCH_SIZE * max(cfg.TRAIN.ACCUMULATION_STEPS, 1)
            optimizer = build_optimizer(cfg, built, scale_lr(cfg.TRAIN.BASE_LR, images))
            scheduler = build_scheduler(
                cfg, optimizer, 2, warmup_lr=cfg.TRAIN.WARMUP_LR, min_lr=cfg.TRAIN.MIN_LR
            )
            scheduler.step()
    keys = cfg.DATA
    arguments = (keys.INTERPOLATION, cfg.AUG.CROP_SCALE, cfg.AUG.COLOR_JITTER)
    picture = train_transform(32, *arguments, cfg.AUG.AUTO_AUGMENT, keys.MEAN)
    from data.shapes import draw_shape

    picture(draw_shape(0, 32)[0])
    augment = build_batch_augmentation(cfg, 10, torch.device("cpu"))
    augment(torch.zeros(2, 3, 32, 32), torch.zeros(2, dtype=torch.long))
    build_criterion(cfg, soft_targets=False)


if __name__ == "__main__":
    import time, traceback, sys

    for key in KEYS:
        for value in VALUES:
            s = time.perf_counter()
            try:
                build_all(key, value)
                r = "ok"
            except ValueError as e:
                r = "refused"
                if "\n" in str(e) or len(str(e)) > 1000:
                    print("LINE", key, repr(value)[:60], str(e)[:200])
            except BaseException as e:
                tb = traceback.extract_tb(e.__traceback__)[-1]
                own = [f for f in traceback.extract_tb(e.__traceback__) if "/wt/cli" in f.filename][
                    -1
                ]
                print(
                    "BAD",
                    key,
                    repr(value)[:60],
                    type(e).__name__,
                    str(e)[:100].replace("\n", " "),
                    own.filename[-30:],
                    own.lineno,
                    flush=True,
                )
                if isinstance(e, KeyboardInterrupt):
                    raise
            t = time.perf_counter() - s
            if t > 2:
                print("SLOW", key, repr(value)[:60], round(t, 1), flush=True)
