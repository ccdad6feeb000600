"""What TensorBoard finds: each run once, the main curves first, few learning rates, and what a run says of itself."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.io_wrapper import GetLogdirSubdirectories

from deepavfusion.callbacks.show.dashboard import last_start, plain, run_table, start_weights
from deepavfusion.config.compose import REPOSITORY
from deepavfusion.loggers.curves import unlike_rates
from deepavfusion.loggers.tensorboard import CurveLogger
from helpers.runs import compose, events

# ---- curves


def test_the_main_curves_are_written_a_second_time_under_a_name_that_sorts_first(tmp_path: Path) -> None:
    logger = CurveLogger(save_dir=tmp_path, name="tensorboard", version="", overview=["train/loss", "knn/fusion"])
    logger.log_metrics({"train/loss": 2.0, "data/used": 8.0, "lr/layer_00": 0.1, "lr/layer_00_no_decay": 0.1}, 3)
    logger.log_metrics({"train/loss": 1.0, "knn/fusion": 0.5}, 5)
    logger.finalize("success")
    shown = events(tmp_path)
    curves = {tag: [(event.step, event.value) for event in shown.Scalars(tag)] for tag in shown.Tags()["scalars"]}
    assert curves == {
        "train/loss": [(3, 2.0), (5, 1.0)],
        "Overview/train_loss": [(3, 2.0), (5, 1.0)],
        "knn/fusion": [(5, 0.5)],
        "Overview/knn_fusion": [(5, 0.5)],
        "data/used": [(3, 8.0)],
        "lr/layer_00": [(3, pytest.approx(0.1))],
    }
    assert [tag.split("/")[0] for tag in sorted(curves)[:2]] == ["Overview"] * 2  # TensorBoard's order


@pytest.mark.parametrize(
    ("logged", "shown"),
    [
        ([f"lr/layer_{n:02d}{kind}" for n in range(14) for kind in ("", "_no_decay")], ["lr/layer_00", "lr/layer_13"]),
        (["lr/main", "lr/main_no_decay", "lr/image_encoder"], ["lr/main", "lr/image_encoder"]),
        (["lr/main_no_decay", "train/loss"], ["lr/main_no_decay"]),  # nothing else has its rate
        (["lr/layer_00", "lr/layer_01"], ["lr/layer_00", "lr/layer_01"]),
        (["lr"], []),  # without groups, no curve of a group
    ],
)
def test_learning_rates_that_follow_from_others_have_no_curve(logged: list[str], shown: list[str]) -> None:
    assert unlike_rates(logged) == set(shown)


@pytest.mark.parametrize("jumps", [[0, 0, 0], [10, 5, 0], [0, -3600, 10**7, -(10**6)], [5, 5, 4, 4, -(10**9)]], ids=str)
def test_curves_stay_in_order_whatever_the_clock_says(jumps: list[int], tmp_path: Path, monkeypatch) -> None:
    """Each start resumes one step before the last one of the start before it, as after a kill."""
    clock = time.time()
    for number, jump in enumerate(jumps):
        monkeypatch.setattr(time, "time", lambda jump=jump: clock + jump)
        monkeypatch.setattr(os, "getpid", lambda number=number: 1000 - 100 * number)  # it is in the name, too
        purge = {} if number == 0 else {"purge_step": 2 * number}
        logger = CurveLogger(save_dir=tmp_path, name="tensorboard", version="", **purge)
        assert logger.experiment is not None
        logger.save()
        assert len(list(tmp_path.rglob("events.*"))) == number  # not before there is a value
        for step in range(2 * number, 2 * number + 3):
            logger.log_metrics({"loss": 100.0 * number + step}, step)
        logger.finalize("success")
    found = [(event.step, event.value) for event in events(tmp_path).Scalars("loss")]
    last = len(jumps) - 1
    expected = [(step, 100.0 * (step // 2) + step) for step in range(2 * last)]
    assert found == [*expected, *((step, 100.0 * last + step) for step in range(2 * last, 2 * last + 3))]


# ---- settings and origin


def test_settings_are_numbers_and_texts_of_the_same_names_and_types_for_every_task() -> None:
    """TensorBoard reads names and types from one run."""
    kinds = []
    for experiment in ("pretrain_vggsound", "vggsound_linear_probe", "vggsound_finetune", "music_separation"):
        dashboard = compose(f"experiment={experiment}", "scale=demo").callbacks.dashboard
        values = {name: plain(value) for name, value in dashboard.settings}
        kinds.append({name: str if isinstance(value, str) else float for name, value in values.items()})
        shown = ["knn/combined", "test/top1", "test/map", "test/sdr", "test/miou_fg", "test/audio_to_image_map"]
        assert dashboard.metrics == shown
    assert all(kind == kinds[0] for kind in kinds)
    assert (plain(True), plain(None), plain([1, 2]), plain(0.5)) == ("yes", "none", "[1, 2]", 0.5)


def test_the_origin_of_a_run_comes_from_its_provenance(tmp_path: Path) -> None:
    assert last_start(tmp_path) == {}
    assert start_weights({}) == "scratch"
    weights = [{"checkpoint": "logs/pretrain/runs/long/checkpoints/last.ckpt"}, {"checkpoint": "mae_base.pth"}]
    start = {"command": "train.py a=1", "commit": "abc", "dirty": True, "date": "2026-01-01", "weights": weights}
    (tmp_path / "provenance.json").write_text(json.dumps({"starts": [{"command": "earlier"}, start]}))
    assert last_start(tmp_path) == start
    assert start_weights(start) == "long + mae_base.pth"
    table = run_table(tmp_path, start)
    for row in ("| command | `train.py a=1` |", "| commit | `abc` with changes |", f"| run directory | `{tmp_path}` |"):
        assert row in table


# ---- make tensorboard


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a blank in its name, with the Makefile, and a TensorBoard that prints its arguments."""
    place = tmp_path / "a place"
    (place / ".venv/bin").mkdir(parents=True)
    shutil.copy(REPOSITORY / "Makefile", place)
    for name in ("requirements.lock", "setup.cfg", "pyproject.toml", ".venv/.installed"):  # the last is the newest
        (place / name).touch()
    (place / ".venv/bin/tensorboard").write_text('#!/bin/sh\necho "shown: $*"\n')
    (place / ".venv/bin/tensorboard").chmod(0o755)
    return place


def run_in(place: Path, task: str, kind: str = "runs", name: str = "one") -> None:
    folder = place / "logs" / task / kind / name / "tensorboard"
    folder.mkdir(parents=True)
    (folder / "events.out.tfevents.0").touch()
    (folder.parents[2] / "latest").unlink(missing_ok=True)
    (folder.parents[2] / "latest").symlink_to(f"{kind}/{name}")


def shown(place: Path, *arguments: str) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The folder that TensorBoard is started with."""
    done = subprocess.run(["make", "tensorboard", *arguments], cwd=place, capture_output=True, text=True, timeout=60)
    line = next((line for line in done.stdout.splitlines() if line.startswith("shown: ")), "--logdir")
    return place / line.split("--logdir", 1)[1].split(" --host")[0].strip(), done


def runs(folder: Path) -> list[str]:
    return sorted(str(Path(run).relative_to(folder).parent) for run in GetLogdirSubdirectories(str(folder)))


def test_each_run_is_listed_once_later_ones_too(place: Path) -> None:
    folder, done = shown(place)  # before the first run
    assert done.returncode == 0
    assert runs(folder) == []
    run_in(place, "pretrain")
    assert runs(folder) == ["pretrain/one"]
    run_in(place, "classify")
    run_in(place, "classify", name="two")
    run_in(place, "classify", kind="evals")
    assert runs(folder) == ["classify/one", "classify/two", "classify_evals/one", "pretrain/one"]
    again, _ = shown(place)
    assert again == folder
    assert runs(folder) == ["classify/one", "classify/two", "classify_evals/one", "pretrain/one"]


def test_the_runs_of_a_task_or_of_another_folder(place: Path) -> None:
    run_in(place, "pretrain")
    run_in(place, "segment")
    folder, _ = shown(place, "task=segment")
    assert runs(folder) == ["segment/one"]
    shutil.move(place / "logs", place / "other logs")
    folder, _ = shown(place, "LOGS=other logs")
    assert runs(folder) == ["pretrain/one", "segment/one"]


def test_an_unknown_task_is_refused(place: Path) -> None:
    _, done = shown(place, "task=pretraining")
    assert done.returncode == 2
    assert "task=pretraining: expected one of pretrain classify separate segment retrieve" in done.stderr
    assert "shown" not in done.stdout
