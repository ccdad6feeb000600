"""One process of a machine reads, the others get what it read; real processes."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from deepavfusion.data.datamodule import ClipDataModule
from deepavfusion.data.lists.clip_list import ClipList
from deepavfusion.types import Clip
from deepavfusion.utils.errors import UserError
from deepavfusion.utils.launch import handover
from deepavfusion.utils.launch.handover import HANDED, Handover
from deepavfusion.utils.launch.launcher import Launch


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where files are handed over."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.delenv(HANDED, raising=False)
    monkeypatch.setattr(handover, "LOOK_EVERY", 0.01)
    return tmp_path / f"deepavfusion-{os.getuid()}"


def as_launched(monkeypatch: pytest.MonkeyPatch, rank: int, processes: int = 2, by: str = "srun") -> None:
    found = Launch(by, processes, rank, processes, rank)
    monkeypatch.setattr(handover, "launch", lambda: found)
    monkeypatch.setattr(handover, "_number", count())  # each plays another process


def processes(tmp_path: Path, do: Callable[[int], Any], ranks: Sequence[int]) -> list[Any]:
    """What copies of this process found."""
    pids = []
    for rank in ranks:
        if not (pid := os.fork()):
            try:
                with pytest.MonkeyPatch.context() as patch:
                    as_launched(patch, rank, len(ranks))
                    found = do(rank)
            except UserError as error:
                found = [type(error).__name__, str(error)]
            finally:
                (tmp_path / f"{rank}.json").write_text(json.dumps(found))
                os._exit(0)
        pids.append(pid)
    for pid in pids:
        os.waitpid(pid, 0)
    return [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in ranks]


def test_of_four_processes_the_first_one_reads(tmp_path: Path, folder: Path) -> None:
    def start(rank: int) -> Any:
        datamodule = ClipDataModule(index=index, root=str(tmp_path), name="x", min_coverage=0.0)  # type: ignore[arg-type]
        datamodule.setup("fit")
        return [[clip.id for clip in datamodule.lists["train"].clips], datamodule.lists["test"].missing[0].id]

    def index(root: str, split: str) -> ClipList:
        with (tmp_path / "read").open("a") as file:
            file.write(f"{split} {os.getpid()}\n")
        time.sleep(0.2)
        clips = [Clip(id=f"{split}{n}", path=f"{root}/{n}.mp4", label=0, video=str(n)) for n in range(3)]
        return ClipList(split, clips[:2], ["a"], missing=clips[2:])

    found = processes(tmp_path, start, range(4))
    assert found == [[["train0", "train1"], "test2"]] * 4
    reads = (tmp_path / "read").read_text().split()
    assert reads[::2] == ["train", "test"]
    assert len(set(reads[1::2])) == 1
    assert folder.stat().st_mode & 0o777 == 0o700


def test_an_error_of_the_first_one_ends_all_and_is_said_once(tmp_path: Path) -> None:
    def start(rank: int) -> Any:
        def fail() -> None:
            raise UserError("the data folder x does not exist")

        Handover("x").get(fail)

    found = processes(tmp_path, start, range(3))
    assert found[0] == ["UserError", "the data folder x does not exist"]
    assert {kind for kind, _ in found[1:]} == {"SaidByFirst"}


def test_what_another_start_left_is_not_taken(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr(handover, "PATIENCE", 0.1)
    as_launched(monkeypatch, 0)
    first = Handover("data")
    assert first.get(lambda: "old") == "old"
    as_launched(monkeypatch, 1)
    assert Handover("data").get(lambda: "own") == "old"
    for name, value in (("SLURM_RESTART_COUNT", "1"), ("TORCHELASTIC_RESTART_COUNT", "2"), ("SLURM_STEP_ID", "3")):
        with monkeypatch.context() as patch:
            as_launched(patch, 1)
            patch.setenv(name, value)
            assert Handover("data").get(lambda: "own") == "own", name
    as_launched(monkeypatch, 1)
    assert Handover("other data").get(lambda: "own") == "own"
    assert Handover("data").get(lambda: "own") == "own"  # a second run of the same processes
    monkeypatch.setattr(handover, "began_at", lambda _: 1)
    as_launched(monkeypatch, 1)
    assert Handover("data").get(lambda: "own") == "own"  # a launcher with the same number
    first.remove()
    assert list(folder.iterdir()) == []


def test_who_waits_says_so_and_not_for_ever(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(handover, "PATIENCE", 0.3)
    monkeypatch.setattr(handover, "QUIET", 0.05)
    as_launched(monkeypatch, 1)
    assert Handover("data").get(lambda: "own") == "own"
    assert capsys.readouterr().out.count("waiting for the first process of this machine") == 1


def test_processes_that_lightning_starts_get_it_by_name(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    first = Handover("data")
    assert first.get(lambda: "read") == "read"
    assert not folder.exists()  # one process hands nothing over
    first.give("read")
    as_launched(monkeypatch, 1, by="lightning")
    assert Handover("data").get(pytest.fail) == "read"
    first.remove()
    assert HANDED not in os.environ
    assert Handover("data").get(lambda: "own") == "own"


@pytest.mark.parametrize("what", ["link", "others may read", "file", "full disk"])
def test_where_nothing_can_be_handed_over_each_reads(
    monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path, what: str
) -> None:
    if what == "link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        folder.symlink_to(tmp_path / "elsewhere")
    elif what == "others may read":
        folder.mkdir()
        folder.chmod(0o755)
    elif what == "file":
        folder.touch()
    else:

        def full(*_: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(handover.pickle, "dump", full)
    for rank in (0, 1):
        as_launched(monkeypatch, rank)
        assert Handover("data").get(lambda: "own") == "own"
    assert what == "full disk" or not any(tmp_path.glob("**/*.handed"))


def test_files_of_killed_runs_are_removed_after_a_day(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    folder.mkdir(mode=0o700)
    old, new = folder / "old.handed", folder / "new.handed"
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", lambda *_: None)  # it was killed before
        as_launched(patch, 0)
        Handover("data").get(lambda: 0)
    (unfinished,) = folder.iterdir()
    for path, age in ((old, 2 * handover.OLD), (unfinished, 2 * handover.OLD), (new, 60.0)):
        path.touch()
        os.utime(path, (time.time() - age,) * 2)
    as_launched(monkeypatch, 0)
    Handover("other data").get(lambda: 1)
    assert not old.exists()
    assert not unfinished.exists()
    assert new.exists()
