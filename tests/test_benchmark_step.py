"""`benchmark=step`: what it takes for waiting and for computing, and that it leaves the logs of training alone."""

from __future__ import annotations

import csv
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from deepavfusion.benchmarks.step import PARTS, StepTimer
from deepavfusion.demo import demo
from helpers.runs import PRETRAIN, call

TINY = [override for override in PRETRAIN if override.startswith(("trainer=", "model.net", "model.decoder", "data."))]


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    counts = demo.Counts(vggsound_train=2, vggsound_test=1)
    return demo.generate(tmp_path_factory.mktemp("demo"), ["vggsound"], workers=1, counts=counts)[0]


def main(monkeypatch, *overrides: object) -> None:
    call(monkeypatch, "benchmark", "benchmark=step", *overrides)


def test_the_parts_of_a_step(monkeypatch):
    now, held = [0.0], iter([100, 130])
    monkeypatch.setattr("deepavfusion.benchmarks.memory.held", lambda device: next(held))
    timer = StepTimer(warmup=2, count=2, clock=lambda: now[0])
    trainer, module = SimpleNamespace(should_stop=False), SimpleNamespace(device=torch.device("cpu"))
    batch = [None] * 4  # as long as the batch has clips

    def step(wait: float, transfer: float, device: float, other: float) -> None:
        for section, seconds in (
            ("[_TrainingEpochLoop].train_dataloader_next", wait),
            ("[S]X.batch_to_device", transfer),
        ):
            with timer.profiler.profile(section), timer.profiler.profile("[D]M.transfer_batch_to_device"):
                now[0] += seconds
        now[0] += other
        timer.on_train_batch_start(trainer, module, batch, 0)
        with timer.profiler.profile("run_training_batch"):
            now[0] += device
        timer.on_train_batch_end(trainer, module, None, batch, 0)

    step(50, 50, 50, 50)
    step(50, 50, 50, 50)
    assert not timer.steps
    step(1, 2, 10, 0.5)
    assert not trainer.should_stop
    step(3, 2, 20, 1.5)
    assert trainer.should_stop
    assert timer.growth == 30
    found = timer.means(processes=2)
    assert found.pop("clips_per_second") == pytest.approx(2 * 8 / 40)
    assert found == pytest.approx({"data_wait_ms": 4000, "device_ms": 15000, "other_ms": 1000})
    step(9, 9, 9, 9)  # a step more, which Lightning may take: not counted
    assert len(timer.steps) == 2


def test_a_run_over_several_epochs(data_root, tmp_path, monkeypatch):
    logs, threads = tmp_path / "logs", torch.get_num_threads()
    overrides = ",".join(f"'{override}'" for override in [*TINY, f"data.root={data_root}"])
    main(
        monkeypatch,
        "benchmark.scale=demo",
        f"benchmark.overrides=[{overrides}]",
        "benchmark.steps=5",
        "benchmark.warmup=2",
        f"paths.log_dir={logs}",
    )
    assert torch.get_num_threads() == threads
    assert [path.name for path in logs.iterdir()] == ["benchmark"]  # nothing under logs/pretrain
    latest = logs / "benchmark" / "latest"
    assert {path.name for path in latest.iterdir()} == {"config.yaml", "overrides.yaml", "results.csv", "results.png"}
    (row,) = csv.DictReader((latest / "results.csv").open())
    settings = {"experiment": "pretrain_vggsound", "scale": "demo", "devices": "1", "workers": "0", "batch": "6"}
    assert row.items() >= {**settings, "steps": "5"}.items()
    assert list(row)[:11] == [*settings, "steps", *PARTS, "clips_per_second", "memory_growth_bytes"]
    assert row["memory_growth_bytes"].lstrip("-").isdigit()
    parts = [float(row[part]) for part in PARTS]
    assert all(part > 0 for part in parts)
    # whole batches only, so that parts and clips/s tell the same time; parts that were counted twice would exceed it
    assert sum(parts) == pytest.approx(6e3 / float(row["clips_per_second"]), rel=1e-3)
    assert Image.open(latest / "results.png").width > 300


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("benchmark.steps=0", "benchmark.steps is 0, expected a whole number from 1"),
        ("benchmark.experiment=no_such", "Could not find 'experiment/no_such'"),
        ("benchmark.overrides=['data.root=/no/such/folder']", "data.root=/no/such/folder is not a folder"),
    ],
)
def test_mistakes_are_told_in_one_sentence(override, said, tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit) as end:
        main(monkeypatch, override, f"paths.log_dir={tmp_path}")
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert said in error.strip().splitlines()[-1]
    assert not list(tmp_path.glob("benchmark/runs/*"))
