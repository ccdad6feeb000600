"""Opens a checkpoint of ours by itself: its record says which model it is of."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import nn

from deepavfusion.config.compose import BuildError, instantiate
from deepavfusion.config.overrides import renamed_model
from deepavfusion.config.ranges import check_ranges
from deepavfusion.tasks.base import Task
from deepavfusion.utils.errors import UserError
from deepavfusion.weights.file import read_file

TARGET = re.compile(r"(deepavfusion\.(?:models|tasks)(?:\.[a-z_]+)+)\.([A-Z]\w*)")
START_WEIGHTS = ("pretrained", "image_weights", "audio_weights")  # files that only a training begins with


def load_task(path: str | Path, expected: type[Task] | str | None = None, device: str | torch.device = "cpu") -> Task:
    """A task with the weights of a checkpoint, in evaluation mode.

    Nothing in the file can run: it is read with `weights_only=True`, and only modules of `deepavfusion.models` and
    `deepavfusion.tasks` are built from its record, in which no `${…}` stands: a resolver could make a config of it.

    Args:
        path: a .ckpt file that train.py wrote.
        expected: what it has to be of, the name of a task or its class; None: any.
        device: where to.

    Raises:
        UserError: no such file; not a checkpoint; weights without a record; of another task; a record or weights
            that do not fit this version.
    """
    path = Path(path)
    needed = expected if isinstance(expected, str) else expected.__name__.lower() if expected else None
    example = f"e.g. logs/{needed or '<task>'}/latest/checkpoints/last.ckpt"
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist: expected a .ckpt file that train.py wrote, {example}.")
    content: Any = read_file(path)
    record = content.get("record") if isinstance(content, dict) else None
    if not isinstance(record, dict) or not isinstance(record.get("model"), dict) or "state_dict" not in content:
        raise UserError(
            f"{path} does not say which model it is of: expected a .ckpt file that train.py wrote, {example}; weights "
            f"alone can start a training as model.pretrained."
        )
    name = str(record.get("task"))
    wrong = UserError(f"{path} is a checkpoint of {name}, task={needed} needs one of {needed}; {example}.")
    if isinstance(expected, str) and name != expected:
        raise wrong
    try:
        model = _checked_model(record["model"], path)
        task = instantiate(model)
        if not isinstance(task, Task):
            raise TypeError(f"its record builds a {type(task).__name__} instead of a task")
        if isinstance(expected, type) and not isinstance(task, expected):
            raise wrong
        task.load_state_dict(content["state_dict"], strict=True)
    except Exception as error:  # a record that was tampered with raises nearly anything
        if isinstance(error, UserError) and not isinstance(error, BuildError):
            raise
        words = textwrap.shorten(str(error), 200, placeholder=" …")
        raise UserError(
            f"checkpoint {path} does not fit this version of the code ({words}): use the commit that wrote it, or "
            f"train again."
        ) from error
    task.record = record
    return task.eval().to(device)


def recorded_classes(task: Task, most: int | None = None) -> list[str]:
    """The names of the classes that a network tells apart.

    Args:
        task: of a checkpoint; its network has `num_classes`.
        most: how many there may be.

    Raises:
        UserError: the record names another number of classes, or there are too many.
    """
    count, names = task.net.num_classes, [str(name) for name in task.record.get("classes", [])]
    if len(names) != count or count > (most or count):
        at_most = f", at most {most}" if most else ""
        raise UserError(
            f"the checkpoint names {len(names)} classes and its network tells {count} apart, expected the same number"
            f"{at_most}: use a checkpoint that train.py wrote."
        )
    return names


def _checked_model(recorded: dict[str, Any], path: Path) -> dict[str, Any]:
    """The config of a task that reads no file when it is built, makes only our modules, and has values that can be."""
    kept = renamed_model(recorded)
    model = {**kept, "pretrained": None, **{key: None for key in START_WEIGHTS if key in kept}}
    for target in _targets(model):
        _check(target, path)
    if any("${" in text for text in _texts(model)):
        raise UserError(
            f"checkpoint {path} has ${{…}} in its record, where train.py writes values; it was not loaded: use a "
            f"checkpoint that train.py wrote."
        )
    try:
        check_ranges(OmegaConf.create({"model": model}))
    except UserError as error:
        raise UserError(f"checkpoint {path} records a model that cannot be: {error}") from None
    return model


def _targets(config: Any) -> Iterator[Any]:
    """Everything that a config would have called."""
    if isinstance(config, dict):
        yield from (value for key, value in config.items() if key == "_target_")
    if isinstance(config, (dict, list, tuple)):
        for value in config.values() if isinstance(config, dict) else config:
            yield from _targets(value)


def _texts(config: Any) -> Iterator[str]:
    """Every piece of text in a config, keys too."""
    if isinstance(config, dict):
        yield from _texts([*config.keys(), *config.values()])
    elif isinstance(config, (list, tuple, set)):
        for value in config:
            yield from _texts(value)
    elif config is not None:
        yield str(config)


def _check(target: Any, path: Path) -> None:
    """Only our own modules are built; the name is judged before anything is imported."""
    match = TARGET.fullmatch(target) if isinstance(target, str) else None
    found = None
    if match:
        with suppress(ImportError):
            found = getattr(import_module(match[1]), match[2], None)
    # What a module of ours merely imports is not ours.
    if not (match and isinstance(found, type) and issubclass(found, nn.Module) and found.__module__ == match[1]):
        raise UserError(
            f"checkpoint {path} wants to build {target}, which is no module of deepavfusion.models or "
            f"deepavfusion.tasks; it was not loaded: use a checkpoint that train.py wrote."
        )
