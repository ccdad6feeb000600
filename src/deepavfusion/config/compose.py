"""Compose configs and build objects from them."""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf

from deepavfusion.utils.errors import UserError
from deepavfusion.utils.program import PACKAGE, REPOSITORY, by_program

CONFIG_DIR = str((PACKAGE / "configs").resolve())  # of a clone, or what was installed
TRACEBACK = "DEEPAVFUSION_TRACEBACK"  # environment variable, for debugging


def root_folder() -> Path:
    """Where data/ and logs/ are: the clone for its scripts, the current folder for the program `deepavfusion`."""
    return Path.cwd() if by_program() else REPOSITORY


def compose(name: str, overrides: Sequence[str] = (), return_hydra_config: bool = False) -> DictConfig:
    """The config `configs/<name>.yaml` with overrides; those of Hydra itself are ignored."""
    mine = [override for override in overrides if not override.lstrip("+~").startswith("hydra")]
    within_main = GlobalHydra.instance().is_initialized()
    with nullcontext() if within_main else hydra.initialize_config_dir(CONFIG_DIR, version_base="1.3"):
        return hydra.compose(name, overrides=mine, return_hydra_config=return_hydra_config)


def auto_precision(accelerator: str) -> str:
    """bf16-mixed on accelerators that support it in hardware, 32-true elsewhere."""
    import torch  # here, because prepare.py does without

    on_gpu = accelerator != "cpu" and torch.cuda.is_available()
    return "bf16-mixed" if on_gpu and torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"


class BuildError(UserError):
    """An object could not be built from its config values; `__cause__` is the error with its traceback."""


# What constructors raise for values they do not accept; anything else is a bug of ours.
REFUSALS = (TypeError, ValueError, AssertionError, ArithmeticError, RuntimeError)


def instantiate(config: Any, **kwargs: Any) -> Any:
    """Hydra's instantiate with plain lists and dicts as arguments.

    Raises:
        UserError: as raised by the constructor.
        BuildError: the constructor failed for a reason that no check foresaw. With the environment variable
            DEEPAVFUSION_TRACEBACK set, the original error with its traceback is raised instead.
    """
    try:
        return hydra.utils.instantiate(config, _convert_="all", **kwargs)
    except InstantiationException as error:
        causes: list[BaseException] = [error]
        while cause := causes[-1].__cause__ or causes[-1].__context__:
            causes.append(cause)
            if isinstance(cause, UserError):
                raise cause from None
            if type(cause).__name__ == "MisconfigurationException":  # Lightning's, not imported for its weight
                fix = " Set another trainer: trainer=auto uses whatever there is." if ".Trainer'" in str(error) else ""
                raise UserError(f"{_key(error)}: {cause}{fix}") from error
        refusal = next((cause for cause in causes if not isinstance(cause, InstantiationException)), error)
        if not isinstance(refusal, REFUSALS) or TRACEBACK in os.environ:
            raise
        words = textwrap.shorten(str(refusal), 200, placeholder=" …") or "an assertion failed"
        raise BuildError(
            f"{_key(error)} cannot be built: {type(refusal).__name__}: {words}; change the keys below it "
            f"({TRACEBACK}=1 shows where it was raised)."
        ) from error


def _key(error: InstantiationException) -> str:
    """The key of the config node, or else what was called."""
    key = re.search(r"full_key: (\S+)", str(error))
    target = re.search(r"target '([^']+)'", str(error))
    return key[1] if key else target[1] if target else "the config"


def choices(group: str) -> list[str]:
    """The names in a config group, such as the datasets; not the bases, whose names begin with `_`."""
    return sorted(path.stem for path in Path(CONFIG_DIR, group).glob("[!_]*.yaml"))


def spectrogram_frames(seconds: float) -> int:
    """Columns of the log-mel spectrogram of a waveform."""
    # By name, as importing it takes torch, which prepare.py does without.
    rate: int = hydra.utils.get_object("deepavfusion.transforms.audio.FRAMES_PER_SECOND")
    return round(seconds * rate)


# The `${name:…}` of the config files.
OmegaConf.register_new_resolver("project_root", lambda: str(root_folder()), replace=True)
OmegaConf.register_new_resolver("choices", lambda group: " ".join(choices(group)), replace=True)
OmegaConf.register_new_resolver("auto_precision", auto_precision, replace=True)
OmegaConf.register_new_resolver("spectrogram_frames", spectrogram_frames, replace=True)
