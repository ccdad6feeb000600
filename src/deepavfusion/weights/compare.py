"""Compares the tensors of a file with a network, before this is built or filled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from deepavfusion.utils.errors import UserError

MORE = 64 << 20  # bytes that a network may hold besides what its checkpoint does: tables, filters, positions


def differences(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> list[str]:
    """What is not alike in a network and in a file: shapes, whether the numbers have fractions, names."""
    wrong = []
    for name, here in own.items():
        there = tensors.get(name)
        if there is None:
            continue
        if here.shape != there.shape:
            wrong.append(f"{name} is {list(there.shape)} in the file and {list(here.shape)} in the model")
        elif here.is_floating_point() != there.is_floating_point():
            wrong.append(f"{name} is of {there.dtype} in the file and of {here.dtype} in the model")
    wrong += [f"{name} is in the model and not in the file" for name in own if name not in tensors]
    return wrong + [f"{name} is in the file and not in the model" for name in tensors if name not in own]


def check_finite(tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """Raise a `UserError` if a weight is NaN or infinite."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UserError(
                f"checkpoint {path} has weights that are NaN or infinite, in {name}: the training that wrote it "
                f"diverged, or it is damaged; give an earlier checkpoint."
            )


def check_plan(build: Callable[[], nn.Module], tensors: Mapping[str, Tensor], fixed: str = "") -> None:
    """Check, before a network is built, that a file has its tensors, and that it would not be much larger.

    Args:
        build: makes the network, here on the meta device, where it takes no memory.
        tensors: of the file.
        fixed: end of the names of tensors that may differ or be missing.

    Raises:
        ValueError: the first difference.
        Exception: of nearly any kind: the network cannot be built.
    """
    with torch.device("meta"):
        net = build()
    own = {name: tensor for name, tensor in net.state_dict().items() if not (fixed and name.endswith(fixed))}
    if wrong := differences(own, {name: tensor for name, tensor in tensors.items() if name in own}):
        raise ValueError(wrong[0])
    if words := excess(net, tensors):
        raise ValueError(words)


def excess(net: nn.Module, tensors: Mapping[str, Tensor]) -> str | None:
    """What a network would hold far beyond the tensors of a file; None: nothing."""
    built = {id(tensor): tensor.nbytes for module in net.modules() for tensor in _held(module)}
    if sum(built.values()) <= sum(tensor.nbytes for tensor in tensors.values()) + MORE:
        return None
    return f"the network would have {sum(built.values()) >> 20} MB, far more than the file"


def _held(module: nn.Module) -> list[Tensor]:
    """Parameters, buffers, and what a metric starts from."""
    held = [*module._parameters.values(), *module._buffers.values(), *getattr(module, "_defaults", {}).values()]
    return [tensor for tensor in held if isinstance(tensor, Tensor)]
