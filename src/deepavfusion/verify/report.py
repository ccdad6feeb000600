"""The file that `prepare.py command=verify` keeps: one line a clip, appended as results come, sorted at the end."""

from __future__ import annotations

import csv
import fcntl
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO

from deepavfusion.data.lists.verified import COLUMNS, Row, _whole, read_rows
from deepavfusion.utils.errors import UserError


class Report:
    """The report while a verification writes it; a context manager. One process at a time.

    Args:
        path: of the file.
        trust: whether what it holds counts; otherwise it begins empty where it cannot be read.

    Raises:
        UserError: it cannot be written, is damaged, or another process writes it.
    """

    def __init__(self, path: Path, trust: bool = True) -> None:
        self.path, self.folder = path, os.path.abspath(path.parent)
        self.rows: dict[tuple[str, str], Row] = {}  # (split, id) -> row
        self.file = self._locked()
        try:
            self._load(trust)
        except BaseException:
            self.file.close()
            raise

    def __enter__(self) -> Report:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def _locked(self) -> IO[str]:
        while True:
            try:
                file = open(self.path, "a+", encoding="utf-8", errors="surrogateescape", newline="")  # noqa: SIM115
            except OSError as error:
                raise UserError(
                    f"The verify report {self.path} cannot be written ({error.strerror}); expected a place in a folder "
                    "that exists and may be written to: set data.verify_report=<file>, also for the runs that use it."
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
            if os.path.exists(self.path) and os.path.samestat(os.fstat(file.fileno()), os.stat(self.path)):
                return file
            file.close()  # another process has just finished and replaced it

    def _load(self, trust: bool) -> None:
        with open(self.path, "rb") as raw:
            head = raw.read(len(COLUMNS))
            if not COLUMNS.encode().startswith(head):  # never cut or empty what is not ours
                raise UserError(
                    f"{self.path} is no verify report and is left as it is; expected a file that begins with "
                    f"`{COLUMNS}`, or none: set data.verify_report=<file>."
                )
            whole = _whole(raw)
        self.file.truncate(whole)
        if whole:
            try:
                self.rows = {(row.split, row.id): row for row in read_rows(self.path)}
            except UserError:
                if trust:
                    raise
                self.file.truncate(0)
                whole = 0
        self.writer = csv.writer(self.file, lineterminator="\n")
        if not whole:
            self.writer.writerow(Row._fields)
            self.file.flush()

    def add(self, row: Row) -> None:
        """Keep a result; it survives the end of this process, however that comes."""
        self.rows[row.split, row.id] = row
        self.writer.writerow(row)
        self.file.flush()

    def finish(self) -> None:
        """Rewrite the file, sorted by split and id."""
        write_csv(self.path, Row._fields, (self.rows[key] for key in sorted(self.rows)))


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    with open(partial, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
