"""What W&B keeps of a run offline: curves, settings, how its starts ended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from deepavfusion.loggers import wandb_log


def history(run_dir: Path) -> dict[str, list[tuple[int, Any]]]:
    """Name -> steps and values, which are dicts for pictures, sounds and tables."""
    found: dict[str, list[tuple[int, Any]]] = {}
    for record in wandb_log.records(run_dir / "wandb"):
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
    for record in wandb_log.records(run_dir / "wandb"):
        for source in ("config", "run"):
            if record.HasField(source):
                part = record.config if source == "config" else record.run.config
                for item in part.update:
                    found[item.key or ".".join(item.nested_key)] = json.loads(item.value_json)
    return found


def exits(run_dir: Path) -> list[int]:
    return [record.exit.exit_code for record in wandb_log.records(run_dir / "wandb") if record.HasField("exit")]
