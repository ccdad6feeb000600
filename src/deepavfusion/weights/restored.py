"""What Lightning restores of a checkpoint, checked before it does.

Each part (loops, optimizer, schedule, callbacks, data, precision, the task's own) is compared with what this run would
save itself, so that a part that is added is checked without being named here. Where an example cannot be made from new
objects, their class has one, `STATE`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from math import nan
from typing import Any

import torch
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from packaging.version import InvalidVersion, Version
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from deepavfusion.utils.errors import UserError
from deepavfusion.utils.structure import Among, DictOf, ListOf, Maybe, OneOf, misfit
from deepavfusion.weights.compare import differences, excess
from deepavfusion.weights.origin import Origin
from deepavfusion.weights.weights import check_network

LOOPS = ("fit_loop", "validate_loop", "test_loop", "predict_loop")


def check_restorable(path: str, content: Any, trainer: Trainer, task: Any, datamodule: Any, training: bool) -> Origin:
    """Check all that Lightning will take from a checkpoint, before anything is changed.

    Each part is compared with what this run would save itself, by keys, types, shapes and ranges.

    Args:
        path, content: of the file, see `weights.file.read_file`.
        trainer, task, datamodule: of this run.
        training: whether the training is resumed; False: the network is evaluated.

    Returns:
        The origin of the file.

    Raises:
        UserError: it has no state of a run, or is of another network, or a part is not as this run needs it.
    """
    origin = check_task(task, path, content)
    if wrong := misfit(content, _example(trainer, task, datamodule, training), "") or _inconsistent(content):
        raise UserError(
            f"checkpoint {path} was not written by a run of this configuration: {wrong}; it was not loaded: use one of "
            "this run, or start a new run from its weights (model.pretrained=<file>)."
        )
    # What is left is checked by loading it into copies.
    copy.copy(task).on_load_checkpoint(content)
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and (state := content.get("callbacks", {}).get(callback.state_key)):
            copy.copy(callback).load_state_dict(state)
    return origin


def check_plan_of_task(build: Callable[[], Any], path: str, content: Any) -> None:
    """Check, before the task of a run is built, that it fits a checkpoint, whose record may have chosen its sizes.

    Args:
        build: makes the task, here on the meta device, where it takes no memory.
        path, content: of the file.

    Raises:
        UserError: see `check_restorable`.
    """
    with torch.device("meta"):
        task = build()
    check_task(task, path, content)
    if wrong := excess(task, content["state_dict"]):
        raise UserError(f"checkpoint {path} does not fit the network that its record describes: {wrong}.")


def check_task(task: Any, path: str, content: Any) -> Origin:
    """Check that a checkpoint has the tensors of a task, see `check_restorable`."""
    origin = check_network(task.net, path, content)
    state = content.get("state_dict")
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise UserError(f"checkpoint {path} has a state_dict with something else than tensors: give another file.")
    if wrong := differences(task.state_dict(), state):
        raise UserError(f"checkpoint {path} is of another network: {wrong[0]}.")
    return origin


def _example(trainer: Trainer, task: Any, datamodule: Any, training: bool) -> Among:
    """What this run would save, of all that Lightning restores."""
    loops = {name: getattr(trainer, name).state_dict() for name in LOOPS}
    loops["fit_loop"]["state_dict"] = {"combined_loader": Maybe(ListOf({"delivered": 0}))}
    states = {c.state_key: getattr(c, "STATE", None) or c.state_dict() for c in _with_state(trainer)}
    parts: dict[str, Any] = {
        "epoch": 0,
        "global_step": 0,
        "pytorch-lightning_version": "",
        "loops": loops if training else Maybe(loops),
        "callbacks": Maybe(Among({key: Maybe(state) for key, state in states.items()})),
        "progress": Maybe({"step": 0, "epoch": 0.0, "steps_per_epoch": 1.0}),
        "train_means": Maybe(ListOf(DictOf([nan, nan]))),
        "train_means_of": Maybe(OneOf(("rows",))),
        type(datamodule).__qualname__: Maybe(datamodule.STATE),
    }
    if scaler := trainer.precision_plugin.state_dict():
        parts |= dict.fromkeys((type(trainer.precision_plugin).__qualname__, "native_amp_scaling_state"), Maybe(scaler))
    if training:
        optimizer, schedule = _optimizer(trainer, task)
        parts |= {"optimizer_states": [_after_a_step(optimizer)], "lr_schedulers": [schedule.state_dict()]}
    return Among(parts)


def _with_state(trainer: Trainer) -> list[Callback]:
    """Callbacks that restore something, without those that keep the best weights, which restore only a score."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return [c for c in callbacks if not isinstance(c, ModelCheckpoint) and c.state_dict()]


def _inconsistent(content: dict[str, Any]) -> str | None:
    version = content["pytorch-lightning_version"]
    try:
        if not Version("2.0") <= Version(version) < Version("3"):  # Lightning converts the parts of earlier ones
            raise InvalidVersion
    except InvalidVersion:
        return f"it was written with Lightning {version[:40]!r}, expected 2.x"
    if content.get("progress", {}).get("steps_per_epoch", 1) <= 0:
        return "its progress has no steps in an epoch"
    if loops := content.get("loops"):
        step = loops["fit_loop"]["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]
        if step["total"]["completed"] != content["global_step"]:
            return f"its global_step is {content['global_step']}, its loops are at {step['total']['completed']}"
    return None


class _Plan:
    """The part of a trainer that `configure_optimizers` reads, before there is a data loader."""

    def __init__(self, trainer: Trainer) -> None:
        self.max_epochs, self.estimated_stepping_batches = trainer.max_epochs, 1
        self.world_size, self.accumulate_grad_batches = trainer.world_size, trainer.accumulate_grad_batches


def _optimizer(trainer: Trainer, task: Any) -> tuple[Optimizer, LRScheduler]:
    """An optimizer and a schedule such as those of this run, made by a copy of the task."""
    plan, planner = _Plan(trainer), copy.copy(task)
    planner.record, planner.trainer = dict(task.record), plan
    configured: Any = planner.configure_optimizers()
    return configured["optimizer"], configured["lr_scheduler"]["scheduler"]


def _after_a_step(optimizer: Optimizer) -> dict[str, Any]:
    """An example of the optimizer's state: it is there after a step only, which is taken on the meta device."""
    groups = []
    for group in optimizer.param_groups:
        parameters = [nn.Parameter(torch.empty_like(p, device="meta")) for p in group["params"]]
        for parameter in parameters:
            parameter.grad = torch.empty_like(parameter)
        groups.append({**group, "params": parameters, **({"fused": None} if "fused" in group else {})})
    twin = type(optimizer)(groups, lr=0.0)  # type: ignore[call-arg]
    twin.step()
    example = optimizer.state_dict()
    # A parameter that has no gradient, such as that of a frozen part, has no state.
    example["state"] = {index: Maybe(state) for index, state in twin.state_dict()["state"].items()}
    for group in example["param_groups"]:
        group["params"] = [OneOf((index,)) for index in group["params"]]
        kernels = group.keys() & {"foreach", "fused"}  # of the device; tasks set them again
        group |= dict.fromkeys(kernels, OneOf((None, True, False)))
        group |= {key: OneOf((value,)) for key, value in group.items() if isinstance(value, bool)}
    return example
