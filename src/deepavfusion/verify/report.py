"""The report while `prepare.py command=verify` runs: a journal beside it, which becomes the report at the end."""

from __future__ import annotations

import fcntl
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import IO

from deepavfusion.data.lists.verified import COLUMNS, ReportRow, is_row, read_report
from deepavfusion.utils.errors import UserError, full_disk_named
from deepavfusion.utils.files import check_ours, regular_file, write_csv
from deepavfusion.utils.reading import lines_of

OF_CLASSES = ("split", "class", "listed", "present", "usable")  # columns of <report>_classes.csv


class Journal:
    """Appends each result to `<report>.partial.jsonl`, which survives a kill; a context manager.

    On leaving, the report is written whole, sorted by split and id, and the journal is removed. One process at a time.

    Args:
        path: of the report.
        trust: whether a damaged report is an error; otherwise it is started afresh.

    Raises:
        UserError: the report cannot be written, is damaged, is no report, or another process writes it.
    """

    def __init__(self, path: Path, trust: bool = True) -> None:
        self.path, self.folder = path, os.path.abspath(path.parent)
        self.partial = path.with_name(f"{path.name}.partial.jsonl")
        self.classes = path.with_name(f"{path.stem}_classes.csv")
        self.rows: dict[tuple[str, str], ReportRow] = {}  # (split, id) -> row
        for file, head in ((path, COLUMNS), (self.classes, ",".join(OF_CLASSES)), (self.partial, '{"id": ')):
            check_ours(file, head, "set data.verify_report=<file>, beside which nothing else has such a name")
        self.file = self._locked()
        try:
            self._load(trust)
        except BaseException:
            if not self.partial.stat().st_size:
                self.partial.unlink()
            self.file.close()
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        with full_disk_named(self.path), self.file:
            write_csv(self.path, [ReportRow._fields, *(self.rows[key] for key in sorted(self.rows))], end="\n")
            self.partial.unlink()

    def add(self, row: ReportRow) -> None:
        """Keep a result, even if this process is killed next."""
        self.rows[row.split, row.id] = row
        with full_disk_named(self.partial):
            self.file.write(json.dumps(row._asdict()) + "\n")
            self.file.flush()

    def _locked(self) -> IO[str]:
        while True:
            try:
                with suppress(FileNotFoundError):
                    regular_file(self.partial)
                file = open(self.partial, "a", encoding="utf-8")  # noqa: SIM115
            except OSError as error:
                raise UserError(
                    f"The verify report {self.path} cannot be written ({error.strerror}); expected a place in a folder "
                    "that exists and is writable: set data.verify_report=<file>, also for the runs that use it."
                ) from None
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()
                raise UserError(
                    f"Another process is writing the verify report {self.path}: wait for it, or set "
                    "data.verify_report to another file."
                ) from None
            except OSError:
                return file  # a file system without locks
            if self.partial.exists() and os.path.samestat(os.fstat(file.fileno()), os.stat(self.partial)):
                return file
            file.close()  # another process has just finished and removed it

    def _load(self, trust: bool) -> None:
        if self.path.exists():
            try:
                self.rows = {(row.split, row.id): row for row in read_report(self.path)}
            except UserError:
                if trust:
                    raise
        with open(self.partial, encoding="utf-8", errors="surrogateescape") as lines:
            for line in lines_of(lines):
                try:
                    row = ReportRow(**json.loads(line))
                except (ValueError, TypeError, RecursionError):
                    continue  # cut off by a kill: that clip is decoded again
                if is_row([*row]):
                    self.rows[row.split, row.id] = row
        if self.file.tell():
            self.file.write("\n")  # ends a line that was cut off
