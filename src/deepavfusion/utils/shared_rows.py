"""A batch that several processes share: its random numbers and its mean are those of one process with all rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, distributed
from torch.nn import functional as F


def processes() -> tuple[int, int]:
    """Rank of this process, and how many train together."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def draw_rows(draw: Callable[[int], Tensor], rows: int) -> Tensor:
    """Random numbers for each row of a batch: drawn for the rows of all processes, of which each takes its own.

    So they are the same for any number of processes, and differ between their rows, if all seed their generators alike
    (`Task.on_train_batch_start`). The order is that of `ClipSampler`, which deals every world_size-th item to each.

    Args:
        draw: number of rows -> [rows, …]
        rows: of this process.
    """
    rank, size = processes()
    return draw(rows) if size == 1 else draw(rows * size)[rank::size]


def gather_rows(rows: Tensor, most: int) -> tuple[Tensor, Tensor, int]:
    """The rows of all processes; gradients of any process flow back to the one that a row is of.

    Args:
        rows: [n, D], of this process.
        most: a number of rows that no process exceeds, the same on all. All parts are padded to it, so that no process
            waits to hear how many rows the others have.

    Returns:
        [N, D], the parts of all processes one after the other; bool [N], which are rows; where those of this process
        begin.
    """
    rank, size = processes()
    if size == 1:
        return rows, rows.new_ones(len(rows), dtype=torch.bool), 0
    from torch.distributed.nn.functional import all_gather  # torch for some machines lacks it

    assert len(rows) <= most, (len(rows), most)
    marked = torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)
    gathered = torch.cat(all_gather(F.pad(marked, (0, 0, 0, most - len(rows)))))
    return gathered[:, :-1], gathered[:, -1] > 0, rank * most


class Counts:
    """Numbers of this process, summed over all while the network computes: neither CPU nor device waits for them before
    they are needed.

    Args:
        own: whole numbers.
        device: where processes exchange tensors.
    """

    def __init__(self, own: Sequence[int], device: torch.device) -> None:
        self.own, self._sum = tuple(own), torch.tensor(own)
        self._work: Any = None
        if processes()[1] > 1:
            self._sum = self._sum.to(device, non_blocking=True)
            self._work = distributed.all_reduce(self._sum, async_op=True)

    def total(self) -> Tensor:
        """Over all processes, int64 [N]; on the CPU where there is one process, so that reading it costs nothing."""
        if self._work is not None:
            self._work.wait()
            self._work = None
        return self._sum

    def weighted(self, loss: Tensor) -> Tensor:
        """A mean over the rows of this process, weighted so that gradients, of which processes take the mean, are those
        of the mean over the rows of all; the first of the counts is that of rows."""
        _, size = processes()
        return loss if size == 1 else loss * (self.own[0] * size / self.total()[0].clamp(min=1).to(loss.dtype))
