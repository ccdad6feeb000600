"""What predict.py calls, and the same from Python: a checkpoint opened by itself, and what it makes of any video."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deepavfusion.inference.classify import classify_video
    from deepavfusion.inference.encoders import open_encoder
    from deepavfusion.inference.features import extract_features, write_features
    from deepavfusion.inference.segment import segment_video
    from deepavfusion.inference.separate import separate_video
    from deepavfusion.inference.tasks import load_task

__all__ = [
    "classify_video",
    "extract_features",
    "load_task",
    "open_encoder",
    "segment_video",
    "separate_video",
    "write_features",
]
PLACES = {
    "classify_video": "classify",
    "extract_features": "features",
    "load_task": "tasks",
    "open_encoder": "encoders",
    "segment_video": "segment",
    "separate_video": "separate",
    "write_features": "features",
}


def __getattr__(name: str) -> Any:
    """The public functions are imported when they are asked for: torch and Lightning take seconds."""
    if name not in PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{PLACES[name]}"), name)
