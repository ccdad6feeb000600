"""From a list of clips to samples: windows of a clip, mixtures of several, annotated frames.

Workers decode and crop, nothing else; gain, log-mel and normalisation follow on the device.
"""

from __future__ import annotations

import random
from contextlib import nullcontext

import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from deepavfusion.data.lists.clip_list import ClipList
from deepavfusion.data.loading.workers import Board
from deepavfusion.data.mixtures import draw_partners, fixed_mixtures, other_class_partners, seeded_mixtures
from deepavfusion.data.stores.store import FRAME_GRID, MASK_CENTRE, Frame, OpenClip, Store
from deepavfusion.transforms.audio import CLIP_SECONDS, SAMPLE_RATE, extend_by_mirror
from deepavfusion.transforms.image import View, centre_view, random_view
from deepavfusion.types import Clip, Draw, Problem, Sample
from deepavfusion.utils.errors import DecodeError

SampleGroup = list[Sample]
"""Samples that stay together in a batch: the windows of one clip, the sources of one mixture; often just one."""


class ClipDataset(Dataset["SampleGroup | Problem"]):
    """What the kinds of samples share. A clip that does not decode comes back as a `Problem`, never as another clip.

    Args:
        clips: the list.
        store: where its clips are read from.
        image_size: side of the square picture, pixels.
        seconds: length of the sound window. Shorter sound is extended by its mirror image, and that is reported.
        train: windows, moments, crops and gains are random, drawn from the seed alone; otherwise the centre of each.
        max_gain_db: range of the gain in training, ± dB.
    """

    group = 1  # samples an item

    def __init__(
        self,
        clips: ClipList,
        store: Store,
        image_size: int,
        seconds: float = CLIP_SECONDS,
        train: bool = False,
        max_gain_db: float = 6.0,
    ) -> None:
        self.list, self.clips, self.store = clips, clips.clips, store
        self.image_size, self.seconds = image_size, seconds
        self.train, self.max_gain_db = train, max_gain_db
        self.board: Board | None = None  # of the loader's decoding processes
        self.left_out: dict[int, Problem] = {}  # items that the loader has given up

    def __len__(self) -> int:
        return len(self.clips)

    @property
    def listed(self) -> int:
        """How many items the list expects, on disk or not."""
        return self.list.listed

    @property
    def num_classes(self) -> int:
        """What there is to tell apart: classes, or 1 for yes or no."""
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
        blocks = [[item for clip in block for item in items.get(clip, ())] for block in stored]
        return [block for block in blocks if block]

    def __getitem__(self, draw: Draw) -> SampleGroup | Problem:
        item, seed = draw
        item %= len(self)  # an epoch may pass over the clips several times
        if item in self.left_out:
            return self.left_out[item]
        alone = torch.utils.data.get_worker_info() is not None  # nobody else draws; and to keep the states takes 0.1 ms
        isolated = nullcontext() if alone else isolate_rng(include_cuda=False)
        with isolated, self.board.reading(item) if self.board else nullcontext():
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the GPUs, too
            random.seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002  # what others draw from it
            group = self.read(item)
        if not isinstance(group, Problem):
            for sample in group:
                sample.item = item
        return group

    def read(self, item: int) -> SampleGroup | Problem:
        """The samples of an item; torch's generator is seeded for it, and so are Python's and NumPy's."""
        raise NotImplementedError

    def start(self, clip: OpenClip, fraction: float) -> float:
        """Where a window begins that lies at `fraction` (0…1) of the sound, s: a whole sample, in every store."""
        return _whole_sample(max(clip.audio_end - self.seconds, 0.0) * fraction)

    def moment(self, clip: OpenClip, start: float) -> float:
        """The moment of the picture for the window from `start`, s."""
        moment = start + self.seconds * (torch.rand(()).item() if self.train else 0.5)
        return on_grid(moment, start, min(start + self.seconds, clip.video_end))

    def window(self, clip: Clip, opened: OpenClip, start: float) -> Sample:
        """One window of sound and one picture inside it."""
        moment = self.moment(opened, start)
        (picture,) = opened.frames([moment])
        image = self.view(picture).of(picture.pixels, self.image_size)
        gain_db = self.gain_db()
        waveform, problems = self.fitted(clip, opened.audio(start, self.seconds), start)
        return Sample(image, waveform, clip, moment, start, gain_db, problems=problems)

    def view(self, picture: Frame) -> View:
        """Which part of a picture is shown."""
        return (random_view if self.train else centre_view)(picture.height, picture.width)

    def gain_db(self) -> float:
        return self.max_gain_db * (2 * torch.rand(()).item() - 1) if self.train else 0.0

    def fitted(self, clip: Clip, waveform: Tensor, start: float) -> tuple[Tensor, list[Problem]]:
        """A window's sound at full length, and what there is to tell if it was shorter."""
        wanted = round(self.seconds * SAMPLE_RATE)
        if len(waveform) == wanted:
            return waveform, []
        if len(waveform) == 0:
            raise DecodeError(clip.path, "too_short", f"there is no audio after {start:.2f} s", "audio")
        found = len(waveform) / SAMPLE_RATE
        detail = f"{found:.2f} s of sound where {self.seconds:g} s were wanted; extended by its mirror image"
        problem = Problem(clip.id, clip.path, "too_short", detail, used=True)
        return extend_by_mirror(waveform, wanted), [problem]


class WindowDataset(ClipDataset):
    """Windows of one clip.

    Args:
        windows: how many; more than one are evenly spaced over the whole clip, for averaging in evaluation.
    """

    def __init__(
        self,
        clips: ClipList,
        store: Store,
        image_size: int,
        seconds: float = CLIP_SECONDS,
        train: bool = False,
        max_gain_db: float = 6.0,
        windows: int = 1,
    ) -> None:
        super().__init__(clips, store, image_size, seconds, train, max_gain_db)
        assert windows >= 1, windows
        assert windows == 1 or not train, "several windows a clip are for evaluation"
        self.group = windows

    def read(self, item: int) -> SampleGroup | Problem:
        clip = self.clips[item]
        try:
            with self.store.open(clip) as opened:
                if self.group > 1:
                    return self._dense(clip, opened)
                fraction = torch.rand(()).item() if self.train else 0.5
                return [self.window(clip, opened, self.start(opened, fraction))]
        except DecodeError as error:
            return problem_of(clip, error)

    def _dense(self, clip: Clip, opened: OpenClip) -> SampleGroup:
        """Sound and pictures read once, and cut into windows."""
        starts = [self.start(opened, n / (self.group - 1)) for n in range(self.group)]
        moments = [self.moment(opened, start) for start in starts]
        pictures = opened.frames(moments)
        whole = opened.audio(0.0, starts[-1] + self.seconds)
        samples: SampleGroup = []
        for start, moment, picture in zip(starts, moments, pictures, strict=True):
            begin = round(start * SAMPLE_RATE)
            waveform = whole[begin : begin + round(self.seconds * SAMPLE_RATE)]
            waveform, problems = self.fitted(clip, waveform, start)
            image = self.view(picture).of(picture.pixels, self.image_size)
            samples.append(Sample(image, waveform, clip, moment, start, problems=problems if not samples else []))
        return samples


class MixtureDataset(ClipDataset):
    """Several clips of different videos, to be mixed on the device.

    In training the partners of every clip are drawn anew each epoch. In evaluation the mixtures are the protocol's
    where the list fixes them, else one for each clip with seeded partners, the same in every run. A mixture that lacks
    one of its clips is left out and counted, never mended with another.

    Args:
        sources: clips a mixture.
        different_class: partners that are drawn have another class.
        seed: of the mixtures in evaluation.
    """

    def __init__(
        self,
        clips: ClipList,
        store: Store,
        image_size: int,
        seconds: float = CLIP_SECONDS,
        train: bool = False,
        max_gain_db: float = 0.0,
        sources: int = 2,
        different_class: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(clips, store, image_size, seconds, train, max_gain_db)
        self.group, self.different_class = sources, different_class
        self.mixtures: list[tuple[int, ...]] = []
        self.block_of: dict[int, list[int]] = {}
        if train:
            self.block_of = {clip: block for block in store.blocks(self.clips) or [] for clip in block}
        elif clips.mixtures:
            self.mixtures = fixed_mixtures(clips, sources)
        else:
            self.mixtures = seeded_mixtures(clips, sources, different_class, seed)

    def __len__(self) -> int:
        return len(self.clips) if self.train else len(self.mixtures)

    @property
    def listed(self) -> int:
        return len(self.list.mixtures) if self.list.mixtures and not self.train else self.list.listed

    def first_clip(self, item: int) -> int:
        return item if self.train else self.mixtures[item][0]

    def read(self, item: int) -> SampleGroup | Problem:
        members = self._partners(item) if self.train else self.mixtures[item]
        samples: SampleGroup = []
        for member in members:
            clip = self.clips[member]
            try:
                with self.store.open(clip) as opened:
                    fraction = torch.rand(()).item() if self.train else 0.5
                    samples.append(self.window(clip, opened, self.start(opened, fraction)))
            except DecodeError as error:
                return problem_of(clip, error)
        return samples

    def _partners(self, item: int) -> tuple[int, ...]:
        near = self.block_of.get(item, range(len(self.clips)))
        return draw_partners(self.clips, item, near, self.group, self.different_class)


class FrameDataset(ClipDataset):
    """Annotated pictures with their masks, and the window of sound around each.

    Args:
        semantic: keep the classes that the clip is annotated with; otherwise 1 for any sounding pixel.
        label_offset: added to a mask's values other than 0 to make them class indices.
        jitter: in training, the window's centre lies up to so many seconds from the picture.
        zoom: evaluation sees the square whose side is the shorter side divided by this; None: the whole picture,
            squeezed to a square.
        wrong_audio: the sound comes from a clip of other classes, always the same one; without such clips there are no
            samples.
    """

    def __init__(
        self,
        clips: ClipList,
        store: Store,
        image_size: int,
        seconds: float = CLIP_SECONDS,
        train: bool = False,
        max_gain_db: float = 6.0,
        semantic: bool = False,
        label_offset: int = 0,
        jitter: float = 1.0,
        zoom: float | None = 1.0,
        wrong_audio: bool = False,
    ) -> None:
        super().__init__(clips, store, image_size, seconds, train, max_gain_db)
        self.semantic, self.label_offset, self.jitter, self.zoom = semantic, label_offset, jitter, zoom
        self.other_class_partners = other_class_partners(self.clips) if wrong_audio else None
        self.frames = [(position, n) for position, clip in enumerate(self.clips) for n in clip.frames]
        if wrong_audio and self.other_class_partners is None:
            self.frames = []

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

    def read(self, item: int) -> SampleGroup | Problem:
        position, second = self.frames[item]
        clip, moment = self.clips[position], second + MASK_CENTRE
        heard = clip if self.other_class_partners is None else self.clips[self.other_class_partners[position]]
        try:
            with self.store.open(clip) as opened:
                shift = self.jitter * (2 * torch.rand(()).item() - 1) if self.train else 0.0
                (picture,) = opened.frames([moment])
                view = self.view(picture)
                image = view.of(picture.pixels, self.image_size)
                mask = self._classes(clip, view.of_mask(self._checked(clip, second, opened), self.image_size))
                gain_db = self.gain_db()
                if heard is clip:
                    start, waveform, problems = self._around(clip, opened, moment + shift)
        except DecodeError as error:
            return problem_of(clip, error)
        if heard is not clip:
            try:
                with self.store.open(heard) as opened:
                    start, waveform, problems = self._around(heard, opened, moment)
            except DecodeError as error:
                return problem_of(heard, error)
        return [Sample(image, waveform, clip, moment, start, gain_db, mask, problems)]

    def _around(self, clip: Clip, opened: OpenClip, moment: float) -> tuple[float, Tensor, list[Problem]]:
        """Where the window around a moment begins, moved to lie within the sound, and `fitted` for it."""
        latest = max(opened.audio_end - self.seconds, 0.0)
        start = _whole_sample(min(max(moment - self.seconds / 2, 0.0), latest))
        return start, *self.fitted(clip, opened.audio(start, self.seconds), start)

    def view(self, picture: Frame) -> View:
        if self.train:
            return random_view(picture.height, picture.width)
        return View() if self.zoom is None else centre_view(picture.height, picture.width, self.zoom)

    def _checked(self, clip: Clip, second: int, opened: OpenClip) -> Image.Image:
        """The mask of a picture, whose values must be classes."""
        mask = opened.mask(second)
        greatest = int(np.asarray(mask).max())
        if self.semantic and greatest + self.label_offset >= len(self.list.classes):
            raise DecodeError(
                f"{clip.path}/labels_semantic/{second}.png",
                "bad_mask",
                f"labels_semantic/{second}.png holds the value {greatest}, which is no class of the "
                f"{len(self.list.classes)} (data.samples.label_offset is {self.label_offset})",
            )
        return mask

    def _classes(self, clip: Clip, mask: Tensor) -> Tensor:
        """A mask's values as class indices, or as 0 and 1; uint8 [H, W]"""
        if not self.semantic:
            return (mask > 0).to(torch.uint8)
        classes = torch.where(mask > 0, mask.int() + self.label_offset, 0)
        annotated = torch.isin(classes, torch.tensor(clip.labels, dtype=torch.int32))
        return torch.where(annotated, classes, 0).to(torch.uint8)


def problem_of(clip: Clip, error: DecodeError) -> Problem:
    return Problem(clip.id, error.path, error.reason, error.detail, used=False)


def on_grid(moment: float, earliest: float, latest: float) -> float:
    """The multiple of `FRAME_GRID` next to a moment that still lies in [earliest, latest], seconds.

    Where no multiple does, the one before `latest`: there is always a frame on screen then.
    """
    first = -int(-earliest // FRAME_GRID)  # round up
    last = int(max(latest, 0.0) / FRAME_GRID)
    return min(max(round(moment / FRAME_GRID), first), last) * FRAME_GRID


def _whole_sample(time: float) -> float:
    return round(time * SAMPLE_RATE) / SAMPLE_RATE
