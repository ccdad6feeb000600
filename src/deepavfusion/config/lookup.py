"""Reads values out of a config, of OmegaConf's or of plain dicts, which need no OmegaConf."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ABSENT = object()


def node_at(cfg: Mapping[str, Any], key: str) -> Any:
    """What is below a key such as `model.net.fusion`, a section or a value; `ABSENT` if the config lacks it."""
    if not isinstance(cfg, dict):
        from omegaconf import OmegaConf

        return OmegaConf.select(cfg, key, default=ABSENT)  # type: ignore[arg-type]
    node: Any = cfg
    for name in key.split("."):
        if not isinstance(node, dict) or name not in node:
            return ABSENT
        node = node[name]
    return node


def value_at(cfg: Mapping[str, Any], key: str) -> Any:
    """As `node_at`, in plain containers, with what OmegaConf interpolates."""
    node = node_at(cfg, key)
    if isinstance(cfg, dict):
        return node
    from omegaconf import OmegaConf

    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
