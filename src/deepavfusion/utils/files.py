"""Atomic writes: a file is either complete or absent. Only regular files are opened."""

from __future__ import annotations

import codecs
import csv
import errno
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

from deepavfusion.utils.errors import UserError, full_disk_named
from deepavfusion.utils.names import look, to_cell

KINDS = {  # that are no regular files
    stat.S_IFDIR: "it is a folder",
    stat.S_IFIFO: "it is a named pipe",
    stat.S_IFSOCK: "it is a socket",
    stat.S_IFCHR: "it is a device",
    stat.S_IFBLK: "it is a device",
}
MOST_BYTES = 2**30  # of a file that is written on
NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)


def regular_file(path: str | os.PathLike[str]) -> os.stat_result:
    """The status of a file, before it is opened: opening a named pipe waits for ever, and a device has no end.

    Raises:
        OSError: it does not exist, or is not a regular file, which `strerror` says in a clause.
    """
    try:
        status = os.stat(path)
    except ValueError as error:  # a null character, or one that the system has no bytes for
        raise OSError(errno.EINVAL, f"it is no name of a file: {error}", os.fspath(path)) from None
    if kind := KINDS.get(stat.S_IFMT(status.st_mode)):
        code = errno.EISDIR if stat.S_ISDIR(status.st_mode) else errno.ENXIO
        raise OSError(code, f"{kind}, not a regular file", os.fspath(path))
    return status


def own_folder() -> tuple[bool, Path]:
    """Whether there is a folder for temporary files that this user alone can use, and its path."""
    folder = Path(tempfile.gettempdir()) / f"deepavfusion-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
    except OSError:
        return False, folder
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o077, folder


def no_file(path: str | os.PathLike[str]) -> str | None:
    """What is wrong with the path of a file: "does not exist", "cannot be read (it is a folder, …)"; None: nothing."""
    try:
        regular_file(path)
    except FileNotFoundError:
        return f"does not exist{almost_there(os.fspath(path))}"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return None


def almost_there(path: str, looks: dict[str, dict[str, str]] | None = None) -> str:
    """A clause on what is there in place of a path that is not, and looks like it; empty if nothing is.

    Args:
        path: of a file.
        looks: of the names in folders, which is filled: for many files, so that no folder is listed twice.
    """
    looks = {} if looks is None else looks
    folder, name = os.path.split(path)
    while folder and not os.path.isdir(folder):
        folder, name = os.path.split(folder)
    if folder not in looks:
        looks[folder] = {}
        with suppress(OSError):
            looks[folder] = {look(other).casefold(): other for other in os.listdir(folder or ".")}
    found = looks[folder].get(look(name).casefold(), name)
    if found == name:
        return ""
    differs = "differs only in case, in the form of accents, or in characters that are not seen"
    return f"; {os.path.join(folder, found)!a} is there, which {differs} from {name!a}"


def check_ours(path: Path, head: str, instead: str) -> None:
    """Make sure that a file that will be replaced, or written on, is one that this project wrote, or is not there.

    Args:
        path: the file; one that was cut off within its head, or is empty, is ours, too.
        head: its first line, of a CSV file in any form that spreadsheet programs save; with a blank at its end: what
            that begins with.
        instead: what to do if it is not ours.

    Raises:
        UserError: the file is someone else's.
    """
    if not os.path.lexists(path):
        return
    try:
        size = regular_file(path).st_size
        with open(path, "rb") as file:
            first = file.read(2 * len(head) + len(codecs.BOM_UTF8)).removeprefix(codecs.BOM_UTF8)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): {instead}.") from None
    if size > MOST_BYTES:
        raise UserError(f"{path} has {size} bytes, more than this command writes, and is left as it is: {instead}.")
    if "," in head and not head.endswith(" "):
        first = first.replace(b'"', b"").replace(b";", b",").replace(b"\t", b",")
    found, rest = first[: len(head)], first[len(head) :]
    ends = head.endswith(" ") or rest[:1] in (b"", b"\r", b"\n")
    if not (ends and head.encode().startswith(found)):
        raise UserError(
            f"{path} does not begin with `{head}`, so it is not what this command writes, and is left as it is: "
            f"{instead}."
        )


@contextmanager
def whole(path: Path, durable: bool = False) -> Iterator[Path]:
    """Yield a path beside `path` to write to; it replaces `path` when the block ends, and is removed if it fails.

    Args:
        path: the file; it is unchanged if the process is killed meanwhile.
        durable: sync to the disk, so that this also holds when the machine loses power.
    """
    partial = path.with_name(f"{path.name}.partial")
    with suppress(FileNotFoundError, IsADirectoryError, PermissionError):
        partial.unlink()  # a link leads to another file, and a named pipe would be waited for
    try:
        with full_disk_named(path):
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


def link(path: Path, target: str) -> bool:
    """Make or replace a symbolic link atomically; False where the disk has none, as exFAT, CIFS or a cloud drive, or a
    folder has its name.

    Args:
        path: of the link.
        target: relative to its folder.
    """
    if path.is_dir() and not path.is_symlink():
        return False
    try:
        with whole(path) as partial:
            partial.symlink_to(target)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        return False
    return True


def write_whole(path: Path, text: str, durable: bool = False) -> None:
    """Write a text file atomically, see `whole`."""
    with whole(path, durable) as partial:
        partial.write_text(text, encoding="utf-8")


def write_csv(path: Path, rows: Iterable[Sequence[object]], end: str = "\r\n") -> None:
    """Write a CSV file atomically, the header first; `end` ends its lines. `reading.own_rows` reads it."""
    with (
        whole(path, durable=True) as partial,
        partial.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        # With its own ends, the writer quotes cells that have either of them.
        lines = SimpleNamespace(write=lambda line: file.write(line.removesuffix("\r\n") + end))
        csv.writer(lines).writerows(map(to_cell, row) for row in rows)


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
