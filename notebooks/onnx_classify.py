"""Classify a video with an exported network: `python onnx_classify.py classifier.onnx clip.mp4`.

It needs onnxruntime, PyAV and NumPy, and nothing of this project: copy it. The file is written by
`python src/convert.py export=onnx input=<checkpoint of a classifier> output=classifier.onnx`; what it says of itself
holds all sizes and the classes. As `predict.py task=classify`, it takes windows of the sound, each with the frame in
its middle, and prints the mean scores; pictures are scaled as Pillow does it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import onnxruntime

HOP = 1.0  # s from window to window
LEAST = 0.1  # s: a shorter end of the sound gets no window of its own
GRID = 0.5  # s: frames are taken at multiples of this, as in training
EARLY = 0.001  # s: a frame counts as on screen this much early, as containers round times


def read_audio(path: str, rate: int) -> np.ndarray:
    """All sound of a file from 0 s on: float32 [T], mono, in [−1, 1]."""
    parts: list[np.ndarray] = []
    with av.open(path) as file:
        stream, origin = file.streams.audio[0], (file.start_time or 0) / av.time_base
        own_rate = stream.rate
        for frame in file.decode(stream):
            samples = frame.to_ndarray()
            if not frame.format.is_planar:
                samples = samples.reshape(-1, frame.layout.nb_channels).T
            if samples.dtype.kind in "iu":  # of the unsigned, the middle is silence
                half = 2.0 ** (8 * samples.dtype.itemsize - 1)
                samples = samples / half - (samples.dtype.kind == "u")
            if not parts and frame.time is not None:  # sound that begins later than the file
                parts.append(np.zeros(max(0, round((frame.time - origin) * own_rate)), np.float32))
            parts.append(samples.mean(axis=0).astype(np.float32))
        length = round(float((stream.duration or 0) * (stream.time_base or Fraction(1))) * own_rate)
    if not parts:
        raise SystemExit(f"{path}: its sound does not decode.")
    sound = np.concatenate(parts)
    if 0 < len(sound) - length <= 0.15 * own_rate and length:  # the last packet is padded
        sound = sound[:length]
    if own_rate == rate:
        return sound.clip(-1, 1)
    frame = av.AudioFrame.from_ndarray(sound[None], format="fltp", layout="mono")
    frame.sample_rate = own_rate
    resampler = av.AudioResampler(format="fltp", layout="mono", rate=rate)
    resampled = [part.to_ndarray()[0] for part in (*resampler.resample(frame), *resampler.resample(None))]
    return np.concatenate(resampled)[: round(len(sound) / own_rate * rate)].clip(-1, 1)


def read_frames(path: str, times: list[float]) -> Iterator[np.ndarray]:
    """The frame on screen at each of some rising times, s: uint8 [H, W, 3]."""
    with av.open(path) as file:
        stream, origin = file.streams.video[0], (file.start_time or 0) / av.time_base
        stream.thread_type = "AUTO"
        frames = file.decode(stream)
        shown = following = next(frames, None)
        if shown is None:
            raise SystemExit(f"{path}: its frames do not decode.")
        for time in times:
            while following is not None and following.time - origin <= time + EARLY:
                shown, following = following, next(frames, None)
            yield np.rot90(shown.to_ndarray(format="rgb24"), shown.rotation // 90)  # as a phone was held


def video_end(path: str) -> float:
    """Where the last frame ends, s."""
    with av.open(path) as file:
        stream = file.streams.video[0]
        own = float(stream.duration * stream.time_base) if stream.duration else (file.duration or 0) / av.time_base
        return own + float((stream.start_time or 0) * stream.time_base) - (file.start_time or 0) / av.time_base


def resized(pixels: np.ndarray, begin: float, end: float, size: int) -> np.ndarray:
    """The rows from `begin` to `end` of uint8 [rows, columns, 3], scaled to `size` rows by a triangle filter."""
    scale = (end - begin) / size
    centres = begin + (np.arange(size) + 0.5) * scale
    distance = np.abs(np.arange(len(pixels)) + 0.5 - centres[:, None]) / max(scale, 1.0)
    weights = np.clip(1 - distance, 0, None)
    weights /= weights.sum(axis=1, keepdims=True)
    return np.tensordot(weights, pixels, axes=(1, 0)).round().astype(np.uint8)


def square(frame: np.ndarray, size: int, zoom: float) -> np.ndarray:
    """The middle of a frame, uint8 [3, size, size]."""
    height, width = frame.shape[:2]
    side = min(height, width) / zoom
    columns = resized(frame.swapaxes(0, 1), (width - side) / 2, (width + side) / 2, size).swapaxes(0, 1)
    return resized(columns, (height - side) / 2, (height + side) / 2, size).transpose(2, 0, 1)


def mirrored(sound: np.ndarray, length: int) -> np.ndarray:
    """Sound that is too short, made longer by its mirror image."""
    while len(sound) < length:
        sound = np.concatenate([sound, sound[::-1]])
    return sound[:length]


def frame_time(start: float, seconds: float, end: float) -> float:
    """The multiple of `GRID` that is nearest to the middle of a window, and within it and the video."""
    first, last = -int(-start // GRID), int(max(min(start + seconds, end), 0.0) / GRID)
    return min(max(round((start + seconds / 2) / GRID), first), last) * GRID


def opened(network: str) -> tuple[onnxruntime.InferenceSession, dict[str, Any]]:
    """A network, and what its file says of it."""
    try:
        session = onnxruntime.InferenceSession(network, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a class of its own for each kind
        raise SystemExit(f"{network} does not open as an ONNX file ({' '.join(str(error).split())}).") from None
    about = json.loads(session.get_modelmeta().custom_metadata_map.get("deepavfusion", "{}"))
    if about.get("network") != "classifier" or not about["preprocess"] or len(about["modalities"]) < 2:
        raise SystemExit(f"{network}: expected a classifier of image and audio, exported with preprocess=true.")
    return session, about


def check_streams(video: str) -> None:
    with av.open(video) as file:
        for kind, streams in (("frames", file.streams.video), ("sound", file.streams.audio)):
            if not streams:
                raise SystemExit(f"{video} has no {kind}: expected a video with frames and sound.")


def classify(network: str, video: str) -> tuple[list[str], np.ndarray]:
    """The classes of a network, and their scores: the mean over windows of a video, [heads, classes], 0…1."""
    session, about = opened(network)
    check_streams(video)
    rate, window = about["audio"]["sample_rate"], about["audio"]["samples"]
    sound = read_audio(video, rate)
    starts = list(range(0, max(len(sound) - window, 0) + 1, round(HOP * rate)))
    if len(sound) - window - starts[-1] >= LEAST * rate:
        starts.append(len(sound) - window)
    end = video_end(video)
    times = [frame_time(start / rate, window / rate, end) for start in starts]
    scores = []
    for start, frame in zip(starts, read_frames(video, times), strict=True):
        image = square(frame, about["image"]["size"], about["image"]["zoom"])
        waveform = mirrored(sound[start : start + window], window)
        scores.append(session.run(["scores"], {"image": image[None], "waveform": waveform[None]})[0][0])
    return about["classes"], np.mean(scores, axis=0)


def main() -> None:
    words = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    words.add_argument("network", help="classifier.onnx, of convert.py export=onnx")
    words.add_argument("video", help="with frames and sound")
    given = words.parse_args()
    for path in (given.network, given.video):
        if not Path(path).is_file():
            raise SystemExit(f"{path} is no file.")
    try:
        classes, scores = classify(given.network, given.video)
    except av.error.FFmpegError as error:
        raise SystemExit(f"{given.video} does not decode as a video ({error.strerror}).") from None
    by_all = scores[-1]
    for label in np.argsort(-by_all, kind="stable")[:5]:
        print(f"{by_all[label]:6.1%}  {classes[label]}")


if __name__ == "__main__":
    main()
