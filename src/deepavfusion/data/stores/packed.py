"""Packed data: a dataset's clips in litdata chunks, ready to read.

<root>/packed.json                what was packed, how, with counts and checksums; its presence says it is complete
<root>/<split>/clips.json         the list: every packed clip with classes and video; missing and excluded clips
<root>/<split>/index.json         litdata's
<root>/<split>/chunk-<n>.bin      items in the order of clips.json

An item holds JPEG frames on a grid of 0.5 s, mono audio at 16 kHz in int16 and, for annotated frames, PNG masks.
The root is a folder or what litdata reads from: s3://…, gs://…, or local:<folder>, which caches like those.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from litdata import StreamingDataset
from litdata.streaming.resolver import Dir
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from deepavfusion.data.stores.store import Frame
from deepavfusion.media.stills import read_image, read_mask
from deepavfusion.transforms.audio import SAMPLE_RATE
from deepavfusion.types import Clip
from deepavfusion.utils.addresses import is_remote
from deepavfusion.utils.errors import DecodeError

FORMAT = 1  # of the files; increase it when they change
MANIFEST, CLIPS, INDEX = "packed.json", "clips.json", "index.json"
INT16 = 32767  # the sample value of 1.0

Item = dict[str, Any]
"""What a chunk holds of a clip; `PackedClip` reads it, pack.py writes it.

id, jpegs, masks, sound: bytes; times [N] float64: of the frames, s; spans [2N] int64: begin and end of each
frame in `jpegs`; mask_seconds [M] and mask_spans [2M] int64; labels [K] int64; shape [2] int64: height and width of
the original frames; ends [2] float64: where audio and video end, s.
"""


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
        waveform = np.frombuffer(self.item["sound"], np.int16)
        begin, end = round(start * SAMPLE_RATE), round((start + seconds) * SAMPLE_RATE)
        samples = waveform[max(begin, 0) : max(end, 0)].astype(np.float32) / INT16
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
        cache_dir: where chunks of a remote root are kept; None: litdata's default.
    """

    def __init__(self, root: str, split: str, places: dict[str, int], cache_dir: str | None = None) -> None:
        self.root, self.split, self.places, self.cache_dir = root, split, places, cache_dir
        self._opened: tuple[int, StreamingDataset] | None = None  # the process that opened it, and the dataset

    @contextmanager
    def open(self, clip: Clip) -> Iterator[PackedClip]:
        try:
            item = _checked(self._dataset()[self.places[clip.id]], clip.id)
        except Exception as error:  # a damaged chunk raises nearly anything: OSError, ValueError, KeyError, …
            reason = "missing" if isinstance(error, FileNotFoundError) else "undecodable"
            raise DecodeError(clip.path, reason, " ".join(str(error).split())) from error
        yield PackedClip(item, clip.path)

    def blocks(self, clips: Sequence[Clip]) -> list[list[int]]:
        placed = sorted(range(len(clips)), key=lambda n: self.places[clips[n].id])
        return [list(block) for _, block in groupby(placed, key=lambda n: clips[n].path)]  # of one chunk

    def _dataset(self) -> StreamingDataset:
        if self._opened is None or self._opened[0] != os.getpid():  # files opened before a fork are not shared
            folder, remote = f"{self.root}/{self.split}", is_remote(self.root)
            place = Dir(path=str(cache_of(self.root, self.cache_dir) / self.split), url=folder) if remote else folder
            dataset = StreamingDataset(place, batch_decode=0)
            if remote:
                dataset[:0]  # creates its cache, which the next line needs
                dataset.on_demand_bytes = False  # fetch whole chunks: every epoch reads all of their items
            self._opened = (os.getpid(), dataset)
        return self._opened[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}


def _checked(item: Item, identifier: str) -> Item:
    """The item of a clip; a ValueError if it is another's, or its parts do not fit each other."""
    if bytes(item["id"]).decode() != identifier:
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


def cache_of(root: str, cache_dir: str | None) -> Path:
    """Folder for what is fetched from a remote root."""
    base = Path(cache_dir) if cache_dir else Path.home() / ".cache" / "deepavfusion"
    return base / sha256(root.encode()).hexdigest()[:16]
