"""Opens checkpoint files from untrusted sources.

Every file is read with `weights_only=True`: no code in it can run. Before that its checksums are verified and its
pickle is scanned, so that damage is reported and no file takes more memory than its size says. weights.py deals with
the content.
"""

from __future__ import annotations

import argparse
import io
import pickle
import pickletools
import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import torch
from safetensors import safe_open
from torch import Tensor

from deepavfusion.utils.errors import UserError

EXPECTED = (
    "a checkpoint of this project (.ckpt or .safetensors), a published DeepAVFusion checkpoint, "
    "or an MAE or AudioMAE ViT checkpoint (.pth)"
)
# What the pickle of a checkpoint may name, besides dtypes; torch allows more, and some of that can fill the memory.
GLOBALS = re.compile(
    r"torch\._utils\._rebuild_(tensor|tensor_v2|parameter)|torch\.([A-Z][a-z0-9]+)?Storage|"
    r"torch\.storage\.(Typed|Untyped)Storage|torch\.(Size|device)|torch\.nn\.parameter\.Parameter|"
    r"collections\.(OrderedDict|Counter)|argparse\.Namespace|_codecs\.encode|(builtins|__builtin__)\.(set|complex)"
)
DTYPES = frozenset(str(value) for value in vars(torch).values() if isinstance(value, torch.dtype))
OPCODES = re.compile(  # that torch reads with weights_only=True
    r"PROTO|STOP|MARK|GLOBAL|REDUCE|NEWOBJ|BUILD|BINPERSID|(LONG_)?BIN(PUT|GET)|NONE|NEWTRUE|NEWFALSE|BININT[12]?|LONG1|"
    r"BINFLOAT|BINUNICODE|SHORT_BINSTRING|EMPTY_(DICT|LIST|TUPLE|SET)|APPENDS?|SETITEMS?|TUPLE[123]?"
)
PLAIN = (str, bytes, int, float, complex, type(None), torch.dtype, torch.device, torch.UntypedStorage)
MAX_DEPTH, MAX_VALUES = 100, 10_000_000  # of a checkpoint's containers; a shared value counts wherever it occurs


def read_file(path: Path) -> object:
    """The content of a checkpoint file: plain containers, values and tensors on the CPU.

    Raises:
        UserError: the file is missing, truncated, damaged, not a checkpoint, would take more memory than its size
            says, or contains code.
    """
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist: expected {EXPECTED}.")
    size = path.stat().st_size
    broken = UserError(
        f"checkpoint {path} ({size} bytes) cannot be read: it is truncated, damaged or something else; "
        f"expected {EXPECTED}; fetch or copy it again."
    )
    try:
        if path.suffix == ".safetensors":
            return _read_safetensors(path, broken)
        with path.open("rb") as file:
            head = file.read(4)
            if head == b"PK\3\4":
                _check_archive(file, path, broken)
            elif head[:1] == b"\x80":  # before PyTorch 1.6: five pickles, then the tensors, and no checksum
                file.seek(0)
                for _ in range(5):
                    _check_pickle(file, path)
            else:
                raise broken
        # A Namespace is a bag of values: MAE's own training code stores its arguments as one.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        raise (_runs_code(path) if "weights_only" in str(error) or "Unsupported" in str(error) else broken) from error
    except Exception as error:  # a damaged archive raises nearly anything: RuntimeError, EOFError, KeyError, …
        raise broken from error
    _check_values(content, path, size)
    return content


def _runs_code(path: Path) -> UserError:
    return UserError(
        f"checkpoint {path} holds more than tensors and plain values, and reading it would run its code; it "
        f"was not loaded: expected {EXPECTED}."
    )


def _grows(path: Path) -> UserError:
    return UserError(
        f"checkpoint {path} would take more memory than its size says (it is compressed, nested too deeply, or has "
        f"tensors larger than the file); it was not loaded: expected {EXPECTED}, as torch.save writes it."
    )


def _read_safetensors(path: Path, broken: UserError) -> dict[str, Tensor]:
    """The tensors, verified by the checksum of `write_weights`, which files of other programs lack."""
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        expected = (file.metadata() or {}).get("crc32")
    if expected not in (None, checksum(tensors)):
        raise broken
    return tensors


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """CRC-32 of names, types, shapes and values, stored as `crc32` in the metadata of a .safetensors file."""
    crc = 0
    for name, tensor in sorted(tensors.items()):
        crc = zlib.crc32(f"{name} {tensor.dtype} {list(tensor.shape)}".encode(), crc)
        crc = zlib.crc32(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data, crc)
    return str(crc)


def _check_archive(file: IO[bytes], path: Path, broken: UserError) -> None:
    """Verify the checksums of a zip archive, which torch.load does not, and scan its pickle."""
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        names = {member.filename.lower() for member in members}  # torch.load ignores case
        if len(names) < len(members):
            raise broken
        stored = all(member.compress_type == zipfile.ZIP_STORED for member in members)
        if not stored or sum(member.file_size for member in members) > path.stat().st_size:
            raise _grows(path)
        if archive.testzip() is not None:
            raise broken
        if any(name.endswith("/constants.pkl") for name in names):
            raise _runs_code(path)  # TorchScript
        for member in members:
            if member.filename.lower().endswith("data.pkl"):
                _check_pickle(io.BytesIO(archive.read(member)), path)


def _check_pickle(file: IO[bytes], path: Path) -> None:
    """Scan a pickle without running it.

    It may name only `GLOBALS` and dtypes. A small file's deeply nested or shared tuples, as keys of a dict, would take
    forever to hash before `_check_values` sees them; so the stack is simulated, with the size of each tuple.
    """
    leaf = (0, 1)
    stack: list[tuple[int, int]] = []  # of each object: depth and number of values, 0 and 1 unless it is a tuple
    marks: list[int] = []
    memo: dict[int, tuple[int, int]] = {}
    for opcode, argument, _ in pickletools.genops(file):
        name = opcode.name
        named = str(argument).replace(" ", ".") if name == "GLOBAL" else ""
        if not OPCODES.fullmatch(name) or (named and not GLOBALS.fullmatch(named) and named not in DTYPES):
            raise _runs_code(path)
        if name == "MARK":
            marks.append(len(stack))
        elif name.endswith("BINPUT"):
            memo[int(argument or 0)] = stack[-1]
        elif name.endswith("BINGET"):
            stack.append(memo[int(argument or 0)])
        else:
            before = opcode.stack_before
            marked = pickletools.markobject in before
            begin = marks.pop() if marked else len(stack) - len(before)
            items = stack[begin:]
            del stack[begin - (before.index(pickletools.markobject) if marked else 0) :]
            made = leaf
            if name.startswith("TUPLE"):
                made = (1 + max((d for d, _ in items), default=0), 1 + sum(n for _, n in items))
                if made[0] > MAX_DEPTH or made[1] > MAX_VALUES:
                    raise _grows(path)
            stack += [made] * len(opcode.stack_after)


def _check_values(content: object, path: Path, size: int) -> None:
    """Check that a file holds plain containers, values and tensors, none of which grows when it is used."""
    todo, seen = [(content, 0)], 0
    while todo:
        value, depth = todo.pop()
        if isinstance(value, Tensor):
            dense = value.layout is torch.strided and value.device.type == "cpu" and not value.is_nested
            if not dense or value.nbytes > value.untyped_storage().nbytes() or value.untyped_storage().nbytes() > size:
                raise _grows(path)
        elif isinstance(value, (dict, list, tuple, set, argparse.Namespace)):
            if not isinstance(value, argparse.Namespace):
                getattr(value, "__dict__", {}).clear()  # of an OrderedDict: an attribute could replace a method
            inside = list(vars(value).values()) if isinstance(value, argparse.Namespace) else list(value)
            inside += value.values() if isinstance(value, dict) else ()
            seen += 50 + len(inside)  # a container costs more than a value
            if depth > MAX_DEPTH or seen > MAX_VALUES:
                raise _grows(path)
            todo += [(item, depth + 1) for item in inside if type(item) not in PLAIN]
        elif not isinstance(value, (*PLAIN, torch.storage.TypedStorage)):
            raise _runs_code(path)
