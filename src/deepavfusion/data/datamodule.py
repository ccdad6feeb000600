"""Clips to batches on the device, for every dataset whose reader gives a `ClipList`, raw or packed."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning import LightningDataModule

from deepavfusion.data.collate import Collate
from deepavfusion.data.lists.clip_list import ClipList
from deepavfusion.data.lists.retrieval import for_reader
from deepavfusion.data.lists.verified import bad_clips
from deepavfusion.data.loading.loader import ResumableLoader
from deepavfusion.data.loading.sampler import ClipSampler, balanced_weights, look_ahead
from deepavfusion.data.samples import ClipDataset, SampleSpec, WindowDataset
from deepavfusion.data.storage.settings import ANSWER_SECONDS, StorageSettings
from deepavfusion.data.stores.packed import is_packed
from deepavfusion.data.stores.packed_list import Kept, packed_list
from deepavfusion.data.stores.raw import RawStore
from deepavfusion.data.stores.store import Store
from deepavfusion.transforms.audio import CLIP_SECONDS
from deepavfusion.transforms.device import DeviceTransform
from deepavfusion.types import Batch
from deepavfusion.utils.addresses import is_remote
from deepavfusion.utils.errors import UserError
from deepavfusion.utils.launch.cores import decoding_workers
from deepavfusion.utils.launch.handover import Handover
from deepavfusion.utils.structure import Maybe

HOLDOUT = "holdout"
KEYS = {"train": "train_split", "val": "val_split", "test": "eval_split"}
CHOOSING = (  # arguments of readers that say what is listed
    *("subset", "lists", "train_frames", "retrieval_list"),
    *("classes", "seconds", "max_windows", "test_share", "split_seed"),
)


class ClipDataModule(LightningDataModule):
    """Streams samples of clips, from the files as published or from packed chunks (`root` decides).

    Validation passes over `val_split` and then, if asked for, over a gallery of train clips (loader 1), for
    nearest-neighbour accuracy; test over `eval_split` and then, if asked for, over such a gallery, dense windows of the
    same clips or its frames with wrong audio (loader 1). Neither is shuffled or padded. Training resumes in an epoch.

    Args:
        index: reader of the layout: called as index(root=…, split=…), returns a `ClipList`.
        root: folder of the dataset, or of packed data, also remote (s3://…).
        name: of the dataset.
        samples: kind of samples: called as samples(clips, store, spec), with windows=… or wrong_audio=….
        train_split, val_split, eval_split: names of splits; val_split may be "holdout", a seeded share of the train
            videos that is then not trained on.
        holdout_share, train_share: of the train videos; of the clips to train on, in about as long an epoch: `thinned`.
        batch_size: items a step and process.
        image_size: side of the frames, pixels.
        audio_seconds: length of the audio window, s.
        max_gain_db: random loudness in training, ± dB.
        num_workers: decoding processes; None: the cores shared among the processes of this machine, at most 16 each.
        hang_seconds: a decoding process that reads one item for longer (than 60 s, from a remote root) is killed, and
            the item tried again, s.
        repeats: passes over the clips in a training epoch.
        class_balanced: an epoch draws as many clips as there are, all classes equally often.
        gallery_clips: maximum number of train clips, evenly spread over the list, in the gallery; 0: none.
        dense_windows: windows a clip in the second test loader; 0: none.
        wrong_audio: the second test loader pairs annotated frames with the audio of a clip of other classes.
        min_coverage: an evaluation of a smaller fraction of its list is an error, 0…1.
        verify_report: CSV file of `prepare.py command=verify`; none is needed.
        exclude: statuses in that report whose clips are not used.
        cache_dir, cache_size, storage: of remote roots, see `packed_list.Kept`.
        seed: of order, windows and crops.
    """

    # See utils/structure.py.
    STATE: ClassVar = {"delivered": 0, "batch_size": Maybe(0), "processes": Maybe(0), "order": Maybe(0)}

    def __init__(
        self,
        index: Callable[..., ClipList],
        root: str,
        name: str,
        samples: Callable[..., ClipDataset] = WindowDataset,
        train_split: str = "train",
        val_split: str = "test",
        eval_split: str = "test",
        holdout_share: float = 0.05,
        train_share: float = 1.0,
        batch_size: int = 64,
        image_size: int = 224,
        audio_seconds: float = CLIP_SECONDS,
        max_gain_db: float = 6.0,
        num_workers: int | None = None,
        hang_seconds: float = 300.0,
        repeats: int = 1,
        class_balanced: bool = False,
        gallery_clips: int = 0,
        dense_windows: int = 0,
        wrong_audio: bool = False,
        min_coverage: float = 0.0,
        verify_report: str | None = None,
        exclude: Sequence[str] = (),
        cache_dir: str | None = None,
        cache_size: int | str | None = None,
        storage: StorageSettings | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.index, self.root, self.dataset_name, self.samples = for_reader(index), str(root), name, samples
        self.split_of = dict(zip(KEYS, (train_split, val_split, eval_split), strict=True))
        self.batch_size, self.image_size, self.audio_seconds = batch_size, image_size, audio_seconds
        self.max_gain_db, self.num_workers, self.hang_seconds = max_gain_db, num_workers, hang_seconds
        self.repeats, self.class_balanced, self.seed, self.exclude = repeats, class_balanced, seed, tuple(exclude)
        self.gallery_clips, self.dense_windows, self.wrong_audio = gallery_clips, dense_windows, wrong_audio
        self.kept = Kept(storage or StorageSettings(), cache_dir, cache_size)
        self.patience = self.kept.storage.patience_seconds if is_remote(self.root) else 0.0  # s, with what is read
        self.verify_report, self.min_coverage = verify_report, min_coverage
        self.holdout_share, self.train_share = holdout_share, train_share
        self.device_transform = DeviceTransform()
        self.lists: dict[str, ClipList] = {}  # "train", "val", "test" -> what it reads
        self.stores: dict[str, Store] = {}
        self.found: dict[str, tuple[ClipList, Store]] = {}  # what `read` gave, by split
        self.handover = Handover([self.root, self.split_of, self.reader, self.verify_report, self.exclude])
        self._train_loader: ResumableLoader | None = None
        self._batches_done = 0  # of the epoch to resume

    # ---- lists

    @property
    def splits(self) -> list[str]:
        """Names of the splits that lie on disk."""
        return [split for split in dict.fromkeys(self.split_of.values()) if split != HOLDOUT]

    @property
    def reader(self) -> dict[str, Any]:
        """The arguments of the list's reader that choose which clips and frames there are."""
        given = getattr(self.index, "keywords", {})
        return {key: given[key] for key in CHOOSING if key in given}

    def read(self, split: str, known_bad: bool = True) -> tuple[ClipList, Store]:
        """One split as listed, without the clips that a verify report names if `known_bad`.

        Raises:
            UserError: no data, or not in the layout; see the reader.
        """
        if is_packed(self.root):
            return packed_list(self.root, split, self.dataset_name, self.reader, self.kept)
        clips = self.index(root=self.root, split=split)
        if known_bad and self.verify_report:
            clips = clips.without(bad_clips(Path(self.verify_report), self.exclude))
        return clips, RawStore()

    def setup(self, stage: str | None = None) -> None:
        """Read the lists; on one process of a machine, from which the others of the run get them.

        Args:
            stage: "test" needs clips to test only, "fit" some to train on, and of each split that lists any; None
                needs none.

        Raises:
            UserError: no data, not in the layout, no usable clip of a split, or fewer than `min_coverage`.
        """
        if self.lists:  # Lightning calls it once all processes have met
            self.handover.remove()
            return
        found = self.found = self.handover.get(lambda: {split: self.read(split) for split in self.splits})
        kinds = {split: (clips.classes, clips.multi_label) for split, (clips, _) in found.items()}
        if any(kind != kinds[self.split_of["train"]] for kind in kinds.values()):
            raise UserError(
                f"the splits {', '.join(kinds)} under {self.root} have different classes, expected the same, in one "
                "order: copy or pack them again, all in one command."
            )
        for role, split in self.split_of.items():
            self.lists[role], self.stores[role] = found[self.split_of["train"] if split == HOLDOUT else split]
        if self.split_of["val"] == HOLDOUT:
            self.lists["train"], self.lists["val"] = self.lists["train"].held_out(self.holdout_share, self.seed)
        whole = self.lists["train"]
        self.lists["train"] = whole.thinned(self.train_share, self.seed)
        self.repeats = max(1, round(self.repeats * len(whole) / max(1, len(self.lists["train"]))))
        listing = {role for role, clips in self.lists.items() if clips.listed}
        needed = {None: set(), "test": {"test"}}.get(stage, {"train", *listing})
        for role, clips in self.lists.items():
            if role in needed and not self.count(role)[0]:
                mend = (
                    "get or pack its clips, see data.exclude and the verify report" if clips.listed else "give it some"
                )
                raise UserError(
                    f"nothing of the {clips.split} split under {self.root} can be used ({clips.coverage}): {mend}, or "
                    f"set data.{KEYS[role]}."
                )
            usable = len(clips) / clips.listed if clips.listed else 1.0
            if role != "train" and usable < self.min_coverage:
                raise UserError(
                    f"only {len(clips)} of {clips.listed} clips of the {clips.split} split under {self.root} can be "
                    f"used ({usable:.1%}), but this protocol requires {self.min_coverage:.0%}: get the missing clips, "
                    f"or set data.min_coverage={int(usable * 100) / 100:g} to accept that; the coverage is reported "
                    "with the metrics."
                )

    @property
    def classes(self) -> list[str]:
        return self.lists["train"].classes

    @property
    def num_classes(self) -> int:
        """What a network has to tell apart: classes, or 1 for sounding or not."""
        return self._dataset("train").num_classes

    @property
    def multi_label(self) -> bool:
        """Whether a clip may have several classes."""
        return self.lists["train"].multi_label

    @property
    def class_counts(self) -> list[int]:
        """Train clips of each class; a clip counts for each of its classes."""
        counts = Counter(label for clip in self.lists["train"].clips for label in clip.classes)
        return [counts[label] for label in range(len(self.classes))]

    def count(self, role: str) -> tuple[int, str]:
        """Items of a pass over "train", "val" or "test", and what they are: clips, mixtures or frames."""
        dataset = self._dataset(role, train=role == "train")
        return len(dataset) * (self.repeats if role == "train" else 1), dataset.unit

    def train_batches(self, processes: int) -> int:
        """Batches of an epoch on each process."""
        return max(1, self.count("train")[0] // processes // self.batch_size)

    @cached_property
    def order(self) -> int:
        """Of the items and blocks that epochs shuffle: another number where the same seed would give another order."""
        dataset, number = self._dataset("train", train=True), 0
        for clip in dataset.clips:
            number = zlib.crc32(f"{clip.id} {clip.frames}\n".encode(errors="backslashreplace"), number)
        for block in dataset.blocks() or ():
            number = zlib.crc32(repr(block).encode(), number)
        return number

    # ---- loaders

    def train_dataloader(self) -> ResumableLoader:
        loader = self._loader(self._dataset("train", train=True), train=True)
        loader.load_state_dict({"delivered": self._batches_done})
        self._train_loader, self._batches_done = loader, 0
        return loader

    def state_dict(self) -> dict[str, int]:
        """The position in the epoch, to resume from: `train_dataloader` passes it on to the loader.

        Lightning saves the loader's own state, too, but restores it too late: the loader is made when the schedule asks
        for the number of steps, before the loops are restored.
        """
        loader, trainer = self._train_loader, self.trainer
        assert trainer is not None
        batches_done = 0 if loader is None or trainer.is_last_batch else loader.batches_done
        now = {"batch_size": self.batch_size, "processes": trainer.world_size, "order": self.order}
        return {"delivered": batches_done, **now}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self._batches_done = state_dict["delivered"]  # of such batches as these: runs/checkpoints.py checks it

    def val_dataloader(self) -> list[ResumableLoader]:
        return [self._loader(dataset) for dataset in (self._dataset("val"), *self._gallery())]

    def _gallery(self) -> list[ClipDataset]:
        clips = self._spread("train", self.gallery_clips) if self.gallery_clips else ()
        return [self._dataset("train", clips=clips)] if clips else []

    def novelty_dataloaders(self, max_clips: int, windows: int) -> list[ResumableLoader]:
        """The centre windows of train clips, and several windows of validation clips; at most so many clips of each."""
        train = self._dataset("train", clips=self._spread("train", max_clips))
        return [
            self._loader(train),
            self._loader(self._dataset("val", clips=self._spread("val", max_clips), windows=windows)),
        ]

    def test_dataloader(self) -> list[ResumableLoader]:
        datasets = [self._dataset("test"), *self._gallery()]
        if self.dense_windows:
            datasets.append(self._dataset("test", windows=self.dense_windows))
        if self.wrong_audio and len(wrong := self._dataset("test", wrong_audio=True)):
            datasets.append(wrong)
        return [self._loader(dataset) for dataset in datasets]

    def workers(self, processes: int) -> int:
        """Decoding workers of each of so many training processes here."""
        return decoding_workers(processes) if self.num_workers is None else self.num_workers

    def _dataset(self, role: str, train: bool = False, clips: ClipList | None = None, **kind: int) -> ClipDataset:
        spec = SampleSpec(self.image_size, self.audio_seconds, train, self.max_gain_db)
        return self.samples(clips or self.lists[role], self.stores[role], spec, **kind)

    def _spread(self, role: str, most: int) -> ClipList:
        """At most so many clips of a list, evenly spread over it."""
        clips = self.lists[role]
        return replace(clips, clips=clips.clips[:: max(1, -(-len(clips) // most))])

    def _loader(self, dataset: ClipDataset, train: bool = False) -> ResumableLoader:
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        if 0 < len(dataset) < world_size:
            raise UserError(
                f"{len(dataset)} clips for {world_size} processes: a split under {self.root} needs at least "
                f"one each; set trainer.devices={len(dataset)}, or give more clips."
            )
        blocks, weights, repeats = dataset.blocks(), None, self.repeats if train else 1
        if blocks is not None:
            blocks = [[item + n * len(dataset) for item in block] for n in range(repeats) for block in blocks]
        items = len(dataset) * repeats
        if train and self.class_balanced:
            weights = balanced_weights([dataset.clips[dataset.first_clip(n % len(dataset))] for n in range(items)])
        processes = self.trainer.num_devices if self.trainer else 1
        scattered = len(blocks or ()) // repeats if weights is not None else 0
        ahead = look_ahead(dataset.store.room, processes, items / len(blocks), scattered) if blocks else 0
        sampler = ClipSampler(items, train, self.seed, rank, world_size, train, blocks, weights, ahead)
        workers = self.workers(processes)
        return ResumableLoader(
            dataset,
            batch_size=self.batch_size,
            sampler=sampler,
            collate_fn=Collate(dataset),
            # A last, smaller batch would weigh its clips more than the others.
            drop_last=train and len(sampler) >= self.batch_size,
            num_workers=workers,
            persistent_workers=train and workers > 0,
            pin_memory=torch.cuda.is_available(),
            hang_seconds=max(self.hang_seconds, ANSWER_SECONDS if self.patience else 0),
            together=train * (self.trainer.accumulate_grad_batches if self.patience and self.trainer else 1),
        )

    # ---- batches

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        for problem in batch.problems:
            folder = Path(problem.path).parent
            if problem.reason == "missing" and not is_remote(problem.path) and not folder.is_dir():
                raise UserError(
                    f"{folder} existed when the run began and is gone: restore it (is the disk mounted?), and run the "
                    "same command again."
                )
        return batch

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        return batch.to(device, non_blocking=True)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        return self.device_transform.to(batch.image.device)(batch)
