"""Clips that could not be used, by name and number, so that nothing is left out unseen."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from deepavfusion.types import Batch, Problem
from deepavfusion.utils.console import say
from deepavfusion.utils.errors import UserError
from deepavfusion.utils.files import write_whole

COLUMNS = ("id", "reason", "used", "detail", "path")
NOT_ON_DISK = "not_on_disk"  # listed, and never tried; a file that vanishes later is "missing", a failure
KNOWN = "known_"  # before the word of an earlier `prepare.py command=verify`: not tried, either


class DataReport(Callback):
    """Names each problematic file of a clip once in the terminal, writes all of them to a file, and counts the clips.

    Clips that a list names and the disk lacks, or that are known to be unusable, go to the file, too. `data/failed`
    counts the clips that were tried and had to be left out so far, `data/extended` those whose sound was too short,
    over all processes and each once. If an epoch leaves nothing to train on, the run stops.

    Args:
        path: CSV file (id, reason, used, detail, path); the other processes put their rank into the name.
        max_lines: lines in the terminal; further ones are in the file only.
    """

    def __init__(self, path: str, max_lines: int = 20) -> None:
        self.base, self.path, self.max_lines = Path(path), Path(path), max_lines
        self.seen: dict[tuple[str, str], Problem] = {}  # clip and file
        self.used_clips = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if trainer.global_rank:
            self.path = self.base.with_stem(f"{self.base.stem}_rank{trainer.global_rank}")
        if self.path.is_file():  # the run goes on
            text = self.path.read_bytes().decode(errors="ignore")
            whole = text[: text.rfind("\n") + 1]
            if whole != text:  # it was killed while it wrote a line, which comes again
                write_whole(self.path, whole or f"{','.join(COLUMNS)}\n")
            rows = csv.DictReader(io.StringIO(whole, newline=""))
            known = [Problem(**{**row, "used": row["used"] == "True"}) for row in rows]  # type: ignore[arg-type]
            self.seen = {(problem.id, problem.path): problem for problem in known}

    def state_dict(self) -> dict[str, Any]:
        return {"used_clips": self.used_clips}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.used_clips = state_dict["used_clips"]  # of the first process: that there are some is what counts

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        lists = {clips.split: clips for clips in getattr(trainer.datamodule, "lists", {}).values()}  # type: ignore
        for note in dict.fromkeys(note for clips in lists.values() for note in clips.notes):
            say(f"data: {note}", "yellow")
        for clips in lists.values():
            say(f"data: {clips.coverage}")
            known = "found by prepare.py command=verify"
            self._write([Problem(c.id, c.path, KNOWN + why, known, used=False) for c, why in clips.excluded])
            self._write([Problem(c.id, c.path, NOT_ON_DISK, "listed, not on disk", used=False) for c in clips.missing])

    def _write(self, problems: list[Problem]) -> list[Problem]:
        """Add the problems that are new to the file, and return them."""
        by_file = {(problem.id, problem.path): problem for problem in problems}
        new = [problem for key, problem in by_file.items() if key not in self.seen]
        if new:
            self.seen = by_file | self.seen
            header = not self.path.exists()
            with self.path.open("a", newline="") as file:
                rows = csv.writer(file)
                if header:
                    rows.writerow(COLUMNS)
                rows.writerows([getattr(problem, column) for column in COLUMNS] for problem in new)
        return new

    def _tell(self, problems: list[Problem]) -> None:
        told = sum(map(_was_tried, self.seen.values()))
        for number, problem in enumerate(self._write(problems), told + 1):
            if number <= self.max_lines:
                consequence = "used" if problem.used else "left out"
                say(f"clip {problem.id} ({problem.path}): {problem.detail}; {consequence}", "yellow")
            elif number == self.max_lines + 1:
                say(f"… more clips with problems in {self.path}", "yellow")

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.used_clips = 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self.used_clips += len(batch)
        self._tell(batch.problems)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._tell(batch.problems)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._tell(batch.problems)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # A clip of which one file failed has failed, whatever is said of the others.
        tried = sorted(filter(_was_tried, self.seen.values()), key=lambda problem: not problem.used)
        mine = self.used_clips, {problem.id: (problem.used, problem.path, problem.detail) for problem in tried}
        shares: list[Any] = [mine]
        if trainer.world_size > 1:
            shares = [None] * trainer.world_size
            torch.distributed.all_gather_object(shares, mine)
        problems = {clip: what for _, seen in shares for clip, what in seen.items()}
        if not sum(used for used, _ in shares):
            example = next((f", e.g. {path}: {detail}" for used, path, detail in problems.values() if not used), "")
            raise UserError(
                f"not one of the training clips could be used in epoch {trainer.current_epoch}{example}; "
                f"{self.path} lists them all: mend them, or set data.root to others."
            )
        extended = sum(used for used, _, _ in problems.values())
        counts = {"data/failed": float(len(problems) - extended), "data/extended": float(extended)}
        pl_module.log_dict(counts, batch_size=1)


def _was_tried(problem: Problem) -> bool:
    return problem.reason != NOT_ON_DISK and not problem.reason.startswith(KNOWN)
