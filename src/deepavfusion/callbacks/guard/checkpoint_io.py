"""Checkpoint files that are complete or not there, written beside the training, and read by our own reader."""

from __future__ import annotations

import copy
import errno
import resource
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch.utils._pytree import tree_leaves

from deepavfusion.utils.errors import UserError, full_disk
from deepavfusion.utils.files import whole
from deepavfusion.weights.file import read_file


class SyncedCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints atomically and durably; a run that is killed meanwhile leaves the old file.

    Training waits only for a copy of the state in memory, which a thread then writes. One file is written at a time:
    who saves the next one waits for it, so that there is never more than one copy, and files appear in the order in
    which they were saved. Lightning's AsyncCheckpointIO copies on the GPU, in any number, copies tensors alone, and
    does not say when a file is there.

    It reads them as everything here does, by `weights.file`, and not a second time what was read and checked already.
    """

    checked: tuple[str, Any] | None = None  # path and content, see `runs.checkpoints.Checkpoint.hand_over`

    def __init__(self) -> None:
        super().__init__()
        self.thread: ThreadPoolExecutor | None = None
        self.pending: Future[None] | None = None
        self.buffers: list[torch.UntypedStorage] = []

    def load_checkpoint(self, path: str | Path, *_: Any, **__: Any) -> dict[str, Any]:
        """See the base class; tensors are on the CPU.

        Raises:
            UserError: see `weights.file.read_file`.
        """
        self.wait()
        checked, self.checked = self.checked, None
        return checked[1] if checked and checked[0] == str(path) else read_file(Path(path))

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Copy a checkpoint and begin to write it.

        Raises:
            UserError: the file before it could not be written.
        """
        self.wait()
        self.thread = self.thread or ThreadPoolExecutor(1, "checkpoint")
        self.pending = self.thread.submit(write, snapshot(checkpoint, self.buffers), Path(path))

    @property
    def is_writing(self) -> bool:
        return self.pending is not None and not self.pending.done()

    def wait(self) -> None:
        """Wait until the file is on the disk.

        Raises:
            UserError: it cannot be written.
        """
        if (pending := self.pending) is not None:
            try:
                pending.result()
            finally:
                self.pending = None

    def teardown(self) -> None:
        try:
            self.wait()
        finally:
            if self.thread is not None:
                self.thread.shutdown()
            self.thread = None


def snapshot(checkpoint: dict[str, Any], buffers: list[torch.UntypedStorage]) -> dict[str, Any]:
    """A copy on the CPU that further steps do not change; tensors that share memory do so in it, too.

    Args:
        checkpoint: nested containers with tensors on any device.
        buffers: memory of the copy before, which is used again, as most of the time goes into getting it from the
            system; replaced by that of this copy.
    """
    copied: dict[tuple[torch.device, int], torch.UntypedStorage] = {}
    moved: dict[int, Any] = {}
    for tensor in tree_leaves(checkpoint):
        if not isinstance(tensor, torch.Tensor):
            continue
        source, n = tensor.untyped_storage(), len(copied)
        place = source.device, source.data_ptr()
        if place not in copied:
            fits = n < len(buffers) and buffers[n].nbytes() == source.nbytes()
            copied[place] = (buffers[n] if fits else torch.UntypedStorage(source.nbytes())).copy_(source)
        layout = tensor.storage_offset(), tensor.shape, tensor.stride()
        moved[id(tensor)] = torch.empty(0, dtype=tensor.dtype).set_(copied[place], *layout)
    buffers[:] = copied.values()
    return copy.deepcopy(checkpoint, moved)


def write(checkpoint: dict[str, Any], path: Path) -> None:
    """Write a checkpoint.

    Raises:
        UserError: the file cannot be written; the old file is untouched.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole(path, durable=True) as partial, partial.open("wb") as file:
            try:
                torch.save(checkpoint, file)
            except RuntimeError:
                file.flush()
                if disk := full_disk(path.parent):  # while what was written is still there
                    raise OSError(errno.ENOSPC, f"the disk is full: {disk}") from None
                if (most := resource.getrlimit(resource.RLIMIT_FSIZE)[0]) != resource.RLIM_INFINITY:
                    raise OSError(errno.EFBIG, f"a file may have {most} bytes here, see ulimit -f") from None
                raise
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
        raise UserError(
            f"checkpoint {path} could not be written ({reason}); the previous one is untouched: free space (a run "
            "needs room for three checkpoints) and give the same command again, with resume=<run directory> if "
            "the run has no name."
        ) from error
