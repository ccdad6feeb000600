"""Writes a clip of the demo data: an mp4 file, or the frames, masks and audio of AVSBench."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from deepavfusion.demo.plans import Job
from deepavfusion.demo.scenes import Scene
from deepavfusion.demo.sounds import SAMPLE_RATE, Signal
from deepavfusion.media.encode import write_mp4, write_wav

FPS = 10.0


def write_clip(job: Job, folder: Path, scene: Scene, waveform: Signal, values: Sequence[int]) -> None:
    """Write the files of a job below `folder`; `values` are those of its sounding objects in the masks."""
    target = folder / job.path
    if not job.masks:
        frames = (scene.frame(n / FPS) for n in range(round(job.seconds * FPS)))
        write_mp4(target, frames, FPS, waveform, SAMPLE_RATE)
        return
    for part in ("frames", "labels_semantic"):
        (target / part).mkdir(parents=True)
    write_wav(target / "audio.wav", waveform, SAMPLE_RATE)
    for n in range(round(job.seconds)):
        Image.fromarray(scene.frame(n + 0.5)).save(target / "frames" / f"{n}.jpg", quality=90)
        if n < job.masks:
            labels = np.zeros((scene.height, scene.width), np.uint8)
            for value, mask in zip(values, scene.masks(n + 0.5), strict=True):
                labels[mask] = value
            Image.fromarray(labels).save(target / "labels_semantic" / f"{n}.png")
