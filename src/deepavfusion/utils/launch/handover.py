"""What one process of a machine reads, and hands over to the others of its run there, in a file."""

from __future__ import annotations

import atexit
import os
import pickle
import time
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from deepavfusion.utils.console import say
from deepavfusion.utils.errors import SaidByFirst
from deepavfusion.utils.files import own_folder
from deepavfusion.utils.launch.launcher import began_at, launch, launcher_process

HANDED = "DEEPAVFUSION_HANDED"  # environment variable: the file for processes that Lightning starts
STARTS = (  # environment variables: which start of a job a process belongs to
    *("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT"),
)
PATIENCE = 900.0  # s after which a process that waits reads by itself
QUIET = 10.0  # s after which it says that it waits
LOOK_EVERY = 0.1  # s
OLD = 24 * 3600.0  # s after which a file of a killed run is removed

T = TypeVar("T")
_number = count()  # of a handover in this process, as runs of a sweep follow each other


class Handover:
    """One value. The process with the local rank 0 makes it, the others take it.

    The file lies in a folder that only this user can use, and is named after the launcher's process and its start,
    which all processes of a machine have in common, so that none takes what an earlier start has left. Processes that
    Lightning starts get the name from the first one.

    Args:
        what: that the value depends on; it has to be equal on all processes.
    """

    def __init__(self, what: object) -> None:
        self.found = launch()
        parent = launcher_process(self.found)
        key = [parent, began_at(parent), *map(os.environ.get, STARTS), next(_number), what]
        self.name = f"{sha256(repr(key).encode()).hexdigest()[:32]}.handed"
        self.path: Path | None = None  # of the file that this process wrote

    def get(self, make: Callable[[], T]) -> T:
        """The value.

        Args:
            make: makes it, on the first process of this machine, or where nothing can be handed over.

        Raises:
            SaidByFirst: the first process could not make it, and reports why.
        """
        if self.found.by == "lightning":
            given = os.environ.get(HANDED)
            return self._taken(Path(given), make) if given else make()
        folder = _folder() if self.found.local_processes > 1 else None
        if folder is None:
            return make()
        if self.found.local_rank:
            return self._taken(folder / self.name, make)
        try:
            value = make()
        except BaseException:
            self._write(folder / self.name, (False, None))
            raise
        self._write(folder / self.name, (True, value))
        return value

    def give(self, value: object) -> None:
        """Hand over a value to the processes that Lightning will start."""
        if folder := _folder():
            self._write(folder / self.name, (True, value))
            os.environ[HANDED] = str(folder / self.name)

    def remove(self) -> None:
        """Once all processes have it."""
        if self.path is not None:
            os.environ.pop(HANDED, None)
            with suppress(OSError):
                self.path.unlink(missing_ok=True)
            self.path = None

    def _write(self, path: Path, content: tuple[bool, Any]) -> None:
        partial = path.with_suffix(f".{os.getpid()}.handed")
        self.path = path
        atexit.register(self.remove)
        with suppress(OSError):
            try:
                with partial.open("wb") as file:
                    pickle.dump(content, file, pickle.HIGHEST_PROTOCOL)
            except OSError:  # a full disk: an empty file lets the others read by themselves
                partial.write_bytes(b"")
            partial.replace(path)

    def _taken(self, path: Path, make: Callable[[], T]) -> T:
        began, said = time.monotonic(), False
        while time.monotonic() - began < PATIENCE:
            with suppress(FileNotFoundError), path.open("rb") as file:
                try:
                    made, value = pickle.load(file)
                except EOFError:
                    return make()
                if not made:
                    raise SaidByFirst("the first process of this machine could not read the lists, see its message.")
                return value
            if self.found.by == "lightning":  # its first process had written it before
                return make()
            if not said and self.found.local_rank == 1 and time.monotonic() - began > QUIET:
                said = True
                say("waiting for the first process of this machine, which reads the lists …", "dim")
            time.sleep(LOOK_EVERY)
        return make()


def _folder() -> Path | None:
    """Where to hand over; None where that cannot be. What was left there long ago is removed."""
    own, folder = own_folder()
    if not own:
        return None
    for file in folder.glob("*.handed"):
        with suppress(OSError):
            if time.time() - file.stat().st_mtime > OLD:
                file.unlink()
    return folder
