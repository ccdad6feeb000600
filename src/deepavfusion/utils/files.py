"""Atomic writes: a file is either complete or absent. Reads of regular files only."""

from __future__ import annotations

import csv
import errno
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

KINDS = {  # that are no regular files
    stat.S_IFDIR: "it is a folder",
    stat.S_IFIFO: "it is a named pipe",
    stat.S_IFSOCK: "it is a socket",
    stat.S_IFCHR: "it is a device",
    stat.S_IFBLK: "it is a device",
}


def regular_file(path: str | os.PathLike[str]) -> os.stat_result:
    """The status of a file, before it is opened: opening a named pipe waits for ever, and a device has no end.

    Raises:
        OSError: it does not exist, or is not a regular file, which `strerror` says in a clause.
    """
    status = os.stat(path)
    if kind := KINDS.get(stat.S_IFMT(status.st_mode)):
        code = errno.EISDIR if stat.S_ISDIR(status.st_mode) else errno.EINVAL
        raise OSError(code, f"{kind}, not a regular file", os.fspath(path))
    return status


@contextmanager
def whole(path: Path, durable: bool = False) -> Iterator[Path]:
    """Yield a path beside `path` to write to; it replaces `path` when the block ends, and is removed if it fails.

    Args:
        path: the file; it is unchanged if the process is killed meanwhile.
        durable: sync to the disk, so that this also holds when the machine loses power.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        yield partial
        if durable:
            sync(partial)
        partial.replace(path)
        if durable:
            sync(path.parent)  # a rename is a change of the folder
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def write_whole(path: Path, text: str, durable: bool = False) -> None:
    """Write a text file atomically, see `whole`."""
    with whole(path, durable) as partial:
        partial.write_text(text, encoding="utf-8")


def write_csv(path: Path, rows: Iterable[Sequence[object]], end: str = "\r\n") -> None:
    """Write a CSV file atomically, the header first; `end` ends its lines."""
    with (
        whole(path, durable=True) as partial,
        partial.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        csv.writer(file, lineterminator=end).writerows(rows)


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
