"""Studies: the processes that work on their runs."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from omegaconf import DictConfig

from deepavfusion.config.compose import REPOSITORY
from deepavfusion.runs.directory import METRICS, OVERRIDES
from deepavfusion.runs.lock import locked
from deepavfusion.runs.signals import StopRequested
from deepavfusion.study import execute
from deepavfusion.study.execute import Executor
from deepavfusion.study.plan import Plan
from deepavfusion.study.results import rows_of
from deepavfusion.study.study import dealt
from deepavfusion.study.work import (
    COST,
    costs_of,
    failure_of,
    forget,
    note_failure,
    remove_checkpoints,
    work,
)
from deepavfusion.utils.errors import UserError
from deepavfusion.utils.launch.launcher import alone
from helpers.runs import sentence
from helpers.studies import results, write_study
from test_study import plan, staged

WORKER = """
import json, os, signal, sys, time
number = int(sys.argv[-1].partition("=")[2])
for run, todo in json.loads(open(sys.argv[1]).read())[number]:
    if os.path.exists(os.path.join(run, "metrics.json")) or os.path.exists(todo.get("failure", "-")):
        continue
    os.makedirs(run, exist_ok=True)
    starts = len(os.listdir(run)) + 1
    open(os.path.join(run, f"start_{starts}"), "w").close()
    if starts <= todo.get("killed", 0):
        os.kill(os.getpid(), signal.SIGKILL)
    if "wait" in todo:
        signal.signal(signal.SIGTERM, lambda *_: (open(os.path.join(run, "saved"), "w").close(), sys.exit(75)))
        time.sleep(todo["wait"])
    with open(os.path.join(run, "metrics.json"), "w") as file:
        json.dump({"test/top1": 0.5}, file)
"""


@pytest.fixture
def faked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Prepares an executor of a plan of two chains with two runs each, whose processes only do as they are told.

    Its argument says what befalls runs, by chain and stage.
    """
    (tmp_path / "worker.py").write_text(WORKER)
    monkeypatch.setattr(execute, "LOOK_EVERY", 0.05)

    def prepare(
        processes: int = 2, numbers: list[int] | None = None, axes: Any = None, **todo: dict[str, Any]
    ) -> Executor:
        found = plan(tmp_path / "logs", axes or {"model.blr": [1, 2]}, staged(), seeds=1)
        failures = found.failures
        told = [
            [
                (
                    str(run.directory),
                    {**todo.get(f"{run.stage.name}_{n}", {}), "failure": str(failures / f"{run.name}.txt")},
                )
                for run in chain.runs
            ]
            for n, chain in enumerate(found.chains)
        ]
        (tmp_path / "todo.json").write_text(json.dumps(told))
        words = [sys.executable, str(tmp_path / "worker.py"), str(tmp_path / "todo.json")]
        monkeypatch.setattr(execute, "starting", lambda _: words)
        return Executor(found, [], processes, [], numbers=numbers)

    return prepare


def starts_of(found: Plan) -> dict[str, int]:
    return {run.name.rpartition("_")[0]: len(list(run.directory.glob("start_*"))) for run in found.runs}


def test_every_chain_is_worked_on_and_what_is_finished_is_not_repeated(faked: Any) -> None:
    executor = faked()
    executor.run()
    assert set(starts_of(executor.plan).values()) == {1}
    faked().run()
    assert set(starts_of(executor.plan).values()) == {1}


def test_the_job_of_a_sweep_works_on_its_chain_alone(faked: Any) -> None:
    executor = faked(numbers=[1])
    first, second = executor.plan.chains
    note_failure(first.runs[0], executor.failures, "of another job")
    executor.run()
    assert all(run.finished for run in second.runs)
    assert not any(run.finished for run in first.runs)
    assert failure_of(first.runs[0], executor.failures) == "of another job"


def test_the_time_left_is_that_of_the_runs_that_are_left(faked: Any) -> None:
    executor = faked()
    executor.seconds = {run.name: 60.0 for run in executor.plan.runs}
    assert executor.time_left() == 120.0  # four runs, two at a time
    executor.run()
    assert executor.time_left() == 0.0


def test_a_chain_whose_process_was_killed_is_taken_up_again(faked: Any) -> None:
    executor = faked(pretrain_0={"killed": 1})
    executor.run()
    assert all(run.finished for run in executor.plan.runs)


def test_a_run_that_is_killed_again_and_again_is_named_and_the_others_go_on(faked: Any) -> None:
    executor = faked(probe_0={"killed": 9})
    executor.run()
    lost = [run for run in executor.plan.runs if not run.finished]
    assert [run.name for run in lost] == [executor.plan.chains[0].runs[1].name]
    assert "SIGKILL" in (failure_of(lost[0], executor.failures) or "")
    faked().run()  # the same command tries it again
    assert lost[0].finished


def test_a_chain_waits_for_the_run_of_another_without_a_process(faked: Any, tmp_path: Path) -> None:
    """And one that was killed meanwhile does not take the blame for it."""
    axes = {"model.momentum": [0.9, 0.8]}
    executor = faked(axes=axes, pretrain_0={"wait": 1})
    begun: list[tuple[int, bool]] = []
    start = executor._start
    executor._start = lambda number, place: (begun.append((number, executor.runs[0].finished)), start(number, place))
    executor.run()
    assert begun == [(0, False), (1, True)]
    assert set(starts_of(executor.plan).values()) == {1}


def test_a_killed_chain_is_not_said_to_have_failed_in_a_run_that_another_trains(
    faked: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = faked(axes={"model.momentum": [0.9, 0.8]}, numbers=[1])
    shared, own = executor.plan.chains[1].runs
    monkeypatch.setattr(execute, "is_held", lambda directory: directory == shared.directory)
    log = (executor.plan.folder / "log").open("wb") if executor.plan.folder.mkdir(parents=True) is None else None
    process = subprocess.Popen([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"])
    process.wait()
    executor.attempts[1] = execute.ATTEMPTS
    waiting: Any = execute.deque()
    executor.jobs[0] = job = execute.Job(1, executor.chains[1], process, log, 0)
    executor._end(job, waiting)
    assert list(waiting) == [1]
    assert failure_of(shared, executor.failures) is None
    assert "SIGKILL" in (failure_of(own, executor.failures) or "")


@pytest.mark.parametrize(
    ("gpus", "processes", "shares"),
    [
        (8, None, [["0"], ["1"], ["2"], ["3"], ["4"], ["5"], ["6"], ["7"]]),
        (8, 3, [["0", "1"], ["2", "3"], ["4", "5"]]),
        (2, 1, [["0", "1"]]),
        (2, 3, [["0"], ["1"], ["0"]]),
        (0, 3, []),
    ],
)
def test_every_chain_has_as_many_gpus(gpus: int, processes: int | None, shares: list[list[str]]) -> None:
    assert dealt([str(n) for n in range(gpus)], processes) == shares


def test_a_signal_lets_the_chains_save_what_they_did(faked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    requeued: list[int] = []
    monkeypatch.setattr(execute, "requeue", requeued.append)
    executor = faked(probe_0={"wait": 60}, probe_1={"wait": 60})

    def stop() -> None:
        while len(list(executor.plan.folder.glob("classify/runs/*/start_1"))) < 2:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    import threading

    threading.Thread(target=stop, daemon=True).start()
    with pytest.raises(StopRequested, match="2 of 4 runs done: the same command continues"):
        executor.run()
    assert len(list(executor.plan.folder.glob("classify/runs/*/saved"))) == 2
    assert requeued == [signal.SIGTERM]


def test_a_full_disk_ends_the_study_before_a_run_is_spoilt(faked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    executor = faked()
    monkeypatch.setattr(execute, "LEAST_FREE", 1e9)
    with pytest.raises(UserError, match="GB left: make room"):
        executor.run()
    assert not any(starts_of(executor.plan).values())


def test_what_fails_is_noted_and_what_starts_from_it_is_not_run(tmp_path: Path) -> None:
    """The pre-training reads a folder in which nothing is listed; the probe from scratch goes on to its own failure."""
    stages = staged()
    stages["pretrain"]["overrides"] = [f"data.root={tmp_path / 'data'}"]
    (tmp_path / "data").mkdir()
    (chain,) = plan(tmp_path / "logs", {"model.momentum": [0.9]}, stages, seeds=1).chains
    work(chain, tmp_path / "failed")
    first, second = (failure_of(run, tmp_path / "failed") for run in chain.runs)
    assert f"{tmp_path / 'data'}" in (first or "")
    assert second == f"not run, since {chain.runs[0].name}, which it starts from, failed"


def start(run: Any, last: bool = True) -> None:
    """A finished run, as far as others see it."""
    run.last.parent.mkdir(parents=True, exist_ok=True)
    if last:
        run.last.touch()
    (run.directory / "metrics.json").write_text('{"test/top1": 0.5}')
    (run.directory / COST).write_text('{"seconds": 1, "parts": 1}')


def test_checkpoints_are_removed_once_no_run_starts_from_them(tmp_path: Path) -> None:
    (first, second), (_, other) = (
        chain.runs for chain in plan(tmp_path, {"model.momentum": [0.9, 0.8]}, staged(), seeds=1).chains
    )
    runs = [first, second, other]
    start(first)
    start(second)
    remove_checkpoints(runs)
    assert (first.last.exists(), second.last.exists()) == (True, False)
    start(other)
    remove_checkpoints(runs)
    assert not first.last.exists()
    assert all(run.finished for run in runs)


def test_checkpoints_are_not_removed_before_the_costs_are_read_from_them(tmp_path: Path) -> None:
    (run,) = plan(tmp_path, {}, seeds=1).runs
    start(run)
    ended = (run.directory / "metrics.json").stat().st_mtime
    os.utime(run.directory / COST, (ended - 1, ended - 1))  # of its first part
    remove_checkpoints([run])
    assert run.last.exists()
    with locked(run.directory):
        os.utime(run.directory / COST)
        remove_checkpoints([run])
        assert run.last.exists()
    remove_checkpoints([run])
    assert not run.last.exists()
    start(run)
    (run.directory / COST).unlink()
    os.utime(run.directory / "metrics.json", (ended - 120, ended - 120))  # it was killed then
    remove_checkpoints([run])
    assert not run.last.exists()


def test_a_run_that_starts_from_removed_checkpoints_says_so(tmp_path: Path) -> None:
    (chain,) = plan(tmp_path / "logs", {"model.momentum": [0.9]}, staged(), seeds=1).chains
    start(chain.runs[0], last=False)
    work(chain, tmp_path / "failed")
    assert f"remove {chain.runs[0].directory} to train it again" in (
        failure_of(chain.runs[1], tmp_path / "failed") or ""
    )


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"seconds": -1, "parts": "x"}', '{"seconds": 1e999, "parts": true}'])
def test_costs_that_are_none_are_not_taken_for_some(tmp_path: Path, text: str) -> None:
    (tmp_path / COST).write_text(text)
    assert costs_of(tmp_path) == {}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "cannot be read as JSON"),
        ("[1]", "is no table of names and values"),
        ('{"test/top1": NaN}', "has nan for"),
    ],
)
def test_metrics_that_are_none_are_missing_in_the_report(tmp_path: Path, text: str, said: str) -> None:
    found = plan(tmp_path, {"model.momentum": [0.9, 0.8]}, seeds=1)
    for run in found.runs:
        start(run)
    (found.runs[0].directory / "metrics.json").write_text(text)
    rows = rows_of(found, tmp_path)
    assert said in rows[0].missing["probe"]
    assert rows[1].values


def test_a_note_of_a_failure_that_cannot_be_read_is_one_of_a_failure(tmp_path: Path) -> None:
    (run,) = plan(tmp_path, {"model.momentum": [0.9]}, seeds=1).runs
    note = tmp_path / f"{run.name}.txt"
    assert failure_of(run, tmp_path) is None
    note.write_bytes(b"\xff half\n a line")
    assert failure_of(run, tmp_path) == "\ufffd half a line"
    note.write_text("")
    assert "does not say why" in (failure_of(run, tmp_path) or "")
    note.unlink()
    note.mkdir()
    assert "cannot be read" in (failure_of(run, tmp_path) or "")


def test_a_job_of_a_cluster_tries_again_what_failed_before_it(tmp_path: Path) -> None:
    (chain,) = plan(tmp_path, {"model.momentum": [0.9]}, seeds=1).chains
    note_failure(chain.runs[0], tmp_path, "now")
    forget(chain, tmp_path)
    assert failure_of(chain.runs[0], tmp_path) == "now"
    os.utime(tmp_path / f"{chain.runs[0].name}.txt", (1, 1))
    forget(chain, tmp_path)
    assert failure_of(chain.runs[0], tmp_path) is None


def test_a_study_without_one_of_its_keys_is_told_so(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    said = sentence(monkeypatch, capsys, "study=data", "~study.seeds", script="study")
    assert said.endswith("study.seeds is missing: begin a study with defaults: [_study, _self_], and remove no key.")


def test_what_the_system_refuses_is_said_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "last.ckpt")

    monkeypatch.setattr("deepavfusion.study.work._train", refuse)
    (chain,) = plan(tmp_path / "logs", {"model.momentum": [0.9]}, seeds=1).chains
    work(chain, tmp_path / "failed")
    said = failure_of(chain.runs[0], tmp_path / "failed") or ""
    assert said.startswith("last.ckpt could not be written")


def test_making_demo_data_is_no_cost_of_the_run_that_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (chain,) = plan(tmp_path / "logs", {"model.momentum": [0.9]}, seeds=1).chains
    done, clock = list[str](), [0.0]

    def make(cfg: DictConfig) -> None:
        done.append(f"data of {cfg.run.name}")
        clock[0] += 100

    def train(cfg: DictConfig, overrides: list[str]) -> None:
        done.append(f"training of {cfg.run.name}")
        clock[0] += 5
        directory = Path(cfg.paths.log_dir, cfg.task, "runs", cfg.run.name)
        directory.mkdir(parents=True)
        (directory / OVERRIDES).touch()
        (directory / METRICS).write_text('{"test/top1": 0.5}')

    monkeypatch.setattr("deepavfusion.runs.build.ensure_demo_data", make)
    monkeypatch.setattr("deepavfusion.runs.training.train", train)
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    (run, *_) = chain.runs
    work(replace(chain, runs=(run,)), tmp_path / "failed")
    assert done == [f"data of {run.name}", f"training of {run.name}"]
    assert costs_of(run.directory)["seconds"] == 5


@pytest.mark.full
def test_a_study_that_is_killed_five_times_ends_with_the_same_report(data_root: Path, tmp_path: Path) -> None:
    """The main process, a worker or all of them are killed, soon after something new was saved."""
    write_study(tmp_path, data_root, epochs=20)  # enough to be killed in the middle of five times, on a fast machine

    def begin(logs: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "src/study.py", "--config-dir", str(tmp_path), "study=mine"]
        command += [f"paths.log_dir={tmp_path / logs}"]
        log = (tmp_path / f"{logs}.txt").open("ab")
        return subprocess.Popen(command, cwd=REPOSITORY, env=alone(), stdout=log, stderr=log, start_new_session=True)

    def saved() -> set[Path]:
        return set((tmp_path / "killed").glob("study/trial/*/runs/*/checkpoints/step_*.ckpt"))

    draw = random.Random(0)
    for who in ("main", "all", "worker", "all", "main"):
        process, before = begin("killed"), saved()
        while not saved() - before:
            assert process.poll() is None, (tmp_path / "killed.txt").read_text()
            time.sleep(0.05)
        time.sleep(draw.uniform(0, 1.5))
        assert process.poll() is None, "over before it was killed"
        if who == "worker":
            psutil.Process(process.pid).children()[0].kill()
            time.sleep(1)
            os.kill(process.pid, signal.SIGTERM)
            assert process.wait() == 75
        else:
            (os.killpg if who == "all" else os.kill)(process.pid, signal.SIGKILL)
            process.wait()
    assert begin("killed").wait() == 0, (tmp_path / "killed.txt").read_text()
    assert begin("whole").wait() == 0, (tmp_path / "whole.txt").read_text()
    assert results(tmp_path / "killed") == results(tmp_path / "whole")
    assert not any(line.get("missing") for line in results(tmp_path / "whole"))
