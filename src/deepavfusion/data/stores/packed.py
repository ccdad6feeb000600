"""Packed data: a dataset's clips in litdata chunks, ready to read.

<root>/packed.json                what was packed, how, with counts and checksums; its presence says it is complete
<root>/<split>/clips.json         the list: every packed clip with classes and video; missing and excluded clips
<root>/<split>/index.json         litdata's
<root>/<split>/chunk-<n>.bin      items in the order of clips.json

An item holds JPEG frames on a grid of 0.5 s, mono audio at 16 kHz in int16 and, for annotated frames, PNG masks.
The root is a folder, or an address in object storage whose chunks are kept in a cache (`storage/cache.py`).

The chunks have litdata's format, but are read without its reader, whose thread of downloads ends for good at the first
error, and whose processes remove files under each other. Here, an open clip is an open file: nothing is mapped, and
only the bytes that are asked for are read.
"""

from __future__ import annotations

import io
import os
import stat
import struct
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from deepavfusion.data.storage.cache import MACHINE, Altered, ChunkCache, Object
from deepavfusion.data.storage.remote import Missing
from deepavfusion.data.stores.store import Frame
from deepavfusion.media.stills import read_image, read_mask
from deepavfusion.transforms.audio import SAMPLE_RATE
from deepavfusion.types import Clip
from deepavfusion.utils.addresses import is_remote
from deepavfusion.utils.errors import DecodeError

FORMAT = 1  # of the files; increase it when they change
MANIFEST, CLIPS, INDEX = "packed.json", "clips.json", "index.json"
INT16 = 32767  # the sample value of 1.0
KINDS: dict[str, type] = {  # of the parts of an item, in their order
    **dict.fromkeys(("id", "jpegs", "masks", "sound"), bytes),
    "times": np.float64,
    **dict.fromkeys(("spans", "mask_seconds", "mask_spans", "labels", "shape"), np.int64),
    "ends": np.float64,
}

Item = dict[str, Any]
"""What a chunk holds of a clip; `PackedClip` reads it, pack.py writes it.

id, jpegs, masks, sound: bytes; times [N] float64: of the frames, s; spans [2N] int64: begin and end of each
frame in `jpegs`; mask_seconds [M] and mask_spans [2M] int64; labels [K] int64; shape [2] int64: height and width of
the original frames; ends [2] float64: where audio and video end, s.
"""


class Chunk(NamedTuple):
    """A file of one split: `items` clips, of which the first is number `first` of the split."""

    file: str
    items: int
    bytes: int
    sha256: str
    first: int


class Part:
    """Bytes of an open file, read when a slice of them is taken; a `DecodeError` if the file ends before them."""

    def __init__(self, file: int, begin: int, size: int, path: str) -> None:
        self.file, self.begin, self.size, self.path = file, begin, size, path

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, span: slice) -> bytes:
        begin, end, _ = span.indices(self.size)
        try:
            return _read(self.file, self.begin + begin, max(end - begin, 0))
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno in MACHINE:
                raise
            raise DecodeError(self.path, "undecodable", f"it cannot be read: {error}") from error


class PackedClip:
    """An item, as an open clip."""

    def __init__(self, item: Item, path: str) -> None:
        self.item, self.path = item, path
        self.audio_end, self.video_end = map(float, item["ends"])
        self.times: NDArray[np.float64] = item["times"]

    @property
    def frames_at_once(self) -> int:
        return 64  # they were made small

    def frames(self, times: Sequence[float]) -> list[Frame]:
        height, width = map(int, self.item["shape"])
        nearest = [int(np.abs(self.times - time).argmin()) for time in times]
        spans, jpegs = self.item["spans"].reshape(-1, 2), self.item["jpegs"]
        files = (io.BytesIO(jpegs[begin:end]) for begin, end in spans[nearest])
        return [Frame(read_image(file, self.path), height, width) for file in files]

    def frame_times(self) -> list[float]:
        return self.times.tolist()

    def audio(self, start: float, seconds: float) -> Tensor:
        begin, end = round(start * SAMPLE_RATE), round((start + seconds) * SAMPLE_RATE)
        sound = self.item["sound"][2 * max(begin, 0) : 2 * max(end, 0)]
        samples = np.frombuffer(sound, np.int16).astype(np.float32) / INT16
        return torch.from_numpy(np.concatenate([np.zeros(max(-begin, 0), np.float32), samples]))

    def mask(self, second: int) -> Image.Image:
        (found,) = np.nonzero(self.item["mask_seconds"] == second)
        if not len(found):
            raise DecodeError(self.path, "bad_mask", f"there is no mask of second {second}")
        begin, end = self.item["mask_spans"][2 * found[0] : 2 * found[0] + 2]
        return read_mask(io.BytesIO(self.item["masks"][begin:end]), self.path)


class PackedStore:
    """The chunks of one split.

    Args:
        root: of the packed data.
        split: its name.
        places: clip id -> number of its item.
        chunks: of the split.
        cache: of a remote root.
    """

    def __init__(
        self,
        root: str,
        split: str,
        places: Mapping[str, int],
        chunks: Sequence[Chunk],
        cache: ChunkCache | None = None,
    ) -> None:
        self.root, self.split, self.places, self.cache = root, split, places, cache
        self.chunks = {chunk.file: chunk for chunk in chunks}

    @contextmanager
    def open(self, clip: Clip) -> Iterator[PackedClip]:
        chunk = self._chunk(clip.path)
        try:
            file = self._opened(chunk)
        except Missing as error:
            raise DecodeError(clip.path, "missing", str(error)) from error
        except FileNotFoundError as error:
            raise DecodeError(clip.path, "missing", "the chunk is not there") from error
        except (Altered, OSError) as error:
            if isinstance(error, OSError) and error.errno in MACHINE:
                raise
            raise DecodeError(clip.path, "undecodable", str(error)) from error
        try:
            yield PackedClip(self._item(file, chunk, clip), clip.path)
        finally:
            os.close(file)

    def blocks(self, clips: Sequence[Clip]) -> list[list[int]]:
        placed = sorted(range(len(clips)), key=lambda n: self.places[clips[n].id])
        return [list(block) for _, block in groupby(placed, key=lambda n: clips[n].path)]  # of one chunk

    @property
    def room(self) -> int:
        if self.cache is None or self.cache.limit is None:
            return 0 if self.cache is None else sys.maxsize
        largest = max((chunk.bytes for chunk in self.chunks.values()), default=1)
        return self.cache.limit // largest

    def prefetch(self, clip: Clip) -> None:
        if self.cache is not None:
            self.cache.prefetch(self._object(self._chunk(clip.path)))

    def again(self, path: str) -> bool:
        names = [name for name in path.removeprefix(f"{self.root}/{self.split}/").split("/") if name in self.chunks]
        if self.cache is None or not names:
            return False
        self.cache.check(self._object(self.chunks[names[0]]))  # it may lie, or have been removed while it was read
        return True

    def _chunk(self, path: str) -> Chunk:
        return self.chunks[path.rpartition("/")[2]]

    def _object(self, chunk: Chunk) -> Object:
        return Object(f"{self.split}/{chunk.file}", chunk.bytes, chunk.sha256)

    def _opened(self, chunk: Chunk) -> int:
        if self.cache is not None:
            return self.cache.open(self._object(chunk))
        # A named pipe in its place would be waited for, and is noticed when it is read.
        return os.open(Path(self.root, self.split, chunk.file), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)

    def _item(self, file: int, chunk: Chunk, clip: Clip) -> Item:
        try:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise ValueError("it is no regular file")
            return _checked(_parts(file, chunk, self.places[clip.id] - chunk.first, clip.path), clip.id)
        except (OSError, ValueError, struct.error) as error:
            if isinstance(error, OSError) and error.errno in MACHINE:
                raise
            raise DecodeError(clip.path, "undecodable", " ".join(str(error).split())) from error


def _parts(file: int, chunk: Chunk, place: int, path: str) -> Item:
    """An item of an open chunk.

    A chunk has the number of its items, where each begins and where the last ends; an item the sizes of its parts, and
    the parts. All numbers are uint32.
    """
    (items,) = struct.unpack("<I", _read(file, 0, 4))
    begin, end = struct.unpack("<II", _read(file, 4 + 4 * place, 8))
    head = 4 * len(KINDS)
    if items != chunk.items or not 4 * (2 + items) <= begin <= end - head <= chunk.bytes - head:
        raise ValueError(f"item {place} lies at {begin}…{end} of {chunk.bytes} bytes, or the chunk has other items")
    sizes = struct.unpack(f"<{len(KINDS)}I", _read(file, begin, head))
    if begin + head + sum(sizes) != end:
        raise ValueError(f"the parts of item {place} take {sum(sizes)} bytes, expected {end - begin - head}")
    item: Item = {}
    at = begin + head
    for (name, kind), size in zip(KINDS.items(), sizes, strict=True):
        item[name] = Part(file, at, size, path) if kind is bytes else np.frombuffer(_read(file, at, size), kind)
        at += size
    return item


def _read(file: int, begin: int, size: int) -> bytes:
    """So many bytes of an open file; a ValueError if it ends before."""
    found = os.pread(file, size, begin)
    while len(found) < size:  # one call gives 2 GB at most, and less on some network disks
        more = os.pread(file, size - len(found), begin + len(found))
        if not more:
            raise ValueError(f"it ends after {begin + len(found)} bytes, expected {begin + size}")
        found += more
    return found


def _checked(item: Item, identifier: str) -> Item:
    """The item of a clip; a ValueError if it is another's, or its parts do not fit each other."""
    if item["id"][:] != identifier.encode():
        raise ValueError(f"the chunk holds another clip in the place of {identifier}")
    for spans, parts, times in (("spans", "jpegs", "times"), ("mask_spans", "masks", "mask_seconds")):
        bounds = np.array([0, *item[spans], len(item[parts])])
        if len(bounds) != 2 * len(item[times]) + 2 or bounds.min() < 0 or bounds.max() > len(item[parts]):
            raise ValueError(f"its {spans} lie outside its {parts}")
    height, width = map(int, item["shape"])
    numbers = np.concatenate([item["times"], item["ends"]])
    if not len(item["times"]) or height < 1 or width < 1 or len(item["sound"]) % 2 or not np.isfinite(numbers).all():
        raise ValueError("its numbers are out of range")
    return item


def is_packed(root: str | os.PathLike[str]) -> bool:
    """Whether a data root holds chunks instead of the files as published."""
    return is_remote(root) or (Path(root) / MANIFEST).is_file()
