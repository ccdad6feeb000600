"""What `media/encode.py` writes, read back with PyAV and the standard library."""

from __future__ import annotations

import ctypes
import multiprocessing
import wave
from functools import partial
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest

from deepavfusion.media.encode import write_mp4, write_wav

RATE = 16_000


def rising(count: int, height: int = 48, width: int = 64) -> np.ndarray:
    """[count, H, W, 3]; the brightness rises from frame to frame."""
    return np.stack([np.full((height, width, 3), 20 + 8 * n, np.uint8) for n in range(count)])


def click(at: float, seconds: float = 3.0, rate: int = RATE) -> np.ndarray:
    waveform = np.zeros(round(seconds * rate), np.float32)
    waveform[round(at * rate)] = 0.9
    return waveform


def read_sound(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Time of each sample in seconds [T], and the samples [C, T]."""
    times, samples = [], []
    with av.open(str(path)) as container:
        for frame in container.decode(audio=0):
            data = frame.to_ndarray()
            samples.append(data)
            times.append(frame.time + np.arange(data.shape[1]) / frame.sample_rate)
    return np.concatenate(times), np.concatenate(samples, axis=1)


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_a_click_is_heard_when_it_was_written(tmp_path: Path, rate: int) -> None:
    write_mp4(tmp_path / "a.mp4", rising(30), 10, click(1.0, rate=rate), rate)
    times, samples = read_sound(tmp_path / "a.mp4")
    assert times[np.abs(samples[0]).argmax()] == pytest.approx(1.0, abs=0.005)


def test_frames_come_back_in_order_and_in_time(tmp_path: Path) -> None:
    write_mp4(tmp_path / "a.mp4", iter(rising(20)), 10)
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert not container.streams.audio
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert float(stream.duration * stream.time_base) == pytest.approx(2.0)
        frames = list(container.decode(video=0))
    levels = [frame.to_ndarray(format="rgb24").mean() for frame in frames]
    np.testing.assert_allclose(levels, 20 + 8 * np.arange(20), atol=3)
    np.testing.assert_allclose([frame.time for frame in frames], np.arange(20) / 10, atol=1e-4)


def test_key_frames_are_no_farther_apart_than_asked(tmp_path: Path) -> None:
    write_mp4(tmp_path / "a.mp4", rising(20), 10, keyframe_interval=5)
    with av.open(str(tmp_path / "a.mp4")) as container:
        keys = [n for n, frame in enumerate(container.decode(video=0)) if frame.key_frame]
    assert keys[0] == 0
    assert max(np.diff([*keys, 20])) <= 5


def test_stereo_keeps_its_channels(tmp_path: Path) -> None:
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)
    write_mp4(tmp_path / "a.mp4", rising(10), 10, np.stack([tone, 0 * tone]), RATE)
    _, samples = read_sound(tmp_path / "a.mp4")
    assert samples.shape[0] == 2
    assert np.abs(samples[0]).max() > 0.4
    assert np.abs(samples[1]).max() < 0.02


@pytest.mark.full
def test_same_input_gives_the_same_bytes_whatever_was_in_memory(tmp_path: Path) -> None:
    """glibc fills what it hands out with another byte in each process; x264's macroblock tree fails this."""
    image = np.random.default_rng(0).integers(0, 255, (208, 208, 3), dtype=np.uint8)

    def write(byte: int) -> None:
        ctypes.CDLL(None).mallopt(-6, byte)  # M_PERTURB
        frames = [np.roll(image, 3 * (n // 4), 1) for n in range(20)]
        write_mp4(tmp_path / f"{byte}.mp4", frames, 10, np.sin(range(32_000)))

    started = [multiprocessing.get_context("fork").Process(target=write, args=(byte,)) for byte in (1, 85)]
    for process in started:
        process.start()
    for process in started:
        process.join()
    files = [path.read_bytes() for path in tmp_path.iterdir()]
    assert len(files) == 2
    assert len(set(files)) == 1


@pytest.mark.parametrize(
    ("frames", "message"),
    [(rising(2, height=47), "even sizes"), ([], "no frames"), ([rising(1)[0], rising(1, width=66)[0]], "frame 1 is")],
)
def test_wrong_input_is_named(tmp_path: Path, frames: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_mp4(tmp_path / "a.mp4", frames, 10)


def test_wav_is_16_bit_pcm_and_clips(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", np.array([[0.0, 0.5, 1.0, 2.0], [0.0, -0.5, -1.0, -2.0]]), 8_000)
    with wave.open(str(tmp_path / "a.wav")) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (2, 2, 8_000)
        samples = np.frombuffer(file.readframes(4), "<i2").reshape(4, 2).T
    np.testing.assert_array_equal(samples, [[0, 16384, 32767, 32767], [0, -16384, -32767, -32767]])


@pytest.mark.parametrize("channels", [1, 2])
def test_a_waveform_in_parts_gives_the_same_bytes(tmp_path: Path, channels: int) -> None:
    waveform = np.random.default_rng(0).uniform(-1.1, 1.1, (channels, 20_001)).astype(np.float32)
    ends = [0, 1, 1500, 1500, 9000, 20_001]
    for name, write in (("a.wav", write_wav), ("a.mp4", partial(write_mp4, frames=rising(13), fps=10))):
        write(tmp_path / f"whole.{name}", waveform=waveform, sample_rate=RATE)
        parts = (waveform[:, begin:end] for begin, end in pairwise(ends))
        write(tmp_path / f"parts.{name}", waveform=parts, sample_rate=RATE)
        assert (tmp_path / f"whole.{name}").read_bytes() == (tmp_path / f"parts.{name}").read_bytes()
