"""Objects of a remote root, kept in a folder that all processes of a machine share, and machines may.

Nothing in it needs repair: a file that is cut, overwritten, or of data that was packed anew is noticed when it is
opened, and fetched again; what a killed process left is removed. Readers have a file open, so that it may be removed.
"""

from __future__ import annotations

import errno
import fcntl
import io
import math
import os
import stat
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from deepavfusion.data.storage.remote import Differs, Missing, Remote
from deepavfusion.utils.console import say
from deepavfusion.utils.errors import DISK_FULL, UserError, full_disk
from deepavfusion.utils.processes import on_sign_of_life, sign_of_life

TRIES = 3  # of an object that arrives with other content than listed
REFUSED = 60.0  # s until a process asks again for an object that is missing or altered
LOOK_EVERY = 0.05  # s, while another process fetches the object, or takes the room
DEAD = 60.0  # s without a sign of life of a process that fetches, until what it left is removed
USED = 60.0  # s, to which the last use of a file is known
MACHINE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # errors that are no fault of the disk
PARTIAL, LOCK = ".partial", ".lock"
BUFFER = 2**20  # bytes
BLOCK = 4096  # bytes, in multiples of which files take room
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # of a disk that has none


class Altered(Exception):
    """An object has other content than was listed when it was packed."""


class _Whole(io.FileIO):
    """An open file whose room is taken already: it stays as long as it is while it is written anew."""

    def truncate(self, size: int | None = None) -> int:
        return self.tell()


class Object(NamedTuple):
    """Name below the root, bytes, and sha256 in hexadecimal digits."""

    name: str
    size: int
    sha256: str

    @property
    def stamp(self) -> int:
        """The time, s, that a verified file bears as that of its last change: a write to it gives it another one."""
        return 10**9 + 2 * int(self.sha256[:7], 16)  # some disks know no odd seconds


class ChunkCache:
    """A folder of objects, fetched when they are opened first: once a machine, by whichever process comes first.

    Args:
        remote: the root.
        folder: of this root.
        limit: bytes that the folder may take; the files that were used least recently are removed before room for
            another one is taken. None: no limit.
    """

    def __init__(self, remote: Remote, folder: Path, limit: int | None = None) -> None:
        self.remote, self.folder, self.limit = remote, folder, limit
        self.patience = remote.settings.patience_seconds
        self._refused: dict[str, tuple[float, Exception]] = {}
        self._verified: dict[str, tuple[int, int]] = {}  # where the disk keeps no times: inode, time of the last change
        self._swept = False
        self._thread: threading.Thread | None = None

    def open(self, wanted: Object) -> int:
        """A descriptor of the file, to be closed by the caller; it is intact, and stays so if its name is removed.

        Raises:
            Missing: the storage has no such object.
            Altered: it has other content.
            UserError: the storage cannot be reached, or the folder not be used, as when its disk is full.
            OSError: the machine has no more memory or open files.
        """
        with self._disk_named():
            file = self._kept(wanted)
            return self._fetched(wanted) if file is None else file

    def prefetch(self, wanted: Object) -> None:
        """Fetch it in a thread, unless it is there, or the thread is busy. Errors are left to whoever opens it."""
        if (self._thread and self._thread.is_alive()) or (self.folder / wanted.name).exists():
            return
        self._thread = threading.Thread(target=self._quietly, args=(wanted,), daemon=True)
        self._thread.start()

    def check(self, wanted: Object) -> None:
        """Remove the file if it has other content than its marks say, as of a disk that errs or lost its power."""
        path = self.folder / wanted.name
        with suppress(OSError):
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                intact = _hash(file) == wanted.sha256
            except OSError:  # the disk does not give it
                intact = False
            finally:
                os.close(file)
            if not intact:
                path.unlink(missing_ok=True)

    def _quietly(self, wanted: Object) -> None:
        with suppress(Exception):
            os.close(self.open(wanted))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_thread": None}

    # ---- one object

    def _kept(self, wanted: Object) -> int | None:
        """The file if it is there and intact."""
        try:
            file = os.open(self.folder / wanted.name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            return None
        status = os.fstat(file)
        seen = status.st_ino, status.st_mtime_ns
        intact = status.st_size == wanted.size and stat.S_ISREG(status.st_mode)
        known = status.st_mtime == wanted.stamp or self._verified.get(wanted.name) == seen
        if not intact or not (known or _hash(file) == wanted.sha256):
            os.close(file)
            return None
        if not known or (self.limit is not None and time.time() - status.st_atime > USED):
            self._mark(file, wanted)
        return file

    def _fetched(self, wanted: Object) -> int:
        since, why = self._refused.get(wanted.name, (0.0, None))
        if why is not None and time.monotonic() - since < REFUSED:
            raise why
        path, began = self.folder / wanted.name, time.monotonic()
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._locked(path.with_name(path.name + LOCK)):
            file = self._kept(wanted)  # by now
            try:
                for _ in range(TRIES):
                    if file is None:
                        file = self._downloaded(wanted, began)
                if file is None:
                    raise Altered(
                        f"the object has other bytes than {wanted.size} with the sha256 {wanted.sha256[:16]}…, which "
                        f"packed.json lists, {TRIES} times: upload it again, or the whole of the packed data"
                    )
            except (Missing, Altered) as error:
                self._refused[wanted.name] = time.monotonic(), error
                raise
        return file

    def _downloaded(self, wanted: Object, began: float) -> int | None:
        """The file, fetched; None if it has other content."""
        path = self.folder / wanted.name
        partial = path.with_name(f"{path.name}.{uuid.uuid4().hex[:12]}{PARTIAL}")
        file = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        intact = False
        try:
            self._reserve(file, wanted.size)
            raw = _Whole(file, "r+b", closefd=False)  # which may write less than it is given, without a word
            with on_sign_of_life(lambda: os.utime(file)), io.BufferedRandom(raw, BUFFER) as target:
                self.remote.download(wanted.name, target, wanted.size, since=began)
            intact = os.fstat(file).st_size == wanted.size and _hash(file) == wanted.sha256
            if intact:
                self._mark(file, wanted)
                with suppress(FileNotFoundError):  # taken for that of a dead process: the open file will do
                    partial.replace(path)
        except Differs:  # as to its size
            pass
        finally:
            partial.unlink(missing_ok=True)
            if not intact:
                os.close(file)
        return file if intact else None

    def _mark(self, file: int, wanted: Object) -> None:
        """Note that a file is intact, and used now."""
        with suppress(PermissionError):  # of another user
            os.utime(file, (time.time(), wanted.stamp))
        status = os.fstat(file)
        if status.st_mtime != wanted.stamp:
            self._verified[wanted.name] = status.st_ino, status.st_mtime_ns

    # ---- room

    def _reserve(self, file: int, size: int) -> None:
        """Take the room for a file, so that the disk is full now or not at all."""
        if self.limit is None and self._swept:
            _allocate(file, size)
            return
        told = False
        while True:
            with self._locked(self.folder / LOCK) as lock:
                os.utime(lock)  # the time of the disk, which may be another machine's
                free, fetching = self._make_room(_room(size), os.fstat(lock).st_mtime)
                self._swept = True
                if free >= _room(size):
                    _allocate(file, size)
                    return
            if not fetching:
                raise UserError(
                    f"the cache {self.folder} may take {self.limit} bytes (data.cache_size), of which {max(free, 0)} "
                    f"are left for an object of {size}: set it to more, at best to hundreds of objects."
                )
            if not told:
                say(f"the cache {self.folder} is full of what is being fetched (data.cache_size)", "yellow")
            told = True
            os.utime(file)
            sign_of_life()
            time.sleep(LOOK_EVERY)

    def _make_room(self, wanted: int, now: float) -> tuple[float, bool]:
        """Remove files until so many bytes are free, if that is possible; how many are, and whether others fetch."""
        free, fetching, kept = math.inf if self.limit is None else self.limit, False, []
        for path, status in _files(self.folder):
            room = max(_room(status.st_size), 512 * status.st_blocks)
            if path.name.endswith(PARTIAL) and now - status.st_mtime > DEAD:
                path.unlink(missing_ok=True)
                continue
            free -= room
            if path.name.endswith(PARTIAL):
                fetching |= status.st_size > 0
            elif not path.name.startswith(".") and not path.name.endswith(LOCK):
                kept.append((status.st_atime_ns, room, path))
        for _, room, path in sorted(kept):
            if free >= wanted:
                break
            path.unlink(missing_ok=True)
            free += room
        return free, fetching

    # ---- locks

    @contextmanager
    def _locked(self, path: Path) -> Iterator[int]:
        """Hold a lock, which ends with its process. Where the disk has none, or whoever holds it hangs, work is done
        twice rather than not at all."""
        file, began = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), time.monotonic()
        try:
            while time.monotonic() - began < self.patience:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    sign_of_life()
                    time.sleep(LOOK_EVERY)
                except OSError as error:
                    if error.errno not in NO_LOCKS:
                        raise
                    break
            yield file
        finally:
            os.close(file)

    @contextmanager
    def _disk_named(self) -> Iterator[None]:
        """No clip is to blame for the disk."""
        try:
            yield
        except OSError as error:
            if error.errno in MACHINE:
                raise
            disk = full_disk(self.folder) if error.errno in DISK_FULL else ""
            remedy = "choose another place (data.cache_dir=<folder>)"
            if error.errno in DISK_FULL:
                remedy = f"free space there, {remedy}, or let the cache take less (data.cache_size, such as 100GB)"
            raise UserError(
                f"what was fetched from {self.remote.root} could not be kept in its cache {self.folder} "
                f"({error.strerror}{f'; full: {disk}' if disk else ''}): {remedy}."
            ) from error


def _files(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                yield Path(place, name), os.lstat(os.path.join(place, name))


def _room(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _allocate(file: int, size: int) -> None:
    try:
        os.posix_fallocate(file, 0, size)
    except OSError as error:
        if error.errno in DISK_FULL:
            raise
        os.ftruncate(file, size)  # on a disk that reserves nothing, others see at least how much is coming


def _hash(file: int) -> str:
    """Of an open file, without moving in it."""
    found, at = sha256(), 0
    while block := os.pread(file, 2**20, at):
        found.update(block)
        at += len(block)
        sign_of_life()
    return found.hexdigest()


def cache_of(remote: Remote, cache_dir: str | None) -> Path:
    """Folder for what is fetched from a remote root; another one where the same address means another storage."""
    base = Path(cache_dir) if cache_dir else Path.home() / ".cache" / "deepavfusion"
    return base / sha256(remote.place.encode()).hexdigest()[:16]
