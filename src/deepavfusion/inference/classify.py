"""Names the classes of a video of any length over time: windows that slide over it, each with its middle picture.

Memory does not grow with the video: sound and pictures are read window by window, and the scores are kept in a
temporary file.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from deepavfusion.data.stores.store import on_grid
from deepavfusion.inference.encoders import sizes_of
from deepavfusion.inference.rows import Rows
from deepavfusion.inference.tasks import recorded_classes
from deepavfusion.inference.video import SILENT, told
from deepavfusion.media import Media
from deepavfusion.models.classifier import mean_of_heads
from deepavfusion.tasks.classify import Classify
from deepavfusion.transforms.audio import SAMPLE_RATE, LogMel, extend_by_mirror
from deepavfusion.transforms.image import Normalise, centre_view
from deepavfusion.types import HEADS, STREAMS
from deepavfusion.utils.errors import DecodeError, UserError

LEAST_HOP = 0.01  # s
LEAST_REST = 0.1  # s: a shorter end of the sound gets no window of its own
LATE = 1.0  # s that the picture may last longer than the sound before it is told


@dataclass
class Classification:
    """The scores of a video's windows.

    `starts` are where windows of `window` seconds begin and `seconds` where the sound ends, s. `scores` float32
    [W, 4, C] in 0…1, by window, head (`HEADS`) and class, lie on disk; `mean` float64 [4, C] is their mean over the
    windows. Of classes that exclude each other a row sums to 1. `notes` are sentences to tell.
    """

    video: str
    classes: list[str]
    multi_label: bool
    seconds: float
    window: float
    hop_seconds: float
    starts: list[float]
    scores: NDArray[np.float32]
    mean: NDArray[np.float64]
    notes: list[str] = field(default_factory=list)

    def top(self, head: str, count: int) -> list[int]:
        """The classes with the highest mean, best first."""
        return _best(self.mean[HEADS.index(head)], count)

    def edges(self) -> list[float]:
        """W + 1 moments (s) between which each window is the nearest."""
        middles = [start + self.window / 2 for start in self.starts]
        between = [(a + b) / 2 for a, b in pairwise(middles)]
        return [0.0, *between, self.seconds]


class Span(NamedTuple):
    """A part of the video, s, with its top class and that one's mean score."""

    start: float
    end: float
    label: str
    score: float


def classify_video(
    task: Classify,
    video: str | Path,
    hop_seconds: float = 1.0,
    batch_size: int = 8,
    on_progress: Callable[[int, int], Any] | None = None,
) -> Classification:
    """What a video shows and sounds like, by picture, by sound, by both fused and by all, over time.

    Windows have the length that the network reads. The first begins at 0 s, the last ends with the sound; sound that is
    shorter than one is extended by its mirror image, as in evaluation.

    Args:
        task: trained, in evaluation mode; see `load_task`. It is used on the device where it is.
        video: a file with picture and sound.
        hop_seconds: from window to window.
        batch_size: windows at a time.
        on_progress: called with the windows done and their number, which is an estimate until all are done.

    Raises:
        UserError: the video has no picture or no sound, or does not decode; the checkpoint does not name its classes.
    """
    assert not task.training, "the batch norms of a task in training would learn from the video: task.eval() first"
    if type(batch_size) is not int or batch_size < 1:
        raise UserError(f"batch_size is {batch_size!r}, expected a whole number of at least 1.")
    if type(hop_seconds) not in (int, float) or not LEAST_HOP <= hop_seconds < math.inf:
        raise UserError(f"hop_seconds is {hop_seconds!r}, expected seconds, at least {LEAST_HOP}, e.g. 1.")
    classes = recorded_classes(task)
    with told("classified"), Media(video) as media:
        media.require("video")
        media.require("audio")
        return _VideoClassifier(task, media, classes, hop_seconds).run(batch_size, on_progress)


def spans(found: Classification, head: str = "all", most: int = 20) -> list[Span]:
    """The video in parts of equal top class; if those are more than `most`, of as many equal parts' top classes."""
    row, count = HEADS.index(head), len(found.starts)
    tops = [int(scores[row].argmax()) for scores in found.scores]
    runs = _runs(tops)
    if len(runs) > most:
        for part in np.array_split(np.arange(count), most):
            top = int(found.scores[part[0] : part[-1] + 1, row].mean(axis=0).argmax())
            tops[part[0] : part[-1] + 1] = [top] * len(part)
        runs = _runs(tops)
    edges = found.edges()
    return [
        Span(edges[a], edges[b], found.classes[tops[a]], float(found.scores[a:b, row, tops[a]].mean())) for a, b in runs
    ]


def best_of(scores: NDArray[np.floating], classes: Sequence[str], count: int) -> list[tuple[str, float]]:
    """Names and scores of the best classes, best first; scores [C]."""
    return [(classes[n], float(scores[n])) for n in _best(scores, count)]


def _best(scores: NDArray[np.floating], count: int) -> list[int]:
    return np.argsort(-scores, kind="stable")[:count].tolist()


def _runs(values: Sequence[int]) -> list[tuple[int, int]]:
    """Begin and end of each run of equal values."""
    begins = [n for n, value in enumerate(values) if n == 0 or value != values[n - 1]]
    return list(zip(begins, [*begins[1:], len(values)], strict=True))


class _VideoClassifier:
    """One video and one model."""

    def __init__(self, task: Classify, media: Media, classes: list[str], hop_seconds: float) -> None:
        self.task, self.media, self.classes, self.hop_seconds = task, media, classes, hop_seconds
        self.multi_label = bool(task.hparams["multi_label"])
        self.image_size, seconds = sizes_of(task.net.encoder)
        self.window = round(seconds * SAMPLE_RATE)
        self.normalise, self.log_mel = Normalise().to(task.device), LogMel().to(task.device)
        self.end, self.peak = 0, 0.0  # of the sound, so far: samples; loudest sample

    @torch.inference_mode()
    def run(self, batch_size: int, on_progress: Callable[[int, int], Any] | None) -> Classification:
        rows = Rows((len(HEADS), len(self.classes)), tempfile.gettempdir())
        total = torch.zeros(rows.shape, dtype=torch.float64)
        starts: list[int] = []
        windows = self.windows()
        while batch := list(islice(windows, batch_size)):
            scores = self.scores([start for start, _ in batch], torch.stack([sound for _, sound in batch]))
            rows.add(scores)
            total += scores.double().sum(dim=0)
            starts += [start for start, _ in batch]
            if on_progress:
                on_progress(len(starts), max(self.expected, len(starts)))
        if on_progress:
            on_progress(len(starts), len(starts))
        return Classification(
            video=self.media.path,
            classes=self.classes,
            multi_label=self.multi_label,
            seconds=self.end / SAMPLE_RATE,
            window=self.window / SAMPLE_RATE,
            hop_seconds=self.hop_seconds,
            starts=[start / SAMPLE_RATE for start in starts],
            scores=rows.array(),
            mean=(total / len(starts)).numpy(),
            notes=self.notes(),
        )

    @property
    def expected(self) -> int:
        """Windows that there will be by the header."""
        rest = self.media.info.audio_end - self.window / SAMPLE_RATE
        return 1 + max(0, math.ceil(rest / self.hop_seconds - 1e-3))

    def windows(self) -> Iterator[tuple[int, Tensor]]:
        """Start (samples) and sound [T] of each window; where the sound ends is seen by reading, headers err."""
        window, last, n = self.window, 0, 0
        while len(sound := self.sound(start := round(n * self.hop_seconds * SAMPLE_RATE))) == window:
            yield start, sound
            last, n = start, n + 1
        if n == 0 and not len(sound):
            raise DecodeError(self.media.path, "too_short", "its sound is empty")
        if n == 0:
            yield 0, extend_by_mirror(sound, window)
            return
        while len(self.sound(self.end)):  # hops longer than a window may have passed the end by
            pass
        if self.end - (last + window) >= LEAST_REST * SAMPLE_RATE:
            yield self.end - window, extend_by_mirror(self.sound(self.end - window), window)

    def sound(self, start: int) -> Tensor:
        sound = self.media.audio(start / SAMPLE_RATE, self.window / SAMPLE_RATE, SAMPLE_RATE)
        if len(sound):
            self.peak = max(self.peak, sound.abs().max().item())
            self.end = max(self.end, start + len(sound))
        return sound

    def scores(self, starts: Sequence[int], sound: Tensor) -> Tensor:
        """Windows [B, T] to the probabilities of each head, float32 [B, 4, C], on the CPU."""
        seconds, info = self.window / SAMPLE_RATE, self.media.info
        end = info.video_end if info.video_duration else math.inf  # recordings without a length
        moments = [on_grid(at + seconds / 2, at, min(at + seconds, end)) for at in (s / SAMPLE_RATE for s in starts)]
        pictures = [
            centre_view(*frame.shape[:2]).of(Image.fromarray(frame), self.image_size)
            for frame in self.media.frames(moments)
        ]
        device = self.task.device
        image = self.normalise(torch.stack(pictures).to(device))
        logits = self.task.net(image, self.log_mel(sound.to(device)))
        rows = torch.stack([*(logits[stream] for stream in STREAMS), mean_of_heads(logits)], dim=1).float()
        return (rows.sigmoid() if self.multi_label else rows.softmax(dim=-1)).cpu()

    def notes(self) -> list[str]:
        """What a person should know before believing the scores."""
        notes, end, window = [], self.end / SAMPLE_RATE, self.window / SAMPLE_RATE
        if self.peak < SILENT:
            notes.append("the sound is silent: only the scores of the picture say anything")
        if end < window:
            notes.append(f"there are {end:.2f} s of sound where {window:g} s are read; extended by its mirror image")
        if self.media.info.video_end > end + LATE:
            notes.append(
                f"the sound ends at {end:.1f} s, the picture at {self.media.info.video_end:.1f} s: scores end with "
                f"the sound"
            )
        return notes
