"""`src/predict.py` from the command line down: what it writes, and what it says when it cannot."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from deepavfusion.utils import cli
from test_inference import noise, write_checkpoint, write_video

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))
import predict as entry_point


def predict(monkeypatch: pytest.MonkeyPatch, *overrides: object) -> None:
    """What a shell would call, in this process."""
    monkeypatch.setattr(sys, "argv", ["predict.py", *map(str, overrides)])
    monkeypatch.delenv("DEEPAVFUSION_RUN_DIR", raising=False)
    cli.run(entry_point.main)


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    """A folder of logs with a separator in it, and a video beside it."""
    checkpoints = tmp_path / "logs" / "separate" / "latest" / "checkpoints"
    checkpoints.mkdir(parents=True)
    write_checkpoint(checkpoints / "last.ckpt")
    write_video(tmp_path / "clip.mp4", noise(4.0), frames=8)
    return tmp_path / "logs"


def test_separate_with_the_newest_checkpoint(
    logs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    video = logs.parent / "clip.mp4"
    predict(monkeypatch, "task=separate", f"video={video}", f"paths.log_dir={logs}", "device=cpu")
    (run_dir,) = (logs / "predict" / "runs").iterdir()
    assert (logs / "predict" / "latest").resolve() == run_dir.resolve()
    expected = {f"clip_source{n}.{kind}" for n in (1, 2) for kind in ("wav", "mp4")}
    assert {path.name for path in run_dir.iterdir()} == expected | {"clip_separation.png", "clip_sources.json"}
    listed = json.loads((run_dir / "clip_sources.json").read_text())
    out = capsys.readouterr().out
    assert str(run_dir) in out
    assert all(name in out for name in expected)
    assert f"boxes='{[source['box'] for source in listed['sources']]}'" in out
    assert listed["boxes_chosen_by"] == "model"


def test_given_boxes_and_output(
    logs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ckpt = shutil.move(logs / "separate" / "latest" / "checkpoints" / "last.ckpt", logs.parent / "a.ckpt")
    output = logs.parent / "new" / "folder"
    given = ["boxes=[[0,0,96,96],[96,0,192,96],[10,10,50,80]]", f"ckpt_path={ckpt}", f"output={output}"]
    predict(monkeypatch, "task=separate", f"video={logs.parent / 'clip.mp4'}", f"paths.log_dir={logs}", *given)
    listed = json.loads((output / "clip_sources.json").read_text())
    assert [source["box"] for source in listed["sources"]] == [[0, 0, 96, 96], [96, 0, 192, 96], [10, 10, 50, 80]]
    assert len(list(output.glob("*.wav"))) == len(list(output.glob("*.mp4"))) == 3
    assert "chose" not in capsys.readouterr().out
    assert not (logs / "predict").exists()


def test_what_cannot_be_done_is_one_sentence(
    logs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def sentence(*overrides: Any) -> str:
        with pytest.raises(SystemExit) as end:
            predict(monkeypatch, f"paths.log_dir={logs}", *overrides)
        assert end.value.code == 2
        (text,) = capsys.readouterr().err.strip().splitlines()
        return text

    video = f"video={logs.parent / 'clip.mp4'}"
    (logs.parent / "file").touch()
    example = "e.g. python src/predict.py task=separate video=clip.mp4"
    assert sentence() == f"predict.py: no task was given; add task=<one of: separate>, {example}."
    assert "there is no task 'cook'; add task=<one of: separate>" in sentence("task=cook", video)
    assert "no video was given; add video=" in sentence("task=separate")
    assert "nothing.mp4 cannot be separated, missing" in sentence("task=separate", "video=nothing.mp4")
    assert "checkpoint nothing.ckpt does not exist" in sentence("task=separate", video, "ckpt_path=nothing.ckpt")
    assert "192 × 96 pixels" in sentence("task=separate", video, "boxes=[[0,0,999,50]]")
    assert "not a list of boxes" in sentence("task=separate", video, "boxes=left")
    assert "sources is 'two'" in sentence("task=separate", video, "sources=two")
    assert "batch_size is 0" in sentence("task=separate", video, "batch_size=0")
    assert "device is 'tpu'" in sentence("task=separate", video, "device=tpu")
    assert "cannot be made" in sentence("task=separate", video, f"output={logs.parent / 'file'}")
    assert "vidio" in sentence("task=separate", "vidio=a.mp4")
    if not torch.cuda.is_available():
        assert "there is no such device" in sentence("task=separate", video, "device=cuda")
    assert not list((logs / "predict" / "runs").iterdir())  # nothing is left of what did not begin
    (logs / "separate" / "latest" / "checkpoints" / "last.ckpt").unlink()
    assert "last.ckpt does not exist" in sentence("task=separate", video)
