"""What is no regular file is not opened: a named pipe would be waited for without end, a device read without end."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from deepavfusion.data.lists.clip_list import ClipList
from deepavfusion.data.lists.music import music
from deepavfusion.data.lists.verified import bad_clips
from deepavfusion.data.lists.vggsound import vggsound
from deepavfusion.data.stores.pack import PackSettings, pack
from deepavfusion.data.stores.packed_list import packed_list
from deepavfusion.inference.encoders import open_encoder
from deepavfusion.inference.inputs import read_input
from deepavfusion.inference.tasks import load_task
from deepavfusion.inference.video import open_video
from deepavfusion.inference.write.features import check_output
from deepavfusion.media.encode import write_mp4
from deepavfusion.types import Clip
from deepavfusion.utils.errors import UserError
from deepavfusion.verify.report import Journal
from deepavfusion.weights.file import read_file


@pytest.fixture(autouse=True)
def in_time() -> Iterator[None]:
    def late(*_: object) -> None:
        raise TimeoutError("it waits")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def pipe(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def plug(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as found:
        found.bind(str(path))


def folder(path: Path) -> None:
    path.mkdir()


KINDS = {"pipe": pipe, "device": device, "socket": plug, "folder": folder}


def video(path: Path) -> None:
    with open_video(path, "read"):
        raise AssertionError("it was opened")


def vggsound_list(path: Path) -> None:
    vggsound(path.parent, "train", annotations=path.name)


def music_list(path: Path) -> None:
    path.rename(path.with_name("a.json"))
    music(path.parent, "train", lists=["a"])


def journal(path: Path) -> None:
    path.rename(path.with_name("verify.csv.partial.jsonl"))
    Journal(path.with_name("verify.csv"))


def text_list(path: Path) -> None:
    path.rename(path.with_name("a.txt"))
    read_input(path.with_name("a.txt"))


READERS: dict[str, Callable[[Path], object]] = {
    "video": video,
    "list": vggsound_list,
    "JSON list": music_list,
    "input": read_input,
    "text list": text_list,
    "checkpoint": load_task,
    "encoder": open_encoder,
    "weights": read_file,
    "report": lambda path: bad_clips(path, ["hung"]),
    "report that is written": Journal,
    "journal": journal,
    "output": lambda path: check_output(path.rename(path.with_name("a.npz"))),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", READERS)
def test_nothing_but_a_file_is_opened(name: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the name of a socket is short
    KINDS[kind](Path("it"))
    with pytest.raises(UserError):
        READERS[name](tmp_path / "it")


@pytest.mark.parametrize("file", ["packed.json", "train/index.json", "train/clips.json", "train/chunk-00000.bin"])
def test_packed_data_with_a_pipe(file: str, tmp_path: Path) -> None:
    write_mp4(tmp_path / "a.mp4", np.zeros((30, 32, 32, 3), np.uint8), 10, np.full(48_000, 0.1))
    pack(
        {"train": ClipList("train", [Clip("a", str(tmp_path / "a.mp4"), 0)], ["x"])},
        tmp_path / "p",
        "x",
        PackSettings(),
        1,
    )
    (tmp_path / "p" / file).unlink()
    os.mkfifo(tmp_path / "p" / file)
    with pytest.raises(UserError):
        packed_list(str(tmp_path / "p"), "train", "x")


def test_a_clip_that_is_a_pipe_is_left_out_of_a_pack(tmp_path: Path) -> None:
    write_mp4(tmp_path / "a.mp4", np.zeros((30, 32, 32, 3), np.uint8), 10, np.full(48_000, 0.1))
    os.mkfifo(tmp_path / "b.mp4")
    clips = [Clip(name, str(tmp_path / f"{name}.mp4"), 0) for name in "ab"]
    counts = pack({"train": ClipList("train", clips, ["x"])}, tmp_path / "p", "x", PackSettings(), 1)
    assert counts == {"train": {"listed": 2, "packed": 1, "missing": 0, "excluded": 1}}
    excluded = json.loads((tmp_path / "p" / "train" / "clips.json").read_text())["excluded"]
    assert (excluded["id"], excluded["why"]) == (["b"], ["undecodable"])
