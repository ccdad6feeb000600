"""LARS: gradient descent with a separate learning rate for each weight matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class LARS(Optimizer):
    """Layer-wise adaptive rate scaling (You, Gitman & Ginsburg 2017, "Large Batch Training of Convolutional
    Networks"), the optimizer of MAE's linear probing (He et al. 2022). For a matrix p with gradient ∇:

        g = ∇ + weight_decay · p
        g ← g · trust_coefficient · ‖p‖ / ‖g‖     where neither norm is 0
        v ← momentum · v + g
        p ← p − lr · v

    Parameters of one dimension are neither scaled nor decayed: for them g = ∇.

    Not timm's LARS, which divides by ‖∇‖ + weight_decay · ‖p‖ and does not adapt without weight decay.

    Args:
        params: parameters, or groups of them.
        lr: learning rate.
        weight_decay: of parameters with two or more dimensions.
        momentum: 0…1.
        trust_coefficient: norm of a step at learning rate 1, relative to the matrix's norm.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        weight_decay: float = 0.0,
        momentum: float = 0.9,
        trust_coefficient: float = 0.001,
    ) -> None:
        super().__init__(
            params,
            {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "trust_coefficient": trust_coefficient},
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                gradient = parameter.grad
                if parameter.ndim > 1:
                    gradient = gradient.add(parameter, alpha=group["weight_decay"])
                    size, slope = parameter.norm(), gradient.norm()
                    ratio = torch.where((size > 0) & (slope > 0), group["trust_coefficient"] * size / slope, 1.0)
                    gradient = gradient * ratio
                state = self.state[parameter]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(parameter)
                velocity = state["momentum"].mul_(group["momentum"]).add_(gradient)
                parameter.sub_(velocity, alpha=group["lr"])
        return loss
