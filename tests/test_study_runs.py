"""Studies: the processes that work on their runs."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from deepavfusion.config.compose import REPOSITORY
from deepavfusion.runs.signals import StopRequested
from deepavfusion.study import execute
from deepavfusion.study.execute import Executor
from deepavfusion.study.plan import Plan
from deepavfusion.study.work import failure_of, work
from deepavfusion.utils.errors import UserError
from deepavfusion.utils.launch.launcher import alone
from helpers.runs import DECODER, SMALL
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
    found = plan(tmp_path / "logs", {"model.blr": [1, 2]}, staged(), seeds=1)
    (tmp_path / "worker.py").write_text(WORKER)
    monkeypatch.setattr(execute, "LOOK_EVERY", 0.05)

    def prepare(processes: int = 2, **todo: dict[str, Any]) -> Executor:
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
        return Executor(found, [], processes, [])

    return prepare


def starts_of(found: Plan) -> dict[str, int]:
    return {run.name.rpartition("_")[0]: len(list(run.directory.glob("start_*"))) for run in found.runs}


def test_every_chain_is_worked_on_and_what_is_finished_is_not_repeated(faked: Any) -> None:
    executor = faked()
    executor.run()
    assert set(starts_of(executor.plan).values()) == {1}
    faked().run()
    assert set(starts_of(executor.plan).values()) == {1}


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


def test_a_signal_lets_the_chains_save_what_they_did(faked: Any) -> None:
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


@pytest.mark.full
def test_a_study_that_is_killed_five_times_ends_with_the_same_report(data_root: Path, tmp_path: Path) -> None:
    small = [*SMALL, "trainer.max_epochs=4", f"data.root={data_root}", "data.holdout_share=0", "logger=none"]
    warm = "model.warmup_epochs=1"
    more = {"pretrain": quoted([*DECODER, warm]), "probe": quoted(["model.pretrained={pretrain}", warm])}
    pretrain = f"{{experiment: pretrain_vggsound, overrides: {more['pretrain']}, metrics: [knn/combined]}}"
    probe = f"{{experiment: vggsound_linear_probe, overrides: {more['probe']}, metrics: [test/top1]}}"
    words = [
        *("study.name=trial", "study.question=Which", "study.seeds=1", "study.scale=demo"),
        f"study.overrides={quoted([each for each in small if each != 'scale=demo'])}",
        "+study.axes={model.net.fusion: [factorized, token]}",
        f"+study.stages={{pretrain: {pretrain}, probe: {probe}}}",
    ]

    def start(logs: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "src/study.py", *words, f"paths.log_dir={tmp_path / logs}"]
        log = (tmp_path / f"{logs}.txt").open("ab")
        return subprocess.Popen(command, cwd=REPOSITORY, env=alone(), stdout=log, stderr=log)

    def results(logs: str) -> list[dict[str, str]]:
        with (tmp_path / logs / "study" / "trial" / "latest" / "results.csv").open(newline="") as file:
            return [
                {k: v for k, v in line.items() if "seconds" not in k and "memory" not in k}
                for line in csv.DictReader(file)
            ]

    assert start("whole").wait() == 0, (tmp_path / "whole.txt").read_text()
    draw, kills = random.Random(0), 0
    for _ in range(5):
        process = start("killed")
        try:
            process.wait(draw.uniform(10, 30))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
    assert kills >= 3
    assert start("killed").wait() == 0, (tmp_path / "killed.txt").read_text()
    assert results("killed") == results("whole")


def quoted(overrides: list[str]) -> str:
    return "[" + ",".join(f'"{each}"' for each in overrides) + "]"
