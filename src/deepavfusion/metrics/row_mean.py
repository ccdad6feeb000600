"""The mean of a value over rows, of which each batch knows the mean over its own."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric


class RowMean(Metric):
    """The mean over the rows of all batches and processes: each row counts once, whatever the size of its batch.

    Neither torchmetrics' `MeanMetric` nor Lightning's `log` will do. The first replaces weights by ones or drops nan,
    depending on its `nan_strategy`; the second, with `sync_dist`, divides the number of rows by that of processes and
    rounds it down. Here, a value that is not finite makes the mean so.
    """

    full_state_update = False
    total: Tensor
    rows: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("total", "rows"):
            self.add_state(name, torch.zeros((), dtype=torch.get_default_dtype()), dist_reduce_fx="sum")

    @torch.no_grad()
    def update(self, value: Tensor, rows: int) -> None:
        """value: a scalar, the mean over so many rows; nothing is added for none."""
        if rows:
            self.total += value.detach() * rows
            self.rows += rows

    def compute(self) -> Tensor:
        """nan without rows."""
        return self.total / self.rows
