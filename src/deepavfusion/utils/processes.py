"""What a process needs of its environment: limits, folders, variables that say what they should."""

from __future__ import annotations

import ctypes
import multiprocessing.util
import os
import resource
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from multiprocessing.process import current_process

from deepavfusion.utils.errors import SaidByFirst, UserError
from deepavfusion.utils.launch.launcher import COUNTS, VARIABLES, by_hand, is_count, launch

reading_limit = 0  # s that reading a part of a file may take in this process before it ends; 0: any (cli/guard.py)
MAC_FILES = 10_240  # open in a process, where the system calls it no limit and has one: OPEN_MAX of Macs
MAX_FOLDER = 107 - len("/listener-12345678")  # bytes, of a folder with sockets


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


_alive: ContextVar[Callable[[], None]] = ContextVar("alive", default=lambda: None)


def sign_of_life() -> None:
    """Called at least once a second by what waits for a network, so that its process does not count as hung."""
    _alive.get()()


@contextmanager
def on_sign_of_life(note: Callable[[], None]) -> Iterator[None]:
    """Call `note`, too, whenever this thread gives a sign of life in the block."""
    former = _alive.get()

    def both() -> None:
        former()
        note()

    token = _alive.set(both)
    try:
        yield
    finally:
        _alive.reset(token)


def shorten_socket_names() -> None:
    """Let processes started from here on meet in a folder with a short name, also where TMPDIR is long."""
    with suppress(OSError):  # then they cannot share memory
        if len(os.fsencode(multiprocessing.util.get_temp_dir())) > MAX_FOLDER:
            folder = tempfile.mkdtemp(prefix="pymp-", dir="/tmp")
            multiprocessing.util.Finalize(None, shutil.rmtree, args=(folder, True), exitpriority=-100)
            current_process()._config["tempdir"] = folder  # type: ignore[attr-defined]  # children inherit it


def check_counts(environment: Mapping[str, str] = os.environ) -> None:
    """Raise a `UserError` if what launchers set is no number, or numbers that do not belong together."""
    for name in COUNTS:
        value = environment.get(name, "0")
        if not is_count(value):
            raise UserError(
                f"the environment variable {name} is {value!r:.80}, expected a whole number, as torchrun and srun set "
                f"it: start the command with one of these, or without it (unset {name})."
            )
    found = launch(environment)
    if found.by in VARIABLES and not (found.rank < found.processes and found.local_rank < found.local_processes):
        given = [name for name in dict.fromkeys(VARIABLES[found.by]) if environment.get(name)]
        raise UserError(
            f"the variables {', '.join(f'{name}={environment[name]}' for name in given)} contradict each other: "
            f"expected ranks below the numbers of processes, as {found.by} sets them: start the command with "
            f"{found.by}, or without it (unset {' '.join(given)})."
        )


def check_single(script: str) -> None:
    """Raise a `UserError` if a launcher started several processes of a script that is one.

    They would write the same files.
    """
    found = launch()
    if found.processes == 1 or found.by == "lightning":
        return
    if "SUBMITIT_EXECUTOR" in os.environ:
        raise SaidByFirst(
            f"a job has {found.processes} processes of {script}.py, which would write the same files: set "
            "hydra.launcher.nodes=1 hydra.launcher.tasks_per_node=1."
        )
    if found.by in VARIABLES:
        raise SaidByFirst(
            f"{found.by} started {found.processes} processes of {script}.py, which would write the same files: start "
            f"it once, without {found.by}."
        )
    who, fix = by_hand()
    raise UserError(
        f"{who} {found.processes} processes of {script}.py, which would write the same files: start it once, and {fix}"
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


def settle_in() -> None:
    """Let this process open as many files as the system allows."""
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    for number in (most, max(now, MAC_FILES)):
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (number, most))
            return
