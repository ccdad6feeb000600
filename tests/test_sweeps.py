"""The runs of a sweep under one name."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from deepavfusion.cli import entry
from deepavfusion.config import overrides as module
from deepavfusion.config.compose import REPOSITORY
from deepavfusion.config.overrides import named_apart, values_in_job, without_sweep
from deepavfusion.utils.launch.launcher import alone
from helpers.runs import PRETRAIN, compose, sentence, train


class Job:
    """Stands for HydraConfig in a job."""

    def __init__(self, *task: str) -> None:
        self.overrides, self.task = self, OmegaConf.create([*task])

    def initialized(self) -> bool:
        return True

    def get(self) -> Job:
        return self


@pytest.mark.parametrize(
    ("given", "name"),
    [
        (["run.name=x", "seed=0,1"], "'x_${swept:seed}'"),
        (["run.name=x", "seed=range(3)", "model/net=tiny,base"], "'x_${swept:seed,model/net}'"),
        (["run.name='a=b, c'", "seed=0,1"], "'a=b, c_${swept:seed}'"),
        (["run.name='x${seed}'", "seed=0,1", "model.lr=1,2"], "'x${seed}_${swept:model.lr}'"),
        (["run.name='x${seed}'", "seed=0,1"], "'x${seed}'"),
        (["run.name=a,b", "seed=0,1"], "'a_${swept:seed}','b_${swept:seed}'"),
    ],
)
def test_each_run_gets_a_name(given: list[str], name: str) -> None:
    found = named_apart(given)
    assert f"run.name={name}" in found
    assert set(found) - {f"run.name={name}"} == {each for each in given if not each.startswith("run.name")}
    OverridesParser.create().parse_overrides(found)


@pytest.mark.parametrize("given", [["seed=0,1"], ["run.name=x"], ["run.name=null", "seed=0,1"], ["run.name=a,b"]])
def test_names_that_differ_or_that_nobody_gave_stay(given: list[str]) -> None:
    assert named_apart(given) == given


@pytest.mark.parametrize(
    ("job", "keys", "expected"),
    [
        (["seed=0", "run.name=x"], ["seed"], "seed=0"),
        (["model.lr=1e-4", "model/net=tiny"], ["model.lr", "model/net"], "lr=1e-4_net=tiny"),
        (["a.lr=1", "b.lr=2"], ["a.lr", "b.lr"], "a.lr=1_b.lr=2"),
        (["+callbacks.x.y=3"], ["callbacks.x.y"], "y=3"),
    ],
)
def test_a_name_has_the_values_of_its_job(job, keys, expected, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HydraConfig", Job(*job))
    assert values_in_job(*keys) == expected
    assert without_sweep(f"run.name='x_${{swept:{','.join(keys)}}}'") == f"run.name='x_{expected}'"


def test_values_that_no_name_can_have_differ_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    found = set()
    for value in ("/a/b", "/a b", "[1,2]", "é" * 90, "é" * 91):
        monkeypatch.setattr(module, "HydraConfig", Job(f"data.root={value}"))
        found.add(values_in_job("data.root"))
    assert len(found) == 5
    assert all(len(name) <= module.LONGEST_PART and "/" not in name for name in found)


@pytest.mark.full
def test_a_sweep_has_a_directory_for_each_run_and_is_continued(data_root: Path, tmp_path: Path, monkeypatch, capsys):
    command = [*PRETRAIN, "trainer.max_epochs=1", "run.name=x", f"data.root={data_root}", f"paths.log_dir={tmp_path}"]
    command += ["trainer.limit_train_batches=1", "validate_before=false"]
    train(monkeypatch, "-m", "seed=0,1", *command)
    runs = tmp_path / "pretrain/runs"
    assert sorted(path.name for path in runs.iterdir()) == ["x_seed=0", "x_seed=1"]
    for n in (0, 1):
        assert "train/loss" in json.loads((runs / f"x_seed={n}" / "metrics.json").read_text())
        assert f"x_seed={n}" in (runs / f"x_seed={n}" / "overrides.yaml").read_text()
        assert "swept" not in (runs / f"x_seed={n}" / "overrides.yaml").read_text()
    (runs / "x_seed=1" / "metrics.json").unlink()  # as if it had been stopped
    capsys.readouterr()
    train(monkeypatch, "-m", "seed=0,1,2", *command)
    out = capsys.readouterr().out
    assert "x_seed=0 is finished: the next one" in out
    assert "resuming from" in out
    assert (runs / "x_seed=2" / "metrics.json").exists()
    assert compose("run.name=x").run.name == "x"


@pytest.mark.full
def test_each_run_of_a_sweep_starts_its_own_processes(data_root: Path, tmp_path: Path) -> None:
    words = [word for word in PRETRAIN if word != "trainer=cpu"]
    words += ["trainer=ddp_sim", "trainer.max_epochs=1", "trainer.limit_train_batches=1", "validate_before=false"]
    words += ["model.warmup_epochs=0", "run.name=x", f"data.root={data_root}", f"paths.log_dir={tmp_path}"]
    command = [sys.executable, "src/train.py", "-m", "seed=0,1", *words]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=400, env=alone())
    assert done.returncode == 0, done.stderr
    runs = sorted((tmp_path / "pretrain/runs").iterdir())
    assert [run.name for run in runs] == ["x_seed=0", "x_seed=1"]
    assert all((run / "metrics.json").exists() for run in runs)


def test_a_machine_without_slurm_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    given = ["-m", "hydra/launcher=slurm", "study=masking", "study.only=0,1", f"hydra.sweep.dir={tmp_path}"]
    assert "hydra/launcher=slurm: there is no srun here" in sentence(monkeypatch, capsys, *given, script="study")


def test_processes_of_a_job_are_given_that_job_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning gives them the words of this process: with those of the sweep, each would run all its jobs."""
    seen: list[list[str]] = []
    monkeypatch.setattr(entry, "in_sweep", lambda: True)
    monkeypatch.setattr(entry, "overrides_of_job", lambda: ["seed=1", "run.name='x_${swept:seed}'"])
    monkeypatch.setattr(module, "HydraConfig", Job("seed=1"))
    monkeypatch.setattr(entry, "check_ranges", lambda _: None)
    monkeypatch.setattr(entry.hydra, "main", lambda **_: lambda main: lambda: main(OmegaConf.create()))
    monkeypatch.setattr(entry, "_completed", lambda *_: (["-m", "seed=0,1"], None))
    monkeypatch.setattr(sys, "argv", ["train.py", "-m", "seed=0,1"])
    entry.entry("train")(lambda _: seen.append(sys.argv))()
    assert seen == [["train.py", "seed=1", "run.name='x_seed=1'"]]
    assert sys.argv == ["train.py", "-m", "seed=0,1"]
