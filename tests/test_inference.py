"""What predict.py calls: checkpoints opened by themselves, windows without seams, and sources of whole videos."""

from __future__ import annotations

import json
import math
import sys
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from deepavfusion.inference import sliding
from deepavfusion.inference.boxes import Box, alone, read_boxes, split_frame, view_of
from deepavfusion.inference.growing import GrowingArray
from deepavfusion.inference.separate import Separation, separate_video, source_mask
from deepavfusion.inference.sliding import Overview, overlap_add, window_starts
from deepavfusion.inference.tasks import load_task
from deepavfusion.inference.write.separation import draw, write_separation
from deepavfusion.media import Media
from deepavfusion.media.encode import write_mp4
from deepavfusion.models.separator import target_mask
from deepavfusion.tasks.separate import Separate
from deepavfusion.transforms.audio import N_FFT, SAMPLE_RATE, LogMel, MelMask
from deepavfusion.utils.errors import UserError
from helpers.checkpoints import SEPARATOR, write_separator
from helpers.errors import refusal
from helpers.media import noise, read_audio, snr, write_stream, write_unusable, write_video

WINDOW = 3 * SAMPLE_RATE


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_separator(tmp_path_factory.mktemp("ckpt") / "last.ckpt")


@pytest.fixture
def task(ckpt: Path) -> Separate:
    return load_task(ckpt, "separate")


def always(task: Separate, monkeypatch: pytest.MonkeyPatch, logit: float) -> None:
    """The network gives this logit everywhere."""

    def forward(image: Tensor, mixture: Tensor) -> Tensor:
        return torch.full((len(image), 1, 128, 192), logit)

    monkeypatch.setattr(task.net, "forward", forward)


# ---------------------------------------------------------------- checkpoints


def test_a_checkpoint_opens_by_itself(ckpt: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = load_task(ckpt, "separate")
    assert capsys.readouterr().out == ""  # in particular no "encoder from scratch"
    assert isinstance(task, Separate)
    assert not any(module.training for module in task.modules())
    assert task.record["data"] == {"image_size": 64, "audio_seconds": 3.0}
    assert task.hparams["mask"] == "ratio"
    saved = torch.load(ckpt, weights_only=True)["state_dict"]
    assert saved.keys() == task.state_dict().keys()
    assert all(torch.equal(value, saved[name]) for name, value in task.state_dict().items())
    assert type(load_task(ckpt)) is Separate


def test_what_is_no_checkpoint_of_the_task(ckpt: Path, tmp_path: Path) -> None:
    whole = torch.load(ckpt, weights_only=True)
    files = {
        "missing.ckpt": None,
        "text.ckpt": b"a checkpoint?",
        "cut.ckpt": ckpt.read_bytes()[:5000],
        "published.pth": {"state_dict": whole["state_dict"]},
        "bare.ckpt": whole["state_dict"],
        "list.ckpt": [torch.zeros(1)],
        "other.ckpt": {**whole, "record": {**whole["record"], "task": "pretrain"}},
        "less.ckpt": {**whole, "state_dict": dict(list(whole["state_dict"].items())[1:])},
        "newer.ckpt": {**whole, "record": {**whole["record"], "model": {**SEPARATOR, "new_key": 1}}},
        "encoder.ckpt": {**whole, "record": {**whole["record"], "model": SEPARATOR["net"]}},
    }
    said = {}
    for name, content in files.items():
        if isinstance(content, bytes):
            (tmp_path / name).write_bytes(content)
        elif content is not None:
            torch.save(content, tmp_path / name)
        with pytest.raises(UserError) as error:
            load_task(tmp_path / name, "separate")
        said[name] = str(error.value)
        assert str(tmp_path / name) in said[name]
    example = "e.g. logs/separate/latest/checkpoints/last.ckpt"
    assert "does not exist" in said["missing.ckpt"]
    assert example in said["missing.ckpt"]
    assert "truncated, damaged or something else" in said["text.ckpt"]
    assert "truncated, damaged or something else" in said["cut.ckpt"]
    for name in ("published.pth", "bare.ckpt", "list.ckpt"):
        assert "has no record of its model" in said[name]
    assert "is a checkpoint of pretrain, task=separate needs one of separate; " + example in said["other.ckpt"]
    for name, what in (
        ("less.ckpt", "fusion_tokens is in the model and not in the file"),
        ("newer.ckpt", "new_key"),
        ("encoder.ckpt", "DeepAVFusion"),
    ):
        assert "does not fit this version" in said[name]
        assert what in said[name]


def test_weights_alone_are_refused(ckpt: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file(torch.load(ckpt, weights_only=True)["state_dict"], tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=r"has no record of its model.*model\.pretrained"):
        load_task(tmp_path / "a.safetensors", "separate")


@pytest.mark.parametrize(
    "target",
    [
        "evil_module.run",
        "deepavfusion_evil.Separate",
        "deepavfusion.weights.weights.Path",  # ours, but it comes from elsewhere
        "deepavfusion.weights.file.pickle.loads",
        "deepavfusion.weights.weights.LoadReport",  # ours, but no network
        "deepavfusion.media.encode.write_mp4",
        "deepavfusion.models.nothing.Here",
        3,
    ],
)
@pytest.mark.parametrize("where", ["task", "net", "list"])
def test_nothing_foreign_is_built_or_imported(
    target: Any, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("evil_module", "deepavfusion_evil"):
        (tmp_path / f"{name}.py").write_text("open('ran', 'w')\ndef run(**_): open('ran', 'w')\nSeparate = run\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    evil = {"_target_": target}
    model = {
        "task": {**SEPARATOR, **evil},
        "net": {**SEPARATOR, "net": evil},
        "list": {**SEPARATOR, "betas": [{"a": evil}]},
    }[where]
    path = write_separator(tmp_path / "a.ckpt", model)
    with pytest.raises(UserError, match="wants to build"):
        load_task(path, "separate")
    assert not (tmp_path / "ran").exists()
    assert not {"evil_module", "deepavfusion_evil"} & set(sys.modules)


# ---------------------------------------------------------------- windows and seams


@pytest.mark.parametrize("seconds", [1.2, 2.9, 3.0, 3 + 1 / SAMPLE_RATE, 3.01, 4.5, 6.0, 10.37, 60.0])
def test_weights_sum_to_one_and_change_slowly(seconds: float) -> None:
    length = round(seconds * SAMPLE_RATE)
    starts = window_starts(length, WINDOW)
    assert starts[-1] + WINDOW == max(length, WINDOW)
    assert max(np.diff(starts), default=0) <= WINDOW // 2
    # Window n is 1 in row n, so that the rows of the result are the weights.
    rows = torch.eye(len(starts), dtype=torch.float64)[..., None].expand(-1, -1, WINDOW)
    weights = torch.cat(list(overlap_add(zip(starts, rows, strict=True), length)), dim=-1)
    torch.testing.assert_close(weights.sum(dim=0), torch.ones(length, dtype=torch.float64))
    assert weights.min() >= 0
    if length > WINDOW:  # the ends belong to the first and the last window; a fade takes half a window at least
        assert weights[0, 0] > 1 - 1e-6
        assert weights[-1, -1] > 1 - 1e-6
        assert weights.diff(dim=1).abs().max() < 1.01 * math.pi / WINDOW


def smooth_masks(count: int, low: float = 0.0) -> Tensor:
    """Masks [count, 1, 128, 192] that change from window to window, and slowly inside one."""
    torch.manual_seed(1)
    return F.interpolate(low + (1 - low) * torch.rand(count, 1, 3, 3), size=(128, 192), mode="bicubic").clamp(low, 1)


def chirp(seconds: float) -> Tensor:
    t = torch.arange(round(seconds * SAMPLE_RATE), dtype=torch.float64) / SAMPLE_RATE
    return (0.5 * torch.sin(2 * math.pi * (200 * t + 100 * t**2 / seconds))).float()  # 200 to 400 Hz


def test_sixty_seconds_have_no_seam() -> None:
    mixture = chirp(60.0)
    starts = window_starts(len(mixture), WINDOW)
    masks, mel_mask = smooth_masks(len(starts)), MelMask()
    estimates = [mel_mask(m[None], mixture[None, s : s + WINDOW]) for m, s in zip(masks, starts, strict=True)]
    result = torch.cat(list(overlap_add(zip(starts, estimates, strict=True), len(mixture))), dim=-1)[0]
    own = mixture.diff().abs().max()
    assert result.diff().abs().max() <= own
    inside = slice(N_FFT, -N_FFT)  # the ends of the file are no seams
    assert result[inside].diff().diff().abs().max() <= 1.01 * mixture.diff().diff().abs().max()
    hop = WINDOW // 2
    hard = torch.cat([e[0, :hop] for e in estimates])  # the same without fading
    assert hard.diff().abs().max() > 3 * own


def test_overview_holds_the_whole_length_in_few_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sliding, "COLUMNS", 100)
    overview = Overview(frames=10_000)
    for start in range(0, 10_000 - 192, 96):
        frames = torch.arange(start, start + 192.0)
        overview.add(start, frames.expand(2, 3, -1))
    assert overview.maps.shape == (2, 3, 100)
    expected = torch.arange(100) * 100 + 49.5
    # In the first and the last column, which one window covers, its middle counts more.
    torch.testing.assert_close(overview.maps[0, 0, 1:-1], expected[1:-1], rtol=0, atol=1.0)


# ---------------------------------------------------------------- masks to sound


def test_the_ratio_is_undone() -> None:
    ratio = torch.linspace(0.001, 0.999, 500)
    learned = (ratio / (1 + ratio)).logit()
    torch.testing.assert_close(source_mask(learned, "ratio"), ratio)
    assert (source_mask(torch.tensor([0.0, 3.0, 90.0]), "ratio") == 1).all()  # more than the mixture: all of it
    torch.testing.assert_close(source_mask(learned, "dominant"), learned.sigmoid())


def test_a_learned_ratio_gives_the_loudness_of_the_source(
    task: Separate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    t = np.arange(WINDOW) / SAMPLE_RATE
    low, high = (0.3 * np.sin(2 * math.pi * hertz * t).astype(np.float32) for hertz in (400, 3000))
    path = write_video(tmp_path / "a.mp4", low + high, frames=6)
    powers = [10 ** LogMel()(torch.from_numpy(x)[None]) for x in (low, high, low + high)]

    def forward(image: Tensor, mixture: Tensor) -> Tensor:
        masks = torch.cat([target_mask(source, powers[2]) for source in powers[:2]])
        return masks.clamp(1e-6, 1 - 1e-6).logit()

    monkeypatch.setattr(task.net, "forward", forward)
    found = separate_video(task, path, [[0, 0, 0.5, 1], [0.5, 0, 1, 1]])
    level = 20 * math.log10(0.3 / 2**0.5)
    assert found.levels == pytest.approx([level, level], abs=0.3)
    assert found.mixture_level == pytest.approx(level + 3.01, abs=0.3)
    for estimate, truth in zip(found.waveforms, (low, high), strict=True):
        assert snr(estimate[2000:40_000], truth[2000:40_000]) > 15


@pytest.mark.parametrize("kind", ["ratio", "dominant"])
def test_a_mel_mask_of_ones_returns_white_noise(
    kind: str, task: Separate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / "a.mp4", noise(7.3), frames=15)
    always(task, monkeypatch, 40.0)
    task.hparams["mask"] = kind
    found = separate_video(task, path, sources=2, batch_size=2)
    mixture = read_audio(path, 0.0, 7.3)
    assert found.waveforms.shape == (2, len(mixture)) == (2, 116_800)
    for estimate in found.waveforms:
        assert snr(estimate, mixture) >= 60


def test_an_stft_mask_of_ones_returns_the_mixture(
    task: Separate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ones(self: MelMask, mask: Tensor, waveform: Tensor) -> Tensor:
        return self.apply_to_bins(torch.ones(len(mask), 401, mask.shape[-1] + 1), waveform)

    monkeypatch.setattr(MelMask, "forward", ones)
    path = write_video(tmp_path / "a.mp4", noise(7.3), frames=15)
    found = separate_video(task, path, sources=1)
    assert snr(found.waveforms[0], read_audio(path, 0.0, 7.3)) >= 60


def test_a_minute_with_masks_that_change_has_no_seam(
    task: Separate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / "a.mp4", chirp(60.0).numpy(), frames=120, size=32)
    masks = iter(smooth_masks(100, low=0.01))

    def forward(image: Tensor, mixture: Tensor) -> Tensor:
        return torch.stack([next(masks) for _ in image]).log()

    monkeypatch.setattr(task.net, "forward", forward)
    calls: list[tuple[int, int]] = []
    found = separate_video(task, path, [[0, 0, 1, 1]], batch_size=4, on_progress=lambda *done: calls.append(done))
    mixture = read_audio(path, 0.0, 60.0)
    assert len(found.waveforms[0]) == len(mixture) == 60 * SAMPLE_RATE
    assert found.waveforms[0].diff().abs().max() <= mixture.diff().abs().max()
    assert found.levels[0] < found.mixture_level - 3  # the masks did something
    assert calls == [(min(n, 39), 39) for n in range(4, 43, 4)]


# ---------------------------------------------------------------- all kinds of files


@pytest.mark.parametrize(
    ("seconds", "rate", "channels"),
    [(3.2, 16_000, 2), (3.0, 44_100, 2), (4.0, 48_000, 6), (3.5, 8_000, 1), (1.2, 22_050, 1), (20.0, 11_025, 1)],
)
def test_rates_channels_and_lengths(
    seconds: float, rate: int, channels: int, task: Separate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a mask of ones the video's sound comes back, at its rate and with its length, without a shift."""
    count = round(seconds * rate)
    spectrum = np.fft.rfft(noise(seconds, rate))
    spectrum[:, np.fft.rfftfreq(count, 1 / rate) > min(3000, 0.4 * rate)] = 0  # inside both bands
    band = np.fft.irfft(spectrum, count).astype(np.float32)
    path = write_video(tmp_path / "a.mp4", np.tile(band, (channels, 1)), rate, frames=round(2 * seconds))
    always(task, monkeypatch, 40.0)
    found = separate_video(task, path, sources=1)
    with Media(path) as media:
        mixture = media.audio(0.0, 2 * seconds, rate)
    assert (found.sample_rate, found.seconds) == (rate, pytest.approx(seconds, abs=2e-4))
    assert len(found.waveforms[0]) == len(mixture) == pytest.approx(count, abs=1)
    middle = slice(rate // 20, -rate // 20)  # a filter has nothing to look at beyond the ends
    assert snr(found.waveforms[0][middle], mixture[middle]) > 40


def test_short_sound_is_mirrored_for_the_model(task: Separate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "a.mp4", noise(1.2))
    heard = []

    def forward(image: Tensor, mixture: Tensor) -> Tensor:
        heard.append(mixture)
        return torch.zeros(len(image), 1, 128, 192)

    monkeypatch.setattr(task.net, "forward", forward)
    found = separate_video(task, path, [[0, 0, 1, 1]])
    once = read_audio(path, 0.0, 1.2)
    mirrored = torch.cat([once, once.flip(0), once])[:WINDOW]
    torch.testing.assert_close(heard[0], LogMel()(mirrored[None]))
    assert found.mask.shape[-1] == math.ceil(1.2 * 64)  # and what is shown ends with the sound


@pytest.mark.parametrize("name", ["a.mp4", "live.mkv"])
def test_the_model_sees_each_box_at_the_right_moment(
    name: str, task: Separate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Brightness is time; red on the left, blue on the right. The header of a live recording knows no length."""
    frames = np.zeros((150, 64, 128, 3), np.uint8)
    frames[:, :, :64, 0] = frames[:, :, 64:, 2] = np.arange(150)[:, None, None]
    if name == "a.mp4":
        write_mp4(tmp_path / name, frames, 25, noise(6.0), crf=1)
    else:
        write_stream(tmp_path / name, noise(6.0), frames=frames, live="1")
    found = []

    def forward(image: Tensor, mixture: Tensor) -> Tensor:
        assert image.shape == (2 * len(mixture), 3, 64, 64)
        found.append(image)
        return torch.zeros(len(image), 1, 128, 192)

    monkeypatch.setattr(task.net, "forward", forward)
    separate_video(task, tmp_path / name, [[0, 0, 64, 64], [64, 0, 128, 64]], batch_size=2)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    colours = 255 * (torch.cat(found).mean(dim=(2, 3)).numpy() * std + mean)
    # Windows begin at 0, 1.5 and 3 s; their middles are 1.5, 3 and 4.5 s.
    for (left, right), moment in zip(colours.reshape(-1, 2, 3), (1.5, 3.0, 4.5), strict=False):
        assert left == pytest.approx([25 * moment, 0, 0], abs=7)
        assert right == pytest.approx([0, 0, 25 * moment], abs=7)


def test_videos_that_cannot_be_separated(task: Separate, tmp_path: Path) -> None:
    for name, words in write_unusable(tmp_path).items():
        text = refusal(separate_video, task, tmp_path / name)
        assert words in text
        assert str(tmp_path / name) in text


def test_real_clips(real_clips: Path, task: Separate) -> None:
    still = separate_video(task, real_clips / "music_duet_1.mp4")
    assert still.waveforms.shape == (2, 48_000)
    assert (still.chosen_by, len(still.boxes), still.frame.shape) == ("model", 2, (230, 256, 3))
    film = separate_video(task, real_clips / "bigbuckbunny.mp4", [[0, 0, 0.5, 1]])
    assert (film.sample_rate, film.waveforms.shape) == (48_000, (1, 254_976))  # 5.312 s
    assert "no audio" in refusal(separate_video, task, real_clips / "bikes.mp4")


# ---------------------------------------------------------------- boxes


def test_boxes_in_pixels_and_in_fractions() -> None:
    assert read_boxes([[0, 0, 320, 360], [320.5, 10, 640, 360]], 640, 360) == [(0, 0, 320, 360), (320.5, 10, 640, 360)]
    assert read_boxes([[0, 0.5, 0.25, 1]], 640, 360) == [(0, 180, 160, 360)]


@pytest.mark.parametrize(
    ("boxes", "words"),
    [
        ([[0, 0, 641, 360]], "box 1 is [0, 0, 641, 360], which is not inside the frame"),
        ([[0, 0, 0.5, 1], [-0.1, 0, 0.5, 1]], "box 2 is [-0.1, 0, 0.5, 1], which is not inside"),
        ([[100, 0, 100, 360]], "holds no pixel"),
        ([[200, 0, 100, 360]], "holds no pixel"),
        ([[0, 0, 100]], "not four numbers"),
        ([[0, 0, 100, "a"]], "not four numbers"),
        ([[0, 0, 100, float("nan")]], "not four numbers"),
        ([0, 0, 100, 100], "box 1 is 0, not four numbers"),
        ([], "not a list of boxes"),
        ("left", "not a list of boxes"),
        (5, "not a list of boxes"),
    ],
)
def test_bad_boxes(boxes: Any, words: str) -> None:
    with pytest.raises(UserError) as error:
        read_boxes(boxes, 640, 360)
    assert words in str(error.value)
    assert "640 × 360 pixels" in str(error.value)


def test_number_of_sources_and_boxes(task: Separate, tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", noise(1.0))
    assert "boxes holds 1 boxes, sources is 2" in refusal(separate_video, task, path, [[0, 0, 1, 1]], 2)
    for sources in (0, -1, 1.5):
        assert f"sources is {sources!r}" in refusal(separate_video, task, path, None, sources)
    assert "more than this model can distinguish" in refusal(separate_video, task, path, None, 17)  # of 4 × 4 patches
    assert separate_video(task, path, [[0, 0, 1, 1]]).waveforms.shape[0] == 1
    assert separate_video(task, path, sources=3).waveforms.shape[0] == 3


def seen(*boxes: tuple[float, ...]) -> list[tuple[float, ...]]:
    """Edges of what the model sees of boxes in an image of 400 × 300 pixels."""
    views = [view_of(Box(*box), 400, 300) for box in boxes]
    edges = [(400 * view.left, 300 * view.top, 400 * view.right, 300 * view.bottom) for view in views]
    return [tuple(round(edge, 6) for edge in box) for box in edges]


def test_a_box_is_seen_with_the_square_around_it() -> None:
    assert seen((100, 100, 140, 200)) == [(0, 0, 300, 300)]  # as large as in training, inside the image
    assert seen((200, 100, 240, 200)) == [(70, 0, 370, 300)]
    assert seen((0, 0, 100, 300), (300, 0, 400, 300)) == [(0, 0, 300, 300), (100, 0, 400, 300)]
    assert seen((0, 100, 400, 200)) == [(0, 0, 400, 300)]


def test_a_source_is_seen_alone() -> None:
    frame = np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)
    mean = frame.mean(axis=(0, 1)).round().astype(np.uint8)
    left, right = Box(0, 0, 4, 6), Box(3, 0, 6, 4)  # a column in both
    shown = alone(frame, left, [left, right])
    assert (shown[:, :4] == frame[:, :4]).all()
    assert (shown[:4, 4:6] == mean).all()
    assert (shown[4:, 4:] == frame[4:, 4:]).all()
    assert (shown[:, 6:] == frame[:, 6:]).all()
    assert (alone(frame, right, [left, right])[:, :3] == mean).all()
    assert (alone(frame, left, [left]) == frame).all()


def planted(rows: int = 8, columns: int = 8, *parts: tuple[slice, slice, float]) -> Tensor:
    torch.manual_seed(0)
    tokens = 0.1 * torch.randn(3, rows, columns, 16)
    for row, column, value in parts:
        tokens[:, row, column] += value * torch.randn(16)
    return tokens


def test_the_picture_is_split_where_the_tokens_differ() -> None:
    every = slice(None)
    upright = planted(8, 8, (every, slice(3, None), 1.0))
    assert split_frame(upright, 2, 800, 400) == [(0, 0, 300, 400), (300, 0, 800, 400)]
    lying = planted(8, 8, (slice(5, None), every, 1.0))
    assert split_frame(lying, 2, 800, 400) == [(0, 0, 800, 250), (0, 250, 800, 400)]
    three = planted(8, 8, (every, slice(4, None), 2.0), (slice(2, None), slice(4, None), 1.0))
    assert split_frame(three, 3, 800, 400) == [(0, 0, 400, 400), (400, 0, 800, 100), (400, 100, 800, 400)]
    assert split_frame(upright, 1, 800, 400) == [(0, 0, 800, 400)]
    narrow = planted(8, 8, (every, slice(7, None), 5.0))  # a quarter at least is on each side
    assert split_frame(narrow, 2, 800, 400) == [(0, 0, 600, 400), (600, 0, 800, 400)]


def test_the_model_chooses_the_boxes_by_its_condition(
    task: Separate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / "a.mp4", noise(5.0), frames=10)
    tokens = planted(4, 4, (slice(None), slice(3, None), 1.0))[:1].flatten(1, 2)
    monkeypatch.setattr(task.net.head, "image_tokens", lambda encoded: tokens.expand(len(encoded.image), -1, -1))
    found = separate_video(task, path)
    assert (found.chosen_by, found.boxes) == ("model", [(0, 0, 144, 96), (144, 0, 192, 96)])
    again = separate_video(task, path, [list(box) for box in found.boxes])
    assert again.chosen_by == "user"
    assert torch.equal(again.waveforms, found.waveforms)


# ---------------------------------------------------------------- files


@pytest.fixture(scope="module")
def written(ckpt: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Separation, Path, dict[str, Any]]:
    """A separation with 44.1 kHz audio longer than its video of 25 frames per second, written."""
    folder = tmp_path_factory.mktemp("written")
    frames = np.full((75, 101, 202, 3), 200, np.uint8)[:, :100]
    write_mp4(folder / "duet.mp4", frames, 25, noise(3.4, 44_100, 2) * np.hanning(149_940).astype(np.float32), 44_100)
    task = load_task(ckpt, "separate")
    found = separate_video(task, folder / "duet.mp4", [[20, 10, 100, 90], [101, 0, 202, 100]])
    return found, folder, write_separation(found, folder)


def test_sound_files_are_the_estimates(written: tuple[Separation, Path, dict[str, Any]]) -> None:
    found, folder, written_list = written
    names = [source["wav"] for source in written_list["sources"]]
    assert names == ["duet_source1.wav", "duet_source2.wav"]
    for name, waveform in zip(names, found.waveforms, strict=True):
        with wave.open(str(folder / name)) as file:
            assert (file.getframerate(), file.getnchannels(), file.getnframes()) == (44_100, 1, 149_940)
            samples = np.frombuffer(file.readframes(149_940), "<i2") / 32767
        assert np.abs(samples - waveform.numpy()).max() < 1 / 32767


def test_videos_show_the_box_and_play_the_source(written: tuple[Separation, Path, dict[str, Any]]) -> None:
    found, folder, written_list = written
    names = [source["mp4"] for source in written_list["sources"]]
    for source, name in enumerate(names):
        with Media(folder / name) as media:
            info = media.info
            assert (info.frames, info.fps, info.width, info.height) == (85, 25, 202, 100)  # 3.4 s
            assert (info.sample_rate, info.channels) == (44_100, 1)
            sound = media.audio(0.0, 3.4, 44_100)
            first, last = media.frames([0.0, 3.3]).astype(int)
        length = min(len(sound), 149_940)
        assert snr(sound[:length], found.waveforms[source][:length]) > 10
        points = [first[50, 60], first[50, 150]]
        assert points[source].mean() > 190
        assert points[1 - source].mean() < 80
        assert np.abs(first - last).max() < 40  # the last frame stays while there is audio
    with Media(folder / names[0]) as media:
        edge = media.frames([0.0])[0, 50, 20:23].astype(int).mean(axis=0)
    assert edge.max() - edge.min() > 60  # a colour, where the frame is grey


def test_large_and_fast_video_becomes_smaller_and_slower(task: Separate, tmp_path: Path) -> None:
    frames = np.zeros((30, 1000, 1202, 3), np.uint8)
    frames[:, :, :, 0] = 8 * np.arange(30)[:, None, None]
    write_mp4(tmp_path / "a.mp4", frames, 60, noise(0.5, 96_000), 96_000)
    found = separate_video(task, tmp_path / "a.mp4", [[0, 0, 1, 1]])
    written_list = write_separation(found, tmp_path)
    with Media(tmp_path / written_list["sources"][0]["mp4"]) as media:
        assert (media.info.frames, media.info.fps) == (15, 30)
        assert (media.info.height, media.info.width) == (720, 866)
        red = media.frames([n / 30 for n in range(15)])[:, 360, 400, 0].astype(int)
    assert np.abs(red - 16 * np.arange(15)).max() < 12  # every second frame


def test_list_and_figure(written: tuple[Separation, Path, dict[str, Any]]) -> None:
    found, folder, written_list = written
    listed = json.loads((folder / "duet_sources.json").read_text())
    assert (listed["boxes_chosen_by"], listed["sample_rate"], listed["seconds"]) == ("user", 44_100, 3.4)
    assert [source["box"] for source in listed["sources"]] == [[20, 10, 100, 90], [101, 0, 202, 100]]
    assert listed == {key: value for key, value in written_list.items() if key != "list"}
    assert listed["sources"][0]["level_db"] == pytest.approx(found.levels[0], abs=0.05)
    image = np.asarray(Image.open(folder / "duet_separation.png").convert("RGB"))
    assert image.shape[1] == 1430
    assert image.std() > 30
    figure = draw(found)
    texts = [axis.get_title(loc="left") for axis in figure.axes]
    assert [text.split(",")[0] for text in texts[:9:3]] == ["mixture", "source 1", "source 2"]
    assert texts[5] == "mask that cuts source 1 out of the mixture"
    assert figure.axes[7].get_ylabel() == "kHz"
    assert [axis.get_xlabel() for axis in figure.axes[-2:]] == [
        "dB re the loudest of the mixture",
        "mask: 0 removes, 1 keeps",
    ]
    for still, box in zip((figure.axes[3], figure.axes[6]), found.boxes, strict=True):
        for patch in still.patches:
            left, top = patch.get_xy()
            assert box.left < left < left + patch.get_width() < box.right  # nothing hangs over the edges
            assert box.top < top < top + patch.get_height() < box.bottom


def test_a_silent_source_is_told_as_such(written: tuple[Separation, Path, dict[str, Any]], tmp_path: Path) -> None:
    from dataclasses import replace

    found, _, _ = written
    nothing = GrowingArray((len(found.boxes),))
    nothing.add(torch.zeros_like(found.estimates[:]))
    silent = replace(found, estimates=nothing, source_mel=torch.zeros_like(found.source_mel))
    assert write_separation(silent, tmp_path)["sources"][0]["level_db"] is None
    assert draw(silent).axes[3].get_title(loc="left") == "source 1, silent"
