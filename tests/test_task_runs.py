"""What holds for the runs of every task: an evaluation repeats the run's numbers, however it reads the data."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from deepavfusion.config.compose import REPOSITORY
from helpers.runs import evaluate, numbers

RUNS = {  # the checkpoint that was tested; how far other batches may move a number: rounding flips a pixel's class
    "finetuned": ("last", 1e-5),
    "probed": ("last", 1e-5),
    "several": ("last", 1e-5),
    "retrieved": ("last", 1e-5),
    "separated": ("last", 2e-3),
    "segmented": ("best", 1e-4),
}

SHORT = {"segmented"}  # kinds whose batches are changed in the short test run
REPEATED = {"separated", "segmented"}  # those that are evaluated again in it


@pytest.fixture(params=RUNS)
def run(request: pytest.FixtureRequest) -> tuple[Path, Path, float]:
    """Directory of a run, its checkpoint, and the tolerance."""
    run_dir = request.getfixturevalue(request.param)
    name, tolerance = RUNS[request.param]
    return run_dir, run_dir / "checkpoints" / f"{name}.ckpt", tolerance


@pytest.mark.parametrize(
    "run", [kind if kind in REPEATED else pytest.param(kind, marks=pytest.mark.full) for kind in RUNS], indirect=True
)
def test_evaluation_repeats_every_number_and_table(run, monkeypatch, capsys):
    run_dir, checkpoint, _ = run
    capsys.readouterr()
    evaluate(monkeypatch, f"ckpt_path={checkpoint}", f"run.name={run_dir.name}_again")
    again = run_dir.parents[1] / "evals" / f"{run_dir.name}_again"
    assert numbers(again / "metrics.json") == numbers(run_dir / "metrics.json") != {}
    tables = {path.name: path.read_text() for path in run_dir.glob("*_test.csv")}
    assert {path.name: path.read_text() for path in again.glob("*_test.csv")} == tables
    out = capsys.readouterr().out
    assert "from scratch" not in out
    assert f"{again}/checkpoints" not in out  # an evaluation writes none
    assert f"ckpt_path={checkpoint}" in out.split("Next")[1]


@pytest.mark.parametrize(
    ("run", "given"),
    [
        pytest.param(kind, given, marks=[] if kind in SHORT and len(given) > 1 else pytest.mark.full)
        for kind in RUNS
        for given in (["data.batch_size=1"], ["data.batch_size=7", "data.num_workers=2"])
    ],
    indirect=["run"],
    ids=str,
)
def test_evaluation_depends_neither_on_batches_nor_on_workers(run, given, monkeypatch):
    run_dir, checkpoint, tolerance = run
    name = f"{run_dir.name}_{given[0][-1]}"
    evaluate(monkeypatch, f"ckpt_path={checkpoint}", f"run.name={name}", *given)
    found = numbers(run_dir.parents[1] / "evals" / name / "metrics.json")
    for key, value in numbers(run_dir / "metrics.json").items():
        assert found[key] == pytest.approx(value, abs=tolerance), key


@pytest.mark.full
@pytest.mark.parametrize("kind", ["finetuned", "probed", "segmented"])  # separation: test_repeatable.py
def test_two_processes_learn_and_give_the_numbers_of_one(kind, request, tmp_path):
    """They train (no parameter is left without a gradient) and evaluate each item once."""
    run_dir, (checkpoint, tolerance) = request.getfixturevalue(kind), RUNS[kind]
    both = ["trainer.devices=2", "trainer.strategy=ddp", f"paths.log_dir={tmp_path}", "run.name=two"]
    given = yaml.safe_load((run_dir / "overrides.yaml").read_text())
    subprocess.run([sys.executable, REPOSITORY / "src/train.py", *given, *both], check=True, timeout=600)
    (trained,) = tmp_path.glob("*/runs/two")
    expected, metrics = (json.loads((folder / "metrics.json").read_text()) for folder in (run_dir, trained))
    items = {"test/clips", "test/frames"} & set(expected)
    assert items
    assert all(metrics[name] == expected[name] for name in items)
    if kind == "segmented":  # two epochs of mixup, and of a probe, show no trend
        assert metrics["train/loss_last"] < metrics["train/loss_first"]
    command = [REPOSITORY / "src/eval.py", f"ckpt_path={run_dir}/checkpoints/{checkpoint}.ckpt", *both]
    subprocess.run([sys.executable, *command], check=True, timeout=600)
    found = numbers(next(tmp_path.glob("*/evals/two")) / "metrics.json")
    for name, value in numbers(run_dir / "metrics.json").items():
        assert found[name] == pytest.approx(value, abs=tolerance if kind == "segmented" else 0), name
