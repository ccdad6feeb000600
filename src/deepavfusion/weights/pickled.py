"""Reads the pickle in a checkpoint without running it.

A small machine interprets the few opcodes that torch.save writes. It calls nothing that a file names: each name that
may occur stands for a function below. Tensors are descriptions until file.py has compared them with the file.

What it takes is bounded by construction: an opcode makes at most one object, as large as its bytes in the file;
what a call copies is counted; nothing is hashed but names and numbers; and what is shared or nested counts wherever it
occurs.
"""

from __future__ import annotations

import argparse
import math
import pickletools
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch
from torch import Tensor

MAX_PICKLE = 16 << 20  # bytes; that of a thousand tensors with AdamW's state takes 0.5 MB
MAX_OPCODES, MAX_VALUES = 2_000_000, 1_000_000
MAX_DEPTH, MAX_TENSORS = 100, 100_000
DTYPES = {str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)}
STORAGES = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
    "torch.ComplexFloatStorage": torch.complex64,
    "torch.ComplexDoubleStorage": torch.complex128,
}
PLAIN = (str, bytes, int, float, bool, complex, type(None), torch.dtype, torch.device, torch.Size, Tensor, set)


class ForeignCode(Exception):
    """The pickle names something that is no plain value, or would call it."""


class Growing(Exception):
    """What the pickle describes is larger than itself, or would take longer to build."""


@dataclass(frozen=True, eq=False, slots=True)
class Storage:
    """A run of values in the file; each is one object, however many tensors show it.

    Args:
        key: its name in the file.
        dtype: of a value.
        numel: number of values.
    """

    key: str
    dtype: torch.dtype
    numel: int

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True, eq=False, slots=True)
class View:
    """A tensor: some of the values of a storage, each once; `begin` shifts the storage within that of its key."""

    storage: Storage
    begin: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Global:
    """A name that the pickle refers to."""

    name: str


def interpret(file: BinaryIO) -> tuple[Any, dict[str, Storage]]:
    """The content of the pickle that begins here, with `View` in the place of tensors, and the storages by key.

    The file is left behind the pickle.

    Raises:
        ForeignCode, Growing: see there.
        Exception: of nearly any kind: it is damaged.
    """
    machine = _Machine()
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if count > MAX_OPCODES:
            raise Growing
        if opcode.name == "STOP":
            break
        machine.step(opcode.name, argument)
    content = machine.stack.pop()
    return content, machine.storages


def realise(value: Any, tensor_of: Callable[[View], Tensor]) -> Any:
    """The content with tensors in the place of views; containers are changed in place, so that shared ones stay so.

    Raises:
        ForeignCode: it holds something else than plain values.
        Growing: it is nested too deeply, or has too many values.
    """
    return _Realised(tensor_of).walk(value, 0)


class _Realised:
    """A walk through the content; no closure, which would keep tensors alive until the next garbage collection."""

    def __init__(self, tensor_of: Callable[[View], Tensor]) -> None:
        self.tensor_of = tensor_of
        self.seen = 0
        self.made: dict[View, Tensor] = {}

    def walk(self, value: Any, depth: int) -> Any:
        self.seen += 1 + (len(value) if isinstance(value, set) else 0)
        if depth > MAX_DEPTH or self.seen > MAX_VALUES or len(self.made) > MAX_TENSORS:
            raise Growing
        if isinstance(value, View):
            if value not in self.made:
                self.made[value] = self.tensor_of(value)
            return self.made[value]
        if isinstance(value, PLAIN):
            return value
        if isinstance(value, (dict, argparse.Namespace)):
            inside = value if isinstance(value, dict) else vars(value)
            for key, item in inside.items():
                inside[key] = self.walk(item, depth + 1)
            return value
        if isinstance(value, list):
            value[:] = [self.walk(item, depth + 1) for item in value]
            return value
        if isinstance(value, tuple):
            return tuple([self.walk(item, depth + 1) for item in value])
        raise ForeignCode


class _Machine:
    """The stack machine of pickle, protocol 2."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []  # stacks before the marks
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}
        self.copied = 0  # values

    def step(self, name: str, argument: Any) -> None:
        if name in ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING"):
            self.stack.append(argument)
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif name == "GLOBAL":
            self.stack.append(_named(argument.replace(" ", ".")))
        elif name in CONSTANTS:
            self.stack.append(CONSTANTS[name]())
        elif name in OPERATIONS:
            OPERATIONS[name](self)
        elif name != "PROTO":
            raise ForeignCode

    def marked(self) -> list[Any]:
        """The values since the last mark."""
        found, self.stack = self.stack, self.outer.pop()
        return found

    def mark(self) -> None:
        self.outer.append(self.stack)
        self.stack = []

    def put_tuple(self, count: int | None = None) -> None:
        items = self.marked() if count is None else self.stack[-count:]
        if count:
            if len(items) < count:
                raise IndexError
            del self.stack[-count:]
        self.stack.append(tuple(items))

    def extend(self, many: bool) -> None:
        items = self.marked() if many else [self.stack.pop()]
        if type(self.stack[-1]) is not list:
            raise ValueError
        self.stack[-1].extend(items)

    def set_items(self, many: bool) -> None:
        items = self.marked() if many else [self.stack.pop() for _ in range(2)][::-1]
        if not isinstance(self.stack[-1], dict):
            raise ValueError
        self.stack[-1].update({_key(key): value for key, value in zip(items[::2], items[1::2], strict=True)})

    def call(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, Global) or function.name not in FUNCTIONS or type(arguments) is not tuple:
            raise ForeignCode
        for argument in arguments:
            self.count(argument)
        self.stack.append(FUNCTIONS[function.name](*arguments))

    def count(self, value: Any) -> None:
        """Something that is copied, and may be so again and again."""
        if isinstance(value, (str, list, tuple, dict)):
            self.copied += len(value) // 64 if isinstance(value, str) else len(value)
        if self.copied > MAX_VALUES:
            raise Growing

    def set_state(self) -> None:
        """Of a Namespace, its values. Attributes of a dict are dropped: one could replace a method."""
        state = self.stack.pop()
        self.count(state)
        if isinstance(self.stack[-1], argparse.Namespace) and type(state) is dict:
            vars(self.stack[-1]).update({name: value for name, value in state.items() if type(name) is str})
        elif not isinstance(self.stack[-1], OrderedDict):
            raise ForeignCode

    def storage(self) -> None:
        """A storage that the pickle refers to: kind, type, key, device, number of values, and in old files the view."""
        kind, type_, key, _, numel, *view = self.stack.pop()
        if kind != "storage" or not isinstance(type_, Global) or type_.name not in STORAGES:
            raise ForeignCode
        found = self.storages.setdefault(key, Storage(_a(str, key), STORAGES[type_.name], *_sizes([numel])))
        if (found.dtype, found.numel) != (STORAGES[type_.name], numel):
            raise ValueError
        if view and view[0] is not None:  # of files before PyTorch 0.4
            raise ValueError
        self.stack.append(found)


CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
}
OPERATIONS: dict[str, Callable[[_Machine], None]] = {
    "MARK": _Machine.mark,
    "TUPLE": _Machine.put_tuple,
    "TUPLE1": lambda machine: machine.put_tuple(1),
    "TUPLE2": lambda machine: machine.put_tuple(2),
    "TUPLE3": lambda machine: machine.put_tuple(3),
    "APPEND": lambda machine: machine.extend(many=False),
    "APPENDS": lambda machine: machine.extend(many=True),
    "SETITEM": lambda machine: machine.set_items(many=False),
    "SETITEMS": lambda machine: machine.set_items(many=True),
    "REDUCE": _Machine.call,
    "NEWOBJ": _Machine.call,
    "BUILD": _Machine.set_state,
    "BINPERSID": _Machine.storage,
}


def _named(name: str) -> Any:
    if name in DTYPES:
        return DTYPES[name]
    if name in FUNCTIONS or name in STORAGES:
        return Global(name)
    raise ForeignCode


def _key(value: Any) -> Any:
    """A key of a dict or a member of a set: hashed at once, and without numbers that are made to collide."""
    if type(value) in (str, bytes, bool, type(None)) or (type(value) is int and abs(value) < 2**60):
        return value
    raise Growing


def _sizes(values: Any) -> tuple[int, ...]:
    if type(values) not in (tuple, list, torch.Size) or not all(type(v) is int and 0 <= v < 2**60 for v in values):
        raise Growing
    return tuple(values)


def _view(storage: Any, offset: Any, size: Any, stride: Any, *more: Any) -> View:
    """`torch._utils._rebuild_tensor_v2`; gradient and hooks are ignored, conjugation (metadata) is refused."""
    if not isinstance(storage, Storage):
        raise ForeignCode
    (begin,), size, stride = _sizes([offset]), _sizes(size), _sizes(stride)
    if len(size) != len(stride) or len(size) > 16 or any(more[2:]):
        raise ValueError
    reach = begin
    for step, count in sorted((step, count) for step, count in zip(stride, size, strict=True) if count > 1):
        if step <= reach - begin:  # a value that is shown twice
            raise Growing
        reach += step * (count - 1)
    if (reach + 1 if math.prod(size) else begin) > storage.numel:
        raise Growing
    return View(storage, begin, size, stride)


def _a(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise ForeignCode
    return value


def _encode(text: Any, encoding: Any) -> bytes:
    if encoding != "latin1":
        raise ForeignCode
    return _a(str, text).encode("latin1")


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _view,
    "torch._utils._rebuild_tensor_v2": _view,
    "torch._utils._rebuild_parameter": lambda view, *_: view,
    "torch.Size": lambda sizes: torch.Size(_sizes(sizes)),
    "torch.device": lambda kind, *index: torch.device(_a(str, kind), *_sizes(index)),
    "collections.OrderedDict": lambda pairs=[]: OrderedDict((_key(key), value) for key, value in _a(list, pairs)),
    "collections.Counter": lambda counts={}: Counter(_a(dict, counts)),
    "argparse.Namespace": argparse.Namespace,  # a bag of values: MAE's training code stores its arguments as one
    "_codecs.encode": _encode,
    "builtins.set": lambda values=[]: {_key(value) for value in _a(list, values)},
    "builtins.complex": lambda real, imaginary: complex(_a(float, real), _a(float, imaginary)),
}
FUNCTIONS |= {
    f"__builtin__.{name}": FUNCTIONS[f"builtins.{name}"] for name in ("set", "complex")
}  # as protocol 2 has it
