"""Checks of packed data in object storage: that it answers, what is there, how fast, and the room of the cache."""

from __future__ import annotations

import shutil
import time
from contextlib import suppress
from dataclasses import replace
from typing import Any, cast

from deepavfusion.data.datamodule import ClipDataModule
from deepavfusion.data.storage.cache import ChunkCache
from deepavfusion.data.storage.remote import Differs, Missing, Remote
from deepavfusion.data.storage.room import files_of
from deepavfusion.data.stores.packed import PackedStore
from deepavfusion.utils.errors import UserError

GB = 10**9
PATIENCE = 10.0  # s that the storage is asked again
SECONDS = 10.0  # s that a chunk is downloaded for at most


def remote_dataset(data: ClipDataModule, min_speed: float) -> str:
    """What the splits in use hold, and that it is downloaded at `min_speed` MB/s or more into a cache with room.

    Raises:
        UserError: it cannot be read, is slow, or the cache has no room.
    """
    storage = data.kept.storage
    data.kept = replace(data.kept, storage=replace(storage, patience_seconds=min(PATIENCE, storage.patience_seconds)))
    counts, size, stores = [], 0, list[PackedStore]()
    for split in data.splits:
        clips, store = data.read(split)
        assert isinstance(store, PackedStore), store
        counts.append(f"{split} {len(clips.clips)} of {clips.listed} clips")
        size += sum(chunk.bytes for chunk in store.chunks.values())
        stores.append(store)
    cache, said = stores[0].cache, [f"{data.root}: {', '.join(counts)}, {size / GB:.3g} GB"]
    assert cache is not None, data.root
    chunks = [(f"{store.split}/{chunk.file}", chunk.bytes) for store in stores for chunk in store.chunks.values()]
    if chunks:
        said.append(f"a chunk comes at {_rate(cache.remote, *chunks[0], min_speed):.0f} MB/s")
    return "; ".join([*said, _room(cache, size)])


def _rate(place: Remote, name: str, size: int, least: float) -> float:
    """MB/s at which a chunk is downloaded, or the beginning of it."""
    begin, done = time.perf_counter(), 0

    def progress(now: int) -> None:
        nonlocal done
        done = now
        if time.perf_counter() - begin > SECONDS:
            raise _EnoughError

    with suppress(_EnoughError):
        try:
            place.download(name, cast(Any, _Nowhere()), size, progress)
        except Missing as error:
            raise UserError(
                f"{error} is not there: copy it again, and check all with `python src/prepare.py command=verify`."
            ) from None
        except Differs as error:
            raise UserError(
                f"{place.root}/{name} {str(error).replace('it has', 'has', 1)}: copy it again, and check all with "
                "`python src/prepare.py command=verify`."
            ) from None
    speed = done / 1e6 / (time.perf_counter() - begin)
    if speed < least and size > 1e6:
        raise UserError(
            f"{place.root} is downloaded at {speed:.1f} MB/s, expected {least:g} or more: use a storage near this "
            "machine, or copy the data to a local disk and set data.root."
        )
    return speed


class _EnoughError(Exception):
    pass


class _Nowhere:
    """An open file that keeps nothing."""

    def tell(self) -> int:
        return 0

    def seek(self, _: int) -> int:
        return 0

    def truncate(self) -> int:
        return 0

    def write(self, block: bytes) -> int:
        return len(block)


def _room(cache: ChunkCache, size: int) -> str:
    """That the cache can hold the splits, or as much as it is allowed to."""
    folder = cache.folder
    kept = sum(status.st_size for _, status in files_of(folder))
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free, needed = shutil.disk_usage(existing).free, min(size, cache.limit or size) - kept
    if free < needed:
        fits = max(1, int(0.9 * (free + kept) / GB))
        raise UserError(
            f"{existing} has {free / GB:.1f} GB free, the cache of {cache.remote.root} takes {needed / GB:.1f} more: "
            f"set data.cache_dir=<folder on another disk>, or data.cache_size={fits}GB."
        )
    return f"cache {folder}: {free / GB:.0f} GB free, {kept / GB:.3g} GB there"
