"""`import deepavfusion` in other programs: what `load` opens, takes and gives, and what it leaves alone."""

from __future__ import annotations

import inspect
import json
import multiprocessing
import os
import pickle
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
import torch
from nbclient import NotebookClient
from torch.utils.data import DataLoader, Dataset

import deepavfusion
from deepavfusion import ArgumentError, Model, Recording, Results, TaskError, UserError
from deepavfusion.api import progress
from deepavfusion.config.compose import REPOSITORY
from deepavfusion.media import Media
from deepavfusion.media.encode import write_mp4, write_wav
from deepavfusion.transforms.audio import SAMPLE_RATE
from helpers.checkpoints import SPOKEN, write_classifier, write_segmenter, write_separator
from helpers.media import coloured_noise, noise
from helpers.runs import call, compose

FPS, SECONDS, RATE = 4, 3.0, 44_100
WRITERS = {"classify": write_classifier, "separate": write_separator, "segment": write_segmenter}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of each task, a clip, and a sound without pictures."""
    root = tmp_path_factory.mktemp("world")
    for task, write in WRITERS.items():
        write(root / f"{task}.ckpt")
    frames, sound = coloured_noise(round(SECONDS * FPS), 64, 64), noise(SECONDS, channels=2)
    write_mp4(root / "clip.mp4", frames, FPS, sound, SAMPLE_RATE, audio_bit_rate=128_000)
    write_wav(root / "sound.wav", noise(SECONDS, RATE), RATE)
    return root


@pytest.fixture(scope="module")
def models(world: Path) -> dict[str, Model]:
    return {task: deepavfusion.load(world / f"{task}.ckpt", "cpu") for task in WRITERS}


def recording(path: Path, **changes: Any) -> Recording:
    """The frames and the sound of a file, as they are decoded (beyond the end of the sound, a file has padding)."""
    with Media(path) as media:
        rate, fps = media.info.sample_rate, media.info.fps
        times = [n / fps for n in range(round(media.info.video_duration * fps))]
        arrays = {"frames": media.frames(times), "fps": fps, "waveform": media.audio(0, 99, rate), "sample_rate": rate}
    return Recording(**{**arrays, "name": path.stem, **changes})


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---------------------------------------------------------------- results


@pytest.mark.parametrize("task", list(WRITERS))
def test_files_give_what_predict_writes_bit_for_bit(
    task: str, world: Path, models: dict[str, Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = world / "clip.mp4"
    given = [f"task={task}", f"video={clip}", f"ckpt_path={world / f'{task}.ckpt'}", "device=cpu"]
    call(monkeypatch, "predict", *given, f"output={tmp_path / 'predict'}", f"paths.log_dir={tmp_path / 'logs'}")
    expected, method = contents(tmp_path / "predict"), getattr(models[task], task)
    listed = method(clip).save(tmp_path / "of" / "file")
    assert contents(tmp_path / "of" / "file") == expected
    assert len(expected) >= 3
    assert json.loads(expected[listed["list"]])["video"] == str(clip)


@pytest.mark.full
@pytest.mark.parametrize("task", list(WRITERS))
def test_results_of_arrays_are_saved_as_those_of_their_file(
    task: str, world: Path, models: dict[str, Model], tmp_path: Path
) -> None:
    clip, method = world / "clip.mp4", getattr(models[task], task)
    method(clip).save(tmp_path / "file")
    pickle.loads(pickle.dumps(method(recording(clip, name=str(clip))))).save(tmp_path / "arrays")
    assert contents(tmp_path / "file") == contents(tmp_path / "arrays")


def test_embeddings_are_those_of_predict_bit_for_bit(
    world: Path, models: dict[str, Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "list.txt").write_text("\n".join(str(world / name) for name in ("clip.mp4", "sound.wav", "no.mp4")))
    given = [f"input={tmp_path / 'list.txt'}", f"ckpt_path={world / 'classify.ckpt'}", "device=cpu", "num_workers=0"]
    more = [f"output={tmp_path / 'a.npz'}", f"paths.log_dir={tmp_path}", "passes=all"]
    call(monkeypatch, "predict", "task=features", *given, *more)
    found = models["classify"].embed(tmp_path / "list.txt", passes="all")
    assert found.save(tmp_path / "saved") == tmp_path / "saved" / "features.npz"
    expected, saved = np.load(tmp_path / "a.npz"), np.load(tmp_path / "saved" / "features.npz")
    assert expected.files == saved.files
    for name in expected.files:
        np.testing.assert_array_equal(expected[name], saved[name], err_msg=name)
    assert str(saved["checkpoint_sha256"])  # so that a search can use it
    assert (found.paths, found.modalities) == (
        [str(world / "clip.mp4"), str(world / "sound.wav")],
        ["image audio", "audio"],
    )
    assert [failure.path for failure in found.failed] == [str(world / "no.mp4")]
    assert contents(tmp_path)["saved/features_failed.txt"] == contents(tmp_path)["a_failed.txt"]


def test_defaults_are_those_of_predict() -> None:
    cfg = compose(config="predict")
    names = {"classify": ("hop_seconds", "batch_size"), "separate": ("boxes", "sources", "batch_size")}
    names |= {"segment": ("masks_per_second", "batch_size"), "embed": ("level", "windows", "passes", "batch_size")}
    for method, keys in names.items():
        arguments = inspect.signature(getattr(Model, method)).parameters
        assert {key: arguments[key].default for key in keys} == {key: cfg[key] for key in keys}, method
    assert inspect.signature(deepavfusion.Classification.save).parameters["top_k"].default == cfg.top_k


def test_arrays_give_what_their_file_gives(world: Path, models: dict[str, Model], tmp_path: Path) -> None:
    path, arrays = world / "clip.mp4", recording(world / "clip.mp4")
    by_file, by_arrays = (models["classify"].classify(source) for source in (path, arrays))
    np.testing.assert_array_equal(by_file.scores, by_arrays.scores)
    assert (by_file.starts, by_file.seconds) == (by_arrays.starts, by_arrays.seconds)
    assert by_arrays.video == "clip"
    assert by_arrays.top(2)[0][0] in SPOKEN
    by_file, by_arrays = (models["separate"].separate(source) for source in (path, arrays))
    assert by_file.boxes == by_arrays.boxes
    assert by_arrays.sample_rate == SAMPLE_RATE
    torch.testing.assert_close(by_file.waveforms, by_arrays.waveforms, rtol=0, atol=0)
    with pytest.raises(IndexError):
        next(by_arrays.audio(8000, source=2))
    assert next(by_arrays.audio(8000, source=-1)).shape[0] == 1
    by_file, by_arrays = (models["segment"].segment(source) for source in (path, arrays))
    np.testing.assert_array_equal(by_file.masks, by_arrays.masks)
    assert by_arrays.masks.shape == np.asarray(by_arrays.masks).shape == (15, 64, 64)
    np.testing.assert_array_equal(by_arrays.masks[-1], list(by_arrays.masks)[14])
    np.testing.assert_array_equal(by_arrays.masks[1:3][1], by_arrays.masks[2])
    by_file, by_arrays = (models["separate"].embed([source, source], batch_size=1) for source in (path, arrays))
    assert len(by_file) == 1  # once, with a note
    assert by_file.notes
    assert by_arrays.paths == ["clip", "clip (2)"]
    for name in ("image", "audio", "fusion"):
        np.testing.assert_array_equal(by_file.embeddings[name][[0, 0]], by_arrays.embeddings[name])
    written = by_arrays.save(tmp_path / "a.npz")
    assert np.load(written)["place"].tolist() == ["", ""]


def test_the_name_of_a_recording_leads_nowhere_else(models: dict[str, Model], tmp_path: Path) -> None:
    found = models["classify"].classify(Recording(waveform=noise(1.0)[0], sample_rate=SAMPLE_RATE, name="../odd: name"))
    again = pickle.loads(pickle.dumps(found))
    np.testing.assert_array_equal(again.scores, found.scores)
    again.save(tmp_path / "here")
    assert sorted(contents(tmp_path)) == [
        f"here/odd: name_{end}" for end in ("classes.csv", "classes.json", "timeline.png")
    ]
    for name in ("..", "/", ".", "...mp4"):
        again.video = name
        assert Results([again]).save(tmp_path / "own") == [tmp_path / "own" / "_"], name


def test_an_image_with_sound_is_a_frame_that_stays(world: Path, models: dict[str, Model]) -> None:
    whole = recording(world / "clip.mp4")
    assert whole.pixels is not None
    image, sound = whole.pixels[3], {"waveform": whole.samples, "sample_rate": SAMPLE_RATE}
    still = Recording(image=image, **sound)
    film = Recording(frames=np.stack([image] * 12), fps=FPS, **sound)
    np.testing.assert_array_equal(models["segment"].segment(still).masks, models["segment"].segment(film).masks)
    np.testing.assert_array_equal(models["classify"].classify(still).scores, models["classify"].classify(film).scores)
    embedded = models["classify"].embed([still, film, Recording(image=image), Recording(**sound)])
    np.testing.assert_array_equal(embedded.fusion[0], embedded.fusion[1])
    assert embedded.modalities == ["image audio", "image audio", "image", "audio"]
    assert np.isnan(embedded.audio[2]).all()
    assert models["classify"].classify(Recording(image=image)).heads == ["image", "fusion", "all"]


def test_lists_keep_their_order_in_any_number_of_threads(world: Path, models: dict[str, Model], tmp_path: Path) -> None:
    sources = [world / "clip.mp4", recording(world / "clip.mp4"), world / "sound.wav"]
    model = models["classify"]
    one, several = model.classify(sources), model.classify(sources, num_workers=3)
    assert isinstance(one, Results)
    assert [found.video for found in several] == [str(sources[0]), "clip", str(sources[2])]
    for a, b in zip(one, several, strict=True):
        np.testing.assert_array_equal(a.scores, b.scores)
    folders = Results(one[:2]).save(tmp_path)
    assert [folder.name for folder in folders] == ["clip", "clip (2)"]
    assert all(contents(folder) for folder in folders)
    with pytest.raises(UserError, match=r"no\.mp4 cannot be classified, missing"):
        model.classify([*sources, world / "no.mp4"], num_workers=2)
    collected = model.classify([world / "no.mp4", *sources], errors="collect")
    assert [found.video for found in collected] == [found.video for found in one]
    assert [failure.path for failure in collected.failed] == [str(world / "no.mp4")]
    assert model.classify([]) == []


# ---------------------------------------------------------------- what it says


def test_what_a_network_cannot_do_names_the_command_that_trains_one(
    world: Path, models: dict[str, Model], tmp_path: Path
) -> None:
    assert models["segment"].can == ["embed", "segment"]
    for method, experiment in (("classify", "vggsound_finetune"), ("separate", "music_separation")):
        with pytest.raises(
            TaskError, match=rf"cannot {method}: .*train\.py experiment={experiment}, and load"
        ) as error:
            getattr(models["segment"], method)(world / "clip.mp4")
        assert isinstance(error.value, UserError)
        assert isinstance(error.value, ValueError)
    model = Model(models["classify"].encoder, "weights", "weights.pth")
    with pytest.raises(TaskError, match=r"holds an encoder alone.*avsbench_s4 model\.pretrained=weights\.pth"):
        model.segment(world / "clip.mp4")
    assert (model.can, model.task, model.classes, model.origin) == (["embed"], None, [], None)


def test_wrong_arguments_are_said_in_a_sentence(world: Path, models: dict[str, Model], tmp_path: Path) -> None:
    model, clip = models["classify"], world / "clip.mp4"
    (tmp_path / "text.mp4").write_text("no video")
    for wrong, said in (
        (lambda: model.classify(np.zeros((2, 2, 3), np.uint8)), "arrays go into deepavfusion.Recording"),
        (lambda: model.classify([clip, 3]), r"source\[1\] is of type int"),
        (lambda: model.embed(clip, batch_size=0), "batch_size is 0, expected a whole number from 1 to 100000"),
        (lambda: model.classify(clip, num_workers=-1), "num_workers is -1, expected a whole number from 0 to 1024"),
        (lambda: model.classify(clip, errors="ignore"), "expected raise or collect"),
        (lambda: model.embed(clip, level="all"), "level is 'all', expected pooled or tokens"),
        (lambda: model.classify(clip).top(head="nose"), "head is 'nose', expected one of image, audio, fusion, all"),
        (lambda: model.to("gpu"), "device is 'gpu', expected auto, cpu, cuda"),
        (lambda: model.to("cuda:77"), "there is no such device here"),
        (lambda: model.classify(clip, device="meta"), "device=meta, but there is no such device here"),
        (lambda: deepavfusion.load(b"a.ckpt"), "expected text or a path"),
        (lambda: deepavfusion.load(3), "source is 3, expected text or a path"),
        (lambda: model.embed(""), "source is '', expected text or a path"),
        (lambda: model.classify([clip, ""]), "source is '', expected text or a path"),
        (lambda: model.embed(clip, windows=10**9), "windows is 1000000000, expected a whole number from 1 to 1000"),
        (lambda: model.embed(clip, time_limit=None), "time_limit is None, expected a number above 0"),
        (lambda: model.classify(clip, num_workers=None), r"num_workers is None, expected a whole number .* 1024\.$"),
        (lambda: model.classify(clip, hop_seconds="1"), "hop_seconds is '1', expected a number above 0"),
        (lambda: models["segment"].segment(clip, masks_per_second=None), "masks_per_second is None"),
        (lambda: models["separate"].separate(clip, sources=99), "sources is 99, expected a whole number from 1 to 64"),
        (lambda: model.classify(clip).top(0), "count is 0, expected a whole number from 1"),
        (lambda: model.classify(clip).save(tmp_path, top_k=-1), "top_k is -1, expected a whole number from 1"),
        (lambda: model.classify(clip).save(""), "folder is '', expected text or a path"),
        (lambda: model.classify(clip).save(None), "folder is None, expected text or a path"),
    ):
        with pytest.raises(ArgumentError, match=said):
            wrong()
    for name, said in (
        ("no.mp4", r"source .*no\.mp4 does not exist"),
        ("a\0b", r"a\\x00b cannot be read"),
        ("n" * 300, "too long"),
    ):
        with pytest.raises(UserError, match=said):
            model.embed(world / name)
    found, embedded = model.classify(clip), model.embed(clip)
    for name, said in (("a\0b", "cannot be made: embedded null"), ("n" * 300, "too long"), ("text.mp4/x", "Not a dir")):
        for result in (found, embedded, Results([found])):
            with pytest.raises(UserError, match=said):
                result.save(tmp_path / name)
    with pytest.raises(UserError, match=r"text\.mp4 cannot be embedded, undecodable: "):
        model.embed(tmp_path / "text.mp4")
    with pytest.raises(UserError, match="cannot be separated, no audio: the recording was made without waveform"):
        models["separate"].separate(Recording(image=np.zeros((64, 64, 3), np.uint8)))
    silence = recording(clip, waveform=np.zeros(SAMPLE_RATE), sample_rate=SAMPLE_RATE)
    with pytest.raises(UserError, match="video clip is silent"):
        models["separate"].separate(silence)


IMAGE, SOUND = np.zeros((8, 8, 3), np.uint8), np.zeros(800, np.float32)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({}, "neither image, frames nor waveform"),
        ({"image": IMAGE, "frames": IMAGE[None], "fps": 1}, "image and frames"),
        ({"frames": IMAGE[None]}, "frames and fps belong together"),
        ({"waveform": SOUND}, "waveform and sample_rate"),
        ({"image": IMAGE / 255}, r"image is float64 \[8, 8, 3\], expected uint8 \[height, width, 3\]"),
        ({"image": IMAGE[..., 0]}, r"image is uint8 \[8, 8\]"),
        ({"image": torch.zeros(3, 8, 8, dtype=torch.uint8)}, r"image is uint8 \[3, 8, 8\]"),
        ({"image": IMAGE[:0]}, r"image is uint8 \[0, 8, 3\]"),
        ({"image": np.zeros((1, 99, 3), np.uint8)}, "it has 99 × 1 pixels"),
        ({"image": [[1], [1, 2]]}, "image cannot be read as an array"),
        ({"image": object()}, r"image is object \[\]"),
        ({"frames": IMAGE, "fps": 1}, r"frames is uint8 \[8, 8, 3\], expected uint8 \[frames, height, width, 3\]"),
        ({"frames": IMAGE[None], "fps": 0}, "fps is 0, expected frames a second above 0"),
        ({"frames": IMAGE[None], "fps": 1e-5}, "frames last 100000 s"),
        ({"waveform": SOUND.astype(np.int16), "sample_rate": 8000}, "divide whole numbers by their range"),
        ({"waveform": SOUND + 20_000, "sample_rate": 8000}, "waveform peaks at 20000"),
        ({"waveform": SOUND * np.nan, "sample_rate": 8000}, "no finite numbers"),
        ({"waveform": np.full(800, 1e300), "sample_rate": 8000}, "no finite numbers"),
        ({"waveform": np.stack([SOUND + np.inf, SOUND - np.inf]), "sample_rate": 8000}, "no finite numbers"),
        ({"waveform": SOUND, "sample_rate": 10**400}, "sample_rate is 1000"),
        ({"waveform": SOUND[:, None], "sample_rate": 8000}, "would be 800 channels.*transpose"),
        ({"waveform": SOUND[:0], "sample_rate": 8000}, r"waveform is float32 \[0\]"),
        ({"waveform": SOUND, "sample_rate": 8000.5}, "expected a whole number of Hz"),
        ({"waveform": SOUND, "sample_rate": True}, "sample_rate is True"),
        ({"waveform": SOUND, "sample_rate": 1}, "sample_rate is 1, expected a whole number of Hz from 1000 to 768000"),
        ({"waveform": SOUND, "sample_rate": 8000, "name": ""}, "name is ''"),
    ],
)
def test_arrays_that_are_no_recording(arrays: dict[str, Any], said: str) -> None:
    with pytest.raises(ArgumentError, match=said):
        Recording(**arrays)


def test_a_recording_reads_as_its_file_does(world: Path) -> None:
    with Media(world / "sound.wav") as media:
        arrays = Recording(waveform=media.audio(0, 99, RATE), sample_rate=RATE)
        for start, seconds, rate in ((0, 1, 16_000), (1.3, 3, 16_000), (-1, 2, 8000), (2.9, 1, RATE), (5, 1, 8000)):
            assert torch.equal(media.audio(start, seconds, rate), arrays.audio(start, seconds, rate)), (start, rate)
        assert torch.equal(*(torch.cat(list(each.audio_blocks(1.5))) for each in (media, arrays)))
    with Media(world / "clip.mp4") as media:
        times = [-1, 0, 0.2499, 0.25, 1.1, 99]
        np.testing.assert_array_equal(media.frames(times), recording(world / "clip.mp4").frames(times))
    stereo = Recording(waveform=np.stack([np.ones(9), -np.ones(9) / 2]), sample_rate=SAMPLE_RATE)
    assert stereo.samples.tolist() == [0.25] * 9
    assert (stereo.has("audio"), stereo.has("video"), stereo.info.channels) == (True, False, 2)


# ---------------------------------------------------------------- what it leaves alone


def test_a_bar_is_shown_when_it_takes_long(
    world: Path, models: dict[str, Model], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    models["classify"].classify(world / "clip.mp4")
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(progress, "LATE", 0.0)
    models["classify"].classify([world / "clip.mp4"] * 2)
    assert "classifying · 2/2" in capsys.readouterr().err
    models["classify"].embed(world / "clip.mp4", progress=False)
    assert capsys.readouterr() == ("", "")


def drawn_from() -> list[object]:
    """The states of the random generators."""
    return [torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()]  # noqa: NPY002


class Embedded(Dataset[Any]):
    """Uses a model in the workers of someone else's loader."""

    def __init__(self, model: Model, clip: Path) -> None:
        self.model, self.clip = model, clip

    def __len__(self) -> int:
        return 2

    def __getitem__(self, number: int) -> Any:
        before = drawn_from()
        fusion, scores = self.model.embed(self.clip).fusion[0], self.model.classify(self.clip).mean
        same = before == drawn_from()
        return np.array(fusion), np.array(scores), same


def test_a_model_works_in_forked_workers_of_another_loader(world: Path, models: dict[str, Model]) -> None:
    data = Embedded(models["classify"], world / "clip.mp4")
    expected = data[0]
    for fusion, scores, same in DataLoader(data, batch_size=1, num_workers=2, multiprocessing_context="fork"):
        np.testing.assert_array_equal(fusion[0], expected[0])
        np.testing.assert_array_equal(scores[0], expected[1])
        assert expected[2]
        assert same.all()


def test_a_model_works_in_a_fork_of_a_process_with_threads(world: Path, models: dict[str, Model]) -> None:
    """OpenMP's threads are not forked: a network that waited for them would do so forever."""
    torch.set_num_threads(2)
    torch.ones(500, 500) @ torch.ones(500, 500)  # starts them
    context = multiprocessing.get_context("fork")
    found: Any = context.Queue()

    def work() -> None:
        model = models["classify"]
        found.put([model.classify(world / "clip.mp4"), model.embed(world / "clip.mp4"), torch.get_num_threads()])

    process = context.Process(target=work)
    process.start()
    try:
        classified, embedded, threads = found.get(timeout=60)
    finally:
        process.kill()
        process.join()
    torch.set_num_threads(1)
    np.testing.assert_array_equal(classified.scores, models["classify"].classify(world / "clip.mp4").scores)
    np.testing.assert_array_equal(embedded.fusion, models["classify"].embed(world / "clip.mp4").fusion)
    assert threads == 2  # as before


ELSEWHERE = """
import sys, time
began = time.process_time()
import deepavfusion
took = time.process_time() - began
assert took < 0.3, took
assert {"load", "Model", "datasets", "Recording"} <= set(dir(deepavfusion))
heavy = {"torch", "numpy", "lightning", "av", "rich", "typing"} & set(sys.modules)
assert not heavy, heavy

for name in ("hydra", "omegaconf", "tensorboard"):
    sys.modules[name] = None  # importing it fails
import logging, os, signal, threading, warnings
import torch, lightning
def state():
    handlers = [signal.getsignal(n) for n in signal.valid_signals()]
    loggers = [logging.getLogger().level, *logging.getLogger().handlers, logging.getLogger("deepavfusion").handlers]
    return handlers, loggers, warnings.filters[:], torch.get_num_threads(), os.getcwd(), threading.active_count()
torch.set_num_threads(1)
folder, here, *tasks = sys.argv[1:]
deepavfusion.Model  # brings libraries that filter warnings of their own
before = state()
clip = f"{folder}/clip.mp4"
for task in tasks:
    model = deepavfusion.load(f"{folder}/{task}.ckpt")
    found = getattr(model, task)(clip)
found.save(here)
assert model.embed([clip, f"{folder}/sound.wav"], num_workers=len(tasks) - 1).save(here)
data = deepavfusion.datasets.open("folder", root=folder, split="all", image_size=64, audio_seconds=1.0)
assert data[0].image.shape == (3, 64, 64)
time.sleep(0.6)  # the watch of the loader ends
after = state()
assert before == after, [(a, b) for a, b in zip(before, after) if a != b]

again = torch.hub.load(sys.argv[0], "deepavfusion", f"{folder}/classify.ckpt", source="local")
assert again.classify(clip).classes == deepavfusion.load(f"{folder}/classify.ckpt").classes
encoder = torch.hub.load(sys.argv[0], "encoder", f"{folder}/classify.ckpt", source="local")
assert isinstance(encoder, torch.nn.Module) and not encoder.training
"""


@pytest.mark.parametrize(
    "tasks", [["classify"], pytest.param(["separate", "segment", "classify"], marks=pytest.mark.full)], ids=len
)
def test_without_hydra_from_another_folder(tasks: list[str], world: Path, tmp_path: Path) -> None:
    """Imports fast, needs neither Hydra, OmegaConf nor TensorBoard, and changes nothing of the process."""
    script = ELSEWHERE.replace("sys.argv[0]", repr(str(REPOSITORY)))
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "src"), "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, "-c", script, str(world), str(tmp_path), *tasks]
    done = subprocess.run(arguments, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert {"clip_classes.json", "features.npz"} <= set(os.listdir(tmp_path))


@pytest.mark.full
def test_in_a_notebook(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY / "src"))
    (tmp_path / "here").mkdir()
    cells = [
        "import deepavfusion",
        f"model = deepavfusion.load({str(world / 'classify.ckpt')!r})\nmodel",
        f"found = model.classify([{str(world / 'clip.mp4')!r}] * 3, progress=True)\nlen(found), found[0].top(1)",
        f"model.embed([{str(world / 'clip.mp4')!r}], num_workers=1).fusion.shape",
        "model.separate('clip.mp4')",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path / "here")}})
    client.allow_errors = True
    client.execute()
    shown = [cell.outputs for cell in notebook.cells]
    assert shown[0] == []
    assert "Model(" in shown[1][-1]["data"]["text/plain"]  # after what a library says about widgets
    assert shown[2][-1]["data"]["text/plain"].startswith("(3, [(")
    assert shown[3][-1]["data"]["text/plain"] == "(1, 32)"
    assert shown[4][-1]["ename"] == "TaskError"
    assert os.listdir(tmp_path / "here") == []
