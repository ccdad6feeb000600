"""The room that a cache may take on a disk, which several processes, or machines, fill at a time."""

from __future__ import annotations

import errno
import fcntl
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from deepavfusion.utils.console import say
from deepavfusion.utils.errors import DISK_FULL, UserError
from deepavfusion.utils.processes import sign_of_life

PARTIAL, LOCK = ".partial", ".lock"  # how the names of files end that are being fetched, and of locks
LOOK_EVERY = 0.05  # s, while another process has the lock, or takes the room
LIST_EVERY = 60.0  # s
DEAD = 60.0  # s without a sign of life of a process that fetches, until what it left is removed
BLOCK = 4096  # bytes, in multiples of which files take room
AT_ONCE = 32  # a large cache that is full is listed, and loses this fraction of what it may take
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # of a disk that has none


class Lock(NamedTuple):
    """The descriptor of a file, and whether its lock is held by this process."""

    file: int
    held: bool


class Room:
    """Takes room for files below a folder, and removes those that were used least recently where there is none.

    Args:
        folder: that holds them.
        limit: bytes that they may take; None: what the disk has.
        patience: seconds to wait for a lock.
    """

    def __init__(self, folder: Path, limit: int | None, patience: float) -> None:
        self.folder, self.limit, self.patience = folder, math.inf if limit is None else limit, patience
        self._listed = -math.inf  # when, s

    def reserve(self, file: int, size: int) -> None:
        """Take the room for an open file, so that the disk is full now or not at all.

        The lock holds how many bytes are taken at most, so that a folder of many files is not listed for each of them,
        but once a minute: locks that do not hold between machines let these overlook each other.

        Raises:
            UserError: the files may not take so much.
            OSError: the disk is full.
        """
        if self.limit == math.inf > -self._listed:
            _allocate(file, size)
            return
        told, room = False, _room(size)
        while True:
            with locked(self.folder / LOCK, self.patience) as lock:
                taken = _noted(lock) if time.monotonic() - self._listed < LIST_EVERY else None
                if taken is None or taken + room > self.limit:
                    os.utime(file)  # the time of the disk, which may be another machine's
                    taken, fetching = self._make(room, os.fstat(file).st_mtime)
                    self._listed = time.monotonic()
                if taken + room <= self.limit:
                    _note(lock, taken + room)
                    _allocate(file, size)
                    return
            if not fetching:
                raise UserError(
                    f"the cache {self.folder} may take {self.limit} bytes (data.cache_size), of which "
                    f"{max(self.limit - taken, 0)} are left for an object of {size}: set it to more, at best to "
                    "hundreds of objects."
                )
            if not told:
                say(f"the cache {self.folder} is full of what is being fetched (data.cache_size)", "yellow")
            told = True
            os.utime(file)
            sign_of_life()
            time.sleep(LOOK_EVERY)

    def rename(self, partial: Path, path: Path) -> None:
        """Give a file that has been fetched its name; under the lock, or a listing that has met the former name, and
        does not find it any more, would count nothing.

        Raises:
            FileNotFoundError: another process took it for what a dead one had left, and removed it.
        """
        if self.limit == math.inf:
            partial.replace(path)
            return
        with locked(self.folder / LOCK, self.patience):
            partial.replace(path)

    def _make(self, wanted: int, now: float) -> tuple[int, bool]:
        """Remove files until so many bytes are free, if possible; how many are taken then, and whether others fetch."""
        taken, fetching, kept = 0, False, []
        for path, status in files_of(self.folder):
            room = max(_room(status.st_size), 512 * status.st_blocks)
            partial = path.endswith(PARTIAL)
            if partial and now - status.st_mtime > DEAD:
                Path(path).unlink(missing_ok=True)
                continue
            taken += room
            fetching |= partial and status.st_size > 0
            if not partial and not os.path.basename(path).startswith("."):  # as what a network disk keeps for readers
                kept.append((status.st_atime_ns, room, path))
        if taken + wanted > self.limit:
            some = self.limit / AT_ONCE
            most = self.limit - (some if some > 4 * wanted else wanted)
            for _, room, path in sorted(kept):
                if taken <= most:
                    break
                Path(path).unlink(missing_ok=True)
                taken -= room
        return taken, fetching


@contextmanager
def locked(path: Path, patience: float) -> Iterator[Lock]:
    """Hold a lock, which ends with its process. Where the disk has none, or whoever holds it hangs, work is done twice
    rather than not at all."""
    file, began, held = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), time.monotonic(), False
    try:
        while not held and time.monotonic() - began < patience:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                held = True
            except BlockingIOError:
                sign_of_life()
                time.sleep(LOOK_EVERY)
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
                break
        yield Lock(file, held)
    finally:
        os.close(file)


def files_of(folder: str | Path) -> Iterator[tuple[str, os.stat_result]]:
    """The files of a cache, those that are being fetched among them, while others add and remove some."""
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from files_of(entry.path)
            elif not entry.name.endswith(LOCK):
                with suppress(FileNotFoundError):
                    yield entry.path, entry.stat(follow_symlinks=False)


def _noted(lock: Lock) -> int | None:
    text = os.pread(lock.file, 32, 0).strip()
    return int(text) if lock.held and text.isdigit() else None


def _note(lock: Lock, taken: int) -> None:
    """For whoever has the lock next. Without it, others may have taken room: the next one looks."""
    os.pwrite(lock.file, f"{taken if lock.held else '':<32}".encode(), 0)


def _room(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _allocate(file: int, size: int) -> None:
    if not hasattr(os, "posix_fallocate"):  # Macs lack it
        os.ftruncate(file, size)
        return
    try:
        os.posix_fallocate(file, 0, size)
    except OSError as error:
        if error.errno in DISK_FULL:
            raise
        os.ftruncate(file, size)  # on a disk that reserves nothing, others see at least how much is coming
