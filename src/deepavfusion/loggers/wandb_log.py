"""Reads what W&B keeps of a run on disk: a log in the format of LevelDB, whose records are protocol buffers."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from deepavfusion.utils.files import regular_file

BLOCK, HEADER = 32_768, 7
FULL, LAST = 1, 4  # kinds of chunks: a whole record, the end of one
MOST_BYTES = 2**26  # of a record


def records(folder: Path) -> Iterator[Any]:
    """All records of all starts of a run, in order.

    Args:
        folder: `<run directory>/wandb`.
    """
    from wandb.proto import wandb_internal_pb2 as pb

    for path in sorted(folder.glob("*run-*-*/run-*.wandb")):
        regular_file(path)
        with open(path, "rb") as file:
            for data in _chunks(file):
                record = pb.Record()  # type: ignore[attr-defined]
                record.ParseFromString(data)
                yield record


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    file.seek(HEADER)  # the file's own
    whole = b""
    while True:
        if (left := BLOCK - file.tell() % BLOCK) < HEADER:
            file.seek(left, 1)
        header = file.read(HEADER)
        if len(header) < HEADER:
            return
        _, length, kind = struct.unpack("<IHB", header)
        data = file.read(length)
        if not kind or len(data) < length or len(whole) + length > MOST_BYTES:  # cut off, or none of W&B's
            return
        whole += data
        if kind in (FULL, LAST):
            yield whole
            whole = b""


def steps_in(folder: Path, axis: str) -> dict[str, int]:
    """Name -> the last step at which it has a value or a picture, by the axis of that name."""
    found: dict[str, int] = {}
    for record in records(folder):
        if record.HasField("history"):
            row = {item.key or item.nested_key[0]: item.value_json for item in record.history.item}
            if re.fullmatch(r"\d{1,18}", step := row.get(axis, "")):
                found.update((name, max(int(step), found.get(name, -1))) for name in row)
    return found
