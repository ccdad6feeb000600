"""Builds networks from plain dicts with a `_target_`, as records hold them; needs no Hydra.

Of what Hydra's `instantiate` would build, this builds the modules of `deepavfusion.models` and `deepavfusion.tasks` and
nothing else: whoever wrote the dicts, no other code runs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from typing import Any

from torch import nn

TARGET = re.compile(r"(deepavfusion\.(?:models|tasks)(?:\.[a-z_]+)+)\.([A-Z]\w*)")


def plain(config: Any) -> Any:
    """A config with lists in place of tuples."""
    if isinstance(config, dict):
        return {key: plain(value) for key, value in config.items()}
    return [plain(value) for value in config] if isinstance(config, (list, tuple)) else config


def foreign(config: Any) -> Iterator[Any]:
    """The values of `_target_` in a config that `build` refuses."""
    if isinstance(config, dict):
        yield from (value for key, value in config.items() if key == "_target_" and _module(value) is None)
    if isinstance(config, (dict, list)):
        for value in config.values() if isinstance(config, dict) else config:
            yield from foreign(value)


def build(config: Any) -> Any:
    """What a config describes: each dict with a `_target_` becomes that module, the inner ones first.

    Args:
        config: of plain dicts, lists and values; the other keys beside a `_target_` are its arguments.

    Raises:
        TypeError: a `_target_` that is none of our modules, or another key of Hydra's (`_partial_`, …); whatever a
            constructor raises for the values that it gets.
    """
    if isinstance(config, list):
        return [build(value) for value in config]
    if not isinstance(config, dict):
        return config
    given = {key: build(value) for key, value in config.items() if key != "_target_"}
    if "_target_" not in config:
        return given
    module = _module(config["_target_"])
    if module is None:
        raise TypeError(f"{config['_target_']!s:.80} is no module of deepavfusion.models or deepavfusion.tasks")
    if special := [key for key in given if not isinstance(key, str) or key.startswith("_")]:
        raise TypeError(f"{module.__name__} has the key {special[0]!s:.80}, which is no argument of it")
    return module(**given)


def _module(target: Any) -> type[nn.Module] | None:
    """The module of that name; None where it is none of ours. The name is checked before anything is imported."""
    match = TARGET.fullmatch(target) if isinstance(target, str) else None
    found = None
    if match:
        with suppress(ImportError):
            found = getattr(import_module(match[1]), match[2], None)
    # What one of our modules merely imports is not ours.
    ours = match and isinstance(found, type) and issubclass(found, nn.Module) and found.__module__ == match[1]
    return found if ours else None
