"""Floating-point operations of a pass, and the share of a device's peak that it reaches."""

from __future__ import annotations

import re
from dataclasses import replace

import torch
from torch.utils.flop_counter import FlopCounterMode

from deepavfusion.benchmarks.passes import Case, Pass, Recipe

# TFLOP/s of dense matrix products: fp32, and bf16 with fp32 accumulation; V100's tensor cores support only fp16. From
# NVIDIA's data sheets of A100 (2022), H100 (2023), H200 (2024) and V100 (2020) and its Ada GPU architecture whitepaper
# (RTX 4090); half of the numbers given with sparsity. Keys match torch.cuda.get_device_name; MIG slices and laptop
# chips must not match.
PEAKS: dict[str, dict[str, float]] = {
    r"NVIDIA A100(?!.*MIG).*": {"fp32": 19.5, "tf32": 156, "bf16": 312},
    r"NVIDIA H100 80GB HBM3": {"fp32": 67, "tf32": 494.7, "bf16": 989.4},
    r"NVIDIA H100 PCIe": {"fp32": 51, "tf32": 378, "bf16": 756},
    r"NVIDIA H200": {"fp32": 67, "tf32": 494.7, "bf16": 989.4},
    r"Tesla V100-SXM2.*": {"fp32": 15.7, "fp16": 125},
    r"NVIDIA GeForce RTX 4090": {"fp32": 82.6, "tf32": 82.6, "bf16": 165.2},
}


def count(case: Case, recipe: Recipe) -> float:
    """GFLOP of one pass: all matrix products and attention, a multiply-add as two, recomputation included.

    Counted in an eager run on the meta device, where attention consists of plain products.
    """
    run = Pass(replace(case, precision="fp32", compiled=False), recipe, torch.device("meta"))
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / 1e9


def peak(device_name: str, precision: str, tf32: bool = False) -> float | None:
    """Peak TFLOP/s of a device in "fp32" or "bf16"; None: unknown. `tf32`: fp32 products run on tensor cores."""
    kind = "tf32" if precision == "fp32" and tf32 else precision
    return next((rates.get(kind) for name, rates in PEAKS.items() if re.fullmatch(name, device_name)), None)


def utilisation(gflop: float, seconds: float, device: torch.device, precision: str) -> float | None:
    """Model-FLOP utilisation, 0…1; None on a CPU and on devices whose peak is unknown."""
    if device.type != "cuda":
        return None
    tf32 = torch.get_float32_matmul_precision() != "highest"
    tflops = peak(torch.cuda.get_device_name(device), precision, tf32)
    return None if tflops is None else gflop / 1e3 / seconds / tflops
