"""Config to objects, and the few decisions a config file cannot take itself."""

from __future__ import annotations

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


def instantiate(config: Any, **kwargs: Any) -> Any:
    """Hydra's instantiate with plain lists and dicts as arguments, and a `UserError` kept as it is."""
    try:
        return hydra.utils.instantiate(config, _convert_="all", **kwargs)
    except InstantiationException as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, UserError):
                raise cause from None
            if type(cause).__name__ == "MisconfigurationException":  # Lightning's, not imported for its weight
                raise UserError(f"{cause} Set another trainer: trainer=auto takes what there is.") from None
            cause = cause.__cause__ or cause.__context__
        raise


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
    root, there = Path(cfg.data.root), is_remote(cfg.data.root) or Path(cfg.data.root).is_dir()
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
