"""What a pass takes by theory: operations, bytes, memory, and the least time for them (the roofline model).

Nothing is computed: fake tensors stand for the real ones, on the device that is measured, so that it is asked for the
same kernels. Each kernel reads its inputs from memory and writes its outputs to it.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from deepavfusion.benchmarks.passes import Case, Pass, Recipe

EMPTY = ("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided")  # write nothing
SIDE = {"cpu": 2048, "cuda": 8192}  # of the square matrices whose product is timed
COPIED = {"cpu": 2**28, "cuda": 2**32}  # bytes; more than caches hold
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Rates:
    """What a device reaches at best.

    Args:
        flops: per second, of a product of large matrices.
        bytes: per second, read and written, of a large copy.
    """

    flops: float
    bytes: float


@dataclass(frozen=True)
class Theory:
    """Of a pass.

    Args:
        kernels: operations of each (of matrix products and attention, a multiply-add as two), and bytes that it reads
            and writes.
        peak: bytes that it has in use at most, beyond what exists before it.
        weights: bytes of the parameters.
        parameters: their number.
    """

    kernels: list[tuple[float, float]]
    peak: int
    weights: int
    parameters: int

    @property
    def flop(self) -> float:
        return sum(flop for flop, _ in self.kernels)

    @property
    def moved(self) -> float:
        return sum(moved for _, moved in self.kernels)

    def seconds(self, rates: Rates) -> float:
        """The least time: for each kernel that of its operations or of its bytes, whichever is longer."""
        return sum(max(flop / rates.flops, moved / rates.bytes) for flop, moved in self.kernels)


class Ledger(TorchDispatchMode):
    """Books every kernel that is called within it."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: list[tuple[float, float]] = []
        self.used = self.peak = 0
        self.known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        read = _tensors((args, kwargs))
        before = {id(tensor.untyped_storage()) for tensor in read}
        out = func(*args, **kwargs)
        written = _tensors(out)
        for tensor in written:
            self._hold(tensor, before)
        if written and not func.is_view:
            name = func.overloadpacket.__name__
            moved = 0 if name in EMPTY else sum(map(_bytes, read)) + sum(map(_bytes, written))
            self.kernels.append((float(_flop(func, args, kwargs, out)), float(moved)))
        return out

    def _hold(self, tensor: Tensor, before: set[int]) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in before or (key in self.known and self.known[key]() is storage):
            return
        size = storage.nbytes()
        self.known[key] = weakref.ref(storage)
        weakref.finalize(storage, self._free, size)
        self.used += size
        self.peak = max(self.peak, self.used)

    def _free(self, size: int) -> None:
        self.used -= size


def of_pass(case: Case, recipe: Recipe, device: torch.device) -> Theory:
    """What theory says of a pass after one before it, so that gradients and the optimizer's state exist."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        run = Pass(case, recipe, device)
        run()
        with Ledger() as ledger:
            run()
    parameters = [*run.net.parameters()]
    weights = sum(map(_bytes, parameters))
    count = sum(p.numel() for p in parameters)
    return Theory(ledger.kernels, ledger.peak, weights, count)


class Yardsticks:
    """A product of large matrices and a large copy, whose times tell the `Rates` of a device.

    Args:
        precision: "fp32" or "bf16", of the product.
    """

    def __init__(self, device: torch.device, precision: str) -> None:
        self.side, self.size = SIDE[device.type], COPIED[device.type]
        self.matrix = torch.ones(self.side, self.side, dtype=TYPES[precision], device=device)
        self.source = torch.ones(self.size, dtype=torch.uint8, device=device)
        self.target = torch.empty_like(self.source)

    def product(self) -> None:
        self.matrix @ self.matrix

    def copy(self) -> None:
        self.target.copy_(self.source)

    def rates(self, product: float, copy: float) -> Rates:
        """From the seconds of both."""
        return Rates(2 * self.side**3 / product, 2 * self.size / copy)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _bytes(tensor: Tensor) -> int:
    """That a tensor takes in memory; less than its elements where it repeats some."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


def _flop(func: Any, args: Any, kwargs: Any, out: Any) -> int:
    packet = func.overloadpacket
    if packet is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu:
        return sdpa_flop_count(*(x.shape for x in args[:3]))
    if packet is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward:
        return sdpa_backward_flop_count(*(x.shape for x in args[:4]))
    return flop_registry[packet](*args, **kwargs, out_val=out) if packet in flop_registry else 0
