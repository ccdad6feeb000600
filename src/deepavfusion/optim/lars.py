"""LARS: gradient descent with a learning rate of its own for each matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class LARS(Optimizer):
    """Layer-wise adaptive rate scaling (You, Gitman & Ginsburg 2017, "Large Batch Training of Convolutional
    Networks"), as masked autoencoders are probed with (He et al. 2022).

    The gradient of a matrix, weight decay included, is scaled by trust_coefficient · ‖parameter‖ / ‖gradient‖, where
    neither is 0; parameters of one dimension are neither scaled nor decayed. Momentum is summed before the learning
    rate: v ← momentum · v + gradient, p ← p − lr · v.

    timm's LARS divides by ‖gradient‖ + decay · ‖parameter‖ instead and does not adapt without weight decay.

    Args:
        params: parameters, or groups of them.
        lr: learning rate.
        weight_decay: of matrices and larger.
        momentum: 0…1.
        trust_coefficient: share of a matrix's norm that a step of learning rate 1 moves it by.
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
