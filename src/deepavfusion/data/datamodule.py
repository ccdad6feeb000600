"""Clips to batches on the device, for every dataset whose reader gives a `ClipList`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader

from deepavfusion.data.clips import ClipDataset, ClipSampler, Collate
from deepavfusion.data.index import ClipList
from deepavfusion.transforms.audio import CLIP_SECONDS
from deepavfusion.transforms.device import DeviceTransform
from deepavfusion.types import Batch, Clip
from deepavfusion.utils.errors import UserError


class ClipDataModule(LightningDataModule):
    """Streams one frame and one window of sound of each clip.

    Training passes over the train split. Validation passes over the test split and then over a gallery of train
    clips (loader 1), for nearest-neighbour accuracy; neither is shuffled, padded or repeated.

    Args:
        index: reader of the layout: called as index(root=…, split="train" | "test"), returns a `ClipList`.
        root: folder of the dataset.
        name: for messages.
        batch_size: clips a step and process.
        image_size: side of the frames, pixels.
        audio_seconds: length of the sound window, s.
        max_gain_db: random loudness in training, ± dB.
        num_workers: decoding processes; None: the cores shared among the
            processes of this machine, at most 16 each.
        gallery_clips: at most so many train clips, evenly spread over the list, form the gallery; 0: none.
        seed: of order, windows and crops.
    """

    def __init__(
        self,
        index: Callable[..., ClipList],
        root: str,
        name: str,
        batch_size: int = 64,
        image_size: int = 224,
        audio_seconds: float = CLIP_SECONDS,
        max_gain_db: float = 6.0,
        num_workers: int | None = None,
        gallery_clips: int = 10_000,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.index, self.root, self.name = index, Path(root), name
        self.batch_size, self.image_size, self.audio_seconds = batch_size, image_size, audio_seconds
        self.num_workers = num_workers
        self.gallery_clips, self.seed = gallery_clips, seed
        self.max_gain_db = max_gain_db
        self.device_transform = DeviceTransform()
        self.lists: dict[str, ClipList] = {}

    def setup(self, stage: str | None = None) -> None:
        """Read the lists.

        Raises:
            UserError: no data, or not in the layout; see the reader.
        """
        if not self.lists:
            self.lists = {split: self.index(root=self.root, split=split) for split in ("train", "test")}

    @property
    def classes(self) -> list[str]:
        return self.lists["train"].classes

    def train_dataloader(self) -> DataLoader[Any]:
        clips = self.lists["train"].clips
        rank, world_size = self._rank_and_world()
        sampler = ClipSampler(len(clips), True, self.seed, rank, world_size, even=True)
        # A last, smaller batch would weigh its clips more than the others.
        drop_last = len(sampler) >= self.batch_size
        return self._loader(clips, sampler, train=True, drop_last=drop_last)

    def val_dataloader(self) -> list[DataLoader[Any]]:
        sets = [self.lists["test"].clips]
        if self.gallery_clips:
            train = self.lists["train"].clips
            sets.append(train[:: max(1, -(-len(train) // self.gallery_clips))])
        rank, world_size = self._rank_and_world()
        return [self._loader(clips, ClipSampler(len(clips), False, self.seed, rank, world_size)) for clips in sets]

    def workers(self, processes: int) -> int:
        """Decoding workers of each of so many training processes on this machine."""
        if self.num_workers is not None:
            return self.num_workers
        return max(1, min(len(os.sched_getaffinity(0)) // processes, 16))

    def _rank_and_world(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _loader(
        self, clips: Sequence[Clip], sampler: ClipSampler, train: bool = False, drop_last: bool = False
    ) -> DataLoader[Any]:
        if 0 < len(clips) < sampler.world_size:
            raise UserError(
                f"{len(clips)} clips for {sampler.world_size} processes: a split under {self.root} needs at least one "
                f"each; set trainer.devices={len(clips)}, or give more clips."
            )
        workers = self.workers(self.trainer.num_devices if self.trainer else 1)
        return DataLoader(
            ClipDataset(clips, self.image_size, self.audio_seconds, train, self.max_gain_db),
            batch_size=self.batch_size,
            sampler=sampler,
            collate_fn=Collate(self.image_size, self.audio_seconds),
            drop_last=drop_last,
            num_workers=workers,
            persistent_workers=train and workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        return batch.to(device, non_blocking=True)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        return self.device_transform.to(batch.image.device)(batch)
