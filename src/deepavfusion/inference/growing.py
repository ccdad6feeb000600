"""Collects what comes in batches in one array on disk: results, and the waveforms of long videos."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class GrowingArray:
    """A float32 array [N, *shape] that grows by rows in a file, not in memory.

    Args:
        shape: of a row.
        folder: for the file; None: the system's folder for temporary files.
    """

    def __init__(self, shape: Sequence[int], folder: str | Path | None = None) -> None:
        self.shape, self.count = tuple(shape), 0
        # The file has no name, so nothing is left of it, however the process ends.
        self.file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115

    def __del__(self) -> None:
        if hasattr(self, "file"):
            self.file.close()  # maps of it stay

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled with its rows, as results are that go to another process; there they are in a file again."""
        return _grown, (self.shape, self[:].numpy())

    def add(self, rows: Tensor) -> None:
        """Append rows [n, *shape]; raises OSError where the disk is full."""
        assert tuple(rows.shape[1:]) == self.shape, (rows.shape, self.shape)
        self.file.write(rows.float().cpu().contiguous().numpy().tobytes())
        self.count += len(rows)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, rows: slice) -> Tensor:
        """A copy of some rows. Unlike pages of a memory map, it does not count as memory once it is gone."""
        begin, end, step = rows.indices(self.count)
        assert step == 1, rows
        self.file.flush()
        size = 4 * math.prod(self.shape)
        found = bytearray(os.pread(self.file.fileno(), max(0, end - begin) * size, begin * size))
        return (
            torch.frombuffer(found, dtype=torch.float32).view(-1, *self.shape) if found else torch.empty(0, *self.shape)
        )

    def array(self) -> NDArray[np.float32]:
        """All rows, memory-mapped."""
        shape = (self.count, *self.shape)
        self.file.flush()
        return np.memmap(self.file, np.float32, mode="r+", shape=shape) if self.count else np.empty(shape, np.float32)


def _grown(shape: tuple[int, ...], rows: NDArray[np.float32]) -> GrowingArray:
    array = GrowingArray(shape)
    array.add(torch.from_numpy(rows))
    return array
