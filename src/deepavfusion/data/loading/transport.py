"""How a batch gets from a decoding process to the training process: in shared memory, or through a pipe."""

from __future__ import annotations

import io
import pickle
import resource
from collections.abc import Callable, Sequence
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch

from deepavfusion.data.loading.workers import in_worker
from deepavfusion.utils.console import say
from deepavfusion.utils.errors import UserError

MIN_FILES = 512  # that a process may have open, for batches in shared memory, which takes one for each tensor


class Sender:
    """Collates, and in a decoding process also packs the batch for its way to the training process.

    Left to itself, a DataLoader puts the tensors of a batch into shared memory in a thread of the worker. If that
    fails, because shared memory is full, too few files may be open or the name of a socket is too long, the batch is
    lost, and the training process waits for it forever. Here it goes through a pipe instead, which is slower.

    Args:
        collate: samples -> batch.
        piped: int64 [1, 1] that all processes share, set to 1 by the first process that had to use a pipe.
    """

    def __init__(self, collate: Callable[[Sequence[Any]], Any], piped: torch.Tensor) -> None:
        self.collate, self.piped = collate, piped
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self.obstacle = f"{files} files may be open at a time (ulimit -n)" if 0 <= files < MIN_FILES else ""

    def __call__(self, items: Sequence[Any]) -> Any:
        if isinstance(items[0], UserError):  # instead of items; torch would pass it on as text, with its traceback
            return items[0]
        batch = self.collate(items)
        if not in_worker():
            return batch
        if not self.obstacle:
            try:
                return _Parcel(pickle.loads, bytes(ForkingPickler.dumps(batch)))
            except (OSError, RuntimeError) as error:
                self.obstacle = str(error).splitlines()[0]  # what failed once would fail again
        if not self.piped:
            self.piped.fill_(1)
            say(
                f"batches come through pipes, which is slower than shared memory ({self.obstacle}): see the lines "
                "shared memory, open files and temporary files of make doctor",
                "yellow",
            )
        file = io.BytesIO()
        torch.save(batch, file)
        return _Parcel(_read, file.getvalue())


class _Parcel:
    """A batch that is made by `read(content)` where it arrives."""

    def __init__(self, read: Callable[[bytes], Any], content: bytes) -> None:
        self.read, self.content = read, content

    def __reduce__(self) -> tuple[Callable[[bytes], Any], tuple[bytes]]:
        return self.read, (self.content,)


def _read(content: bytes) -> Any:
    return torch.load(io.BytesIO(content), weights_only=False)  # from a process of this run
