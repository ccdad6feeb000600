"""The order of items, and the share of each process."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import Sampler

from deepavfusion.types import Clip, Draw
from deepavfusion.utils.console import say_once

SHUFFLED_TOGETHER = 8  # blocks of packed clips whose order is mixed; the blocks' own order is random, too


def look_ahead(room: int, processes: int, items: float, scattered: int = 0) -> int:
    """How many places ahead blocks are fetched: those that are mixed next, while those before them are read.

    Args:
        room: blocks that can be kept; 0: none is fetched.
        processes: that share the room.
        items: of a block, on average.
        scattered: how many blocks an epoch draws from in any order; 0: it mixes a few at a time.

    Returns:
        0 if there is not room for both.
    """
    if 0 < room < scattered:
        say_once(
            f"data.class_balanced draws from {scattered} chunks in any order, of which data.cache_size holds {room}: "
            "most clips will fetch one; set it to more, or to null",
            "yellow",
        )
    elif 0 < room < SHUFFLED_TOGETHER * processes:
        say_once(
            f"data.cache_size holds {room} of the {SHUFFLED_TOGETHER * processes} chunks that are read at a time: they "
            "will be fetched several times",
            "yellow",
        )
    return round(SHUFFLED_TOGETHER * items) if room >= 2 * SHUFFLED_TOGETHER * processes else 0


class ClipSampler(Sampler[Draw]):
    """The order of an epoch, the share of this process, and a seed for each item: a function of (seed, epoch).

    Args:
        num_items: length of the dataset.
        shuffle: a new order each epoch.
        seed: of the run.
        rank, world_size: of this process. Its share is every world_size-th item; a run of neighbours with blocks.
        even: give every rank the same number (training needs it), skipping fewer than world_size items, different ones
            each epoch; without it the ranks' shares are disjoint and complete, never padded.
        blocks: items that are stored together, in the order of storage. An epoch shuffles the blocks, then the items
            within each `SHUFFLED_TOGETHER` blocks; without shuffling it follows the storage.
        weights: chances of the items; an epoch then draws as many as there are, with replacement.
        ahead: add to each draw the item that comes so many places later, as a hint to fetch it; 0: no hints.
    """

    def __init__(
        self,
        num_items: int,
        shuffle: bool,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        even: bool = False,
        blocks: Sequence[Sequence[int]] | None = None,
        weights: Tensor | None = None,
        ahead: int = 0,
    ) -> None:
        self.num_items, self.shuffle, self.seed, self.even = num_items, shuffle, seed, even
        self.rank, self.world_size, self.blocks, self.weights = rank, world_size, blocks, weights
        self.ahead = ahead
        self.epoch = 0
        self.items_done = 0  # of this process in this epoch, skipped when it is resumed; see `ResumableLoader`

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Items of a whole epoch on this process."""
        return len(self._share())

    def __iter__(self) -> Iterator[Draw]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        # Seeds belong to items, not to places in the order: a rank or worker more changes no crop.
        seeds = torch.randint(2**62, (self.num_items,), generator=generator)
        order = self._order(generator)
        share = self._share()
        for place in share[self.items_done :]:
            item = int(order[place])
            # An item that is drawn twice in an epoch is cropped differently.
            draw = item, int(seeds[item if self.weights is None else place])
            later = place + self.ahead * share.step
            yield (*draw, int(order[later])) if self.ahead and later in share else draw

    def _share(self) -> range:
        whole, rest = divmod(self.num_items, self.world_size)
        if self.blocks is None:
            size = whole + (not self.even and self.rank < rest)
            return range(self.rank, self.num_items, self.world_size)[:size]
        if self.even:
            return range(self.rank * whole, (self.rank + 1) * whole)
        begin, end = (r * self.num_items // self.world_size for r in (self.rank, self.rank + 1))
        return range(begin, end)

    def _order(self, generator: torch.Generator) -> Sequence[int] | Tensor:
        if self.weights is not None:
            return torch.multinomial(self.weights, self.num_items, replacement=True, generator=generator)
        if self.blocks is None:
            return torch.randperm(self.num_items, generator=generator) if self.shuffle else range(self.num_items)
        if not self.shuffle:
            return [item for block in self.blocks for item in block]
        blocks = [self.blocks[n] for n in torch.randperm(len(self.blocks), generator=generator).tolist()]
        order: list[int] = []
        for first in range(0, len(blocks), SHUFFLED_TOGETHER):
            near = [item for block in blocks[first : first + SHUFFLED_TOGETHER] for item in block]
            order += [near[n] for n in torch.randperm(len(near), generator=generator).tolist()]
        return order


def balanced_weights(clips: Sequence[Clip]) -> Tensor:
    """Chance of each clip to be drawn, float64 [N], sum 1: every class weighs the same, as in AudioSet training.

    The weight of a clip is the sum of 1 / (clips of the class) over its classes.
    """
    counts = Counter(label for clip in clips for label in clip.classes)
    weights = torch.tensor([sum(1 / counts[label] for label in clip.classes) for clip in clips])
    return weights.double() / weights.sum()
