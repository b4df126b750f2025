"""Inert stand-ins for names in files of other programs beside tensors and plain values.

torch looks each name up here and imports none, so that weights come out and no code runs.
"""

import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

import numpy as np


class _Dict:
    """Stands for a class of dicts: its pickled objects become dicts."""

    def __new__(cls, *arguments: object) -> Any:
        return OrderedDict()


class _Path:
    """Stands for a class of paths: its pickled objects become text."""

    def __new__(cls, *parts: object) -> Any:
        return str(PurePosixPath(*map(str, parts)))


class _Text:
    """Stands for a class of text: its pickled objects become plain text."""

    def __new__(cls, text: object = "", *arguments: object) -> Any:
        return str(text)


class _Object:
    """Stands for the class of an object that is not needed: it becomes None."""

    def __init__(self, *arguments: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


class Section(_Object):
    """Stands for a class with named attributes: an object becomes a dict of them."""

    values: Mapping[str, object] = {}

    def __setstate__(self, state: object) -> None:
        self.values = state if isinstance(state, dict) else {}


class _NumpyType(_Object):
    """Stands for NumPy's dtype: holds its code, for example "f8", and its byte order."""

    def __init__(self, code: str = "", *arguments: object) -> None:
        self.code, self.order = code, "="

    def __setstate__(self, state: Any) -> None:
        self.order = state[1]


def _numpy_scalar(dtype: _NumpyType, content: object = b"") -> object:
    """Stands for NumPy's scalars: returns a plain number, or None for anything else."""
    if not re.fullmatch(r"[biufc]\d{1,2}", dtype.code) or not isinstance(content, bytes):
        return None
    kind = np.dtype(dtype.code).newbyteorder(dtype.order)  # type: ignore[arg-type]  # any text
    return np.frombuffer(content, kind).tolist()[0]


class _List:
    """Stands for a class of sequences: its pickled objects become lists."""

    def __new__(cls, items: Any = (), *arguments: object) -> Any:
        return list(items) if isinstance(items, list | tuple) else []


# (stand-in, the names of a module for which it stands)
_NAMES: list[tuple[Any, str, str]] = [
    (_Dict, "collections", "defaultdict"),
    (_Dict, "yacs.config", "CfgNode"),
    (_Dict, "fvcore.common.config", "CfgNode"),
    (_Dict, "detectron2.config.config", "CfgNode"),
    (_Dict, "mmcv.utils.config", "ConfigDict"),
    (_Dict, "mmengine.config.config", "ConfigDict"),
    (_Dict, "addict.addict", "Dict"),
    (_Dict, "easydict", "EasyDict"),
    (_Dict, "lightning_fabric.utilities.data", "AttributeDict"),
    (_Dict, "lightning.fabric.utilities.data", "AttributeDict"),
    (_Dict, "pytorch_lightning.utilities.parsing", "AttributeDict"),
    (_List, "collections", "deque"),
    (_List, "builtins", "frozenset"),
    (Section, "argparse", "Namespace"),
    (Section, "types", "SimpleNamespace"),
    (_Path, "pathlib", "PosixPath PurePosixPath WindowsPath PureWindowsPath"),
    (_Path, "pathlib._local", "PosixPath PurePosixPath WindowsPath PureWindowsPath"),
    (_Text, "torch.torch_version", "TorchVersion"),
    (_Text, "torchvision.transforms.functional", "InterpolationMode"),
    (_Text, "decimal", "Decimal"),
    (_NumpyType, "numpy", "dtype"),
    (_numpy_scalar, "numpy.core.multiarray", "scalar"),
    (_numpy_scalar, "numpy._core.multiarray", "scalar"),
    (_Object, "numpy.core.multiarray", "_reconstruct"),
    (_Object, "numpy._core.multiarray", "_reconstruct"),
    (_Object, "numpy", "ndarray"),
    (_Object, "numpy.random._pickle", "__randomstate_ctor __bit_generator_ctor"),
    (_Object, "numpy.random._mt19937", "MT19937"),
    (_Object, "builtins", "list dict int float str bool tuple range slice"),
    (_Object, "typing", "Any"),
    (_Object, "datetime", "datetime date time timedelta timezone"),
    (_Object, "fractions", "Fraction"),
    (_Object, "uuid", "UUID"),
    (_Object, "deepspeed.runtime.fp16.loss_scaler", "LossScaler DynamicLossScaler"),
    (_Object, "mmengine.logging.history_buffer", "HistoryBuffer"),
    (_Object, "omegaconf.base", "Metadata ContainerMetadata"),
    (_Object, "omegaconf.dictconfig", "DictConfig"),
    (_Object, "omegaconf.listconfig", "ListConfig"),
    (_Object, "omegaconf.nodes", "AnyNode StringNode IntegerNode FloatNode BooleanNode EnumNode"),
]
# As torch.serialization.safe_globals takes them.
STAND_INS: list[Any] = [
    (stand_in, f"{module}.{name}") for stand_in, module, names in _NAMES for name in names.split()
]
