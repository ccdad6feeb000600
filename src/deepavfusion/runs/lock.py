"""One start of a run at a time: a lock file in its directory, which needs no locks of the system.

Shared disks lack them, or grant them twice. What they do have is that a name can be given once. The file says who holds
it. On the same machine, the next start looks whether that process still exists. From another one it cannot be seen, so
the holder touches the file every few seconds, and only a change that is observed counts: clocks are not compared.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from stat import S_ISREG
from typing import Any

from deepavfusion.utils.console import duration, rank_zero, say
from deepavfusion.utils.errors import UserError
from deepavfusion.utils.launch.signals import on_leaving, tell

LOCK = ".running"
BEAT = 10.0  # s between two touches
EXPIRES = 120.0  # s without one, after which a holder on another machine counts as dead
LOOK_EVERY = 1.0  # s
MOST = 4096  # characters of a lock
SETTLE = 0.05  # s, until others that take over the same lock have done so


class InUseError(UserError):
    """A run that another start of it is working on.

    Args:
        run_dir: its directory.
        by: who that is.
    """

    def __init__(self, run_dir: Path, by: str) -> None:
        super().__init__(f"run {run_dir} is in use by {by}: wait until that ends, stop it, or give another run.name.")
        self.by = by


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Hold the lock of a run directory; on processes other than the first, nothing.

    Raises:
        InUseError: another start of the run holds it.
        UserError: it cannot be written.
    """
    if not rank_zero():
        yield
        return
    lock = _Lock(run_dir)
    lock.acquire()
    on_leaving(lock.release)
    try:
        yield
    finally:
        lock.release()


def is_held(run_dir: Path) -> bool:
    """Whether another start seems to be working on a run; `locked` makes sure. It only looks."""
    holder, touched = _read(run_dir / LOCK), _touched(run_dir / LOCK)
    if holder is None or touched is None:
        return False
    over = _is_over(holder, _identity())
    return abs(time.time() - touched / 1e9) < 3 * BEAT if over is None else not over


class _Lock:
    def __init__(self, run_dir: Path) -> None:
        self.run_dir, self.path = run_dir, run_dir / LOCK
        self.me = _identity()
        self.over = threading.Event()

    def acquire(self) -> None:
        mine = self._aside("new")
        try:
            mine.write_text(json.dumps(self.me))
            took_over = False
            while not self._create(mine) or (took_over and not self._is_mine(after=SETTLE)):
                holder = _read(self.path)
                if self.path.is_symlink():  # which may lead nowhere, and has the name
                    raise UserError(f"{self.path} is a link, expected a file that a run wrote: remove it.")
                if holder is not None and self._has_ended(holder, mine):
                    self._take_away(holder)
                    took_over = True
        except OSError as error:
            raise UserError(
                f"run directory {self.run_dir} cannot be written ({error.strerror or error}): expected a folder of "
                "yours, with space; set paths.log_dir, or its permissions."
            ) from error
        finally:
            with suppress(OSError):
                mine.unlink(missing_ok=True)
        threading.Thread(target=self._beat, daemon=True).start()

    def release(self) -> None:
        self.over.set()
        with suppress(OSError):
            if self._is_mine():
                self.path.unlink()

    def _aside(self, kind: str) -> Path:
        return self.path.with_name(f"{LOCK}.{self.me['token']}.{kind}")

    def _create(self, mine: Path) -> bool:
        """Take the name, with its content, unless it is taken."""
        try:
            os.link(mine, self.path)
        except FileExistsError:
            return mine.stat().st_nlink > 1  # over NFS, the answer that it succeeded may be lost
        except OSError:  # a disk without links
            return self._write_new()
        return True

    def _write_new(self) -> bool:
        with suppress(FileExistsError), self.path.open("x") as file:
            json.dump(self.me, file)
            return True
        return False

    def _is_mine(self, after: float = 0.0) -> bool:
        time.sleep(after)
        return (_read(self.path) or {}).get("token") == self.me["token"]

    def _take_away(self, holder: dict[str, Any]) -> None:
        """Remove the lock of a start that has ended, unless it is another's by now."""
        aside = self._aside("old")
        try:
            self.path.rename(aside)
        except FileNotFoundError:
            return
        if _read(aside) != holder and not self.path.exists():
            aside.rename(self.path)
        aside.unlink(missing_ok=True)

    def _has_ended(self, holder: dict[str, Any], mine: Path) -> bool:
        """Whether a start is over; False: its lock is gone, or another's.

        Raises:
            UserError: it is not.
        """
        over = _is_over(holder, self.me)
        if over is False:
            raise InUseError(self.run_dir, _named(holder))
        if over:
            return True
        if holder.get("job") == self.me["job"] is not None and holder.get("restart") != self.me["restart"]:
            return True  # SLURM ends all processes of a job before it starts it again
        return self._stands_still(holder, mine)

    def _stands_still(self, holder: dict[str, Any], mine: Path) -> bool:
        """Watch the lock of a process that cannot be seen from here."""
        first = _touched(self.path)
        os.utime(mine)
        now = _touched(mine)
        if first is None or now is None:
            return False
        age = (now - first) / 1e9  # by the clock of the disk, which may have jumped: it only shortens the wait
        wait = max(3 * BEAT, EXPIRES - max(age, 0.0))
        say(
            f"run {self.run_dir}: {_named(holder)} holds it, which cannot be seen from here; if it gives no sign of "
            f"life for {duration(wait)}, this start takes its place",
            "yellow",
        )
        begin = time.monotonic()
        while time.monotonic() - begin < wait:
            time.sleep(LOOK_EVERY)
            if _read(self.path) != holder:
                return False
            if _touched(self.path) != first:
                raise InUseError(self.run_dir, _named(holder))
        say(f"{_named(holder)} gave no sign of life for {duration(wait)}: this start takes its place", "yellow")
        return True

    def _beat(self) -> None:
        """Touch the lock from a thread; end the process if the run was given to another start meanwhile, as when this
        one was suspended for long."""
        while not self.over.wait(BEAT):
            with suppress(OSError):
                holder = _read(self.path)
                if holder is None:  # removed by hand
                    self._write_new()
                elif holder.get("token") == self.me["token"]:
                    os.utime(self.path)
                elif not self.over.is_set():
                    tell(f"{InUseError(self.run_dir, _named(holder))} This process ends.")
                    os._exit(2)


def _identity() -> dict[str, Any]:
    """This process, as it can be recognised by others on its machine, and named to people."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "began": _began(os.getpid()),
        "boot": _text("/proc/sys/kernel/random/boot_id"),
        "processes": _link("/proc/self/ns/pid"),  # containers number their processes each for itself
        "job": os.environ.get("SLURM_JOB_ID"),
        "restart": os.environ.get("SLURM_RESTART_COUNT", "0"),
        "since": datetime.now().strftime("%Y-%m-%d %H:%M:%S"),
        "token": uuid.uuid4().hex,
    }


def _read(path: Path) -> dict[str, Any] | None:
    """Who holds a lock; None: nobody; empty: it does not say (yet)."""
    try:
        if not S_ISREG(path.lstat().st_mode):  # reading a pipe would wait for ever
            return {}
        with path.open(errors="replace") as file:
            found = json.loads(file.read(MOST))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    # The directory may come from another machine, and what it says goes to a terminal.
    return {k: v for k, v in found.items() if type(v) is int or (isinstance(v, str) and v.isprintable())}


def _is_over(holder: dict[str, Any], me: dict[str, Any]) -> bool | None:
    """Whether the process of a start has ended; None: it cannot be seen from here."""
    if not all(holder.get(key) == me[key] is not None for key in ("boot", "processes")):
        return None
    began = _began(holder.get("pid"))
    return began is None or holder.get("began") not in (None, began)


def _named(holder: dict[str, Any]) -> str:
    if "pid" not in holder:
        return "another start"
    return f"process {holder['pid']} on {holder.get('host')}, since {holder.get('since')}"


def _touched(path: Path) -> int | None:
    """Its time, ns; opened for it, since shared disks remember the times of files that are not."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            return os.fstat(handle).st_mtime_ns
        finally:
            os.close(handle)
    except OSError:
        return None


def _began(pid: Any) -> int | None:
    """When a process began, in ticks since the machine did, which tells it from a later one with its number; None: it
    has ended."""
    stat = _text(f"/proc/{pid}/stat") if isinstance(pid, int) else None
    if stat is None:
        return None
    state, *fields = stat.rpartition(")")[2].split()  # the name before it may have blanks and brackets
    return None if state in "ZX" else int(fields[18])


def _text(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None


def _link(path: str) -> str | None:
    try:
        return os.readlink(path)
    except OSError:
        return None
