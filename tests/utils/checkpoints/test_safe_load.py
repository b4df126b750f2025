"""Files from anybody: published ones are read, and nothing in a file can run."""

import argparse
import collections
import datetime
import decimal
import fractions
import functools
import os
import pickle
import sys
import types
import zipfile
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torchvision.transforms import InterpolationMode
from yacs.config import CfgNode

from tests.support.golden_cases import GOLDEN
from tests.support.small_runs import equal
from utils.checkpoints.reading import model_weights, read_checkpoint
from utils.files import DamagedError


class Evil:
    """Pickles as a call of os.system."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


def archive(path: Path, content: bytes, **parts: bytes) -> Path:
    """A torch.save archive with this pickle in it."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", content)
        file.writestr("archive/version", "3\n")
        file.writestr("archive/byteorder", "little")
        for name, part in parts.items():
            file.writestr(f"archive/data/{name}", part)
    return path


@pytest.mark.parametrize("name", ["swin_pretrain", "swin_finetune", "vit_pretrain"])
def test_published_files_are_read_with_their_configuration_as_a_dict(name: str) -> None:
    path = GOLDEN / f"checkpoints/{name}.pth"
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    state = read_checkpoint(path)
    assert isinstance(state["config"], dict)
    assert not isinstance(state["config"], CfgNode)
    assert state["config"]["MODEL"]["TYPE"] == name.split("_")[0]
    if "pretrain" in name:
        assert state["amp"]["loss_scaler0"]["loss_scale"] == 65536.0
        assert state["optimizer"]["state"]
    expected = torch.load(path, weights_only=False, map_location="cpu")["model"]  # own file
    for key, value in state["model"].items():
        assert torch.equal(value, expected[key])


def test_what_files_of_other_programs_hold_beside_weights_comes_out_as_plain_values(
    tmp_path: Path,
) -> None:
    held: dict[str, Any] = {
        "args": argparse.Namespace(lr=1, more=argparse.Namespace(path=PurePosixPath("/a/b"))),
        "score": np.float64(3.5),
        "big_endian": np.dtype(">f4").type(2),
        "count": np.int32(7),
        "array": np.arange(5),
        "device": torch.device("cpu"),
        "lists": collections.defaultdict(list, {"a": [1]}),
        "set": {1, 2},
        "counter": collections.Counter("aab"),
        "config": CfgNode({"A": {"B": (1, 2)}}),
        "version": torch.__version__,
        "random": np.random.get_state(),
        "size": torch.Size([1, 2]),
        "recent": collections.deque([1, 2], maxlen=3),
        "kinds": [collections.defaultdict(kind, a=1) for kind in (str, int, dict)],
        "names": frozenset(["a"]),
        "time": datetime.datetime.now(datetime.timezone.utc),
        "rate": decimal.Decimal("1.5"),
        "half": fractions.Fraction(1, 2),
        "interpolation": InterpolationMode.BICUBIC,
        "generator": np.random.RandomState(0),
        "windows": PureWindowsPath("a"),
    }
    expected = {
        "args": {"lr": 1, "more": {"path": "/a/b"}},
        "score": 3.5,
        "big_endian": 2.0,
        "count": 7,
        "array": None,
        "device": torch.device("cpu"),
        "lists": {"a": [1]},
        "set": {1, 2},
        "counter": {"a": 2, "b": 1},
        "config": {"A": {"B": (1, 2)}},
        "version": str(torch.__version__),
        "random": ("MT19937", None, *held["random"][2:]),
        "size": (1, 2),
        "recent": [1, 2],
        "kinds": [{"a": 1}] * 3,
        "names": ["a"],
        "time": None,
        "rate": "1.5",
        "half": None,
        "interpolation": "bicubic",
        "generator": None,
        "windows": "a",
    }
    for old_format in (False, True):
        path = tmp_path / "x.pth"
        torch.save(held, path, _use_new_zipfile_serialization=not old_format)
        assert read_checkpoint(path) == expected


def made_by(
    monkeypatch: pytest.MonkeyPatch, module: str, name: str, base: type = object, **values: Any
) -> Any:
    """An object of a class `name` of a package that is not installed here."""
    parts = module.split(".")
    for number in range(1, len(parts) + 1):
        part = ".".join(parts[:number])
        monkeypatch.setitem(sys.modules, part, sys.modules.get(part, types.ModuleType(part)))
    kind = type(name, (base,), {"__module__": module, "__qualname__": name})
    setattr(sys.modules[module], name, kind)
    made: Any = kind()
    (made if base is dict else made.__dict__).update(values)
    return made


def test_settings_and_histories_of_training_programs_do_not_keep_the_weights_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = functools.partial(made_by, monkeypatch)
    metadata = make("omegaconf.base", "ContainerMetadata", ref_type=Any, object_type=dict)
    settings = make("omegaconf.dictconfig", "DictConfig", _metadata=metadata, _parent=None)
    node = make("omegaconf.nodes", "FloatNode", _parent=settings, _val=0.1)
    settings._content = {"lr": node, "list": make("omegaconf.listconfig", "ListConfig")}
    log: Any = {"_log_history": np.arange(3.0), "_max_length": 10}
    held: dict[str, Any] = {
        "hyper_parameters": settings,
        "more": make("lightning.fabric.utilities.data", "AttributeDict", dict, lr=1),
        "history": make("mmengine.logging.history_buffer", "HistoryBuffer", **log),
        "cfg": make("mmengine.config.config", "ConfigDict", dict, lr=1),
        "args": make("easydict", "EasyDict", dict, lr=1),
        "state_dict": {"a": torch.ones(2)},
    }
    torch.save(held, tmp_path / "x.pth")
    found = read_checkpoint(tmp_path / "x.pth")
    assert torch.equal(found.pop("state_dict")["a"], torch.ones(2))
    lr = {"lr": 1}
    assert found == {
        "hyper_parameters": None,
        "more": lr,
        "history": None,
        "cfg": lr,
        "args": lr,
    }


@pytest.mark.slow
def test_every_flipped_bit_is_noticed_or_changes_nothing(tmp_path: Path) -> None:
    """In a file without any checksum but those of the archive's records."""
    state = {"model": {"a": torch.randn(9, 3)}, "epoch": 3, "config": {"A": [1, 2], "B": "text"}}
    torch.save(state, path := tmp_path / "x.pth")
    content = bytearray(path.read_bytes())
    outcomes: collections.Counter[str] = collections.Counter()
    for place in range(len(content)):
        bit = 1 << place % 8
        content[place] ^= bit
        path.write_bytes(content)
        content[place] ^= bit
        try:
            assert equal(read_checkpoint(path), state), f"bit {place % 8} of byte {place}"
        except DamagedError:
            outcomes["noticed"] += 1
        else:
            outcomes["nothing"] += 1
    assert outcomes["noticed"] > 900
    assert outcomes["nothing"] > 100  # the padding between records


def test_a_file_that_torch_has_written_without_checksums_is_read(tmp_path: Path) -> None:
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.ones(5)}, path := tmp_path / "x.pth")
    finally:
        torch.serialization.set_crc32_options(before)
    with zipfile.ZipFile(path) as file:
        assert {entry.CRC for entry in file.infolist()} == {0}
    assert torch.equal(read_checkpoint(path)["a"], torch.ones(5))


@pytest.mark.parametrize(
    ("begin", "kind"),
    [
        (b"<html>404", "a web page"),
        (b"\n<!DOCTYPE html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "a Git LFS pointer"),
        (b"\xff\xd8\xff\xe0 JFIF", "a picture"),
        (b"\x89PNG\r\n", "a picture"),
    ],
)
def test_a_file_that_people_take_for_a_checkpoint_is_named_and_not_called_damaged(
    tmp_path: Path, begin: bytes, kind: str
) -> None:
    path = tmp_path / "x.pth"
    path.write_bytes(begin)
    with pytest.raises(ValueError, match=f"x.pth cannot be read: it is {kind}") as error:
        read_checkpoint(path)
    assert not isinstance(error.value, DamagedError)


def nested(levels: int) -> Any:
    """Lists that share: few bytes, and twice as many values with each level."""
    value: Any = [1]
    for _ in range(levels):
        value = [value, value]
    return value


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (nested(40), "names the same data again and again"),
        ({str(index): torch.ones(1000) for index in range(2)} | {"x": nested(60)}, "again"),
        (dict.fromkeys(map(str, range(1000)), torch.ones(5000)), "again and again"),
        ({(1, 2): 3}, "it has a tuple as a name"),
        ({"a": torch.ones(3).to_sparse()}, "sparse"),
        ({"a": torch.ones(1).expand(1000)}, "repeats its numbers"),
        ({"a": torch.empty(3, device="meta")}, "without numbers"),
    ],
    ids=["lists", "lists beside tensors", "tensors", "keys", "sparse", "stride 0", "meta"],
)
def test_small_contents_that_unfold_to_large_ones_are_refused(
    tmp_path: Path, content: Any, message: str
) -> None:
    torch.save(content, path := tmp_path / "x.pth")
    with pytest.raises(ValueError, match=message):
        read_checkpoint(path)


def test_weights_under_two_names_are_read(tmp_path: Path) -> None:
    weights = {"a": torch.ones(5000), "b": torch.zeros(3, 5000)}
    torch.save({"model": weights, "model_ema": dict(weights)}, path := tmp_path / "x.pth")
    assert torch.equal(read_checkpoint(path)["model_ema"]["a"], weights["a"])


@pytest.mark.parametrize("old_format", [False, True])
def test_every_kind_of_tensor_comes_back(tmp_path: Path, old_format: bool) -> None:
    base = torch.arange(24.0).view(4, 6)
    kinds = (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool)
    state: dict[str, Any] = {str(kind): base.to(kind) for kind in kinds}
    state |= {"view": base[1:, ::2], "transposed": base.T, "empty": torch.empty(0, 3)}
    state |= {"scalar": torch.tensor(2.5), "parameter": torch.nn.Parameter(base)}
    torch.save(state, tmp_path / "x.pth", _use_new_zipfile_serialization=not old_format)
    found = read_checkpoint(tmp_path / "x.pth")
    assert found.keys() == state.keys()
    for name, value in state.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value)


def test_a_configuration_in_the_old_format_is_a_dict_too(tmp_path: Path) -> None:
    state = {"model": {"a": torch.ones(2)}, "config": CfgNode({"MODEL": {"TYPE": "swin"}})}
    torch.save(state, path := tmp_path / "x.pth", _use_new_zipfile_serialization=False)
    found = read_checkpoint(path)
    assert found["config"]["MODEL"]["TYPE"] == "swin"
    assert torch.equal(found["model"]["a"], torch.ones(2))
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(DamagedError, match="unexpected EOF, expected"):
        read_checkpoint(path)


def test_an_old_file_cannot_claim_more_than_it_holds(tmp_path: Path) -> None:
    torch.save(torch.ones(200), path := tmp_path / "x.pth", _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    assert content.count(b"K\xc8N") == 1  # the storage's length 200, then no view
    path.write_bytes(content.replace(b"K\xc8N", b"J\x00\x00\x00\x7fN"))
    with pytest.raises(ValueError, match="storage has wrong byte size"):
        read_checkpoint(path)


def test_safetensors_are_read(tmp_path: Path) -> None:
    save_file({"a": torch.ones(3)}, tmp_path / "x.safetensors")
    assert torch.equal(read_checkpoint(tmp_path / "x.safetensors")["a"], torch.ones(3))


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("old_format", [False, True])
def test_code_in_a_pickle_does_not_run(tmp_path: Path, protocol: int, old_format: bool) -> None:
    witness = tmp_path / "pwned"
    content = pickle.dumps({"model": {}, "x": Evil(f"touch {witness}")}, protocol=protocol)
    path = tmp_path / "evil.pth"
    if old_format:
        path.write_bytes(content)
    else:
        archive(path, content)
    with pytest.raises(ValueError, match=r"evil\.pth cannot be read: it (holds|was)") as error:
        read_checkpoint(path)
    assert "\n" not in str(error.value)
    assert not witness.exists()


@pytest.mark.parametrize(
    "name", ["builtins eval", "torch load", "torch.hub load", "os system", "builtins getattr"]
)
def test_nothing_outside_the_list_is_even_looked_up(tmp_path: Path, name: str) -> None:
    module, function = name.split()
    path = archive(tmp_path / "x.pth", f"\x80\x02c{module}\n{function}\n.".encode("latin1"))
    with pytest.raises(ValueError, match=rf"it holds ({module}\.)?{function}, which is not"):
        read_checkpoint(path)


def test_a_tensor_cannot_reach_beyond_its_storage(tmp_path: Path) -> None:
    torch.save({"x": torch.ones(4)}, tmp_path / "x.pth")
    with zipfile.ZipFile(tmp_path / "x.pth") as file:
        content = file.read("x/data.pkl")
    # The size (4,) becomes (200,): BININT1 4, TUPLE1 -> BININT1 200, TUPLE1.
    assert content.count(b"K\x04\x85") == 1
    enlarged = content.replace(b"K\x04\x85", b"K\xc8\x85")
    path = archive(tmp_path / "y.pth", enlarged, **{"0": bytes(16)})
    with pytest.raises(ValueError, match=r"y\.pth cannot be read: .*storage"):
        read_checkpoint(path)


def test_an_archive_cannot_claim_more_than_the_file_holds(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", pickle.dumps({}, protocol=2))
        file.writestr("archive/data/0", bytes(10**7))
    with pytest.raises(DamagedError, match="claim to be larger than the file"):
        read_checkpoint(tmp_path / "bomb.pth")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no checkpoint",
        b"PK\x03\x04 torn",
        (GOLDEN / "checkpoints/vit_finetune.pth").read_bytes()[:100_000],
        (GOLDEN / "checkpoints/vit_finetune.pth").read_bytes()[1000:],
        pickle.dumps([1, 2], protocol=4),
    ],
    ids=["empty", "text", "torn zip", "truncated", "beheaded", "bare pickle"],
)
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_file_that_is_no_checkpoint_is_refused_in_one_line(
    tmp_path: Path, content: bytes, suffix: str
) -> None:
    path = tmp_path / f"x.{suffix}"
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match=rf"checkpoint \S+x\.{suffix} (cannot|is damaged)"
    ) as error:
        read_checkpoint(path)
    assert "\n" not in str(error.value)


def test_another_zip_archive_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as file:
        file.writestr("readme.txt", "hello")
    with pytest.raises(ValueError, match=r"not one that torch\.save wrote"):
        read_checkpoint(tmp_path / "x.pth")


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"does not exist$"):
        read_checkpoint(tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"it is a folder: no checkpoint lies in it$"):
        read_checkpoint(tmp_path)
    for name in ("ckpt_epoch_9.pth", "ckpt_epoch_10.pth"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r"in it, for example \S+/ckpt_epoch_10\.pth$"):
        read_checkpoint(tmp_path)


def test_weights_are_found_wherever_they_lie() -> None:
    one, two = {"a": torch.ones(1)}, {"a": torch.zeros(1)}
    buffer = {"attn.relative_position_index": torch.ones(1), "layers.0.attn_mask": torch.ones(1)}
    assert model_weights(one | buffer, "x") == one
    assert model_weights({"model": one | buffer, "epoch": 3}, "x") == one
    assert model_weights({"model": one, "model_ema": two}, "x") == two
    assert model_weights({"model": one, "model_ema": two}, "x", ("model",)) == one


@pytest.mark.parametrize(
    "state",
    [[], {}, {"model": {}}, {"model": 3}, {"model": {"a": 1}}, {"x": 1}, {3: torch.ones(1)}],
)
def test_files_without_weights_say_so(state: Any) -> None:
    with pytest.raises(ValueError, match=r"x\.pth holds no weights"):
        model_weights(state, "x.pth")
