"""One remote root: small objects, chunks, uploads. Every request is made again until the storage answers.

A storage that fails is asked again, with growing pauses, for `patience_seconds` since it last gave anything. Only what
no waiting can fix is an error at once: no or wrong credentials, no such bucket, a certificate that is not trusted. Once
the storage has answered, these count as its faults, too, since keys expire and are renewed.
"""

from __future__ import annotations

import io
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeVar

from deepavfusion.data.storage.faults import Answer, Differs, Exists, Missing, Notices, Patience, Unreachable, spoken
from deepavfusion.data.storage.settings import StorageSettings
from deepavfusion.data.storage.transfer import OwnError, Transfer
from deepavfusion.utils.errors import UserError

__all__ = ["Differs", "Missing", "Remote", "Unreachable", "remote"]

T = TypeVar("T")
TICK = 0.5  # s between signs of life
MISSING_ASKS = 2  # until an object counts as missing
DENIED_ASKS = 6  # until one counts as missing that is denied while another may be read: about 30 s
INSTEAD = {  # schemes that litdata knows, but not without its own platform, or without an account
    "r2": "s3://<bucket>/<folder> with data.storage.endpoint_url=https://<account>.r2.cloudflarestorage.com",
    "azure": "s3://<bucket>/<folder> of a gateway with this interface, or a folder that the container is mounted at",
}


class Backend(Protocol):
    """The client of a kind of storage, of one process."""

    def __init__(self, root: str, settings: StorageSettings) -> None: ...
    def fetch(self, name: str, transfer: Transfer) -> None: ...
    def put(self, name: str, path: Path) -> None: ...
    def write(self, name: str, content: bytes, new: bool = False) -> None: ...
    def sizes(self, prefix: str) -> Iterator[tuple[str, int]]: ...
    def probe(self, name: str) -> None: ...
    @property
    def endpoint(self) -> str: ...
    @classmethod
    def explain(cls, error: BaseException) -> Answer | None: ...


class Remote:
    """What lies below one address. It can be pickled and forked; each process makes its own client.

    Args:
        root: the address.
        settings: of the storage.
        backend: makes the client.
        waiting: called at least once a second during every request and pause, from another thread.
    """

    def __init__(
        self,
        root: str,
        settings: StorageSettings,
        backend: type[Backend],
        waiting: Callable[[], None] | None = None,
    ) -> None:
        self.root, self.settings, self.waiting = root.rstrip("/"), settings, waiting
        self.answered: set[bool] = set()  # ever, when it was read (False) and written to (True)
        self.known = ""  # the object that was read last
        self.given_up = False
        self._make, self._notices = backend, Notices()
        self._made: tuple[int, Backend] | None = None  # process, client

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_made": None}

    # ---- requests

    def read(self, name: str, most: int) -> bytes:
        """A small object.

        Args:
            name: below the root.
            most: bytes.

        Raises:
            Missing, Unreachable: see faults.py.
            UserError: it is larger, or the storage refuses.
        """
        content = io.BytesIO()
        try:
            self._fetch(name, content, most, exact=False)
        except Differs:
            raise UserError(
                f"{self.root}/{name} has more than {most} bytes, expected at most so many: set the right address, or "
                "copy the data there again."
            ) from None
        return content.getvalue()

    def download(
        self,
        name: str,
        file: BinaryIO,
        size: int,
        progress: Callable[[int], None] = lambda done: None,
        since: float | None = None,
    ) -> None:
        """Write an object into an open file, from its present position.

        Args:
            name: below the root.
            file: binary, seekable.
            size: of the object, bytes.
            progress: called with the bytes written so far.
            since: of the monotonic clock, from when on the patience counts.

        Raises:
            Missing, Unreachable: see faults.py.
            Differs: the object has another size.
            OSError: the file cannot be written.
        """
        self._fetch(name, file, size, exact=True, progress=progress, since=since)

    def check_writable(self) -> None:
        """Refuse a kind of storage that is only read, before anything is asked of it."""
        from deepavfusion.data.storage.read_only import ReadOnly, read_only

        if issubclass(self._make, ReadOnly):
            raise read_only(self.root)

    def upload(self, path: Path, name: str) -> None:
        """Store a file; nothing, or all of it, is there at any time."""
        self._ask(name, lambda backend, _: backend.put(name, path), writes=True)

    def write(self, name: str, content: bytes) -> None:
        """Store a small object."""
        self._ask(name, lambda backend, _: backend.write(name, content), writes=True)

    def create(self, name: str, content: bytes) -> bool:
        """Store a small object unless there is one, as far as the service knows such a condition; whether it did."""
        try:
            self._ask(name, lambda backend, _: backend.write(name, content, new=True), writes=True)
        except Exists:
            return False
        return True

    def sizes(self, prefix: str) -> dict[str, int]:
        """Names below the root that begin with `prefix`, and their bytes."""
        return self._ask(prefix, lambda backend, _: dict(backend.sizes(prefix)))

    def give_up(self) -> None:
        """Let requests of other threads end, which would ask again until their patience ends."""
        self.given_up = True

    def _fetch(
        self,
        name: str,
        file: BinaryIO,
        size: int,
        exact: bool,
        progress: Callable[[int], None] = lambda done: None,
        since: float | None = None,
    ) -> None:
        transfer: Transfer | None = None

        def fetch(backend: Backend, patience: Patience) -> None:
            nonlocal transfer

            def moved(done: int) -> None:
                if transfer and transfer.gained():
                    patience.progress()
                progress(done)

            transfer = transfer or Transfer(file, size, exact, moved)
            backend.fetch(name, transfer)
            transfer.finish()

        self._ask(name, fetch, since)
        self.known = name

    @property
    def place(self) -> str:
        """The address, and the service that it belongs to unless that is the one of its scheme."""
        return " ".join(filter(None, (self.root, self._backend().endpoint)))

    # ---- until it answers

    def _ask(
        self,
        name: str,
        request: Callable[[Backend, Patience], T],
        since: float | None = None,
        writes: bool = False,
    ) -> T:
        patience, missing, denied = Patience(self.settings.patience_seconds, since), 0, 0
        with self._alive():
            while True:
                try:
                    result = request(self._backend(), patience)
                except OwnError as error:
                    raise error.__cause__ or error from None
                except Exception as error:
                    answer = self._make.explain(error)
                    if answer is None:
                        raise
                else:
                    self._notices.healed(self.root)
                    self.answered.add(writes)
                    return result
                if answer.kind in ("denied", "refused"):
                    self._made = None  # credentials may have been renewed: the next client reads them
                if answer.kind == "missing":
                    missing += 1
                elif answer.kind == "denied" and self.known not in ("", name) and self._readable(self.known):
                    denied += 1
                if missing >= MISSING_ASKS or denied >= DENIED_ASKS:
                    raise Missing(f"{self.root}/{name} ({answer.words})") from None
                if answer.kind in ("denied", "refused") and writes not in self.answered:
                    raise UserError(f"storage {self.root} refuses ({answer.words}): {answer.remedy}.") from None
                self._pause(patience, answer)

    def _pause(self, patience: Patience, answer: Answer) -> None:
        pause = patience.pause()
        if pause is None or self.given_up:
            raise Unreachable(
                f"storage {self.root} has not answered for {spoken(patience.seconds)} ({answer.words}): "
                f"{answer.remedy}, then give the same command again; data.storage.patience_seconds is the time waited."
            ) from None
        if answer.kind != "missing":
            self._notices.failing(self.root, answer.words, patience.seconds)
        until = time.monotonic() + pause
        while not self.given_up and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, TICK))

    def _readable(self, name: str) -> bool:
        """Whether an object that was read before can be read now."""
        try:
            self._backend().probe(name)
        except Exception as error:
            if self._make.explain(error) is None:
                raise
            return False
        return True

    def _backend(self) -> Backend:
        made = self._made  # another thread may take it away
        if made is None or made[0] != os.getpid():  # a client is not shared with forked processes
            made = self._made = os.getpid(), self._make(self.root, self.settings)
        return made[1]

    @contextmanager
    def _alive(self) -> Iterator[None]:
        """Call `waiting` all the time, since a request blocks."""
        if self.waiting is None:
            yield
            return
        ended, waiting = threading.Event(), self.waiting

        def tick() -> None:
            waiting()
            while not ended.wait(TICK):
                waiting()

        # In the context of this thread, which says whose signs of life these are.
        thread = threading.Thread(target=copy_context().run, args=(tick,), daemon=True, name="storage")
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def remote(root: str, settings: StorageSettings, waiting: Callable[[], None] | None = None) -> Remote:
    """The storage of an address, by its scheme.

    Raises:
        UserError: an address of another kind.
    """
    from deepavfusion.data.storage.folder import Folder
    from deepavfusion.data.storage.read_only import Google, HuggingFace
    from deepavfusion.data.storage.s3 import S3, check_endpoint, parts

    check_endpoint(settings.endpoint_url)
    kinds: dict[str, type[Backend]] = {"s3": S3, "gs": Google, "hf": HuggingFace, "local": Folder}
    scheme = root.split(":", 1)[0]
    if scheme not in kinds:
        instead = INSTEAD.get(scheme, "s3://<bucket>/<folder>, gs://, hf://, or a folder")
        raise UserError(f"{root} is no address that is read from; expected {instead}: set it so.")
    if scheme in ("s3", "gs"):
        parts(root)
    return Remote(root, settings, kinds[scheme], waiting)
