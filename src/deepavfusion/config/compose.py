"""Config to objects, and the few decisions a config file cannot take itself."""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf

from deepavfusion.utils.addresses import is_remote
from deepavfusion.utils.errors import UserError

REPOSITORY = Path(__file__).resolve().parents[3]
CONFIG_DIR = str(REPOSITORY / "configs")
TRACEBACK = "DEEPAVFUSION_TRACEBACK"  # environment variable, for debugging


def register_resolvers(frames_per_second: int | None = None) -> None:
    """The `${name:…}` of the config files.

    Args:
        frames_per_second: of the spectrogram; None where no config of data or model is composed.
    """
    resolvers: dict[str, Callable[..., Any]] = {
        "project_root": lambda: str(REPOSITORY),
        "auto_precision": auto_precision,
    }
    if frames_per_second is not None:
        resolvers["spectrogram_frames"] = lambda seconds: round(seconds * frames_per_second)
    for name, function in resolvers.items():
        OmegaConf.register_new_resolver(name, function, replace=True)


def auto_precision(accelerator: str) -> str:
    """bf16-mixed on accelerators whose hardware has it, 32-true elsewhere."""
    import torch  # here, because prepare.py does without

    on_gpu = accelerator != "cpu" and torch.cuda.is_available()
    return "bf16-mixed" if on_gpu and torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"


OF_A_RUN = ("resume=", "run.", "ckpt_path=")  # overrides that say nothing of what is built


class BuildError(UserError):
    """What a config names could not be built with its values; `__cause__` is the error with its traceback."""


# Of a constructor that is given values which it cannot take; anything else is a bug of ours.
REFUSALS = (TypeError, ValueError, AssertionError, ArithmeticError, RuntimeError)


def instantiate(config: Any, **kwargs: Any) -> Any:
    """Hydra's instantiate with plain lists and dicts as arguments.

    Raises:
        UserError: as it was raised where the object is made.
        BuildError: it is refused for a reason that no check foresaw. With the variable DEEPAVFUSION_TRACEBACK the error
            keeps its traceback instead.
    """
    try:
        return hydra.utils.instantiate(config, _convert_="all", **kwargs)
    except InstantiationException as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, UserError):
                raise cause from None
            if type(cause).__name__ == "MisconfigurationException":  # Lightning's, not imported for its weight
                mend = " Set another trainer: trainer=auto takes what there is." if ".Trainer'" in str(error) else ""
                raise UserError(f"{_key(error)}: {cause}{mend}") from error
            cause = cause.__cause__ or cause.__context__
        refusal: BaseException = error
        while isinstance(refusal, InstantiationException) and refusal.__cause__:
            refusal = refusal.__cause__
        if not isinstance(refusal, REFUSALS) or TRACEBACK in os.environ:
            raise
        words = textwrap.shorten(str(refusal), 200, placeholder=" …") or "an assertion failed"
        raise BuildError(
            f"{_key(error)} cannot be built: {type(refusal).__name__}: {words}; change the keys below it "
            f"({TRACEBACK}=1 shows where it was raised)."
        ) from error


def _key(error: InstantiationException) -> str:
    """The config node that was to be built, or else what was called."""
    key = re.search(r"full_key: (\S+)", str(error))
    target = re.search(r"target '([^']+)'", str(error))
    return key[1] if key else target[1] if target else "the config"


def quoted(text: str) -> str:
    """Text as the value of an override, taken literally whatever is in it: quotes, backslashes, `${…}`."""
    text = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)  # no interpolation
    text = re.sub(r"(\\*)('|$)", lambda m: 2 * m[1] + (m[2] and r"\'"), text)  # and no end of the quotes
    return f"'{text}'"


def recorded_overrides(record: dict[str, Any], given: list[str], path: str) -> list[str]:
    """The overrides that a checkpoint says its run was started with, without those that are of that run alone.

    Args:
        record: of the checkpoint, which somebody else may have written.
        given: overrides of the command, which are trusted.
        path: of the checkpoint.

    Raises:
        UserError: they are no overrides; or one that is not among `given` chooses what is called or read as a config.
    """
    found = record.get("overrides", [])
    if not isinstance(found, list) or not all(isinstance(value, str) for value in found):
        raise UserError(
            f"checkpoint {path} records {found!r:.80}, expected a list of overrides: train.py writes those."
        )
    found = [value for value in found if not value.startswith(OF_A_RUN)]
    for value in found:
        key, _, choice = value.lstrip("+~").partition("=")
        calls = "_target_" in value or "${" in value or "@" in key or key.startswith("hydra")
        elsewhere = "." not in key and (".." in choice or choice.startswith("/"))  # a file outside of configs/
        if (calls or elsewhere) and value not in given:
            raise UserError(
                f"checkpoint {path} records the override {value!r}, which chooses what is called; nothing was: if you "
                f"trust it, give the same override with the command."
            )
    return found


def check_choices(overrides: list[str]) -> None:
    """Raise a `UserError` where a file of a config group is named as if it were the value of a key."""
    for override in overrides:
        key, _, value = override.partition("=")
        if "." in key and Path(CONFIG_DIR, *key.split("."), f"{value}.yaml").is_file():
            group = key.replace(".", "/")
            raise UserError(
                f"{override} would put a word in place of a config: to choose {value}, write {group}={value}."
            )


def resolve_scale(cfg: DictConfig, config_name: str, overrides: list[str]) -> tuple[DictConfig, str | None]:
    """Turn scale=auto into paper or demo.

    Args:
        cfg: composed with the overrides.
        config_name, overrides: to compose it again; call this inside `hydra.main`.

    Returns:
        The config to run, and the reason if the demo was chosen.

    Raises:
        UserError: a data root was given and does not exist.
    """
    root = Path(str(cfg.data.root))  # whatever it is: check_ranges comes later
    there = is_remote(cfg.data.root) or root.is_dir()
    values = dict(override.lstrip("+").split("=", 1) for override in overrides if "=" in override)
    given = "data.root" in values or "paths.data_dir" in values
    if "data.root" in values and not there:
        raise UserError(
            f"data.root={root} is not a folder: expected a dataset in the {cfg.data.name} layout; give its folder, or "
            f"leave data.root out to run on generated demo data."
        )
    if values.get("scale", "auto") != "auto" or given or there:
        return cfg, None
    return (
        hydra.compose(config_name, overrides=[*overrides, "scale=demo"]),
        f"no data.root was given and {root} does not exist",
    )
