"""`src/predict.py` from the command line down: what it writes, and what it says when it cannot."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from helpers.checkpoints import write_classifier, write_segmenter, write_separator
from helpers.media import noise, write_video
from helpers.runs import call


def predict(monkeypatch: pytest.MonkeyPatch, *overrides: object) -> None:
    call(monkeypatch, "predict", *overrides)


def checkpoints_of(logs: Path, task: str) -> Path:
    """The new folder of checkpoints of a task's newest run."""
    (folder := logs / task / "latest" / "checkpoints").mkdir(parents=True)
    return folder


def only_run(logs: Path) -> Path:
    (run_dir,) = (logs / "predict" / "runs").iterdir()
    assert (logs / "predict" / "latest").resolve() == run_dir.resolve()
    return run_dir


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    """A folder of logs with a separator in it, and a video beside it."""
    write_separator(checkpoints_of(tmp_path / "logs", "separate") / "last.ckpt")
    write_video(tmp_path / "clip.mp4", noise(4.0), frames=8)
    return tmp_path / "logs"


def test_separate_with_the_newest_checkpoint(
    logs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    video = logs.parent / "clip.mp4"
    predict(monkeypatch, "task=separate", f"video={video}", f"paths.log_dir={logs}", "device=cpu")
    run_dir = only_run(logs)
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


def test_segment_with_the_best_checkpoint_or_the_last(
    logs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    video, given = logs.parent / "clip.mp4", [f"paths.log_dir={logs}", "device=cpu", "masks_per_second=2"]
    checkpoints = checkpoints_of(logs, "segment")
    write_segmenter(checkpoints / "last.ckpt", 1)
    predict(monkeypatch, "task=segment", f"video={video}", *given)
    run_dir = only_run(logs)
    files = {f"clip_segmentation.{kind}" for kind in ("mp4", "png", "json")}
    assert {path.name for path in run_dir.iterdir()} == files | {"clip_masks"}
    assert len(list((run_dir / "clip_masks").iterdir())) == 8
    listed = json.loads((run_dir / "clip_segmentation.json").read_text())
    assert (listed["classes"], listed["masks_per_second"], len(listed["moments"])) == (None, 2, 8)
    out = capsys.readouterr().out
    assert str(run_dir) in out
    assert all(name in out for name in files)
    mean = sum(moment["share"] for moment in listed["moments"]) / 8
    assert f"{mean:.1%} of the pixels are marked" in out
    assert "clip_masks/: 8 masks" in out

    write_segmenter(checkpoints / "best.ckpt", 5)
    output = logs.parent / "new"
    predict(monkeypatch, "task=segment", f"video={video}", f"output={output}", "batch_size=3", *given)
    listed = json.loads((output / "clip_segmentation.json").read_text())
    assert listed["classes"][1:3] == ["dog", "cello"]
    found = {name for moment in listed["moments"] for name in moment["classes"]}
    out = capsys.readouterr().out
    assert found
    assert all(f"  {name}, " in out for name in found)


def test_classify_with_the_newest_checkpoint(
    logs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    video, checkpoints = logs.parent / "clip.mp4", checkpoints_of(logs, "classify")
    write_classifier(checkpoints / "last.ckpt")
    given = [f"video={video}", f"paths.log_dir={logs}", "device=cpu"]
    predict(monkeypatch, "task=classify", *given)
    run_dir = only_run(logs)
    files = {"clip_classes.csv", "clip_classes.json", "clip_timeline.png"}
    assert {path.name for path in run_dir.iterdir()} == files
    listed = json.loads((run_dir / "clip_classes.json").read_text())
    assert (listed["checkpoint"], listed["video"]) == (str(checkpoints / "last.ckpt"), str(video))
    assert listed["windows"] == [[0.0, 2.0], [1.0, 3.0], [2.0, 4.0]]
    out = capsys.readouterr().out
    assert str(run_dir) in out
    assert all(name in out for name in files)
    parts = [f"  {p['start']:.1f}–{p['end']:.1f} s  {p['class']} {p['probability']:.2f}" for p in listed["parts"]]
    assert [line for line in out.splitlines() if line.startswith("  0.0–")] == parts[:1]
    assert all(part in out.splitlines() for part in parts)
    assert out.splitlines()[0] == "loading PyTorch, then the network …"
    assert out.splitlines()[1].startswith(f"network {checkpoints / 'last.ckpt'} (classify on vggsound, ")
    assert f"  trained on {len(listed['classes'])} classes: {listed['classes'][0]} · " in out
    assert "demo network" not in out
    assert listed["network"]["checkpoint"] == str(checkpoints / "last.ckpt")

    output = logs.parent / "new"
    predict(monkeypatch, "task=classify", *given, f"output={output}", "hop_seconds=0.5", "top_k=1", "batch_size=2")
    listed = json.loads((output / "clip_classes.json").read_text())
    assert len(listed["windows"]) == 5
    assert [len(best) for best in listed["whole"].values()] == [1, 1, 1, 1]
    assert len((output / "clip_classes.csv").read_text().splitlines()) == 1 + 5 * 4


@pytest.mark.parametrize("task", ["separate", "segment", "classify"])
def test_a_demo_network_says_so_everywhere(
    task: str, logs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write = {"separate": write_separator, "segment": write_segmenter, "classify": write_classifier}[task]
    path, video, texts = logs.parent / "demo.ckpt", logs.parent / "clip.mp4", list[str]()
    write(path)
    content = torch.load(path, weights_only=True)
    content["record"]["data"] = {**content["record"].get("data", {}), "name": "music", "demo": True}
    torch.save(content, path)
    write_text = Figure.text
    monkeypatch.setattr(Figure, "text", lambda self, *a, **k: (texts.append(a[2]), write_text(self, *a, **k))[1])
    output = logs.parent / "out"
    predict(monkeypatch, f"task={task}", f"video={video}", f"ckpt_path={path}", "device=cpu", f"output={output}")
    caveat = "a demo network, trained on generated clips with drawn instruments (music): what it predicts"
    assert caveat in capsys.readouterr().out
    (listed,) = (json.loads(file.read_text()) for file in output.glob("*.json"))
    assert listed["network"]["demo"] is True
    assert caveat in listed["network"]["caveat"]
    assert any(" ".join(text.split()).startswith(f"Caution: {caveat}") for text in texts)


def test_features_of_a_folder(logs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    folder, checkpoints = logs.parent / "videos", checkpoints_of(logs, "pretrain")
    folder.mkdir()
    write_separator(checkpoints / "last.ckpt")
    shutil.copy(logs.parent / "clip.mp4", folder / "b.mp4")
    (folder / "a.mp4").write_text("a film?")
    given = [f"input={folder}", f"paths.log_dir={logs}", "device=cpu", "num_workers=0"]
    predict(monkeypatch, "task=features", *given)
    run_dir = only_run(logs)
    assert {path.name for path in run_dir.iterdir()} == {"features.npz", "features_failed.txt"}
    with np.load(run_dir / "features.npz", allow_pickle=False) as file:
        pooled = dict(file)
    assert (pooled["path"].tolist(), pooled["failed"].tolist()) == ([f"{folder}/b.mp4"], [f"{folder}/a.mp4"])
    assert pooled["image"].shape == pooled["audio"].shape == pooled["fusion"].shape == (1, 16)
    assert pooled["checkpoint"].item() == str(checkpoints / "last.ckpt")
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith(f"Written to {run_dir / 'features.npz'}: 1 of 2 files") for line in lines)
    assert f"    {folder}/a.mp4: {pooled['failed_reason'][0]}" in lines
    assert any(line.startswith(f"encoder of {checkpoints / 'last.ckpt'} (separate, ") for line in lines)

    output = logs.parent / "new" / "tokens.npz"
    more = ["level=tokens", "batch_size=3", "num_workers=2"]
    predict(monkeypatch, "task=features", *given[:3], *more, f"output={output}")
    with np.load(output, allow_pickle=False) as file:
        shapes = [file[name].shape for name in ("image", "audio", "fusion")]
        assert shapes == [(1, 16, 16), (1, 96, 16), (1, 8, 16)]
        np.testing.assert_allclose(file["audio"].mean(axis=1), pooled["audio"], atol=1e-5)
    assert {path.name for path in output.parent.iterdir()} == {"tokens.npz", "tokens_failed.txt"}


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
    tasks, example = (
        "separate, segment, classify, features, search",
        "e.g. python src/predict.py task=separate video=clip.mp4",
    )
    assert sentence() == f"predict.py: no task was given; add task=<one of: {tasks}>, {example}."
    assert "there is no task=cook: did you mean task=separate (or task=segment, " in sentence("task=cook", video)
    assert "no video was given; add video=" in sentence("task=separate")
    assert "nothing.mp4 cannot be separated, missing" in sentence("task=separate", "video=nothing.mp4")
    assert "checkpoint nothing.ckpt does not exist" in sentence("task=separate", video, "ckpt_path=nothing.ckpt")
    folder = f"ckpt_path={logs.parent}"
    assert "cannot be read (it is a folder, not a regular file, and has no " in sentence("task=separate", video, folder)
    assert "192 × 96 pixels" in sentence("task=separate", video, "boxes=[[0,0,999,50]]")
    assert "not a list of boxes" in sentence("task=separate", video, "boxes=left")
    assert "sources is 'two'" in sentence("task=separate", video, "sources=two")
    assert "batch_size is 0" in sentence("task=separate", video, "batch_size=0")
    assert "device is 'tpu', expected" in sentence("task=separate", video, "device=tpu")
    assert "cannot be made" in sentence("task=separate", video, f"output={logs.parent / 'file'}")
    assert "vidio" in sentence("task=separate", "vidio=a.mp4")
    if not torch.cuda.is_available():
        assert "there is no such device" in sentence("task=separate", video, "device=cuda")
    ckpt = f"ckpt_path={write_segmenter(logs.parent / 'segmenter.ckpt')}"
    write_video(logs.parent / "silent.mp4", noise(1.0) * 0)
    assert "segment/latest/checkpoints/last.ckpt does not exist" in sentence("task=segment", video)
    assert "e.g. python src/predict.py task=segment video=clip.mp4" in sentence("task=segment")
    assert "nothing.mp4 cannot be segmented, missing" in sentence("task=segment", "video=nothing.mp4", ckpt)
    assert "masks_per_second is 0, expected" in sentence("task=segment", video, ckpt, "masks_per_second=0")
    assert "is silent: its 1.00 s" in sentence("task=segment", f"video={logs.parent / 'silent.mp4'}", ckpt)
    wrong = f"ckpt_path={logs / 'separate' / 'latest' / 'checkpoints' / 'last.ckpt'}"
    assert "is a checkpoint of separate, task=segment needs one of segment" in sentence("task=segment", video, wrong)
    assert "is a checkpoint of segment, task=separate needs one of separate" in sentence("task=separate", video, ckpt)
    classifier = f"ckpt_path={write_classifier(logs.parent / 'classifier.ckpt')}"
    assert (
        "classify/latest/checkpoints/last.ckpt does not exist: train one, python src/train.py experiment="
        in sentence("task=classify", video)
    )
    assert "e.g. python src/predict.py task=classify video=clip.mp4" in sentence("task=classify")
    assert "nothing.mp4 cannot be classified, missing" in sentence("task=classify", "video=nothing.mp4", classifier)
    assert "hop_seconds is 0, expected" in sentence("task=classify", video, classifier, "hop_seconds=0")
    assert "top_k is 0, expected" in sentence("task=classify", video, classifier, "top_k=0")
    assert "checkpoint of segment, task=classify needs one of classify" in sentence("task=classify", video, ckpt)
    features = ["task=features", classifier]
    asked = "no input was given; add input=<folder of videos, list of them or video>"
    assert f"{asked}, e.g. python src/predict.py task=features input=videos/." in sentence("task=features")
    assert "did you mean input=" in sentence("task=features", video)
    assert "input nothing does not exist" in sentence(*features, "input=nothing")
    assert "pretrain/latest/checkpoints/last.ckpt does not exist" in sentence("task=features", "input=nothing")
    assert "level is 'all', expected" in sentence(*features, "input=nothing", "level=all")
    npz = "output=a is not the name of a features file: expected one that ends in .npz"
    assert npz in sentence(*features, "input=nothing", "output=a")
    assert not list((logs / "predict" / "runs").iterdir())  # nothing is left of what did not begin
    (logs / "separate" / "latest" / "checkpoints" / "last.ckpt").unlink()
    assert "last.ckpt does not exist" in sentence("task=separate", video)


def test_features_of_nothing_that_can_be_used(
    logs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (logs.parent / "a.mp4").write_text("a film?")
    ckpt = logs / "separate" / "latest" / "checkpoints" / "last.ckpt"
    given = [f"input={logs.parent / 'a.mp4'}", f"ckpt_path={ckpt}", f"paths.log_dir={logs}", "num_workers=0"]
    new = logs.parent / "new"
    with pytest.raises(SystemExit) as end:
        predict(monkeypatch, "task=features", *given, f"output={new / 'features.npz'}")
    assert end.value.code == 2
    (text,) = capsys.readouterr().err.strip().splitlines()
    assert text.startswith(f"none of 1 file could be used ({logs.parent / 'a.mp4'}: undecodable: ")
    assert f"see {new / 'features_failed.txt'}: expected complete files" in text
    assert [path.name for path in new.iterdir()] == ["features_failed.txt"]

    # A folder that is asked for stays, even where nothing is written to it.
    (logs.parent / "empty").mkdir()
    with pytest.raises(SystemExit):
        predict(monkeypatch, "task=features", *given, "level=all", f"output={logs.parent / 'empty' / 'features.npz'}")
    assert (logs.parent / "empty").is_dir()
