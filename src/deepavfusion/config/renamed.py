"""Keys in records of earlier commits, under their present names."""

from __future__ import annotations

from typing import Any

RENAMED = {  # keys in records of earlier commits -> today's; None: no longer used
    "data.wrong_sound": "data.wrong_audio",
    "data.leave_out": "data.exclude",
    "model.least_head_dim": "model.min_head_dim",
    "model.latest_pretraining": None,
    "callbacks.pictures": "callbacks.images",
    "callbacks.progress.leave": None,
}


def renamed_key(key: str) -> str | None:
    """Today's name of a key, or of a key below a renamed one; None: no longer used."""
    for old, new in RENAMED.items():
        if key == old or key.startswith(f"{old}."):
            return None if new is None else new + key.removeprefix(old)
    return key


def renamed_model(model: dict[str, Any]) -> dict[str, Any]:
    """The config of a task, recorded in a checkpoint, under today's keys."""
    keys = {key: renamed_key(f"model.{key}") for key in model}
    return {new.removeprefix("model."): model[key] for key, new in keys.items() if new is not None}
