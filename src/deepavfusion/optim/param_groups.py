"""Which parameter gets which weight decay and learning rate."""

from __future__ import annotations

import re
from typing import Any

from torch import nn


def param_groups(
    model: nn.Module, weight_decay: float, branches: dict[str, nn.Module] | None = None
) -> list[dict[str, Any]]:
    """Groups for a torch optimizer; names label the learning-rate curves.

    Args:
        model: only parameters that require a gradient are listed, each once.
        weight_decay: for two or more dimensions; parameters of one dimension (biases, norms) get none.
        branches: parts of the model with groups of their own, by name; everything else is "main".

    Returns:
        Non-empty groups {"name", "branch", "weight_decay", "params"}.
    """
    # By id: tensors compare elementwise, so a parameter cannot be looked up by equality.
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


def layer_decay_groups(
    model: nn.Module, weight_decay: float, layer_decay: float, depth: int, prefix: str = "encoder."
) -> list[dict[str, Any]]:
    """Layer-wise learning-rate decay from the head down to the patches (Clark et al. 2020, Bao et al. 2022).

        lr_scale = layer_decay^(depth + 1 − id)
        id = 0 for patch embeddings and fusion tokens, i + 1 for block i of all three streams, depth + 1 for final norms
        and heads

    Args:
        model: only parameters that require a gradient are listed, each once.
        weight_decay: for two or more dimensions; parameters of one dimension (biases, norms) get none.
        layer_decay: 1 gives all the same learning rate.
        depth: number of blocks of the encoder.
        prefix: prefix of the encoder's parameter names in the model.

    Returns:
        Non-empty groups {"name", "lr_scale", "weight_decay", "params"}, from the patches to the head.
    """
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        layer, decays = _layer_id(name, prefix, depth), parameter.ndim > 1
        group = {
            "name": f"layer_{layer:02d}" + ("" if decays else "_no_decay"),
            "lr_scale": layer_decay ** (depth + 1 - layer),
            "weight_decay": weight_decay if decays else 0.0,
            "params": [],
        }
        groups.setdefault((layer, not decays), group)["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]


def _layer_id(name: str, prefix: str, depth: int) -> int:
    if not name.startswith(prefix):
        return depth + 1
    name = name.removeprefix(prefix)
    if name == "fusion_tokens" or re.match(r"(image|audio)\.patch_embed\.", name):
        return 0
    block = re.match(r"(?:(?:image|audio)\.blocks|fusion_blocks)\.(\d+)\.", name)
    return int(block[1]) + 1 if block else depth + 1
