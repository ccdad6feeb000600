"""Embeddings of any videos, audio files and images: tokens of the encoder, or their means.

Files are read by the data path of evaluation, so that features equal what the tasks see.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
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
from deepavfusion.data.samples import SampleGroup, SampleSpec
from deepavfusion.inference.encoders import sizes_of
from deepavfusion.inference.growing import GrowingArray
from deepavfusion.inference.inputs import Inputs, read_input, read_names
from deepavfusion.inference.video import MODALITIES, PartialDataset, PartialStore
from deepavfusion.media import Recording, Source
from deepavfusion.models.deepavfusion import DeepAVFusion
from deepavfusion.tasks.base import Task
from deepavfusion.transforms.audio import apply_gain
from deepavfusion.transforms.device import DeviceTransform
from deepavfusion.types import STREAMS, Batch, Clip, Problem
from deepavfusion.utils.errors import UserError

LEVELS = ("pooled", "tokens")
Level = Literal["pooled", "tokens"]
ALONE = {"image": ("solo_image", "fusion_of_image"), "audio": ("solo_audio", "fusion_of_audio")}
UNIMODAL = tuple(name for names in ALONE.values() for name in names)
PASSES = {"joint": STREAMS, "unimodal": UNIMODAL, "all": (*STREAMS, *UNIMODAL)}
"""What is computed -> the names of the embeddings that it gives."""
Passes = Literal["joint", "unimodal", "all"]


class Remark(NamedTuple):
    """A remark on a file, which is named as it was given; `place` is its path."""

    path: str
    reason: str
    place: str


class State(NamedTuple):
    """Of a file, by which a change is noticed."""

    size: int
    modified_ns: int


@dataclass
class Features:
    """Embeddings of files, a row each, in the order of the list; float32.

    `embeddings` has those of `PASSES`: image, audio and fusion tokens of the joint pass, encoder(image, audio); of the
    unimodal passes, encoder(image, None) and encoder(None, audio), the modality's own tokens (`solo_…`) and the fusion
    tokens (`fusion_of_…`). A file that lacks a modality, see `modalities`, has unimodal passes only: what is absent is
    nan, and image and fusion, or audio and fusion, are those of the other modality alone.

    Shapes: pooled [N, D], the mean over the tokens of each stream and over the windows; tokens [N, tokens, D], the
    image tokens row by row of the grid, the audio tokens by mel band and time, the fusion tokens in their groups.
    `modalities` are those of each row: "image audio", "image" or "audio". `failed` are the files without a row,
    `remarks` those with one whose audio had to be extended. `places` are absolute paths, empty for recordings, `states`
    what lay there when it was read, also of what failed.
    """

    paths: list[str]
    embeddings: dict[str, NDArray[np.float32]]
    modalities: list[str]
    places: list[str]
    states: dict[str, State]
    failed: list[Remark]
    remarks: list[Remark]
    level: Level
    windows: int
    image_size: int
    audio_seconds: float
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def image(self) -> NDArray[np.float32]:
        return self.embeddings["image"]

    @property
    def audio(self) -> NDArray[np.float32]:
        return self.embeddings["audio"]

    @property
    def fusion(self) -> NDArray[np.float32]:
        return self.embeddings["fusion"]


def extract_features(
    encoder: DeepAVFusion | Task,
    paths: Source | Iterable[Source] | Inputs,
    level: Level = "pooled",
    windows: int = 1,
    batch_size: int = 8,
    num_workers: int = 0,
    device: str | torch.device | None = None,
    scratch: str | Path | None = None,
    on_progress: Callable[[int, int], Any] | None = None,
    time_limit: float = 60.0,
    passes: Passes = "joint",
) -> Features:
    """Embeddings of files. Those that do not decode are listed in `failed` and do not stop it, nor, with decoding
    processes, do files that crash their decoder or make it hang, twice.

    Args:
        encoder: see `open_encoder`; or a task, whose encoder is taken.
        paths: files and recordings; or one recording, or one path, of a folder, list or file, see `read_input`.
        level: "pooled" or "tokens".
        windows: 1: the window in the middle of each file; more are evenly spread over it and averaged.
        batch_size: windows at a time.
        num_workers: decoding processes; 0: this one.
        device: where to compute; None: where the encoder is.
        scratch: folder for the file from which the embeddings are mapped; None: the system's for temporary files.
        on_progress: called with the files done and their number.
        time_limit: after which reading a file counts as hung, s.
        passes: "joint", "unimodal" or "all", see `Features`.

    Raises:
        UserError: `paths` names no file; tokens of several windows, or another level.
    """
    if level not in LEVELS or (level == "tokens" and windows > 1):
        raise UserError(
            f"level is {level!r} and windows is {windows}, expected level=pooled, or level=tokens with windows=1: "
            f"means of tokens over windows mean nothing."
        )
    assert passes in PASSES, passes
    inputs = paths if isinstance(paths, Inputs) else inputs_of(paths)
    model = encoder.net.encoder if isinstance(encoder, Task) else encoder
    assert not model.training, "call encoder.eval() first: in training mode branches are dropped at random"
    if device is not None:
        model.to(device)
    arrays = {name: GrowingArray(_shape(model, name, level), scratch) for name in PASSES[passes]}
    found, problems, done = dict[int, str](), list[Problem](), 0
    image_size, audio_seconds = sizes_of(model)
    transform = DeviceTransform().to(model.fusion_tokens.device)
    states = dict(states_of(inputs))
    for batches, read in _batches(inputs, image_size, audio_seconds, windows, batch_size, num_workers, time_limit):
        problems += [problem for batch in batches for problem in batch.problems]
        batches = [batch for batch in batches if len(batch)]
        if batches:
            encoded = [_encode(model, transform, batch, passes, level, batch_size) for batch in batches]
            order = torch.cat([batch.item[:: batch.group] for batch in batches]).argsort()
            for name, array in arrays.items():
                absent = torch.full((1, *array.shape), torch.nan)
                parts = zip(batches, encoded, strict=True)
                values = [part.get(name, absent.expand(batch.items, *array.shape)) for batch, part in parts]
                array.add(torch.cat(values)[order])
            for batch in batches:
                found |= dict.fromkeys(batch.item.tolist(), " ".join(_present(batch)))
        done += read
        if on_progress:
            on_progress(done, len(inputs.files))
    number = {name: n for n, name in enumerate(inputs.files)}
    problems.sort(key=lambda problem: number.get(problem.id, len(number)))  # those of a batch, by modality
    rows, files = sorted(found), [*inputs.files.items()]
    failed, remarks = ([_remark(p) for p in problems if p.used is used_] for used_ in (False, True))
    return Features(
        paths=[files[n][0] for n in rows],
        embeddings={name: array.array() for name, array in arrays.items()},
        modalities=[found[n] for n in rows],
        places=["" if files[n][0] in inputs.recordings else os.path.abspath(files[n][1]) for n in rows],
        states=states,
        failed=failed,
        remarks=remarks,
        level=level,
        windows=windows,
        image_size=image_size,
        audio_seconds=audio_seconds,
        notes=inputs.notes,
    )


def inputs_of(paths: Source | Iterable[Source], key: str = "input") -> Inputs:
    """What `extract_features` takes; `key`: what a message calls it."""
    if isinstance(paths, (str, os.PathLike)):
        return read_input(os.fspath(paths), key)
    return read_names([paths] if isinstance(paths, Recording) else paths)


def states_of(inputs: Inputs) -> Iterator[tuple[str, State]]:
    """By name; of files that exist."""
    for name, path in inputs.files.items():
        if name in inputs.recordings:
            continue
        with suppress(OSError, ValueError):  # the latter: a name with a null character
            status = os.stat(path)
            yield name, State(status.st_size, status.st_mtime_ns)


def _shape(encoder: DeepAVFusion, name: str, level: Level) -> tuple[int, ...]:
    """Of a row of an embedding."""
    tokens = encoder.fusion_tokens.shape[1]
    for stream in MODALITIES:
        if name in (stream, f"solo_{stream}"):
            tokens = getattr(encoder, stream).num_patches
    return (encoder.embed_dim,) if level == "pooled" else (tokens, encoder.embed_dim)


def _batches(
    inputs: Inputs,
    image_size: int,
    seconds: float,
    windows: int,
    batch_size: int,
    num_workers: int,
    time_limit: float,
) -> Iterator[tuple[list[Batch], int]]:
    """Batches in the order of the files, see `_collated`, with the number of files that they are made of."""
    clips = ClipList("input", [Clip(id=name, path=path) for name, path in inputs.files.items()], classes=[])
    dataset = PartialDataset(clips, PartialStore(inputs.recordings), SampleSpec(image_size, seconds), windows=windows)
    files = max(1, batch_size // windows)
    loader = ResumableLoader(
        dataset,
        time_limit,
        batch_size=files,
        sampler=ClipSampler(len(dataset), shuffle=False),
        collate_fn=partial(_collated, Collate(dataset)),
        num_workers=min(num_workers, len(dataset)),
        generator=torch.Generator(),  # a loader draws a number, which would otherwise be one of the caller's
    )
    for n, batches in enumerate(loader):
        yield batches, min(files, len(dataset) - n * files)


def _collated(collate: Collate, items: Sequence[SampleGroup | Problem]) -> list[Batch]:
    """A batch of the clips with image and audio, which has the problems, and one of those with either alone."""
    kinds: dict[tuple[bool, ...], list[SampleGroup | Problem]] = {(True, True): []}
    for item in items:
        sample = None if isinstance(item, Problem) else item[0]
        kind = (True, True) if sample is None else (sample.image.numel() > 0, sample.waveform.numel() > 0)
        kinds.setdefault(kind, []).append(item)
    return [collate(kind) for kind in kinds.values()]


def _present(batch: Batch) -> list[str]:
    """The modalities of a batch's clips."""
    return [name for name, values in zip(MODALITIES, (batch.image, batch.waveform), strict=True) if values.numel()]


@torch.inference_mode()
def _encode(
    encoder: DeepAVFusion, transform: DeviceTransform, batch: Batch, passes: Passes, level: Level, batch_size: int
) -> dict[str, Tensor]:
    """A row for each clip of a batch, on the CPU, of the embeddings that there are."""
    weights = encoder.fusion_tokens
    parts: dict[str, list[Tensor]] = {}
    for begin in range(0, len(batch), batch_size):  # one clip may have more windows than fit
        rows = slice(begin, begin + batch_size)
        inputs = {name: getattr(batch, name)[rows] for name in ("id", "image", "waveform", "gain_db")}
        part = replace(batch, **inputs).to(weights.device)
        given: dict[str, Tensor] = {}
        if part.image.numel():
            given["image"] = transform.normalise(part.image)
        if part.waveform.numel():
            given["audio"] = transform.log_mel(apply_gain(part.waveform, part.gain_db))
        tokens = _tokens(encoder, {name: values.to(weights.dtype) for name, values in given.items()}, passes)
        for name, values in tokens.items():
            parts.setdefault(name, []).append((values.mean(dim=1) if level == "pooled" else values).float().cpu())
    return {name: torch.cat(part).unflatten(0, (-1, batch.group)).mean(dim=1) for name, part in parts.items()}


def _tokens(encoder: DeepAVFusion, given: dict[str, Tensor], passes: Passes) -> dict[str, Tensor]:
    """The tokens of each embedding, [B, tokens, D]; with one modality, the joint pass is its own."""
    found: dict[str, Tensor] = {}
    alone = {name: encoder(given.get("image"), given.get("audio")).tokens for name in given if len(given) == 1}
    if passes != "joint" and len(given) == 2:
        alone = {"image": encoder(given["image"], None).tokens, "audio": encoder(None, given["audio"]).tokens}
    for name, tokens in alone.items():
        found |= dict(zip(ALONE[name], (tokens[name], tokens["fusion"]), strict=True))
    if len(given) == 1:
        return {**found, **next(iter(alone.values()))}
    return {**found, **(encoder(given["image"], given["audio"]).tokens if passes != "unimodal" else {})}


def _remark(problem: Problem) -> Remark:
    reason = " ".join(f"{problem.reason.replace('_', ' ')}: {problem.detail}".split())
    return Remark(problem.id, reason, problem.path)
