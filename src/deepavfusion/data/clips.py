"""From a list of clips to samples and batches: one frame and one window of sound each.

Workers decode and crop, nothing else; gain, log-mel and normalisation follow on the device.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from deepavfusion.data.decode import probe, read_audio, read_frames
from deepavfusion.transforms.audio import CLIP_SECONDS, SAMPLE_RATE, extend_by_mirror
from deepavfusion.transforms.image import centre_crop, random_crop
from deepavfusion.types import Batch, Clip, Problem, Sample
from deepavfusion.utils.errors import DecodeError

FRAME_GRID = 0.5  # s: frames are taken at multiples of this, in raw and in packed data alike

Draw = tuple[int, int]
"""(clip index, seed of this drawing): what the sampler hands to the dataset."""


class ClipDataset(Dataset["Sample | Problem"]):
    """Decodes one window of each clip; what does not decode comes back as a `Problem`, never as another clip.

    Args:
        clips: the list.
        image_size: side of the square frame, pixels.
        seconds: length of the sound window. Shorter sound is extended by its mirror image, and that is reported.
        train: a random window, a random frame inside it, a random crop and a random gain, all drawn from the seed
            alone; otherwise the centre of each.
        max_gain_db: range of the gain, ± dB.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        image_size: int,
        seconds: float = CLIP_SECONDS,
        train: bool = False,
        max_gain_db: float = 6.0,
    ) -> None:
        self.clips, self.image_size, self.seconds = clips, image_size, seconds
        self.train, self.max_gain_db = train, max_gain_db

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, draw: Draw) -> Sample | Problem:
        index, seed = draw
        clip = self.clips[index]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the GPUs, too
            try:
                return self._read(clip)
            except DecodeError as error:
                return Problem(clip.id, clip.path, error.reason, error.detail, used=False)

    def _read(self, clip: Clip) -> Sample:
        info = probe(clip.path)
        if not info.has_audio:
            raise DecodeError(clip.path, "no_audio", "the file has no audio stream")
        sound_ends = info.audio_start + info.audio_duration or info.duration
        slack = max(sound_ends - self.seconds, 0.0)
        start = slack * (torch.rand(()).item() if self.train else 0.5)
        waveform, problems = self._sound(clip, start)
        moment = start + self.seconds * (torch.rand(()).item() if self.train else 0.5)
        moment = on_grid(moment, start, min(start + self.seconds, info.video_start + info.video_duration))
        frame = torch.from_numpy(read_frames(clip.path, [moment])[0]).permute(2, 0, 1)
        image = random_crop(frame, self.image_size) if self.train else centre_crop(frame, self.image_size)
        gain_db = self.max_gain_db * (2 * torch.rand(()).item() - 1) if self.train else 0.0
        return Sample(image, waveform, clip.label, clip.id, moment, start, gain_db, problems)

    def _sound(self, clip: Clip, start: float) -> tuple[Tensor, list[Problem]]:
        wanted = round(self.seconds * SAMPLE_RATE)
        waveform = read_audio(clip.path, start, self.seconds, SAMPLE_RATE)
        if len(waveform) == wanted:
            return waveform, []
        if len(waveform) == 0:
            raise DecodeError(clip.path, "too_short", f"there is no sound after {start:.2f} s")
        found = len(waveform) / SAMPLE_RATE
        detail = f"{found:.2f} s of sound where {self.seconds:g} s were wanted; extended by its mirror image"
        problem = Problem(clip.id, clip.path, "too_short", detail, used=True)
        return extend_by_mirror(waveform, wanted), [problem]


def on_grid(moment: float, earliest: float, latest: float) -> float:
    """The multiple of `FRAME_GRID` next to a moment that still lies in [earliest, latest], seconds.

    Where no multiple does, the one before `latest`: there is always a frame on screen then.
    """
    first = -int(-earliest // FRAME_GRID)  # round up
    last = int(max(latest, 0.0) / FRAME_GRID)
    return min(max(round(moment / FRAME_GRID), first), last) * FRAME_GRID


class ClipSampler(Sampler[Draw]):
    """Which clip comes when, on which rank, with which seed: all of it a function of (seed, epoch).

    Args:
        num_clips: length of the dataset.
        shuffle: a new order each epoch.
        seed: of the run.
        rank, world_size: this process takes every world_size-th clip.
        even: give every rank the same number (training needs it), leaving out fewer than world_size clips, others
            each epoch; without it the ranks' shares are disjoint and complete, never padded.
    """

    def __init__(
        self, num_clips: int, shuffle: bool, seed: int = 0, rank: int = 0, world_size: int = 1, even: bool = False
    ) -> None:
        self.num_clips, self.shuffle, self.seed, self.even = num_clips, shuffle, seed, even
        self.rank, self.world_size = rank, world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        whole, rest = divmod(self.num_clips, self.world_size)
        return whole + (not self.even and self.rank < rest)

    def __iter__(self) -> Iterator[Draw]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        # Seeds belong to clips, not to places in the order: a rank or worker more changes no crop.
        seeds = torch.randint(2**62, (self.num_clips,), generator=generator).tolist()
        order = torch.randperm(self.num_clips, generator=generator).tolist() if self.shuffle else None
        mine = range(self.rank, self.num_clips, self.world_size)[: len(self)]
        for place in mine:
            index = order[place] if order else place
            yield index, seeds[index]


class Collate:
    """Samples to a `Batch`; problems go to its list, and with nothing but problems the tensors have 0 rows.

    Args:
        image_size, seconds: as the dataset's.
    """

    def __init__(self, image_size: int, seconds: float = CLIP_SECONDS) -> None:
        self.image_size, self.num_samples = image_size, round(seconds * SAMPLE_RATE)

    def __call__(self, items: Sequence[Sample | Problem]) -> Batch:
        samples = [item for item in items if isinstance(item, Sample)]
        problems = [item for item in items if isinstance(item, Problem)]
        problems += [problem for sample in samples for problem in sample.problems]
        if samples:
            image = torch.stack([sample.image for sample in samples])
            waveform = torch.stack([sample.waveform for sample in samples])
        else:
            image = torch.zeros(0, 3, self.image_size, self.image_size, dtype=torch.uint8)
            waveform = torch.zeros(0, self.num_samples)
        return Batch(
            image=image,
            waveform=waveform,
            label=torch.tensor([sample.label for sample in samples], dtype=torch.int64),
            id=[sample.id for sample in samples],
            frame_time=torch.tensor([sample.frame_time for sample in samples]),
            window_start=torch.tensor([sample.window_start for sample in samples]),
            gain_db=torch.tensor([sample.gain_db for sample in samples]),
            problems=problems,
        )
