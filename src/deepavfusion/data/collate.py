"""Samples to batches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from deepavfusion.data.samples import ClipDataset, FrameDataset, SampleGroup
from deepavfusion.types import Batch, Problem, Sample


class Collate:
    """Groups of samples to a `Batch`; problems go to its list, and with nothing but problems the tensors have 0 rows.

    Args:
        dataset: whose items come in.
    """

    def __init__(self, dataset: ClipDataset) -> None:
        self.image_size, self.num_samples = dataset.spec.image_size, dataset.spec.num_samples
        self.group = dataset.group
        self.num_classes = len(dataset.list.classes) if dataset.list.multi_label else None
        self.masks = isinstance(dataset, FrameDataset)

    def __call__(self, items: Sequence[SampleGroup | Problem]) -> Batch:
        samples = [sample for item in items if not isinstance(item, Problem) for sample in item]
        problems = [item for item in items if isinstance(item, Problem)]
        problems += [problem for sample in samples for problem in sample.problems]
        size = self.image_size
        masks = [sample.mask for sample in samples if sample.mask is not None]
        return Batch(
            image=_stacked([sample.image for sample in samples], torch.uint8, 3, size, size),
            waveform=_stacked([sample.waveform for sample in samples], torch.float32, self.num_samples),
            label=torch.tensor([sample.clip.label for sample in samples], dtype=torch.int64),
            id=[sample.clip.id for sample in samples],
            frame_time=torch.tensor([sample.frame_time for sample in samples]),
            window_start=torch.tensor([sample.window_start for sample in samples]),
            gain_db=torch.tensor([sample.gain_db for sample in samples]),
            item=torch.tensor([sample.item for sample in samples], dtype=torch.int64),
            problems=problems,
            group=self.group,
            labels=self._several(samples),
            mask=_stacked(masks, torch.uint8, size, size) if self.masks else None,
        )

    def _several(self, samples: Sequence[Sample]) -> Tensor | None:
        if self.num_classes is None:
            return None
        labels = torch.zeros(len(samples), self.num_classes)
        for row, sample in zip(labels, samples, strict=True):
            row[list(sample.clip.classes)] = 1
        return labels


def _stacked(tensors: Sequence[Tensor], dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.stack([*tensors]) if tensors else torch.zeros(0, *shape, dtype=dtype)
