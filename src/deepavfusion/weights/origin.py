"""Where the weights in a checkpoint come from: the run, its data, and how far it was trained."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from deepavfusion.weights.hub import address_of

FEW_STEPS = 100  # a run of fewer optimizer steps was a trial


@dataclass(frozen=True)
class Origin:
    """A checkpoint as the lines that name it need it; None where the file does not say.

    Attributes:
        path: of the file or folder, with `latest` resolved; or its address on the Hub, with the commit.
        task: that it was trained for.
        data: name of the dataset.
        demo: whether this was generated demo data.
        steps: optimizer steps done.
        planned: optimizer steps that the run would do.
        date: of the .ckpt file, local time.
    """

    path: Path | str
    task: str | None
    data: str | None
    demo: bool
    steps: int | None
    planned: int | None
    date: str

    def __str__(self) -> str:
        """logs/pretrain/runs/x/checkpoints/last.ckpt (pretrain on vggsound (demo), 864 steps, 2026-11-28 08:01)"""
        data = self.data and _named(self.data, self.demo)
        trained = " on ".join(word for word in (self.task, data) if word) or "no record of its training"
        parts = [trained, *([] if self.steps is None else [_steps(self.steps)]), self.date]
        return f"{self.path} ({', '.join(parts)})"

    def doubts(self, data: str | None = None, demo: bool = False) -> list[str]:
        """Reasons why these weights may not be the ones that are wanted.

        Args:
            data: name of the dataset that they are to be used on; None: any.
            demo: whether that is generated demo data.
        """
        found = []
        if self.steps is not None and self.planned is not None and self.steps < self.planned:
            found.append(f"the training of these weights is not finished ({self.steps} of {self.planned} steps)")
        elif self.steps is not None and self.steps < FEW_STEPS:
            found.append(f"these weights were trained for {_steps(self.steps)} only")
        if data and self.data and (self.data, self.demo) != (data, demo):
            found.append(
                f"these weights were trained on {_named(self.data, self.demo)}, this run uses {_named(data, demo)}"
            )
        return found

    @property
    def caveat(self) -> str | None:
        """What to know before its predictions are believed; None: nothing that the file tells."""
        if self.demo:
            return (
                f"a demo network, trained on generated clips with drawn instruments ({self.data}): what it predicts "
                "for other videos means nothing"
            )
        return next(iter(self.doubts()), None)

    def described(self) -> dict[str, Any]:
        """For JSON."""
        names = ("task", "data", "demo", "steps", "planned", "date", "caveat")
        return {"checkpoint": str(self.path), **{name: getattr(self, name) for name in names}}


def origin_of(path: str | Path, content: object) -> Origin:
    """The origin of a checkpoint that was read.

    Args:
        path: of the file or folder, or its address.
        content: of it, see `weights.file.read_file`; it may come from anyone.
    """
    address = address_of(path)
    whole = content if isinstance(content, dict) else {}
    record = whole.get("record")
    record = record if isinstance(record, dict) else {}
    data = record.get("data")
    data = data if isinstance(data, dict) else {}
    overrides = record.get("overrides")
    demo = data.get("demo", isinstance(overrides, list) and "scale=demo" in overrides)  # older files lack the flag
    place = Path(path).resolve() if address is None else None
    date = whole.get("date")  # of a folder, whose files have the time at which they were copied
    if place and os.path.isfile(place):
        date = datetime.fromtimestamp(place.stat().st_mtime).strftime("%Y-%m-%d %H:%M")
    return Origin(
        path=place or str(address),
        task=_text(record.get("task")),
        data=_text(data.get("name")),
        demo=demo is True,
        steps=_count(whole.get("global_step")),
        planned=_count(record.get("steps")),
        date=_text(date) or "undated",
    )


def _named(data: str, demo: bool) -> str:
    return f"{data} (demo)" if demo else data


def _text(value: object) -> str | None:
    return value[:80] if isinstance(value, str) and value.isprintable() else None


def _count(value: object) -> int | None:
    return value if type(value) is int and 0 <= value < 10**12 else None


def _steps(number: int) -> str:
    return f"{number} step{'' if number == 1 else 's'}"
