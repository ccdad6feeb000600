"""What launched a process, and whether the trainer fits to it; by the variables that launchers set."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.fabric.plugins.environments import LightningEnvironment
from torch.distributed import TCPStore

from deepavfusion.cli import entry
from deepavfusion.runs import directory
from deepavfusion.runs.directory import METRICS, choose_run_dir, held
from deepavfusion.utils.console import rank_zero
from deepavfusion.utils.errors import SaidByFirst, UserError
from deepavfusion.utils.launch import trainer as launch_trainer
from deepavfusion.utils.launch.launcher import COUNTS, FIRST, Launch, alone, launch
from deepavfusion.utils.launch.trainer import LaunchedEnvironment, fit, meet
from deepavfusion.utils.processes import check_counts, check_single

TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2", "RANK": "1", "LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "1"}
TORCHRUN |= {"GROUP_WORLD_SIZE": "1", "GROUP_RANK": "0"}
FOUR = TORCHRUN | {"WORLD_SIZE": "4", "RANK": "3", "GROUP_WORLD_SIZE": "2", "GROUP_RANK": "1"}
JOB = {"SLURM_JOB_ID": "4216", "SLURM_NTASKS": "4", "SLURM_NNODES": "2", "SLURM_JOB_NAME": "train"}
SRUN = JOB | {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "1", "SLURM_PROCID": "1"}
SRUN |= {"SLURM_LOCALID": "1", "SLURM_NODEID": "0", "SLURM_STEP_TASKS_PER_NODE": "2"}
ON_TWO = SRUN | {"SLURM_STEP_NUM_NODES": "2", "SLURM_LOCALID": "0", "SLURM_NODEID": "1"}
ON_TWO |= {"SLURM_STEP_TASKS_PER_NODE": "1(x2)", "SLURM_STEP_NODELIST": "gpu[07-08]"}
UNEVEN = ON_TWO | {"SLURM_STEP_NUM_TASKS": "3", "SLURM_PROCID": "2", "SLURM_STEP_TASKS_PER_NODE": "2,1"}
MPIRUN = {f"OMPI_COMM_WORLD_{name}": value for name, value in (("SIZE", "2"), ("RANK", "1"))}
MPIRUN |= {"OMPI_COMM_WORLD_LOCAL_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
JSRUN = {"JSM_NAMESPACE_SIZE": "2", "JSM_NAMESPACE_RANK": "1", "JSM_NAMESPACE_LOCAL_RANK": "1"}
SUBMITIT = {"SUBMITIT_LOCAL_NTASKS": "2", "SUBMITIT_LOCAL_GLOBALID": "1", "SUBMITIT_LOCAL_LOCALID": "1"}
BATCH = JOB | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}  # python in its script, without srun
ONE_TASK = SRUN | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}  # srun -n1, or a shell
HYDRA = {"PMI_SIZE": "2", "PMI_RANK": "1", "MPI_LOCALNRANKS": "2", "MPI_LOCALRANKID": "1"}


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (FIRST, "TORCHELASTIC_RUN_ID", "MASTER_ADDR", *COUNTS, directory.RUN_DIR_VARIABLE):
        monkeypatch.delenv(name, raising=False)


def set_all(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, Launch()),
        (TORCHRUN, Launch("torchrun", 2, 1, 2, 1, 1, 0)),
        (FOUR, Launch("torchrun", 4, 3, 2, 1, 2, 1)),
        (SRUN, Launch("srun", 2, 1, 2, 1, 1, 0)),
        (SRUN | TORCHRUN, Launch("torchrun", 2, 1, 2, 1, 1, 0)),
        (ON_TWO, Launch("srun", 2, 1, 1, 0, 2, 1)),
        (MPIRUN, Launch("mpirun", 2, 1, 2, 1, 1, 0)),
        (SRUN | {"SLURM_PROCID": "0"} | MPIRUN, Launch("mpirun", 2, 1, 2, 1, 1, 0)),  # started by srun itself
        (HYDRA, Launch("mpiexec", 2, 1, 2, 1, 1, 0)),
        (SRUN | {"PMI_SIZE": "2", "PMI_RANK": "1"}, Launch("srun", 2, 1, 2, 1, 1, 0)),  # srun --mpi=pmi2
        (JSRUN, Launch("jsrun", 2, 1, 2, 1, 1, 0)),
        (SUBMITIT, Launch("submitit", 2, 1, 2, 1, 1, 0)),
        (JOB, Launch()),  # the shell of salloc
        (BATCH, Launch()),
        (ONE_TASK, Launch("srun", 1, 0, 1, 0, 1, 0)),  # within a job of four tasks
        ({"LOCAL_RANK": "1", "WORLD_SIZE": "2", FIRST: str(os.getppid())}, Launch("lightning", 2, 1, 2, 1, 1, 0)),
        (ONE_TASK | {"LOCAL_RANK": "1", "WORLD_SIZE": "2", FIRST: str(os.getppid())}, Launch("lightning", 2, 1, 2, 1)),
        ({"WORLD_SIZE": "4"}, Launch("variables", 4, 0, 4, 0, 1, 0)),
        ({"RANK": "3"}, Launch("variables", 4, 3, 1, 0, 1, 0)),
        ({"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}, Launch()),
        ({"WORLD_SIZE": "", "SLURM_STEP_NUM_TASKS": "x"}, Launch()),
    ],
)
def test_each_launcher_is_recognised(variables: dict[str, str], expected: Launch, monkeypatch) -> None:
    assert launch(variables) == expected
    set_all(monkeypatch, variables)
    assert rank_zero() == (expected.rank == 0)
    assert launch(alone()) == Launch()


@pytest.mark.parametrize(
    ("variables", "given", "words"),
    [
        (TORCHRUN, (1, 1, "cpu"), ["torchrun started 2 processes, but the trainer has 1", "trainer=ddp_sim"]),
        (TORCHRUN | {"WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "3"}, (2, 1, "cpu"), ["3 processes", "trainer.devices=3"]),
        (TORCHRUN | {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_WORLD_SIZE": "1"}, (2, 1, "cpu"), ["1 process, but", "2"]),
        (TORCHRUN, ("0,1,2", 1, "cpu"), ["has 3", "trainer.devices=2"]),
        (TORCHRUN, ([0], 1, "cpu"), ["has 1"]),
        (SRUN, (1, 1, "cpu"), ["srun started 2 processes, but the trainer has 1 "]),
        (ON_TWO, (2, 1, "cpu"), ["2 processes (1 on each of 2 machines)", "trainer.devices=1 trainer.num_nodes=2"]),
        (ON_TWO, ("auto", 3, "cpu", True), ["trainer has 3 (trainer.devices=1, trainer.num_nodes=3)"]),
        (UNEVEN, ("auto", 1, "cpu"), ["srun started 3 processes, 1 of them on one of 2 machines", "ntasks-per-node"]),
        (MPIRUN, (1, 1, "cpu"), ["mpirun started 2 processes, but the trainer has 1 "]),
        (JSRUN, (1, 1, "cpu"), ["jsrun started 2"]),
        (SUBMITIT, (1, 1, "cpu"), ["submitit started 2"]),
        ({"WORLD_SIZE": "4"}, (1, 1, "cpu"), ["WORLD_SIZE=4", "has 1", "type unset WORLD_SIZE."]),
        ({"RANK": "3"}, ("auto", 1, "cpu"), ["RANK=3", "type unset RANK."]),
        ({"LOCAL_RANK": "1"}, (2, 1, "cpu"), ["LOCAL_RANK=1", "type unset LOCAL_RANK."]),
        ({"NODE_RANK": "1"}, (1, 1, "cpu"), ["NODE_RANK=1", "type unset NODE_RANK."]),
        ({"RANK": "1", "WORLD_SIZE": "2"}, (2, 1, "cpu"), ["RANK=1, WORLD_SIZE=2"]),
        ({}, (1, 2, "cpu"), ["trainer.num_nodes=2, but no launcher"]),
        (BATCH, (1, 2, "cpu"), ["trainer.num_nodes=2, but no launcher"]),
    ],
)
def test_another_number_of_processes_is_an_error(
    variables: dict[str, str], given: tuple, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    set_all(monkeypatch, variables)
    with pytest.raises(UserError) as error:
        fit(*given)
    assert all(word in str(error.value) for word in words), error.value
    by_hand = launch().by == "variables"  # perhaps nobody else is there who would say it
    assert isinstance(error.value, SaidByFirst) != by_hand


@pytest.mark.parametrize(
    ("variables", "given", "devices", "nodes"),
    [
        (TORCHRUN, ("auto", 1, "auto"), 2, 1),
        (TORCHRUN, (2, 1, "cpu"), 2, 1),
        (FOUR, ("auto", 1, "auto"), 2, 2),
        (FOUR, (2, 2, "cpu", True), 2, 2),
        (SRUN, ("auto", 1, "cpu"), 2, 1),  # without --ntasks-per-node
        (ON_TWO, ("auto", 1, "cpu"), 1, 2),
        (MPIRUN, ("auto", 1, "cpu"), 2, 1),
        (JSRUN, (2, 1, "cpu"), 2, 1),
    ],
)
def test_the_trainer_follows_the_launcher(variables, given, devices, nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    set_all(monkeypatch, variables)
    found = fit(*given)
    assert found[:2] == (devices, nodes)
    trainer = Trainer(
        accelerator="cpu", devices=found.devices, num_nodes=found.num_nodes, plugins=[found.environment], logger=False
    )
    assert (trainer.world_size, trainer.global_rank) == (launch().processes, launch().rank)
    assert trainer.strategy.cluster_environment.creates_processes_externally
    assert trainer.num_devices == devices


@pytest.mark.parametrize("variables", [{}, JOB, BATCH, ONE_TASK, {"LOCAL_RANK": "0"}, {"WORLD_SIZE": "2"}])
def test_lightning_starts_the_processes_where_no_launcher_does(variables, monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, variables)
    found = fit(2, 1, "cpu")
    trainer = Trainer(accelerator="cpu", devices=found.devices, plugins=[found.environment], logger=False)
    assert isinstance(trainer.strategy.cluster_environment, LightningEnvironment)
    assert not trainer.strategy.cluster_environment.creates_processes_externally
    assert (trainer.world_size, trainer.global_rank) == (2, 0)


def test_each_process_has_to_see_every_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, SRUN)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(SaidByFirst, match=r"2 processes on a machine, each of which sees 1 GPU: .*no --gpus-per-task"):
        fit("auto", 1, "gpu")


@pytest.mark.parametrize(("given", "devices"), [("2,3", "2,3"), ([2, 3], [2, 3]), (2, 2), ("2", "2"), ("auto", 2)])
def test_the_gpus_that_were_named_are_used(given, devices, monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, TORCHRUN)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert fit(given, 1, "gpu").devices == devices


def test_processes_of_a_launcher_know_where_to_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, ON_TWO)
    there = LaunchedEnvironment(launch())
    assert there.main_address == "gpu07"
    port = there.main_port
    assert 15_000 <= port < 25_000
    monkeypatch.setenv("SLURM_STEP_ID", "1")
    assert there.main_port != port
    set_all(monkeypatch, {"MASTER_ADDR": "here", "MASTER_PORT": "4"})
    assert (there.main_address, there.main_port) == ("here", 4)
    monkeypatch.delenv("MASTER_ADDR")
    with pytest.raises(SaidByFirst, match=r"mpirun started processes on 2 machines, .*export MASTER_ADDR"):
        _ = LaunchedEnvironment(Launch("mpirun", 4, 0, 2, 0, 2, 0)).main_address


@pytest.mark.parametrize(("local_rank", "kind"), [("0", UserError), ("1", SaidByFirst)])
def test_processes_that_cannot_meet_end_in_one_sentence(local_rank, kind, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", local_rank)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setenv("MASTER_PORT", str(port))
        with pytest.raises(UserError) as error:
            meet(LightningEnvironment(), lambda: TCPStore("127.0.0.1", port, 2, True) and None)
    assert type(error.value) is kind
    assert f"cannot meet at 127.0.0.1:{port} (" in str(error.value)
    assert "EADDRINUSE" in str(error.value)


def test_process_that_waits_to_meet_others_says_so(monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    monkeypatch.setenv("MASTER_ADDR", "first")
    monkeypatch.setenv("MASTER_PORT", "1234")
    monkeypatch.setattr(launch_trainer, "QUIET", 0.01)
    meet(LightningEnvironment(), lambda: time.sleep(0.2))
    assert capfd.readouterr().err == "waiting at first:1234 for the other processes of this run …\n"


@pytest.mark.parametrize(
    "variables",
    [
        {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "5"},
        {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "4", "RANK": "1", "LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "2"},
    ],
)
def test_ranks_beyond_the_number_of_processes_are_an_error(variables: dict[str, str]) -> None:
    with pytest.raises(UserError, match=r"the variables .*=2.* contradict each other: .*without it \(unset "):
        check_counts(variables)
    check_counts({name: "1" if name.endswith("RANK") else value for name, value in variables.items()})


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        (SRUN, "slurm_4216"),
        (SRUN | {"SLURM_STEP_ID": "3"}, "slurm_4216.3"),
        (SRUN | {"SLURM_ARRAY_JOB_ID": "40", "SLURM_ARRAY_TASK_ID": "7"}, "slurm_40_7"),
    ],
)
def test_a_run_without_a_name_has_that_of_its_job(variables, name, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, variables)
    assert choose_run_dir(tmp_path, "x") == tmp_path / "x/runs" / name


def test_a_run_without_a_name_has_that_of_its_launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    show = (
        "from deepavfusion.runs.directory import choose_run_dir as choose; import sys; print(choose(sys.argv[1], 'x'))"
    )
    code = f"import subprocess, sys, os; [subprocess.run([sys.executable, '-c', {show!r}, sys.argv[1]],"
    code += " env={**os.environ, **eval(sys.argv[2]), 'RANK': str(n)}) for n in (0, 1)]"
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path, repr(TORCHRUN)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": "src"},
    )
    first, second = done.stdout.split()
    assert first == second
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d_\d+", Path(first).name)
    set_all(monkeypatch, FOUR)
    with pytest.raises(SaidByFirst, match=r"4 processes were started by torchrun .*: add run.name=<name>"):
        choose_run_dir(tmp_path, "x")


@pytest.mark.parametrize("variables", [TORCHRUN, SRUN, MPIRUN])
def test_scripts_that_are_one_process_are_refused_to_two(variables, monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, variables)
    with pytest.raises(SaidByFirst, match=r"started 2 processes of prepare.py, which would write the same files"):
        check_single("prepare")


def test_the_first_process_speaks_for_all(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    waited: list[float] = []
    monkeypatch.setattr(entry, "time", SimpleNamespace(sleep=waited.append))
    for variables, error, said in (
        (TORCHRUN | {"RANK": "0"}, SaidByFirst("wrong"), True),
        (TORCHRUN, SaidByFirst("wrong"), False),
        (TORCHRUN, UserError("wrong here"), True),
    ):
        set_all(monkeypatch, variables)
        with pytest.raises(SystemExit) as end, entry.reported({}):
            raise error
        assert end.value.code == 2
        assert ("wrong" in capsys.readouterr().err) == said
    assert waited == [entry.FIRST_SAYS] * 2


@pytest.mark.parametrize("sweep", [False, True])
def test_the_end_of_a_run_is_that_of_its_command_unless_others_follow(sweep, tmp_path, monkeypatch) -> None:
    undone: list[Callable[[], Any]] = []
    ended: list[int] = []
    monkeypatch.setattr(directory, "on_leaving", undone.append)
    monkeypatch.setattr(directory, "finish", ended.append)
    monkeypatch.setattr(directory, "in_sweep", lambda: sweep)
    with held(tmp_path):
        (tmp_path / METRICS).touch()
    for undo in undone:  # a signal comes, perhaps in the middle of the next run
        undo()
    assert ended == ([] if sweep else [0])
