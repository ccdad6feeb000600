"""Clips that could not be used, by name and number, so that nothing is left out unseen."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from rich import get_console

from deepavfusion.types import Batch, Problem
from deepavfusion.utils.errors import UserError


class DataReport(Callback):
    """Names each problematic clip once in the terminal, writes all of them to a file, and counts them.

    `data/failed` counts the clips left out so far, `data/extended` those whose sound was too short. If the first
    whole epoch leaves nothing to train on, the run stops.

    Args:
        path: CSV file (id, reason, used, detail, path); one a process.
        max_lines: lines in the terminal; further ones are in the file only.
    """

    def __init__(self, path: str, max_lines: int = 20) -> None:
        self.path, self.max_lines = Path(path), max_lines
        self.seen: dict[str, Problem] = {}
        self.used_clips = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if trainer.global_rank:
            self.path = self.path.with_stem(f"{self.path.stem}_rank{trainer.global_rank}")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        for clips in getattr(getattr(trainer, "datamodule", None), "lists", {}).values():
            get_console().print(f"data: {clips.coverage}", markup=False, highlight=False, soft_wrap=True)
            for note in clips.notes:
                get_console().print(f"data: {note}", style="yellow", markup=False, highlight=False, soft_wrap=True)

    def _take(self, problems: list[Problem]) -> None:
        for problem in problems:
            if problem.id in self.seen:
                continue
            self.seen[problem.id] = problem
            new = not self.path.exists()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", newline="") as file:
                rows = csv.writer(file)
                if new:
                    rows.writerow(["id", "reason", "used", "detail", "path"])
                rows.writerow([problem.id, problem.reason, problem.used, problem.detail, problem.path])
            if len(self.seen) <= self.max_lines:
                consequence = "used" if problem.used else "left out"
                text = f"clip {problem.id} ({problem.path}): {problem.detail}; {consequence}"
                get_console().print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)
            elif len(self.seen) == self.max_lines + 1:
                get_console().print(f"… more clips with problems in {self.path}", style="yellow", soft_wrap=True)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self.used_clips += len(batch)
        self._take(batch.problems)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._take(batch.problems)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.used_clips == 0:
            first = next(iter(self.seen.values()), None)
            example = f", the first {first.path}: {first.detail}" if first else ""
            raise UserError(
                f"not one of the training clips could be used in epoch {trainer.current_epoch}: {len(self.seen)} "
                f"failed{example}; the list is {self.path}."
            )
        extended = sum(problem.used for problem in self.seen.values())
        counts = {"data/failed": float(len(self.seen) - extended), "data/extended": float(extended)}
        pl_module.log_dict(counts, reduce_fx="sum", sync_dist=True, batch_size=1)
