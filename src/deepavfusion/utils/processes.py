"""Numbers of processes, workers that end with their parent, and what a process needs of its environment."""

from __future__ import annotations

import ctypes
import getpass
import multiprocessing.util
import os
import resource
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager, suppress
from multiprocessing.process import current_process

from deepavfusion.utils.errors import UserError

reading_limit = 0  # s that reading a part of a file may take in this process before it ends; 0: any (cli/guard.py)
MAX_WORKERS = 16  # decoding for one training process
COUNTS = (  # environment variables that launchers set, and we or Lightning read
    *("RANK", "LOCAL_RANK", "WORLD_SIZE", "GROUP_RANK", "NODE_RANK", "MASTER_PORT", "JSM_NAMESPACE_RANK"),
    *("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_NODEID"),
)
MOST_DIGITS = 9
MAX_FOLDER = 107 - len("/listener-12345678")  # bytes, of a folder with sockets


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


def decoding_workers(processes: int = 1) -> int:
    """Decoding workers for each of the training processes on this machine."""
    return max(1, min(cores() // processes, MAX_WORKERS))


def give_memory_back() -> None:
    """Return the memory that was freed to the system: glibc keeps it in pieces, which the next phase may not fit."""
    with suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


@contextmanager
def limited() -> Iterator[None]:
    """End this process by SIGALRM if the block, which may hang in C, takes longer than `reading_limit`; they nest."""
    left = signal.alarm(reading_limit) if reading_limit else None
    try:
        yield
    finally:
        if left is not None:
            signal.alarm(left)


def die_with_parent() -> None:
    """End this worker when the main process is killed; otherwise it would wait for work forever."""

    def watch() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def shorten_socket_names() -> None:
    """Let processes started from here on meet in a folder with a short name, also where TMPDIR is long."""
    with suppress(OSError):  # then they cannot share memory
        if len(os.fsencode(multiprocessing.util.get_temp_dir())) > MAX_FOLDER:
            folder = tempfile.mkdtemp(prefix="pymp-", dir="/tmp")
            multiprocessing.util.Finalize(None, shutil.rmtree, args=(folder, True), exitpriority=-100)
            current_process()._config["tempdir"] = folder  # type: ignore[attr-defined]  # children inherit it


def name_user(environment: MutableMapping[str, str] = os.environ) -> None:
    """A user id without a name or home, as in many containers, gets both: torch cannot be imported without."""
    try:
        getpass.getuser()
    except (KeyError, OSError):
        environment["USER"] = f"uid{os.getuid()}"
    if os.path.expanduser("~") == "~":
        environment["HOME"] = tempfile.gettempdir()


def check_counts(environment: Mapping[str, str] = os.environ) -> None:
    """Raise a `UserError` if what launchers set is no number."""
    for name in COUNTS:
        value = environment.get(name, "0")
        if not (value.isascii() and value.isdecimal() and len(value) <= MOST_DIGITS):
            raise UserError(
                f"the environment variable {name} is {value!r:.80}, expected a whole number, as torchrun and srun set "
                f"it: start the command with one of these, or without it (unset {name})."
            )


def check_folder() -> None:
    """Raise a `UserError` if the folder that relative paths start from was removed."""
    try:
        os.getcwd()
    except OSError as error:
        name = ""
        with suppress(OSError):
            name = os.readlink("/proc/self/cwd").removesuffix(" (deleted)")
        raise UserError(
            f"the current folder {name} is not there any more ({error.strerror}): expected one that exists; change "
            "into it (cd), and give the command again."
        ) from None


def settle_in(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let this process open as many files as the system allows; in a shell of salloc, run without other processes.

    Lightning would wait for as many as the job has tasks, which nobody starts there.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if "SLURM_NTASKS" in environment and "SLURM_PROCID" not in environment:
        environment["SLURM_JOB_NAME"] = "interactive"


def launched_processes(environment: Mapping[str, str] = os.environ) -> int:
    """Processes of this run that srun or torchrun started; 1 without them, as in a shell of salloc."""
    name = "SLURM_NTASKS" if "SLURM_PROCID" in environment else "WORLD_SIZE"
    return int(environment.get(name) or environment.get("WORLD_SIZE") or 1)
