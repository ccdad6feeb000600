"""Where packed data is written: a folder, or an address in object storage. Both end with the same files.

A chunk is written in a scratch folder and stored whole, and its record after it. So what is there after a kill is
complete wherever there is a record.
"""

from __future__ import annotations

import fcntl
import json
import queue
import shutil
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import IO, Any, Protocol

from deepavfusion.data.storage.remote import Missing, Remote, remote
from deepavfusion.data.storage.settings import StorageSettings
from deepavfusion.utils.addresses import is_remote
from deepavfusion.utils.errors import UserError, full_disk_named
from deepavfusion.utils.files import own_folder, regular_file, sync, write_whole
from deepavfusion.utils.reading import RECORD, parse_json, read_json

EXPECTED = "what packing wrote (else choose another output)"
WAITING = 2  # chunks on this disk that wait for their upload, besides the one that is uploaded


class Destination(Protocol):
    """Names are relative to it, with slashes."""

    def check(self, folders: Collection[str]) -> None:
        """Refuse folders that packing did not make."""

    def is_free(self) -> bool:
        """Whether nothing is there yet."""

    def claim(self, name: str, text: str) -> bool:
        """Store the plan of a pack where nothing is; False if another process was faster."""

    def hold(self, name: str, plan: dict[str, Any]) -> None:
        """From now on, store chunks only while the plan is still there."""

    def record(self, name: str) -> dict[str, Any] | None:
        """The content of a record; None: it is not there."""

    def size(self, name: str) -> int | None:
        """Bytes of a chunk; None: it is not there."""

    def scratch(self, name: str) -> Path:
        """An empty folder to write a chunk in."""

    def store(self, chunk: Path | None, name: str, record_name: str, record: dict[str, Any]) -> None:
        """Keep a chunk from its scratch folder, if it has any clips, and then its record."""

    def write(self, name: str, text: str) -> None:
        """Store a list or record."""

    def finish(self) -> None:
        """Wait until every chunk is stored."""

    def give_up(self) -> None:
        """Let threads that ask it end soon."""


@contextmanager
def destination(output: str | Path, storage: StorageSettings) -> Iterator[Destination]:
    """Where to pack.

    Args:
        output: a folder, or an address.
        storage: how the address is reached.

    Raises:
        UserError: an address that cannot be written to, or is written to by another process of this machine.
    """
    if not is_remote(output):
        yield Folder(Path(output))
        return
    place = remote(str(output), storage)
    place.check_writable()
    own, folder = own_folder()
    if not own:
        raise UserError(
            f"{folder} cannot be made, or is not a folder of this user alone: remove it, or set TMPDIR to another "
            "folder."
        )
    folder /= f"pack-{sha256(place.root.encode()).hexdigest()[:16]}"
    with _locked(folder, place.root):
        try:
            yield Bucket(place, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


class Folder:
    """A folder of this machine."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __str__(self) -> str:
        return str(self.root)

    def check(self, folders: Collection[str]) -> None:
        for folder in (self.root / name for name in folders):
            if folder.is_symlink():
                raise UserError(
                    f"{folder} is a link, and no folder that packing made; nothing was written: choose another output."
                )

    def is_free(self) -> bool:
        return not self.root.exists() or (self.root.is_dir() and not any(self.root.iterdir()))

    def claim(self, name: str, text: str) -> bool:
        self.write(name, text)
        return True

    def hold(self, name: str, plan: dict[str, Any]) -> None:
        pass

    def record(self, name: str) -> dict[str, Any] | None:
        path = self.root / name
        return _object(read_json(path, RECORD, EXPECTED), str(path)) if path.exists() else None

    def size(self, name: str) -> int | None:
        try:
            return regular_file(self.root / name).st_size
        except OSError:
            return None

    def scratch(self, name: str) -> Path:
        chunk = self.root / name
        return _emptied(chunk.with_name(f".{chunk.name}.partial"))

    def store(self, chunk: Path | None, name: str, record_name: str, record: dict[str, Any]) -> None:
        if chunk:
            sync(chunk)
            chunk.replace(self.root / name)
        self.write(record_name, json.dumps(record))

    def write(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text, durable=True)

    def finish(self) -> None:
        pass

    def give_up(self) -> None:
        pass


class Bucket:
    """An address. Chunks are uploaded while the next ones are packed; at most `WAITING` wait for it.

    Args:
        remote: the address.
        folder: of this process, for chunks that are not yet uploaded.
    """

    def __init__(self, remote: Remote, folder: Path) -> None:
        self.remote, self.folder = remote, folder
        self.jobs: queue.Queue[tuple[Path | None, str, str, str]] = queue.Queue(WAITING)
        self.error: BaseException | None = None
        self.plan: tuple[str, dict[str, Any]] | None = None
        # A daemon, so that Ctrl-C does not wait for a storage that does not answer.
        threading.Thread(target=self._upload, daemon=True, name="upload").start()

    def __str__(self) -> str:
        return self.remote.root

    @cached_property
    def sizes(self) -> dict[str, int]:
        """What is there at the start, and what was there at the end."""
        return self.remote.sizes("")

    def check(self, folders: Collection[str]) -> None:
        pass

    def is_free(self) -> bool:
        return not self.sizes

    def claim(self, name: str, text: str) -> bool:
        self.sizes[name] = len(text)
        return self.remote.create(name, text.encode())

    def hold(self, name: str, plan: dict[str, Any]) -> None:
        self.plan = name, plan
        self._check_plan()

    def _check_plan(self) -> None:
        """Two machines that pack the same store the same bytes; of two that do not, one stops here."""
        name, plan = self.plan or ("", {})
        found = self.record(name) or {}
        if any(found.get(key) != value for key, value in plan.items()):
            raise UserError(
                f"{self} is packed by another machine with other clips or settings, or its plan was removed: choose "
                "another output."
            )

    def record(self, name: str) -> dict[str, Any] | None:
        if name not in self.sizes:
            return None
        try:
            path = f"{self.remote.root}/{name}"
            return _object(parse_json(self.remote.read(name, RECORD), path, RECORD, EXPECTED), path)
        except Missing:
            return None

    def size(self, name: str) -> int | None:
        return self.sizes.get(name)

    def scratch(self, name: str) -> Path:
        return _emptied(self.folder / name.replace("/", "-"))

    def store(self, chunk: Path | None, name: str, record_name: str, record: dict[str, Any]) -> None:
        waiting = None
        if chunk:
            waiting = self.folder / f"{name.replace('/', '-')}.whole"
            chunk.replace(waiting)
        self._put((waiting, name, record_name, json.dumps(record)))

    def write(self, name: str, text: str) -> None:
        self.remote.write(name, text.encode())

    def finish(self) -> None:
        self.jobs.join()
        self._raise()
        self._check_plan()
        del self.sizes

    def give_up(self) -> None:
        self.remote.give_up()

    def _put(self, job: tuple[Path | None, str, str, str]) -> None:
        while True:
            self._raise()
            try:
                return self.jobs.put(job, timeout=0.5)
            except queue.Full:
                continue

    def _raise(self) -> None:
        if self.error:
            raise self.error

    def _upload(self) -> None:
        while True:
            chunk, name, record_name, record = self.jobs.get()
            try:
                if not self.error:
                    self._check_plan()
                    if chunk:
                        self.remote.upload(chunk, name)
                        chunk.unlink()
                    self.write(record_name, record)
            except BaseException as error:  # raised where the next chunk is stored
                self.error = error
            finally:
                self.jobs.task_done()


def _object(found: Any, path: str) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise UserError(f"{path} is not written by packing: choose another output, or remove its folder.")
    return found


def _emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    return folder


@contextmanager
def _locked(folder: Path, shown: str) -> Iterator[IO[str]]:
    """An empty folder that no other process of this machine uses; what a killed one left in it is removed."""
    with open(folder.with_suffix(".lock"), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another process on this machine is packing into {shown}: wait for it, or end it."
            ) from None
        except OSError:  # a disk without locks
            pass
        _emptied(folder).mkdir()
        with full_disk_named(folder):
            yield lock
