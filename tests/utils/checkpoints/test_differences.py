"""What a resumed run says about settings and pictures that are not those of its checkpoint."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from lr_scheduler import build_scheduler
from tests.support.training_parts import CPU, IMAGES, UPDATES, parts_of, train_a_little
from utils.checkpoints import differences
from utils.checkpoints.contents import load_checkpoint, save_checkpoint
from utils.checkpoints.differences import EVAL_INPUT, changed_values
from utils.checkpoints.names import epoch_path
from utils.checkpoints.resume import resume
from utils.checkpoints.state import Best, Data, TrainState, training_content
from utils.config import get_config, keys_below, to_plain
from utils.config.defaults import DEFAULTS
from utils.files import RunFolder

FIGURES = [3.5, 1.0, 7.0, 0.0, 0.0, 2.0, 5.0, 1.0]


def state_with(cfg: Any, finetunes: bool = False) -> TrainState:
    """A state whose schedule is that of the configuration."""
    parts = parts_of()
    parts.optimizer.param_groups[0]["lr"] = 0.1
    parts.scheduler = build_scheduler(cfg, parts.optimizer, UPDATES)
    parts.best = Best() if finetunes else None
    return parts


def save(folder: Path, cfg: Any, data: Data | None = None, inside: int = 0, **more: Any) -> Path:
    """Write a checkpoint in epoch 2, after `inside` of its updates."""
    parts = state_with(cfg, **more)
    parts.position.epoch, parts.position.update = 2, 2 * UPDATES
    for _ in range(inside):
        train_a_little(parts)
    parts.data, parts.figures = data, [FIGURES]
    save_checkpoint(path := epoch_path(folder, 1), training_content(parts, cfg))
    return path


def resumed(
    folder: Path, cfg: Any, data: Data | None = None, **more: Any
) -> tuple[list[str], TrainState]:
    """The notes of a resume without the first, and the state after it."""
    parts = state_with(cfg, **more)
    start = resume(RunFolder(folder), parts, cfg, UPDATES, CPU, data=data)
    assert start.notes[0].startswith("resumed from")
    return start.notes[1:], parts


def test_keys_that_change_nothing_that_is_learned_exist() -> None:
    keys = set(keys_below(DEFAULTS))
    assert keys > differences._WITHOUT_EFFECT
    for beginning in (*differences._KINDS, *differences._OF_PRETRAINING):
        assert any(key.startswith(beginning) for key in keys), beginning
    assert all(any(key.startswith(part) for key in keys) for part in differences._OF_FINETUNING)


@pytest.mark.parametrize(
    ("opts", "expected"),
    [
        (["DATA.MASK_RATIO", 0.5], "another mask than the checkpoint's: DATA.MASK_RATIO 0.6 -> 0."),
        (["MODEL.SIMMIM.TARGET", "x"], "another target or loss than .*: .*TARGET 'pixels' -> 'x'$"),
        (["MODEL.SIMMIM.NORM_TARGET.ENABLE", True], "another target or loss .*ENABLE False -> Tr"),
        (["DATA.MEAN", [0.5]], r"another preparation of pictures .*\[0.485, .*\] -> \[0\.5\]$"),
        (["DATA.IMG_SIZE", [32, 64]], r"another preparation .*IMG_SIZE 224 -> \[32, 64\]$"),
        (["DATA.DECODER", "pil"], "another preparation of pictures .*DECODER 'fast' -> 'pil'$"),
        (["TRAIN.CLIP_GRAD", 0], "another optimizer than .*: TRAIN.CLIP_GRAD 5.0 -> 0.0$"),
        (["TRAIN.OPTIMIZER.BETAS", [0.9, 0.9]], "another optimizer than the checkpoint's: .*BETAS"),
        (["MODEL.DROP_PATH_RATE", 0.3], "another model than .*: .*DROP_PATH_RATE 0.1 -> 0.3$"),
    ],
    ids=str,
)
def test_a_setting_that_changes_what_is_learned_is_named(
    tmp_path: Path, opts: list[Any], expected: str
) -> None:
    save(tmp_path, get_config())
    notes, _ = resumed(tmp_path, get_config(None, opts))
    assert len(notes) == 1
    assert re.search(expected, notes[0])


def test_each_kind_of_settings_is_one_line(tmp_path: Path) -> None:
    save(tmp_path, get_config())
    opts = ["DATA.MASK_RATIO", 0.5, "DATA.MASK_PATCH_SIZE", 16, "TRAIN.WEIGHT_DECAY", 0.1]
    notes, _ = resumed(tmp_path, get_config(None, opts))
    assert notes == [
        "another mask than the checkpoint's: DATA.MASK_PATCH_SIZE 32 -> 16, "
        "DATA.MASK_RATIO 0.6 -> 0.5",
        "another optimizer than the checkpoint's: TRAIN.WEIGHT_DECAY 0.05 -> 0.1",
    ]


def test_the_section_of_a_mask_counts_where_the_mask_is_used(tmp_path: Path) -> None:
    block = ["DATA.MASK", "block"]
    save(tmp_path, get_config(None, block))
    notes, _ = resumed(tmp_path, get_config(None, [*block, "DATA.BLOCK.MIN_CELLS", 4]))
    assert notes == ["another mask than the checkpoint's: DATA.BLOCK.MIN_CELLS 2 -> 4"]
    save(tmp_path, get_config())
    notes, _ = resumed(tmp_path, get_config(None, ["DATA.BLOCK.MIN_CELLS", 4]))
    assert notes == []


def test_another_schedule_says_what_the_learning_rate_was_and_is(tmp_path: Path) -> None:
    schedule = ["TRAIN.WARMUP_EPOCHS", 0, "TRAIN.BASE_LR", 0.1, "TRAIN.EPOCHS"]
    old, new = (get_config(None, [*schedule, epochs]) for epochs in (4, 8))
    save(tmp_path, old)
    notes, parts = resumed(tmp_path, new)
    rates = [state_with(cfg).scheduler.rates(update)[0] for cfg, update in ((old, 19), (new, 20))]
    assert notes == [
        "another schedule than the checkpoint's: TRAIN.EPOCHS 4 -> 8; the learning rate "
        f"was {rates[0]:.3g} in the last update and is {rates[1]:.3g} in the next one"
    ]
    assert parts.optimizer.param_groups[0]["lr"] == rates[1]


def test_a_file_without_its_learning_rate_names_the_new_one_alone(tmp_path: Path) -> None:
    path = save(tmp_path, get_config())
    content = load_checkpoint(path)
    del content["lr_scheduler"]["lr"], content["config"]["TRAIN"]["LR_SCHEDULER"]
    save_checkpoint(path, content)
    notes, _ = resumed(tmp_path, get_config(None, ["TRAIN.LR_SCHEDULER.NAME", "linear"]))
    assert len(notes) == 1
    assert "NAME 'cosine' -> 'linear'; the learning rate is 0.0095 in" in notes[0]


@pytest.mark.parametrize(
    ("opts", "finetunes"),
    [
        ([], False),
        (["DATA.MEAN", [0.485, 0.456, 0.406], "DATA.IMG_SIZE", [224, 224]], False),
        (["DATA.DATA_PATH", "/x", "DATA.NUM_WORKERS", 1, "PRINT_FREQ", 3, "TAG", "x"], False),
        (["DATA.BATCH_SIZE", 64, "TRAIN.PRECISION", "bfloat16", "TRAIN.COMPILE", "blocks"], False),
        (["AUG.MIXUP", 0.0, "MODEL.LABEL_SMOOTHING", 0.0, "TEST.CROP", False], False),
        (["DATA.MASK_RATIO", 0.5, "MODEL.SIMMIM.DECODER", "x", "DATA.DECODER", "pil"], True),
        (["MODEL.VIT.DEPTH", 3, "MODEL.SWINV2.DEPTHS", [1, 2]], False),  # of other encoders
    ],
    ids=str,
)
def test_what_changes_nothing_that_is_learned_is_not_named(
    tmp_path: Path, opts: list[Any], finetunes: bool
) -> None:
    save(tmp_path, get_config(), finetunes=finetunes)
    assert resumed(tmp_path, get_config(None, opts), finetunes=finetunes)[0] == []


def test_keys_that_only_one_side_knows_count_as_their_defaults() -> None:
    cfg = get_config(None, ["TRAIN.CLIP_GRAD", 1, "MODEL.VIT.INIT_VALUES", None])
    stored: Any = to_plain(get_config())
    stored["NEWER"], stored["DATA"]["NEWER"] = 3, {"KEY": 4}
    del stored["TRAIN"]
    keys = list(keys_below(cfg))
    changed = changed_values(stored, cfg, keys)
    assert changed == "MODEL.VIT.INIT_VALUES 0.1 -> None, TRAIN.CLIP_GRAD 5.0 -> 1.0"
    assert changed_values(to_plain(cfg), cfg, [*keys, "DATA.KEY_OF_ANOTHER_VERSION"]) == ""


@pytest.mark.parametrize("stored", [None, 3, {}, {"lr": 1}, {"DATA": 3}, {"TRAIN": {"EPOCHS": 3}}])
def test_a_configuration_of_another_program_says_nothing(stored: Any) -> None:
    assert changed_values(stored, get_config(), EVAL_INPUT) == ""


def test_one_number_for_all_channels_or_sides_equals_one_for_each() -> None:
    keys = ["DATA.MEAN", [0.5], "DATA.STD", [0.2, 0.2, 0.2], "DATA.IMG_SIZE", [96, 96]]
    stored = {"DATA": {"MEAN": (0.5, 0.5, 0.5), "STD": [0.2], "IMG_SIZE": 96}}
    assert changed_values(stored, get_config(None, keys), EVAL_INPUT) == ""
    tensor = torch.ones(2, 3)
    stored = {"DATA": {"MEAN": "x" * 10**6, "STD": [10**400, tensor], "IMG_SIZE": {3: tensor}}}
    changed = changed_values(stored, get_config(), EVAL_INPUT)
    assert changed.startswith("DATA.MEAN 'xxx")
    assert changed.endswith(" -> 224")
    assert "\n" not in changed
    assert len(changed) < 400


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (Data(17, "aa"), "the data are 17 pictures, the checkpoint's 16"),
        (
            Data(16, "bb"),
            "the data are 16 pictures as before, but not the same in the same order "
            "(digest 'bb', the checkpoint's 'aa')",
        ),
    ],
    ids=str,
)
def test_an_epoch_that_was_begun_with_other_pictures_starts_anew(
    tmp_path: Path, data: Data, message: str
) -> None:
    cfg = get_config()
    save(tmp_path, cfg, Data(16, "aa"), inside=7)
    notes, parts = resumed(tmp_path, cfg, data)
    assert notes == [f"{message}; epoch 2, which was begun otherwise, starts anew"]
    position = parts.position
    assert (position.epoch, position.images, position.update) == (2, 0, 2 * UPDATES + 7)
    assert position.place_in_schedule == 2 * UPDATES
    assert parts.optimizer.param_groups[0]["lr"] == parts.scheduler.rates(2 * UPDATES)[0]
    assert parts.figures == [[0.0] * 5 + FIGURES[5:]]
    assert training_content(parts, cfg)["data"] == {
        "images": data.images,
        "digest": data.digest,
        "target": "",
    }


def test_another_content_of_the_targets_file_is_told(tmp_path: Path) -> None:
    cfg = get_config()
    save(tmp_path, cfg, Data(16, "aa", "11"))
    assert resumed(tmp_path, cfg, Data(16, "aa", "11"))[0] == []
    (note,) = resumed(tmp_path, cfg, Data(16, "aa", "22"))[0]
    assert note.startswith("the codebook or tokenizer has another content than the checkpoint's")


def test_an_epoch_that_was_begun_with_another_seed_starts_anew(tmp_path: Path) -> None:
    save(tmp_path, get_config(), Data(16, "aa"), inside=7)
    notes, parts = resumed(tmp_path, get_config(None, ["SEED", 5]), Data(16, "aa"))
    assert len(notes) == 1
    assert notes[0].endswith("another run; epoch 2, which was begun otherwise, starts anew")
    assert (parts.position.images, parts.position.place_in_schedule) == (0, 2 * UPDATES)


def test_a_longer_epoch_of_other_pictures_goes_on_at_its_part_of_the_schedule(
    tmp_path: Path,
) -> None:
    save(tmp_path, get_config(), Data(40, "aa"), inside=7)
    parts = parts_of()
    resume(RunFolder(tmp_path), parts, get_config(), 2 * UPDATES, CPU, data=Data(80, "bb"))
    assert parts.position.images == 0
    assert parts.position.place_in_schedule == 2 * 2 * UPDATES


def test_other_pictures_at_the_end_of_an_epoch_are_named_and_change_nothing(tmp_path: Path) -> None:
    save(tmp_path, get_config(), Data(16, "aa"))
    notes, parts = resumed(tmp_path, get_config(), Data(17, "bb"))
    assert notes == ["the data are 17 pictures, the checkpoint's 16"]
    assert (parts.position.images, parts.position.offset, parts.figures) == (0, 0, [FIGURES])


@pytest.mark.parametrize("data", [Data(16, "aa"), None], ids=str)
@pytest.mark.parametrize("stored", [Data(16, "aa"), None], ids=str)
def test_the_same_or_unknown_pictures_go_on_inside_the_epoch(
    tmp_path: Path, stored: Data | None, data: Data | None
) -> None:
    save(tmp_path, get_config(), stored, inside=7)
    notes, parts = resumed(tmp_path, get_config(), data)
    assert notes == []
    assert (parts.position.images, parts.position.offset) == (7 * IMAGES, 0)
    assert parts.figures == [FIGURES]
    assert parts.data == data
    assert torch.load(epoch_path(tmp_path, 1)).get("data") == (stored and vars(stored))
