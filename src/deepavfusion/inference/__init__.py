"""A trained network on any video, from Python: what `predict.py` calls."""

from importlib import import_module
from typing import Any

_MODULES = {
    "classify_video": "classify",
    "extract_features": "features",
    "load_task": "tasks",
    "open_encoder": "encoders",
    "search_clips": "search.nearest",
    "segment_video": "segment",
    "separate_video": "separate",
    "write_features": "write.features",
}
__all__ = list(_MODULES)

EXPERIMENTS = {  # that train a network for a task
    "separate": "music_separation",
    "segment": "avsbench_s4",
    "classify": "vggsound_finetune",
    "features": "pretrain_vggsound",
    "search": "pretrain_vggsound",
}


def __getattr__(name: str) -> Any:
    """Import a public function when it is asked for: torch and Lightning take seconds."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
