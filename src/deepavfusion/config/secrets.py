"""Keys and tokens come from the environment only: what a command or a config has is printed, recorded and shared."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf

from deepavfusion.config.overrides import split_override
from deepavfusion.config.ranges import RULES
from deepavfusion.utils.errors import UserError

STORAGE = "data.storage."
NAME = (
    r"(\w+_)?(secret|password|passwd|credentials?|access_key(_id)?|secret_key|account_key|api_key|session_token|"
    r"(access|auth|hf|sas|security)_token|token)"
)
NAMES = re.compile(NAME, re.IGNORECASE)
WITHIN = re.compile(rf"""[{{,]\s*["']?{NAME}["']?\s*:|oc\.env:\s*{NAME}\b""", re.IGNORECASE)  # a value
# user:password@ of an address, where keys of S3 may have slashes; name@revision is of hf://. Or a signature.
VALUES = re.compile(r"(?<!hf):/+\S*@|hf://[^/\s]*@|://\S*\?")
INSTEAD = (
    "give keys and tokens in the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, or "
    "AWS_PROFILE; see docs/scaling.md)"
)
OF_LOGGERS = (
    "give keys and tokens in the environment (WANDB_API_KEY, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, "
    "or MLFLOW_TRACKING_TOKEN; see docs/loggers.md)"
)


def refuse_secrets(words: Iterable[str]) -> None:
    """Refuse a command with a key or a token in it, without repeating it.

    Raises:
        UserError: names the key of the config.
    """
    for word in words:
        sign, key, value = split_override(word)
        if sign != "~":
            _refuse(key.lstrip("-"), value or key)


def refuse_secrets_in(cfg: DictConfig) -> None:
    """Refuse a config with a key or a token in it, as one of the user's own files may have."""
    for key, value in _leaves(OmegaConf.to_container(cfg, resolve=False), ""):
        _refuse(key, str(value))


def _refuse(key: str, value: str) -> None:
    instead = OF_LOGGERS if key.startswith("logger.") else INSTEAD
    given = not key.endswith("._target_") and value not in ("", "null", "None")
    if given and (NAMES.fullmatch(key.rpartition(".")[2].replace("-", "_")) or WITHIN.search(value)):
        key = key if key != value else "the command"
        raise UserError(f"{key} would be recorded with the run; expected no secret in a command or config: {instead}.")
    if given and key.startswith(STORAGE) and key not in RULES:  # perhaps a secret: it is not repeated, as Hydra would
        known = ", ".join(name.removeprefix(STORAGE) for name in RULES if name.startswith(STORAGE))
        raise UserError(
            f"there is no key {key}; expected {STORAGE}<one of: {known}>: correct it (keys and tokens are given in the "
            "environment only)."
        )
    if VALUES.search(value) or (key == f"{STORAGE}endpoint_url" and "@" in value):
        raise UserError(
            f"{key if key != value else 'the command'} holds an address with a password or a signature, which would be "
            f"recorded; expected <scheme>://<bucket or host>/<folder>: {instead}."
        )


def _leaves(node: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict):
        for name, value in node.items():
            yield from _leaves(value, f"{key}.{name}" if key else str(name))
    elif isinstance(node, list):
        for value in node:
            yield from _leaves(value, key)
    else:
        yield key, node
