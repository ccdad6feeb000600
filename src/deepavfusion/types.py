"""What the packages exchange: samples, batches and model outputs, with their shapes.

Letters: B clips in a batch · T samples of the waveform · H×W pixels · M mel bands · F spectrogram frames ·
N tokens of a stream · D embedding dimension · L layers · P masked or kept patches · C classes.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

STREAMS = ("image", "audio", "fusion")
ALL = "all"
HEADS = (*STREAMS, ALL)
"""The outputs of a classifier: a head for each stream, and the mean of their logits."""

Draw = tuple[int, int] | tuple[int, int, int]
"""(item, its random seed), perhaps an item that will be read later: what the sampler passes to the dataset."""


@dataclass(frozen=True, slots=True)
class Clip:
    """One line of a dataset's list, with the place that holds it.

    Args:
        id: unique within the dataset, e.g. `"<youtube id>_<start:06d>"`.
        path: the media file, or an AVSBench folder of frames, masks and audio; it may be unreadable.
        label: class index, the first of `labels` where there are several; -1 when the dataset has none.
        video: id of the video it was cut from; clips of one video never meet in a mixture, nor on both sides of a
            hold-out. Empty: the clip's own id.
        labels: all class indices of a clip that may have several; empty for one class a clip.
        frames: numbers of the annotated frames: frame n lies at n + 0.5 s.
        start, end: the part of a media file that the clip is, s; None: to the end of the file.
    """

    id: str
    path: str
    label: int = -1
    video: str = ""
    labels: tuple[int, ...] = ()
    frames: tuple[int, ...] = ()
    start: float = 0.0
    end: float | None = None

    @property
    def video_id(self) -> str:
        """Id of the video it was cut from; its own id where none is listed."""
        return self.video or self.id

    @property
    def classes(self) -> tuple[int, ...]:
        """All its class indices, whichever field holds them; empty where the dataset has none."""
        return self.labels or ((self.label,) if self.label >= 0 else ())


class Problem(NamedTuple):
    """Something to report about a clip. `used` is False when the clip was excluded from its batch.

    Not a frozen dataclass, which Lightning cannot convert along with its batch to other precisions than 32 bits.
    """

    id: str
    path: str
    reason: str
    detail: str
    used: bool


@dataclass
class Sample:
    """One frame and one window of audio of a clip, as a worker returns them.

    Shapes: image uint8 [3, H, W], 0…255, cropped to the model's size; waveform float32 [T], mono, in [−1, 1];
    mask uint8 [H, W], a class per pixel, where the frame is annotated.
    `frame_time` and `window_start` are seconds from the start of the clip; `gain_db` is still to be applied, dB.
    `item` is the position in the dataset of what was requested: clip, mixture or annotated frame.
    """

    image: Tensor
    waveform: Tensor
    clip: Clip
    frame_time: float
    window_start: float
    gain_db: float = 0.0
    mask: Tensor | None = None
    problems: list[Problem] = field(default_factory=list)
    item: int = -1


@dataclass
class Batch:
    """A batch of clips.

    From collate: `image` uint8 [B, 3, H, W], `waveform` float32 [B, T], `label` int64 [B], `gain_db` float32 [B],
    `item` int64 [B], positions in the dataset.
    After the DataModule's device transforms: `image` float [B, 3, H, W], ImageNet-normalised, and
    `spectrogram` float [B, 1, M, F], log10 power mel.
    `group` rows that follow each other belong together: the windows of one clip, or the sources of one mixture;
    `x.unflatten(0, (-1, batch.group))` separates them. B may be smaller than requested, even 0: clips that do not
    decode are in `problems`, not in the tensors.
    Only where the dataset has them: `labels` float32 [B, C], 1 for each class of a clip with several, and `mask`
    uint8 [B, H, W], a class a pixel.
    """

    image: Tensor
    waveform: Tensor
    label: Tensor
    id: list[str]
    frame_time: Tensor
    window_start: Tensor
    gain_db: Tensor
    item: Tensor
    problems: list[Problem] = field(default_factory=list)
    spectrogram: Tensor | None = None
    group: int = 1
    labels: Tensor | None = None
    mask: Tensor | None = None

    def __len__(self) -> int:
        return len(self.id)

    @property
    def items(self) -> int:
        """How many clips or mixtures the rows are."""
        return len(self.id) // self.group

    @property
    def drawn(self) -> int:
        """How many the sampler asked for: those of the rows, and those that could not be used."""
        return self.items + sum(not problem.used for problem in self.problems)

    def first(self, n: int) -> Batch:
        """The first n rows."""
        return replace(self._map(lambda tensor: tensor[:n]), id=self.id[:n])

    def first_of_each(self) -> Batch:
        """The first row of each group."""
        every = self.group
        return replace(self._map(lambda tensor: tensor[::every]), id=self.id[::every], group=1)

    def _map(self, function: Any) -> Batch:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: function(v) for k, v in values.items() if isinstance(v, Tensor)})

    def to(self, *args: Any, **kwargs: Any) -> Batch:
        """Every tensor moved; the rest shared. Lightning calls it with the device."""
        return self._map(lambda tensor: tensor.to(*args, **kwargs))

    def pin_memory(self) -> Batch:
        """Every tensor in page-locked memory; the DataLoader calls it."""
        return self._map(torch.Tensor.pin_memory)


@dataclass
class EncoderOutput:
    """The streams after their final LayerNorm, and on request every layer before it.

    Shapes: image [B, N_image, D], audio [B, N_audio, D], fusion [B, N_fusion, D], where N counts the patches kept
    when a mask was given; None: the modality is absent. `*_layers`: L tensors of the stream's shape, the output of
    each layer, not normalised; none of an absent one.
    """

    image: Tensor | None
    audio: Tensor | None
    fusion: Tensor
    image_layers: list[Tensor] = field(default_factory=list)
    audio_layers: list[Tensor] = field(default_factory=list)
    fusion_layers: list[Tensor] = field(default_factory=list)

    @property
    def tokens(self) -> dict[str, Tensor]:
        """Those streams of "image", "audio", "fusion" that exist."""
        return {name: getattr(self, name) for name in STREAMS if getattr(self, name) is not None}

    def pooled(self) -> dict[str, Tensor]:
        """The mean over the tokens of each stream that exists: {"image", "audio", "fusion"} -> [B, D]."""
        return {name: tokens.mean(dim=1) for name, tokens in self.tokens.items()}


@dataclass
class PatchMask:
    """Which patches of each clip the encoder sees; indices, since True in a mask could mean either.

    Shapes: keep int64 [B, K] and masked int64 [B, N − K], together a permutation of 0…N−1 in every row.
    """

    keep: Tensor
    masked: Tensor


@dataclass
class MAEOutput:
    """Output of the masked autoencoder for one batch.

    Shapes: losses are scalars; predictions [B, P, patch pixels] for the P masked patches, in the order of
    `mask.masked`, in units of the per-patch normalised target; masks index the patches of each modality.
    """

    loss: Tensor
    image_loss: Tensor
    audio_loss: Tensor
    image_prediction: Tensor
    audio_prediction: Tensor
    image_mask: PatchMask
    audio_mask: PatchMask
    encoded: EncoderOutput


@dataclass
class SeparationOutput:
    """Output of the separator for a batch of mixtures of n sources each; B counts the sources.

    Shapes: mixture [B / n, T] and estimate [B, T] waveforms; mixture_mel [B / n, 1, M, F], power; mask and target_mask
    [B, 1, M, F] in 0…1.
    """

    mixture: Tensor
    estimate: Tensor
    mixture_mel: Tensor
    mask: Tensor
    target_mask: Tensor
