"""The keys and config groups that a script has, and those whose names are near to another."""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict

from deepavfusion.cli import elsewhere
from deepavfusion.config.compose import choices, compose
from deepavfusion.config.overrides import split_override

NEAR = 0.75  # how alike two names are, from 0 to 1


class Keys:
    """The config of a script, as far as the config groups in `overrides` decide it: its keys and its groups."""

    def __init__(self, script: str, overrides: Sequence[str]) -> None:
        self.script = script
        self.given = {split_override(override)[1] for override in overrides}
        self.chosen, self.cfg = _composed(script, ())
        groups = [o for o in overrides if self._picks(o)]
        if groups:
            chosen, self.cfg = _composed(script, tuple(groups))
            self.chosen = {key: value for _, key, value in map(split_override, groups)} | chosen  # Hydra names no lists
        self.names = [*_names(self.cfg), *(group for group in self.chosen if "/" in group or group not in self.cfg)]

    def _picks(self, override: str) -> bool:
        sign, key, value = split_override(override)
        return not sign and key in self.chosen and set(picked(value)) <= set(choices(key))

    def group(self, key: str) -> str | None:
        """The config group that a key names, also with dots."""
        found = key.replace(".", "/")
        return found if found in self.chosen else None

    def node(self, key: str) -> Any:
        """The value of a key, not interpolated; the class `Keys` if the config lacks it."""
        node: Any = self.cfg
        for part in key.split("."):
            if isinstance(node, DictConfig) and not node._is_none() and part in list(node):
                node = node._get_node(part)
            elif isinstance(node, ListConfig) and part.isdecimal() and int(part) < len(node):
                node = node._get_node(int(part))
            else:
                return Keys
        return node if OmegaConf.is_config(node) else node._value()

    def knows(self, name: str) -> bool:
        """Whether a name is a key or a group, or means one elsewhere."""
        plain = name.lower().replace("-", "_")
        unused = " ".join(elsewhere.UNUSED.values()).split()
        return name in self.names or plain.rpartition(".")[2] in (*elsewhere.words(self.script), *unused)

    def __contains__(self, key: str) -> bool:
        return self.node(key) is not Keys


def picked(value: str) -> list[str]:
    """The choices of a config group that a value names: `a`, or several as in `[a,b]`."""
    several = re.fullmatch(r"\[([^\[\]]*)\]", value)
    return [part.strip(" \"'") for part in several[1].split(",")] if several else [value]


@functools.lru_cache(maxsize=64)
def _composed(script: str, overrides: tuple[str, ...]) -> tuple[dict[str, Any], DictConfig]:
    cfg = compose(script, overrides, return_hydra_config=True)
    chosen = {str(name): choice for name, choice in cfg.hydra.runtime.choices.items() if "@" not in str(name)}
    with open_dict(cfg):
        del cfg["hydra"]
    return {name: choice for name, choice in chosen.items() if not name.startswith(("hydra", "scale/"))}, cfg


def _names(cfg: DictConfig, section: str = "") -> list[str]:
    found: list[str] = []
    for name, value in cfg.items_ex(resolve=False):
        if not str(name).startswith("_"):
            found += [f"{section}{name!s}", *(_names(value, f"{section}{name!s}.") if OmegaConf.is_dict(value) else [])]
    return found


def alike(one: str, other: str) -> float:
    """How alike two keys are: most of all in what follows the last dot."""
    (section, _, name), (section2, _, name2) = one.rpartition("."), other.rpartition(".")
    ratio = difflib.SequenceMatcher(None, name, name2).ratio()
    return ratio if not section else 0.7 * ratio + 0.3 * difflib.SequenceMatcher(None, section, section2).ratio()


def nearest_keys(keys: Keys, key: str) -> list[str]:
    def own(name: str) -> bool:
        """Not computed from another key."""
        value = keys.node(name)
        return not (isinstance(value, str) and value.startswith("${."))

    section, _, last = key.rpartition(".")
    exact = [name for name in keys.names if name.rpartition(".")[2] == last]
    if section and not any(name.startswith(f"{section}.") for name in exact):  # data.index.seed: split_seed
        beside = [name for name in keys.names if name.rpartition(".")[0] == section]
        if len(holding := [name for name in beside if last in name.rpartition(".")[2].split("_")]) == 1:
            return holding
    if len(values := [name for name in exact if own(name) and not str(keys.node(name)).startswith("${")]) == 1:
        return values
    scored = sorted(((alike(key, name), name) for name in keys.names), key=lambda pair: -pair[0])
    return [name for score, name in scored if score >= NEAR][:3]
