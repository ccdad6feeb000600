"""Classifies a video of any length over time: sliding windows of audio, each with the frame in its middle.

Without audio, by its frames alone; an audio file, by its audio alone.

Memory does not grow with the video: audio and frames are read window by window, and the scores go to a temporary file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice, pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deepavfusion.inference.growing import GrowingArray
from deepavfusion.inference.tasks import recorded_classes
from deepavfusion.inference.video import MODALITIES, SILENT, VideoReader, modalities, open_partial
from deepavfusion.media import Source
from deepavfusion.models.classifier import mean_of_heads
from deepavfusion.tasks.classify import Classify
from deepavfusion.transforms.audio import SAMPLE_RATE, extend_by_mirror
from deepavfusion.transforms.image import centre_view
from deepavfusion.types import ALL, HEADS
from deepavfusion.utils.errors import DecodeError, UserError

MIN_HOP = 0.01  # s
MIN_REST = 0.1  # s: a shorter end of the audio gets no window of its own
LATE = 1.0  # s that the video may outlast the audio without a note
MAX_SPANS = 20


@dataclass
class Classification:
    """The scores of a video's windows.

    `starts` (s) are where windows of `window` seconds begin; the audio, without which the video, ends at `seconds`.
    `scores`, float32 [W, 4, C] in 0…1 by window, head (`HEADS`) and class, is mapped from disk; `mean`, float64 [4, C],
    is its mean over the windows. A row sums to 1 where classes exclude each other; that of a head without its modality
    is nan. `novelty` is the distance of each window to the training clips, as a multiple of that which one in twenty
    held-out windows exceeds; None: the checkpoint does not have them, or a modality is absent. `notes` are remarks for
    the user, `modalities` what the file has; `source` is what was read, which `video` names.
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
    novelty: list[float] | None = None
    notes: list[str] = field(default_factory=list)
    modalities: tuple[str, ...] = MODALITIES
    source: Source = ""

    @property
    def heads(self) -> list[str]:
        """Those of `HEADS` that there are."""
        return [head for head in HEADS if head not in MODALITIES or head in self.modalities]

    def novel(self) -> list[bool]:
        """Whether each window is unlike the training clips."""
        return [ratio > 1 for ratio in self.novelty or [0.0] * len(self.starts)]

    def edges(self) -> list[float]:
        """W + 1 times (s) that divide the video by its nearest window."""
        middles = [start + self.window / 2 for start in self.starts]
        return [0.0, *((a + b) / 2 for a, b in pairwise(middles)), self.seconds]


class Span(NamedTuple):
    """A part of the video, s, with its top class, that class's mean score, and whether most of it is `novel`."""

    start: float
    end: float
    label: str
    score: float
    novel: bool


@torch.inference_mode()
def classify_video(
    task: Classify,
    video: Source,
    hop_seconds: float = 1.0,
    batch_size: int = 8,
    on_progress: Callable[[int, int], Any] | None = None,
) -> Classification:
    """The classes of a video by image, audio and fusion tokens and by all of them, over time.

    Windows have the length that the network takes. The first begins at 0 s, the last ends with the audio; audio
    shorter than a window is extended by its mirror image, as in evaluation. A file with one modality is classified by
    that, see `Classification`.

    Args:
        task: trained, in evaluation mode; see `load_task`. It runs on the device it is on.
        video: a file or recording with frames, audio or both, or an image.
        hop_seconds: from window to window, at least `MIN_HOP`.
        batch_size: windows at a time.
        on_progress: called with the windows done and their number, which is an estimate until all are done.

    Raises:
        UserError: the file has neither frames nor audio, or does not decode; the checkpoint does not name its classes.
    """
    if not hop_seconds >= MIN_HOP:  # 0 would never end
        raise UserError(f"hop_seconds is {hop_seconds!r}, expected seconds, at least {MIN_HOP}, e.g. 1.")
    classes = recorded_classes(task)
    with open_partial(video, "classified") as media:
        classifier = _VideoClassifier(task, VideoReader(task, media), hop_seconds)
        scores = GrowingArray((len(HEADS), len(classes)))
        total = torch.zeros(scores.shape, dtype=torch.float64)
        starts: list[int] = []
        windows = classifier.windows()
        while batch := list(islice(windows, batch_size)):
            found = classifier.scores([start for start, _ in batch], torch.stack([waveform for _, waveform in batch]))
            scores.add(found)
            total += found.double().sum(dim=0)
            starts += [start for start, _ in batch]
            if on_progress:
                on_progress(len(starts), max(classifier.expected, len(starts)))
        if on_progress:
            on_progress(len(starts), len(starts))
        return Classification(
            video=media.path,
            classes=classes,
            multi_label=classifier.multi_label,
            seconds=classifier.end / SAMPLE_RATE,
            window=classifier.seconds,
            hop_seconds=hop_seconds,
            starts=[start / SAMPLE_RATE for start in starts],
            scores=scores.array(),
            mean=(total / len(starts)).numpy(),
            novelty=classifier.novelty or None,
            notes=classifier.notes(),
            modalities=classifier.modalities,
            source=video,
        )


def spans(found: Classification) -> list[Span]:
    """Parts of equal top class of all heads; where there are over `MAX_SPANS`, that many equal parts' top classes."""
    scores = found.scores[:, HEADS.index("all")]
    tops = [int(row.argmax()) for row in scores]
    if len(_runs(tops)) > MAX_SPANS:
        parts = np.array_split(np.arange(len(tops)), MAX_SPANS)
        tops = [top for part in parts for top in [int(scores[part].mean(axis=0).argmax())] * len(part)]
    edges, novel = found.edges(), found.novel()
    result = []
    for a, b in _runs(tops):
        score = float(scores[a:b, tops[a]].mean())
        result.append(Span(edges[a], edges[b], found.classes[tops[a]], score, 2 * sum(novel[a:b]) > b - a))
    return result


def best(scores: NDArray[np.floating], count: int) -> list[int]:
    """The classes with the highest of `scores` [C], best first."""
    return np.argsort(-scores, kind="stable")[:count].tolist()


def _runs(values: Sequence[int]) -> list[tuple[int, int]]:
    """Begin and end of each run of equal values."""
    begins = [n for n, value in enumerate(values) if n == 0 or value != values[n - 1]]
    return list(zip(begins, [*begins[1:], len(values)], strict=True))


class _VideoClassifier:
    """One video and one model."""

    def __init__(self, task: Classify, reader: VideoReader, hop_seconds: float) -> None:
        self.task, self.reader, self.hop_seconds = task, reader, hop_seconds
        self.modalities = modalities(reader.media)
        self.multi_label = bool(task.hparams["multi_label"])
        self.seconds = reader.window / SAMPLE_RATE
        self.end, self.peak = 0, 0.0  # of the audio read so far: samples; loudest sample
        self.novelty: list[float] = []  # of the windows so far

    @property
    def expected(self) -> int:
        """The number of windows according to the header."""
        info = self.reader.media.info
        rest = (info.audio_end if "audio" in self.modalities else info.video_end) - self.seconds
        return 1 + max(0, math.ceil(rest / self.hop_seconds - 1e-3))

    def windows(self) -> Iterator[tuple[int, Tensor]]:
        """Start (samples) and waveform [T] of each window, [0] without audio."""
        if "audio" in self.modalities:
            yield from self._windows_of_audio()
            return
        self.end = round((self.reader.media.info.video_end or self.seconds) * SAMPLE_RATE)
        latest, hop = max(0, self.end - self.reader.window), self.hop_seconds * SAMPLE_RATE
        starts = [round(n * hop) for n in range(1 + int(latest / hop))]
        if latest - starts[-1] >= MIN_REST * SAMPLE_RATE:
            starts.append(latest)
        yield from ((start, torch.empty(0)) for start in starts)

    def _windows_of_audio(self) -> Iterator[tuple[int, Tensor]]:
        """Reading shows where the audio ends: headers may be wrong."""
        window, last, n = self.reader.window, 0, 0
        while len(waveform := self.audio(start := round(n * self.hop_seconds * SAMPLE_RATE))) == window:
            yield start, waveform
            last, n = start, n + 1
        if n == 0 and not len(waveform):
            raise DecodeError(self.reader.media.path, "too_short", "its audio is empty")
        if n == 0:
            yield 0, extend_by_mirror(waveform, window)
            return
        while len(self.audio(self.end)):  # a hop longer than a window may have jumped over the end
            pass
        if self.end - (last + window) >= MIN_REST * SAMPLE_RATE:
            yield self.end - window, extend_by_mirror(self.audio(self.end - window), window)

    def audio(self, start: int) -> Tensor:
        waveform = self.reader.media.audio(start / SAMPLE_RATE, self.seconds, SAMPLE_RATE)
        if len(waveform):
            self.peak = max(self.peak, waveform.abs().max().item())
            self.end = max(self.end, start + len(waveform))
        return waveform

    def scores(self, starts: Sequence[int], waveform: Tensor) -> Tensor:
        """Windows [B, T] to the probabilities of each head, float32 [B, 4, C], on the CPU; nan of an absent one."""
        image = audio = None
        if "image" in self.modalities:
            frames = self.reader.frames(starts)
            image = self.reader.images((frame, centre_view(*frame.shape[:2])) for frame in frames)
        if "audio" in self.modalities:
            audio = self.reader.log_mel(waveform.to(self.task.device))
        net, detector = self.task.net, self.task.novelty
        pooled = net.pooled(image, audio)
        logits = net.logits(pooled)
        if detector and self.modalities == MODALITIES:
            self.novelty += (detector.distance(net.embedding(pooled)) / detector.threshold).tolist()
        found = {**logits, ALL: mean_of_heads(logits)}
        absent = torch.full_like(found[ALL], torch.nan)
        rows = torch.stack([found.get(head, absent) for head in HEADS], dim=1).float()
        return (rows.sigmoid() if self.multi_label else rows.softmax(dim=-1)).cpu()

    def notes(self) -> list[str]:
        """What limits the meaning of the scores."""
        notes, end, video_end = [], self.end / SAMPLE_RATE, self.reader.media.info.video_end
        if len(self.modalities) == 1:
            (alone,) = self.modalities
            absent, named = ("audio", "images") if alone == "image" else ("video", "audio")
            novelty = "; whether it is unlike the training clips is not known then" if self.task.novelty else ""
            notes.append(
                f"the file has no {absent}: classified by its {named} alone ({alone} and fusion tokens, and their "
                f"mean), by a network that was trained on both{novelty}"
            )
        if "audio" not in self.modalities:
            return notes
        image = "image" in self.modalities
        if self.peak < SILENT:
            means = "only the scores of the image tokens mean anything" if image else "its scores mean nothing"
            notes.append(f"the audio is silent: {means}")
        if count := sum(ratio > 1 for ratio in self.novelty):
            notes.append(
                f"{count} of {len(self.novelty)} windows are unlike the clips that the network was trained on, so "
                "their scores mean little: their embeddings lie farther from those clips than 95 % of held-out ones"
            )
        if end < self.seconds:
            notes.append(
                f"the audio lasts {end:.2f} s, the network takes {self.seconds:g} s: extended by its mirror image"
            )
        if video_end > end + LATE:
            notes.append(
                f"the audio ends at {end:.1f} s, the video at {video_end:.1f} s: the scores end with the audio"
            )
        return notes
