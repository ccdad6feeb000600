"""Errors that a user can fix; every other exception is a bug and keeps its traceback."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from deepavfusion.utils.names import printable
from deepavfusion.utils.program import spoken

FULL = 2 * 2**20  # bytes free
FULL_DISK = "full: "


class UserError(Exception):
    """One sentence: what is wrong, where, what was expected, and the command or key that fixes it.

    The entry points print it and exit with status 2. One string, so that it can be pickled in a DataLoader worker.
    """

    status = 2

    def __init__(self, message: str) -> None:
        super().__init__(printable(spoken(" ".join(message.split()))))


class ArgumentError(UserError, ValueError):
    """An argument that a program gives, where no key of a command holds it."""


class TaskError(ArgumentError):
    """A network that was not trained for what it is asked."""


class SaidByFirst(UserError):
    """An error that every process of a launcher finds, and the first one says for all."""


class TemporaryError(UserError):
    """What time mends, such as storage out of reach: the same command continues, and the exit status says so.

    `between_steps` says that it came in place of a training batch, so that the state of the run is that of a step.
    """

    status = 75  # EX_TEMPFAIL
    between_steps = False


class DecodeError(Exception):
    """A clip that cannot be used; datasets count and report these, and the run continues.

    Args:
        path: the media file.
        reason: one of `DecodeError.REASONS`, as used in reports and tables.
        detail: one clause of explanation.
        stream: "video" or "audio" if only that one is affected, else None.
    """

    REASONS = ("missing", "no_video", "no_audio", "too_short", "truncated", "undecodable", "bad_mask")

    def __init__(self, path: str, reason: str, detail: str, stream: str | None = None) -> None:
        assert reason in self.REASONS, reason
        super().__init__(path, reason, detail, stream)
        self.path, self.reason, self.detail, self.stream = path, reason, detail, stream

    def __str__(self) -> str:
        return f"{self.path}: {self.reason.replace('_', ' ')}: {self.detail}"


REMEDIES = {  # errno of an OSError that no code can prevent -> how to fix it
    (errno.EACCES, errno.EPERM): "give your user the right to it (ls -ld shows whose it is), or choose another place",
    (errno.EROFS,): "the disk is read-only; choose a place on another",
    (errno.ENOTDIR,): "a part of this path is a file; choose another",
    (errno.ENXIO,): "give a file; one that is piped in has to be saved first",
    (errno.EISDIR,): "a file was expected; choose another path",
    (errno.ENAMETOOLONG,): "choose a shorter name",
    (errno.ELOOP,): "its links lead in a circle; remove one",
    (errno.ENOENT,): "it is not there, or was moved or unmounted meanwhile",
    (errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.EHOSTDOWN, errno.ENODEV, errno.ETIMEDOUT, errno.EREMOTEIO): (
        "the disk or network drive fails; check it (mount, dmesg), then give the same command again"
    ),
    (errno.EMFILE, errno.ENFILE): "too many files are open; type ulimit -n 4096 in this shell",
    (errno.ENOMEM,): "memory is exhausted; end other programs",
    (errno.EOPNOTSUPP, errno.ENOSYS): "its disk cannot do this; choose a place on another",
}
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def explained(
    error: OSError, places: Mapping[str, str] | None = None, outputs: Collection[str] = (), resumes: bool = False
) -> str | None:
    """One sentence for what the system refused; None if a bug is more likely.

    Args:
        error: raised anywhere, with or without the name of a file.
        places: key -> folder that the command writes to.
        outputs: other files and folders that it writes.
        resumes: whether the command goes on from checkpoints.
    """
    places = places or {}
    what = f"{error.strerror or error}".rstrip(".")
    named = (error.filename, error.filename2)  # of a link or a new name: what it is made of, and what is made
    names = [os.fsdecode(name) for name in named if isinstance(name, str | bytes | os.PathLike)]
    names = [name.removeprefix("file:") for name in names]  # as the library that writes films has it
    where = " and ".join(names)
    if error.errno in DISK_FULL:
        written = [*outputs] or [*places.values()]
        looked_at = (*outputs, *places.values(), tempfile.gettempdir(), ".", "/dev/shm")
        full = set(map(full_disk, looked_at)) - {""}
        disk = f"; {FULL_DISK}{', '.join(sorted(full))}" if full and FULL_DISK not in what else ""
        if not (disk or where) and written:  # a quota, or a file without a name
            disk = f"; the command writes to {', '.join([*written, tempfile.gettempdir()])}"
        how = ", with resume=<run directory> if the run has no name; it resumes from its last checkpoint"
        return (
            f"{names[-1] if names else 'a file'} could not be written ({what}{disk}): free some space and run the same "
            f"command again{how if resumes else ''}."
        )
    remedy = next((remedy for codes, remedy in REMEDIES.items() if error.errno in codes), None)
    keys = [f"{key}=<folder>" for key, place in places.items() if f"{where}/".startswith(f"{place}/")]
    return f"{where}: {what}: {remedy}{f' ({keys[-1]})' if keys else ''}." if where and remedy else None


def limited(error: BaseException) -> str | None:
    """One sentence for a thread or process that the system does not start; None if it is another error."""
    thread = isinstance(error, RuntimeError) and str(error).startswith("can't start new thread")
    process = isinstance(error, BlockingIOError) and error.errno == errno.EAGAIN and error.filename is None
    if not (thread or process):
        return None
    most = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    shown = "" if most == resource.RLIM_INFINITY else f", {most} here"
    return (
        f"no further process or thread can be started ({error}): expected room for a hundred; end others of this user, "
        f"or raise the limit (ulimit -u{shown}; in a container, its pids limit)."
    )


@contextmanager
def full_disk_named(path: Path) -> Iterator[None]:
    """Let an error of writing a file say which file, and which disk is full, while what was written still fills it."""
    try:
        yield
    except OSError as error:
        said = any(words in str(error.strerror) for words in (FULL_DISK, "ulimit"))
        if error.errno in DISK_FULL and not said:
            error.filename = error.filename or os.fspath(path)
            most = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
            if error.errno == errno.EFBIG and most != resource.RLIM_INFINITY:
                error.strerror = f"{error.strerror}; a file may have {most} bytes here, see ulimit -f"
            elif disk := full_disk(path.parent):
                error.strerror = f"{error.strerror}; {FULL_DISK}{disk}"
        raise


def full_disk(place: str | Path) -> str:
    """The disk that a folder lies on and what it has left, if that is little room or no further file; else nothing."""
    with suppress(OSError):
        path = Path(place).absolute()
        while not path.exists():
            path = path.parent
        free, inodes = shutil.disk_usage(path).free, os.statvfs(path)
        no_more = inodes.f_files and not inodes.f_favail  # where the disk counts them
        left = f"{free / 1e6:.0f} MB free" if free < FULL else "room for no further file (df -i)" if no_more else ""
        while left and not path.is_mount():
            path = path.parent
        return left and f"{path}, {left}"
    return ""
