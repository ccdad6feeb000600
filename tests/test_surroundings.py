"""What a command finds where it is started: folders, environment variables, files that are none."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from lightning.pytorch.strategies.launchers import subprocess_script as launcher
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from deepavfusion.callbacks.guard import process_watch
from deepavfusion.callbacks.guard.checkpoints import Checkpoints
from deepavfusion.callbacks.guard.process_watch import ProcessWatch
from deepavfusion.cli import streams
from deepavfusion.cli.entry import one_sentence
from deepavfusion.loggers.tensorboard import put_before
from deepavfusion.runs import signing
from deepavfusion.utils.errors import UserError, limited
from deepavfusion.utils.files import write_whole
from deepavfusion.utils.launch.launcher import COUNTS, PARENT, launch
from deepavfusion.utils.launch.signals import STOPPED
from deepavfusion.utils.processes import check_counts, check_folder


def test_removed_current_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    check_folder()
    folder.rmdir()
    with pytest.raises(UserError, match=f"current folder {folder} is not there any more"):
        check_folder()


@pytest.mark.parametrize("name", COUNTS)
def test_number_of_a_launcher_that_is_none_is_named(name: str) -> None:
    check_counts({"LOCAL_RANK": "1", "SLURM_PROCID": "0"})
    for value in ("", "x", "-1", "1.0", "²", "9" * 5000):
        with pytest.raises(UserError, match=rf"variable {name} is .*, expected a whole number"):
            check_counts({name: value})


def test_key_and_partial_file_that_are_pipes_are_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, partial = tmp_path / "deepavfusion" / "key", tmp_path / "record.yaml.partial"
    key.parent.mkdir()
    os.mkfifo(key)
    os.mkfifo(partial)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert signing.signed(["seed=1"]) is None
    write_whole(tmp_path / "record.yaml", "text")
    assert (tmp_path / "record.yaml").read_text() == "text"
    assert not partial.exists()


def test_error_that_a_thread_keeps_for_others_is_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    error = OSError("no space")
    for exception, printed in ((error, False), (None, True)):
        thread = threading.Thread()
        thread.exception = exception  # type: ignore[attr-defined]
        try:
            raise error
        except OSError:
            streams._report_from_thread(threading.ExceptHookArgs((*sys.exc_info(), thread)))
        assert ("no space" in capsys.readouterr().err) is printed


def test_limit_of_processes_is_named() -> None:
    assert "ulimit -u" in str(limited(RuntimeError("can't start new thread")))
    assert "ulimit -u" in str(limited(BlockingIOError(11, "Resource temporarily unavailable")))
    assert limited(RuntimeError("shapes differ")) is None
    assert limited(BlockingIOError(11, "Resource temporarily unavailable", "a.lock")) is None


@pytest.mark.parametrize("value", ["${nope}", "${oc.env:NOPE}", "${a.b}"])
def test_value_that_refers_to_nothing_is_named_by_its_key(value: str) -> None:
    config = OmegaConf.create({"a": {"b": value}})
    with pytest.raises(OmegaConfBaseException) as error:
        OmegaConf.to_container(config, resolve=True)
    assert one_sentence(error.value).startswith("a.b cannot be read: ")
    assert one_sentence(error.value).endswith("; give it a value, or the name it refers to.")


def test_names_that_tensorboard_did_not_give_are_left_alone(tmp_path: Path) -> None:
    for name in ("1795882415.vm.1.0", "abc", "", "x.y"):
        (tmp_path / f"events.out.tfevents.{name}").touch()
    put_before(tmp_path, 1000)
    stamps = sorted(path.name.removeprefix("events.out.tfevents.") for path in tmp_path.iterdir())
    assert stamps == ["", "0000000999.vm.1.0", "abc", "x.y"]


def watching(monkeypatch: pytest.MonkeyPatch, **variables: str) -> tuple[ProcessWatch, list[int]]:
    """A watch in a process with these variables, and the exit statuses that it leaves with."""
    left: list[int] = []
    monkeypatch.setattr(launcher, "_launch_process_observer", None)
    monkeypatch.setattr(process_watch, "GRACE", 0.0)
    monkeypatch.setattr(os, "_exit", left.append)
    for name in ("LOCAL_RANK", "DEEPAVFUSION_FIRST"):
        monkeypatch.setenv(name, variables.get(name, ""))
    return ProcessWatch(), left


@pytest.mark.parametrize(
    ("end", "status", "text"),
    [
        ("kill -9 $$", STOPPED, "process 1 of 3 was ended by SIGKILL, so the others end; the same command"),
        ("kill -11 $$", STOPPED, "process 1 of 3 was ended by SIGSEGV"),
        ("exit 2", 2, "process 1 of 3 ended with status 2: see above."),
    ],
)
def test_process_that_ends_while_it_starts_ends_the_others(
    end: str, status: int, text: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    watch, left = watching(monkeypatch)
    others = [subprocess.Popen(["sh", "-c", command]) for command in (end, "exec sleep 60")]
    launcher._launch_process_observer(others)
    assert watch.thread is not None
    watch.thread.join(10)
    assert left == [status]
    assert text in capfd.readouterr().err
    assert others[1].wait(10) == -signal.SIGKILL


def test_a_checkpoint_that_is_being_written_counts_when_another_process_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch, left = watching(monkeypatch)
    checkpoints, none = Checkpoints(str(tmp_path)), cast("Any", None)
    monkeypatch.setattr(checkpoints, "settle", lambda: left.append(-1))
    watch.setup(cast("Any", SimpleNamespace(callbacks=[watch, checkpoints], world_size=1)), none, "fit")
    launcher._launch_process_observer([subprocess.Popen(["sh", "-c", "kill -9 $$"])])
    assert watch.thread is not None
    watch.thread.join(10)
    assert left == [-1, STOPPED]


def test_process_that_ends_after_the_run_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    watch, left = watching(monkeypatch)
    stage: tuple[Any, Any, str] = (None, None, "fit")
    watch.setup(*stage)
    watch.teardown(*stage)
    launcher._launch_process_observer([subprocess.Popen(["false"])])
    assert watch.thread is not None
    watch.thread.join(0.5)
    assert left == []
    watch.setup(*stage)  # of a test, which would wait for it
    watch.thread.join(10)
    assert left == [1]


def test_first_process_ends_when_only_the_others_were_asked_to_stop(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    watch, left = watching(monkeypatch)
    launcher._launch_process_observer([subprocess.Popen(["true"])])
    assert watch.thread is not None
    watch.thread.join(10)
    none: Any = None
    watch.on_exception(none, none, ValueError("a bug"))
    assert left == []
    watch.on_exception(none, none, RuntimeError("Connection closed by peer"))
    assert left == [STOPPED]
    assert "the other processes have stopped, so this one ends; the same command" in capfd.readouterr().err


def test_process_whose_first_one_ended_before_they_met_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getppid", lambda: 1)  # even before it looked for the first time
    watch, left = watching(monkeypatch, LOCAL_RANK="1", DEEPAVFUSION_FIRST=str(PARENT))
    assert launch().by == "lightning"  # or it would wait for lists, and for others
    assert watch.thread is not None
    watch.thread.join(10)
    assert left == [STOPPED]
