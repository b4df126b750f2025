"""Pickles from anybody: only what is listed is ever called, and little can not become much."""

import pickle
from collections.abc import Callable, Mapping, Sized
from typing import IO, Any

_MOST_COPIED = 10_000_000  # items
# Opcodes that no checkpoint has: bytes whose length is merely claimed, classes with keywords.
_REFUSED = (pickle.BYTEARRAY8, pickle.NEXT_BUFFER, pickle.NEWOBJ_EX)


class RestrictedUnpickler(pickle._Unpickler):  # the one in Python: no opcode of it claims memory
    """Reads a pickle that may name nothing but what is listed, with what stands for it."""

    dispatch = {
        code: load
        for code, load in pickle._Unpickler.dispatch.items()
        if bytes([code]) not in _REFUSED
    }

    def __init__(self, file: IO[bytes], listed: Mapping[tuple[str, str], Any]) -> None:
        super().__init__(file)
        self.listed = listed
        self.copied = 0

    def find_class(self, module: str, name: str) -> Any:
        """What stands for `module.name`; UnpicklingError where it is not listed."""
        if (module, name) not in self.listed:
            raise pickle.UnpicklingError(f"it holds {module}.{name}, which is not plain data")
        return self.listed[module, name]

    def count(self) -> None:
        """Count what the next call copies, so that few bytes do not become much memory."""
        stack: list[Any] = self.stack  # type: ignore[attr-defined]  # typeshed lacks it
        self.copied += sum(len(value) for value in stack[-1] if isinstance(value, Sized))
        if self.copied > _MOST_COPIED:
            raise pickle.UnpicklingError("it copies the same data again and again")


def _counted(load: Callable[[Any], None]) -> Callable[[Any], None]:
    def counted(unpickler: RestrictedUnpickler) -> None:
        unpickler.count()
        load(unpickler)

    return counted


for _code in (pickle.REDUCE[0], pickle.NEWOBJ[0]):
    RestrictedUnpickler.dispatch[_code] = _counted(RestrictedUnpickler.dispatch[_code])
