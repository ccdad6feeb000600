"""Keeps the best weights by validation."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from deepavfusion.runs.directory import BEST
from deepavfusion.utils.errors import UserError


class BestCheckpoint(ModelCheckpoint):
    """Writes `best.ckpt` after a validation that was better than all before.

    What it keeps in checkpoints is the best score alone. Lightning's class keeps paths, too, and when a run resumes it
    deletes, tests, or fetches what they name, whoever wrote the checkpoint; and a run directory that was moved loses
    its best. Here the path follows from `dirpath`, and the score counts if the file is there.

    Args:
        dirpath: the folder.
        monitor: the metric.
        mode: "max" or "min", which is better.
    """

    def __init__(self, dirpath: str, monitor: str, mode: str = "max") -> None:
        super().__init__(
            dirpath,
            filename=Path(BEST).stem,
            monitor=monitor,
            mode=mode,
            save_on_train_epoch_end=False,  # right after each validation
            enable_version_counter=False,
        )
        self.kept = False  # whether there is a file of an earlier start

    @property
    def state_key(self) -> str:
        """That of the base class, which earlier commits used."""
        return super().state_key.replace(type(self).__qualname__, ModelCheckpoint.__qualname__, 1)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self.kept = trainer.strategy.broadcast(os.path.isfile(self._path))  # the same answer on all processes

    @property
    def _path(self) -> str:
        return os.path.join(str(self.dirpath), BEST)

    def state_dict(self) -> dict[str, Any]:
        score = self.best_model_score
        return {"best_model_score": None if score is None else float(score)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the score; of a checkpoint of an earlier commit, too, which has more.

        Raises:
            UserError: it is no number.
        """
        found = state_dict.get("best_model_score") if isinstance(state_dict, dict) else state_dict
        if isinstance(found, torch.Tensor) and found.numel() == 1:
            found = found.item()
        if found is not None and (type(found) not in (int, float) or math.isnan(found)):
            raise UserError(
                f"the checkpoint to resume from records {found!r:.80} as the best {self.monitor}, expected a number: "
                "use a checkpoint that train.py wrote."
            )
        if found is None or not self.kept:
            return
        self.best_model_score = self.current_score = self.kth_value = torch.tensor(float(found), dtype=torch.float64)
        self.best_model_path = self.kth_best_model_path = self._path
        self.best_k_models = {self._path: self.best_model_score}
