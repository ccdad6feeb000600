"""What a trainer needs to be for the processes that a launcher started, and who they are to Lightning."""

from __future__ import annotations

import os
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.fabric.plugins.environments import ClusterEnvironment, LightningEnvironment, SLURMEnvironment
from lightning.pytorch.strategies import DDPStrategy
from torch import distributed
from torch.distributed import PrefixStore, TCPStore

from deepavfusion.utils.errors import SaidByFirst, UserError
from deepavfusion.utils.launch.launcher import VARIABLES, Launch, by_hand, launch, launcher_process
from deepavfusion.utils.launch.signals import tell

GIVEN_PORT = os.environ.get("MASTER_PORT")  # before Lightning chooses one
PORTS = range(15_000, 25_000)  # below those that systems give to connections (32768…)
QUIET = 60.0  # s after which a process says that it waits for others


class Fit(NamedTuple):
    """Arguments of the trainer."""

    devices: Any
    num_nodes: int
    environment: ClusterEnvironment


class LaunchedEnvironment(ClusterEnvironment):
    """Processes that a launcher started, whichever it was.

    Lightning's own classes for SLURM, LSF and MPI read variables of the whole job in place of the step's, want
    --ntasks-per-node or mpi4py, and take a shell within a job for a process of it.
    """

    def __init__(self, found: Launch) -> None:
        super().__init__()
        self.found = found

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        return os.environ.get("MASTER_ADDR") or _first_machine(self.found)

    @property
    def main_port(self) -> int:
        return int(os.environ.get("MASTER_PORT") or _port(self.found))

    @staticmethod
    def detect() -> bool:
        return launch().processes > 1

    def world_size(self) -> int:
        return self.found.processes

    def set_world_size(self, size: int) -> None:
        assert size == self.found.processes, (size, self.found)

    def global_rank(self) -> int:
        return self.found.rank

    def set_global_rank(self, rank: int) -> None:
        """Its ranks are given; with some distributions to machines, they are others than Lightning computes."""

    def local_rank(self) -> int:
        return self.found.local_rank

    def node_rank(self) -> int:
        return self.found.node


def _first_machine(found: Launch) -> str:
    if found.nodes == 1:
        return "127.0.0.1"
    if found.by == "srun":
        names = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_JOB_NODELIST", "")
        return SLURMEnvironment.resolve_root_node_address(names)
    if found.by == "jsrun" and (file := os.environ.get("LSB_DJOB_RANKFILE")):
        return Path(file).read_text().split()[1]  # the first line is the machine that launches
    raise SaidByFirst(
        f"{found.by} started processes on {found.nodes} machines, which do not know where to meet: export "
        "MASTER_ADDR=<name of the first machine> and MASTER_PORT=<a free port> to all of them."
    )


def _port(found: Launch) -> int:
    """The same for all processes of a launch, and hardly ever that of another one on these machines."""
    if found.by == "srun":
        key = f"{os.environ.get('SLURM_JOB_ID')}.{os.environ.get('SLURM_STEP_ID')}"
    elif found.nodes == 1:
        key = str(launcher_process(found))
    else:
        key = next((os.environ[name] for name in ("LSB_JOBID", "PMIX_NAMESPACE") if name in os.environ), found.by)
    return PORTS[zlib.crc32(key.encode()) % len(PORTS)]


def fit(devices: Any, num_nodes: int, accelerator: Any = "auto", nodes_given: bool = False) -> Fit:
    """Devices and machines of the trainer for the processes that were started.

    `devices=auto`, and a number of machines that is not given, follow from the launcher; without one, Lightning starts
    the processes of this machine itself.

    Args:
        devices, num_nodes, accelerator: of the config.
        nodes_given: whether `num_nodes` was given with the command.

    Raises:
        SaidByFirst: the launcher started another number of processes than the trainer has.
    """
    found = launch()
    if found.by == "variables":
        return _fit_by_hand(found, devices, num_nodes, accelerator)
    # A single process of srun or mpirun may be a shell, in which Lightning starts others; one of torchrun is no shell.
    if found.by in ("", "lightning") or (found.processes == 1 and found.by != "torchrun"):
        if num_nodes > 1 and not os.environ.get("MASTER_ADDR"):
            raise SaidByFirst(
                f"trainer.num_nodes={num_nodes}, but no launcher started processes on other machines: start the "
                "command with srun or torchrun, or omit trainer.num_nodes."
            )
        if not found.by:
            os.environ.pop("LOCAL_RANK", None)  # left over, of one process; with it, Lightning starts no others
        return Fit(devices, num_nodes, LightningEnvironment())
    here, machines = found.local_processes, found.nodes
    given, nodes = _count(devices, accelerator), num_nodes if nodes_given else machines
    count = here if given is None else given
    if here * machines != found.processes:
        raise SaidByFirst(
            f"{found.by} started {found.processes} processes, {here} of them on one of {machines} machines: expected "
            "as many on each (srun --ntasks-per-node)."
        )
    if (count, nodes) != (here, machines):
        raise SaidByFirst(_contradiction(f"{found.by} started", found, count, nodes))
    gpus = _gpus(accelerator)
    if gpus is not None and here > max(1, gpus):
        remedy = "start as many as there are GPUs, and let each see all of them"
        if not gpus:
            remedy = "on CPUs, give trainer=ddp_sim"
        elif found.by == "srun":
            remedy += "; with srun, --gpus-per-node and no --gpus-per-task"
        raise SaidByFirst(
            f"{found.by} started {here} processes on a machine, each of which sees {gpus} GPU{'s' * (gpus != 1)}: "
            f"{remedy}."
        )
    return Fit(here if given is None else devices, nodes, LaunchedEnvironment(found))


def meet(environment: ClusterEnvironment, join: Callable[[], None]) -> None:
    """Let this process meet the others of the run, which waits for the last one.

    Args:
        environment: says where.
        join: lets it.

    Raises:
        UserError: they cannot meet; a `SaidByFirst` on all but one process of a machine.
    """
    place = f"{environment.main_address}:{environment.main_port}"
    waits = threading.Timer(QUIET, tell, [f"waiting at {place} for the other processes of this run …"])
    waits.daemon = True
    if environment.global_rank() == 0:
        waits.start()
    try:
        join()
    except (RuntimeError, ValueError) as error:
        raise (SaidByFirst if environment.local_rank() else UserError)(
            f"the processes of this run cannot meet at {place} ({str(error).strip().splitlines()[0]}): expected a "
            "machine that all of them reach (MASTER_ADDR), a port that is free there (MASTER_PORT), and the interface "
            "that leads to it (GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME; `ip -br address` lists them); correct or unset "
            "these variables."
        ) from error
    finally:
        waits.cancel()


def join(strategy: DDPStrategy, set_up: Callable[[], None]) -> None:
    """Make the group of processes, also where torchrun started them again (--max-restarts): its store holds the
    addresses of those before.

    Args:
        strategy: of the trainer.
        set_up: its `setup_distributed`, which makes no second group.
    """
    attempt, place = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), strategy.cluster_environment
    if attempt != "0" and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and place is not None:
        here: dict[str, Any] = {"rank": place.global_rank(), "world_size": place.world_size()}
        store = TCPStore(place.main_address, place.main_port, is_master=False)
        distributed.init_process_group(
            strategy._get_process_group_backend(),
            store=PrefixStore(f"attempt_{attempt}", store),
            timeout=strategy._timeout,
            device_id=None if strategy.root_device.type == "cpu" else strategy.root_device,
            **here,
        )
    set_up()


def part() -> None:
    """Leave the group of processes at the end of a run, if they end with it: the next run of a sweep starts others.

    Those of a launcher stay together.
    """
    if launch().by not in VARIABLES and distributed.is_initialized():
        distributed.destroy_process_group()
        if GIVEN_PORT is None:
            os.environ.pop("MASTER_PORT", None)  # this process may still listen there


def _fit_by_hand(found: Launch, devices: Any, num_nodes: int, accelerator: Any) -> Fit:
    """Processes that were started one by one, or on each machine the first; or variables that were left over."""
    count = _count(devices, accelerator)
    count = max(1, _gpus(accelerator) or 1) if count is None else count
    sized = os.environ.get("WORLD_SIZE") or str(count * num_nodes)
    one_by_one = bool(os.environ.get("LOCAL_RANK")) and bool(os.environ.get("WORLD_SIZE"))
    on_each_machine = num_nodes > 1 and bool(os.environ.get("MASTER_ADDR")) and found.node < num_nodes
    if int(sized) == count * num_nodes and (one_by_one or on_each_machine or found.rank == 0):
        return Fit(devices, num_nodes, LightningEnvironment())
    who, fix = by_hand()
    text = _contradiction(who, found, count, num_nodes)
    raise UserError(f"{text.removesuffix('.')}; where there was no launcher, {fix}")


def _contradiction(who: str, found: Launch, devices: int, nodes: int) -> str:
    started = found.processes
    shape = f" ({found.local_processes} on each of {found.nodes} machines)" if found.nodes > 1 else ""
    fix = f"start {devices * nodes}, or give trainer.devices={found.local_processes}"
    fix += f" trainer.num_nodes={found.nodes}" if found.nodes > 1 else ""
    if devices * nodes == 1:
        fix = f"start one, or give trainer=ddp (on CPUs trainer=ddp_sim trainer.devices={found.local_processes})"
    return (
        f"{who} {started} process{'es' * (started != 1)}{shape}, but the trainer has {devices * nodes} "
        f"(trainer.devices={devices}, trainer.num_nodes={nodes}): {fix}."
    )


def _count(devices: Any, accelerator: Any) -> int | None:
    """The devices of a machine that a value of trainer.devices stands for; None: those there are."""
    if isinstance(devices, str):
        if devices == "auto":
            return None
        if "," in devices:
            return len([part for part in devices.split(",") if part.strip()])
    if isinstance(devices, list):
        return len(devices)
    return int(devices) if int(devices) != -1 else _gpus(accelerator)


def _gpus(accelerator: Any) -> int | None:
    """The GPUs that this process sees; None if it does without."""
    on_gpu = accelerator in ("gpu", "cuda") or (accelerator == "auto" and torch.cuda.is_available())
    return torch.cuda.device_count() if on_gpu else None
