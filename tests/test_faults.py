"""Faults during training, each caused here: the run stops with a message, or continues."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import time
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer

from chaos import ended, start_forked, wait_for
from deepavfusion.callbacks.guard import step_guard
from deepavfusion.callbacks.guard.checkpoint_io import SyncedCheckpointIO
from deepavfusion.callbacks.guard.data_report import DataReport
from deepavfusion.data.datamodule import ClipDataModule
from deepavfusion.runs import signals
from deepavfusion.types import Problem
from deepavfusion.utils.errors import UserError
from deepavfusion.utils.launch.signals import STOPPED
from helpers.runs import PRETRAIN, read_table, recorder, sentence, train

QUICK = [
    *(override for override in PRETRAIN if "max_epochs" not in override),
    *("trainer.max_epochs=2", "run.latest=false", "run.name=x", "validate_before=false", "data.gallery_clips=0"),
    *("trainer.limit_val_batches=1", "~callbacks.knn", "~callbacks.projector", "~callbacks.reconstructions"),
]


@pytest.fixture
def command(data_root, tmp_path) -> list[str]:
    return [*QUICK, f"data.root={data_root}", f"paths.log_dir={tmp_path}"]


class Spoiler(Callback):
    """Does something to the gradients, or to the process, in certain steps."""

    def __init__(self, steps: list[int], value: float = float("nan"), what: str = "gradient") -> None:
        self.steps, self.value, self.what = steps, value, what
        self.weights: list[dict[str, torch.Tensor]] = []

    def on_after_backward(self, trainer, pl_module):
        if trainer.global_step in self.steps and self.what == "gradient":
            for parameter in pl_module.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(self.value)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step in self.steps and self.what != "gradient":
            getattr(self, self.what)()

    def out_of_memory(self):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    def disk_full(self):
        raise OSError(28, "No space left on device", "/somewhere/events.out")


def spoiler(steps: list[int], **more: object) -> list[str]:
    found = ["+callbacks.spoiler._target_=test_faults.Spoiler", f"+callbacks.spoiler.steps={steps}"]
    return found + [f"+callbacks.spoiler.{key}={value}" for key, value in more.items()]


def test_a_gradient_that_is_not_finite_stops_the_run_and_names_the_clips(command, tmp_path, monkeypatch, capsys):
    order = tmp_path / "order.jsonl"
    text = sentence(monkeypatch, capsys, *command, *spoiler([1]), "callbacks.checkpoints.every_n_train_steps=1")
    run_dir = tmp_path / "pretrain/runs/x"
    (path,) = (run_dir / "nonfinite").iterdir()
    assert "step 1 (epoch 0)" in text
    assert str(path) in text
    assert "callbacks.step_guard.max_skips" in text
    found = json.loads(path.read_text())
    assert (found["step"], found["grad_norm"]) == (1, "nan")
    assert len(found["clips"]) == 6
    last = torch.load(run_dir / "checkpoints/last.ckpt", weights_only=True)
    assert last["global_step"] == 1
    assert all(torch.isfinite(value).all() for value in last["state_dict"].values())
    train(monkeypatch, *command, *recorder(order))  # once fixed, the same command resumes
    steps = [json.loads(line) for line in order.read_text().splitlines()]
    assert [clip["id"] for clip in found["clips"]] == steps[0][2]
    assert [row[:2] for row in steps] == [[0, 1], [1, 0], [1, 1]]


@pytest.mark.parametrize("fused", [False, True])
def test_so_many_steps_that_are_not_finite_are_left_out_and_counted(command, tmp_path, monkeypatch, capsys, fused):
    """With the optimizer of a GPU (fused), too, whose kernel leaves the step out while the verdict is on its way."""
    plain = torch.optim.AdamW
    monkeypatch.setattr(torch.optim, "AdamW", lambda *args, **more: plain(*args, **{**more, "fused": fused}))
    skips = ["callbacks.step_guard.max_skips=2", *spoiler([1, 2], value="inf")]
    train(monkeypatch, *command, *skips)
    run_dir = tmp_path / "pretrain/runs/x"
    assert json.loads((run_dir / "metrics.json").read_text())["train/skipped"] == 2
    assert len(list((run_dir / "nonfinite").iterdir())) == 2
    out = capsys.readouterr().out
    assert "skipped, 1 of 2" in out
    assert "skipped, 2 of 2" in out
    state = torch.load(run_dir / "checkpoints/last.ckpt", weights_only=True)
    assert state["global_step"] == 4
    moments = state["optimizer_states"][0]["state"].values()
    assert {int(moment["step"]) for moment in moments} == {2}  # they know only the steps taken


def test_one_step_more_than_may_be_left_out_stops_the_run(command, monkeypatch, capsys):
    text = sentence(monkeypatch, capsys, *command, "callbacks.step_guard.max_skips=1", *spoiler([1, 2]))
    assert "after 1 skipped" in text


@pytest.mark.parametrize("skipped", [pytest.param(False, marks=pytest.mark.full), True])
def test_a_gradient_spike_is_told_and_may_be_left_out(command, tmp_path, monkeypatch, capsys, skipped):
    monkeypatch.setattr(step_guard, "REMEMBERED", 8)  # norms of two steps are enough to judge by
    more = [f"callbacks.step_guard.skip_spikes={skipped}", *spoiler([3], value=1e6)]
    train(monkeypatch, *command, *more)
    metrics = json.loads((tmp_path / "pretrain/runs/x/metrics.json").read_text())
    assert metrics["train/grad_spikes"] == 1
    assert metrics.get("train/skipped") == (1 if skipped else None)
    assert "step 3: gradient norm" in (out := capsys.readouterr().out)
    assert ("skipped" if skipped else "trainer.gradient_clip_val") in out


def test_out_of_memory_says_which_batch_fits(command, monkeypatch, capsys):
    largest = 2
    original = step_guard._fits
    monkeypatch.setattr(
        step_guard, "_fits", lambda trainer, module, batch: original(trainer, module, batch) and len(batch) <= largest
    )
    told: list[BaseException] = []
    monkeypatch.setattr(Spoiler, "on_exception", lambda *given: told.append(given[-1]))
    text = sentence(monkeypatch, capsys, *command, *spoiler([1], what="out_of_memory"))
    (error,) = told  # callbacks that follow end the other processes, and let the last checkpoint count
    assert isinstance(error, UserError)
    # 6, then 3, then 1
    assert "out of memory in training with data.batch_size=6: data.batch_size=1 fits (tried just now)" in text
    assert "trainer.accumulate_grad_batches=6" in text
    assert "model.net.checkpoint_layers=true" in text


def test_a_disk_that_is_full_ends_in_a_sentence(command, monkeypatch, capsys):
    text = sentence(monkeypatch, capsys, *command, *spoiler([1], what="disk_full"))
    assert "/somewhere/events.out could not be written (No space left on device)" in text
    assert "same command" in text


def test_a_disk_without_links_keeps_copies(command, tmp_path, monkeypatch, capsys):
    def refused(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "symlink", refused)
    train(monkeypatch, *command, "run.latest=true")
    last = tmp_path / "pretrain/runs/x/checkpoints/last.ckpt"
    assert not last.is_symlink()
    assert last.read_bytes() == last.with_name("step_00000004.ckpt").read_bytes()
    assert not (tmp_path / "pretrain/latest").exists()
    assert f"{tmp_path}/pretrain/latest cannot be made" in capsys.readouterr().out


def test_a_checkpoint_that_finds_no_room_leaves_the_one_before(tmp_path):
    path = tmp_path / "step_00000001.ckpt"
    plugin = SyncedCheckpointIO()
    plugin.save_checkpoint({"weights": torch.arange(4)}, path)
    plugin.wait()
    before = path.read_bytes()
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))  # as a disk that has 100 kB left
    try:
        plugin.save_checkpoint({"weights": torch.zeros(100_000)}, path)
        with pytest.raises(UserError, match=rf"{path} could not be written.*the previous one is untouched"):
            plugin.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, ignored)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_damaged_last_checkpoint_gives_way_to_the_one_before(command, tmp_path, monkeypatch, capsys):
    run_dir = tmp_path / "pretrain/runs/x"
    command = [*command, "callbacks.checkpoints.every_n_train_steps=1"]
    sentence(monkeypatch, capsys, *command, *spoiler([3]))
    checkpoints = run_dir / "checkpoints"
    assert sorted(p.name for p in checkpoints.iterdir()) == ["last.ckpt", "step_00000002.ckpt", "step_00000003.ckpt"]
    newest = checkpoints / "step_00000003.ckpt"
    newest.write_bytes(newest.read_bytes()[:-5000])
    train(monkeypatch, *command)
    out = capsys.readouterr().out
    assert f"checkpoint {newest}" in out
    assert "Resuming from the one before it." in out
    assert f"resuming from {checkpoints}/step_00000002.ckpt" in out
    assert torch.load(checkpoints / "last.ckpt", weights_only=True)["global_step"] == 4
    assert (run_dir / "metrics.json").exists()


def test_checkpoints_that_are_all_damaged_are_an_error(command, tmp_path, monkeypatch, capsys):
    sentence(monkeypatch, capsys, *command, *spoiler([1]), "callbacks.checkpoints.every_n_train_steps=1")
    checkpoints = tmp_path / "pretrain/runs/x/checkpoints"
    for path in checkpoints.glob("step_*"):
        path.write_bytes(b"PK\3\4")
    text = sentence(monkeypatch, capsys, *command)
    assert "cannot be read" in text
    assert f"delete {checkpoints} to start again" in text


def test_the_rest_of_an_epoch_needs_the_same_batches(command, tmp_path, monkeypatch, capsys):
    sentence(monkeypatch, capsys, *command, *spoiler([1]), "callbacks.checkpoints.every_n_train_steps=1")
    text = sentence(monkeypatch, capsys, *command, "data.batch_size=3")
    assert "data.batch_size is 3, but was 6 when" in text
    assert "lies 1 batches within an epoch" in text


def test_the_rest_of_an_epoch_needs_the_same_clips(command, tmp_path, monkeypatch, capsys):
    """One clip less, and the same seed gives another order."""
    sentence(monkeypatch, capsys, *command, *spoiler([1]), "callbacks.checkpoints.every_n_train_steps=1")
    whole = ClipDataModule.read

    def without_one(self: ClipDataModule, split: str) -> Any:
        clips, store = whole(self, split)
        return clips.without({clips.clips[0].id: "silent"}), store

    monkeypatch.setattr(ClipDataModule, "read", without_one)
    text = sentence(monkeypatch, capsys, *command)
    assert "lies 1 batches within an epoch of other train clips" in text
    assert "1 of them known to be unusable" in text


def test_a_clock_that_jumps_changes_nothing(command, tmp_path, monkeypatch):
    real, shift = time.time, iter([*range(0, -40_000_000, -1_000_000), *range(0, 400_000_000, 100_000)])
    monkeypatch.setattr(time, "time", lambda: real() + next(shift, 0))
    train(monkeypatch, *command, "callbacks.checkpoints.every_n_minutes=1")
    names = sorted(p.name for p in (tmp_path / "pretrain/runs/x/checkpoints").iterdir())
    assert names == ["last.ckpt", "step_00000002.ckpt", "step_00000004.ckpt"]  # none because of a minute that was none
    metrics = json.loads((tmp_path / "pretrain/runs/x/metrics.json").read_text())
    assert 0 < metrics["clips_per_second"] < 10_000


# ---------------------------------------------------------------- asked to stop


class Asker(Callback):
    """Sends its own process a signal in a step."""

    def __init__(self, number: int, step: int) -> None:
        self.number, self.step = number, step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            os.kill(os.getpid(), self.number)


def asked(number: int, step: int) -> list[str]:
    target = "+callbacks.asker._target_=test_faults.Asker"
    return [target, f"+callbacks.asker.number={int(number)}", f"+callbacks.asker.step={step}"]


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, *(pytest.param(n, marks=pytest.mark.full) for n in (signal.SIGUSR1, signal.SIGINT))]
)
def test_a_run_that_is_asked_to_stop_saves_after_the_step(command, tmp_path, monkeypatch, capfd, number):
    commands = tmp_path / "bin"
    commands.mkdir()
    (commands / "scontrol").write_text(f'#!/bin/sh\n[ $1 = show ] || echo "$@" > {tmp_path}/requeued\n')
    (commands / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "4216")
    monkeypatch.setenv("SLURM_JOB_NAME", "interactive")  # Lightning leaves such jobs' processes alone
    monkeypatch.setattr(signals, "PATIENCE", 3600.0)  # this process continues
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
    try:
        with pytest.raises(SystemExit) as end:
            train(monkeypatch, *command, *asked(number, 2))
    finally:
        for n, handler in before.items():
            signal.signal(n, handler)
    assert end.value.code == STOPPED == 75
    run_dir = tmp_path / "pretrain/runs/x"
    assert torch.load(run_dir / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 3
    text = capfd.readouterr().err
    assert f"{signal.Signals(number).name}: stopping after this step" in text
    by = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
    assert f"stopped by {by}; to continue from step_00000003, type: " in text
    assert f"train.py resume={run_dir}" in text
    assert (tmp_path / "requeued").exists() == (number == signal.SIGUSR1)
    if number == signal.SIGUSR1:
        assert (tmp_path / "requeued").read_text() == "requeue 4216\n"
    train(monkeypatch, *command)
    assert (run_dir / "metrics.json").exists()


def test_a_run_that_cannot_come_to_a_stop_leaves_in_time(command, tmp_path, monkeypatch):
    """It hangs in a step: the last checkpoint has to do."""
    monkeypatch.setattr(signals, "PATIENCE", 2.0)
    hanging = tmp_path / "hanging"

    def hang(_: Spoiler) -> None:
        hanging.touch()
        time.sleep(600)

    monkeypatch.setattr(Spoiler, "hang", hang, raising=False)
    more = ["callbacks.checkpoints.every_n_train_steps=1", *spoiler([2], what="hang")]
    process = start_forked(["src/train.py", *command, *more], tmp_path)
    while not hanging.exists():
        assert ended(process) is None, (tmp_path / "output.txt").read_text()
        time.sleep(0.05)
    os.kill(process, signal.SIGTERM)
    begin = time.monotonic()
    assert wait_for(process) == STOPPED
    assert time.monotonic() - begin < 30
    text = (tmp_path / "output.txt").read_text()
    assert "stopped by SIGTERM; to continue from step_00000002, type: " in text


@pytest.mark.parametrize(
    "content",
    [
        *("my notes\n", "id,reason,used,detail,path,more\n", "ID,reason,used,detail,path\n", "\n", "pipe", "huge"),
        *(f"id,reason,used,detail,path\n{line}\n" for line in ("a,b", "a,b,c,d,e,f", '"', "x" * 200_000 + ",,,,")),
    ],
)
def test_a_report_of_others_is_left_as_it_is(tmp_path, content):
    path = tmp_path / "data_problems.csv"
    if content == "pipe":
        os.mkfifo(path)
    else:
        path.write_text("id,reason,used,detail,path\n" if content == "huge" else content)
    if content == "huge":
        os.truncate(path, 2**40)  # takes no place on the disk
    report = DataReport(str(path))
    with pytest.raises(UserError, match=r"data_problems.csv .*move it out of the run directory"):
        report.setup(Trainer(logger=False, accelerator="cpu"), LightningModule(), "fit")
    assert content in ("pipe", "huge") or path.read_text() == content


@pytest.mark.parametrize("cut", ["none", "line", "field", "header"])
def test_a_report_that_was_cut_while_it_was_written_loses_nothing(tmp_path, cut):
    path = tmp_path / "data_problems.csv"
    problems = [Problem(f"clip{n}", f"/d/clip{n}.mp4", "undecodable", "a, b", used=n == 1) for n in range(3)]
    report = DataReport(str(path))
    report._write(problems)
    before = path.read_bytes()
    end = {"none": len(before), "line": len(before) - 4, "field": before.rindex(b"clip2") - 3, "header": 5}[cut]
    path.write_bytes(before[:end])
    again = DataReport(str(path))
    again.setup(Trainer(logger=False, accelerator="cpu"), LightningModule(), "fit")
    assert all(problem in problems for problem in again.seen.values())
    again._write(problems)
    found = [(row["id"], row["used"], row["detail"]) for row in read_table(path)]
    assert found == [(problem.id, str(problem.used), problem.detail) for problem in problems]
