"""`benchmark=step`: which time counts as waiting and as computing, and that the logs of training stay untouched."""

from __future__ import annotations

import csv
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from deepavfusion.benchmarks.step import PARTS, StepTimer
from helpers.runs import PRETRAIN, call

TINY = [override for override in PRETRAIN if override.startswith(("trainer=", "model.net", "model.decoder", "data."))]


def test_the_parts_of_a_step(monkeypatch):
    now, held = [0.0], iter([100, 130])
    monkeypatch.setattr("deepavfusion.benchmarks.memory.held", lambda device: next(held))
    monkeypatch.setattr("deepavfusion.benchmarks.step.time", SimpleNamespace(perf_counter=lambda: now[0]))
    timer = StepTimer(warmup=2, count=2)
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
    found = timer.means(processes=2)
    assert found.pop("memory_growth_bytes") == 30
    assert found.pop("clips_per_second") == pytest.approx(2 * 8 / 40)
    assert found == pytest.approx({"data_wait_ms": 4000, "device_ms": 15000, "other_ms": 1000})
    step(9, 9, 9, 9)  # Lightning may take one more step: not counted
    assert len(timer.steps) == 2


def test_a_run_over_several_epochs(data_root, tmp_path, monkeypatch):
    logs = tmp_path / "logs"
    overrides = ",".join(f"'{override}'" for override in [*TINY, f"data.root={data_root}"])
    words = ["benchmark.scale=demo", "benchmark.steps=5", "benchmark.warmup=2", f"paths.log_dir={logs}"]
    call(monkeypatch, "benchmark", "benchmark=step", *words, f"benchmark.overrides=[{overrides}]")
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
    # whole batches only, so that parts and clips/s cover the same time; time counted twice would exceed it
    assert sum(parts) == pytest.approx(6e3 / float(row["clips_per_second"]), rel=1e-3)
    assert Image.open(latest / "results.png").width > 300
