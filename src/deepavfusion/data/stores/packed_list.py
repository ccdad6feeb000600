"""Reads what describes packed data: packed.json, and index.json and clips.json of a split.

These files may come from anyone. So everything in index.json but the list of chunks has to equal what pack.py writes,
the chunks have to be those of packed.json and of the disk, and every value is of its type, before a chunk is opened.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from deepavfusion.data.lists.clip_list import ClipList
from deepavfusion.data.lists.retrieval import KEY as RETRIEVAL_LIST
from deepavfusion.data.lists.retrieval import named_clips
from deepavfusion.data.storage.cache import ChunkCache, cache_of
from deepavfusion.data.storage.remote import Missing, Remote, remote
from deepavfusion.data.storage.settings import StorageSettings
from deepavfusion.data.stores.packed import CLIPS, FORMAT, INDEX, KINDS, MANIFEST, Chunk, PackedStore
from deepavfusion.types import Clip
from deepavfusion.utils.addresses import bytes_of, is_remote
from deepavfusion.utils.errors import UserError
from deepavfusion.utils.files import regular_file
from deepavfusion.utils.processes import sign_of_life
from deepavfusion.utils.reading import RECORD, parse_json, read_json

EXPECTED = "packed data, as `python src/prepare.py command=pack` writes it"
MOST = 2**31  # bytes in memory, of clips.json; two million clips take 1 GB
COLUMNS = ("id", "video", "label", "labels", "frames")  # of a clip, in clips.json
CHUNK = re.compile(r"chunk-[0-9]{1,9}\.bin")  # in the split's own folder
SHA256 = re.compile(r"[0-9a-f]{64}")
FORMATS = {bytes: "bytes", np.float64: "no_header_numpy:10", np.int64: "no_header_numpy:3"}  # litdata's names
LEAF: dict[str, Any] = {"type": None, "context": None, "children_spec": []}
CONFIG = {  # in index.json: the format of items. litdata's own reader knows others, and some of them run code.
    "data_format": [FORMATS[kind] for kind in KINDS.values()],
    "data_spec": [1, {"type": "builtins.dict", "context": json.dumps([*KINDS]), "children_spec": [LEAF] * len(KINDS)}],
    "types": {name: "bytes" if kind is bytes else "json" for name, kind in KINDS.items()},
    "item_loader": "PyTreeLoader",
}


@dataclass(frozen=True)
class Kept:
    """How a remote root is reached, and what is kept of it.

    Args:
        storage: how.
        cache_dir: folder for the chunks of all remote roots; None: under the home folder.
        cache_size: bytes that those of one root may take, or text such as 100GB; None: no limit.
    """

    storage: StorageSettings = field(default_factory=StorageSettings)
    cache_dir: str | None = None
    cache_size: int | str | None = None


def packed_list(
    root: str, split: str, name: str, reader: dict[str, Any] | None = None, kept: Kept | None = None
) -> tuple[ClipList, PackedStore]:
    """One split of packed data: its list, and the store that opens its clips.

    Args:
        root: of the packed data.
        split: its name.
        name: the dataset that is expected.
        reader: the arguments of its reader that are expected, see `ClipDataModule.reader`.
        kept: of a remote root.

    Raises:
        UserError: it cannot be reached, holds another dataset or no such split, or lacks a chunk.
    """
    try:
        return _packed_list(root, split, name, reader or {}, kept or Kept())
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RecursionError, OSError) as error:
        words = " ".join(str(error).split())[:200]
        raise UserError(
            f"{root} holds packed data that is damaged or written by other software ({type(error).__name__}: {words}): "
            "copy it again, or pack it again with `python src/prepare.py command=pack`."
        ) from error


def _packed_list(root: str, split: str, name: str, reader: dict[str, Any], kept: Kept) -> tuple[ClipList, PackedStore]:
    place = remote(root, kept.storage, sign_of_life) if is_remote(root) else None
    manifest = _fetched(root, MANIFEST, place)
    if manifest["format"] != FORMAT or manifest["name"] != name:
        raise UserError(
            f"{root} holds {manifest['name']!s:.80} packed in format {manifest['format']!s:.80}, expected {name} in "
            f"format {FORMAT}: set data and data.root to fit, or pack it again with `python src/prepare.py "
            "command=pack`."
        )
    for key, value in reader.items():
        if key != RETRIEVAL_LIST and manifest["reader"].get(key, value) != value:
            raise UserError(
                f"{root} was packed with data.index.{key}={manifest['reader'][key]!s:.80}, expected {value}: choose "
                "the data config that it was packed with, or pack it again into another folder."
            )
    if split not in manifest["splits"]:
        known = ", ".join(manifest["splits"])
        raise UserError(
            f"{root} was packed without the split {split}, it has {known:.80}: set the split, or pack {split}, too, "
            f"with `python src/prepare.py command=pack data={name} splits=[{split}]`."
        )
    chunks = manifest["splits"][split]["chunks"]
    check_index(_fetched(root, f"{split}/{INDEX}", place), chunks)
    if place is None:
        _check_files(Path(root) / split, chunks)
    found = _fetched(root, f"{split}/{CLIPS}", place, MOST)
    check_clips(found, split, sum(chunk["items"] for chunk in chunks))
    files = [f"{root}/{split}/{chunk['file']}" for chunk in chunks for _ in range(chunk["items"])]
    places = {identifier: n for n, identifier in enumerate(found["clips"]["id"])}
    ends = accumulate(chunk["items"] for chunk in chunks)
    listed = [
        Chunk(chunk["file"], chunk["items"], chunk["bytes"], chunk["sha256"], end - chunk["items"])
        for chunk, end in zip(chunks, ends, strict=True)
    ]
    cache = None if place is None else _cache(place, kept, max((chunk.bytes for chunk in listed), default=0))
    clips = named_clips(from_json(found, files), reader.get(RETRIEVAL_LIST))
    return clips, PackedStore(root, split, places, listed, cache)


def _cache(place: Remote, kept: Kept, largest: int) -> ChunkCache:
    size = bytes_of(kept.cache_size) if isinstance(kept.cache_size, str) else kept.cache_size
    if size is not None and size < 2 * largest:
        raise UserError(
            f"data.cache_size is {size}, expected at least {2 * largest}, two chunks of {place.root}, and at best "
            "hundreds: set it to more."
        )
    return ChunkCache(place, cache_of(place, kept.cache_dir), size)


def check_index(index: Any, chunks: Any) -> None:
    """Check index.json, and the chunks of packed.json.

    Args:
        index: the content of index.json.
        chunks: of packed.json.

    Raises:
        ValueError: a value is not what packing writes, or the two list other chunks.
    """
    for chunk in chunks:
        numbers, named = (chunk["items"], chunk["bytes"]), CHUNK.fullmatch(chunk["file"])
        if not named or not SHA256.fullmatch(chunk["sha256"]) or any(type(n) is not int for n in numbers):
            raise ValueError("a chunk has another name than chunk-<n>.bin, or no numbers")
        if not 0 < 4 * (2 + chunk["items"] * (1 + len(KINDS))) <= chunk["bytes"]:  # what litdata puts before the items
            raise ValueError(f"{chunk['file']} is too small for its items")
    if len({chunk["file"] for chunk in chunks}) < len(chunks):
        raise ValueError("a chunk is listed twice")
    of_chunks = [
        {"chunk_bytes": chunk["bytes"], "chunk_size": chunk["items"], "dim": None, "filename": chunk["file"]}
        for chunk in chunks
    ]
    if set(index) != {"chunks", "config"} or not _equal(index["chunks"], of_chunks):
        raise ValueError(f"{INDEX} and {MANIFEST} list other chunks")
    config = index["config"]
    if config is None and not chunks:
        return
    spec = json.loads(config["data_spec"])
    given = {**config, "data_spec": spec}
    expected = {**dict.fromkeys(config), **CONFIG, "chunk_size": config["chunk_size"]}  # other keys are null
    asked = {key: expected[key] for key in config} | {key: CONFIG[key] for key in ("data_format", "data_spec")}
    if type(config["chunk_size"]) is not int or not _equal(given, asked):
        raise ValueError(f"{INDEX} has another format than ours")


def _equal(one: object, other: object) -> bool:
    """Whether two values are the same in JSON, where true is not 1 and 1.0 is not 1."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def _check_files(folder: Path, chunks: Sequence[dict[str, Any]]) -> None:
    for chunk in chunks:
        path = folder / chunk["file"]
        try:
            size = regular_file(path).st_size
            state = f"has {size} bytes, expected {chunk['bytes']}" if size != chunk["bytes"] else ""
        except OSError as error:
            state = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        if state:
            raise UserError(f"{path} {state}: copy it again, or run the pack command again, which replaces it.")


def check_clips(found: Any, split: str, packed: int) -> None:
    """Check the content of clips.json; a ValueError or TypeError if it is not what `to_json` makes."""
    classes = found["classes"]
    if found["split"] != split or packed != len(set(found["clips"]["id"])):
        raise ValueError(f"{split}/{CLIPS} and {MANIFEST} list other clips")
    lists = [found[key] for key in ("classes", "notes")] + found["mixtures"]
    columns = [found[key] for key in ("clips", "missing", "excluded")]
    lists += [part[name] for part in columns for name in ("id", "video")] + [found["excluded"]["why"]]
    for texts in lists:
        "".join(texts).encode()  # an error if one is no text, or could not be written
        if not isinstance(texts, list):
            raise TypeError("names are no list")
    labels = [part["label"] for part in columns] + [each for part in columns for each in part["labels"]]
    least = 0 if classes else -1
    if not all(type(label) is int and least <= label < len(classes) for numbers in labels for label in numbers):
        raise ValueError(f"{split}/{CLIPS} has a label that is no class")
    seconds = [numbers for part in columns for numbers in part["frames"]] + [[found.get("lost_frames", 0)]]
    if not all(type(second) is int and 0 <= second < 2**31 for numbers in seconds for second in numbers):
        raise ValueError(f"{split}/{CLIPS} has a frame that is no number of a second")
    if type(found["multi_label"]) is not bool:
        raise TypeError("multi_label is neither true nor false")


def _fetched(root: str, name: str, place: Remote | None, most: int = RECORD) -> Any:
    """The content of a record below the root, which may take so many bytes of memory."""
    if place is None:
        return read_json(Path(root) / name, most, EXPECTED)
    try:
        return parse_json(place.read(name, most), f"{root}/{name}", most, EXPECTED)
    except Missing as error:
        raise UserError(f"{root}/{name} is not there ({error}): expected {EXPECTED}; set data.root.") from error


def to_json(clips: ClipList, packed: Sequence[Clip], excluded: Sequence[tuple[Clip, str]]) -> dict[str, Any]:
    """A list as stored in clips.json: `packed` in the order of the chunks, without the paths of this machine."""

    def columns(rows: Sequence[Clip]) -> dict[str, list[Any]]:
        return {name: [getattr(clip, name) for clip in rows] for name in COLUMNS}

    return {
        **{key: getattr(clips, key) for key in ("split", "classes", "multi_label", "mixtures", "lost_frames", "notes")},
        "clips": columns(packed),
        "missing": columns(clips.missing),
        "excluded": {**columns([clip for clip, _ in excluded]), "why": [why for _, why in excluded]},
    }


def from_json(found: dict[str, Any], files: Sequence[str]) -> ClipList:
    """The list of clips.json; `files` names the chunk of each packed clip."""

    def rows(key: str, paths: Sequence[str] | None = None) -> list[Clip]:
        fields = [found[key][name] for name in COLUMNS]
        return [
            Clip(identifier, path, label, video, tuple(labels), tuple(frames))
            for path, identifier, video, label, labels, frames in zip(
                [""] * len(fields[0]) if paths is None else paths, *fields, strict=True
            )
        ]

    return ClipList(
        split=found["split"],
        clips=sorted(rows("clips", files), key=lambda clip: clip.id),
        classes=found["classes"],
        missing=rows("missing"),
        notes=found["notes"],
        multi_label=found["multi_label"],
        mixtures=[tuple(ids) for ids in found["mixtures"]],
        excluded=list(zip(rows("excluded"), found["excluded"]["why"], strict=True)),
        lost_frames=found.get("lost_frames", 0),  # packed before they were counted
    )
