"""Worker processes and the signals of whole groups; cores of this process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deepavfusion.config.compose import REPOSITORY
from deepavfusion.utils import pool
from deepavfusion.utils.launch import cores as cores_module
from deepavfusion.utils.launch.cores import Cores, cores, decoding_workers, own_cores, quotas
from deepavfusion.utils.launch.launcher import COUNTS
from deepavfusion.utils.launch.workers import GROUP, shielded, worker_context
from deepavfusion.utils.pool import Lost, call_apart

SHARED = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "3", "RANK": "0", "LOCAL_RANK": "0"}


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_worker_ends_when_it_is_asked_to_and_by_no_other_signal(method: str) -> None:
    worker = worker_context(method).Process(target=time.sleep, args=(60,), daemon=True)  # type: ignore[attr-defined]
    worker.start()
    for number in (*GROUP, signal.SIGCONT):
        os.kill(worker.pid, number)
    worker.join(0.3)
    assert worker.is_alive()
    begin = time.monotonic()
    worker._popen.terminate()  # as multiprocessing does at exit, and a DataLoader through `terminate`
    worker.join(10)
    assert worker.exitcode in (-signal.SIGKILL, 255)  # a fork server does not say
    assert time.monotonic() - begin < 2
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & set(GROUP)


def test_what_a_process_is_sent_while_it_starts_others_is_not_lost() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: heard.append(number))
    try:
        with shielded():
            signal.pthread_kill(__import__("threading").get_ident(), signal.SIGUSR1)
            assert heard == []
        assert heard == [signal.SIGUSR1]
    finally:
        signal.signal(signal.SIGUSR1, before)


def signal_everyone(number: int) -> int:
    """To this worker, the fork server and its helpers, as SLURM does."""
    for pid in (os.getpid(), os.getppid()):
        for each in GROUP:
            os.kill(pid, each)
    return number


def test_a_pool_goes_on_when_all_its_processes_are_asked_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "PRELOAD", [])
    begin = time.monotonic()
    found = sorted(call_apart(signal_everyone, range(6), 2, 20.0), key=lambda pair: pair[0])
    assert found == [(n, n) for n in range(6)]
    assert not any(isinstance(result, Lost) for _, result in found)
    assert time.monotonic() - begin < 30


def test_a_worker_that_hangs_ends_with_its_parent() -> None:
    code = """
import time
from deepavfusion.utils.launch.workers import die_with_parent, worker_context
def hang():
    die_with_parent()
    time.sleep(600)
worker = worker_context("fork").Process(target=hang)
worker.start()
print(worker.pid, flush=True)
time.sleep(600)
"""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "src")}
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    time.sleep(0.2)
    parent.kill()
    parent.wait()
    until = time.monotonic() + 10
    while is_running(pid) and time.monotonic() < until:
        time.sleep(0.05)
    assert not is_running(pid)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


# ---------------------------------------------------------------- cores


def tree(folder: Path, membership: str, files: dict[str, str]) -> tuple[Path, Path]:
    groups, processes = folder / "cgroup", folder / "proc"
    (processes / "self").mkdir(parents=True)
    (processes / "self" / "cgroup").write_text(membership)
    for name, text in files.items():
        path = groups / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return groups, processes


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, [("/", 1.5)]),
        ("0::/\n", {"cpu.max": "max 100000\n"}, []),
        ("0::/\n", {}, []),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000", "a/cpu.max": "50000 100000", "cpu.max": "max"}, [("/a", 0.5)]),
        ("0::/a/b\n", {"a/b/cpu.max": "800000 100000", "a/cpu.max": "400000 100000"}, [("/a/b", 8), ("/a", 4)]),
        (
            "4:cpu,cpuacct:/docker/x\n3:cpuset:/\n0::/\n",
            {"cpu/docker/x/cpu.cfs_quota_us": "250000", "cpu/docker/x/cpu.cfs_period_us": "100000"},
            [("/docker/x", 2.5)],
        ),
        ("4:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, []),
        ("4:cpu:/docker/x\n", {"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, [("/", 3)]),
        ("nonsense", {}, []),
    ],
)
def test_quotas_of_containers(membership: str, files: dict[str, str], expected: list, tmp_path: Path) -> None:
    assert list(quotas(*tree(tmp_path, membership, files))) == expected


@pytest.mark.parametrize(("quota", "count"), [(0.5, 1), (1.5, 1), (3.9, 3), (64.0, 16)])
def test_cores_are_those_of_the_quota_and_never_none(quota: float, count: int, monkeypatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    monkeypatch.setattr(cores_module, "quotas", lambda: iter([("/", quota)]))
    assert cores() == count
    assert own_cores() == Cores(count, 16, f"quota of {quota:g}" if count < 16 else "")


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch):
    """Starts processes beside this one, each on cores of a machine of 16, with variables."""
    for name in ("TORCHELASTIC_RUN_ID", "SLURM_CPUS_PER_TASK", *COUNTS):
        monkeypatch.delenv(name, raising=False)
    bound: dict[int, set[int]] = {}
    monkeypatch.setattr(
        os, "sched_getaffinity", lambda pid: bound.get(pid, bound.get(os.getpid() if not pid else 0, set()))
    )
    monkeypatch.setattr(cores_module, "launcher_process", lambda _: os.getpid())
    monkeypatch.setattr(cores_module, "quotas", lambda: iter(()))
    started: list[subprocess.Popen[bytes]] = []

    def start(mine: set[int], *others: set[int], **variables: str) -> None:
        bound[os.getpid()] = mine
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        for number, theirs in enumerate(others, 1):
            ranks = {name: str(number) for name in ("RANK", "SLURM_PROCID")}
            started.append(subprocess.Popen(["sleep", "60"], env={**os.environ, **variables, **ranks}))
            bound[started[-1].pid] = theirs

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_processes_that_share_cores_divide_them(launched) -> None:
    launched(set(range(16)), set(range(16)), set(range(16)), **SHARED)
    assert own_cores(3) == Cores(5, 16, "shared by 3")
    assert decoding_workers(3) == 5


def test_processes_that_are_bound_to_cores_keep_them(launched) -> None:
    launched(set(range(8)), set(range(8, 16)), **{**SHARED, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"})
    assert own_cores(2) == Cores(8, 8, "bound by torchrun")


def test_cores_that_some_share_count_in_parts(launched) -> None:
    launched(set(range(8)), set(range(4, 12)), **{**SHARED, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"})
    assert own_cores(2) == Cores(6, 8, "shared by 2")  # 4 of its own, and half of 4


def test_a_quota_is_shared_by_those_that_are_under_it(launched, monkeypatch: pytest.MonkeyPatch) -> None:
    launched(set(range(16)), set(range(16)), set(range(16)), **SHARED)
    monkeypatch.setattr(cores_module, "quotas", lambda: iter([("/", 6.0)]))
    monkeypatch.setattr(cores_module, "_is_in", lambda pid, group: True)
    assert own_cores(3) == Cores(2, 16, "quota of 6 shared by 3")


def test_processes_that_cannot_be_seen_share_unless_slurm_binds_them(launched, monkeypatch) -> None:
    step = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0", "SLURM_STEP_TASKS_PER_NODE": "2"}
    launched(set(range(8)), **step)
    assert own_cores(2) == Cores(4, 8, "shared by 2")
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "8")
    assert own_cores(2) == Cores(8, 8, "bound by srun")


def test_processes_that_lightning_starts_share_all(launched) -> None:
    launched(set(range(16)))
    assert own_cores(4) == Cores(4, 16, "shared by 4")
    assert own_cores(64) == Cores(1, 16, "shared by 64")
    assert own_cores() == Cores(16, 16)
    assert decoding_workers() == 16
