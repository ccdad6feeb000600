"""The datasets of this project as plain torch Datasets, for training loops of other people.

No Hydra: what the files under configs/data set is set here, too, and a test compares both.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from operator import index
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from deepavfusion.api.arguments import check_argument, in_words_of, path_of
from deepavfusion.config.ranges import FLAG, RULES
from deepavfusion.data.datamodule import ClipDataModule
from deepavfusion.data.lists.audioset import audioset
from deepavfusion.data.lists.avsbench import avsbench
from deepavfusion.data.lists.clip_list import ClipList
from deepavfusion.data.lists.folder import folder
from deepavfusion.data.lists.music import music
from deepavfusion.data.lists.text import SPLIT_KEYS
from deepavfusion.data.lists.vggsound import vggsound
from deepavfusion.data.lists.vggsound_music import vggsound_music
from deepavfusion.data.samples import ClipDataset, FrameDataset, MixtureDataset, SampleSpec, WindowDataset
from deepavfusion.data.storage.settings import StorageSettings
from deepavfusion.transforms.audio import CLIP_SECONDS, SAMPLE_RATE, apply_gain
from deepavfusion.types import Batch, Problem
from deepavfusion.types import Sample as OneSample
from deepavfusion.utils.addresses import is_remote
from deepavfusion.utils.errors import ArgumentError, UserError
from deepavfusion.utils.files import no_file

IMAGE_SIZE = 224  # pixels
EXCLUDE = ("no_video", "no_audio", "truncated", "undecodable", "hung", "bad_mask")
TRAIN_TEST = ("train", "test")
INDEX, SAMPLES, STORAGE, DATA = "data.index.", "data.samples.", "data.storage.", "data."  # sections of a config
OWN = ("root", "image_size", "audio_seconds", "verify_report", "exclude")  # arguments of `open` that are keys of data


class ClipSample(NamedTuple):
    """A frame and a window of sound of a clip."""

    image: Tensor  # uint8 [3, image_size, image_size], RGB, 0…255
    waveform: Tensor  # float32 [audio_seconds · 16 000], mono, 16 kHz, in [−1, 1]
    label: int  # class, the first of several; −1: none is known
    labels: Tensor  # float32 [C], 1 for each class of the clip
    id: str  # of the clip
    frame_time: float  # s, in the clip
    window_start: float  # s, in the clip
    item: int  # position in the dataset


class FrameSample(NamedTuple):
    """An annotated frame with its mask, and the window of sound around it."""

    image: Tensor  # uint8 [3, image_size, image_size], RGB, 0…255
    mask: Tensor  # uint8 [image_size, image_size]: 1 sounds, 0 does not; of avsbench_avss the class, 0 the background
    waveform: Tensor  # float32 [audio_seconds · 16 000], mono, 16 kHz, in [−1, 1]
    label: int
    labels: Tensor  # float32 [C]
    id: str
    frame_time: float  # s
    window_start: float  # s
    item: int


class MixtureSample(NamedTuple):
    """The clips of a mixture, S of them, of different videos; their waveforms are to be summed."""

    image: Tensor  # uint8 [S, 3, image_size, image_size], RGB, 0…255
    waveform: Tensor  # float32 [S, audio_seconds · 16 000], mono, 16 kHz, each in [−1, 1]
    label: Tensor  # int64 [S]
    labels: Tensor  # float32 [S, C]
    id: tuple[str, ...]  # S of them
    frame_time: Tensor  # float64 [S], s
    window_start: Tensor  # float64 [S], s
    item: int


Sample = ClipSample | FrameSample | MixtureSample


@dataclass(frozen=True)
class _Known:
    """What configs/data/<name>.yaml says."""

    reader: Callable[..., ClipList]
    splits: tuple[str, ...]  # the first is the default
    kind: type[ClipDataset] = WindowDataset
    index: dict[str, Any] = field(default_factory=dict)
    samples: dict[str, Any] = field(default_factory=dict)
    max_gain_db: float = 6.0
    other_splits: bool = False  # whether the data may have others


AVSBENCH = ("train", "val", "test")
KNOWN = {
    "audioset": _Known(audioset, ("unbalanced", "balanced", "full", "eval")),
    "avsbench_avss": _Known(avsbench, AVSBENCH, FrameDataset, {"subset": "avss"}, {"semantic": True}),
    "avsbench_ms3": _Known(avsbench, AVSBENCH, FrameDataset, {"subset": "ms3"}),
    "avsbench_s4": _Known(avsbench, AVSBENCH, FrameDataset, {"subset": "s4", "train_frames": "first"}),
    "folder": _Known(folder, (*TRAIN_TEST, "all"), other_splits=True),
    "music": _Known(music, TRAIN_TEST, MixtureDataset, max_gain_db=0.0),
    "vggsound": _Known(vggsound, TRAIN_TEST),
    "vggsound_music": _Known(vggsound_music, TRAIN_TEST, MixtureDataset, max_gain_db=0.0),
}


def names() -> list[str]:
    """The names of the datasets."""
    return sorted(KNOWN)


def splits(name: str) -> list[str]:
    """The names of a dataset's splits; a folder may have others, by a table or by sub-folders."""
    return list(_known(name).splits)


def open(
    name: str,
    root: str | os.PathLike[str],
    split: str | None = None,
    *,
    augment: bool = False,
    image_size: int = IMAGE_SIZE,
    audio_seconds: float = CLIP_SECONDS,
    errors: Literal["raise", "return"] = "raise",
    verify_report: str | os.PathLike[str] | None = None,
    exclude: Sequence[str] = EXCLUDE,
    **options: Any,
) -> Samples:
    """A split of a dataset, from the files as published or from packed data (docs/datasets.md shows the layouts).

    Args:
        name: see `names`; "folder" is any folder of videos.
        root: its folder, or that of packed data, also remote (s3://…).
        split: see `splits`; None: the first of them, for training.
        augment: window, frame, crop and loudness are drawn at random, with torch's generator; else the centres are
            taken, as in evaluation.
        image_size: side of the images, pixels.
        audio_seconds: length of the window of sound, s. Shorter sound is extended by its mirror image.
        errors: what a clip that does not decode gives: "raise" a UserError, or "return" a `Problem` in place of a
            sample, which `Samples.collate` keeps apart. No other clip takes its place.
        verify_report: CSV file of prepare.py command=verify; None: verify.csv in the root, if there is one.
        exclude: statuses in it whose clips are left out.
        options: arguments of the reader (`annotations`, `clip_pattern`, …) or of the kind of samples (of mixtures
            `sources`, `different_class`, `seed`; of frames `label_offset`, `zoom`, `jitter`), as in configs/data; of
            remote data those of `StorageSettings` (`anonymous`, …), `cache_dir` and `cache_size`.

    Raises:
        ArgumentError: another name, split or option, or a value out of range.
        UserError: no data there, or in another layout; no such report.
    """
    known = _known(name)
    split = known.splits[0] if split is None else split
    if split not in known.splits and not (known.other_splits and isinstance(split, str)):
        raise ArgumentError(f"split is {split!r:.80}, expected one of {', '.join(known.splits)} of {name}.")
    if errors not in ("raise", "return"):
        raise ArgumentError(f"errors is {errors!r:.80}, expected raise or return.")
    exclude = list(exclude) if isinstance(exclude, (list, tuple, set, frozenset)) else exclude
    given = {"image_size": image_size, "audio_seconds": audio_seconds, "exclude": exclude}
    for key, value in given.items():
        check_argument(key, value, RULES[f"data.{key}"])
    check_argument("augment", augment, FLAG)
    parts = _options(known)
    keys = {f"{section}{key}": key for section, names in parts.items() for key in names}
    chosen: dict[str, dict[str, Any]] = {section: {} for section in parts}
    for key, value in options.items():
        section = next((section for section, names in parts.items() if key in names), None)
        if section is None:
            raise ArgumentError(
                f"{name} has no option {key!r:.80}, expected some of {', '.join(sorted(keys.values()))}."
            )
        if rule := RULES.get(f"{section}{key}"):
            check_argument(key, value, rule)
        chosen[section][key] = value
    place = path_of("root", root)
    report = os.path.join(place, "verify.csv") if verify_report is None else path_of("verify_report", verify_report)
    if verify_report is not None and (wrong := no_file(report)):
        raise UserError(f"verify_report {report} {wrong}: expected the CSV file that prepare.py command=verify wrote.")
    data = ClipDataModule(
        partial(known.reader, **known.index | chosen[INDEX]), place,
        name.partition("_")[0] if known.reader is avsbench else name,
        verify_report=None if is_remote(place) else report, exclude=exclude,
        storage=StorageSettings(**chosen[STORAGE]), **chosen[DATA],
    )  # fmt: skip
    spec = SampleSpec(image_size, audio_seconds, augment, known.max_gain_db)
    with in_words_of({SPLIT_KEYS: "split", **{f"data.{key}": key for key in OWN}, **keys}):
        clips, store = data.read(split)
        found = Samples(known.kind(clips, store, spec, **known.samples | chosen[SAMPLES]), errors)
    if not len(found):
        raise UserError(f"nothing of the {split} split under {place} can be used: {clips.coverage}.")
    return found


class Samples(Dataset["Sample | Problem"]):
    """Typed samples of a split: `ClipSample`, `FrameSample` or `MixtureSample`, which torch's default collate takes.

    Decoding and cropping is all that is done. `deepavfusion.transforms.device.DeviceTransform` makes of a batch of
    `collate` what the networks read, on its device.

    Attributes:
        clips: their list, with ids and paths.
        classes: names of the C classes.
        multi_label: whether a clip may have several.
        coverage: a sentence on how much of the list is on disk.
        sample_rate: of the waveforms, Hz.
    """

    sample_rate = SAMPLE_RATE

    def __init__(self, items: ClipDataset, errors: str) -> None:
        self.items, self.errors = items, errors
        self.clips, self.classes = items.clips, items.list.classes
        self.multi_label, self.coverage = items.list.multi_label, items.list.coverage

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, number: int) -> Sample | Problem:
        number = index(number)  # no slice, and no text
        if not -len(self) <= number < len(self):
            raise IndexError(f"item {number} of {len(self)}")
        seed = int(torch.randint(2**31, ())) if self.items.spec.train else 0
        found = self.items[number % len(self), seed]
        if not isinstance(found, Problem):
            return self._sample(found)
        if self.errors == "return":
            return found
        raise UserError(
            f"clip {found.id} ({found.path}) cannot be used, {found.reason.replace('_', ' ')}: {found.detail}; leave "
            'out such clips by the report of prepare.py command=verify, or open the dataset with errors="return".'
        )

    def _sample(self, group: list[OneSample]) -> Sample:
        first = group[0]
        labels = torch.zeros(len(group), len(self.classes))
        for row, sample in zip(labels, group, strict=True):
            row[list(sample.clip.classes)] = 1
        gain_db = torch.tensor([sample.gain_db for sample in group])
        waveform = apply_gain(torch.stack([sample.waveform for sample in group]), gain_db)
        if isinstance(self.items, MixtureDataset):
            return MixtureSample(
                torch.stack([sample.image for sample in group]),
                waveform,
                torch.tensor([sample.clip.label for sample in group]),
                labels,
                tuple(sample.clip.id for sample in group),
                torch.tensor([sample.frame_time for sample in group], dtype=torch.float64),
                torch.tensor([sample.window_start for sample in group], dtype=torch.float64),
                first.item,
            )
        rest = (first.clip.label, labels[0], first.clip.id, first.frame_time, first.window_start, first.item)
        if first.mask is not None:
            return FrameSample(first.image, first.mask, waveform[0], *rest)
        return ClipSample(first.image, waveform[0], *rest)

    def collate(self, items: Sequence[Sample | Problem]) -> Batch:
        """A `deepavfusion.types.Batch`, for `DataLoader(…, collate_fn=dataset.collate)`.

        Clips that do not decode are in its `problems`; if there is nothing else, its tensors have no rows.
        """
        samples = [item for item in items if not isinstance(item, Problem)]
        spec, group = self.items.spec, self.items.group

        def rows(name: str, dtype: torch.dtype, *shape: int) -> Tensor:
            parts = [torch.as_tensor(getattr(sample, name), dtype=dtype).reshape(-1, *shape) for sample in samples]
            return torch.cat([torch.zeros(0, *shape, dtype=dtype), *parts])

        return Batch(
            image=rows("image", torch.uint8, 3, spec.image_size, spec.image_size),
            waveform=rows("waveform", torch.float32, spec.num_samples),
            label=rows("label", torch.int64),
            id=[name for sample in samples for name in ([sample.id] if isinstance(sample.id, str) else sample.id)],
            frame_time=rows("frame_time", torch.float32),
            window_start=rows("window_start", torch.float32),
            gain_db=torch.zeros(len(samples) * group),  # it is applied
            item=rows("item", torch.int64).repeat_interleave(group),
            problems=[item for item in items if isinstance(item, Problem)],
            group=group,
            labels=rows("labels", torch.float32, len(self.classes)),
            mask=rows("mask", torch.uint8, spec.image_size, spec.image_size)
            if isinstance(self.items, FrameDataset)
            else None,
        )


def _known(name: str) -> _Known:
    if not isinstance(name, str) or name not in KNOWN:
        raise ArgumentError(f"there is no dataset {name!r:.80}, expected one of {', '.join(names())}.")
    return KNOWN[name]


def _options(known: _Known) -> dict[str, list[str]]:
    """The names of all options, by the section of a config that holds them; the first section with a name has it."""
    return {
        INDEX: _arguments(known.reader),
        SAMPLES: _arguments(known.kind),
        STORAGE: _arguments(StorageSettings),
        DATA: ["cache_dir", "cache_size"],
    }


def _arguments(function: Callable[..., Any]) -> list[str]:
    """The names of a function's arguments that an option may set."""
    ours = ("root", "split", "self", "clips", "store", "spec", "windows", "wrong_audio")
    return [name for name in inspect.signature(function).parameters if name not in ours]
