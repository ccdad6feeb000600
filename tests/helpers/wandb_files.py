"""Reads what W&B keeps of a run offline: a log in the format of LevelDB, whose records are protocol buffers."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK, HEADER = 32_768, 7
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def records(run_dir: Path) -> Iterator[Any]:
    """All records of all starts of a run, in order."""
    from wandb.proto import wandb_internal_pb2

    for path in sorted((run_dir / "wandb").glob("*run-*/run-*.wandb")):
        for data in _chunks(path.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            yield record


def _chunks(data: bytes) -> Iterator[bytes]:
    at, whole = HEADER, b""  # after the file's own header
    while at + HEADER <= len(data):
        if BLOCK - at % BLOCK < HEADER:
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + HEADER])
        if kind == 0:
            return
        whole += data[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in (FULL, LAST):
            yield whole
            whole = b""


def history(run_dir: Path) -> dict[str, list[tuple[int, Any]]]:
    """Name -> steps and values, which are dicts for pictures, sounds and tables."""
    found: dict[str, list[tuple[int, Any]]] = {}
    for record in records(run_dir):
        if record.HasField("history"):
            row = {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            step = row.pop("trainer/global_step")
            for name, value in row.items():
                if not name.startswith("_"):
                    found.setdefault(name, []).append((step, value))
    return found


def config(run_dir: Path) -> dict[str, Any]:
    """The settings, as they were given last."""
    found: dict[str, Any] = {}
    for record in records(run_dir):
        for source in ("config", "run"):
            if record.HasField(source):
                part = record.config if source == "config" else record.run.config
                for item in part.update:
                    found[item.key or ".".join(item.nested_key)] = json.loads(item.value_json)
    return found


def exits(run_dir: Path) -> list[int]:
    return [record.exit.exit_code for record in records(run_dir) if record.HasField("exit")]
