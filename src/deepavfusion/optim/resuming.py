"""A run that is resumed follows the recipe of its config, also where the checkpoint was trained with another.

Restoring an optimizer and its schedule brings back the learning rate, weight decay and betas that they were saved with.
And a schedule counts steps, of which an epoch has another number with other batches. So the recipe is set again, and
the schedule follows the progress in epochs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR

WITHOUT_STATE = {"params"}  # of a parameter group; everything else belongs to the recipe


@dataclass(frozen=True)
class Progress:
    """Epochs done after each optimizer step, at a constant rate since a certain step.

    Args:
        step, epoch: the rate holds from here on: 0, 0 unless a run was continued with other epochs.
        steps_per_epoch: not always a whole number, since `trainer.max_steps` may compress the schedule.
    """

    step: int = 0
    epoch: float = 0.0
    steps_per_epoch: float = 1.0

    def at(self, step: int) -> float:
        return self.epoch + (step - self.step) / self.steps_per_epoch

    def continued(self, step: int, last_step: int, epochs: float) -> Progress:
        """That of a run which goes on after `step` and will end with `last_step`: the rest of the epochs is spread over
        the rest of the steps. Unchanged where that is what it does anyway, so that resuming stays bit-exact."""
        epoch = self.at(step)
        if last_step <= step or epoch >= epochs:
            return self
        steps_per_epoch = (last_step - step) / (epochs - epoch)
        if math.isclose(steps_per_epoch, self.steps_per_epoch, rel_tol=1e-6):
            return self
        return Progress(step, epoch, steps_per_epoch)


@dataclass(frozen=True)
class Position:
    """Where in training a checkpoint was written.

    Args:
        step: optimizer steps done.
        epochs: whole epochs done.
        steps, batches: of the epoch after these; 0: the checkpoint is of the end of an epoch.
    """

    step: int
    epochs: int
    steps: int
    batches: int

    @classmethod
    def of(cls, checkpoint: Mapping[str, Any]) -> Position:
        """Read from Lightning's loops, as a .ckpt file records them."""
        loop = checkpoint["loops"]["fit_loop"]
        epochs, batches = loop["epoch_progress"]["current"], loop["epoch_loop.batch_progress"]
        steps = loop["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]["current"]["completed"]
        within = epochs["processed"] < epochs["ready"]
        if not within or batches["is_last_batch"]:  # `best.ckpt` is written in the validation after the last batch
            return cls(checkpoint["global_step"], epochs["processed"] + within, 0, 0)
        return cls(checkpoint["global_step"], epochs["processed"], steps, batches["current"]["ready"])

    def last_step(self, steps_per_epoch: int, epochs: int, max_steps: int = -1) -> int:
        """Optimizer steps at the end of a run that continues from here with so many steps an epoch."""
        last = self.step - self.steps + steps_per_epoch * (epochs - self.epochs)
        return last if max_steps < 0 else min(last, max_steps)


def end_epoch_with(checkpoint: Mapping[str, Any], batches: int) -> None:
    """Let the epoch that a checkpoint ended with have had as many batches as those after it will have.

    Lightning recognises the end of an epoch by this number, and would train the rest of one that is longer now.
    """
    done = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]
    if done["ready"] != batches:
        done.update(dict.fromkeys(done, batches))


def recipe_of(schedule: LambdaLR) -> list[dict[str, Any]]:
    """What the groups of a new optimizer are given: learning rate, weight decay, betas, kernel, …"""
    return [{k: v for k, v in group.items() if k not in WITHOUT_STATE} for group in schedule.optimizer.param_groups]


def set_recipe(schedule: LambdaLR, recipe: list[dict[str, Any]]) -> None:
    """Give the groups of a restored optimizer the values of `recipe_of`, at the step that the schedule has reached."""
    groups = schedule.optimizer.param_groups
    schedule.base_lrs = [values["initial_lr"] for values in recipe]
    for group, values, factor in zip(groups, recipe, schedule.lr_lambdas, strict=True):
        group.update(values)
        group["lr"] = values["initial_lr"] * factor(schedule.last_epoch)
        for parameter in group["params"]:
            step = schedule.optimizer.state.get(parameter, {}).get("step")
            if isinstance(step, torch.Tensor):  # fused kernels count on the device, others on the CPU
                on = parameter.device if group.get("fused") or group.get("capturable") else torch.device("cpu")
                schedule.optimizer.state[parameter]["step"] = step.to(on)
    schedule._last_lr = [group["lr"] for group in groups]
