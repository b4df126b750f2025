"""Configuration: every key, inheritance, precedence, and one clear line for every mistake."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from utils.config import get_config, stage_of, to_plain
from utils.config.arguments import make_parser, read_config
from utils.config.defaults import DEFAULTS
from utils.config.flags import PROGRAMS

RECIPES = sorted(path for path in Path("configs").rglob("*.yaml") if "_base_" not in path.parts)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def from_command_line(*arguments: str) -> Any:
    parser = make_parser("main_simmim.py", "", PROGRAMS["main_simmim.py"][1])
    return read_config(parser.parse_args(list(arguments)))


def test_defaults_are_the_published_ones() -> None:
    cfg = get_config()
    assert (cfg.DATA.IMG_SIZE, cfg.DATA.MASK_PATCH_SIZE, cfg.DATA.MASK_RATIO) == (224, 32, 0.6)
    assert (cfg.TRAIN.BASE_LR, cfg.TRAIN.WARMUP_LR, cfg.TRAIN.MIN_LR) == (5e-4, 5e-7, 5e-6)
    assert cfg.MODEL.SWIN.QK_SCALE is None
    assert cfg.TRAIN.OPTIMIZER.BETAS == (0.9, 0.999)
    assert cfg.MODEL.SIMMIM.NORM_TARGET.PATCH_SIZE == 47
    assert cfg.MODEL.SWINV2.PRETRAINED_WINDOW_SIZES == [0, 0, 0, 0]


def test_the_configuration_is_frozen_and_defaults_stay_as_they_are() -> None:
    cfg = get_config(None, ["MODEL.SWIN.DEPTHS", [1, 1]])
    with pytest.raises(AttributeError):
        cfg.SEED = 3
    assert DEFAULTS["MODEL"]["SWIN"]["DEPTHS"] == [2, 2, 6, 2]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_load_and_say_what_they_are(path: Path) -> None:
    cfg = get_config(path)
    assert path.stem == cfg.TAG
    header = path.read_text().split("\n\n")[0]
    for word in ("# Command:", "# Cost:", "# Result:"):
        assert word in header
    assert ("tools.study" if "study" in path.parts else str(path)) in header


def test_the_published_recipe_of_swin_b_has_its_numbers() -> None:
    cfg = get_config(
        "configs/swin_base__800ep/simmim_pretrain__swin_base__img192_window6__800ep.yaml"
    )
    assert cfg.MODEL.SWIN.NUM_HEADS == [4, 8, 16, 32]
    assert (cfg.TRAIN.EPOCHS, cfg.TRAIN.WARMUP_EPOCHS, cfg.TRAIN.BASE_LR) == (800, 10, 1e-4)
    assert cfg.TRAIN.LR_SCHEDULER.MULTISTEPS == [700]
    assert (cfg.SAVE_FREQ, cfg.PRINT_FREQ, cfg.DATA.BATCH_SIZE) == (5, 100, 128)


def test_precedence_is_defaults_base_file_flags_options(tmp_path: Path) -> None:
    write(tmp_path / "base/low.yaml", "DATA: {BATCH_SIZE: 1, NUM_WORKERS: 1, IMG_SIZE: 1}\nSEED: 1")
    write(tmp_path / "base/mid.yaml", "BASE: low.yaml\nDATA: {BATCH_SIZE: 2, NUM_WORKERS: 2}")
    top = write(tmp_path / "top.yaml", "BASE: ['base/mid.yaml']\nDATA: {BATCH_SIZE: 3}\nTAG: t")
    cfg = from_command_line("--cfg", str(top))
    assert (cfg.DATA.BATCH_SIZE, cfg.DATA.NUM_WORKERS, cfg.DATA.IMG_SIZE, cfg.SEED) == (3, 2, 1, 1)
    assert cfg.TAG == "t"  # a flag that is not given overrides nothing
    cfg = from_command_line("--cfg", str(top), "--batch-size", "4", "--tag", "u")
    assert (cfg.DATA.BATCH_SIZE, cfg.TAG) == (4, "u")
    opts = ("--opts", "DATA.BATCH_SIZE", "5", "TRAIN.BASE_LR", "1e-3")
    cfg = from_command_line("--cfg", str(top), "--batch-size", "4", *opts)
    assert (cfg.DATA.BATCH_SIZE, cfg.TRAIN.BASE_LR) == (5, 1e-3)


def test_flags_reach_their_keys() -> None:
    cfg = from_command_line(
        *("--cfg", "configs/_base_/swin_base.yaml", "--data-path", "d", "--resume", "r"),
        *("--accumulation-steps", "2", "--use-checkpoint", "--amp-opt-level", "O0"),
        *("--output", "o", "--device", "cpu", "--local_rank", "3"),
    )
    assert (cfg.DATA.DATA_PATH, cfg.MODEL.RESUME, cfg.OUTPUT) == ("d", "r", "o")
    assert cfg.TRAIN.ACCUMULATION_STEPS == 2
    assert cfg.TRAIN.USE_CHECKPOINT
    assert cfg.TRAIN.PRECISION == "float32"


@pytest.mark.parametrize("spelling", ["--local_rank", "--local-rank"])
def test_both_spellings_of_the_launchers_flag_are_accepted(spelling: str) -> None:
    assert from_command_line("--cfg", str(RECIPES[0]), f"{spelling}=1").SEED == 0


def test_values_take_the_type_of_the_default() -> None:
    cfg = get_config(None, ["TRAIN.CLIP_GRAD", "5", "TAG", "800", "MODEL.VIT.INIT_VALUES", "None"])
    assert cfg.TRAIN.CLIP_GRAD == 5.0
    assert isinstance(cfg.TRAIN.CLIP_GRAD, float)
    assert cfg.TAG == "800"
    assert cfg.MODEL.VIT.INIT_VALUES is None


def test_a_plain_copy_leads_to_the_same_configuration(tmp_path: Path) -> None:
    cfg = get_config(RECIPES[0])
    path = write(tmp_path / "copy.yaml", yaml.safe_dump(to_plain(cfg)))
    assert get_config(path) == cfg


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "DATA: {IMGSIZE: 3}",
            r"unknown key DATA\.IMGSIZE; did you mean DATA\.IMG_SIZE\?.*choices",
        ),
        ("DATA: 3", "DATA is 3, expected a section"),
        ("SEED: {A: 1}", "SEED is .*expected int"),
        ("SEED: abc", "SEED is 'abc', expected int"),
        ("SEED: 1.5", "SEED is 1.5, expected int"),
        ("SEED: true", "SEED is True, expected int"),
        ("MODEL: {SWIN: {DEPTHS: [2, x]}}", "DEPTHS is .*expected list"),
        ("TRAIN: {BASE_LR: fast}", "BASE_LR is 'fast', expected float"),
        ("TRAIN: {EPOCHS: 0}", r"TRAIN\.EPOCHS is 0, expected at least 1"),
        ("TRAIN: {WARMUP_EPOCHS: 301}", "more than TRAIN.EPOCHS = 300"),
        ("DATA: {MASK_RATIO: 1.2}", r"MASK_RATIO is 1\.2, expected from 0 to 1"),
        ("TRAIN: {PRECISION: fp16}", "choices: auto, bfloat16, float16, float32"),
        ("BASE: nowhere.yaml", "nowhere.yaml does not exist"),
        ("BASE: cfg.yaml", "BASE includes itself"),
        ("- a\n- b", "holds list, expected KEY: value"),
        ("a: [", "is not valid YAML"),
        ("!!python/object/apply:os.system ['touch pwned']", "is not valid YAML"),
    ],
)
def test_a_mistake_is_named_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        get_config(write(tmp_path / "cfg.yaml", text))
    assert "\n" not in str(error.value)


def test_an_option_without_value_is_an_error() -> None:
    with pytest.raises(ValueError, match="'SEED' has no value"):
        get_config(None, ["SEED"])


@pytest.mark.parametrize("text", ["true", "True", "yes", "ON", "false", "No", "off"])
def test_options_take_every_word_that_yaml_takes_for_a_boolean(text: str) -> None:
    expected = text.lower() in ("true", "yes", "on")
    assert get_config(None, ["TRAIN.USE_CHECKPOINT", text]).TRAIN.USE_CHECKPOINT is expected


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["TRAIN.USE_CHECKPOINT", "1"], "USE_CHECKPOINT is 1, expected true or false"),
        (["TAG", "../other"], "TAG is '../other', which leads out of the folder OUTPUT"),
        (["MODEL.NAME", "/tmp/x"], "MODEL.NAME is '/tmp/x', which leads out"),
        (["TRAIN.OPTIMIZER.BETAS", "[0.9]"], "expected 2 numbers"),
        (["DATA.MEAN", "[.nan]"], "expected list of numbers"),
        (["AUG.AUTO_AUGMENT", "rand-m9-n100000000"], "n is 100000000; expected at most 16"),
        (["AUG.AUTO_AUGMENT", "augmix-w100000-d100000"], "w is 100000; expected at most 16"),
        (["SEED", "9" * 400], "SEED is an enormous integer, expected at most"),
    ],
)
def test_a_value_that_cannot_work_is_refused(opts: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        get_config(None, opts)


@pytest.mark.parametrize("text", ["", "# nothing but a comment\n", "{}"])
def test_a_recipe_that_sets_nothing_is_an_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match="is empty: a recipe sets at least one key"):
        get_config(write(tmp_path / "x.yaml", text))


def test_the_name_of_a_model_tells_the_stage() -> None:
    for name, stage in (
        ("simmim_finetune", "fine-tuning"),
        ("simmim_pretrain", "pre-training"),
        ("pretrained_vit_finetune", "fine-tuning"),
        ("pretrained_vit", None),
        ("swin_tiny_patch4_window7_224", None),
    ):
        assert stage_of(get_config(None, ["MODEL.NAME", name])) == stage


def test_a_recipe_has_at_most_32_kib(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    text = "TAG: long\n# "
    path.write_text(text + "x" * (2**15 - len(text)))
    assert get_config(path).TAG == "long"
    path.write_text(text + "x" * (2**15 - len(text) + 1))
    with pytest.raises(ValueError, match="with its BASE files it is larger than 32768 bytes"):
        get_config(path)
