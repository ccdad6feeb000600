"""From a list of clips to samples: windows of a clip, mixtures of several clips, annotated frames.

Workers decode and crop, nothing else; gain, log-mel and normalisation follow on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from deepavfusion.data.lists.clip_list import ClipList
from deepavfusion.data.loading.workers import in_worker, own_random_state, seed_item
from deepavfusion.data.mixtures import draw_partners, evaluation_mixtures, other_class_partners
from deepavfusion.data.stores.store import MASK_CENTRE, Frame, OpenClip, Store, frames_of, on_grid, whole_sample
from deepavfusion.transforms.audio import CLIP_SECONDS, SAMPLE_RATE, extend_by_mirror
from deepavfusion.transforms.image import EVAL_ZOOM, View, centre_view, random_view
from deepavfusion.types import Clip, Draw, Problem, Sample
from deepavfusion.utils.errors import DecodeError, UserError

READ_WHOLE = 600.0  # s of a clip's audio in memory
SampleGroup = list[Sample]  # kept together in a batch: windows of one clip, sources of one mixture; often just one


@dataclass(frozen=True)
class SampleSpec:
    """What all samples of a dataset have in common.

    Args:
        image_size: side of the square image, pixels.
        seconds: length of the audio window. Shorter audio is extended by its mirror image, and that is reported.
        train: window, frame, crop and gain are drawn at random, from the seed alone; otherwise the centres, no gain.
        max_gain_db: range of the gain in training, ± dB.
    """

    image_size: int
    seconds: float = CLIP_SECONDS
    train: bool = False
    max_gain_db: float = 6.0

    @property
    def num_samples(self) -> int:
        """Length of the waveform."""
        return round(self.seconds * SAMPLE_RATE)


class Unreadable(Exception):
    """A clip does not decode; the argument is its `Problem`."""


class ClipDataset(Dataset["SampleGroup | Problem"]):
    """The base of all kinds of samples. A clip that does not decode gives a `Problem`, never another clip.

    Args:
        clips: the list.
        store: opens its clips.
        spec: of the samples.
    """

    unit = "clips"  # what its items are
    group = 1  # samples per item
    zoom: float | None = EVAL_ZOOM  # see `FrameDataset`

    def __init__(self, clips: ClipList, store: Store, spec: SampleSpec) -> None:
        self.list, self.clips, self.store, self.spec = clips, clips.clips, store, spec
        # Set by the loader: wraps the reading of an item, and gives the problem of an excluded one.
        self.reading: Callable[[int], AbstractContextManager[Problem | None]] | None = None

    def __len__(self) -> int:
        return len(self.clips)

    @property
    def listed(self) -> int:
        """How many items the list expects, on disk or not."""
        return self.list.listed

    @property
    def num_classes(self) -> int:
        """Size of a classifier's output: classes, or 1 for sounding or not."""
        return len(self.list.classes)

    def first_clip(self, item: int) -> int:
        """Position of the (first) clip that an item reads."""
        return item

    def blocks(self) -> list[list[int]] | None:
        """Items that are stored together, in the order of storage; None where any order costs the same."""
        stored = self.store.blocks(self.clips)
        if stored is None:
            return None
        items: dict[int, list[int]] = {}
        for item in range(len(self)):
            items.setdefault(self.first_clip(item), []).append(item)
        found = ([item for clip in block for item in items.get(clip, ())] for block in stored)
        return [block for block in found if block]

    def __getitem__(self, draw: Draw) -> SampleGroup | Problem:
        item, seed, *later = draw
        item %= len(self)  # an epoch may contain the clips several times
        with own_random_state(), self.reading(item) if self.reading else nullcontext() as excluded:
            if excluded:
                return excluded
            if later and in_worker():  # elsewhere, its thread would be in the way of a fork
                self.store.prefetch(self.clips[self.first_clip(later[0] % len(self))])
            for again in (False, True):
                seed_item(seed)
                try:
                    group = self.read(item)
                    break
                except Unreadable as error:
                    if again or not self.store.again(error.args[0].path):
                        return error.args[0]
        for sample in group:
            sample.item = item
        return group

    def __getitems__(self, draws: Sequence[Draw]) -> list[SampleGroup | Problem | UserError]:
        """The items of a batch, as torch asks for them, or an error that ends the run, see `loading.transport`."""
        try:
            return [self[draw] for draw in draws]
        except UserError as error:
            return [error]

    def read(self, item: int) -> SampleGroup:
        """The samples of an item; the generators of torch, Python and NumPy are seeded for it.

        Raises:
            Unreadable: one of its clips does not decode.
        """
        raise NotImplementedError

    @contextmanager
    def open(self, clip: Clip) -> Iterator[OpenClip]:
        """The clip in the store; a `DecodeError` within the `with` block becomes `Unreadable`."""
        try:
            with self.store.open(clip) as opened:
                yield opened
        except DecodeError as error:
            raise Unreadable(Problem(clip.id, error.path, error.reason, error.detail, used=False)) from error

    def windows_at(self, clip: Clip, fractions: Sequence[float]) -> SampleGroup:
        """`windows` that lie at some rising fractions (0…1) of the audio."""
        with self.open(clip) as opened:
            latest = max(opened.audio_end - self.spec.seconds, 0.0)
            return self.windows(clip, opened, [whole_sample(latest * fraction) for fraction in fractions])

    def frame_time(self, clip: OpenClip, start: float) -> float:
        """Time of the frame for the window from `start`, s."""
        time = start + self.spec.seconds * self.fraction()
        return on_grid(time, start, min(start + self.spec.seconds, clip.video_end))

    def windows(self, clip: Clip, opened: OpenClip, starts: Sequence[float]) -> SampleGroup:
        """The windows of audio from each of some rising starts (s) on, and one frame inside each.

        Frames and audio are read once, and cut into windows; a problem is reported once. In a long clip, the windows of
        audio lie far apart, and are read one by one.
        """
        times = [self.frame_time(opened, start) for start in starts]
        frames = frames_of(opened, times)
        apart = starts[-1] - starts[0] > READ_WHOLE
        whole = None if apart else opened.audio(starts[0], starts[-1] - starts[0] + self.spec.seconds)
        samples: SampleGroup = []
        for start, time, frame in zip(starts, times, frames, strict=True):
            begin = round((start - starts[0]) * SAMPLE_RATE)
            audio = opened.audio(start, self.spec.seconds) if whole is None else whole[begin:]
            waveform, problems = self.fitted(clip, audio[: self.spec.num_samples], start)
            image = self.view(frame).of(frame.pixels, self.spec.image_size)
            gain_db = self.spec.max_gain_db * (2 * self.fraction() - 1)
            samples.append(Sample(image, waveform, clip, time, start, gain_db, problems=[] if samples else problems))
        return samples

    def view(self, frame: Frame) -> View:
        """Which part of a frame is shown."""
        if self.spec.train:
            return random_view(frame.height, frame.width)
        return View() if self.zoom is None else centre_view(frame.height, frame.width, self.zoom)

    def fraction(self) -> float:
        """In training a random number in 0…1, else the middle."""
        return torch.rand(()).item() if self.spec.train else 0.5

    def fitted(self, clip: Clip, waveform: Tensor, start: float) -> tuple[Tensor, list[Problem]]:
        """A window's waveform at full length, and the problem to report if it was shorter."""
        if len(waveform) == self.spec.num_samples:
            return waveform, []
        if len(waveform) == 0:
            raise DecodeError(clip.path, "too_short", f"there is no audio after {start:.2f} s", "audio")
        found, wanted = len(waveform) / SAMPLE_RATE, self.spec.seconds
        detail = f"{found:.2f} s of audio, the window is {wanted:g} s; extended by its mirror image"
        problem = Problem(clip.id, clip.path, "too_short", detail, used=True)
        return extend_by_mirror(waveform, self.spec.num_samples), [problem]


class WindowDataset(ClipDataset):
    """Windows of one clip.

    Args:
        windows: how many; more than one are evenly spaced over the whole clip, for averaging in evaluation.
    """

    def __init__(self, clips: ClipList, store: Store, spec: SampleSpec, windows: int = 1) -> None:
        super().__init__(clips, store, spec)
        assert windows >= 1, windows
        assert windows == 1 or not spec.train, "several windows a clip are for evaluation"
        self.group = windows

    def read(self, item: int) -> SampleGroup:
        several = self.group > 1
        fractions = [n / (self.group - 1) for n in range(self.group)] if several else [self.fraction()]
        return self.windows_at(self.clips[item], fractions)


class MixtureDataset(ClipDataset):
    """Several clips of different videos, to be mixed on the device.

    In training the partners of every clip are drawn anew each epoch. In evaluation the mixtures are the same in every
    run. A mixture with a clip that does not decode is excluded and counted; no other clip takes its place.

    Args:
        sources: clips per mixture.
        different_class: partners that are drawn have another class, where the data has classes.
        seed: of the mixtures in evaluation.
    """

    unit = "mixtures"

    def __init__(
        self,
        clips: ClipList,
        store: Store,
        spec: SampleSpec,
        sources: int = 2,
        different_class: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(clips, store, spec)
        self.group, self.different_class = sources, different_class and bool(clips.classes)
        self.mixtures: list[tuple[int, ...]] = []
        self.block_of: dict[int, list[int]] = {}
        if spec.train:
            self.block_of = {clip: block for block in store.blocks(self.clips) or [] for clip in block}
        else:
            self.mixtures = evaluation_mixtures(clips, sources, self.different_class, seed)

    def __len__(self) -> int:
        return len(self.clips) if self.spec.train else len(self.mixtures)

    @property
    def listed(self) -> int:
        return len(self.list.mixtures) if self.list.mixtures and not self.spec.train else self.list.listed

    def first_clip(self, item: int) -> int:
        return item if self.spec.train else self.mixtures[item][0]

    def read(self, item: int) -> SampleGroup:
        if self.spec.train:
            near = self.block_of.get(item, range(len(self.clips)))
            members = draw_partners(self.clips, item, near, self.group, self.different_class)
        else:
            members = self.mixtures[item]
        return [sample for n in members for sample in self.windows_at(self.clips[n], [self.fraction()])]


class FrameDataset(ClipDataset):
    """Annotated frames with their masks, and the window of audio around each.

    Args:
        semantic: keep the classes that the clip is annotated with; otherwise 1 for any sounding pixel.
        label_offset: added to a mask's values other than 0 to make them class indices.
        jitter: in training, the window's centre lies up to this many seconds from the frame.
        zoom: evaluation sees the square whose side is the shorter side divided by this; None: the whole frame,
            squeezed to a square.
        wrong_audio: the audio comes from a clip of other classes, always the same one; without such clips there are no
            samples.
    """

    unit = "frames"

    def __init__(
        self,
        clips: ClipList,
        store: Store,
        spec: SampleSpec,
        semantic: bool = False,
        label_offset: int = 0,
        jitter: float = 1.0,
        zoom: float | None = 1.0,
        wrong_audio: bool = False,
    ) -> None:
        super().__init__(clips, store, spec)
        self.semantic, self.label_offset, self.jitter, self.zoom = semantic, label_offset, jitter, zoom
        self.other_class_partners = other_class_partners(self.clips) if wrong_audio else None
        usable = self.clips if self.other_class_partners or not wrong_audio else []
        self.frames = [(position, n) for position, clip in enumerate(usable) for n in clip.frames]

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def num_classes(self) -> int:
        return len(self.list.classes) if self.semantic else 1

    @property
    def listed(self) -> int:
        lost = [*self.list.missing, *(clip for clip, _ in self.list.excluded)]
        return len(self.frames) + self.list.lost_frames + sum(len(clip.frames) or 1 for clip in lost)

    def first_clip(self, item: int) -> int:
        return self.frames[item][0]

    def read(self, item: int) -> SampleGroup:
        position, second = self.frames[item]
        clip, time = self.clips[position], second + MASK_CENTRE
        heard = clip if self.other_class_partners is None else self.clips[self.other_class_partners[position]]
        with self.open(clip) as opened:
            shift = self.jitter * (2 * self.fraction() - 1)
            (frame,) = opened.frames([time])
            view = self.view(frame)
            image = view.of(frame.pixels, self.spec.image_size)
            mask = self._mask(clip, second, opened, view)
            gain_db = self.spec.max_gain_db * (2 * self.fraction() - 1)
            with nullcontext(opened) if heard is clip else self.open(heard) as audible:
                start, waveform, problems = self._around(heard, audible, time + shift)
        return [Sample(image, waveform, clip, time, start, gain_db, mask, problems)]

    def _around(self, clip: Clip, opened: OpenClip, time: float) -> tuple[float, Tensor, list[Problem]]:
        """Where the window around a time begins, moved to lie within the audio, and `fitted` for it."""
        latest = max(opened.audio_end - self.spec.seconds, 0.0)
        start = whole_sample(min(max(time - self.spec.seconds / 2, 0.0), latest))
        return start, *self.fitted(clip, opened.audio(start, self.spec.seconds), start)

    def _mask(self, clip: Clip, second: int, opened: OpenClip, view: View) -> Tensor:
        """The part of a frame's mask that is shown, as class indices, or as 0 and 1; uint8 [H, W]"""
        mask = opened.mask(second)
        file, count = f"labels_semantic/{second}.png", len(self.list.classes)
        if self.semantic and (greatest := int(np.asarray(mask).max())) + self.label_offset >= count:
            detail = f"{file} holds the value {greatest}, which is none of the {count} classes"
            detail += f" (data.samples.label_offset is {self.label_offset})"
            raise DecodeError(f"{clip.path}/{file}", "bad_mask", detail)
        values = view.of_mask(mask, self.spec.image_size)
        if not self.semantic:
            return (values > 0).to(torch.uint8)
        classes = torch.where(values > 0, values.int() + self.label_offset, 0)
        annotated = torch.isin(classes, torch.tensor(clip.labels, dtype=torch.int32))
        return torch.where(annotated, classes, 0).to(torch.uint8)
