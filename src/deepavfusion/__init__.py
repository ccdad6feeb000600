"""DeepAVFusion: a transformer that fuses audio and video from its first layer (Mo & Morgado, CVPR 2024)."""

from __future__ import annotations

import os

TYPE_CHECKING = False  # without `typing`, whose import takes longer than this module
if TYPE_CHECKING:
    from typing import Any

    from deepavfusion import datasets
    from deepavfusion.api.model import Model, load
    from deepavfusion.api.results import Classification, Embeddings, Masks, Results, Segmentation, Separation
    from deepavfusion.media import Recording
    from deepavfusion.utils.errors import ArgumentError, TaskError, UserError

_MODULES = {  # public name -> where it is; imported when it is asked for, since torch and Lightning take seconds
    **dict.fromkeys(("Model", "load"), "api.model"),
    **dict.fromkeys(("Classification", "Embeddings", "Masks", "Results", "Segmentation", "Separation"), "api.results"),
    **dict.fromkeys(("ArgumentError", "TaskError", "UserError"), "utils.errors"),
    "Recording": "media",
}
__all__ = [
    "ArgumentError", "Classification", "Embeddings", "Masks", "Model", "Recording", "Results", "Segmentation",
    "Separation", "TaskError", "UserError", "datasets", "load",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import a public name; see `_MODULES`."""
    from importlib import import_module

    if name == "datasets":
        return import_module(f"{__name__}.datasets")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


USER_VARIABLES = ("LOGNAME", "USER", "LNAME", "USERNAME")  # where Python looks for a name, before it asks the system


def name_user(environment: dict[str, str] | os._Environ[str] = os.environ) -> None:
    """A user id without a name or home, as in many containers, gets both: torch cannot be imported without."""
    if not any(environment.get(name) for name in USER_VARIABLES):
        import pwd  # here and below: hardly ever needed, and every command begins with this module

        try:
            pwd.getpwuid(os.getuid())
        except KeyError:
            environment["USER"] = f"uid{os.getuid()}"
    if os.path.expanduser("~") == "~":
        import tempfile

        environment["HOME"] = tempfile.gettempdir()


name_user()  # before anything imports torch
