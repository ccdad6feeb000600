"""Reading files whose content is known: which frame, which sample, which error."""

from __future__ import annotations

import gc
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np
import pytest

from deepavfusion.media import Media
from deepavfusion.media import audio as audio_reader
from deepavfusion.media import frames as frame_reader
from deepavfusion.media.encode import write_mp4
from deepavfusion.utils.errors import DecodeError
from helpers.errors import decode_error
from helpers.media import CLICKS, FPS, clicks, copy_from, number, numbered, probe, read_audio, read_frames, write_stream


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """A hang becomes a failure."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# ---------------------------------------------------------------- frames


def test_frame_on_screen(tmp_path: Path) -> None:
    write_mp4(tmp_path / "a.mp4", numbered(60), FPS)
    times = [0.0, 0.039, 0.04, 1.3, 0.5, 1.3, 2.36, 99.0, -1.0]
    frames = read_frames(tmp_path / "a.mp4", times)
    assert frames.shape == (9, 32, 128, 3)
    assert frames.dtype == np.uint8
    # 0.039 s is within the millisecond that a frame may come early
    assert [number(frame) for frame in frames] == [0, 1, 1, 32, 12, 32, 59, 59, 0]


def test_every_frame_of_a_frame_rate_that_is_no_whole_number(tmp_path: Path) -> None:
    fps = 30_000 / 1001
    write_mp4(tmp_path / "a.mp4", numbered(90), fps)
    frames = read_frames(tmp_path / "a.mp4", [index / fps for index in range(90)])
    assert [number(frame) for frame in frames] == list(range(90))


def test_variable_frame_rate(tmp_path: Path) -> None:
    starts = np.cumsum(np.random.default_rng(0).uniform(0.01, 0.3, 50))
    starts -= starts[0]
    write_stream(tmp_path / "a.mp4", frames=numbered(50), times=starts.tolist())
    times = np.random.default_rng(1).uniform(0, starts[-1], 60)
    expected = np.searchsorted(starts, times + frame_reader.CLOCK_SLACK, side="right") - 1
    assert [number(frame) for frame in read_frames(tmp_path / "a.mp4", times.tolist())] == expected.tolist()


@pytest.mark.parametrize("decord_frames", [frame_reader.DECORD_FRAMES, 0])
@pytest.mark.parametrize(
    ("name", "x264"),
    [
        ("plain.mp4", ""),
        ("open.mp4", "open-gop=1:bframes=3:b-pyramid=normal:scenecut=0"),
        ("a.mkv", ""),
        ("a.ts", ""),
        ("late.mkv", ""),
    ],
)
def test_both_decoders_give_the_same_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, x264: str, decord_frames: int
) -> None:
    monkeypatch.setattr(frame_reader, "DECORD_FRAMES", decord_frames)
    write_stream(tmp_path / name, frames=numbered(80), x264=x264, offset=1.5 * name.startswith("late"))
    wanted = [79, 0, 17, 15, 16, 31, 33, 50]
    times = [index / FPS + 0.01 for index in wanted]
    frames = read_frames(tmp_path / name, times)
    assert [number(frame) for frame in frames] == wanted
    alone = [read_frames(tmp_path / name, [time])[0] for time in times]  # with PyAV, whatever reads several
    np.testing.assert_array_equal(alone, frames)
    in_turn = sorted([*times, times[0], times[2]])
    with Media(tmp_path / name) as media:
        np.testing.assert_array_equal(list(media.frames_in_turn(in_turn)), read_frames(tmp_path / name, in_turn))


def test_ten_bits_look_the_same_alone_and_together(tmp_path: Path) -> None:
    y, x = np.mgrid[:64, :128].astype(np.uint8)
    write_stream(
        tmp_path / "a.mp4", frames=np.stack([2 * x, 4 * y, x + y], -1)[None].repeat(20, 0), pix_fmt="yuv420p10le"
    )
    together = read_frames(tmp_path / "a.mp4", [0.0, 0.4])
    np.testing.assert_array_equal(together, [read_frames(tmp_path / "a.mp4", [time])[0] for time in (0.0, 0.4)])


def test_clips_cut_by_stream_copy(tmp_path: Path) -> None:
    """The packets from the key frame (32) to the cut (38) are decoded but not shown."""
    write_stream(tmp_path / "long.mp4", frames=numbered(100), x264="bframes=0")
    copy_from(tmp_path / "long.mp4", tmp_path / "cut.mp4", start=38 / FPS)
    frames = read_frames(tmp_path / "cut.mp4", [0.001, 10 / FPS, 30 / FPS])
    assert [number(frame) for frame in frames] == [38, 48, 68]


# ---------------------------------------------------------------- audio


def heard_at(wave: np.ndarray, rate: int) -> float:
    return float(np.abs(wave).argmax()) / rate


@pytest.mark.parametrize("rate", [16_000, 44_100, 48_000])
@pytest.mark.parametrize(("channels", "audio_start"), [(1, 0.0), (2, 0.0), (6, 0.0), (1, 0.7)])
def test_click_is_where_it_was_put(tmp_path: Path, rate: int, channels: int, audio_start: float) -> None:
    path, layout = tmp_path / "a.mp4", {1: "mono", 2: "stereo", 6: "5.1"}[channels]
    write_stream(path, clicks(rate, channels), rate, layout, numbered(100), late=audio_start)
    for click in CLICKS:
        moment = click + audio_start
        for start in (max(moment - 0.4, 0.0), moment - 0.013):
            wave = read_audio(path, start, 0.45).numpy()
            assert len(wave) == 7200
            assert start + heard_at(wave, 16_000) == pytest.approx(moment, abs=0.005)
            assert 0.4 < np.abs(wave).max() <= 1.0


def test_silence_before_late_audio(tmp_path: Path) -> None:
    write_stream(tmp_path / "a.mp4", np.full((1, 16_000), 0.5, np.float32), frames=numbered(50), late=1.0)
    wave = read_audio(tmp_path / "a.mp4", 0.0, 1.5).numpy()
    assert len(wave) == 24_000
    assert np.abs(wave[: round(0.9 * 16_000)]).max() == 0.0
    assert np.abs(wave[round(1.2 * 16_000) :]).mean() > 0.1
    assert len(read_audio(tmp_path / "a.mp4", 0.1, 0.5)) == 8000  # nothing but silence is still sound to come


def test_length_of_a_window(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    write_mp4(path, numbered(50), FPS, clicks(44_100, seconds=2.0, times=(0.5,)), 44_100)
    assert len(read_audio(path, 0.123, 1.0)) == 16_000
    assert len(read_audio(path, 0.0, 1.0, 22_050)) == 22_050
    assert len(read_audio(path, 1.5, 3.0)) == pytest.approx(8000, abs=16)
    assert len(read_audio(path, 5.0, 1.0)) == 0


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_windows_agree_with_the_whole(tmp_path: Path, rate: int) -> None:
    """Neither the seek nor the resampler leaves a trace at a window's edges."""
    time = np.arange(4 * rate) / rate
    wave = 0.3 * np.sin(2 * np.pi * 440 * time) + 0.2 * np.sin(2 * np.pi * 3001 * time)
    write_mp4(tmp_path / "a.mp4", numbered(100), FPS, wave, rate)
    whole = read_audio(tmp_path / "a.mp4", 0.0, 4.0).numpy()
    for start in (0.25, 1.0, 2.71):
        window = read_audio(tmp_path / "a.mp4", start, 0.5).numpy()
        begin = round(start * 16_000)
        np.testing.assert_allclose(window, whole[begin : begin + 8000], atol=2e-3)


@pytest.mark.parametrize("rate", [22_050, 44_100, 48_000])
def test_every_window_gives_the_same_samples(tmp_path: Path, rate: int) -> None:
    """Resampling by the file's own grid, down to a fraction of a sample."""
    time = np.arange(4 * rate) / rate
    wave = np.stack([0.3 * np.sin(2 * np.pi * f * time) for f in (440, 3001)])
    wave[:, rate:] += 0.2 * np.random.default_rng(0).standard_normal((2, 3 * rate))
    write_mp4(tmp_path / "a.mp4", numbered(100), FPS, wave, rate, audio_bit_rate=128_000)
    with Media(tmp_path / "a.mp4") as media:
        whole = media.audio(0.0, 4.0).numpy()
        for begin in (0, 1, 7_777, 20_000, 31_999, 50_001):
            window = media.audio(begin / 16_000, 0.5).numpy()
            expected = whole[begin : begin + 8000]
            error = np.square(window - expected).mean() / np.square(expected).mean()
            assert error < 1e-6, begin  # 60 dB


def test_one_opening_serves_header_frames_and_audio(tmp_path: Path) -> None:
    write_mp4(tmp_path / "a.mp4", numbered(100), FPS, clicks(44_100, 2), 44_100)
    with Media(tmp_path / "a.mp4") as media:
        for click in (CLICKS[2], CLICKS[0], CLICKS[1]):  # back and forth
            assert [number(frame) for frame in media.frames([click, 0.0])] == [int(click * FPS), 0]
            assert heard_at(media.audio(click - 0.25, 0.5).numpy(), 16_000) == pytest.approx(0.25, abs=0.005)
    files = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        with Media(tmp_path / "a.mp4") as media:
            media.frames([1.0])
            media.audio(1.0, 1.0)
    assert len(list(Path("/proc/self/fd").iterdir())) == files


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts"])
def test_no_frame_outlives_its_reading(tmp_path: Path, name: str) -> None:
    """A frame in a cycle would have its scaler freed by a process forked later, which hangs."""
    write_stream(tmp_path / name, clicks(16_000), frames=numbered(20))
    gc.collect()
    gc.disable()
    try:
        with Media(tmp_path / name) as media:
            media.frames([0.3])
            media.frames([0.1, 0.5])
            media.audio(0.0, 1.0)
        del media
        left = [thing for thing in gc.get_objects() if issubclass(type(thing), (av.VideoFrame, av.AudioFrame))]
    finally:
        gc.enable()
    assert left == []


def test_surround_downmix(tmp_path: Path) -> None:
    """Centre counts as the fronts together times 0.71, surrounds half of that, effects nothing; the sum is 1."""
    weights = audio_reader._mono_weights(("FL", "FR", "FC", "LFE", "BL", "BR"))
    np.testing.assert_allclose(weights, np.array([1, 1, 2**0.5, 0, 0.5**0.5, 0.5**0.5]) / (2 + 2**1.5), rtol=1e-6)
    np.testing.assert_allclose(audio_reader._mono_weights(("FL", "FR")), [0.5, 0.5])
    np.testing.assert_allclose(audio_reader._mono_weights(("FC",)), [1.0])
    wave = np.zeros((6, 32_000), np.float32)
    wave[2] = 0.8 * np.sin(2 * np.pi * 500 * np.arange(32_000) / 16_000)
    write_stream(tmp_path / "a.mp4", wave, layout="5.1")
    centre = read_audio(tmp_path / "a.mp4", 0.5, 1.0).numpy()
    assert np.abs(centre).max() == pytest.approx(0.8 * 2**0.5 / (2 + 2**1.5), rel=0.05)


@pytest.mark.parametrize(("name", "offset"), [("a.mp4", 0.0), ("late.mp4", 1.5), ("late.mkv", 1.5), ("a.ts", 0.0)])
def test_flash_and_click_come_together(tmp_path: Path, name: str, offset: float) -> None:
    frames = np.zeros((100, 32, 64, 3), np.uint8)
    flash = 60
    frames[flash:] = 255
    write_stream(tmp_path / name, clicks(16_000, times=(flash / FPS,)), frames=frames, offset=offset, x264="bframes=2")
    grid = np.arange(0, 4, 0.01)
    bright = read_frames(tmp_path / name, grid.tolist()).mean(axis=(1, 2, 3)) > 127
    seen = grid[bright.argmax()]
    heard = heard_at(read_audio(tmp_path / name, 0.0, 4.0).numpy(), 16_000)
    assert abs(seen - heard) < 0.02 + 0.01
    if not offset and name != "a.ts":  # elsewhere the clock starts with the audio's priming
        assert heard == pytest.approx(flash / FPS, abs=0.025)


@pytest.mark.parametrize("late", [0.0, 0.7])
@pytest.mark.parametrize("pace", ["constant", "variable"])
@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize("rate", [16_000, 44_100, 48_000])
def test_audio_and_video_are_in_sync(tmp_path: Path, rate: int, channels: int, pace: str, late: float) -> None:
    """A flash and a click at the start, in the middle and at the end: both within 20 ms of where they were put."""
    path, moments = tmp_path / "a.mp4", (0.84, 2.0, 3.72)
    if pace == "constant":
        starts = np.arange(100) / FPS
    else:
        gaps = np.random.default_rng(0).uniform(0.015, 0.09, 90)
        starts = np.unique(np.concatenate([[0.0], np.cumsum(gaps)[np.cumsum(gaps) < 4], moments]).round(4))
        starts = starts[np.concatenate([[True], np.diff(starts) > 0.004])]
    flashes = [int(np.abs(starts - moment).argmin()) for moment in moments]
    frames = np.zeros((len(starts), 32, 64, 3), np.uint8)
    frames[flashes] = 255
    wave = clicks(rate, channels, 4.0 - late, tuple(starts[n] - late for n in flashes))
    layout = {1: "mono", 2: "stereo", 6: "5.1"}[channels]
    write_stream(path, wave, rate, layout, frames, times=starts.tolist(), late=late)
    with Media(path) as media:
        for n in flashes:
            grid = np.arange(starts[n] - 0.1, starts[n] + 0.1, 0.004)
            bright = media.frames(grid.tolist()).mean(axis=(1, 2, 3)) > 127
            assert bright.any()
            seen = grid[bright.argmax()]
            heard = starts[n] - 0.1 + heard_at(media.audio(starts[n] - 0.1, 0.2).numpy(), 16_000)
            assert abs(seen - starts[n]) < 0.02
            assert abs(heard - starts[n]) < 0.02
            assert abs(seen - heard) < 0.02


@pytest.mark.full
def test_memory_stays_flat_over_20_000_reads(tmp_path: Path) -> None:
    """Random windows and frames of clips of several sizes, in a process of its own: under 50 MB after the first 500."""
    rng = np.random.default_rng(0)
    for n, (height, width, rate) in enumerate([(120, 160, 16_000), (96, 128, 44_100), (144, 192, 48_000)]):
        scene = rng.integers(0, 256, (height + 80, width + 80, 3), dtype=np.uint8)
        frames = np.stack([scene[k : k + height, k : k + width] for k in range(40)])
        write_mp4(tmp_path / f"{n}.mp4", frames, 10, 0.1 * rng.standard_normal((2, 4 * rate)), rate)
    script = """
import ctypes, sys
from pathlib import Path
from deepavfusion.data.samples import SampleSpec, WindowDataset
from deepavfusion.data.lists.clip_list import ClipList
from deepavfusion.data.stores.raw import RawStore
from deepavfusion.types import Clip
clips = [Clip(path.stem, str(path), 0) for path in sorted(Path(sys.argv[1]).glob("*.mp4"))]
dataset = WindowDataset(ClipList("train", clips, ["a"]), RawStore(), SampleSpec(112, train=True))
libc = ctypes.CDLL(None)
def resident():
    libc.malloc_trim(0)  # how much is kept that is free depends on how busy the cores are
    pages = int(open("/proc/self/statm").read().split()[1])
    return pages * 4096 / 1e6
for n in range(20_000):
    assert dataset[n % len(clips), n][0].waveform.shape == (48000,)
    if n == 500:
        first = resident()
print(resident() - first, len(list(Path("/proc/self/fd").iterdir())))
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr
    grown, files = map(float, done.stdout.split())
    assert grown < 50
    assert files < 20


# ---------------------------------------------------------------- headers and failures


def test_probe(tmp_path: Path) -> None:
    write_stream(tmp_path / "a.mp4", clicks(44_100, 2), 44_100, "stereo", numbered(50), late=0.5)
    info = probe(tmp_path / "a.mp4")
    assert (info.frames, info.fps, info.width, info.height) == (50, 25.0, 128, 32)
    assert (info.sample_rate, info.channels) == (44_100, 2)
    assert info.video_duration == pytest.approx(2.0)
    assert info.audio_start == pytest.approx(0.5, abs=0.03)
    assert info.audio_start + info.audio_duration == pytest.approx(4.5, abs=0.03)


def test_what_is_not_media(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("not a film\n" * 99)
    (tmp_path / "noise.mp4").write_bytes(random.Random(0).randbytes(9999))
    (tmp_path / "list.mp4").write_text("#EXTM3U\n#EXTINF:1,\nhttp://192.0.2.1/a.ts\n#EXT-X-ENDLIST\n")
    (tmp_path / "empty.mp4").touch()
    reasons = {"gone.mp4": "missing", "text.mp4/a.mp4": "missing", "empty.mp4": "truncated"}
    reasons |= dict.fromkeys(("text.mp4", "noise.mp4", "list.mp4", "."), "undecodable")
    with time_limit(10):
        for function, args in ((probe, ()), (read_frames, ([0.0],)), (read_audio, (0.0, 1.0))):
            for name, reason in reasons.items():
                assert decode_error(function, tmp_path / name, *args).reason == reason


def test_missing_streams(tmp_path: Path) -> None:
    write_mp4(tmp_path / "silent.mp4", numbered(10), FPS)
    write_stream(tmp_path / "blind.mp4", clicks(16_000))
    assert decode_error(read_audio, tmp_path / "silent.mp4", 0.0, 1.0).reason == "no_audio"
    assert decode_error(read_frames, tmp_path / "blind.mp4", [0.0]).reason == "no_video"
    assert probe(tmp_path / "silent.mp4").sample_rate == 0
    assert len(read_audio(tmp_path / "blind.mp4", 0.0, 1.0)) == 16_000


def frame_or_reason(path: Path, index: int) -> str:
    try:
        assert number(read_frames(path, [index / FPS])[0]) == index
    except DecodeError as error:
        return error.reason
    return "frame"


def audio_or_reason(path: Path, click: float) -> str:
    try:
        wave = read_audio(path, click - 0.25, 0.5).numpy()
    except DecodeError as error:
        return error.reason
    assert heard_at(wave, 16_000) == pytest.approx(0.25, abs=0.005)
    return "audio"


@pytest.mark.parametrize("faststart", [True, False])
def test_truncated_at_many_points(tmp_path: Path, faststart: bool) -> None:
    """Never a hang, a wrong frame or a raw exception."""
    flags = {"movflags": "faststart"} if faststart else {}
    write_stream(tmp_path / "a.mp4", clicks(16_000), frames=numbered(100), **flags)
    data, cut = (tmp_path / "a.mp4").read_bytes(), tmp_path / "cut.mp4"
    header, seen = data.find(b"moov"), set()
    with time_limit(30):
        for kept in (*range(8, 40, 7), *(len(data) * k // 60 for k in range(1, 60)), len(data) - 1):
            cut.write_bytes(data[:kept])
            outcomes = {frame_or_reason(cut, index) for index in (3, 50, 99)}
            outcomes |= {audio_or_reason(cut, click) for click in CLICKS}
            if kept < header + 100:
                assert outcomes == {"truncated"}, kept
            seen |= outcomes
    assert seen == {"frame", "audio", "truncated"}


def test_flipped_bits(tmp_path: Path) -> None:
    """Damage anywhere, header included: an array of the right shape or a DecodeError, in a process that survives."""
    write_mp4(tmp_path / "a.mp4", numbered(60), FPS, clicks(16_000, seconds=2.4, times=(1.0,)))
    script = """
import random, sys
import numpy as np
from deepavfusion.media import Media
from deepavfusion.utils.errors import DecodeError
reads = (lambda m: m.info, lambda m: m.frames([1.0]), lambda m: m.frames([0.5, 1.0]), lambda m: m.audio(0.5, 1.0))
data = open(sys.argv[1], "rb").read()
rng = random.Random(0)
header = data.find(b"moov")
outcomes = []
for trial in range(100):
    damaged = bytearray(data)
    for _ in range(rng.choice([1, 4, 30])):
        damaged[rng.randrange(header if trial % 2 else 0, len(data))] ^= 1 << rng.randrange(8)
    open(sys.argv[2], "wb").write(damaged)
    for n, read in enumerate(reads):
        try:
            with Media(sys.argv[2]) as media:
                result = read(media)
            if n in (1, 2):
                assert result.ndim == 4 and result.shape[::3] == (n, 3), result.shape
            if n == 3:
                assert len(result) <= 16000 and bool((result.abs() <= 1).all())
            outcomes.append("read")
        except DecodeError as error:
            outcomes.append(error.reason)
print(len(outcomes), *sorted(set(outcomes)))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "a.mp4"), str(tmp_path / "b.mp4")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    # FFmpeg prints nothing; decord prints one line about a header that only it cannot open.
    assert [line for line in done.stderr.splitlines() if "ERROR opening" not in line] == []
    total, *outcomes = done.stdout.split()
    assert total == "400"
    assert {"read", "undecodable"} <= set(outcomes)


# ---------------------------------------------------------------- real clips


def test_video_with_surround_sound(real_clips: Path) -> None:
    path = real_clips / "bigbuckbunny.mp4"
    info = probe(path)
    assert (info.frames, info.width, info.height, info.channels, info.sample_rate) == (132, 1280, 720, 6, 48_000)
    assert read_frames(path, [1.0, 5.2]).shape == (2, 720, 1280, 3)
    assert len(read_audio(path, 1.0, 3.0)) == 48_000
    assert len(read_audio(path, 4.0, 3.0)) == pytest.approx(1.312 * 16_000, abs=2)


def test_video_without_audio(real_clips: Path) -> None:
    path = real_clips / "bikes.mp4"
    assert probe(path).sample_rate == 0
    assert decode_error(read_audio, path, 0.0, 3.0).reason == "no_audio"
    early, late = read_frames(path, [0.0, 9.9])
    assert np.abs(early.astype(int) - late).mean() > 5


def test_still_with_audio(real_clips: Path) -> None:
    path = real_clips / "music_duet_1.mp4"
    assert probe(path).frames == 1
    first, late = read_frames(path, [0.0, 2.5])
    assert (first == late).all()
    assert first.std() > 10
    wave = read_audio(path, 0.0, 3.0)
    assert len(wave) == 48_000
    assert 0.1 < wave.abs().max() <= 1.0
