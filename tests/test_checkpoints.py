"""Checkpoints that are written while training goes on."""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from deepavfusion.callbacks.guard import checkpoint_io
from deepavfusion.callbacks.guard import checkpoints as checkpoints_module
from deepavfusion.callbacks.guard.checkpoint_io import SyncedCheckpointIO
from deepavfusion.callbacks.guard.checkpoints import Checkpoints
from deepavfusion.runs.signals import StopRequested
from deepavfusion.utils.errors import TemporaryError, UserError
from deepavfusion.utils.launch import signals
from deepavfusion.utils.launch.signals import STOPPED


class SlowDisk:
    """Lets a test decide when a file is written."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ready, self.begun = threading.Event(), threading.Event()
        self.error: Exception | None = None
        self.write = checkpoint_io.write
        monkeypatch.setattr(checkpoint_io, "write", self._write)

    def _write(self, checkpoint: dict[str, Any], path: Path) -> None:
        self.begun.set()
        assert self.ready.wait(30)
        if self.error is not None:
            raise self.error
        self.write(checkpoint, path)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> SlowDisk:
    return SlowDisk(monkeypatch)


class Run:
    """As much of a trainer as a checkpoint needs; its only weight is the number of the step."""

    def __init__(self, folder: Path) -> None:
        self.callback = Checkpoints(str(folder), every_n_train_steps=1)
        self.weight = torch.zeros(1)
        self.files = SyncedCheckpointIO()
        self.trainer: Any = SimpleNamespace(
            strategy=SimpleNamespace(checkpoint_io=self.files, barrier=lambda _: None),
            is_global_zero=True,
            loggers=[],
            world_size=1,
            global_step=0,
            accumulate_grad_batches=1,
            is_last_batch=False,
            current_epoch=0,
            check_val_every_n_epoch=1,
            num_training_batches=100,
            max_epochs=1,
            should_stop=False,
            save_checkpoint=self._save,
        )
        task: Any = None
        self.start = lambda: self.callback.on_train_batch_start(self.trainer, task, None, self.trainer.global_step)
        self.callback.setup(self.trainer, task, "fit")
        self.callback.on_train_start(self.trainer, task)

    def _save(self, path: Path, weights_only: bool) -> None:
        self.files.save_checkpoint({"weight": self.weight, "step": self.trainer.global_step}, path)

    def step(self) -> None:
        task: Any = None
        self.start()
        self.trainer.global_step += 1
        self.weight.fill_(self.trainer.global_step)
        self.callback.on_train_batch_end(self.trainer, task, None, None, self.trainer.global_step - 1)

    def end(self) -> None:
        task: Any = None
        self.callback.on_train_end(self.trainer, task)
        self.callback.teardown(self.trainer, task, "fit")


@pytest.fixture
def run(tmp_path: Path) -> Any:
    run = Run(tmp_path)
    yield run
    run.callback.signals.release()
    run.files.teardown()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def of(path: Path) -> float:
    return torch.load(path, weights_only=True)["weight"].item()


def test_training_goes_on_while_a_file_is_written_and_last_waits_for_it(run: Run, disk: SlowDisk, tmp_path: Path):
    run.step()
    assert disk.begun.wait(10)
    run.start()
    run.weight.fill_(7.0)  # the next step
    assert names(tmp_path) == []
    disk.ready.set()
    run.files.pending.result()
    assert names(tmp_path) == ["step_00000001.unnamed"]
    run.start()
    assert names(tmp_path) == ["last.ckpt", "step_00000001.ckpt"]
    assert of(tmp_path / "last.ckpt") == 1.0


def test_the_next_checkpoint_waits_for_the_one_before_and_the_end_for_the_last(
    run: Run, disk: SlowDisk, tmp_path: Path
):
    run.step()
    threading.Timer(0.2, disk.ready.set).start()
    began = time.monotonic()
    for _ in range(2):
        run.step()
    assert time.monotonic() - began >= 0.15
    assert of(tmp_path / "step_00000001.ckpt") == 1.0
    disk.ready.clear()
    threading.Timer(0.2, disk.ready.set).start()
    run.end()
    assert names(tmp_path) == ["last.ckpt", "step_00000002.ckpt", "step_00000003.ckpt"]
    assert (of(tmp_path / "step_00000002.ckpt"), of(tmp_path / "last.ckpt")) == (2.0, 3.0)


def test_of_each_milestone_the_nearest_file_is_kept_beside_the_newest(run: Run, disk: SlowDisk, tmp_path: Path):
    disk.ready.set()
    run.trainer.estimated_stepping_batches = 10
    run.callback.milestones = [0.26, 0.5]
    for step in range(1, 11):
        run.step()
        run.start()
        run.files.wait()
        run.start()
        there = [int(name[5:13]) for name in names(tmp_path) if name != "last.ckpt"]
        assert there == sorted({min(step, 3), min(step, 5), max(1, step - 1), step})
    assert of(tmp_path / "step_00000005.ckpt") == 5.0


@pytest.mark.parametrize("when", ["start", "validation", "step", "end"])
def test_a_file_that_cannot_be_written_stops_the_run(run: Run, disk: SlowDisk, tmp_path: Path, when: str):
    disk.ready.set()
    run.step()
    run.files.wait()
    run.start()
    disk.error = UserError("checkpoint x could not be written")
    run.step()
    while run.files.is_writing:
        time.sleep(0.01)
    places = {"start": run.start, "step": run.step, "end": run.end}
    with pytest.raises(UserError, match="checkpoint x could not be written"):
        places.get(when, lambda: run.callback.on_validation_batch_end(run.trainer))()
    assert names(tmp_path) == ["last.ckpt", "step_00000001.ckpt"]
    assert of(tmp_path / "last.ckpt") == 1.0


def test_a_file_that_is_done_during_a_validation_counts_then(run: Run, tmp_path: Path):
    run.step()
    run.start()  # the last batch of the epoch
    run.files.pending = run.files.pending or run.files.thread.submit(lambda: None)
    run.files.pending.result()
    run.callback.on_validation_batch_end(run.trainer)
    assert of(tmp_path / "last.ckpt") == 1.0


def test_an_error_elsewhere_waits_for_the_file(run: Run, disk: SlowDisk, tmp_path: Path):
    run.step()
    run.start()
    threading.Timer(0.1, disk.ready.set).start()
    task: Any = None
    run.callback.on_exception(run.trainer, task, ValueError("a bug"))
    assert of(tmp_path / "last.ckpt") == 1.0


def test_storage_that_fails_is_reported_where_another_process_is_gone_too(
    run: Run, disk: SlowDisk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("Connection closed by peer")

    run.step()
    run.start()
    disk.ready.set()
    run.callback.group = "two processes"
    monkeypatch.setattr(checkpoints_module.distributed, "all_reduce", broken)
    task: Any = None
    error = TemporaryError("storage x has not answered.")
    error.between_steps = True
    run.callback.on_exception(run.trainer, task, error)
    assert str(error).startswith("storage x has not answered; to continue from step_00000001, type: ")
    assert error.status == STOPPED
    assert of(tmp_path / "last.ckpt") == 1.0


def test_a_stop_waits_for_the_file(run: Run, disk: SlowDisk, tmp_path: Path):
    run.callback.signals.received = checkpoints_module.signal.SIGTERM
    run.step()
    threading.Timer(0.1, disk.ready.set).start()
    with pytest.raises(StopRequested, match="to continue from step_00000001, type"):
        run.start()
    assert of(tmp_path / "last.ckpt") == 1.0


def test_a_process_that_hangs_leaves_with_the_file_that_is_being_written(
    run: Run, disk: SlowDisk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(os, "_exit", sys.exit)
    run.step()
    run.start()
    run.callback.signals.received = checkpoints_module.signal.SIGTERM
    threading.Timer(0.1, disk.ready.set).start()
    with pytest.raises(SystemExit) as end:
        run.callback._leave()
    assert end.value.code == STOPPED
    assert of(tmp_path / "last.ckpt") == 1.0
    assert "to continue from step_00000001" in capfd.readouterr().err


def test_of_processes_that_hang_the_first_one_leaves_first(run: Run, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    """SLURM ends it as soon as another one has ended: before, it puts the job back into the queue, and says so."""
    for name, value in {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "_exit", sys.exit)
    monkeypatch.setattr(signals, "FIRST_LEAVES", 0.2)
    run.callback.signals.received = checkpoints_module.signal.SIGUSR1
    began = time.monotonic()
    with pytest.raises(SystemExit) as end:
        run.callback._leave()
    assert time.monotonic() - began >= 0.2
    assert (end.value.code, capfd.readouterr().err) == (STOPPED, "")


def test_a_copy_keeps_what_belongs_together():
    linear = torch.nn.BatchNorm1d(3)
    state = linear.state_dict()
    weights = torch.arange(6.0)
    live: dict[str, Any] = {"state_dict": state, "one": weights, "two": weights[2:4], "seen": [1]}
    buffers: list[Any] = []
    copied = checkpoint_io.snapshot(live, buffers)
    weights.zero_()
    live["seen"].append(2)
    state["weight"].zero_()
    assert copied["one"].tolist() == [0, 1, 2, 3, 4, 5]
    assert copied["two"].tolist() == [2, 3]
    assert copied["two"].untyped_storage().data_ptr() == copied["one"].untyped_storage().data_ptr()
    assert copied["seen"] == [1]
    assert copied["state_dict"]["weight"].tolist() == [1, 1, 1]
    assert copied["state_dict"]._metadata == state._metadata
    places = [buffer.data_ptr() for buffer in buffers]
    again = checkpoint_io.snapshot(live, buffers)
    assert again["one"].tolist() == [0] * 6
    assert [buffer.data_ptr() for buffer in buffers] == places  # no further memory
