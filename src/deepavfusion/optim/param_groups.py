"""Which parameter gets which weight decay and learning rate."""

from __future__ import annotations

from typing import Any

from torch import nn


def param_groups(
    model: nn.Module, weight_decay: float, branches: dict[str, nn.Module] | None = None
) -> list[dict[str, Any]]:
    """Groups for a torch optimizer, named for the learning-rate curves.

    Args:
        model: only parameters that require a gradient are listed, each once.
        weight_decay: for matrices and larger; parameters of one dimension (biases, norms) get none.
        branches: parts of the model that get groups of their own, by name; the rest is called "main".

    Returns:
        Non-empty groups {"name", "branch", "weight_decay", "params"}.
    """
    branch_of = {id(p): name for name, module in (branches or {}).items() for p in module.parameters()}
    groups: dict[str, dict[str, Any]] = {}
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        branch, decays = branch_of.get(id(parameter), "main"), parameter.ndim > 1
        name = branch if decays else f"{branch}_no_decay"
        group = {"name": name, "branch": branch, "weight_decay": weight_decay if decays else 0.0, "params": []}
        groups.setdefault(name, group)["params"].append(parameter)
    return list(groups.values())
