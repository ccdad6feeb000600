"""What is written replaces what was written before, and nothing else."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from safetensors.torch import save_file

from deepavfusion.inference.write.features import check_output
from deepavfusion.inference.write.saving import claimed, saving, write_list
from deepavfusion.runs.directory import choose_run_dir
from deepavfusion.utils.errors import DecodeError
from deepavfusion.weights.weights import Weights, write_weights
from helpers.errors import refusal

NAME, FILES = "a_classes.json", ["a_classes.csv", "a_timeline.png"]


def write(folder: Path, video: str, stop: BaseException | None = None, at: int = 1) -> None:
    """What each task of predict.py does: its files, then the list of them."""
    listed: dict[str, Any] = {"video": video, "table": FILES[0], "picture": FILES[1]}
    with saving(folder), claimed(folder, NAME, listed, *FILES):
        for n, file in enumerate(FILES):
            if stop and n == at:
                raise stop
            (folder / file).write_text(video)
        write_list(folder, NAME, listed, Figure(figsize=(1, 1)), None)


def texts(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_results_replace_those_of_an_earlier_call(tmp_path: Path) -> None:
    write(tmp_path, "first.mp4")
    assert sorted(texts(tmp_path)) == sorted([NAME, *FILES])
    write(tmp_path, "second.mp4")
    assert json.loads((tmp_path / NAME).read_text())["video"] == "second.mp4"
    (tmp_path / NAME).unlink()
    assert f"{FILES[0]} is there, and is no earlier result" in refusal(write, tmp_path, "third.mp4")
    assert (tmp_path / FILES[0]).read_text() == "second.mp4"


@pytest.mark.parametrize("how", [KeyboardInterrupt(), DecodeError("a.mp4", "truncated", "x")])
def test_a_call_that_was_interrupted_can_be_repeated(tmp_path: Path, how: BaseException) -> None:
    for at in (0, 1):
        with pytest.raises(BaseException, match=r".*"):
            write(tmp_path, "first.mp4", stop=how, at=at)
        assert len(texts(tmp_path)) == 2 * at  # nothing, or one file and the names of all
    write(tmp_path, "second.mp4")
    assert sorted(texts(tmp_path)) == sorted([NAME, *FILES])


@pytest.mark.parametrize("file", [NAME, f"{NAME}.partial", *FILES])
@pytest.mark.parametrize("kind", ["text", "list", "other list", "deep", "link", "pipe", "folder", "named"])
def test_files_of_others_are_left_as_they_are(tmp_path: Path, file: str, kind: str) -> None:
    path, mine, folder = tmp_path / "out" / file, tmp_path / "mine", tmp_path / "out"
    folder.mkdir()
    contents = {"text": "mine", "list": json.dumps(FILES), "other list": '{"picture": "b.png"}', "deep": "[" * 10_000}
    mine.write_text("mine")
    if kind in contents:
        path.write_text(contents[kind])
    elif kind == "link":
        path.symlink_to(mine)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
        (path / "mine").touch()
    else:  # a list of something else names it
        path.write_text("mine")
        (folder / (NAME if file != NAME else f"{NAME}.partial")).write_text(json.dumps({"video": "a", "files": [file]}))
    before = {path: path.lstat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert "is left as it is; move it away, or choose another output" in refusal(write, folder, "first.mp4")
    assert {path: path.lstat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert mine.read_text() == "mine"


@pytest.mark.parametrize("content", ["mine", "", "PK\x03\x04"])
def test_a_features_file_of_others_is_left_as_it_is(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.npz").write_text(content)
    assert "holds no features: it is left as it is" in refusal(check_output, tmp_path / "a.npz")
    (tmp_path / "b_failed.txt").write_text("# my notes\n/a/b.mp4\n")
    assert "is left as it is: choose another output" in refusal(check_output, tmp_path / "b.npz")


def test_weights_of_others_are_left_as_they_are(tmp_path: Path) -> None:
    path, weights = tmp_path / "a.safetensors", Weights("a.ckpt", "ours", {"a": torch.ones(2)})
    for metadata in (None, {"format": "pt"}):
        save_file({"a": torch.zeros(2)}, path, metadata=metadata)
        before = path.read_bytes()
        assert "convert.py has not written it: it is left as it is" in refusal(write_weights, weights, path)
        assert path.read_bytes() == before
    path.unlink()
    write_weights(weights, path)
    before = path.read_bytes()
    assert write_weights(weights, path).read_bytes() == before


def test_a_folder_of_others_is_no_run_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPAVFUSION_RUN_DIR", "")
    folder = tmp_path / "x" / "runs" / "mine"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("mine")
    assert "choose another run.name" in refusal(choose_run_dir, tmp_path, "x", "mine")
    assert texts(folder) == {"config.yaml": b"mine"}
