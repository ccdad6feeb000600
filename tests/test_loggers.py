"""Loggers: what each shows, that a resumed run doubles nothing, and that one which fails keeps no training waiting."""

from __future__ import annotations

import csv as csv_lib
import os
import re
import threading
import time
import wave
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image

from deepavfusion.config import loggers as needs
from deepavfusion.config.check import check_ranges
from deepavfusion.config.compose import REPOSITORY, instantiate
from deepavfusion.config.records import accepted
from deepavfusion.config.secrets import refuse_secrets
from deepavfusion.loggers import courier, mlflow, service, wandb, wandb_log
from deepavfusion.loggers.board import Board, Shows, board_of
from deepavfusion.loggers.courier import Courier
from deepavfusion.loggers.csv import CsvLogger
from deepavfusion.loggers.mlflow import MlflowLogger
from deepavfusion.loggers.service import Service, State
from deepavfusion.loggers.tensorboard import CurveLogger, OnTensorBoard
from deepavfusion.loggers.trouble import Trouble, in_a_line
from deepavfusion.loggers.wandb import WandbLogger, mode_of
from deepavfusion.runs.build import loggers_ended, watching
from deepavfusion.runs.signals import StopRequested
from deepavfusion.utils.errors import UserError
from helpers import wandb_files
from helpers.runs import compose, events

LOCAL = ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_IDENTITY_TOKEN_FILE", "MLFLOW_TRACKING_URI")


@pytest.fixture(autouse=True)
def nobody_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No key, no server; and what W&B takes for its own folders."""
    for name in LOCAL:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no netrc"))


# ---- the choice


@pytest.mark.parametrize("chosen", ["csv", "[tensorboard,wandb]", "[mlflow,csv]", "none"])
def test_loggers_are_chosen_by_name_or_as_a_list(chosen: str) -> None:
    cfg = compose(f"logger={chosen}", "paths.run_dir=/x")
    names = [name for name in chosen.strip("[]").split(",") if name not in ("", "none")]
    assert list(cfg.get("logger") or {}) == names
    check_ranges(cfg)
    made = [instantiate(cfg.logger[name], purge_step=7) for name in names]
    kinds = {"tensorboard": CurveLogger, "csv": CsvLogger, "wandb": WandbLogger, "mlflow": MlflowLogger}
    assert [type(logger) for logger in made] == [kinds[name] for name in names]
    assert all(logger.purge_step == 7 for logger in made if not isinstance(logger, CurveLogger))


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    there = needs.importlib.util.find_spec
    missing = {"wandb", "alembic"}
    monkeypatch.setattr(needs.importlib.util, "find_spec", lambda name: None if name in missing else there(name))
    check_ranges(compose("logger=[tensorboard,csv]"))
    with pytest.raises(UserError, match=r"^logger=wandb needs .*\(wandb\): \S+ -m pip install wandb \(the extra wandb"):
        check_ranges(compose("logger=[tensorboard,wandb]"))
    with pytest.raises(UserError, match=r"\(alembic\): \S+ -m pip install mlflow-skinny SQLAlchemy alembic"):
        check_ranges(compose("logger=mlflow"))


def test_a_folder_of_that_name_is_no_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """W&B leaves one where it runs."""
    (tmp_path / "left_by_others").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert not needs._is_installed("left_by_others")
    assert needs._is_installed("csv")


@pytest.mark.parametrize(
    ("key", "value"),
    [("wandb.project", "''"), ("wandb.tags", "x"), ("wandb.offline", "maybe"), ("mlflow.finish_seconds", "-1")],
)
def test_values_that_cannot_be_are_refused(key: str, value: str) -> None:
    with pytest.raises(UserError, match=rf"^logger\.{re.escape(key)} is "):
        check_ranges(compose("logger=[wandb,mlflow]", f"logger.{key}={value}"))


def test_the_record_of_somebody_else_chooses_no_logger_that_asks_a_server() -> None:
    for local in ("csv", "none", "tensorboard", "[tensorboard,csv]"):
        assert accepted([f"logger={local}"], [], "a.ckpt") == [f"logger={local}"]
    for other in ("wandb", "mlflow", "[tensorboard,wandb]", "[mlflow]", "x"):
        with pytest.raises(UserError, match="records the override"):
            accepted([f"logger={other}"], [], "a.ckpt")
        assert accepted([f"logger={other}"], [], "a.ckpt", own=True) == [f"logger={other}"]


def test_what_each_logger_shows_is_documented() -> None:
    """docs/loggers.md has a row for each kind, and a mark where it is left out."""
    text = (REPOSITORY / "docs" / "loggers.md").read_text()
    rows = re.findall(
        r"^\| (\w+)[^|]*\|([^|]*)\|([^|]*)\|([^|]*)\|([^|]*)\|$", text.split("## What each shows")[1], re.M
    )
    found = {name: [cell.strip() != "–" for cell in cells] for name, *cells in rows if name != "kind"}
    assert found.pop("curves") == [True] * 4
    kinds = [name for name in vars(Shows) if name.startswith("show_")]
    shown = {
        kind: [getattr(each, kind) is not getattr(Shows, kind) for each in (OnTensorBoard, WandbLogger, MlflowLogger)]
        for kind in kinds
    }
    assert found == {kind.removeprefix("show_"): [*shown[kind], False] for kind in kinds}


# ---- CSV


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return [{name: cell for name, cell in row.items() if cell} for row in csv_lib.DictReader(file)]


def test_a_csv_file_gets_columns_as_they_come_and_is_continued_from_a_checkpoint(tmp_path: Path) -> None:
    logger = CsvLogger(str(tmp_path))
    for step in range(4):
        logger.log_metrics({"loss": 1.0 - step / 8, "lr/layer_0": 1.0, "lr/layer_1": 2.0, "lr/layer_2": 3.0}, step)
        logger.save()
    logger.log_metrics({"val/top1": 0.5}, 3)
    logger.close("stopped")
    assert table(tmp_path / "metrics.csv")[-2:] == [
        {"step": "3", "loss": "0.625", "lr/layer_0": "1.0", "lr/layer_2": "3.0"},
        {"step": "3", "val/top1": "0.5"},
    ]
    with open(tmp_path / "metrics.csv", "a") as file:
        file.write("1,0.99")  # cut off by a kill
    logger = CsvLogger(str(tmp_path), purge_step=2)
    logger.log_metrics({"loss": 0.7, "new": 3.0}, 2)
    logger.close("finished")
    kept = [(row["step"], row["loss"]) for row in table(tmp_path / "metrics.csv")]
    assert kept == [("0", "1.0"), ("1", "0.875"), ("2", "0.7")]
    CsvLogger(str(tmp_path), purge_step=1).close("finished")  # nothing was left to train
    assert [row["step"] for row in table(tmp_path / "metrics.csv")] == ["0"]


def test_a_csv_file_of_a_start_that_is_no_resume_begins_anew(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,loss\n0,1\n")
    logger = CsvLogger(str(tmp_path))
    logger.log_metrics({"loss": 5.0}, 0)
    logger.close("finished")
    assert table(tmp_path / "metrics.csv") == [{"step": "0", "loss": "5.0"}]


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "step,x,x\n1,2,3\n", "\0\xff\n", "step,x", "x" * 300_000])
def test_a_csv_file_of_others_does_no_harm(text: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text(text, encoding="latin-1")
    logger = CsvLogger(str(tmp_path), purge_step=5)
    logger.log_metrics({"loss": 5.0}, 5)
    logger.close("finished")
    assert table(tmp_path / "metrics.csv") == [{"step": "5", "loss": "5.0"}]


def test_rows_that_the_disk_refuses_are_written_later_and_once(tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "run"
    logger = CsvLogger(str(folder))  # which is not there yet
    for step in range(3):
        logger.log_metrics({"loss": float(step)}, step)
        logger.save()
    assert capsys.readouterr().out.count("metrics.csv: FileNotFoundError") == 1
    folder.mkdir()
    logger.log_metrics({"loss": 3.0}, 3)
    logger.save()
    logger.close("finished")
    assert [row["step"] for row in table(folder / "metrics.csv")] == ["0", "1", "2", "3"]
    assert "nothing is missing" in capsys.readouterr().out


def test_a_row_that_was_written_in_part_is_not_there_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = CsvLogger(str(tmp_path))
    logger.log_metrics({"loss": 0.0}, 0)
    logger.save()

    def full(writer: Any, rows: Any) -> None:
        writer.writer.writerow(["1", "0."])
        raise OSError(28, "No space left on device")

    logger.log_metrics({"loss": 1.0}, 1)
    with monkeypatch.context() as patch:
        patch.setattr(csv_lib.DictWriter, "writerows", full)
        logger.save()
    logger.close("finished")
    assert [row["loss"] for row in table(tmp_path / "metrics.csv")] == ["0.0", "1.0"]


# ---- a service that fails


def test_what_a_service_does_not_take_now_is_given_again_in_order(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    taken, tries = [], []

    def give(number: int) -> None:
        tries.append(number)
        if len(tries) < 3:
            raise ConnectionError("https://user:password@host refused")
        if number == 2:
            raise ValueError("2 is refused")
        taken.append(number)

    trouble = Trouble("X")
    found = Courier(trouble, lambda error: isinstance(error, OSError))
    for number in range(4):
        found.send(lambda number=number: give(number))
    assert found.close(20.0)
    assert taken == [0, 1, 3]
    assert tries[:3] == [0, 0, 0]
    assert trouble.lost == 1
    trouble.say_again()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "X: ConnectionError: https://host refused; training goes on"
    assert lines[1].startswith("X: 1 entry of it is missing, the first because of: ")
    assert len(lines) == 2


def test_a_service_that_hangs_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(courier, "MOST_CALLS", 3)
    trouble, free = Trouble("X"), threading.Event()
    found = Courier(trouble, lambda error: True)
    began = time.monotonic()
    for _ in range(10):
        found.send(free.wait)
    assert not found.flush(0.1)
    assert not found.flush(100.0)  # once is enough, until it answers
    assert not found.close(0.1)
    assert time.monotonic() - began < 5
    assert trouble.lost == 7 + 3
    found.send(free.wait)  # the run is over
    assert trouble.lost == 10
    free.set()


def test_what_is_missing_at_the_end_is_said_once(capsys: Any) -> None:
    trouble, free = Trouble("X"), threading.Event()
    found = Courier(trouble, lambda error: True)
    found.send(free.wait)
    assert not found.close(0.1)
    trouble.say_again()
    free.set()
    assert capsys.readouterr().out == (
        "X: 1 entry of it is missing, the first because of: not delivered by the end of the run\n"
    )


def test_loggers_end_at_the_same_time(tmp_path: Path) -> None:
    both = threading.Barrier(2, timeout=20.0)

    class Slow(Fake):
        def _finish(self, opened: Any, status: str) -> None:
            both.wait()
            super()._finish(opened, status)

    loggers = [Slow(tmp_path / name) for name in "ab"]
    with loggers_ended(SimpleNamespace(loggers=loggers, interrupted=False)):  # type: ignore[arg-type]
        for logger in loggers:
            logger.log_metrics({"a": 1}, 1)
    assert [logger.ends for logger in loggers] == [["finished"]] * 2


def test_what_waits_takes_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(courier, "MOST_BYTES", 100)
    trouble, free, taken = Trouble("X"), threading.Event(), []
    found = Courier(trouble, lambda error: False)
    found.send(free.wait, 90)
    found.send(lambda: taken.append("large"), 20)
    found.send(lambda: taken.append("small"), 10)
    free.set()
    assert found.close(5.0)
    assert (taken, trouble.lost) == (["small"], 1)


class Fake(Service):
    """A service of its own memory, which others are told to fail."""

    title, folder = "Fake", "fake"
    place, watch = "here", None

    def __init__(self, run_dir: Path, purge_step: int | None = None) -> None:
        super().__init__(str(run_dir), purge_step, 5.0)
        self.taken: list[tuple[int, dict[str, float]]] = []
        self.ends: list[str] = []
        self.fails: list[Exception] = []
        self.opens = 0
        self.broken_connections = 0

    def _open(self, state: State) -> Any:
        self.opens += 1
        state.id = state.id or service.new_id()
        return self.taken

    def _give(self, opened: Any, values: Any, step: int) -> None:
        if self.fails:
            raise self.fails.pop()
        opened.append((step, dict(values)))

    def _lost(self) -> None:
        self.broken_connections += 1

    def _finish(self, opened: Any, status: str) -> None:
        self.ends.append(status)


def test_points_after_the_checkpoint_are_not_given_twice_and_the_id_stays(tmp_path: Path) -> None:
    first = Fake(tmp_path)
    for step in range(6):
        first.log_metrics({"loss": step}, step)
    first.log_metrics({"val": 5}, 5)
    first.close("stopped")
    assert first.ends == ["stopped"]
    again = Fake(tmp_path, purge_step=4)
    for step in range(4, 8):
        again.log_metrics({"loss": step, "late": step}, step)
    for step in (5, 7):
        again.log_metrics({"val": step}, step)
    again.close("finished")
    assert [(step, values["loss"]) for step, values in again.taken if "loss" in values] == [(6, 6.0), (7, 7.0)]
    assert [(step, values["val"]) for step, values in again.taken if "val" in values] == [(7, 7.0)]
    assert [step for step, values in again.taken if "late" in values] == [4, 5, 6, 7]
    assert again.state is not None
    assert first.state is not None
    assert again.state.id == first.state.id
    new = Fake(tmp_path)  # of a start that is no resume
    new.log_metrics({"loss": 1}, 0)
    new.close("finished")
    assert new.state is not None
    assert new.taken
    assert new.state.id != first.state.id


def test_a_point_that_was_lost_is_not_remembered_as_given(tmp_path: Path, capsys: Any) -> None:
    first = Fake(tmp_path)
    first.fails = [ValueError("no")]
    first.log_metrics({"a": 0}, 0)
    first.log_metrics({"b": 0}, 0)
    first.close("failed")
    assert first.taken == [(0, {"b": 0.0})]
    again = Fake(tmp_path, purge_step=0)
    again.log_metrics({"a": 0, "b": 0}, 0)
    again.close("finished")
    assert again.taken == [(0, {"a": 0.0})]
    assert "Fake: 1 entry of it is missing, the first because of: ValueError: no" in capsys.readouterr().out


def test_a_full_disk_loses_no_connection_and_a_file_that_is_gone_stops_nothing(tmp_path: Path, capsys: Any) -> None:
    logger = Fake(tmp_path)
    logger.fails = [BrokenPipeError(32, "broken"), FileNotFoundError(2, "gone"), OSError(28, "No space left on device")]
    logger.fails.reverse()  # they are taken from the end
    for step in range(3):
        logger.log_metrics({"a": step}, step)
    logger.close("finished")
    assert (logger.broken_connections, logger.opens) == (1, 1)
    assert [step for step, _ in logger.taken] == [1, 2]  # of the first one, the second try was refused
    out = capsys.readouterr().out
    assert "Fake: 1 entry of it is missing" in out


def test_what_was_given_is_not_given_again_where_the_disk_refuses_the_note_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    logger, write = Fake(tmp_path), service.write_whole
    monkeypatch.setattr(service, "write_whole", Mock(side_effect=OSError(28, "No space left on device")))
    logger.log_metrics({"a": 0}, 0)
    logger.flush()
    monkeypatch.setattr(service, "write_whole", write)
    logger.log_metrics({"b": 1}, 1)
    logger.close("finished")
    assert logger.taken == [(0, {"a": 0.0}), (1, {"b": 1.0})]
    assert State(tmp_path / "fake" / service.STATE, "here", resumes=True).given == {"a": 0, "b": 1}
    assert "Fake: nothing is missing, though for a while: OSError: [Errno 28]" in capsys.readouterr().out


@pytest.mark.parametrize("limit", [0.0, 0.2])
def test_the_end_takes_no_longer_than_its_limit(limit: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger, given = Fake(tmp_path), []
    logger.finish_seconds = limit
    logger.log_metrics({"a": 0}, 0)
    logger.flush()
    assert logger.courier is not None
    monkeypatch.setattr(logger.courier, "close", lambda seconds: given.append(seconds) or True)
    logger.close("finished")
    assert given[0] <= limit / 2


def test_a_service_that_cannot_be_opened_is_not_tried_again_and_again(tmp_path: Path, capsys: Any) -> None:
    class Broken(Fake):
        def _open(self, state: State) -> Any:
            self.opens += 1
            raise PermissionDenied("wrong key")

    class PermissionDenied(Exception):
        pass

    logger = Broken(tmp_path)
    for step in range(5):
        logger.log_metrics({"a": 0}, step)
    logger.close("finished")
    assert (logger.opens, logger.ends) == (1, [])
    out = capsys.readouterr().out
    assert out.count("wrong key") == 2
    assert "Fake: 5 entries are missing" in out


def test_nothing_is_opened_before_the_first_value_nor_by_other_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = Fake(tmp_path)
    logger.save()
    logger.flush()
    logger.finalize("success")
    logger.close("finished")
    assert (logger.opens, list(tmp_path.iterdir())) == (0, [])
    other = Fake(tmp_path)
    monkeypatch.setattr(service.rank_zero_only, "rank", 1)
    other.log_metrics({"a": 0}, 0)
    csv = CsvLogger(str(tmp_path))
    csv.log_metrics({"a": 0}, 0)
    csv.close("finished")
    assert (other.courier, list(tmp_path.iterdir())) == (None, [])
    assert board_of(SimpleNamespace(is_global_zero=False, loggers=[other])) is None  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{",
        '{"given": 1}',
        '{"id": "x", "place": "here", "given": {"a": "b"}}',
        '{"id": "../x", "given": {}}',
        "[" * 9999,
    ],
)
def test_a_state_that_is_none_is_named_or_ignored(text: str, tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text(text)
    with suppress(UserError):
        state = State(tmp_path / "state.json", "here", resumes=True)
        assert (state.id, state.before) == ("", {})


@pytest.mark.parametrize(
    ("error", "status"),
    [(None, "finished"), (StopRequested("x"), "stopped"), (UserError("x"), "failed"), (KeyboardInterrupt(), "stopped")],
)
def test_loggers_end_as_the_run_does(error: BaseException | None, status: str, tmp_path: Path) -> None:
    logger = Fake(tmp_path)
    trainer: Any = SimpleNamespace(loggers=[logger, object()], interrupted=False)
    with pytest.raises(type(error)) if error else nullcontext(), loggers_ended(trainer):
        logger.log_metrics({"a": 1}, 1)
        if error is not None:
            raise error
    assert logger.ends == [status]
    assert logger.taken == [(1, {"a": 1.0})]


@pytest.mark.parametrize(
    "name", ["../../etc/x", "a" * 500, "x/../y", "ü ö/ß", "..", "/", "a\nb", "a\0b", "a:b?*<>|", "-rf", "\ud800", ""]
)
def test_names_stay_names_of_files(name: str, tmp_path: Path) -> None:
    for kind in (WandbLogger(str(tmp_path)), MlflowLogger(str(tmp_path))):
        tag = kind.tag(name)
        assert all(part not in ("", ".", "..") and len(part) <= 90 for part in tag.split("/"))
        assert re.fullmatch(r"[\w. /-]+", tag, re.ASCII if isinstance(kind, MlflowLogger) else 0)
        assert (tmp_path / tag).resolve().is_relative_to(tmp_path)
    assert kind.tag("a:b") != kind.tag("a?b")


def test_a_message_has_no_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "abcdefghij")
    text = "http://me:secret@host/x?sig=123456 abcdefghij\nnot so"
    assert in_a_line(RuntimeError(text)) == "RuntimeError: http://host/x?… … not so"


@pytest.mark.parametrize(
    "word",
    [
        "logger.wandb.api_key=hidden99",
        "+logger.wandb.init.a=http://a:hidden99@x",
        "logger.mlflow.tracking_uri=http://a:hidden99@x",
    ],
)
def test_a_key_in_the_command_is_refused_with_the_variables_that_hold_it(word: str) -> None:
    with pytest.raises(UserError, match=r"^logger\.\S+ .*\(WANDB_API_KEY, .*docs/loggers\.md") as found:
        refuse_secrets([word])
    assert "hidden99" not in str(found.value)


# ---- W&B


def test_nothing_is_sent_without_a_key_and_nobody_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert mode_of(None)[0] == "offline"
    assert "no API key" in mode_of(None)[1]
    assert mode_of(True) == ("offline", "")
    assert mode_of(False) == ("online", "")
    netrc = tmp_path / "netrc"
    netrc.write_text("machine api.wandb.ai\n  login user\n  password x\n")
    monkeypatch.setenv("NETRC", str(netrc))
    assert mode_of(None) == ("online", "")
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert mode_of(None)[0] == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "x")
    assert mode_of(None) == ("online", "")
    monkeypatch.setenv("WANDB_MODE", "dryrun")
    assert mode_of(None) == ("offline", "")


def show_all(shown: Board, step: int, video: Path) -> None:
    """One of each kind."""
    from deepavfusion.figures.style import new_figure

    figure = new_figure(2, 1)
    figure.subplots().plot([0, 1])
    shown.figure("pictures/a_figure", figure, step)
    shown.audio("audio/a/ü clip", torch.sin(torch.arange(1600) / 5).unsqueeze(0), step, 16_000)
    shown.video("duet/source1", video, step)
    shown.text("about", "<b>bold</b>", step)
    shown.table("predictions", [["id", "p"], ["=1+1", 0.5], ["b", float("nan")]], step)
    shown.histogram("test/sdr", torch.arange(10.0), step)
    shown.embedding("fusion", torch.eye(3), ["a", "b", "c"], torch.zeros(3, 3, 8, 8), step)
    shown.settings({"lr": 0.5, "data": "x"}, ["test/top1"], "model:\n  lr: 0.5\n  sizes: [1, 2]\nnothing: null\n")
    shown.layout({"learning": {"loss": ["train/loss"]}})


@pytest.fixture
def video(tmp_path: Path) -> Path:
    (tmp_path / "a.mp4").write_bytes(b"not quite a video")
    return tmp_path / "a.mp4"


def two_starts(make: Any, video: Path) -> None:
    """A run that is stopped after step 3, and resumed from step 2."""
    logger = make(None)
    shown = Board([logger])
    for step in range(4):
        logger.log_metrics({"train/loss": 1.0 / (1 + step)}, step)
    show_all(shown, 3, video)
    assert logger.courier.flush(100.0)  # a busy machine takes long to open it
    logger.close("stopped")
    logger = make(2)
    for step in range(2, 6):
        logger.log_metrics({"train/loss": 1.0 / (1 + step)}, step)
    show_all(Board([logger]), 3, video)
    shown = Board([logger])
    shown.text("changed", "- `lr`", 2)
    logger.close("finished")


def test_wandb_offline_holds_everything_once(tmp_path: Path, video: Path) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    two_starts(lambda purge: WandbLogger(str(run_dir), purge_step=purge, tags=["x"], group="pretrain"), video)
    found = wandb_files.history(run_dir)
    assert found["train/loss"] == [(step, pytest.approx(1 / (1 + step))) for step in range(6)]
    assert wandb_files.exits(run_dir) == [75, 0]
    ids = {record.run.run_id for record in wandb_log.records(run_dir / "wandb") if record.HasField("run")}
    assert len(ids) == 1
    (files,) = (path for path in run_dir.glob("wandb/offline-run-*/files") if (path / "media/audio").exists())
    image = Image.open(next(files.glob("media/images/pictures/a_figure_*.png")))
    assert image.size == (220, 110)
    assert np.asarray(image.convert("L")).std() * 100 > 100  # something is drawn
    with wave.open(str(next(files.glob("media/audio/audio/a/ü clip_*.wav")))) as file:
        assert (file.getframerate(), file.getnframes(), file.getsampwidth()) == (16_000, 1600, 2)
        samples = np.frombuffer(file.readframes(1600), "<i2") / 32767
    assert samples == pytest.approx(np.sin(np.arange(1600) / 5), abs=1e-4)
    assert next(files.glob("media/videos/duet/source1_*.mp4")).read_bytes() == video.read_bytes()
    assert "&lt;b&gt;bold" in next(files.glob("media/html/about_*.html")).read_text()
    assert len(list(files.glob("media/table/*"))) == 2  # predictions, embedding
    steps = {name.rpartition(".")[0]: [step for step, _ in found[name]] for name in found if name.endswith("._type")}
    kinds = [
        "pictures/a_figure",
        "audio/a/ü clip",
        "duet/source1",
        "about",
        "predictions",
        "test/sdr",
        "embedding/fusion",
    ]
    assert {name: steps[name] for name in kinds} == {name: [3] for name in kinds}
    assert wandb_files.config(run_dir)["model"] == {"lr": 0.5, "sizes": [1, 2]}
    assert wandb_files.config(run_dir)["settings"] == {"lr": 0.5, "data": "x"}
    assert "WANDB_SERVICE" not in os.environ  # its process has ended


def test_wandb_says_how_what_its_server_did_not_take_is_sent(tmp_path: Path, capsys: Any) -> None:
    logger = WandbLogger(str(tmp_path), offline=True)
    run: Any = Mock()
    run.finish.side_effect = TimeoutError("Timed out finishing run.")
    run.settings.sync_dir = str(tmp_path / "wandb" / "run-20260101_000000-abc")
    logger._finish(run, "finished")
    out = capsys.readouterr().out
    assert "W&B: its server did not take everything" in out
    assert f"wandb sync --include-online {tmp_path}/wandb/run-20260101_000000-abc" in out


def test_wandb_counts_as_given_what_is_on_disk(tmp_path: Path) -> None:
    """Its process writes every some seconds, and may have been killed before."""
    logger = WandbLogger(str(tmp_path), offline=True)
    for step in range(3):
        logger.log_metrics({"a": step, "b/c": step}, step)
    logger.close("finished")
    assert wandb_log.steps_in(tmp_path / "wandb", wandb.STEP)["b/c"] == 2
    (log,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    log.write_bytes(log.read_bytes()[:7])  # nothing but the file's header
    logger = WandbLogger(str(tmp_path), offline=True, purge_step=1)
    logger.log_metrics({"a": 1.0}, 1)
    logger.close("finished")
    assert wandb_files.history(tmp_path)["a"] == [(1, 1)]


@pytest.mark.parametrize(
    "data", [b"", b":W&B", b"x" * 100_000, b":W&B\0\0\0" + b"\0\0\0\0\xff\xff\x02" * 9999], ids=len
)
def test_a_log_of_wandb_that_is_none_is_empty_or_an_error(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "run-1-x").mkdir()
    (tmp_path / "run-1-x/run-x.wandb").write_bytes(data)
    with suppress(Exception):
        assert wandb_log.steps_in(tmp_path, "step") == {}


# ---- MLflow


def test_mlflow_holds_everything_once(tmp_path: Path, video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # the other one takes seconds to make its tables
    uri, run_dir = (tmp_path / "store").as_uri(), tmp_path / "run"
    two_starts(lambda purge: MlflowLogger(str(run_dir), tracking_uri=uri, tags={"a": "b"}, purge_step=purge), video)
    check_mlflow(MlflowClient(uri), video, tmp_path)


def check_mlflow(client: Any, video: Path, folder: Path) -> None:
    (experiment,) = (each for each in client.search_experiments() if each.name == "deepavfusion")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.status, run.info.run_name, run.data.tags.get("a", "b")) == ("FINISHED", "run", "b")
    points = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(point.step, point.value) for point in points] == [(n, pytest.approx(1 / (1 + n))) for n in range(6)]
    assert run.data.params["settings.lr"] == run.data.params["model.lr"] == "0.5"
    got = Path(client.download_artifacts(run.info.run_id, "", str(folder)))
    assert len(list(got.glob("images/*.png"))) == 1
    assert Image.open(next(got.glob("images/*.png"))).size == (220, 110)
    (sound,) = got.glob("audio/a/*/step_00000003.wav")
    with wave.open(str(sound)) as file:
        assert (file.getframerate(), file.getnframes()) == (16_000, 1600)
    assert (got / "video/duet/source1/step_00000003.mp4").read_bytes() == video.read_bytes()
    assert (got / "text/about_00000003.md").read_text() == "<b>bold</b>"
    assert (got / "text/changed_00000002.md").read_text() == "- `lr`"
    assert (got / "tables/predictions_00000003.csv").read_text().splitlines()[1] == "'=1+1,0.5"
    assert (got / "config.yaml").read_text().startswith("model:")


def test_the_commands_that_show_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = [WandbLogger("run"), CsvLogger("run"), MlflowLogger("run"), MlflowLogger("run", tracking_uri="http://x")]
    synced, shown = watching(made, Path("run"))
    assert synced.endswith("wandb sync run/wandb")
    assert shown.endswith(f"mlflow ui --backend-store-uri sqlite:///{tmp_path}/run/mlflow/mlflow.db")
    for whole, end in ((None, "sounds"), (mlflow.PackageNotFoundError, "-m pip install mlflow)")):
        monkeypatch.setattr(mlflow, "distribution", Mock(side_effect=whole))  # mlflow-skinny has no pages
        assert MlflowLogger("run").purpose.endswith(end)
    online = WandbLogger("run", offline=False)
    assert online.watch is None
    online.mode = "offline"  # its server did not answer
    assert watching([online], Path("run")) == [synced]


# ---- TensorBoard


def test_tensorboard_gets_the_same_picture_and_sound_as_from_its_own_writer(tmp_path: Path, video: Path) -> None:
    from deepavfusion.figures.style import new_figure

    logger = CurveLogger(save_dir=tmp_path / "a", name="tensorboard", version="")
    show_all(Board([OnTensorBoard(logger)]), 3, video)
    logger.finalize("success")
    other = CurveLogger(save_dir=tmp_path / "b", name="tensorboard", version="")
    figure = new_figure(2, 1)
    figure.subplots().plot([0, 1])
    other.experiment.add_figure("pictures/a_figure", figure, 3)
    other.experiment.add_audio("audio/a/ü clip", torch.sin(torch.arange(1600) / 5).unsqueeze(0), 3, 16_000)
    other.experiment.add_histogram("test/sdr", torch.arange(10.0), 3)
    other.finalize("success")
    found, expected = events(tmp_path / "a"), events(tmp_path / "b")
    for kind, name in (("Images", "pictures/a_figure"), ("Audio", "audio/a/ü clip"), ("Histograms", "test/sdr")):
        ours, theirs = (
            [replace(event, wall_time=0) for event in getattr(each, kind)(name)] for each in (found, expected)
        )
        assert ours == theirs
    assert (tmp_path / "a/tensorboard/00003/fusion/metadata.tsv").read_text().split() == ["a", "b", "c"]
