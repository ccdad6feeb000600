"""What a model gives, with arrays, names and times; each result can be pickled, and saved as predict.py writes it."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from deepavfusion.api.arguments import check_argument, check_arguments, path_of
from deepavfusion.config.ranges import RULES
from deepavfusion.inference import classify, features, segment, separate
from deepavfusion.media import Source
from deepavfusion.types import HEADS
from deepavfusion.utils.errors import ArgumentError
from deepavfusion.utils.names import distinct, stem_of
from deepavfusion.weights.origin import Origin

Result = TypeVar("Result", bound="Classification | Separation | Segmentation")


@dataclass
class Embeddings(features.Features):
    """Embeddings of files and recordings, a row each, float32, in the order in which they were given.

    `image`, `audio` and `fusion` [N, D] are means over the tokens of a stream and over the windows; with level="tokens"
    [N, tokens, D]. `embeddings` has all by name, also those of the unimodal passes. A row whose file lacks a modality,
    see `modalities`, has nan for it. `paths` names the rows; `failed` lists the files without one, with the reasons,
    `remarks` those with a remark. A file that was given twice has one row; `notes` says so.
    """

    checkpoint: str = ""
    sha256: str = ""

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write an .npz, which `np.load` reads, and a list of the files that failed: as predict.py task=features.

        Args:
            path: a name that ends in .npz, or a folder, where the file is features.npz.

        Returns:
            The file.

        Raises:
            UserError: it cannot be written, or is there and no features file; none of the files could be used.
        """
        from deepavfusion.inference.write.features import check_output, write_features

        path = Path(path_of("path", path))
        output = check_output(path if path.suffix == ".npz" else path / "features.npz")
        write_features(self, output, self.checkpoint, self.sha256)
        return output


@dataclass
class Classification(classify.Classification):
    """The classes of a video over time.

    `scores`, float32 [W, 4, C] in 0…1, by window, head and class: heads read image, audio or fusion tokens, or all of
    them, and are nan where a modality is absent, see `heads`; `mean`, float64 [4, C], over the windows. `classes` are
    the C names, `starts` (s) where the windows of `window` seconds begin, `seconds` where the last one ends. `novelty`
    is above 1 for windows that are unlike the training clips (None: not known), `notes` are remarks.
    """

    network: Origin | None = None

    def top(self, count: int = 5, head: str = "all") -> list[tuple[str, float]]:
        """The classes with the highest mean scores, best first.

        Args:
            count: how many.
            head: image, audio, fusion or all.
        """
        check_argument("count", count, RULES["top_k"])
        if head not in self.heads:
            raise ArgumentError(f"head is {head!r:.80}, expected one of {', '.join(self.heads)}.")
        mean = self.mean[HEADS.index(head)]
        return [(self.classes[n], float(mean[n])) for n in classify.best(mean, count)]

    def save(self, folder: str | os.PathLike[str], top_k: int = 5) -> dict[str, Any]:
        """Write a table (CSV), a list (JSON) and a figure (PNG) into a folder: as predict.py task=classify.

        Returns:
            The content of the list, with the names of the files.

        Raises:
            UserError: the folder cannot be written to, or holds other files of these names.
        """
        from deepavfusion.inference.write.classification import write_classification
        from deepavfusion.inference.write.saving import made

        check_arguments(top_k=top_k)
        return write_classification(self, made(Path(path_of("folder", folder))), top_k, self.network)


@dataclass
class Separation(separate.Separation):
    """The sources of a video's sound.

    `waveforms`, float32 tensor [sources, T] at `sample_rate` (Hz), the video's own, with content below 8 kHz; `boxes`
    are the places of the sources in the frame, in pixels, `chosen_by` "model" or "user"; `mask` [sources, M, F] in 0…1
    is the share of each source in the mel spectrogram over the whole length of `seconds`; `levels` and `mixture_level`
    are in dB of full scale. `audio(rate, source)` gives the waveforms in parts, at any rate.
    """

    network: Origin | None = None

    def save(self, folder: str | os.PathLike[str]) -> dict[str, Any]:
        """Write a WAV and an mp4 for each source, a figure and a list into a folder: as predict.py task=separate.

        Returns:
            The content of the list, with the names of the files.

        Raises:
            UserError: the folder cannot be written to, or holds other files of these names.
        """
        from deepavfusion.inference.write.saving import made
        from deepavfusion.inference.write.separation import write_separation

        return write_separation(self, made(Path(path_of("folder", folder))), self.network)


class Masks:
    """Masks of one size, uint8 [H, W] each, compressed in memory: a hundredth of the array that `np.asarray` makes."""

    def __init__(self, masks: Iterable[NDArray[np.uint8]], height: int, width: int) -> None:
        self.size = height, width
        self._parts = [zlib.compress(mask.tobytes(), 1) for mask in masks]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(masks, height, width)"""
        return len(self._parts), *self.size

    dtype = np.dtype(np.uint8)

    def __len__(self) -> int:
        return len(self._parts)

    @overload
    def __getitem__(self, number: int) -> NDArray[np.uint8]: ...
    @overload
    def __getitem__(self, number: slice) -> NDArray[np.uint8]: ...
    def __getitem__(self, number: int | slice) -> NDArray[np.uint8]:
        """The mask of that number, [H, W]; of a slice [n, H, W]."""
        if isinstance(number, slice):
            chosen = range(len(self))[number]
            return np.stack([self[n] for n in chosen]) if chosen else np.empty((0, *self.size), np.uint8)
        return np.frombuffer(bytearray(zlib.decompress(self._parts[number])), np.uint8).reshape(self.size)

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        return (self[n] for n in range(len(self)))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return self[:] if dtype is None else self[:].astype(dtype)

    def __repr__(self) -> str:
        return f"Masks({list(self.shape)})"


@dataclass
class Segmentation:
    """The sounding pixels of a video, several times a second.

    `masks` is a sequence of N masks, uint8 [H, W] each (`np.asarray` makes [N, H, W]), at `times` (s): values are
    places in `classes`, whose first is the background; where `classes` is None, 1 sounds and 0 does not. `seconds` is
    the length of the video or its sound, whichever is longer.
    """

    video: str
    times: list[float]
    masks: Masks
    classes: list[str] | None
    seconds: float
    masks_per_second: float
    source: Source = field(repr=False)
    network: Origin | None = None

    @classmethod
    def of(cls, found: segment.Segmentation, network: Origin | None) -> Segmentation:
        """Of a video that is read meanwhile."""
        masks = Masks(found.masks, found.height, found.width)
        return cls(
            found.video, found.times, masks, found.classes, found.seconds, found.masks_per_second, found.source, network
        )

    def save(self, folder: str | os.PathLike[str]) -> dict[str, Any]:
        """Write a PNG a mask, the video with the sounding pixels in colour, a figure and a list into a folder.

        As predict.py task=segment.

        Returns:
            The content of the list, with the names of the files.

        Raises:
            UserError: the folder cannot be written to, or holds other files of these names.
        """
        from deepavfusion.inference.write.saving import made
        from deepavfusion.inference.write.segmentation import write_segmentation

        height, width = self.masks.size
        again = segment.Segmentation(
            self.video, self.seconds, height, width, self.classes, self.masks_per_second, self.times, iter(self.masks),
            self.source,
        )  # fmt: skip
        return write_segmentation(again, made(Path(path_of("folder", folder))), network=self.network)


class Results(list[Result]):
    """The results of a list of files and recordings, in its order.

    `failed` are those without a result, with the reasons: none unless errors="collect" was given.
    """

    failed: list[features.Remark]

    def __init__(self, results: Iterable[Result] = (), failed: Iterable[features.Remark] = ()) -> None:
        super().__init__(results)
        self.failed = list(failed)

    def save(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Save each into a folder of its own, named like its file; equal names are numbered.

        Returns:
            These folders.
        """
        place = path_of("folder", folder)
        folders = [Path(place, name) for name in distinct(stem_of(each.video) for each in self)]
        for own, each in zip(folders, self, strict=True):
            each.save(own)
        return folders
