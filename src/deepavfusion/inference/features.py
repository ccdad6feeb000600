"""Embeddings of any videos: image, audio and fusion tokens of the encoder, or their means.

Files are read by the data path of evaluation, so that features equal what the tasks see.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from deepavfusion.data.collate import Collate
from deepavfusion.data.lists.clip_list import ClipList
from deepavfusion.data.lists.text import count
from deepavfusion.data.loading.sampler import ClipSampler
from deepavfusion.data.samples import SampleSpec, WindowDataset
from deepavfusion.data.stores.raw import RawStore
from deepavfusion.inference.encoders import sizes_of
from deepavfusion.inference.inputs import Inputs, read_input, read_names
from deepavfusion.inference.rows import Rows
from deepavfusion.models.deepavfusion import DeepAVFusion
from deepavfusion.tasks.base import Task
from deepavfusion.transforms.device import DeviceTransform
from deepavfusion.types import STREAMS, Batch, Clip, Problem
from deepavfusion.utils.errors import UserError
from deepavfusion.utils.files import whole

LEVELS = ("pooled", "tokens")
TOLD = 3  # failures in one sentence
Level = Literal["pooled", "tokens"]


class Remark(NamedTuple):
    """What there is to say about a video, named as it was given; `place` is where it lies."""

    path: str
    reason: str
    place: str


@dataclass
class Features:
    """Embeddings of videos, a row each, in the order of the list; float32.

    Shapes: pooled [N, D], the mean over the tokens of each stream and over the windows; tokens [N, tokens, D], the
    image tokens row by row of the grid, the audio tokens by mel band and time, the fusion tokens in their groups.
    `failed` are the videos without a row, `remarks` those with one whose sound had to be extended.
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
) -> Features:
    """Embeddings of videos; what does not decode is listed, and nothing stops.

    Args:
        encoder: see `open_encoder`; or a task, whose encoder is taken.
        paths: files; or one path that means them, see `read_input`.
        level: "pooled" or "tokens".
        windows: the window in the middle of each video; more than one are evenly spread over it and averaged.
        batch_size: windows at a time.
        num_workers: decoding processes.
        device: where to compute; None: where the encoder is.
        scratch: a folder, on whose disk the embeddings are kept and mapped into memory; None: in memory.
        on_progress: called with the videos done and their number.

    Raises:
        UserError: nothing is meant by `paths`; or a level, a number of windows or of the rest that cannot be.
    """
    _check(level, windows, batch_size, num_workers)
    inputs = read_input(paths) if isinstance(paths, (str, Path)) else read_names(paths)
    model = encoder.net.encoder if isinstance(encoder, Task) else encoder
    assert isinstance(model, DeepAVFusion), type(model)
    assert not model.training, "an encoder in training drops branches at random: encoder.eval() first"
    if device is not None:
        model.to(device)
    image_size, seconds = sizes_of(model)
    rows = {stream: Rows(shape, scratch) for stream, shape in _shapes(model, level).items()}
    used: list[str] = []
    problems: list[Problem] = []
    transform = DeviceTransform().to(model.fusion_tokens.device)
    done = 0
    for batch, items in _batches(inputs, image_size, seconds, windows, batch_size, num_workers):
        problems += batch.problems
        if len(batch):
            for stream, values in _encoded(model, transform, batch, level, batch_size).items():
                rows[stream].add(values)
            used += batch.id[:: batch.group]
        done += items
        if on_progress:
            on_progress(done, len(inputs.files))
    return Features(
        paths=used,
        **{stream: rows[stream].array() for stream in STREAMS},
        failed=[_remark(problem) for problem in problems if not problem.used],
        remarks=[_remark(problem) for problem in problems if problem.used],
        level=level,
        windows=windows,
        image_size=image_size,
        audio_seconds=seconds,
        notes=inputs.notes,
    )


def _check(level: str, windows: Any, batch_size: Any, num_workers: Any) -> None:
    if level not in LEVELS:
        raise UserError(f"level is {level!r}, expected one of {', '.join(LEVELS)}.")
    for name, number, least in (
        ("windows", windows, 1),
        ("batch_size", batch_size, 1),
        ("num_workers", num_workers, 0),
    ):
        if type(number) is not int or number < least:
            raise UserError(f"{name} is {number!r}, expected a whole number of at least {least}.")
    if level == "tokens" and windows > 1:
        raise UserError(
            f"windows is {windows} and level is tokens, whose mean over windows would say nothing: expected windows=1, "
            f"or level=pooled."
        )


def _shapes(encoder: DeepAVFusion, level: Level) -> dict[str, tuple[int, ...]]:
    """Of a row of each stream."""
    if level == "pooled":
        return dict.fromkeys(STREAMS, (encoder.embed_dim,))
    tokens = (encoder.image.num_patches, encoder.audio.num_patches, encoder.fusion_tokens.shape[1])
    return {stream: (number, encoder.embed_dim) for stream, number in zip(STREAMS, tokens, strict=True)}


def _batches(
    inputs: Inputs, image_size: int, seconds: float, windows: int, batch_size: int, num_workers: int
) -> Iterator[tuple[Batch, int]]:
    """Batches in the order of the files, each with the number of files it is made of."""
    clips = ClipList("input", [Clip(id=name, path=path) for name, path in inputs.files.items()], classes=[])
    dataset = WindowDataset(clips, RawStore(), SampleSpec(image_size, seconds), windows=windows)
    together = max(1, batch_size // windows)
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_size=together,
        sampler=ClipSampler(len(dataset), shuffle=False),
        collate_fn=Collate(dataset),
        num_workers=min(num_workers, len(dataset)),
    )
    for n, batch in enumerate(loader):
        yield batch, min(together, len(dataset) - n * together)


@torch.inference_mode()
def _encoded(
    encoder: DeepAVFusion, transform: DeviceTransform, batch: Batch, level: Level, batch_size: int
) -> dict[str, Tensor]:
    """A row for each clip of the batch, on the CPU."""
    weights = encoder.fusion_tokens
    parts: dict[str, list[Tensor]] = {stream: [] for stream in STREAMS}
    for begin in range(0, len(batch), batch_size):  # many windows of one clip come in parts
        some = transform(_part(batch, slice(begin, begin + batch_size)).to(weights.device))
        assert some.spectrogram is not None
        output = encoder(some.image.to(weights.dtype), some.spectrogram.to(weights.dtype))
        found = output.pooled() if level == "pooled" else {stream: getattr(output, stream) for stream in STREAMS}
        for stream, values in found.items():
            parts[stream].append(values.float().cpu())
    return {stream: torch.cat(part).unflatten(0, (-1, batch.group)).mean(dim=1) for stream, part in parts.items()}


def _part(batch: Batch, rows: slice) -> Batch:
    """Some rows of what is computed with."""
    return replace(
        batch, id=batch.id[rows], image=batch.image[rows], waveform=batch.waveform[rows], gain_db=batch.gain_db[rows]
    )


def _remark(problem: Problem) -> Remark:
    reason = " ".join(f"{problem.reason.replace('_', ' ')}: {problem.detail}".split())
    return Remark(problem.id, reason, problem.path)


# ---------------------------------------------------------------- file


def write_features(features: Features, output: str | Path, checkpoint: str = "") -> Path | None:
    """Write an .npz, whole or not at all; and a list of the failed videos beside it, <name>_failed.txt, if there are.

    `np.load` reads it without pickle: `path`, `image`, `audio`, `fusion` (a row each), `failed` and `failed_reason`,
    `remark` and `remark_reason` (paths with reasons), and what it is: `checkpoint`, `level`, `windows`, `image_size`
    (pixels) and `audio_seconds`.

    Args:
        features: of `extract_features`.
        output: a name that ends in .npz; what is there is overwritten.
        checkpoint: which file the encoder came from.

    Returns:
        The list of the failed.

    Raises:
        UserError: not one video could be used (the list is written all the same); the files cannot be written.
    """
    output = check_output(output)
    failed = output.with_name(f"{output.stem}_failed.txt")
    try:
        with suppress(FileNotFoundError):
            failed.unlink()  # of an earlier run
        if features.failed:
            lines = (f"# {reason}\n{Path(place).absolute()}\n" for _, reason, place in features.failed)
            failed.write_text("".join(lines), encoding="utf-8", errors="surrogateescape")
        if not len(features):
            raise UserError(all_failed(features, failed))
        with whole(output) as partial, partial.open("wb") as file:
            np.savez(
                file,
                path=_texts(features.paths),
                **{stream: getattr(features, stream) for stream in STREAMS},
                failed=_texts([failure.path for failure in features.failed]),
                failed_reason=_texts([failure.reason for failure in features.failed]),
                remark=_texts([remark.path for remark in features.remarks]),
                remark_reason=_texts([remark.reason for remark in features.remarks]),
                checkpoint=np.array(checkpoint),
                level=np.array(features.level),
                windows=np.array(features.windows),
                image_size=np.array(features.image_size),
                audio_seconds=np.array(features.audio_seconds),
            )
    except OSError as error:
        raise UserError(f"output {output} cannot be written: {error.strerror or error}; choose another.") from error
    return failed if features.failed else None


def check_output(output: str | Path) -> Path:
    """The name of a features file, whose folder is made."""
    path = Path(output)
    if path.suffix != ".npz" or path.is_dir():
        raise UserError(f"output={output} is no name of a features file: expected one that ends in .npz.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"folder {path.parent} cannot be made: {error.strerror}; give another output.") from None
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"folder {path.parent} cannot be written to; give another output.")
    return path


def all_failed(features: Features, listed: Path) -> str:
    """The sentence for videos none of which could be used."""
    shown = "; ".join(f"{failure.path}: {failure.reason}" for failure in features.failed[:TOLD])
    more = len(features.failed) - TOLD
    more_told = f"; and {more} more" if more > 0 else ""
    return (
        f"of {count(len(features.failed), 'video')} not one could be used ({shown}{more_told}), see {listed}: expected "
        f"whole videos with picture and sound."
    )


def summary(features: Features, output: Path, failed: Path | None) -> list[str]:
    """What was written, in lines for the terminal."""
    total = len(features) + len(features.failed)
    shapes = ", ".join(f"{stream} {list(getattr(features, stream).shape)}" for stream in STREAMS)
    windows = f"{count(features.windows, 'window')} of {features.audio_seconds:g} s"
    level = "means over the tokens" if features.level == "pooled" else "tokens"
    lines = [f"Written to {output}: {len(features)} of {count(total, 'video')}; {level}, {windows}: {shapes}"]
    lines += [f"  {note}" for note in features.notes]
    for remarks, words in (
        (features.failed, f"failed, listed in {failed} and in the file (failed, failed_reason)"),
        (features.remarks, "used with a remark, listed in the file (remark, remark_reason)"),
    ):
        if remarks:
            lines.append(f"  {len(remarks)} {words}:")
            lines += [f"    {remark.path}: {remark.reason}" for remark in remarks[:TOLD]]
            lines += [f"    and {len(remarks) - TOLD} more"] if len(remarks) > TOLD else []
    return lines


def _texts(values: list[str]) -> NDArray[np.str_]:
    return np.array(values, dtype=np.str_)
