"""A trained network for other programs: `load` opens it, and its methods take files and arrays."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterable, Sequence
from math import inf
from pathlib import Path
from typing import TypeVar, overload

import torch
from typing_extensions import Unpack

from deepavfusion.api.arguments import check_arguments, is_source, listed, path_of, plain
from deepavfusion.api.each import Errors, Options, for_each, fork_safe
from deepavfusion.api.file import WeightsFile
from deepavfusion.api.progress import Report, showing
from deepavfusion.api.results import Classification, Embeddings, Results, Segmentation, Separation
from deepavfusion.inference import EXPERIMENTS
from deepavfusion.inference.classify import classify_video
from deepavfusion.inference.encoders import choose_device, open_network, sizes_of
from deepavfusion.inference.features import Level, Passes, extract_features, inputs_of
from deepavfusion.inference.segment import segment_video
from deepavfusion.inference.separate import separate_video
from deepavfusion.media import Source
from deepavfusion.models.deepavfusion import DeepAVFusion
from deepavfusion.tasks.base import Task
from deepavfusion.tasks.classify import Classify
from deepavfusion.tasks.segment import Segment
from deepavfusion.tasks.separate import Separate
from deepavfusion.utils.commands import command
from deepavfusion.utils.errors import ArgumentError, TaskError, UserError
from deepavfusion.weights.hub import source_of
from deepavfusion.weights.origin import Origin

KINDS: dict[str, type[Task]] = {"classify": Classify, "separate": Separate, "segment": Segment}
T = TypeVar("T", bound=Task)


def load(source: str | os.PathLike[str], device: str | torch.device = "auto") -> Model:
    """Open a trained network.

    No code in the file runs, and nothing that it names is imported or built but the modules of this package.

    Args:
        source: a .ckpt of train.py, of any task; or weights alone, which hold an encoder: a published .pth, or
            .safetensors; or a folder that convert.py wrote, or hf://owner/name[@revision].
        device: auto (cuda if there is one, else cpu), cpu, cuda, cuda:1, …

    Raises:
        UserError: there is none, it is damaged, or something else; no such device.
    """
    place = source_of(path_of("source", source))
    if os.path.islink(place):
        place = Path(place).resolve()  # while a run trains, its last.ckpt names file after file
    network, summary = open_network(place, choose_device(device))
    return Model(network, summary, str(place))


class Model:
    """A network in evaluation mode. Its methods share four arguments, beside their own:

    source: a path; a `Recording`, of arrays; or a list of these.
    batch_size: windows (masks, for `segment`) that are computed at a time.
    num_workers: how many files are read at a time, 0: one. Results do not depend on it.
    device: to which the network is moved before, and where it stays; None: where it is.
    progress: whether a bar is shown; None: if it takes longer than two seconds.

    Results equal those of `python src/predict.py` bit for bit, on the same machine with as many threads (in a forked
    process they use one). Only one of several threads that share a model may move it.

    Attributes:
        network: the `deepavfusion.tasks.base.Task`, or the encoder of weights alone.
        summary: a line on where it comes from.
        source: what it was loaded from.
    """

    def __init__(self, network: Task | DeepAVFusion, summary: str, source: str) -> None:
        self.network, self.summary, self.source = network, summary, source
        self._file = WeightsFile(source)

    def __repr__(self) -> str:
        return f"Model({self.origin or self.summary})"

    # ---- what it is

    @property
    def encoder(self) -> DeepAVFusion:
        """The encoder: `encoder(image, audio)`, `encoder(image, None)`, `encoder(None, audio)`."""
        encoder: DeepAVFusion = self.network.net.encoder if isinstance(self.network, Task) else self.network
        return encoder

    @property
    def task(self) -> str | None:
        """What it was trained for: pretrain, classify, separate, segment, retrieve; None: weights alone."""
        return str(self.network.record["task"]) if isinstance(self.network, Task) else None

    @property
    def can(self) -> list[str]:
        """The methods that this network has been trained for; `embed` works with all."""
        return ["embed", *(name for name, kind in KINDS.items() if isinstance(self.network, kind))]

    @property
    def classes(self) -> list[str]:
        """The names of the classes that it was trained on; none of weights alone."""
        return [str(name) for name in self.network.record.get("classes", [])] if isinstance(self.network, Task) else []

    @property
    def origin(self) -> Origin | None:
        """The run and the data that it comes from; its `caveat` says what to know before results are believed."""
        return self.network.origin if isinstance(self.network, Task) else None

    @property
    def image_size(self) -> int:
        """Side of the images that it sees, pixels."""
        return sizes_of(self.encoder)[0]

    @property
    def audio_seconds(self) -> float:
        """Length of the windows of sound that it hears, s."""
        return sizes_of(self.encoder)[1]

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.encoder.fusion_tokens.device

    def to(self, device: str | torch.device) -> Model:
        """Move it; returns itself."""
        self.network.to(choose_device(device))
        return self

    # ---- what it does

    def embed(
        self,
        source: Source | Iterable[Source],
        level: Level = "pooled",
        windows: int = 1,
        passes: Passes = "joint",
        *,
        batch_size: int = 8,
        num_workers: int = 0,
        device: str | torch.device | None = None,
        progress: bool | None = None,
        time_limit: float = 60.0,
    ) -> Embeddings:
        """The embeddings of image, audio and fusion, a row a file; see `Embeddings`.

        A file that cannot be read is listed in `failed` of the result, unless it is the only one. `num_workers` are
        processes: a file that crashes its decoder, or takes longer than `time_limit` seconds, twice, fails, too.

        Args:
            source: videos, audio files, images, recordings; or a path of a folder, or of a list (.txt, .csv).
            level: "pooled", or "tokens".
            windows: 1: the window in the middle; more are evenly spread and averaged.
            passes: "joint": encoder(image, audio), "unimodal": encoder(image, None) and encoder(None, audio), or "all".

        Raises:
            UserError: nothing there; the only file cannot be read; tokens of several windows.
        """
        sources = inputs_of(source if is_source(source) else listed(source), "source")
        check_arguments(level=level, passes=passes, windows=windows, batch_size=batch_size)
        check_arguments(num_workers=num_workers, time_limit=time_limit)
        if num_workers and multiprocessing.current_process().daemon:
            raise ArgumentError(
                f"num_workers is {num_workers} in a process that is a worker itself, which may start none: expected 0."
            )
        self._move(device)
        limit = time_limit if num_workers else inf  # a call that reads by itself never ends the program
        with fork_safe(), showing("embedding", progress) as bar:
            found = extract_features(
                self.encoder, sources, level, windows, batch_size, num_workers, on_progress=bar, time_limit=limit,
                passes=passes,
            )  # fmt: skip
        if not len(found) and len(found.failed) == 1:
            (failure,) = found.failed
            raise UserError(f"{failure.path} cannot be embedded, {failure.reason}; expected frames, audio or both.")
        return Embeddings(**vars(found), checkpoint=self.source, sha256=self._file.sha256)

    @overload
    def classify(  # type: ignore[overload-overlap]  # a str is iterable, too
        self, source: Source, *, hop_seconds: float = 1, **options: Unpack[Options]
    ) -> Classification: ...
    @overload
    def classify(
        self, source: Iterable[Source], *, hop_seconds: float = 1, **options: Unpack[Options]
    ) -> Results[Classification]: ...
    def classify(
        self,
        source: Source | Iterable[Source],
        *,
        hop_seconds: float = 1,
        batch_size: int = 8,
        num_workers: int = 0,
        device: str | torch.device | None = None,
        progress: bool | None = None,
        errors: Errors = "raise",
    ) -> Classification | Results[Classification]:
        """The classes of each video over time, by what is seen, what is heard, and both.

        Args:
            source: with pictures, sound or both.
            hop_seconds: from window to window, s, at least 0.01.
            errors: of a list, "raise" the first, or "collect" them in `failed` of the results.

        Raises:
            TaskError: the network does not classify.
            UserError: a file or recording cannot be used.
        """
        task = self._task("classify", Classify)
        check_arguments(batch_size=batch_size, hop_seconds=hop_seconds)
        self._move(device)

        def one(each: Source, bar: Report) -> Classification:
            found = classify_video(task, each, hop_seconds, batch_size, on_progress=bar)
            return Classification(**vars(found), network=self.origin)

        return for_each("classifying", source, one, num_workers, progress, errors)

    @overload
    def separate(  # type: ignore[overload-overlap]
        self,
        source: Source,
        *,
        boxes: Sequence[Sequence[float]] | None = None,
        sources: int | None = None,
        **options: Unpack[Options],
    ) -> Separation: ...
    @overload
    def separate(
        self,
        source: Iterable[Source],
        *,
        boxes: Sequence[Sequence[float]] | None = None,
        sources: int | None = None,
        **options: Unpack[Options],
    ) -> Results[Separation]: ...
    def separate(
        self,
        source: Source | Iterable[Source],
        *,
        boxes: Sequence[Sequence[float]] | None = None,
        sources: int | None = None,
        batch_size: int = 8,
        num_workers: int = 0,
        device: str | torch.device | None = None,
        progress: bool | None = None,
        errors: Errors = "raise",
    ) -> Separation | Results[Separation]:
        """The sound of each source that is seen.

        Args:
            source: with pictures and sound.
            boxes: where the sources are, [x0, y0, x1, y1] each, in pixels, or in fractions if no value exceeds 1; None:
                the model splits the frame.
            sources: how many; None: as many as there are boxes, or two.
            errors: of a list, "raise" the first, or "collect" them in `failed` of the results.

        Raises:
            TaskError: the network does not separate.
            UserError: a file or recording cannot be used, or is silent; the boxes are wrong.
        """
        task = self._task("separate", Separate)
        check_arguments(batch_size=batch_size, sources=1 if sources is None else sources)
        self._move(device)
        places = plain(boxes)

        def one(each: Source, bar: Report) -> Separation:
            found = separate_video(task, each, places, sources, batch_size, on_progress=bar)
            return Separation(**vars(found), network=self.origin)

        return for_each("separating", source, one, num_workers, progress, errors)

    @overload
    def segment(  # type: ignore[overload-overlap]
        self, source: Source, *, masks_per_second: float = 5, **options: Unpack[Options]
    ) -> Segmentation: ...
    @overload
    def segment(
        self, source: Iterable[Source], *, masks_per_second: float = 5, **options: Unpack[Options]
    ) -> Results[Segmentation]: ...
    def segment(
        self,
        source: Source | Iterable[Source],
        *,
        masks_per_second: float = 5,
        batch_size: int = 8,
        num_workers: int = 0,
        device: str | torch.device | None = None,
        progress: bool | None = None,
        errors: Errors = "raise",
    ) -> Segmentation | Results[Segmentation]:
        """The pixels that sound.

        Args:
            source: with pictures and sound.
            masks_per_second: above 0, at most 1000.
            errors: of a list, "raise" the first, or "collect" them in `failed` of the results.

        Raises:
            TaskError: the network does not segment.
            UserError: a file or recording cannot be used, or is silent.
        """
        task = self._task("segment", Segment)
        check_arguments(batch_size=batch_size, masks_per_second=masks_per_second)
        self._move(device)

        def one(each: Source, bar: Report) -> Segmentation:
            return Segmentation.of(segment_video(task, each, masks_per_second, batch_size, bar), self.origin)

        return for_each("segmenting", source, one, num_workers, progress, errors)

    # ---- how

    def _task(self, name: str, kind: type[T]) -> T:
        """The network, if it was trained for the task of that name."""
        if isinstance(self.network, kind):
            return self.network
        start = "" if self.task not in (None, "pretrain") else " model.pretrained={source}"
        train = command(f"train.py experiment={EXPERIMENTS[name]}{start}", source=self.source)
        what = f"holds a network for {self.task}" if self.task else "holds an encoder alone"
        raise TaskError(
            f"{self.source} {what}, which cannot {name}: train a network that can, {train}, and load the last.ckpt of "
            "that run."
        )

    def _move(self, device: str | torch.device | None) -> None:
        if device is not None:
            self.to(device)
