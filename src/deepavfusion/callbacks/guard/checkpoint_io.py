"""Checkpoint files that are whole or not there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from deepavfusion.utils.errors import UserError


class SyncedCheckpointIO(TorchCheckpointIO):
    """Writes to a temporary name, syncs to the disk, and renames; a run killed meanwhile leaves the old file."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """See the base class.

        Raises:
            UserError: the file cannot be written; what was there before still is.
        """
        path = Path(path)
        partial = path.with_name(path.name + ".partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
            _sync_folder(path.parent)
        except (OSError, RuntimeError) as error:  # torch tells a full disk as a RuntimeError
            partial.unlink(missing_ok=True)
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
            raise UserError(
                f"checkpoint {path} could not be written ({reason}); the one before is untouched: make room (a run "
                "needs three checkpoints' worth) and give the same command again, with resume=<run directory> where "
                "the run has no name."
            ) from error


def _sync_folder(folder: Path) -> None:
    """Make a rename last, too."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
