"""Opens our checkpoints, whose records say which models they hold."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import torch

from deepavfusion.config.check import check_ranges
from deepavfusion.config.renamed import renamed_model
from deepavfusion.tasks.base import Task
from deepavfusion.utils.errors import UserError
from deepavfusion.utils.names import distinct
from deepavfusion.utils.processes import give_memory_back
from deepavfusion.weights.build import build, foreign, plain
from deepavfusion.weights.compare import check_finite, check_plan
from deepavfusion.weights.file import OPTIMIZER, read_file
from deepavfusion.weights.hub import missing, source_of
from deepavfusion.weights.origin import origin_of

LONGEST = 10_000  # characters of the name of a class


def load_task(
    path: str | Path, expected: str | None = None, device: str | torch.device = "cpu", content: Any = None
) -> Any:
    """A task with the weights of a checkpoint, in evaluation mode.

    No code in the file can run, see `weights.file`, and its record builds only modules of `deepavfusion.models` and
    `deepavfusion.tasks`, of the sizes of its tensors. It must hold no `${…}`: a resolver could turn that into a config.

    Args:
        path: a .ckpt file that train.py wrote, or a folder or hf:// address that convert.py wrote.
        expected: name of the task that it must be for; None: any.
        device: to put it on.
        content: of the file, if it was read already.

    Returns:
        The `deepavfusion.tasks.base.Task` that the record names, e.g. a `Separate`, with its `origin`.

    Raises:
        UserError: no such file; not a checkpoint; weights without a record; another task; a record or weights that do
            not fit this version.
    """
    path = source_of(path)
    example = f"e.g. logs/{expected or '<task>'}/latest/checkpoints/last.ckpt"
    if wrong := missing(path):
        raise UserError(f"checkpoint {path} {wrong}: expected a .ckpt file that train.py wrote, {example}.")
    content = read_file(path, without=OPTIMIZER) if content is None else content
    record = content.get("record") if isinstance(content, dict) else None
    if not isinstance(record, dict) or not isinstance(record.get("model"), dict) or "state_dict" not in content:
        raise UserError(
            f"{path} has no record of its model: expected a .ckpt file that train.py wrote, {example}; weights alone "
            f"can start a training as model.pretrained."
        )
    classes = record.get("classes", [])
    if not isinstance(classes, list) or not all(isinstance(each, str) and len(each) <= LONGEST for each in classes):
        raise UserError(
            f"{path} records other classes than names of at most {LONGEST} characters; it was not loaded: use a "
            "checkpoint that train.py wrote."
        )
    name = str(record.get("task"))
    if expected not in (None, name):
        raise UserError(f"{path} is a checkpoint of {name}, task={expected} needs one of {expected}; {example}.")
    try:
        model = _checked_model(record["model"], path)
        try:
            check_plan(lambda: _built(model, expected), content["state_dict"])
        except UserError as error:  # of a constructor, which does not know the file
            raise _impossible(path, error) from None
        check_finite(content["state_dict"], path)
        task = _built(model, expected)
        task.load_state_dict(content["state_dict"], strict=True)
        task.on_load_checkpoint(content)
    except Exception as error:  # a record that was tampered with raises nearly anything
        if isinstance(error, UserError):
            raise
        words = textwrap.shorten(str(error), 200, placeholder=" …")
        raise UserError(
            f"checkpoint {path} does not fit this version of the code ({words}): use the commit that wrote it, or "
            f"train again."
        ) from error
    task.record, task.origin = record, origin_of(path, content)
    del content
    give_memory_back()
    return task.eval().to(device)


def _built(model: dict[str, Any], expected: str | None) -> Task:
    task = build(model)
    if not isinstance(task, Task) or expected not in (None, type(task).__name__.lower()):
        raise TypeError(f"its record builds a {type(task).__name__}")
    return task


def recorded_classes(task: Task, most: int | None = None) -> list[str]:
    """The names of a network's classes.

    Args:
        task: of a checkpoint; its network has `num_classes`.
        most: how many there may be; None: any number.

    Raises:
        UserError: the record names another number of classes, or there are too many.
    """
    count, names = task.net.num_classes, [str(name) for name in task.record.get("classes", [])]
    if len(names) != count or count > (most or count):
        at_most = f", at most {most}" if most else ""
        raise UserError(
            f"the checkpoint names {len(names)} classes and its network has {count}, expected the same "
            f"number{at_most}: use a checkpoint that train.py wrote."
        )
    return distinct(names)


def _checked_model(recorded: dict[str, Any], path: str | Path) -> dict[str, Any]:
    """The config of a task, under today's keys, that builds only our modules and has values in range."""
    model = plain(renamed_model(recorded))
    for target in foreign(model):
        raise UserError(
            f"checkpoint {path} wants to build {target!s:.80}, which is not a module of deepavfusion.models "
            f"or deepavfusion.tasks; it was not loaded: use a checkpoint that train.py wrote."
        )
    if "${" in str(model):  # in any key or value
        raise UserError(
            f"checkpoint {path} has ${{…}} in its record, where train.py writes values; it was not loaded: use a "
            f"checkpoint that train.py wrote."
        )
    try:
        check_ranges({"model": model})
    except UserError as error:
        raise _impossible(path, error) from None
    return model


def _impossible(path: str | Path, error: UserError) -> UserError:
    return UserError(f"checkpoint {path} records an impossible model: {error}")
