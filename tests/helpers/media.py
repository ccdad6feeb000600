"""Generated media whose content is known: numbered frames, clicks, noise, and files that `write_mp4` does not write."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

from deepavfusion.media import Media, MediaInfo
from deepavfusion.media.encode import write_mp4, write_wav
from deepavfusion.transforms.audio import SAMPLE_RATE

FPS = 25


CLICKS = (0.5, 2.0, 3.5)  # s, in a file of 4 s


def probe(path: Path) -> MediaInfo:
    with Media(path) as media:
        return media.info


def read_frames(path: Path, times: Sequence[float]) -> np.ndarray:
    with Media(path) as media:
        return media.frames(times)


def read_audio(path: Path, start: float, seconds: float, rate: int = SAMPLE_RATE) -> torch.Tensor:
    with Media(path) as media:
        return media.audio(start, seconds, rate)


def numbered(count: int, height: int = 32) -> np.ndarray:
    """Frames that carry their number in eight vertical bars, the lowest bit on the left."""
    bits = (np.arange(count)[:, None] >> np.arange(8)) & 1
    return np.broadcast_to(np.repeat(bits * 255, 16, 1)[:, None, :, None], (count, height, 128, 3)).astype(np.uint8)


def number(frame: np.ndarray) -> int:
    middle = frame[frame.shape[0] // 2].mean(axis=1).reshape(8, 16)[:, 4:12].mean(axis=1)
    return int(((middle > 127) << np.arange(8)).sum())


def clicks(rate: int, channels: int = 1, seconds: float = 4.0, times: tuple[float, ...] = CLICKS) -> np.ndarray:
    """Short bursts of 1 kHz, silence elsewhere; [C, T]."""
    wave = np.zeros(round(seconds * rate), np.float32)
    burst = np.hanning(rate // 250) * np.cos(2 * np.pi * 1000 * np.arange(rate // 250) / rate)
    for time in times:
        start = round(time * rate) - len(burst) // 2
        wave[start : start + len(burst)] = 0.8 * burst
    return np.tile(wave, (channels, 1))


def write_stream(
    path: Path,
    wave: np.ndarray | None = None,
    rate: int = 16_000,
    layout: str = "mono",
    frames: np.ndarray | None = None,
    offset: float = 0.0,
    x264: str = "",
    times: Sequence[float] | None = None,
    late: float = 0.0,
    pix_fmt: str = "yuv420p",
    **options: str,
) -> None:
    """What `write_mp4` does not write: other containers, open groups of frames, and more.

    Args:
        offset: time at which both streams start, s.
        times: of the frames, s, for a variable frame rate.
        late: time by which the audio starts later, s.
    """
    with av.open(str(path), "w", options=options) as container:
        video = sound = None
        if frames is not None:
            video = container.add_stream("libx264", rate=FPS, options={"x264-params": f"keyint=16:{x264}"})
            video.height, video.width = frames.shape[1:3]
            video.pix_fmt, video.thread_count = pix_fmt, 1
            video.time_base = video.codec_context.time_base = Fraction(1, 12_800)
        if wave is not None:
            sound = container.add_stream("aac", rate=rate, layout=layout)
        if video is not None and frames is not None:
            for index, pixels in enumerate(frames):
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                time = index / FPS if times is None else times[index]
                frame.pts, frame.time_base = round((time + offset) * 12_800), Fraction(1, 12_800)
                container.mux(video.encode(frame))
            container.mux(video.encode(None))
        if sound is not None and wave is not None:
            for begin in range(0, wave.shape[1], 1024):
                chunk = np.ascontiguousarray(wave[:, begin : begin + 1024], np.float32)
                block = av.AudioFrame.from_ndarray(chunk, format="fltp", layout=layout)
                block.sample_rate, block.time_base = rate, Fraction(1, rate)
                block.pts = begin + round((offset + late) * rate)
                container.mux(sound.encode(block))
            container.mux(sound.encode(None))


def copy_from(source: Path, target: Path, start: float) -> None:
    """Cut without encoding, as `ffmpeg -ss start -c copy` does: frames before `start` stay in, not shown."""
    with av.open(str(source)) as reader, av.open(str(target), "w") as writer:
        video = reader.streams.video[0]
        copy = writer.add_stream_from_template(video)
        shift = round(start / video.time_base)
        reader.seek(shift, stream=video)
        for packet in reader.demux(video):
            if packet.dts is not None:
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, copy
                writer.mux(packet)


def noise(seconds: float, rate: int = SAMPLE_RATE, channels: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.3, 0.3, (channels, round(seconds * rate))).astype(np.float32)


def write_video(path: Path, sound: np.ndarray, rate: int = SAMPLE_RATE, frames: int = 4, size: int = 96) -> Path:
    """Red on the left, blue on the right, 2 frames per second; twice as wide as high."""
    video = np.zeros((frames, size, 2 * size, 3), np.uint8)
    video[:, :, :size, 0] = video[:, :, size:, 2] = 200
    write_mp4(path, video, 2, sound, rate, audio_bit_rate=128_000)
    return path


SILENT = {"silent.mp4": "is silent: its 2.00 s of audio is all zero", "hiss.mkv": "is silent: its 2.0"}


def write_unusable(folder: Path) -> dict[str, str]:
    """Files that are no complete video with frames and audible sound: name -> what is said of each."""
    frames = np.zeros((4, 32, 32, 3), np.uint8)
    write_mp4(folder / "mute.mp4", frames, 2)
    write_wav(folder / "blind.wav", noise(2.0), SAMPLE_RATE)
    write_video(folder / "silent.mp4", np.zeros(2 * SAMPLE_RATE, np.float32))
    write_stream(folder / "hiss.mkv", 1e-5 * noise(2.0), frames=frames)
    whole = write_video(folder / "whole.mp4", noise(4.0), frames=8).read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "text.mp4").write_text("no video")
    (folder / "empty.mp4").touch()
    return {
        "mute.mp4": "no audio: the file has no audio stream; expected a complete video",
        "blind.wav": "no video: the file has no video stream",
        "cut.mp4": "truncated",
        "text.mp4": "undecodable",
        "empty.mp4": "the file is empty",
        "missing.mp4": "missing: there is no such file",
        **SILENT,
    }


def snr(estimate: Any, truth: Any) -> float:
    estimate, truth = torch.as_tensor(estimate).double(), torch.as_tensor(truth).double()
    return float(10 * torch.log10(truth.square().sum() / (estimate - truth).square().sum()))


def coloured_noise(count: int, height: int, width: int) -> np.ndarray:
    """Blocks whose brightness rises from frame to frame, uint8 [count, height, width, 3]."""
    frames = np.random.default_rng(1).integers(0, 150, (count, height // 8 + 1, width // 8 + 1, 3), np.uint8)
    frames = frames.repeat(8, axis=1).repeat(8, axis=2)[:, :height, :width]
    return frames + np.linspace(0, 100, count).astype(np.uint8)[:, None, None, None]
