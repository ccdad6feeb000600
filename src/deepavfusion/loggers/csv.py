"""Curves as a CSV file."""

from __future__ import annotations

import csv
import os
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from deepavfusion.loggers.curves import worth_showing
from deepavfusion.loggers.trouble import Trouble
from deepavfusion.utils.files import regular_file, whole

METRICS = "metrics.csv"
MOST_KEPT = 100_000  # rows in memory, while the disk does not take them
MOST_COLUMNS = 10_000
LONGEST_CELL = 131_072  # characters; csv's own limit


class CsvLogger(Logger):
    """`<run_dir>/metrics.csv`: a row for each time that values are logged, a column for each name, first `step`.

    A resumed run continues the file: rows of its checkpoint's step and later ones are dropped, and written anew. If the
    disk refuses it, a line says so, training goes on, and what was not written is tried again.

    Args:
        run_dir: of the run.
        purge_step: the step from which a run is resumed; None: it begins.
    """

    def __init__(self, run_dir: str, purge_step: int | None = None) -> None:
        super().__init__()
        self.path, self.purge_step = Path(run_dir) / METRICS, purge_step
        self.columns: list[str] = []  # of the file; empty: this process has not opened it
        self.rows: list[dict[str, Any]] = []  # not yet written
        self.trouble = Trouble(METRICS)

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return self.path.parent.name

    @property
    def save_dir(self) -> str:
        return str(self.path.parent)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if len(self.rows) >= MOST_KEPT:
            self.trouble.lose(error="the disk does not take it")
            return
        self.rows.append({"step": step or 0, **{name: float(v) for name, v in worth_showing(metrics).items()}})

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *_: Any, **__: Any) -> None:
        """config.yaml has them."""

    @rank_zero_only
    def save(self) -> None:
        if not self.rows:
            return
        try:
            self._write()
        except OSError as error:
            self.trouble.tell(error)

    flush = save

    @rank_zero_only
    def close(self, status: str) -> None:
        """Write what is left; once more where nothing followed the checkpoint that a run resumed from."""
        try:
            if self.rows or (self.purge_step is not None and not self.columns):
                self._write()
        except OSError as error:
            self.trouble.miss(len(self.rows), error)
        self.trouble.say_again()

    def _write(self) -> None:
        names = dict.fromkeys(name for row in self.rows for name in row)
        if self.columns and names.keys() <= set(self.columns):
            size = regular_file(self.path).st_size
            try:
                with open(self.path, "a", newline="", encoding="utf-8") as file:
                    csv.DictWriter(file, self.columns, lineterminator="\n").writerows(self.rows)
            except OSError:
                with suppress(OSError):
                    os.truncate(self.path, size)  # or a part of them would be there twice
                raise
        else:
            self._rewrite(list(names))
        self.rows = []

    def _rewrite(self, names: list[str]) -> None:
        """The file, with these columns besides its own."""
        continues = bool(self.columns) or self.purge_step is not None
        before = header_of(self.path) if continues and self.path.exists() else []
        columns = list(dict.fromkeys(["step", *before, *names]))
        with whole(self.path) as partial, open(partial, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            writer.writeheader()
            if before:
                writer.writerows(self._kept(before))
            writer.writerows(self.rows)
        self.columns = columns

    def _kept(self, columns: list[str]) -> Iterator[dict[str, str]]:
        """The rows of the file that stay: whole ones, until the step from which the run resumes."""
        end = self.purge_step if not self.columns and self.purge_step is not None else None
        for row in rows_of(self.path, columns):
            if row["step"].isdecimal() and (end is None or int(row["step"]) < end):
                yield row


def header_of(path: Path) -> list[str]:
    """The names of the columns; empty if it is no file of curves."""
    regular_file(path)
    with open(path, newline="", encoding="utf-8", errors="replace") as file:
        first = file.readline(LONGEST_CELL)
    names = next(csv.reader([first]), []) if first.endswith("\n") else []
    return names if names[:1] == ["step"] and len(names) == len(set(names)) <= MOST_COLUMNS else []


def rows_of(path: Path, columns: list[str]) -> Iterator[dict[str, str]]:
    """The whole rows; the last one may have been cut off by a kill."""
    with open(path, newline="", encoding="utf-8", errors="replace") as file:
        next(file, None)
        while (line := file.readline(LONGEST_CELL)).endswith("\n"):
            cells = next(csv.reader([line]), [])
            if len(cells) == len(columns):
                yield dict(zip(columns, cells, strict=True))
