"""What `predict.py task=segment` makes of a video: masks, squares without seams, a film with a legend, and a list."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from deepavfusion.figures.pixels import highlight, palette
from deepavfusion.inference.segment import Segmentation, segment_video
from deepavfusion.inference.tasks import load_task
from deepavfusion.inference.tiles import cover, decide_enlarged
from deepavfusion.inference.write.film import film_times
from deepavfusion.inference.write.segmentation import LEGEND_GROUND, draw, legend, read_mask, shares, write_segmentation
from deepavfusion.media import Media
from deepavfusion.media.encode import write_mp4
from deepavfusion.models.segmenter import decide, probabilities
from deepavfusion.tasks.segment import Segment
from deepavfusion.transforms.audio import SAMPLE_RATE, LogMel, extend_by_mirror
from deepavfusion.transforms.image import Normalise
from deepavfusion.utils.errors import UserError
from helpers.checkpoints import SEEN, SIZE, write_segmenter
from helpers.errors import refusal
from helpers.media import coloured_noise, noise, read_audio, read_frames, snr, write_unusable, write_video

WINDOW = SAMPLE_RATE
WIDE = (64, 128)  # height and width of an image that three squares cover


@pytest.fixture(scope="module")
def ckpts(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    folder = tmp_path_factory.mktemp("ckpts")
    return {n: write_segmenter(folder / f"{n}.ckpt", n) for n in (1, 5)}


@pytest.fixture
def tasks(ckpts: dict[int, Path]) -> dict[int, Segment]:
    return {n: load_task(path) for n, path in ckpts.items()}


def film(
    path: Path, height: int = SIZE, width: int = SIZE, seconds: float = 2.4, fps: float = 10, **sound: Any
) -> Path:
    """Noise to see and to hear."""
    rate = sound.get("rate", SAMPLE_RATE)
    waveform = noise(sound.get("heard", seconds), rate, sound.get("channels", 1))
    write_mp4(path, coloured_noise(round(seconds * fps), height, width), fps, waveform, rate, audio_bit_rate=128_000)
    return path


def masks_of(found: Segmentation) -> np.ndarray:
    return np.stack(list(found.masks))


def gives(task: Segment, monkeypatch: pytest.MonkeyPatch, *logits: float) -> None:
    """The network says the same of every pixel."""

    def forward(image: Tensor, audio: Tensor) -> Tensor:
        return torch.tensor(logits).view(1, -1, 1, 1).expand(len(image), -1, SIZE, SIZE)

    monkeypatch.setattr(task.net, "forward", forward)


def every_mask(*args: Any, **kwargs: Any) -> list[np.ndarray]:
    return list(segment_video(*args, **kwargs).masks)


# ---------------------------------------------------------------- one square


def by_hand(task: Segment, path: Path, moment: float, begin: float) -> Tensor:
    """The network's logits for an image of its own size and the window from `begin` on, s."""
    image = torch.from_numpy(read_frames(path, [moment])).permute(0, 3, 1, 2)
    sound = extend_by_mirror(read_audio(path, begin, WINDOW / SAMPLE_RATE), WINDOW)
    with torch.no_grad():
        return task.net(Normalise()(image), LogMel()(sound[None]))


@pytest.mark.parametrize("num_classes", [1, 5])
def test_a_mask_is_the_networks_own_decision(num_classes: int, tasks: dict[int, Segment], tmp_path: Path) -> None:
    path, task = film(tmp_path / "a.mp4"), tasks[num_classes]
    found = segment_video(task, path, batch_size=5)
    assert (found.height, found.width, found.masks_per_second) == (SIZE, SIZE, 5)
    assert found.classes == (SEEN if num_classes > 1 else None)
    assert found.seconds == pytest.approx(2.4, abs=1e-3)
    assert found.times == pytest.approx([n / 5 for n in range(12)])
    masks = masks_of(found)
    assert (masks.shape, masks.dtype) == ((12, SIZE, SIZE), np.uint8)
    assert set(np.unique(masks)) == set(range(max(num_classes, 2)))
    # The window is centred on the moment; the first and the last are moved into the 2.4 s of sound.
    for n, begin in ((0, 0.0), (2, 0.0), (5, 0.5), (9, 1.3), (11, 1.4)):
        expected = decide(by_hand(task, path, n / 5, begin))[0].numpy()
        assert (masks[n] == expected).mean() > 0.999
    assert (masks[5] != decide(by_hand(task, path, 1.0, 1.3))[0].numpy()).any()  # another sound, another mask


def test_a_picture_up_to_four_to_three_is_seen_whole(tasks: dict[int, Segment], tmp_path: Path) -> None:
    for height, width in ((96, 128), (128, 96), (120, 120)):
        path = film(tmp_path / "a.mp4", height, width, seconds=0.4)
        masks = masks_of(segment_video(tasks[5], path))
        (frame,) = read_frames(path, [0.2])
        squeezed = Image.fromarray(frame).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        sound = extend_by_mirror(read_audio(path, 0.0, 1.0), WINDOW)
        with torch.no_grad():
            pixels = torch.from_numpy(np.array(squeezed)).permute(2, 0, 1)[None]
            found = probabilities(tasks[5].net(Normalise()(pixels), LogMel()(sound[None])))
        expected = F.interpolate(found, size=(height, width), mode="bilinear", antialias=True).argmax(dim=1)[0]
        assert masks.shape == (2, height, width)
        assert (masks[1] == expected.numpy()).mean() > 0.999


def test_deciding_class_by_class_is_deciding_at_once() -> None:
    torch.manual_seed(0)
    for count in (2, 3, 40):
        found = (3 * torch.randn(count, 20, 30)).softmax(dim=0)
        found[1] = found[0]  # a tie goes to the first
        found /= found.sum(dim=0)
        for size in ((20, 30), (77, 90), (10, 12)):
            whole = F.interpolate(found[None], size=size, mode="bilinear", antialias=True)[0]
            assert torch.equal(decide_enlarged(found, *size), whole.argmax(dim=0).byte())
    binary = torch.tensor([[[0.5, 0.51], [0.2, 0.9]]])
    assert decide_enlarged(binary, 2, 2).tolist() == [[0, 1], [0, 1]]


# ---------------------------------------------------------------- several squares


@pytest.mark.parametrize(
    ("height", "width", "squares"),
    [
        (300, 400, 1),
        (400, 300, 1),
        (300, 300, 1),
        (300, 402, 2),
        (720, 1280, 2),
        (1280, 720, 2),
        (64, 128, 3),
        (272, 640, 3),
        (1080, 2400, 3),
        (100, 1000, 12),
    ],
)
@pytest.mark.parametrize("size", [32, 224])
def test_squares_cover_the_picture(height: int, width: int, squares: int, size: int) -> None:
    tiling = cover(height, width, size)
    assert len(tiling.views) == len(tiling.corners) == len(tiling.weights) == squares
    if squares == 1:
        assert (tiling.rows, tiling.columns) == (size, size)
        assert (tiling.weights == 1).all()
        return
    wide = width > height
    short, long = (tiling.rows, tiling.columns) if wide else (tiling.columns, tiling.rows)
    assert (short, long) == (size, round(size * max(height, width) / min(height, width)))
    sums = tiling.merge(torch.ones(squares, 2, size, size))
    torch.testing.assert_close(sums, torch.ones(2, tiling.rows, tiling.columns))
    starts = [corner[1 if wide else 0] for corner in tiling.corners]
    assert (starts[0], starts[-1] + size) == (0, long)
    assert np.ptp(np.diff(starts)) <= 1  # evenly
    assert max(np.diff(starts)) <= math.ceil(size * 7 / 8)
    fades = tiling.weights[:, 0, 0] if wide else tiling.weights[:, 0, :, 0]
    overlap = starts[0] + size - starts[1]
    for n, fade in enumerate(fades):
        assert fade.min() > 0
        assert fade[0] == 1 if n == 0 else fade[0] < 1 / overlap
        assert fade[-1] == 1 if n == squares - 1 else fade[-1] < 1 / overlap
        assert fade.diff().abs().max() < 1.5 / min(overlap, size / 2)
    for view in tiling.views:
        across, down = (view.right - view.left) * width, (view.bottom - view.top) * height
        assert across == pytest.approx(down, rel=0.51 / size)
        assert -1e-9 < view.left < view.right < 1 + 1e-9
        assert -1e-9 < view.top < view.bottom < 1 + 1e-9


def test_merged_squares_give_the_whole_back() -> None:
    tiling = cover(64, 150, 32)
    whole = torch.rand(3, tiling.rows, tiling.columns)
    parts = torch.stack([whole[:, top : top + 32, left : left + 32] for top, left in tiling.corners])
    torch.testing.assert_close(tiling.merge(parts), whole)
    # Where neighbours contradict each other, one fades into the other.
    contradiction = torch.tensor([0.0, 1.0, 0.0]).view(3, 1, 1, 1).expand(3, 1, 32, 32)
    assert cover(64, 150, 32).merge(contradiction).diff(dim=2).abs().max() < 0.15


@pytest.mark.parametrize("tall", [False, True])
def test_each_square_sees_its_part_and_marks_it(
    tall: bool, tasks: dict[int, Segment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Red, green and blue, a third of the image each; the network marks what is green."""
    height, width = (256, 96) if tall else (96, 256)
    image = np.zeros((4, 96, 256, 3), np.uint8)
    for n, part in enumerate(np.array_split(image, 3, axis=2)):
        part[..., n] = 200
    write_mp4(tmp_path / "a.mp4", image.swapaxes(1, 2) if tall else image, 4, noise(1.0), crf=1)
    seen = []

    def forward(image: Tensor, audio: Tensor) -> Tensor:
        seen.append(image)
        assert image.shape[1:] == (3, SIZE, SIZE)
        assert len(audio) == len(image)
        pixels = Normalise().reverse(image)
        return 20 * (pixels[:, 1:2] - pixels[:, :1] - pixels[:, 2:])

    monkeypatch.setattr(tasks[1].net, "forward", forward)
    masks = masks_of(segment_video(tasks[1], tmp_path / "a.mp4", 2, batch_size=1))
    assert [len(image) for image in seen] == [3, 3]
    means = Normalise().reverse(seen[0]).mean(dim=(2, 3))
    assert means.argmax(dim=1).tolist() == [0, 1, 2]
    assert masks.shape == (2, height, width)
    green = np.zeros((96, 256), bool)
    green[:, 86:171] = True
    assert ((masks[0] > 0) == (green.T if tall else green)).mean() > 0.97
    assert (masks[0] == masks[1]).mean() > 0.97


def test_a_constant_network_gives_a_constant_mask(
    tasks: dict[int, Segment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = film(tmp_path / "a.mp4", *WIDE, seconds=0.6)
    for logit, value in ((0.1, 1), (-0.1, 0)):
        gives(tasks[1], monkeypatch, logit)
        assert (masks_of(segment_video(tasks[1], path)) == value).all()
    gives(tasks[5], monkeypatch, 0.0, 0.1, 0.3, 0.2, -1.0)
    assert (masks_of(segment_video(tasks[5], path)) == 2).all()


# ---------------------------------------------------------------- moments and sound


def test_a_long_video_goes_through_in_batches(
    tasks: dict[int, Segment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = film(tmp_path / "a.mp4", *WIDE, seconds=7.3, fps=4)
    sizes: list[int] = []
    calls: list[tuple[int, int]] = []

    def forward(image: Tensor, audio: Tensor) -> Tensor:
        sizes.append(len(image))
        return torch.zeros(len(image), 1, SIZE, SIZE)

    monkeypatch.setattr(tasks[1].net, "forward", forward)
    found = segment_video(tasks[1], path, 3, batch_size=4, on_progress=lambda *done: calls.append(done))
    assert sizes == []  # nothing happens before a mask is asked for
    next(found.masks)
    assert sizes == [12]
    assert len(list(found.masks)) == 21
    assert sizes == [12] * 5 + [6]  # three squares each
    assert calls == [(n, 22) for n in (4, 8, 12, 16, 20, 22)]
    assert found.times[-1] == pytest.approx(7.0)


def test_sound_shorter_than_the_window_is_mirrored(
    tasks: dict[int, Segment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = film(tmp_path / "a.mp4", seconds=0.4)
    heard = []

    def forward(image: Tensor, audio: Tensor) -> Tensor:
        heard.append(audio)
        return torch.zeros(len(image), 1, SIZE, SIZE)

    monkeypatch.setattr(tasks[1].net, "forward", forward)
    assert masks_of(segment_video(tasks[1], path)).shape[0] == 2
    once = read_audio(path, 0.0, 1.0)
    mirrored = torch.cat([once, once.flip(0), once])[:WINDOW]
    torch.testing.assert_close(heard[0], LogMel()(mirrored.expand(2, -1)))


def test_picture_and_sound_of_different_lengths(tasks: dict[int, Segment], tmp_path: Path) -> None:
    longer = segment_video(tasks[1], film(tmp_path / "a.mp4", seconds=1.0, heard=2.0), 2)
    assert (longer.seconds, longer.times) == (pytest.approx(2.0, abs=1e-3), [0.0, 0.5, 1.0, 1.5])
    shorter = segment_video(tasks[1], film(tmp_path / "b.mp4", seconds=2.0, heard=1.2), 2)
    assert (shorter.seconds, shorter.times) == (pytest.approx(2.0, abs=1e-3), [0.0, 0.5, 1.0, 1.5])
    assert masks_of(longer).shape == masks_of(shorter).shape == (4, SIZE, SIZE)
    rarely = segment_video(tasks[1], tmp_path / "a.mp4", 0.25)
    assert rarely.times == [0.0]


def test_what_cannot_be_segmented(tasks: dict[int, Segment], tmp_path: Path) -> None:
    for name, words in write_unusable(tmp_path).items():
        text = refusal(every_mask, tasks[1], tmp_path / name)
        assert words in text
        assert str(tmp_path / name) in text
    for rate in (0, -1, 1001, math.nan, math.inf):
        text = refusal(every_mask, tasks[1], tmp_path / "whole.mp4", rate)
        assert f"masks_per_second is {rate!r}, expected a number above 0" in text


def test_checkpoints_that_do_not_fit(tasks: dict[int, Segment], tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", noise(1.0))
    nameless = load_task(write_segmenter(tmp_path / "a.ckpt", 5, ["background", "dog"]))
    assert "the checkpoint names 2 classes and its network has 5" in refusal(every_mask, nameless, path)
    other = torch.load(tmp_path / "a.ckpt", weights_only=True)
    torch.save({**other, "record": {**other["record"], "task": "separate"}}, tmp_path / "b.ckpt")
    with pytest.raises(UserError, match="is a checkpoint of separate, task=segment needs one of segment"):
        load_task(tmp_path / "b.ckpt", "segment")


# ---------------------------------------------------------------- files


@pytest.fixture(scope="module", params=[1, 5])
def written(
    request: pytest.FixtureRequest, ckpts: dict[int, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[int, Path, Segmentation, np.ndarray, dict[str, Any]]]:
    """Classes, folder, segmentation, masks and list of a wide video of 2.4 s in stereo."""
    folder = tmp_path_factory.mktemp("written")
    video = film(folder / "clip.mp4", *WIDE, rate=44_100, channels=2)
    task = load_task(ckpts[request.param])
    masks = masks_of(segment_video(task, video))
    (folder / "clip_masks").mkdir()
    for name in ("0000123.png", "0000200.png", "notes.png", "12.png"):
        (folder / "clip_masks" / name).touch()
    before = {"picture": "clip_segmentation.png", "masks": "clip_masks"}
    (folder / "clip_segmentation.json").write_text(json.dumps(before))  # by an earlier call
    segmentation = segment_video(task, video, batch_size=5)
    listed = write_segmentation(segmentation, folder)
    return request.param, folder, segmentation, masks, listed


def test_mask_files(written: tuple[int, Path, Segmentation, np.ndarray, dict[str, Any]]) -> None:
    num_classes, folder, _, masks, listed = written
    names = [f"{200 * n:07d}.png" for n in range(12)]
    assert [moment["file"] for moment in listed["moments"]] == [f"clip_masks/{name}" for name in names]
    there = {path.name for path in (folder / "clip_masks").iterdir()}
    assert there == {*names, "notes.png", "12.png"}  # that of another moment is gone
    for name, mask in zip(names, masks, strict=True):
        with Image.open(folder / "clip_masks" / name) as image:
            values = np.asarray(image)
            assert image.size == (WIDE[1], WIDE[0])
            if num_classes == 1:
                assert image.mode == "L"
                assert (values == 255 * mask).all()
            else:
                assert image.mode == "P"
                assert (values == mask).all()
                assert image.getpalette()[: 3 * num_classes] == palette(num_classes).ravel().tolist()
        assert (read_mask(folder / "clip_masks" / name) == mask).all()


def test_list(written: tuple[int, Path, Segmentation, np.ndarray, dict[str, Any]]) -> None:
    num_classes, folder, _, masks, listed = written
    read = json.loads((folder / listed["list"]).read_text())
    assert read == {key: value for key, value in listed.items() if key != "list"}
    assert (read["video"], read["seconds"]) == (str(folder / "clip.mp4"), pytest.approx(2.4, abs=2e-3))
    assert (read["width"], read["height"], read["masks_per_second"]) == (WIDE[1], WIDE[0], 5)
    assert read["classes"] == (SEEN if num_classes > 1 else None)
    assert [moment["time"] for moment in read["moments"]] == [round(0.2 * n, 3) for n in range(12)]
    for moment, mask in zip(read["moments"], masks, strict=True):
        assert moment["share"] == pytest.approx((mask > 0).mean(), abs=1e-6)
        if num_classes == 1:
            assert "classes" not in moment
        else:
            expected = {SEEN[n]: (mask == n).mean() for n in np.unique(mask) if n}
            assert moment["classes"] == pytest.approx(expected, abs=1e-6)
            assert list(moment["classes"].values()) == sorted(moment["classes"].values(), reverse=True)
    assert shares(read) == pytest.approx(
        {SEEN[n]: (masks == n).mean() for n in range(1, num_classes)} if num_classes > 1 else {}, abs=1e-5
    )


def test_the_film_shows_the_masks_and_plays_the_sound(
    written: tuple[int, Path, Segmentation, np.ndarray, dict[str, Any]],
) -> None:
    num_classes, folder, _, masks, listed = written
    assert listed["film"] == "clip_segmentation.mp4"
    strip = legend({name: palette(5)[SEEN.index(name)] for name in shares(listed)}, WIDE[1], WIDE[0])
    assert len(strip) == (0 if num_classes == 1 else 36)  # four names in two lines
    with Media(folder / listed["film"]) as media:
        info = media.info
        assert (info.width, info.height, info.frames, info.fps) == (WIDE[1], WIDE[0] + len(strip), 24, 10)
        assert (info.sample_rate, info.channels) == (44_100, 1)
        sound = media.audio(0.0, 2.4, 44_100)
        frames = media.frames([0.0, 0.4, 0.5, 2.3]).astype(int)
    original = read_audio(folder / "clip.mp4", 0.0, 2.4, 44_100)
    assert len(sound) == pytest.approx(len(original), abs=1024)
    length = min(len(sound), len(original))
    assert snr(sound[:length], original[:length]) > 10
    images = read_frames(folder / "clip.mp4", [0.0, 0.4, 0.5, 2.3]).astype(int)
    colours = palette(num_classes)
    for frame, image, nearest in zip(frames, images, (0, 2, 2, 11), strict=True):
        mask = masks[nearest]
        shown = highlight(image.astype(np.uint8), mask, colours).astype(int)
        error = np.abs(frame[: WIDE[0]] - shown).mean()
        assert error < 36  # colours are stored at half the resolution, and outlines are as fine as a pixel
        assert error < 0.5 * np.abs(frame[: WIDE[0]] - 0.45 * image).mean()
        if num_classes > 1:
            assert np.abs(frame[WIDE[0] :] - strip).mean() < 15


def test_the_film_shows_the_nearest_mask(
    tasks: dict[int, Segment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Grey that grows lighter; the left half sounds before 1 s, the right half from then on."""
    grey = np.broadcast_to(np.arange(60, 140, 4, dtype=np.uint8)[:, None, None, None], (20, SIZE, SIZE, 3))
    write_mp4(tmp_path / "a.mp4", grey, 10, noise(2.0), crf=1)

    def forward(image: Tensor, audio: Tensor) -> Tensor:
        light = Normalise().reverse(image).mean(dim=(1, 2, 3)) * 255 > 98
        left = torch.where(torch.arange(SIZE) < SIZE // 2, 1.0, -1.0)
        return torch.where(light[:, None], -left, left)[:, None, None].expand(-1, 1, SIZE, -1)

    monkeypatch.setattr(tasks[1].net, "forward", forward)
    listed = write_segmentation(segment_video(tasks[1], tmp_path / "a.mp4", 2), tmp_path)
    frames = read_frames(tmp_path / listed["film"], [n / 10 for n in range(20)]).astype(int)
    coloured = np.ptp(frames, axis=3) > 60
    left, right = coloured[:, :, :28].mean(axis=(1, 2)), coloured[:, :, 36:].mean(axis=(1, 2))
    assert [moment["share"] for moment in listed["moments"]] == [0.5] * 4
    assert ((left > 0.99) == (np.arange(20) < 8)).all()  # 0.7 s is nearer to 0.5 s, 0.8 s to 1 s
    assert ((right > 0.99) == (np.arange(20) >= 8)).all()
    assert (left + right < 1.01).all()


def test_figure(written: tuple[int, Path, Segmentation, np.ndarray, dict[str, Any]]) -> None:
    num_classes, folder, segmentation, masks, listed = written
    image = np.asarray(Image.open(folder / "clip_segmentation.png").convert("RGB"))
    assert image.shape[1] == 1661
    assert image.std() > 30
    figure = draw(segmentation, folder, listed)
    above, below = figure.axes[:6], figure.axes[6:]
    assert [axis.get_title() for axis in above] == [f"at {t} s" for t in (0.2, 0.6, 1.0, 1.4, 1.8, 2.2)]
    for axis, n in zip(below, range(1, 12, 2), strict=True):
        assert axis.get_xlabel() == f"{100 * (masks[n] > 0).mean():.0f} % of the pixels"
    texts = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert texts == list(shares(listed))
    assert len(texts) == num_classes - 1


def test_one_moment_is_enough(tasks: dict[int, Segment], tmp_path: Path) -> None:
    video = film(tmp_path / "a.mp4", 50, 34, seconds=0.4, fps=60)
    listed = write_segmentation(segment_video(tasks[5], video, 1), tmp_path)
    assert [moment["file"] for moment in listed["moments"]] == ["a_masks/0000000.png"]
    with Media(tmp_path / listed["film"]) as media:
        assert (media.info.frames, media.info.fps, media.info.width) == (12, 30, 34)


def test_the_film_is_small_enough_and_no_slower_than_the_masks(
    tasks: dict[int, Segment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gives(tasks[1], monkeypatch, 1.0)
    frames = np.full((2, 1000, 1202, 3), 100, np.uint8)
    write_mp4(tmp_path / "a.mp4", frames, 2, noise(1.0))
    calls: list[tuple[int, int]] = []
    listed = write_segmentation(segment_video(tasks[1], tmp_path / "a.mp4"), tmp_path, lambda *n: calls.append(n))
    with Media(tmp_path / listed["film"]) as media:
        assert (media.info.height, media.info.width) == (720, 866)
        assert (media.info.frames, media.info.fps) == (6, 6)
    with Image.open(tmp_path / listed["moments"][4]["file"]) as image:
        assert image.size == (1202, 1000)
    assert calls == [(n, 6) for n in range(1, 7)]


@pytest.mark.parametrize(
    ("fps", "masks", "expected"),
    [(25, 5, 25), (50, 5, 25), (60, 5, 30), (29.97, 5, 29.97), (2, 5, 6), (4, 50, 28), (0, 5, 30), (0.01, 1, 1)],
)
def test_pictures_a_second(fps: float, masks: float, expected: float, tmp_path: Path) -> None:
    from dataclasses import replace

    with Media(film(tmp_path / "a.mp4", seconds=0.2)) as media:
        info = replace(media.info, fps=fps, video_duration=2.0)
    times, found = film_times(info, 3.0, masks)
    assert found == pytest.approx(expected)
    assert len(times) == round(3 * expected)
    assert film_times(info, 3.0)[1] == pytest.approx(min(fps, expected) or 30)


@pytest.mark.parametrize(
    ("rate", "channels"),
    [
        *[(8_000, 1), (48_000, 6)],
        *(pytest.param(*each, marks=pytest.mark.full) for each in [(16_000, 2), (22_050, 1), (44_100, 2)]),
    ],
)
def test_the_sound_keeps_its_rate(
    rate: int, channels: int, tasks: dict[int, Segment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gives(tasks[1], monkeypatch, 1.0)
    video = film(tmp_path / "a.mp4", seconds=1.0, rate=rate, channels=channels)
    listed = write_segmentation(segment_video(tasks[1], video, 2), tmp_path)
    with Media(tmp_path / listed["film"]) as media:
        assert (media.info.sample_rate, media.info.channels) == (rate, 1)
        assert media.info.audio_duration == pytest.approx(1.0, abs=2100 / rate)
        sound = media.audio(0.0, 1.0, rate)
    original = read_audio(video, 0.0, 1.0, rate)
    length = min(len(sound), len(original))
    assert snr(sound[:length], original[:length]) > 3


def test_legend() -> None:
    colours = palette(5)
    names = {name: colours[n] for n, name in enumerate(SEEN) if n}
    assert legend({}, 128, 64).shape == (0, 128, 3)
    wide, narrow = legend(names, 640, 360), legend(names, 128, 360)
    assert (wide.shape, narrow.shape) == ((18, 640, 3), (36, 128, 3))
    for strip in (wide, narrow):
        for colour in names.values():
            assert (strip == colour).all(axis=2).sum() == 144  # a square of 12 × 12 pixels; letters are white
    assert (wide[:, 600:] == LEGEND_GROUND).all()
    assert (legend({"dog": colours[1]}, 640, 360) != legend({"cat": colours[1]}, 640, 360)).any()
    assert legend(names, 1280, 720).shape == (36, 1280, 3)  # larger letters in a larger image
    many = palette(71)
    few = legend({f"class {n}": many[n] for n in range(1, 71)}, 640, 360)
    assert len(few) <= 120
    assert (few == many[1]).all(axis=2).any()
    assert not (few == many[70]).all(axis=2).any()
    assert (few == 255).all(axis=2).any()  # how many more there are


def test_a_folder_that_cannot_be_written(tasks: dict[int, Segment], tmp_path: Path) -> None:
    video = film(tmp_path / "a.mp4", seconds=0.4)
    (tmp_path / "a_masks").touch()
    with pytest.raises(UserError, match="a_masks is there, and is no earlier result"):
        write_segmentation(segment_video(tasks[1], video), tmp_path)


def test_real_clips(real_clips: Path, tasks: dict[int, Segment]) -> None:
    bunny = segment_video(tasks[5], real_clips / "bigbuckbunny.mp4", 0.5)
    assert (bunny.seconds, bunny.times) == (pytest.approx(5.312, abs=1e-3), [0.0, 2.0, 4.0])
    assert masks_of(bunny).shape == (3, 720, 1280)
    still = segment_video(tasks[1], real_clips / "music_duet_1.mp4", 1)
    assert masks_of(still).shape == (3, 230, 256)
    assert "no audio: the file has no audio stream" in refusal(every_mask, tasks[1], real_clips / "bikes.mp4")
