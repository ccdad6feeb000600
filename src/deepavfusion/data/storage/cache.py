"""Objects of a remote root, kept in a folder that all processes of a machine share, and machines may.

Nothing in it needs repair: a file that is cut, overwritten, or of data that was packed anew is noticed when it is
opened, and fetched again; what a killed process left is removed. Readers have a file open, so that it may be removed.
"""

from __future__ import annotations

import errno
import io
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
from deepavfusion.data.storage.room import LOCK, PARTIAL, Room, locked
from deepavfusion.utils.errors import DISK_FULL, UserError, full_disk
from deepavfusion.utils.processes import on_sign_of_life, sign_of_life

TRIES = 3  # of an object that arrives with other content than listed
REFUSED = 60.0  # s until a process asks again for an object that is missing or altered
USED = 60.0  # s, to which the last use of a file is known
MACHINE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # errors that are no fault of the disk
BUFFER = 2**20  # bytes


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
        self._room = Room(folder, limit, self.patience)
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
        intact = False
        try:
            intact = self._is_intact(file, wanted)
        finally:
            if not intact:
                os.close(file)
        return file if intact else None

    def _is_intact(self, file: int, wanted: Object) -> bool:
        """Whether an open file is the object; if so, it is marked as used now."""
        status = os.fstat(file)
        known = wanted.stamp == status.st_mtime or self._verified.get(wanted.name) == (
            status.st_ino,
            status.st_mtime_ns,
        )
        if status.st_size != wanted.size or not stat.S_ISREG(status.st_mode):
            return False
        if not known and _hash(file) != wanted.sha256:
            return False
        if not known or (self.limit is not None and time.time() - status.st_atime > USED):
            self._mark(file, wanted)
        return True

    def _fetched(self, wanted: Object) -> int:
        since, why = self._refused.get(wanted.name, (0.0, None))
        if why is not None and time.monotonic() - since < REFUSED:
            raise why
        path, began = self.folder / wanted.name, time.monotonic()
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.with_name(path.name + LOCK), self.patience):
            file = self._kept(wanted)  # by now
            if time.monotonic() - began >= self.patience:  # whoever has the lock hangs, or is slow: it did not give up
                began = time.monotonic()
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
        kept = False
        try:
            self._room.reserve(file, wanted.size)
            raw = _Whole(file, "r+b", closefd=False)  # which may write less than it is given, without a word
            with on_sign_of_life(lambda: os.utime(file)), io.BufferedRandom(raw, BUFFER) as target:
                self.remote.download(wanted.name, target, wanted.size, since=began)
            intact = os.fstat(file).st_size == wanted.size and _hash(file) == wanted.sha256
            if intact:
                self._mark(file, wanted)
                with suppress(FileNotFoundError):  # taken for that of a dead process: the open file will do
                    self._room.rename(partial, path)
            kept = intact
        except Differs:  # as to its size
            pass
        finally:
            partial.unlink(missing_ok=True)
            if not kept:
                os.close(file)
        return file if kept else None

    def _mark(self, file: int, wanted: Object) -> None:
        """Note that a file is intact, and used now."""
        with suppress(PermissionError):  # of another user
            os.utime(file, (time.time(), wanted.stamp))
        status = os.fstat(file)
        if status.st_mtime != wanted.stamp:
            self._verified[wanted.name] = status.st_ino, status.st_mtime_ns

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
