"""Reads every byte of packed data once, wherever it lies, and compares it with what packing recorded."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from hashlib import sha256
from operator import index
from pathlib import Path
from typing import Any, NamedTuple

from rich import get_console
from rich.table import Column, Table

from deepavfusion.data.storage.remote import Differs, Missing, Remote, Unreachable, remote
from deepavfusion.data.storage.settings import StorageSettings
from deepavfusion.data.stores.packed import CLIPS, FORMAT, INDEX, MANIFEST
from deepavfusion.data.stores.packed_list import EXPECTED, MOST, check_clips, check_index
from deepavfusion.utils.addresses import is_remote
from deepavfusion.utils.console import cell, progress_bar, say
from deepavfusion.utils.errors import UserError
from deepavfusion.utils.reading import RECORD, parse_json

SHOWN = 20  # lines on what is wrong
LOCAL_SECONDS = 5.0  # until a file of this machine that cannot be read counts as damaged
UNREADABLE = (KeyError, IndexError, TypeError, ValueError, AttributeError, RecursionError)  # of a list that is damaged


class Chunk(NamedTuple):
    """What packing recorded of a chunk."""

    split: str
    file: str
    size: int
    sha256: str

    @property
    def path(self) -> str:
        return f"{self.split}/{self.file}"


@dataclass
class Split:
    """What was found of a split."""

    name: str
    clips: int
    chunks: list[Chunk]
    wrong: dict[str, str]  # name -> what is wrong with the file, a clause

    @property
    def size(self) -> int:
        return sum(chunk.size for chunk in self.chunks)


def verify_packed(root: str, name: str, splits: Sequence[str] | None, storage: StorageSettings, workers: int) -> None:
    """Compare the lists and chunks of packed data with packed.json, and print a table.

    Args:
        root: folder or address.
        name: of the dataset.
        splits: None: all that were packed.
        storage: how an address is reached.
        workers: files that are read at a time.

    Raises:
        UserError: the storage cannot be reached, no such data or split is there, or something is missing or damaged.
    """
    place = _opened(root, storage)
    manifest = _read_manifest(place, root, name)
    if unknown := [split for split in splits or () if split not in manifest["splits"]]:
        known = ", ".join(manifest["splits"])
        raise UserError(f"{root} was packed without the split {unknown[0]}, it has {known:.80}: set splits.")
    found = [_lists(place, split, manifest["splits"][split]) for split in splits or manifest["splits"]]
    everything = [(split, chunk) for split in found for chunk in split.chunks]
    with progress_bar() as bar, ThreadPoolExecutor(workers) as threads:
        task = bar.add_task("verifying", total=len(everything))
        try:
            for (split, chunk), wrong in zip(everything, threads.map(_check(place), everything), strict=True):
                if wrong:
                    split.wrong[chunk.path] = wrong
                bar.advance(task)
        except BaseException:
            place.give_up()
            threads.shutdown(wait=False, cancel_futures=True)
            raise
    _show(root, found)


def _opened(root: str, storage: StorageSettings) -> Remote:
    """The place that packed data lies in; of a folder, too, which is read in the same way."""
    if is_remote(root):
        return remote(root, storage)
    return remote(f"local:{Path(root).absolute()}", replace(storage, patience_seconds=LOCAL_SECONDS))


def _is_folder(place: Remote) -> bool:
    return place.root.startswith("local:")


def _read_manifest(place: Remote, root: str, name: str) -> dict[str, Any]:
    """The content of packed.json, which has to be of this dataset."""
    try:
        manifest = parse_json(place.read(MANIFEST, RECORD), f"{root}/{MANIFEST}", RECORD, EXPECTED)
        kind, wrong = (manifest["name"], manifest["format"]), manifest["name"] != name
        _ = [(split["counts"]["packed"], split["chunks"]) for split in manifest["splits"].values()]
    except Missing:
        raise UserError(f"{root}/{MANIFEST} is not there; expected {EXPECTED}: set data.root.") from None
    except UNREADABLE as error:
        raise UserError(f"{root}/{MANIFEST} is damaged ({_words(error)}): copy it again, or pack it again.") from None
    if wrong or kind[1] != FORMAT:
        raise UserError(
            f"{root} holds {kind[0]!s:.80} packed in format {kind[1]!s:.80}, expected {name} in format {FORMAT}: set "
            "data and data.root to fit, or pack it again."
        )
    return manifest


def _lists(place: Remote, split: str, recorded: Any) -> Split:
    """The lists of a split, compared with its entry in packed.json."""
    try:
        chunks = [Chunk(split, each["file"], index(each["bytes"]), each["sha256"]) for each in recorded["chunks"]]
        found = Split(split, index(recorded["counts"]["packed"]), chunks, {})
    except UNREADABLE as error:
        return Split(split, 0, [], {MANIFEST: f"is damaged ({_words(error)})"})
    checks: dict[str, Callable[[Any], None]] = {
        INDEX: lambda content: check_index(content, recorded["chunks"]),
        CLIPS: lambda content: check_clips(content, split, sum(each["items"] for each in recorded["chunks"])),
    }
    for name, check in checks.items():
        path = f"{split}/{name}"
        try:
            check(parse_json(place.read(path, MOST), path, MOST, EXPECTED))
        except Missing:
            found.wrong[path] = "is missing"
        except Unreachable:
            if not _is_folder(place):
                raise
            found.wrong[path] = "cannot be read"
        except (UserError, *UNREADABLE) as error:
            found.wrong[path] = f"is damaged ({_words(error)})"
    return found


def _check(place: Remote) -> Callable[[tuple[Split, Chunk]], str]:
    """What is wrong with a chunk, a clause; empty: nothing."""

    def check(entry: tuple[Split, Chunk]) -> str:
        chunk, content = entry[1], _Hash()
        try:
            place.download(chunk.path, content, chunk.size)
        except Missing:
            return "is missing"
        except Differs as error:
            return str(error).replace("it has", "has", 1)
        except Unreachable:
            if not _is_folder(place):
                raise
            return "cannot be read"
        return "" if content.sum.hexdigest() == chunk.sha256 else "has another content"

    return check


class _Hash(io.BytesIO):
    """A file of which only the checksum is kept."""

    def __init__(self) -> None:
        super().__init__()
        self.sum = sha256()

    def write(self, block: Any) -> int:
        self.sum.update(block)
        return len(block)

    def truncate(self, size: int | None = None) -> int:
        self.sum = sha256()  # a download that begins anew
        return 0


def _show(root: str, found: Sequence[Split]) -> None:
    columns = ("clips", "chunks", "GB", "wrong")
    table = Table("split", *(Column(name, justify="right") for name in columns), title=cell(f"Packed data in {root}"))
    for split in found:
        values = (str(split.clips), str(len(split.chunks)), f"{split.size / 1e9:.3g}", str(len(split.wrong) or "–"))
        table.add_row(cell(split.name), *values)
    get_console().print(table)
    whole = {name: what for split in found for name, what in split.wrong.items()}  # packed.json is of each split
    wrong = [f"{root}/{name} {what}" for name, what in whole.items()]
    for line in wrong[:SHOWN]:
        say(line, "red")
    if len(wrong) > SHOWN:
        say(f"… and {len(wrong) - SHOWN} more", "red")
    if wrong:
        raise UserError(
            f"{root} has {len(wrong)} missing or damaged file{'s' * (len(wrong) > 1)}: copy what is named again, or "
            "remove what is damaged and run the command that packed it, which writes what is missing."
        )
    clips, size = sum(split.clips for split in found), sum(split.size for split in found) / 1e9
    say(f"{root}: {clips} clips, {size:.3g} GB, all as they were packed", "green")


def _words(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
