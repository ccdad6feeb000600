"""Checkpoint files that are complete or not there, and read by our own reader."""

from __future__ import annotations

import errno
import resource
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from deepavfusion.utils.errors import UserError, full_disk
from deepavfusion.utils.files import whole
from deepavfusion.weights.file import read_file


class SyncedCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints atomically and durably; a run that is killed meanwhile leaves the old file.

    Reads them as everything here does, by `weights.file`, and not a second time what was read and checked already.
    """

    checked: tuple[str, Any] | None = None  # path and content, see `runs.checkpoints.Checkpoint.hand_over`

    def load_checkpoint(self, path: str | Path, *_: Any, **__: Any) -> dict[str, Any]:
        """See the base class; tensors are on the CPU.

        Raises:
            UserError: see `weights.file.read_file`.
        """
        checked, self.checked = self.checked, None
        return checked[1] if checked and checked[0] == str(path) else read_file(Path(path))

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """See the base class.

        Raises:
            UserError: the file cannot be written; the old file is untouched.
        """
        path = Path(path)
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
