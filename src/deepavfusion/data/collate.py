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
        self.dataset = dataset

    def __call__(self, items: Sequence[SampleGroup | Problem]) -> Batch:
        samples = [sample for item in items if not isinstance(item, Problem) for sample in item]
        problems = [item for item in items if isinstance(item, Problem)]
        problems += [problem for sample in samples for problem in sample.problems]
        size, num_samples = self.dataset.spec.image_size, self.dataset.spec.num_samples
        masks = [sample.mask for sample in samples if sample.mask is not None]
        return Batch(
            image=_stacked([sample.image for sample in samples], torch.uint8, 3, size, size),
            waveform=_stacked([sample.waveform for sample in samples], torch.float32, num_samples),
            label=torch.tensor([sample.clip.label for sample in samples], dtype=torch.int64),
            id=[sample.clip.id for sample in samples],
            frame_time=torch.tensor([sample.frame_time for sample in samples]),
            window_start=torch.tensor([sample.window_start for sample in samples]),
            gain_db=torch.tensor([sample.gain_db for sample in samples]),
            item=torch.tensor([sample.item for sample in samples], dtype=torch.int64),
            problems=problems,
            group=self.dataset.group,
            labels=self._multi_hot(samples) if self.dataset.list.multi_label else None,
            mask=_stacked(masks, torch.uint8, size, size) if isinstance(self.dataset, FrameDataset) else None,
        )

    def _multi_hot(self, samples: Sequence[Sample]) -> Tensor:
        labels = torch.zeros(len(samples), len(self.dataset.list.classes))
        for row, sample in zip(labels, samples, strict=True):
            row[list(sample.clip.classes)] = 1
        return labels


def _stacked(tensors: Sequence[Tensor], dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.stack([*tensors]) if tensors else torch.zeros(0, *shape, dtype=dtype)
