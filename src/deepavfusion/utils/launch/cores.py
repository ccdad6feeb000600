"""How many cores this process has for itself, and the decoding workers that follow from it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from deepavfusion.utils.launch.launcher import VARIABLES, Launch, launch, launcher_process

MAX_WORKERS = 16  # decoding for one training process
GROUPS = Path("/sys/fs/cgroup")
PROCESSES = Path("/proc")


class Cores(NamedTuple):
    """Args:
    own: cores for this process alone.
    seen: cores that it may run on.
    why: what makes them fewer, or keeps others off them, in a few words; empty: nothing.
    """

    own: int
    seen: int
    why: str = ""


def cores() -> int:
    """CPU cores that this process may use: those it is bound to, and no more than the quota of its container; 1 or
    more."""
    return max(1, int(min([len(usable()), *(limit for _, limit in quotas())])))


def usable(pid: int = 0) -> set[int]:
    """Cores that a process, or this one, may run on; all of them where the system does not say, as on Macs."""
    return os.sched_getaffinity(pid) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def own_cores(processes: int = 1) -> Cores:
    """Cores of this process when the other processes of the run have theirs.

    Processes that a launcher started share only the cores that they are bound to both; those that Lightning starts, and
    whatever cannot be seen, share all of them.

    Args:
        processes: of the run on this machine.
    """
    found = launch()
    mine = usable()
    others = _neighbours(found) if found.by in VARIABLES and found.processes > 1 else {}
    hidden = max(0, max(processes, found.local_processes if found.by in VARIABLES else 1) - 1 - len(others))
    bound = _bound(found, len(mine))
    if bound:
        hidden = 0
    share = sum(1 / (1 + hidden + sum(core in other for other in others.values())) for core in mine)
    why = f"shared by {processes}" if share < len(mine) else f"bound by {found.by}" if others or bound else ""
    for group, limit in quotas():
        sharing = 1 + sum(_is_in(pid, group) for pid in others) + hidden
        if limit / sharing < share:
            share = limit / sharing
            why = f"quota of {limit:g}" + (f" shared by {sharing}" if sharing > 1 else "")
    return Cores(max(1, int(share + 1e-6)), len(mine), why)


def decoding_workers(processes: int = 1) -> int:
    """Decoding workers for each of so many training processes on this machine."""
    return min(own_cores(processes).own, MAX_WORKERS)


def _neighbours(found: Launch) -> dict[int, set[int]]:
    """The other processes of the launcher on this machine, as far as they can be seen, with the cores of each."""
    launcher, rank = launcher_process(found), VARIABLES[found.by][2].encode()
    cores_of: dict[str, tuple[int, set[int]]] = {}
    for pid in _below(launcher):
        with suppress(OSError):
            pairs = (PROCESSES / str(pid) / "environ").read_bytes().split(b"\0")
            number = next((pair for pair in pairs if pair.startswith(rank + b"=")), b"").partition(b"=")[2].decode()
            if number and number != str(found.rank):
                cores_of.setdefault(number, (pid, usable(pid)))
    return dict(cores_of.values())


def _below(ancestor: int) -> Iterator[int]:
    """Children of a process, and theirs: a launcher may start each process in a shell. Nearest first."""
    children: dict[int, list[int]] = {}
    for path in PROCESSES.iterdir() if PROCESSES.is_dir() else ():  # Linux only
        if path.name.isdecimal():
            with suppress(OSError, IndexError, ValueError):
                parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(path.name))
    level = children.get(ancestor, [])
    while level:
        yield from level
        level = [child for pid in level for child in children.get(pid, [])]


def _bound(found: Launch, seen: int) -> bool:
    """Whether SLURM keeps the other tasks off this one's cores, where these cannot be seen."""
    each = os.environ.get("SLURM_CPUS_PER_TASK", "")
    return found.by == "srun" and each.isdecimal() and seen <= int(each)


# ---------------------------------------------------------------- containers


def quotas(groups: Path = GROUPS, processes: Path = PROCESSES) -> Iterator[tuple[str, float]]:
    """The limits of CPU time that this process is under: control group (as /proc has it), and cores."""
    for line in _lines(processes / "self" / "cgroup"):
        _, controllers, name = line.split(":", 2) if line.count(":") > 1 else ("", "none", "")
        if controllers not in ("", "cpu") and "cpu" not in controllers.split(","):
            continue
        for group in _and_above(name):
            if not controllers:
                fields = next(iter(_lines(groups / group.lstrip("/") / "cpu.max")), "max").split()
                quota, period = fields[0], fields[1] if len(fields) > 1 else "100000"
            else:
                places = (groups / kind / group.lstrip("/") for kind in dict.fromkeys(("cpu", controllers)))
                place = next((place for place in places if (place / "cpu.cfs_quota_us").is_file()), None)
                if place is None:
                    continue
                quota, period = (next(iter(_lines(place / f"cpu.cfs_{key}_us")), "-1") for key in ("quota", "period"))
            if quota.isdecimal() and period.isdecimal() and int(period):
                yield group, int(quota) / int(period)


def _and_above(name: str) -> Iterator[str]:
    """A control group, and those it lies in."""
    parts = [part for part in name.split("/") if part]
    for end in range(len(parts), -1, -1):
        yield "/" + "/".join(parts[:end])


def _is_in(pid: int, group: str) -> bool:
    """Whether a process is in a control group, or in one within it."""
    names = (line.split(":", 2)[2] for line in _lines(PROCESSES / str(pid) / "cgroup"))
    return any(group in _and_above(name) for name in names)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return []
