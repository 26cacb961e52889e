"""The pickles inside files of `torch.save`, read by a machine that knows what tensors by name are written with.

Whatever else a pickle asks for is refused by name, and nothing is ever imported or called.
"""

from __future__ import annotations

import io
import pickletools
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from adapter_export.errors import FormatError

_STORAGES = {
    "torch.DoubleStorage": "<f8",
    "torch.FloatStorage": "<f4",
    "torch.HalfStorage": "<f2",
    "torch.BFloat16Storage": "bfloat16",
    "torch.LongStorage": "<i8",
    "torch.IntStorage": "<i4",
    "torch.ShortStorage": "<i2",
    "torch.CharStorage": "i1",
    "torch.ByteStorage": "u1",
    "torch.BoolStorage": "?",
}
"""The element types, and NumPy's for them; bfloat16, which NumPy lacks, becomes float32 without loss."""

_TENSOR = "torch._utils._rebuild_tensor_v2"
_PARAMETER = "torch._utils._rebuild_parameter"
_DICTIONARY = "collections.OrderedDict"
_KNOWN = {_TENSOR, _PARAMETER, _DICTIONARY, *_STORAGES}


@dataclass(frozen=True)
class _Global:
    """A name that the pickle refers to."""

    name: str


@dataclass(frozen=True)
class Storage:
    """The numbers that a tensor is a view of."""

    dtype: str
    key: str
    count: int


@dataclass(frozen=True)
class View:
    """A tensor: a part of a storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Machine:
    """Reads one pickle; knows what tensors by name are written with, and nothing else."""

    def __init__(self) -> None:
        self.storages: list[Storage] = []
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def run(self, stream: io.BytesIO) -> object:
        """The value of the pickle at the stream's position; the stream is left behind it."""
        try:
            for opcode, argument, _ in pickletools.genops(stream):
                self._step(opcode.name, argument)
            return self._stack.pop()
        except (
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
            OverflowError,
            RecursionError,
            struct.error,
        ) as error:
            raise damaged(error) from error

    def _step(self, name: str, argument: Any) -> None:
        if name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name]())
        elif name in _LITERALS:
            self._stack.append(argument)
        elif name in _HANDLERS:
            _HANDLERS[name](self, argument)
        elif name not in _IGNORED:
            refuse("holds more than tensors", f"`{name}` in its pickle")

    def _mark(self, _: Any) -> None:
        self._marks.append(len(self._stack))

    def _since_mark(self) -> list[Any]:
        start = self._marks.pop()
        values = self._stack[start:]
        del self._stack[start:]
        return values

    def _put(self, index: Any) -> None:
        self._memo[len(self._memo) if index is None else index] = self._stack[-1]

    def _get(self, index: Any) -> None:
        self._stack.append(self._memo[index])

    def _global(self, argument: Any) -> None:
        name = str(argument).replace(" ", ".")
        if name not in _KNOWN:
            refuse("holds more than tensors: its pickle could run code when it is loaded", f"`{name}`")
        self._stack.append(_Global(name))

    def _stack_global(self, _: Any) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        self._global(f"{module} {name}")

    def _tuple(self, count: int) -> None:
        values = tuple(self._stack[len(self._stack) - count :])
        del self._stack[len(self._stack) - count :]
        self._stack.append(values)

    def _marked_tuple(self, _: Any) -> None:
        self._stack.append(tuple(self._since_mark()))

    def _append(self, _: Any) -> None:
        value = self._stack.pop()
        self._stack[-1].append(value)

    def _appends(self, _: Any) -> None:
        values = self._since_mark()
        self._stack[-1].extend(values)

    def _set_item(self, _: Any) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._stack[-1][key] = value

    def _set_items(self, _: Any) -> None:
        values = self._since_mark()
        self._stack[-1].update(zip(values[::2], values[1::2], strict=True))

    def _build(self, _: Any) -> None:
        """Attributes of a dictionary, such as the `_metadata` of a `state_dict`: not needed."""
        self._stack.pop()
        if not isinstance(self._stack[-1], dict):
            refuse("holds more than tensors", "an object with attributes")

    def _persistent(self, _: Any) -> None:
        tag, kind, key, _location, count, *_rest = self._stack.pop()
        if tag != "storage" or kind.name not in _STORAGES:
            refuse("holds more than tensors", f"`{kind.name}`")
        self.storages.append(Storage(_STORAGES[kind.name], str(key), int(count)))
        self._stack.append(self.storages[-1])

    def _reduce(self, _: Any) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        self._stack.append(_MADE[function.name](*arguments))


def _tensor(storage: Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any) -> View:
    if not isinstance(storage, Storage) or len(shape) != len(strides):
        refuse("holds a tensor that is not plain", f"shape {shape}")
    return View(storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))


def _parameter(tensor: View, *_: Any) -> View:
    return tensor


def _dictionary(*pairs: Any) -> dict[Any, Any]:
    return dict(*pairs)


_MADE: Mapping[str, Callable[..., Any]] = {_TENSOR: _tensor, _PARAMETER: _parameter, _DICTIONARY: _dictionary}

_CONSTANTS: Mapping[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
}

_LITERALS = frozenset(
    {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINSTRING"}
    | {"SHORT_BINSTRING", "UNICODE", "INT", "LONG"}
)

_IGNORED = frozenset({"PROTO", "FRAME", "STOP"})

_HANDLERS: Mapping[str, Callable[[Machine, Any], None]] = {
    "MARK": Machine._mark,
    "BINPUT": Machine._put,
    "LONG_BINPUT": Machine._put,
    "MEMOIZE": Machine._put,
    "BINGET": Machine._get,
    "LONG_BINGET": Machine._get,
    "GLOBAL": Machine._global,
    "STACK_GLOBAL": Machine._stack_global,
    "TUPLE": Machine._marked_tuple,
    "TUPLE1": lambda machine, _: machine._tuple(1),
    "TUPLE2": lambda machine, _: machine._tuple(2),
    "TUPLE3": lambda machine, _: machine._tuple(3),
    "APPEND": Machine._append,
    "APPENDS": Machine._appends,
    "SETITEM": Machine._set_item,
    "SETITEMS": Machine._set_items,
    "BUILD": Machine._build,
    "BINPERSID": Machine._persistent,
    "REDUCE": Machine._reduce,
}


def damaged(error: Exception) -> FormatError:
    """What to raise where a file breaks off or does not fit together."""
    return FormatError(
        "is not a file of `torch.save`, or it is damaged",
        found=f"{type(error).__name__}: {error}",
        expected="a dictionary of tensors",
        fix="take the file from its source again",
    )


def refuse(what: str, found: object) -> NoReturn:
    """Refuse what is no dictionary of plain tensors.

    Raises:
        FormatError: always.
    """
    raise FormatError(
        what,
        found=found,
        expected="a dictionary of plain tensors, as `torch.save(module.state_dict())` writes it",
        fix="only load what you trust: make it again with `torch.save`, or save it as safetensors",
    )
