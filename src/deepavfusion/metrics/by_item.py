"""The base of metrics that keep a row for each item of a dataset."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

AT_ONCE = 2**20  # numbers of a block


class ItemMetric(Metric):
    """Keeps rows of numbers, one for each item, of all processes.

    Rows are sorted by `item`, and an item evaluated twice (samplers pad with repetitions) counts once: what a subclass
    computes of the `table` is the same to the last bit for all batches, orders and numbers of processes.

    Args:
        columns: name -> rows [0, …], which give type and shape; the column "item" comes with it.
    """

    full_state_update = False
    item: list[Tensor]  # one tensor once processes are synchronised, as all columns

    def __init__(self, columns: dict[str, Tensor]) -> None:
        super().__init__()
        self._empty = {"item": torch.zeros(0, dtype=torch.int64), **columns}
        self._seen: dict[str, Tensor] | None = None  # the rows behind the last `compute`
        for name in self._empty:
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def keep(self, rows: dict[str, Tensor]) -> None:
        """Add rows: column -> [B, …]."""
        shapes = {name: values.shape for name, values in rows.items()}
        assert shapes.keys() == self._empty.keys(), (shapes, set(self._empty))
        assert {shape[:1] for shape in shapes.values()} == {shapes["item"]}, shapes
        assert not rows["item"].is_floating_point(), rows["item"].dtype
        self._seen = None
        for name, values in rows.items():
            getattr(self, name).append(values.to(self._empty[name].dtype))

    def table(self) -> dict[str, Tensor]:
        """Column -> rows [N, …], by item, on the CPU: after `compute` those of all processes, before it our own."""
        if self._seen is not None:
            return self._seen
        self._fill()
        item = dim_zero_cat(self.item).cpu()
        order = item.argsort(stable=True)
        item = item[order]
        first = torch.ones(len(item), dtype=torch.bool)
        first[1:] = item[1:] != item[:-1]
        return {name: dim_zero_cat(getattr(self, name)).cpu()[order[first]] for name in self._empty}

    def gathered(self) -> dict[str, Tensor]:
        """The `table` within `compute`, remembered until rows are added."""
        self._seen = None
        self._seen = self.table()
        return self._seen

    def scalars(self, values: dict[str, float]) -> dict[str, Tensor]:
        """Float64 scalars by name, without those that are nan, means over nothing."""
        defined = {name: value for name, value in values.items() if not math.isnan(value)}
        return {name: torch.tensor(v, dtype=torch.float64, device=self.device) for name, v in defined.items()}

    def _fill(self) -> None:
        if isinstance(self.item, list) and not self.item:
            # torchmetrics would gather a process without rows as one dimension of float32
            for name, column in self._empty.items():
                getattr(self, name).append(column.to(self.device))

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gather the rows of all processes; `compute` calls it first."""
        self._fill()
        super().sync(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """`update`, and `compute` of this batch alone."""
        result = super().forward(*args, **kwargs)
        self._seen = None  # it was this batch
        return result

    def reset(self) -> None:
        self._seen = None
        super().reset()


class Rows(ItemMetric):
    """Gathers a row of numbers for each item, from all processes: what is computed is those rows, [N, width].

    Args:
        width: of a row.
    """

    def __init__(self, width: int) -> None:
        super().__init__({"row": torch.zeros(0, width)})

    def update(self, item: Tensor, row: Tensor) -> None:
        self.keep({"item": item, "row": row})

    def compute(self) -> Tensor:
        return self.gathered()["row"]


def blocks(count: int, others: int | None = None) -> tuple[Tensor, ...]:
    """The numbers of `count` rows in parts, each of which may be compared with so many others at once; None: with all
    rows."""
    return torch.arange(count).split(max(1, AT_ONCE // max(count if others is None else others, 1)))


def mean(values: list[float]) -> float:
    """Of those that are not nan; nan of none. fsum rounds once: the order does not matter."""
    values = [value for value in values if not math.isnan(value)]
    return math.fsum(values) / len(values) if values else math.nan
