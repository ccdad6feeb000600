"""Opens checkpoints from untrusted sources, files and folders: the only reader of checkpoints.

No code in a file runs, and what a file takes is bounded by its size: `Archive` and safetensors check where its bytes
are, `interpret` what they are called, and only then tensors are made of these bytes. weights.py deals with the content.
"""

from __future__ import annotations

import io
import json
import os
import zlib
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors.torch import load
from torch import Tensor

from deepavfusion.utils.errors import UserError
from deepavfusion.utils.files import regular_file
from deepavfusion.utils.reading import RECORD, json_memory
from deepavfusion.weights.archive import Archive, CompressedFile, DamagedFile, read_into
from deepavfusion.weights.folder import assembled, check_folder, read_config
from deepavfusion.weights.hub import CONFIG, MODEL, local
from deepavfusion.weights.pickled import (
    MAX_PICKLE,
    MAX_TENSORS,
    STORAGES,
    ForeignCode,
    Growing,
    Storage,
    View,
    interpret,
    realise,
)

EXPECTED = (
    "a checkpoint of this project (.ckpt, .safetensors, or a folder of convert.py), a published DeepAVFusion "
    "checkpoint, or an MAE or AudioMAE ViT checkpoint (.pth)"
)
OPTIMIZER = ("optimizer_states",)  # for AdamW twice as large as the weights
LEGACY = 0x1950A86A20F9469CFC6C, 1001  # magic number and version of files before PyTorch 1.6
MAX_SHARING = 4  # tensors that show a value of the file, on average
MAX_NAME = 300  # characters; messages and tables show names
# What torch.compile, DataParallel, FSDP and activation checkpointing add to the names of tensors, at any place.
WRAPPERS = {"_orig_mod", "module", "_forward_module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}


class OtherValues(Exception):
    """The tensors are not those that another file was written for."""


def read_file(path: str | Path, without: Collection[str] = ()) -> Any:
    """The content of a checkpoint: plain containers, values and tensors on the CPU.

    Networks (a dict of tensors, as a whole or as `state_dict` or `model`) have their plain names, without `WRAPPERS`.

    Args:
        path: of a file, or of a folder of `convert.py`; or an address, hf://owner/name[@revision], of such a folder.
        without: keys of the whole that are left out, e.g. `OPTIMIZER`: the tensors below them are not read.

    Raises:
        UserError: the file is missing, cannot be opened, is truncated, damaged, not a checkpoint, would take more
            memory than its size says, or contains code; or the folder cannot be fetched.
    """
    path = local(path)
    return _read_folder(path, without) if os.path.isdir(path) else _read_path(path, without)


def _read_path(path: Path, without: Collection[str], crc32: str | None = None) -> Any:
    try:
        regular_file(path)
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            return _read(path, file, size, without, crc32)
    except FileNotFoundError:
        raise UserError(f"checkpoint {path} does not exist: expected {EXPECTED}.") from None
    except OSError as error:
        raise UserError(
            f"checkpoint {path} cannot be read ({error.strerror or error}): expected {EXPECTED}; check its path, "
            "permissions and disk."
        ) from error


def _read_folder(path: Path, without: Collection[str]) -> Any:
    check_folder(path)
    config = read_config(path / CONFIG)
    tensors = None if "state_dict" in without else _read_path(path / MODEL, (), config["crc32"])
    return assembled(config, tensors, path)


def _read(path: Path, file: BinaryIO, size: int, without: Collection[str], crc32: str | None) -> Any:
    try:
        head = file.read(4)
        if path.suffix == ".safetensors":
            return _plainly_named(_read_safetensors(file, size, crc32))
        if head == b"PK\3\4":
            return _plainly_named(_read_archive(Archive(file, size), size, without))
        if head[:1] == b"\x80":
            return _plainly_named(_read_legacy(file, size, without))
        raise DamagedFile("another format")
    except OSError:
        raise
    except OtherValues:
        raise UserError(
            f"{path} holds other values than those that the {CONFIG} beside it was written for: fetch or copy both "
            "again."
        ) from None
    except ForeignCode as error:
        raise UserError(
            f"checkpoint {path} holds more than tensors and plain values, and reading it would run its code; it "
            f"was not loaded: expected {EXPECTED}."
        ) from error
    except (Growing, CompressedFile) as error:
        raise UserError(
            f"checkpoint {path} would take more memory than its size says (it is compressed, nested too deeply, or has "
            f"tensors larger than the file); it was not loaded: expected {EXPECTED}, as torch.save writes it."
        ) from error
    except Exception as error:  # damaged bytes raise nearly anything: ValueError, IndexError, KeyError, …
        raise UserError(
            f"checkpoint {path} ({size} bytes) cannot be read: it is truncated, damaged or something else; "
            f"expected {EXPECTED}; fetch or copy it again."
        ) from error


def _plainly_named(content: Any) -> Any:
    if isinstance(content, dict):
        for part in (content, content.get("state_dict"), content.get("model")):
            if isinstance(part, dict):
                _rename(part)
    return content


def _rename(part: dict[Any, Any]) -> None:
    """Rename the tensors of a dict in place, in their order."""
    names = {key: _plain_name(key) if isinstance(value, Tensor) else key for key, value in part.items()}
    if len(set(names.values())) < len(names):
        raise DamagedFile("two tensors of one name")
    if list(names) != list(names.values()):
        values = list(part.values())
        part.clear()
        part.update(zip(names.values(), values, strict=True))


def _plain_name(name: Any) -> Any:
    if isinstance(name, str):
        if not name.isprintable() or len(name) > MAX_NAME:
            raise DamagedFile("a name that no network has")
        name = ".".join(word for word in name.split(".") if word not in WRAPPERS)
    return name


def _read_archive(archive: Archive, size: int, without: Collection[str]) -> Any:
    if archive.size("data.pkl") > MAX_PICKLE:
        raise Growing
    if "byteorder" in archive and bytes(archive.read("byteorder").numpy()) != b"little":
        raise DamagedFile("the bytes of another kind of computer")
    content, storages = interpret(io.BytesIO(archive.read("data.pkl").numpy().tobytes()))
    for storage in storages.values():  # before anything is made
        if archive.size(f"data/{storage.key}") != storage.nbytes:
            raise Growing
    return _with_tensors(_less(content, without), size, lambda storage: archive.read(f"data/{storage.key}"))


def _read_legacy(file: BinaryIO, size: int, without: Collection[str]) -> Any:
    """A file of PyTorch before 1.6: magic number, version, machine, content, keys; then each storage, with its length.

    There are no checksums.
    """
    file.seek(0)
    pickles = io.BytesIO(file.read(MAX_PICKLE))
    head = [interpret(pickles)[0] for _ in range(3)]
    if (*head[:2], head[2]["little_endian"]) != (*LEGACY, True):
        raise DamagedFile("another format")
    content, storages = interpret(pickles)
    keys, _ = interpret(pickles)
    names = keys if isinstance(keys, list) and all(isinstance(key, str) for key in keys) else []
    if len(names) != len(storages) or set(names) != set(storages):
        raise DamagedFile("other storages")
    begins, at = {}, pickles.tell()
    for storage in map(storages.__getitem__, names):
        begins[storage] = at + 8
        at += 8 + storage.nbytes
    if at != size:
        raise Growing

    def bytes_of(storage: Storage) -> Tensor:
        length = torch.empty(8, dtype=torch.uint8)
        data = torch.empty(storage.nbytes, dtype=torch.uint8)
        read_into(file, begins[storage] - 8, length)
        if length.view(torch.int64).item() != storage.numel:
            raise DamagedFile("another length")
        read_into(file, begins[storage], data)
        return data

    return _with_tensors(_less(content, without), size, bytes_of)


def _less(content: Any, without: Collection[str]) -> Any:
    return {key: part for key, part in content.items() if key not in without} if isinstance(content, dict) else content


def _with_tensors(content: Any, size: int, bytes_of: Callable[[Storage], Tensor]) -> Any:
    """The content with its tensors; those of one storage share its memory."""
    made: dict[Storage, torch.UntypedStorage] = {}
    shown = 0

    def tensor_of(view: View) -> Tensor:
        nonlocal shown
        tensor = torch.empty(0, dtype=view.storage.dtype)
        if view.storage not in made:
            made[view.storage] = bytes_of(view.storage).untyped_storage()
        tensor.set_(made[view.storage], view.begin, view.size, view.stride)
        shown += tensor.nbytes
        if shown > MAX_SHARING * size:
            raise Growing
        return tensor

    return realise(content, tensor_of)


def _read_safetensors(file: BinaryIO, size: int, crc32: str | None) -> dict[str, Tensor]:
    """The tensors, verified by the checksum of `write_weights`, which files of other programs lack, and by `crc32`.

    They are read before: the library would map the file into memory, and one that is cut meanwhile ends the process.
    """
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if length > MAX_PICKLE:
        raise Growing
    text = file.read(length)
    if json_memory(text) > RECORD:
        raise Growing
    header = json.loads(text)
    expected = header.pop("__metadata__", {}).get("crc32")
    if len(header) > MAX_TENSORS:
        raise Growing
    file.seek(0)
    found = load(file.read(size))  # the library checks that they fill the file, in order
    tensors = {name: found[name] for name in header}  # it gives them in another order every time
    if not {tensor.dtype for tensor in tensors.values()} <= set(STORAGES.values()):
        raise DamagedFile("numbers of another kind")
    if {expected, crc32} - {None}:
        found_crc32 = checksum(tensors)
        if expected not in (None, found_crc32):
            raise DamagedFile("a wrong checksum")
        if crc32 not in (None, found_crc32):
            raise OtherValues
    return tensors


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """CRC-32 of names, types, shapes and values, stored as `crc32` in the metadata of a .safetensors file."""
    crc = 0
    for name, tensor in sorted(tensors.items()):
        crc = zlib.crc32(f"{name} {tensor.dtype} {list(tensor.shape)}".encode(), crc)
        crc = zlib.crc32(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data, crc)
    return str(crc)
