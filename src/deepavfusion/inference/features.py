"""Embeddings of any videos: image, audio and fusion tokens of the encoder, or their means.

Files are read by the data path of evaluation, so that features equal what the tasks see.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deepavfusion.data.collate import Collate
from deepavfusion.data.lists.clip_list import ClipList
from deepavfusion.data.loading.loader import ResumableLoader
from deepavfusion.data.loading.sampler import ClipSampler
from deepavfusion.data.samples import SampleSpec, WindowDataset
from deepavfusion.data.stores.raw import RawStore
from deepavfusion.inference.encoders import sizes_of
from deepavfusion.inference.growing import GrowingArray
from deepavfusion.inference.inputs import Inputs, read_input, read_names
from deepavfusion.models.deepavfusion import DeepAVFusion
from deepavfusion.tasks.base import Task
from deepavfusion.transforms.device import DeviceTransform
from deepavfusion.types import STREAMS, Batch, Clip, Problem
from deepavfusion.utils.errors import UserError

LEVELS = ("pooled", "tokens")
Level = Literal["pooled", "tokens"]


class Remark(NamedTuple):
    """A remark on a video, which is named as it was given; `place` is the file."""

    path: str
    reason: str
    place: str


@dataclass
class Features:
    """Embeddings of videos, a row each, in the order of the list; float32.

    Shapes: pooled [N, D], the mean over the tokens of each stream and over the windows; tokens [N, tokens, D], the
    image tokens row by row of the grid, the audio tokens by mel band and time, the fusion tokens in their groups.
    `failed` are the videos without a row, `remarks` those with one whose audio had to be extended.
    """

    paths: list[str]
    image: NDArray[np.float32]
    audio: NDArray[np.float32]
    fusion: NDArray[np.float32]
    failed: list[Remark]
    remarks: list[Remark]
    level: Level
    windows: int
    image_size: int
    audio_seconds: float
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.paths)


def extract_features(
    encoder: DeepAVFusion | Task,
    paths: str | Path | Iterable[str | Path],
    level: Level = "pooled",
    windows: int = 1,
    batch_size: int = 8,
    num_workers: int = 0,
    device: str | torch.device | None = None,
    scratch: str | Path | None = None,
    on_progress: Callable[[int, int], Any] | None = None,
    time_limit: float = 60.0,
) -> Features:
    """Embeddings of videos. Files that do not decode are listed in `failed` and do not stop it, nor, with decoding
    processes, do files that crash their decoder or make it hang, twice.

    Args:
        encoder: see `open_encoder`; or a task, whose encoder is taken.
        paths: files; or one path, of a folder, list or video, see `read_input`.
        level: "pooled" or "tokens".
        windows: 1: the window in the middle of each video; more are evenly spread over it and averaged.
        batch_size: windows at a time.
        num_workers: decoding processes; 0: this one.
        device: where to compute; None: where the encoder is.
        scratch: folder for the file from which the embeddings are mapped; None: the system's for temporary files.
        on_progress: called with the videos done and their number.
        time_limit: after which reading a video counts as hung, s.

    Raises:
        UserError: `paths` names no video; tokens of several windows, or another level.
    """
    if level not in LEVELS or (level == "tokens" and windows > 1):
        raise UserError(
            f"level is {level!r} and windows is {windows}, expected level=pooled, or level=tokens with windows=1: "
            f"means of tokens over windows mean nothing."
        )
    inputs = read_input(paths) if isinstance(paths, (str, Path)) else read_names(paths)
    model = encoder.net.encoder if isinstance(encoder, Task) else encoder
    assert not model.training, "call encoder.eval() first: in training mode branches are dropped at random"
    if device is not None:
        model.to(device)
    arrays = {stream: GrowingArray(shape, scratch) for stream, shape in _shapes(model, level).items()}
    used, problems, done = list[str](), list[Problem](), 0
    image_size, audio_seconds = sizes_of(model)
    transform = DeviceTransform().to(model.fusion_tokens.device)
    for batch, files in _batches(inputs, image_size, audio_seconds, windows, batch_size, num_workers, time_limit):
        problems += batch.problems
        if len(batch):
            for stream, values in _encode(model, transform, batch, level, batch_size).items():
                arrays[stream].add(values)
            used += batch.id[:: batch.group]
        done += files
        if on_progress:
            on_progress(done, len(inputs.files))
    failed, remarks = ([_remark(p) for p in problems if p.used is used_] for used_ in (False, True))
    image, audio, fusion = (arrays[stream].array() for stream in STREAMS)
    settings = (level, windows, image_size, audio_seconds)
    return Features(used, image, audio, fusion, failed, remarks, *settings, inputs.notes)


def _shapes(encoder: DeepAVFusion, level: Level) -> dict[str, tuple[int, ...]]:
    """Of a row of each stream."""
    if level == "pooled":
        return dict.fromkeys(STREAMS, (encoder.embed_dim,))
    tokens = (encoder.image.num_patches, encoder.audio.num_patches, encoder.fusion_tokens.shape[1])
    return {stream: (number, encoder.embed_dim) for stream, number in zip(STREAMS, tokens, strict=True)}


def _batches(
    inputs: Inputs,
    image_size: int,
    seconds: float,
    windows: int,
    batch_size: int,
    num_workers: int,
    time_limit: float,
) -> Iterator[tuple[Batch, int]]:
    """Batches in the order of the files, each with the number of files it is made of."""
    clips = ClipList("input", [Clip(id=name, path=path) for name, path in inputs.files.items()], classes=[])
    dataset = WindowDataset(clips, RawStore(), SampleSpec(image_size, seconds), windows=windows)
    files = max(1, batch_size // windows)
    loader = ResumableLoader(
        dataset,
        time_limit,
        batch_size=files,
        sampler=ClipSampler(len(dataset), shuffle=False),
        collate_fn=Collate(dataset),
        num_workers=min(num_workers, len(dataset)),
    )
    for n, batch in enumerate(loader):
        yield batch, min(files, len(dataset) - n * files)


@torch.inference_mode()
def _encode(
    encoder: DeepAVFusion, transform: DeviceTransform, batch: Batch, level: Level, batch_size: int
) -> dict[str, Tensor]:
    """A row for each clip of the batch, on the CPU."""
    weights = encoder.fusion_tokens
    parts: dict[str, list[Tensor]] = {stream: [] for stream in STREAMS}
    for begin in range(0, len(batch), batch_size):  # one clip may have more windows than fit
        rows = slice(begin, begin + batch_size)
        inputs = {name: getattr(batch, name)[rows] for name in ("id", "image", "waveform", "gain_db")}
        part = transform(replace(batch, **inputs).to(weights.device))
        assert part.spectrogram is not None
        output = encoder(part.image.to(weights.dtype), part.spectrogram.to(weights.dtype))
        found = output.pooled() if level == "pooled" else {stream: getattr(output, stream) for stream in STREAMS}
        for stream, values in found.items():
            parts[stream].append(values.float().cpu())
    return {stream: torch.cat(part).unflatten(0, (-1, batch.group)).mean(dim=1) for stream, part in parts.items()}


def _remark(problem: Problem) -> Remark:
    reason = " ".join(f"{problem.reason.replace('_', ' ')}: {problem.detail}".split())
    return Remark(problem.id, reason, problem.path)
