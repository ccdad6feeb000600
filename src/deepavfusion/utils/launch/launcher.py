"""What launched this process, how many it launched, and which of them this is.

Every launcher says so in environment variables of its own. This module imports next to nothing, since the entry scripts
need it before anything that takes long.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

FIRST = "DEEPAVFUSION_FIRST"  # environment variable: the process that starts the others on this machine
PARENT = os.getppid()  # also once it has ended
MOST_DIGITS = 9

# launcher: a variable that it always sets · number of processes · rank · processes on this machine · rank on this
# machine · machines · this machine. In this order, as some are used within others: torchrun within srun, and mpirun may
# use srun itself.
VARIABLES = {
    "torchrun": (
        *("TORCHELASTIC_RUN_ID", "WORLD_SIZE", "RANK", "LOCAL_WORLD_SIZE", "LOCAL_RANK"),
        *("GROUP_WORLD_SIZE", "GROUP_RANK"),
    ),
    "mpirun": (
        *("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
        *("OMPI_COMM_WORLD_LOCAL_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "", ""),
    ),
    "mpiexec": ("PMI_SIZE", "PMI_SIZE", "PMI_RANK", "MPI_LOCALNRANKS", "MPI_LOCALRANKID", "", ""),
    "submitit": (
        *("SUBMITIT_LOCAL_GLOBALID", "SUBMITIT_LOCAL_NTASKS", "SUBMITIT_LOCAL_GLOBALID"),
        *("", "SUBMITIT_LOCAL_LOCALID", "SUBMITIT_LOCAL_NNODES", "SUBMITIT_LOCAL_NODEID"),
    ),
    # A batch script, and the shell of salloc, have SLURM_PROCID and SLURM_NTASKS, too, but no step.
    "srun": (
        *("SLURM_STEP_NUM_TASKS", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "", "SLURM_LOCALID"),
        *("SLURM_STEP_NUM_NODES", "SLURM_NODEID"),
    ),
    "jsrun": (
        *("JSM_NAMESPACE_SIZE", "JSM_NAMESPACE_SIZE", "JSM_NAMESPACE_RANK", "", "JSM_NAMESPACE_LOCAL_RANK"),
        *("", ""),
    ),
}
BY_HAND = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "NODE_RANK")  # of no launcher we know, or left over in the shell
OTHERS = ("GROUP_RANK", "MASTER_PORT", "SLURM_NTASKS", "SLURM_NNODES")  # that Lightning reads
COUNTS = tuple(
    dict.fromkeys(
        name
        for name in (*(name for names in VARIABLES.values() for name in names), *BY_HAND, *OTHERS)
        if name and name != "TORCHELASTIC_RUN_ID"
    )
)


class Launch(NamedTuple):
    """How this process was started.

    Args:
        by: the launcher; "lightning" for what it starts itself beside the first process, "variables" where only
            variables such as WORLD_SIZE say so; empty: nothing.
        processes: that it started, in all.
        rank: of this one among them.
        local_processes: on this machine.
        local_rank: among those on this machine.
        nodes: machines.
        node: this machine's number.
    """

    by: str = ""
    processes: int = 1
    rank: int = 0
    local_processes: int = 1
    local_rank: int = 0
    nodes: int = 1
    node: int = 0


def launch(environment: Mapping[str, str] = os.environ) -> Launch:
    """How this process was started; variables that are no number count as missing, see `check_counts`."""
    found = _by_launcher(environment)
    if found and (found.processes > 1 or found.by == "torchrun"):
        return found
    rank_here, node_here = _number(environment, "LOCAL_RANK") or 0, _number(environment, "NODE_RANK") or 0
    processes = _number(environment, "WORLD_SIZE") or 1
    if rank_here and environment.get(FIRST) == str(PARENT):  # also where srun started the first one
        return Launch("lightning", processes, rank_here, processes, rank_here, 1, node_here)
    number = _number(environment, "RANK") or rank_here or node_here
    if found is None and (processes > 1 or number):
        return Launch("variables", max(processes, number + 1), number, processes, rank_here, 1, node_here)
    return found or Launch()


def _by_launcher(environment: Mapping[str, str]) -> Launch | None:
    for by, (marker, size, rank, local_size, local_rank, nodes, node) in VARIABLES.items():
        if not environment.get(marker) or (by != "torchrun" and _number(environment, marker) is None):
            continue
        if by == "mpiexec" and _is_of_srun(environment):
            continue
        processes, number = _number(environment, size) or 1, _number(environment, rank) or 0
        machines = _number(environment, nodes)
        here, mine = _number(environment, local_size), _number(environment, local_rank)
        machine = _number(environment, node)
        if here is None and by == "srun":
            here = _of_machine(environment.get("SLURM_STEP_TASKS_PER_NODE", ""), machine or 0)
        here = min(here or -(-processes // (machines or 1)), processes)
        machines = machines or -(-processes // here)
        machine = number // here if machine is None else machine
        if mine is None:
            mine = number % here
        return Launch(by, processes, number, here, mine, machines, machine)
    return None


def _number(environment: Mapping[str, str], name: str) -> int | None:
    value = environment.get(name, "") if name else ""
    return int(value) if is_count(value) else None


def is_count(value: str) -> bool:
    """Whether a variable of a launcher holds a whole number."""
    return value.isascii() and value.isdecimal() and len(value) <= MOST_DIGITS


def _is_of_srun(environment: Mapping[str, str]) -> bool:
    """Whether srun gave MPI's variables to the processes that it started itself (srun --mpi=pmi2)."""
    numbers = (("PMI_SIZE", "SLURM_STEP_NUM_TASKS"), ("PMI_RANK", "SLURM_PROCID"))
    return all(environment.get(mpi) == environment.get(slurm) for mpi, slurm in numbers)


def _of_machine(counts: str, machine: int) -> int | None:
    """The processes on a machine, of what SLURM lists: `2(x3),1` is two on each of three, and one on the fourth."""
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", counts):
        machine -= int(times or 1)
        if machine < 0:
            return int(count)
    return None


def by_hand(environment: Mapping[str, str] = os.environ) -> tuple[str, str]:
    """What the variables of no launcher seem to say, and how to be rid of them, as parts of a sentence."""
    given = [name for name in BY_HAND if environment.get(name)]
    values = ", ".join(f"{name}={environment[name]}" for name in given)
    return f"the variables {values} mean that a launcher started", f"type unset {' '.join(given)}."


def alone(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment for a command that is no process of this run."""
    mine = ("MASTER_", "SLURM_", "TORCHELASTIC_", "DEEPAVFUSION_", *COUNTS)
    return {name: value for name, value in environment.items() if not name.startswith(mine)}


def ancestors() -> Iterator[int]:
    """The processes that this one descends from, its parent first."""
    pid = os.getppid()
    while pid > 0:
        yield pid
        try:
            with open(f"/proc/{pid}/stat") as file:
                pid = int(file.read().rpartition(")")[2].split()[1])
        except (OSError, IndexError, ValueError):
            return


def launcher_process(found: Launch | None = None) -> int:
    """The process that started this one and its neighbours: the nearest ancestor that is itself none of them."""
    found = found or launch()
    marker = VARIABLES[found.by][0] if found.by in VARIABLES else ""
    pid = os.getppid()
    for pid in ancestors():
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                names = {variable.partition(b"=")[0].decode(errors="replace") for variable in file.read().split(b"\0")}
        except OSError:  # of another user, as slurmstepd is
            return pid
        if not marker or marker not in names:
            return pid
    return pid


def began_at(pid: int) -> int | None:
    """When a process was started, s since 1970; None if that is not known here."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            ticks = int(file.read().rpartition(")")[2].split()[19])
        with open("/proc/stat") as file:
            boot = next(int(line.split()[1]) for line in file if line.startswith("btime "))
    except (OSError, IndexError, ValueError, StopIteration):
        return None
    return boot + ticks // os.sysconf("SC_CLK_TCK")
