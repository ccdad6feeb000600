"""Results that come a batch at a time and are asked for as one array."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


class Rows:
    """An array float32 [N, *shape] that grows by rows, in memory or on disk.

    Args:
        shape: of a row.
        folder: in which a file without a name holds it, so that memory does not grow; None: in memory.
    """

    def __init__(self, shape: Sequence[int], folder: str | Path | None = None) -> None:
        self.shape, self.count = tuple(shape), 0
        self.on_disk = folder is not None
        # The file has no name: nothing is left of it, however the process ends.
        self.file: IO[bytes] = tempfile.TemporaryFile(dir=folder) if self.on_disk else io.BytesIO()  # noqa: SIM115

    def add(self, rows: Tensor) -> None:
        """rows [n, *shape]; raises OSError where the disk is full."""
        assert tuple(rows.shape[1:]) == self.shape, (rows.shape, self.shape)
        self.file.write(rows.float().cpu().contiguous().numpy().tobytes())
        self.count += len(rows)

    def array(self) -> NDArray[np.float32]:
        """All of them; on disk it is mapped into memory as it is read."""
        shape = (self.count, *self.shape)
        if not self.count:
            return np.empty(shape, np.float32)
        if isinstance(self.file, io.BytesIO):
            return np.frombuffer(self.file.getbuffer(), np.float32).reshape(shape)
        self.file.flush()
        return np.memmap(self.file, np.float32, mode="r+", shape=shape)
