"""Two starts of a run: the second one is refused and names the first, unless that has ended."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deepavfusion.runs import lock
from deepavfusion.runs.lock import LOCK, is_held, locked
from deepavfusion.utils.errors import UserError
from helpers.runs import PRETRAIN, sentence


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    for name, seconds in (("BEAT", 0.05), ("EXPIRES", 0.4), ("LOOK_EVERY", 0.02)):
        monkeypatch.setattr(lock, name, seconds)


@pytest.fixture(params=["links", "no links"])
def disk(request, monkeypatch):
    """A disk with links, and one without."""
    if request.param == "no links":

        def fails(*_: Any) -> None:
            raise OSError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "link", fails)


def in_a_copy(work: Callable[[], None]) -> int:
    """Let a copy of this process work; its process id."""
    pid = os.fork()
    if not pid:
        try:
            work()
            os._exit(0)
        except UserError:
            os._exit(2)
        finally:
            os._exit(1)
    return pid


def held(folder: Path, **other: Any) -> None:
    """Write the lock of another start."""
    (folder / LOCK).write_text(json.dumps({**lock._identity(), "token": "other", "host": "node7", **other}))


def holder(folder: Path) -> str:
    return json.loads((folder / LOCK).read_text())["token"]


def test_the_second_start_names_the_first(disk, tmp_path):
    with locked(tmp_path):
        with pytest.raises(UserError) as error, locked(tmp_path):
            pass
        words = ("is in use by", f"process {os.getpid()} on {socket.gethostname()}, since 20", "run.name")
        assert all(word in str(error.value) for word in words)
        assert len(list(tmp_path.iterdir())) == 1
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path):
        pass


def test_a_start_of_a_run_that_is_training_is_refused(data_root, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "pretrain/runs/x"
    folder.mkdir(parents=True)
    with locked(folder):
        given = [*PRETRAIN, f"data.root={data_root}", f"paths.log_dir={tmp_path}", "run.name=x"]
        text = sentence(monkeypatch, capsys, *given)
        assert f"run {folder} is in use by process {os.getpid()}" in text
        assert [path.name for path in folder.iterdir()] == [LOCK]


@pytest.mark.parametrize("reaped", [True, False])
def test_the_lock_of_a_killed_start_is_taken_over_at_once(disk, tmp_path, reaped, capsys):
    ready, write = os.pipe()

    def work() -> None:
        with locked(tmp_path):
            os.write(write, b"x")
            time.sleep(60)

    pid = in_a_copy(work)
    os.read(ready, 1)
    with pytest.raises(UserError, match=f"process {pid} on"), locked(tmp_path):
        pass
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | (0 if reaped else os.WNOWAIT))  # not reaped: it is a zombie
    with locked(tmp_path):
        assert capsys.readouterr().out == ""  # it did not have to wait
    if not reaped:
        os.waitpid(pid, 0)


def test_a_number_that_was_given_to_another_process_is_not_the_holder(tmp_path):
    held(tmp_path, began=lock._identity()["began"] - 100)
    with locked(tmp_path):
        assert holder(tmp_path) != "other"


def test_another_machine_that_lives_is_seen(tmp_path):
    held(tmp_path, boot="of another machine")
    over = threading.Event()

    def touch() -> None:
        while not over.wait(lock.BEAT):
            os.utime(tmp_path / LOCK)

    threading.Thread(target=touch, daemon=True).start()
    try:
        with pytest.raises(UserError, match="on node7, since"), locked(tmp_path):
            pass
    finally:
        over.set()
    assert holder(tmp_path) == "other"


@pytest.mark.parametrize("age", [0, 10_000, -10_000])  # the clock of the disk may have jumped
def test_another_machine_that_died_loses_the_lock_after_a_while(disk, tmp_path, age, capsys):
    held(tmp_path, boot="of another machine")
    before = time.time() - age
    os.utime(tmp_path / LOCK, (before, before))
    begin = time.monotonic()
    with locked(tmp_path):
        assert holder(tmp_path) != "other"
        assert time.monotonic() - begin >= 3 * lock.BEAT
    out = capsys.readouterr().out
    assert f"process {os.getpid()} on node7" in out
    assert "no sign of life" in out
    assert "takes its place" in out


def test_a_job_that_slurm_starts_again_does_not_wait_for_itself(tmp_path, monkeypatch, capsys):
    held(tmp_path, boot="of another machine", job="42", restart="0")
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with locked(tmp_path):
        assert holder(tmp_path) != "other"
    assert capsys.readouterr().out == ""


def test_other_processes_of_a_run_take_no_lock(tmp_path, monkeypatch):
    with locked(tmp_path):
        monkeypatch.setenv("SLURM_PROCID", "3")
        monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
        with locked(tmp_path):
            pass
        assert (tmp_path / LOCK).exists()


def test_of_many_starts_at_once_one_gets_the_lock_of_a_dead_one(disk, tmp_path):
    held(tmp_path, began=0)
    go, write = os.pipe()

    def work() -> None:
        os.read(go, 1)
        with locked(tmp_path):
            (tmp_path / f"got.{os.getpid()}").touch()
            time.sleep(1)

    pids = [in_a_copy(work) for _ in range(6)]
    os.write(write, b"x" * 6)
    statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    assert sorted(statuses) == [0, 2, 2, 2, 2, 2]
    assert len(list(tmp_path.glob("got.*"))) == 1


def test_a_start_that_was_suspended_and_replaced_ends(tmp_path, capfd):
    def work() -> None:
        with locked(tmp_path):
            held(tmp_path)
            time.sleep(10)

    assert os.waitstatus_to_exitcode(os.waitpid(in_a_copy(work), 0)[1]) == 2
    assert "on node7" in capfd.readouterr().err
    assert holder(tmp_path) == "other"


def test_what_a_lock_says_is_text(tmp_path):
    held(tmp_path, host="\x1b[31mevil", pid="../../etc", since=["x"])
    with locked(tmp_path):  # nobody
        pass
    (tmp_path / LOCK).write_text("[" * 10_000)
    with locked(tmp_path):
        pass
    os.mkfifo(tmp_path / LOCK)
    with locked(tmp_path):
        assert holder(tmp_path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    def fails(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "write_text", fails)
    with pytest.raises(UserError, match=rf"{tmp_path} cannot be written \(Read-only file system\)"), locked(tmp_path):
        pass


def test_a_link_in_place_of_a_lock_is_said_to_be_one(tmp_path):
    (tmp_path / LOCK).symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="is a link"), locked(tmp_path):
        pass


def test_looking_at_a_lock_changes_nothing(tmp_path):
    assert not is_held(tmp_path)
    with locked(tmp_path):
        assert is_held(tmp_path)
    assert not is_held(tmp_path)
    held(tmp_path, boot="of another machine")
    assert is_held(tmp_path)
    os.utime(tmp_path / LOCK, (0, 0))
    assert not is_held(tmp_path)
    held(tmp_path)  # by this process, as it says
    assert is_held(tmp_path)
    held(tmp_path, began=0)  # by an earlier process with its number
    assert not is_held(tmp_path)
    held(tmp_path, pid=2**22 + 1)  # which no process has
    assert not is_held(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [LOCK]
