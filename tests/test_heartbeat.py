"""A process that dies or is stopped ends the others; real processes, at a store on this machine."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import distributed

from deepavfusion.callbacks.guard.heartbeat import Heartbeat
from deepavfusion.runs.signals import StopRequested
from deepavfusion.utils.errors import UserError
from deepavfusion.utils.launch.signals import STOPPED

BEAT, LIMIT = 0.1, 1.0  # s
SECONDS = timedelta(seconds=20)


class Processes:
    """Copies of this process that meet, and each do something; what one of them prints is in a file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pids: list[int] = []

    def start(self, count: int, do: Callable[[int, Heartbeat], None], limit: float = LIMIT) -> None:
        self.limit = limit
        self.pids = [self._fork(rank, count, do) for rank in range(count)]

    def _fork(self, rank: int, count: int, do: Callable[[int, Heartbeat], None]) -> int:
        pid = os.fork()
        if pid:
            return pid
        status = 1
        try:
            os.dup2(os.open(self.folder / f"{rank}.txt", os.O_WRONLY | os.O_CREAT), 2)
            if rank == 0:
                store = distributed.TCPStore("127.0.0.1", 0, count, True, SECONDS, False)
                (self.folder / "port.new").write_text(str(store.port))
                (self.folder / "port.new").rename(self.folder / "port")
            else:
                while not (self.folder / "port").exists():
                    time.sleep(0.01)
                port = int((self.folder / "port").read_text())
                store = distributed.TCPStore("127.0.0.1", port, count, False, SECONDS)

            def leave(text: str, status: int) -> None:
                os.write(2, text.encode())
                os._exit(status)

            beat = Heartbeat(store.clone, rank, count, leave, "it continues.", BEAT, self.limit)
            (self.folder / f"ready{rank}").touch()
            do(rank, beat)
            beat.over.set()
            beat.stop()
            status = 0
        finally:
            os._exit(status)

    def met(self, seconds: float = 4 * BEAT) -> None:
        deadline = time.monotonic() + 60
        while not all((self.folder / f"ready{rank}").exists() for rank in range(len(self.pids))):
            assert time.monotonic() < deadline, "some processes have not met"
            time.sleep(0.01)
        time.sleep(seconds)

    def statuses(self, *ranks: int) -> list[int]:
        """Exit statuses, once they have ended; whoever has not after half a minute is killed."""
        found = []
        for rank in ranks:
            deadline = time.monotonic() + 30
            while not (answer := os.waitpid(self.pids[rank], os.WNOHANG))[0]:
                if time.monotonic() > deadline:
                    os.kill(self.pids[rank], signal.SIGKILL)
                time.sleep(0.02)
            found.append(os.waitstatus_to_exitcode(answer[1]))
        return found

    def text(self, rank: int) -> str:
        return (self.folder / f"{rank}.txt").read_text()


@pytest.fixture
def group(tmp_path: Path) -> Iterator[Callable[[], Processes]]:
    """Makes groups of processes, which a test runs side by side."""
    groups: list[Processes] = []

    def new() -> Processes:
        folder = tmp_path / str(len(groups))
        folder.mkdir()
        groups.append(Processes(folder))
        return groups[-1]

    yield new
    for pid in (pid for group in groups for pid in group.pids):
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


@pytest.fixture
def processes(group: Callable[[], Processes]) -> Processes:
    return group()


def wait(_: int, __: Heartbeat) -> None:
    time.sleep(30)  # in a collective, as it were


def test_a_process_that_dies_or_stands_still_ends_the_others(group: Callable[[], Processes]) -> None:
    cases = [(group(), number, victim) for number in (signal.SIGKILL, signal.SIGSTOP) for victim in (1, 0)]
    for processes, _, _ in cases:
        processes.start(3, wait)
    for processes, _, _ in cases:
        processes.met()
        assert [os.waitpid(pid, os.WNOHANG)[0] for pid in processes.pids] == [0] * 3
    began = time.monotonic()
    for processes, number, victim in cases:
        os.kill(processes.pids[victim], number)
    for processes, _, victim in cases:
        others = [rank for rank in range(3) if rank != victim]
        assert processes.statuses(*others) == [STOPPED, STOPPED]
        assert LIMIT / 2 < time.monotonic() - began < 15
        said = [processes.text(rank) for rank in others]
        assert f"rank {victim} on {os.uname().nodename} gave no sign of life for 1 s" in said[0]
        assert said[0].endswith("it continues.")
        if victim:
            assert said[1] == ""  # the first process told it


def test_a_process_that_fails_ends_the_others_with_its_status(processes: Processes) -> None:
    def fail(rank: int, beat: Heartbeat) -> None:
        if rank == 2:
            time.sleep(5 * BEAT)
            beat.ends(UserError("a mistake"))
            return
        time.sleep(30)

    processes.start(3, fail)
    assert processes.statuses(0, 1, 2) == [2, 2, 0]
    assert processes.text(0) == f"rank 2 on {os.uname().nodename} ended with status 2: see above."


def test_a_process_that_ends_in_the_middle_is_not_done(processes: Processes) -> None:
    """As by a callback that raises before the one that tells the others."""

    def end(rank: int, beat: Heartbeat) -> None:
        if rank:
            time.sleep(5 * BEAT)
            beat.stop()
            return
        time.sleep(30)

    processes.start(2, end)
    assert processes.statuses(0, 1) == [1, 0]
    assert processes.text(0) == f"rank 1 on {os.uname().nodename} ended with status 1: see above."


def test_the_first_process_that_fails_ends_the_others_with_its_status(processes: Processes) -> None:
    def fail(rank: int, beat: Heartbeat) -> None:
        if rank:
            time.sleep(30)
        time.sleep(5 * BEAT)
        beat.ends(ValueError("a bug"))

    processes.start(3, fail)
    assert processes.statuses(0, 1, 2) == [0, 1, 1]
    assert processes.text(1) == ""


@pytest.mark.full
def test_processes_that_are_late_suspended_or_done_end_nothing(group: Callable[[], Processes]) -> None:
    """Of the first group, a process stands still for less than the limit; of the second, all of them for longer, as
    SLURM suspends a job; of the third, one ends before the others, which are in no training."""

    def end(rank: int, beat: Heartbeat) -> None:
        beat.over.set()
        time.sleep(0.0 if rank == 1 else 2.5 * LIMIT if rank == 0 else 1.5 * LIMIT)

    def work(rank: int, _: Heartbeat) -> None:
        time.sleep(2.5 * LIMIT if rank == 0 else 2 * LIMIT)  # the store is there until all have ended

    late, suspended, done = group(), group(), group()
    late.start(2, work, limit=20 * LIMIT)
    suspended.start(2, work)
    done.start(3, end)
    for processes in (late, suspended):
        processes.met()
    stopped = [late.pids[1], *suspended.pids]
    for number in (signal.SIGSTOP, signal.SIGCONT):
        for pid in stopped:
            os.kill(pid, number)
        time.sleep(1.5 * LIMIT)
    for processes, ranks in ((late, (0, 1)), (suspended, (0, 1)), (done, (0, 1, 2))):
        assert [processes.text(rank) for rank in ranks] == [""] * len(ranks)  # neither from the library
        assert processes.statuses(*ranks) == [0] * len(ranks)


def test_a_connection_that_breaks_is_explained_by_who_died(processes: Processes) -> None:
    def reduce(rank: int, beat: Heartbeat) -> None:
        torch.set_num_threads(1)
        distributed.init_process_group("gloo", store=beat.connect(), rank=rank, world_size=2, timeout=SECONDS)
        if rank:
            time.sleep(30)
        try:
            distributed.all_reduce(torch.zeros(1))
        except RuntimeError:
            beat.leave(*beat.text(beat.dead()))

    processes.start(2, reduce)
    processes.met(1.0)
    os.kill(processes.pids[1], signal.SIGKILL)
    assert processes.statuses(0) == [STOPPED]
    assert f"rank 1 on {os.uname().nodename} gave no sign of life" in processes.text(0)


@pytest.mark.full
def test_an_error_of_ones_own_is_no_broken_connection(processes: Processes) -> None:
    def fail(rank: int, beat: Heartbeat) -> None:
        time.sleep(5 * BEAT)
        if rank:
            time.sleep(10 * BEAT)
            return
        os.write(2, f"dead: {beat.dead()}".encode())

    processes.start(2, fail)
    assert processes.statuses(0, 1) == [0, 0]
    assert processes.text(0) == "dead: []"


def test_the_first_process_does_not_wait_for_who_failed_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    first = Heartbeat(lambda: None, 0, 3, pytest.fail, "", BEAT, 60.0)
    first.signs = {1: "4 2", 2: "7 done"}
    monkeypatch.setattr(first, "_read", lambda *_: pytest.fail("waits"))
    first.stop()


def test_who_is_asked_to_stop_leaves_without_a_status() -> None:
    class Store:
        def __init__(self) -> None:
            self.values: dict[str, str] = {}

        def set(self, key: str, value: str) -> None:
            self.values[key] = value

        def check(self, keys: list[str]) -> bool:
            return False

        def has_extended_api(self) -> bool:
            return True

    store = Store()
    beat = Heartbeat(lambda: store, 1, 2, pytest.fail, "", BEAT, 60.0)
    beat.ends(StopRequested("stopped"))
    beat.stop()
    assert store.values["deepavfusion/heartbeat/1"].partition(" ")[2] == "left"
    first = Heartbeat(lambda: store, 0, 2, pytest.fail, "", BEAT, 60.0)
    first.stop()
    began = time.monotonic()
    first.stop()  # at the exit, once for each run of a sweep: nobody's last word is waited for again
    assert time.monotonic() - began < BEAT
