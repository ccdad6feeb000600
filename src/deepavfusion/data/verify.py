"""Stub that a helper replaces."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path


def bad_clips(report: Path, leave_out: Collection[str]) -> dict[str, str]:
    """Clips that a report names as unusable: id -> status."""
    return {}
