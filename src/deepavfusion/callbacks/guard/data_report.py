"""Reports every clip that could not be used, by name and in numbers."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer

from deepavfusion.callbacks.evaluation import EvaluationCallback
from deepavfusion.types import Batch, Problem
from deepavfusion.utils.console import say
from deepavfusion.utils.errors import UserError
from deepavfusion.utils.files import check_ours, write_csv
from deepavfusion.utils.names import to_cell
from deepavfusion.utils.reading import damaged, own_rows

COLUMNS = ("id", "reason", "used", "detail", "path")
NOT_ON_DISK = "not_on_disk"  # listed, never tried; a file that vanishes during the run is "missing", a failure
KNOWN = "known_"  # prefix of a status from an earlier `prepare.py command=verify`: not tried, either
MAX_LINES = 20  # in the terminal; the file has all of them


class DataReport(EvaluationCallback):
    """Prints each problematic file of a clip once, writes all of them to a file, and logs their number.

    The file also lists clips that are not on disk or were excluded as unusable. `data/failed` counts the clips that
    were tried and excluded so far, `data/extended` those whose audio was too short: each clip once, over all processes.
    An epoch in which no clip can be used stops the run.

    Args:
        path: CSV file (id, reason, used, detail, path); processes other than the first add their rank to its name.
    """

    tests = True

    def __init__(self, path: str) -> None:
        self.base, self.path = Path(path), Path(path)
        self.seen: dict[tuple[str, str], Problem] = {}  # clip and file
        self.used_clips = 0
        self.as_written = True  # the file ends with a complete line, in the form that lines are added in

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if trainer.global_rank:
            self.path = self.base.with_stem(f"{self.base.stem}_rank{trainer.global_rank}")
        head = ",".join(COLUMNS)
        check_ours(self.path, head, "move it out of the run directory, or set callbacks.data_report.path=<file>")
        if self.path.is_file():  # the run is resumed
            self.seen = {(problem.id, problem.path): problem for problem in self._read()}
            with self.path.open("rb") as file:
                begins = file.read(len(head) + 2) == f"{head}\r\n".encode()
                file.seek(max(0, self.path.stat().st_size - 2))
                self.as_written = begins and file.read() == b"\r\n"

    def _read(self) -> Iterator[Problem]:
        """The lines of an earlier start."""
        instead = "move it out of the run directory, and the run names its clips again"
        for line, cells in own_rows(self.path, COLUMNS, instead):
            identifier, reason, used, detail, path = cells
            if used.capitalize() not in ("True", "False"):
                raise damaged(self.path, line, cells, COLUMNS, instead)
            yield Problem(identifier, path, reason, detail, used.capitalize() == "True")

    def state_dict(self) -> dict[str, Any]:
        return {"used_clips": self.used_clips}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.used_clips = state_dict["used_clips"]  # of the first process; only "none" or "some" matters

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        lists = {clips.split: clips for clips in getattr(trainer.datamodule, "lists", {}).values()}  # type: ignore
        for note in dict.fromkeys(note for clips in lists.values() for note in clips.notes):
            say(f"data: {note}", "yellow")
        for clips in lists.values():
            if len(clips) < clips.listed or not clips.listed:
                say(f"data: {clips.coverage}", "yellow")
            known = "found by prepare.py command=verify"
            why_not = {c.id: clips.details.get(c.id, known) for c, _ in clips.excluded}
            self._write([Problem(c.id, c.path, KNOWN + why, why_not[c.id], used=False) for c, why in clips.excluded])
            self._write([Problem(c.id, c.path, NOT_ON_DISK, "listed, not on disk", used=False) for c in clips.missing])

    def _write(self, problems: list[Problem]) -> list[Problem]:
        """Add the problems that are new to the file, and return them."""
        by_file = {(problem.id, problem.path): problem for problem in problems}
        new = [problem for key, problem in by_file.items() if key not in self.seen]
        if new:
            if not self.as_written:  # it was killed while it wrote a line, or a spreadsheet program saved the file
                write_csv(self.path, [COLUMNS, *map(_row, self.seen.values())])
                self.as_written = True
            self.seen = by_file | self.seen
            header = not self.path.exists()
            with self.path.open("a", encoding="utf-8", errors="surrogateescape", newline="") as file:
                rows = csv.writer(file)
                if header:
                    rows.writerow(COLUMNS)
                rows.writerows(map(to_cell, _row(problem)) for problem in new)
        return new

    def _report(self, problems: list[Problem]) -> None:
        reported = sum(map(_was_tried, self.seen.values()))
        for number, problem in enumerate(self._write(problems), reported + 1):
            if number <= MAX_LINES:
                consequence = "used" if problem.used else "excluded"
                say(f"clip {problem.id} ({problem.path}): {problem.detail}; {consequence}", "yellow")
            elif number == MAX_LINES + 1:
                say(f"… more clips with problems in {self.path}", "yellow")

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.used_clips = 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self.used_clips += len(batch)
        self._report(batch.problems)

    def on_batch(self, trainer: Trainer, task: LightningModule, outputs: Any, batch: Batch, loader: int) -> None:
        self._report(batch.problems)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # A clip of which one file failed has failed, whatever its other files did.
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
                f"no training clip could be used in epoch {trainer.current_epoch}{example}; "
                f"{self.path} lists all of them: fix them, or set data.root to another folder."
            )
        extended = sum(used for used, _, _ in problems.values())
        counts = {"data/failed": float(len(problems) - extended), "data/extended": float(extended)}
        pl_module.log_dict(counts, batch_size=1, sync_dist=True)  # equal on all processes


def _row(problem: Problem) -> list[object]:
    return [getattr(problem, column) for column in COLUMNS]


def _was_tried(problem: Problem) -> bool:
    return problem.reason != NOT_ON_DISK and not problem.reason.startswith(KNOWN)
