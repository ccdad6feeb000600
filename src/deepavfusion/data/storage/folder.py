"""A folder in place of a storage, for trials: local:<folder>."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from deepavfusion.data.storage.faults import Answer, Exists
from deepavfusion.data.storage.settings import StorageSettings
from deepavfusion.data.storage.transfer import Transfer
from deepavfusion.utils.files import regular_file, whole

BLOCK = 2**20  # bytes


class Folder:
    """Files below a folder; one that is gone as a whole, as a disk that is not mounted, may come back."""

    def __init__(self, root: str, settings: StorageSettings) -> None:
        self.folder = Path(root.removeprefix("local:"))

    def fetch(self, name: str, transfer: Transfer) -> None:
        path = self._file(name)
        version = str(path.stat().st_mtime_ns)
        if not transfer.done or transfer.version != version:
            transfer.restart(version)
        with open(path, "rb") as file:
            file.seek(transfer.done)
            while block := file.read(BLOCK):
                transfer.take(block)

    def put(self, name: str, path: Path) -> None:
        with self._target(name) as partial:
            shutil.copyfile(path, partial)

    def write(self, name: str, content: bytes, new: bool = False) -> None:
        if new and (self.folder / name).exists():
            raise Exists
        with self._target(name) as partial:
            partial.write_bytes(content)

    def _target(self, name: str):  # type: ignore[no-untyped-def]
        target = self.folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        return whole(target, durable=True)

    def sizes(self, prefix: str) -> Iterator[tuple[str, int]]:
        for path in self.folder.rglob("*"):
            if path.is_file() and (name := path.relative_to(self.folder).as_posix()).startswith(prefix):
                yield name, path.stat().st_size

    @property
    def endpoint(self) -> str:
        return ""

    def probe(self, name: str) -> None:
        self._file(name)

    def _file(self, name: str) -> Path:
        try:
            regular_file(self.folder / name)
        except FileNotFoundError:
            if self.folder.is_dir():
                raise _NoFile from None
            raise
        return self.folder / name

    @classmethod
    def explain(cls, error: BaseException) -> Answer | None:
        if isinstance(error, _NoFile):
            return Answer("missing", "there is no such file")
        if isinstance(error, OSError):
            return Answer("refused", f"{error.strerror or error}", "expected a folder that can be read")
        return None


class _NoFile(Exception):
    """The folder is there, the file is not."""
