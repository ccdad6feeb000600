"""What a run prints: the bar, lines where there is none, results with what they are compared with, next commands."""

from __future__ import annotations

import importlib
import inspect
import io
import logging
import pkgutil
import re
import shlex
import sys
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import Callback
from rich.console import Console

from deepavfusion import callbacks
from deepavfusion.callbacks.terminal import progress
from deepavfusion.callbacks.terminal.progress import RunProgress
from deepavfusion.callbacks.terminal.results import chances, results_table
from deepavfusion.callbacks.terminal.summary import RunSummary
from deepavfusion.cli.streams import quiet
from deepavfusion.metrics.row_mean import RowMean
from deepavfusion.runs.build import build
from deepavfusion.runs.overview import say_training
from deepavfusion.utils import console as consoles
from deepavfusion.utils.commands import command
from deepavfusion.utils.console import Bars, duration, from_here, is_live
from helpers.runs import PRETRAIN, compose

HOOKS = ("on_", "setup", "teardown", "state_dict", "load_state_dict")


class Screen(io.StringIO):
    """A terminal of 80 columns."""

    def isatty(self) -> bool:
        return True


def screen(**environment: str) -> Console:
    return Console(file=Screen(), width=80, _environ={"TERM": "xterm-256color", **environment})


# ---------------------------------------------------------------- where a bar is drawn


@pytest.mark.parametrize(
    ("console", "live"),
    [
        (screen(), True),
        (screen(NO_COLOR="1"), False),
        (screen(TERM="dumb"), False),
        (Console(file=Screen(), force_jupyter=True), False),
        (Console(file=io.StringIO(), _environ={}), False),
        (Console(file=io.StringIO(), _environ={"FORCE_COLOR": "1"}), False),  # as continuous integration sets it
    ],
)
def test_a_bar_is_drawn_on_a_terminal_only(console: Console, live: bool) -> None:
    assert is_live(console) == live


class Batch(list[int]):
    mask = None


def rehearse(monkeypatch: pytest.MonkeyPatch, console: Console) -> str:
    """What two epochs of four steps of 16 clips print; each step takes a second."""
    clock = iter(range(10_000))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    for module in (progress, consoles):
        monkeypatch.setattr(module, "get_console", lambda: console)
    bar = RunProgress(shown=["val/loss"])
    task: Any = SimpleNamespace(train_means={"train/loss": RowMean()})
    trainer: Any = SimpleNamespace(
        is_global_zero=True, world_size=1, max_epochs=2, max_steps=-1, num_training_batches=4, num_val_batches=[2, 1],
        check_val_every_n_epoch=1, enable_validation=True, sanity_checking=False, state=SimpleNamespace(fn="fit"),
        accumulate_grad_batches=1, callback_metrics={"val/loss": torch.tensor(2.5)},
    )  # fmt: skip
    bar.setup(trainer, task, "fit")
    batch: Any = Batch(range(16))
    for trainer.current_epoch in (0, 1):
        bar.on_train_epoch_start(trainer, task)
        for n in range(4):
            task.train_means["train/loss"].update(torch.tensor(2.0 - trainer.current_epoch), 16)
            bar.on_train_batch_end(trainer, task, {}, batch, n)
        bar.on_validation_start(trainer, task)
        for n in range(3):
            bar.on_validation_batch_end(trainer, task, {}, batch, n, 0)
        bar.on_validation_end(trainer, task)
        trainer.callback_metrics = {"val/loss": torch.tensor(1.25)}
    assert (bar.live is None) == (not is_live(console))
    bar.on_fit_end(trainer, task)
    assert bar.live is None
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_the_bar_shows_epoch_step_loss_speed_and_time_left_in_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = rehearse(monkeypatch, screen())
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn)
    (last,) = re.findall(r"epoch 2/2 ━+ 4/4 · loss 1\.500 · 5\.33 clips/s · run 0:10 left", plain)
    assert len(last) == 80
    assert "epoch 2/2, validation" in drawn
    assert "epoch 1/2, validation · val/loss 2.500" in drawn  # above the bar of the second epoch
    assert drawn.endswith("\x1b[2K")  # the last thing is to remove it


def test_without_a_terminal_lines_come_every_so_often(monkeypatch: pytest.MonkeyPatch) -> None:
    written = rehearse(monkeypatch, Console(file=io.StringIO(), width=80, _environ={})).splitlines()
    assert "epoch 1/2, validation · val/loss 2.500" in written
    assert "epoch 2/2, validation · val/loss 2.500 → 1.250" in written
    steps = [line for line in written if " · step " in line]
    assert 1 <= len(steps) <= 5  # of fourteen: one in ten seconds
    assert any(line.startswith("epoch ") and "clips/s" in line and "left" in line for line in steps)
    assert "\x1b" not in "".join(written)


def test_hooks_take_what_lightning_gives_them() -> None:
    """Some arguments by their names; no run of these tests has every callback."""
    for module in pkgutil.walk_packages(callbacks.__path__, f"{callbacks.__name__}."):
        importlib.import_module(module.name)
    found, kinds = 0, [Callback]
    while kinds:
        kind = kinds.pop()
        kinds += kind.__subclasses__()
        for name, hook in vars(kind).items():
            if kind.__module__.startswith(callbacks.__name__) and name in vars(Callback) and name.startswith(HOOKS):
                given = [*inspect.signature(getattr(Callback, name)).parameters]
                stage = {"stage": "fit"} if "stage" in given else {}
                inspect.signature(hook).bind(*given[: len(given) - len(stage)], **stage)
                found += 1
    assert found > 60


def test_other_jobs_report_in_lines_too(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(file=io.StringIO(), width=80, _environ={})
    with Bars(console) as bar:
        job = bar.add_task("packing", total=3)
        for _ in range(3):
            bar.advance(job)
    (line,) = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert line.startswith("packing · 3/3")  # none is due yet, but the last one


def test_durations() -> None:
    assert [duration(s) for s in (7, 725, 11525, 190_000)] == ["0:07", "12:05", "3:12:05", "2 days 4:46:40"]


# ---------------------------------------------------------------- before and after


def test_the_first_lines_say_what_the_run_will_do(data_root: Any, tmp_path: Any, capsys: Any) -> None:
    cfg = compose(*(override for override in PRETRAIN if "progress" not in override), f"data.root={data_root}")
    cfg.paths.run_dir = str(tmp_path)
    trainer, task, datamodule = build(cfg, [])
    say_training(cfg, tmp_path, trainer, task, datamodule)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 12
    rows = dict(line.split(maxsplit=1) for line in lines[1:])
    trained = sum(p.numel() for p in task.parameters() if p.requires_grad)
    total = sum(p.numel() for p in task.parameters())
    assert rows["run"] == str(tmp_path)
    assert rows["data"] == "vggsound: train 16 clips, val 8 clips (test)"
    assert rows["network"] == f"{total:,} parameters, {trained:,} trained"
    assert rows["batch"] == "6 = 6 × 1 process × 1 accumulated"
    assert rows["rate"] == "lr 3.75e-4 = blr 1.6e-2 × 6 / 256"
    assert rows["length"] == "3 epochs × 2 steps = 6 steps, validation each epoch"
    assert rows["watch"].endswith(f"tensorboard --logdir {tmp_path}")
    trainer.accumulate_grad_batches, trainer.limit_train_batches = 2, 1
    say_training(cfg, tmp_path, trainer, task, datamodule)
    out = capsys.readouterr().out
    assert "3 epochs × 1 step = 3 steps" in out
    assert "12 = 6 × 1 process × 2 accumulated" in out


def test_results_stand_beside_what_they_are_compared_with() -> None:
    data: Any = SimpleNamespace(classes=["a"] * 8, multi_label=False)
    metrics = {
        "knn/fusion": 0.57, "knn/fusion_before": 0.27, "test/top5": 0.9, "train/loss": 1.5, "train/loss_first": 2.5,
        "test/sdr": 10.25, "test/sdr_mixture": 0.375, "test/sdr_wrong_frame": -10.3, "test/sdr_ideal": 20.0, "x": 1.0,
    }  # fmt: skip
    headline = {"knn/fusion": "1-NN", "test/top5": "top-5", "test/sdr": "SDR", "train/loss": "loss", "test/map": "mAP"}
    console = Console(file=io.StringIO(), width=120, _environ={})
    console.print(results_table(metrics, headline, chances(data)))
    title, upper, head, *rows = (line.split() for line in console.file.getvalue().splitlines())  # type: ignore[attr-defined]
    assert title == ["Results"]
    assert " ".join(head) == "metric result untrained chance mixture frame ideal epoch 1"
    assert upper == ["wrong"]
    assert rows == [
        ["1-NN", "knn/fusion", "0.570", "0.270", "0.125"],
        ["top-5", "test/top5", "0.900", "0.625"],
        ["SDR", "test/sdr", "10.2", "0.375", "-10.3", "20.0"],
        ["loss", "train/loss", "1.500", "2.500"],
    ]


def test_guessing_several_labels_gives_their_share() -> None:
    clips = [SimpleNamespace(classes=(0, 1)), SimpleNamespace(classes=(2,))]
    data: Any = SimpleNamespace(classes=["a"] * 4, multi_label=True, lists={"test": SimpleNamespace(clips=clips)})
    assert chances(data) == {"map": 3 / 8, "auc": 0.5, "dprime": 0.0}
    assert chances(None) == {}


def test_the_table_of_each_task_has_ten_rows_at_most_and_fits() -> None:
    suffixes = {
        "pretrain": ["_before"],
        "classify": ["_untrained"],
        "separate": ["_mixture", "_wrong_frame", "_ideal"],
        "segment": ["_wrong_audio"],
        "retrieve": ["_untrained", "_chance", "_zero_shot", "_joint"],
    }
    for task, compared in suffixes.items():
        cfg = compose(f"callbacks={task}")
        headline = dict(cfg.callbacks.run_summary.headline)
        several = [name for name in headline if name.startswith(("test/map", "test/auc", "test/miou_class"))]
        metrics = {name: 12.34 for name in headline if name not in several} | {"train/loss_first": 1.0}
        metrics |= {name + suffix: -12.3 for name in list(metrics) for suffix in compared}
        console = Console(file=io.StringIO(), width=80, _environ={})
        console.print(results_table(metrics, headline, {"top1": 0.1, "fusion": 0.1}))
        lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
        assert 5 <= sum("/" in line or "clips_per" in line for line in lines) <= 10
        assert not any("…" in line for line in lines)


def test_the_next_commands_can_be_copied(tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    folder = tmp_path / "with a blank"
    (folder / "checkpoints").mkdir(parents=True)
    checkpoints = [folder / "checkpoints" / name for name in ("best.ckpt", "last.ckpt")]
    for path in checkpoints:
        path.touch()
    given = ["scale=demo", "data.root=/d", "trainer.max_epochs=1", "model.net.fusion=dense"]
    task: Any = SimpleNamespace(record={"overrides": given, "task": "segment"})
    trainer: Any = SimpleNamespace(
        ckpt_path=None, datamodule=None, loggers=[SimpleNamespace(watch="tensorboard --logdir {run_dir}")]
    )
    commands = [
        ["a", "predict.py video={video} ckpt_path={best}"],
        ["b", "train.py experiment=x {same} {data} model.pretrained={last}"],
        ["c", "train.py experiment=y {demo}"],
        ["d", "tensorboard --logdir {run_dir}"],
    ]
    summary = RunSummary(str(folder), next_commands=commands)
    monkeypatch.setattr(sys, "orig_argv", [".venv/bin/python", "src/train.py"])
    monkeypatch.chdir(tmp_path)

    def words() -> list[list[str]]:
        summary._say_next(trainer, task)
        return [shlex.split(line) for line in capsys.readouterr().out.splitlines() if line.startswith("    ")]

    predict, train, demo, board = words()
    assert predict[0] == ".venv/bin/python"
    assert predict[1].endswith("src/predict.py")
    assert predict[2:] == ["video=clip.mp4", "ckpt_path=with a blank/checkpoints/best.ckpt"]
    last = "model.pretrained=with a blank/checkpoints/last.ckpt"
    assert train[2:] == ["experiment=x", "scale=demo", "model.net.fusion=dense", "data.root=/d", last]
    assert demo[2:] == ["experiment=y", "scale=demo", "model.net.fusion=dense"]
    assert board == [".venv/bin/tensorboard", "--logdir", "with a blank"]
    given.remove("scale=demo")
    assert len(words()) == 3  # what needs other data is for the demo only
    checkpoints[1].unlink()  # as of a run without the callback that writes them
    trainer.loggers.clear()
    assert words() == [predict]
    checkpoints[0].unlink()
    assert words() == []


def test_paths_are_shown_from_the_current_folder(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert from_here(f"run {tmp_path}/logs/x (see '{tmp_path}/y') a={tmp_path}/z") == "run logs/x (see 'y') a=z"
    assert from_here(f"/other{tmp_path}/logs") == f"/other{tmp_path}/logs"
    monkeypatch.setattr(sys, "orig_argv", ["python", "x"])
    assert command("tensorboard --logdir {run_dir}", run_dir=tmp_path / "logs") == "tensorboard --logdir logs"


# ---------------------------------------------------------------- noise


def test_notices_of_libraries_are_silent_and_ours_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    log = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    written = io.StringIO()
    monkeypatch.setattr(log, "handlers", [logging.StreamHandler(written)])
    monkeypatch.setattr(log, "level", logging.INFO)
    monkeypatch.setattr(log, "disabled", False)  # as Hydra leaves it
    with warnings.catch_warnings(record=True) as caught, pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("always")
        patch.setattr(sys, "warnoptions", [])
        quiet()
        warnings.warn("`isinstance(treespec, LeafSpec)` is deprecated, use another", FutureWarning, stacklevel=1)
        warnings.warn("The 'val_dataloader' does not have many workers which may be a bottleneck.", stacklevel=1)
        warnings.warn("something of ours is deprecated", FutureWarning, stacklevel=1)
        log.info("GPU available: False, used: False")
        log.warning("something happened")
    assert [str(each.message) for each in caught] == ["something of ours is deprecated"]
    assert written.getvalue() == "something happened\n"
