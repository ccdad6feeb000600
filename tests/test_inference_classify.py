"""What `predict.py task=classify` makes of a video: windows, scores checked by hand, tables and a figure."""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor

from deepavfusion.data.lists.clip_list import ClipList
from deepavfusion.data.samples import SampleSpec, WindowDataset
from deepavfusion.data.stores.raw import RawStore
from deepavfusion.inference.classify import Classification, best, classify_video, spans
from deepavfusion.inference.tasks import load_task
from deepavfusion.inference.write.classification import as_table, draw, write_classification
from deepavfusion.media import Media
from deepavfusion.media.encode import write_mp4, write_wav
from deepavfusion.media.stills import ORIENTATION, STILLS, read_image
from deepavfusion.models.novelty import NoveltyDetector
from deepavfusion.tasks.classify import Classify
from deepavfusion.transforms.audio import SAMPLE_RATE, LogMel
from deepavfusion.transforms.image import Normalise, centre_view
from deepavfusion.types import HEADS, STREAMS, Clip
from deepavfusion.utils.errors import UserError
from deepavfusion.weights.origin import Origin
from helpers.checkpoints import SIZE, SPOKEN, write_classifier
from helpers.errors import refusal
from helpers.media import SILENT, coloured_noise, noise, write_unusable

SECONDS = 2.0


@pytest.fixture
def task(tmp_path: Path) -> Classify:
    return load_task(write_classifier(tmp_path / "a.ckpt"))


def film(path: Path, seconds: float, fps: float = 4, video: float | None = None, sound: float = 1.0) -> Path:
    frames = coloured_noise(round((video or seconds) * fps), 96, 128)
    write_mp4(path, frames, fps, sound * noise(seconds), SAMPLE_RATE, audio_bit_rate=128_000)
    return path


def by_hand(task: Classify, path: Path, start: float) -> Tensor:
    """Probabilities [4, C] of the window from `start` on, by the data path of evaluation and the network's forward."""
    dataset = WindowDataset(ClipList("", [Clip("", str(path))], []), RawStore(), SampleSpec(SIZE, SECONDS))
    with RawStore().open(dataset.clips[0]) as clip:
        (sample,) = dataset.windows(dataset.clips[0], clip, [start])
    with torch.no_grad():
        logits = task.net(Normalise()(sample.image[None]), LogMel()(sample.waveform[None]))
    rows = torch.cat([*(logits[stream] for stream in STREAMS), sum(logits[stream] for stream in STREAMS) / 3])
    return rows.sigmoid() if task.hparams["multi_label"] else rows.softmax(dim=1)


# ---------------------------------------------------------------- windows and scores


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_scores_are_those_of_evaluation(multi_label: bool, frozen: bool, tmp_path: Path) -> None:
    task = load_task(write_classifier(tmp_path / "a.ckpt", multi_label=multi_label, frozen=frozen))
    video = film(tmp_path / "a.mp4", 5.5)
    found = classify_video(task, video, batch_size=3)
    assert HEADS == ("image", "audio", "fusion", "all")
    assert (found.classes, found.multi_label, found.window, found.hop_seconds) == (SPOKEN, multi_label, SECONDS, 1.0)
    assert found.seconds == pytest.approx(5.5, abs=0.07)  # the codec fills up its last frame
    assert found.starts[:-1] == [0.0, 1.0, 2.0, 3.0]
    assert found.starts[-1] + SECONDS == pytest.approx(found.seconds, abs=1e-9)
    assert (found.scores.shape, found.scores.dtype) == ((5, 4, 3), np.float32)
    expected = torch.stack([by_hand(task, video, start) for start in found.starts]).numpy()
    np.testing.assert_allclose(found.scores, expected, atol=1e-5)
    sums = found.scores.sum(axis=2)
    if multi_label:
        assert np.abs(sums - 1).max() > 0.05
        assert (found.scores > 0).all()
        assert (found.scores < 1).all()
    else:
        np.testing.assert_allclose(sums, 1, atol=1e-5)
    np.testing.assert_allclose(found.mean, expected.mean(axis=0), atol=1e-6)
    assert np.ptp(found.scores, axis=0).max() > 0.01  # another window, another score
    assert found.notes == []


def test_hops_and_batches(task: Classify, tmp_path: Path) -> None:
    video = film(tmp_path / "a.mp4", 6.0)
    calls: list[tuple[int, int]] = []
    whole = classify_video(task, video, 0.5, batch_size=4, on_progress=lambda *n: calls.append(n))
    assert whole.starts == [n / 2 for n in range(9)]  # what the codec fills up is no window
    assert calls[-1] == (9, 9)
    assert [done for done, _ in calls[:-1]] == [4, 8, 9]
    again = classify_video(task, video, 0.5, batch_size=100)
    np.testing.assert_allclose(whole.scores, again.scores, atol=1e-5)
    coarse = classify_video(task, video, 2)
    assert coarse.starts == [0.0, 2.0, 4.0]
    np.testing.assert_allclose(coarse.scores, whole.scores[::4], atol=1e-5)
    sparse = classify_video(task, video, 3.5)  # longer than a window: the end is found all the same
    assert sparse.starts == pytest.approx([0.0, 3.5, 4.0], abs=0.07)
    assert classify_video(task, video, 50).starts == pytest.approx([0.0, 4.0], abs=0.07)


def test_a_short_video_is_extended_by_its_mirror_image(task: Classify, tmp_path: Path) -> None:
    video = film(tmp_path / "a.mp4", 1.0)
    found = classify_video(task, video)
    assert found.starts == [0.0]
    np.testing.assert_allclose(found.scores[0], by_hand(task, video, 0.0), atol=1e-5)
    assert found.edges() == [0.0, found.seconds]
    (note,) = found.notes
    assert note.startswith("the audio lasts 1.0")
    assert note.endswith("the network takes 2 s: extended by its mirror image")


def test_a_long_video_is_never_held(task: Classify, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A minute: no read is longer than a window or a batch of frames, and the scores lie on disk."""
    video = film(tmp_path / "a.mp4", 60.0, fps=1)
    read, frames, audio = [], Media.frames, Media.audio

    def watched_audio(self: Media, start: float, seconds: float, rate: int = SAMPLE_RATE) -> Tensor:
        read.append(seconds)
        return audio(self, start, seconds, rate)

    def watched_frames(self: Media, times: Any) -> np.ndarray:
        assert len(times) <= 8
        return frames(self, times)

    monkeypatch.setattr(Media, "audio", watched_audio)
    monkeypatch.setattr(Media, "frames", watched_frames)
    found = classify_video(task, video, 2.0)
    assert found.starts == [2.0 * n for n in range(30)]
    assert max(read) == SECONDS
    assert sum(read) <= 33 * SECONDS
    assert isinstance(found.scores, np.memmap)
    assert sorted({round(float(edge), 6) for edge in np.diff(found.edges())[1:-1]}) == [2.0]


def test_what_is_worth_a_note(task: Classify, tmp_path: Path) -> None:
    silent = classify_video(task, film(tmp_path / "silent.mp4", 3.0, sound=0.0))
    assert silent.notes == ["the audio is silent: only the scores of the image tokens mean anything"]
    (note,) = classify_video(task, film(tmp_path / "late.mp4", 2.5, video=9.0)).notes
    assert note.startswith("the audio ends at 2.")
    assert "the video at 9.0 s" in note


def test_videos_that_cannot_be_classified(task: Classify, tmp_path: Path) -> None:
    for name, words in write_unusable(tmp_path).items():
        if name not in (*SILENT, "mute.mp4", "blind.wav"):
            text = refusal(classify_video, task, tmp_path / name)
            assert f"{name} cannot be classified" in text
            assert words in text
    for hop in (0, -1.0, 0.001, float("nan")):  # most of these would never end
        text = refusal(classify_video, task, tmp_path / "whole.mp4", hop)
        assert f"hop_seconds is {hop!r}, expected seconds, at least 0.01" in text
    task.record["classes"] = SPOKEN[:2]
    text = refusal(classify_video, task, tmp_path / "whole.mp4")
    assert "names 2 classes and its network has 3, expected the same number: use" in text


def test_a_video_without_audio_is_classified_by_its_images(tmp_path: Path) -> None:
    task = load_task(write_classifier(tmp_path / "a.ckpt", frozen=True))
    task.novelty = NoveltyDetector(torch.zeros(96), torch.eye(96), threshold=1e-3)
    frames = coloured_noise(22, 96, 128)
    write_mp4(tmp_path / "mute.mp4", frames, 4)
    write_mp4(tmp_path / "clip.mp4", frames, 4, noise(5.5), SAMPLE_RATE, audio_bit_rate=128_000)
    found = classify_video(task, tmp_path / "mute.mp4", batch_size=3)
    assert (found.modalities, found.heads) == (("image",), ["image", "fusion", "all"])
    assert (found.seconds, found.starts) == (5.5, [0.0, 1.0, 2.0, 3.0, 3.5])
    for n, start in enumerate(found.starts):
        with Media(tmp_path / "mute.mp4") as media, torch.no_grad():
            (frame,) = media.frames([round(2 * (start + 1)) / 2])
            view = centre_view(*frame.shape[:2]).of(Image.fromarray(frame), SIZE)
            logits = task.net(Normalise()(view[None]), None)
        expected = torch.cat([logits["image"], logits["fusion"], (logits["image"] + logits["fusion"]) / 2])
        np.testing.assert_allclose(found.scores[n][[0, 2, 3]], expected.softmax(dim=1), atol=1e-5)
    assert np.isnan(found.scores[:, 1]).all()
    assert np.isnan(found.mean).all(axis=1).tolist() == [False, True, False, False]
    assert found.novelty is None
    (note,) = found.notes
    assert note == (
        "the file has no audio: classified by its images alone (image and fusion tokens, and their mean), by a network "
        "that was trained on both; whether it is unlike the training clips is not known then"
    )
    whole = classify_video(task, tmp_path / "clip.mp4")
    assert (whole.modalities, len(whole.heads)) == (("image", "audio"), 4)
    assert np.abs(whole.scores[0, 2] - found.scores[0, 2]).max() > 1e-4  # fusion tokens that have heard something


def test_an_audio_file_is_classified_by_its_audio(task: Classify, tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", noise(5.5), SAMPLE_RATE)
    found = classify_video(task, tmp_path / "a.wav")
    assert (found.modalities, found.heads) == (("audio",), ["audio", "fusion", "all"])
    assert found.starts == [0.0, 1.0, 2.0, 3.0, 3.5]
    with torch.no_grad():
        audio = LogMel()(torch.from_numpy(noise(5.5))[:, 16_000:48_000])
        logits = task.net(None, audio)
    expected = torch.cat([logits["audio"], logits["fusion"], (logits["audio"] + logits["fusion"]) / 2]).softmax(dim=1)
    np.testing.assert_allclose(found.scores[1][1:], expected, atol=1e-3)  # 16 bits
    assert np.isnan(found.scores[:, 0]).all()
    assert [note.split(" (")[0] for note in found.notes] == ["the file has no video: classified by its audio alone"]
    write_wav(tmp_path / "short.wav", 0 * noise(1.0), SAMPLE_RATE)
    notes = classify_video(task, tmp_path / "short.wav").notes
    assert notes[1] == "the audio is silent: its scores mean nothing"
    assert notes[2].endswith("extended by its mirror image")


@pytest.mark.parametrize("name", [*(f"a{end}" for end in STILLS), "A.PNG"])
def test_an_image_is_seen_as_by_features(name: str, task: Classify, tmp_path: Path) -> None:
    """Upright, also where EXIF has to say so."""
    upright = Image.fromarray(coloured_noise(1, 96, 128)[0])
    (exif := Image.Exif())[ORIENTATION] = 6  # turned by 90° clockwise when it is shown
    turns = name.endswith(("jpg", "jpeg"))
    (upright.transpose(Image.Transpose.ROTATE_90) if turns else upright).save(
        tmp_path / name, **({"exif": exif, "quality": 95} if turns else {"lossless": True} if "webp" in name else {})
    )
    found = classify_video(task, tmp_path / name)
    assert (found.modalities, found.starts) == (("image",), [0.0])
    with torch.no_grad():
        view = centre_view(96, 128).of(read_image(tmp_path / name), SIZE)
        logits = task.net(Normalise()(view[None]), None)
    np.testing.assert_allclose(found.scores[0, 0], logits["image"][0].softmax(dim=0), atol=1e-5)
    assert np.abs(np.asarray(read_image(tmp_path / name), int) - np.asarray(upright, int)).mean() < 30


@pytest.mark.parametrize(("name", "head"), [("mute.mp4", "image"), ("still.tif", "image"), ("blind.wav", "audio")])
def test_files_of_one_modality(name: str, head: str, task: Classify, tmp_path: Path) -> None:
    write_unusable(tmp_path)
    Image.fromarray(coloured_noise(1, 96, 128)[0]).save(tmp_path / "still.tif")
    found = classify_video(task, tmp_path / name)
    listed = write_classification(found, tmp_path, top_k=2)
    assert listed["modalities"] == [head]
    assert list(listed["whole"]) == [head, "fusion", "all"]
    assert "NaN" not in (tmp_path / listed["list"]).read_text()
    with open(tmp_path / listed["table"], newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["stream"] for row in rows} == {head, "fusion", "all"}
    assert {row["modalities"] for row in rows} == {head}
    assert [str(column.header) for column in as_table(listed).columns] == ["", head, "fusion", "all"]
    figure = draw(found, top_k=2)
    top, *panels = figure.axes
    assert len(panels) == 3
    assert panels[-1].get_title(loc="left") == f"{head} and fusion"
    assert len(top.images) >= 1
    (title,) = (text.get_text() for text in figure.texts if name in text.get_text())
    assert ("no audio: by its images alone" if head == "image" else "no video: by its audio alone") in title


# ---------------------------------------------------------------- parts of equal class


def made_up(tops: list[int], hop: float = 1.0, window: float = 3.0, sure: float = 0.8) -> Classification:
    """Windows whose best class of all is that; the image says class 0 always."""
    scores = np.full((len(tops), 4, 3), (1 - sure) / 2, np.float32)
    for n, top in enumerate(tops):
        scores[n, :, :] = (1 - sure) / 2
        scores[n, 1:, top] = sure
        scores[n, 0, 0] = sure
    seconds = hop * (len(tops) - 1) + window
    starts = [hop * n for n in range(len(tops))]
    mean = scores.astype(np.float64).mean(axis=0)
    return Classification("a.mp4", SPOKEN, False, seconds, window, hop, starts, scores, mean)


def test_parts_of_equal_class() -> None:
    found = made_up([1, 1, 1, 0, 2, 2])
    expected = [(0.0, 4.0, "dog barking", 0.8), (4.0, 5.0, "playing flute", 0.8), (5.0, 8.0, "train [horn]", 0.8)]
    parts = spans(found)
    assert [part[:3] for part in parts] == [part[:3] for part in expected]
    assert [part.score for part in parts] == pytest.approx([0.8] * 3)
    assert [part.label for part in spans(made_up([2]))] == ["train [horn]"]


def test_a_restless_video_is_told_in_few_parts() -> None:
    tops = [0, 1] * 50 + [2] * 100
    parts = spans(made_up(tops))
    assert len(parts) <= 20
    assert (parts[0].start, parts[-1].end) == (0.0, 202.0)
    assert all(a.end == b.start for a, b in itertools.pairwise(parts))
    assert parts[-1].label == "train [horn]"
    assert parts[-1].start == pytest.approx(101.0)
    assert parts[0].score == pytest.approx((0.8 + 0.1) / 2)


def test_the_best_of_the_whole_video() -> None:
    found = made_up([1, 1, 1, 0, 2, 2])
    assert best(found.mean[HEADS.index("all")], 5) == [1, 2, 0]
    assert best(found.mean[HEADS.index("image")], 1) == [0]


# ---------------------------------------------------------------- files


def test_files(task: Classify, tmp_path: Path) -> None:
    unmarked = classify_video(task, film(tmp_path / "clip.mp4", 5.5))
    assert unmarked.novelty is None
    task.novelty = NoveltyDetector(torch.zeros(96), torch.eye(96), threshold=1e-3)
    found = classify_video(task, tmp_path / "clip.mp4")
    np.testing.assert_array_equal(found.scores, unmarked.scores)
    assert found.notes[0].startswith("5 of 5 windows are unlike the clips that the network was trained on")
    folder = tmp_path / "out"
    folder.mkdir()
    network = Origin(tmp_path / "last.ckpt", "classify", "vggsound", True, 560, 560, "2026-01-01 10:00")
    listed = write_classification(found, folder, top_k=2, network=network)
    assert {path.name for path in folder.iterdir()} == {"clip_classes.csv", "clip_classes.json", "clip_timeline.png"}
    assert [listed[key] for key in ("list", "table")] == ["clip_classes.json", "clip_classes.csv"]
    assert listed["picture"] == "clip_timeline.png"
    with open(folder / "clip_classes.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["start", "end", "stream", "rank", "class", "probability", "novelty", "modalities"]
    assert len(rows) == 5 * 4 * 2
    for n, row in enumerate(rows):
        window, head, rank = n // 8, n // 2 % 4, n % 2
        scores = found.scores[window, head]
        top = int(np.argsort(-scores)[rank])
        assert (row["stream"], row["rank"], row["class"]) == (HEADS[head], str(rank + 1), SPOKEN[top])
        assert float(row["probability"]) == pytest.approx(scores[top], abs=1e-6)
        assert float(row["novelty"]) == pytest.approx(found.novelty[window], abs=1e-4)
        assert float(row["novelty"]) > 1
        assert float(row["start"]) == pytest.approx(found.starts[window], abs=1e-3)
        assert float(row["end"]) == pytest.approx(found.starts[window] + 2, abs=1e-3)
    saved = json.loads((folder / "clip_classes.json").read_text())
    assert saved == {key: value for key, value in listed.items() if key != "list"}
    assert (saved["checkpoint"], saved["classes"], len(saved["windows"])) == (str(network.path), SPOKEN, 5)
    assert saved["network"] == network.described()
    assert saved["windows"][1] == [1.0, 3.0]
    for number, head in enumerate(HEADS):
        mean = found.scores[:, number].mean(axis=0)
        tops = np.argsort(-mean)[:2]
        assert [cell["class"] for cell in saved["whole"][head]] == [SPOKEN[n] for n in tops]
        assert [cell["probability"] for cell in saved["whole"][head]] == pytest.approx(mean[tops].tolist(), abs=2e-6)
    assert saved["novelty"] == pytest.approx(found.novelty, abs=1e-4)
    assert all(part["novel"] for part in saved["parts"])
    assert (saved["parts"][0]["start"], saved["parts"][-1]["end"]) == (0.0, round(found.seconds, 3))
    table = as_table(listed)
    assert [str(column.header) for column in table.columns] == ["", *HEADS]
    assert table.row_count == 2
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(table)
    text = console.export_text()
    assert all(f"{cell['probability']:.2f} {cell['class']}" in text for row in listed["whole"].values() for cell in row)


def test_figure(task: Classify, tmp_path: Path) -> None:
    found = classify_video(task, film(tmp_path / "clip.mp4", 5.5))
    figure = draw(found, top_k=2)
    images, *panels = figure.axes
    assert len(images.images) == 6  # 8.2 × 1 inches of 4:3
    assert images.get_xlim() == (0, found.seconds)
    colours: dict[str, Any] = {}
    for number, panel in enumerate(panels):
        assert panel.get_xlim() == (0, found.seconds)
        legend = panel.get_legend()
        labels = [text.get_text() for text in legend.get_texts()]
        tops = best(found.mean[number], 2)
        assert labels == [f"{found.mean[number, n]:.2f}  {SPOKEN[n]}" for n in tops]
        lines = [line for line in panel.lines if line.get_linestyle() != "None"]
        for n, line in zip(tops, lines, strict=True):
            assert colours.setdefault(SPOKEN[n], (line.get_color(), line.get_linestyle())) == (
                line.get_color(),
                line.get_linestyle(),
            )
            times, values = line.get_data()
            np.testing.assert_allclose(times[1:-1], np.array(found.starts) + 1)
            np.testing.assert_allclose(values[1:-1], found.scores[:, number, n])
            assert (times[0], times[-1]) == (0.0, found.seconds)
    assert len(set(colours.values())) == len(colours)


def test_windows_unlike_the_training_clips_are_hatched(tmp_path: Path) -> None:
    found = made_up([0, 1, 0, 1], window=2.0)
    found.video = str(film(tmp_path / "clip.mp4", 2.0))
    assert not [patch for panel in draw(found).axes[1:] for patch in panel.patches]
    found.novelty = [0.5, 2.0, 0.5, 0.5]
    panel = draw(found).axes[-1]
    (patch,) = panel.patches
    assert (patch.get_x(), patch.get_x() + patch.get_width()) == tuple(found.edges()[1:3])
    assert patch.get_hatch()
    assert [text.get_text() for text in panel.texts] == ["hatched: unlike the training clips"]


def test_a_long_figure_draws_means(tmp_path: Path) -> None:
    found = made_up([0, 1] * 450, window=2.0)
    found.video = str(film(tmp_path / "clip.mp4", 2.0))
    figure = draw(found)
    assert figure.texts[0].get_text().startswith("clip.mp4 · 901.0 s · 900 windows of 2 s, drawn as means over 3:")
    line = figure.axes[-1].lines[0]
    times, values = line.get_data()
    assert line.get_label().endswith("playing flute")
    assert len(times) == 302
    assert times[1:4] == pytest.approx([1.75, 5.0, 8.0])
    assert values[1:4] == pytest.approx([(0.8 * 2 + 0.1) / 3, (0.8 + 0.1 * 2) / 3, (0.8 * 2 + 0.1) / 3])
    assert np.diff(times).min() > 0


@pytest.mark.parametrize(
    "kind", [lambda p: film(p, 0.5), lambda p: film(p, 2.0, fps=0.5), lambda p: film(p, 60.0, fps=1)]
)
def test_a_figure_of_any_length(kind: Callable[[Path], Path], task: Classify, tmp_path: Path) -> None:
    found = classify_video(task, kind(tmp_path / "clip.mp4"))
    listed = write_classification(found, tmp_path)
    image = np.asarray(Image.open(tmp_path / listed["picture"]).convert("RGB"))
    assert image.shape[1] == 1320
    assert image.std() > 30
    assert len(listed["whole"]["all"]) == len(SPOKEN)  # fewer classes than were asked for


def test_what_cannot_be_written(task: Classify, tmp_path: Path) -> None:
    found = classify_video(task, film(tmp_path / "clip.mp4", 2.0))
    with pytest.raises(UserError, match="cannot be written: No such file or directory; choose another"):
        write_classification(found, tmp_path / "nowhere")


def test_real_clips(real_clips: Path, task: Classify) -> None:
    bunny = classify_video(task, real_clips / "bigbuckbunny.mp4")
    assert bunny.starts[:4] == [0.0, 1.0, 2.0, 3.0]
    assert bunny.seconds == pytest.approx(5.312, abs=1e-2)
    still = classify_video(task, real_clips / "music_duet_1.mp4")
    assert still.starts == [0.0, 1.0]
    assert np.isfinite(still.scores).all()
    bikes = classify_video(task, real_clips / "bikes.mp4")
    assert (bikes.modalities, len(bikes.starts)) == (("image",), 9)
    assert bikes.notes[0].startswith("the file has no audio: classified by its images alone")
