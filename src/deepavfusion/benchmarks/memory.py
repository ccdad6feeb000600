"""Peak memory of a pass, beyond what exists before it: weights, input and optimizer state.

The peak of `encoder_forward` is the working memory of inference; that of `encoder_forward_backward` the activations of
training, as its gradients exist before; that of `train_step` activations and gradients.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import torch

from deepavfusion.benchmarks.passes import Case, Pass, Recipe
from deepavfusion.utils.console import say

PROC = Path("/proc/self")
M_MMAP_THRESHOLD = -3  # malloc.h


def cuda_peak(run: Callable[[], None], device: torch.device) -> int:
    """Bytes, from PyTorch's allocator statistics."""
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def cpu_peak(case: Case, recipe: Recipe) -> int | None:
    """Bytes, from the resident set of a fresh process after a warm-up with one clip; None: could not be measured."""
    if not (PROC / "clear_refs").exists():
        say("peak memory on a CPU can be measured on Linux only (/proc/self/clear_refs)", "yellow")
        return None
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(_peak_here, case, recipe, torch.get_num_threads()).result()
        except BrokenProcessPool:
            say(f"the process that measured {case} was killed, most likely for lack of memory", "yellow")
            return None


def _peak_here(case: Case, recipe: Recipe, threads: int) -> int:
    torch.set_num_threads(threads)
    # Map every allocation from 64 KiB separately, so that it returns to the system when freed. Otherwise the run would
    # reuse the warm-up's freed heap, and the resident set would not grow.
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 16)
    run = Pass(case, recipe, torch.device("cpu"))
    run(clips=1)  # so that gradients, optimizer state and the libraries' buffers and code exist
    gc.collect()
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
    return resident_peak(run)


def resident_peak(run: Callable[[], None]) -> int:
    """Peak growth of this process's resident set during `run`, in bytes."""
    (PROC / "clear_refs").write_text("5")  # man 5 proc: resets the high-water mark
    before = _status("VmRSS")
    run()
    return _status("VmHWM") - before


def held(device: torch.device) -> int | None:
    """Bytes in use: allocated on a GPU, resident in this process on a CPU; None: unknown."""
    gc.collect()
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return _status("VmRSS") if (PROC / "status").exists() else None


def _status(field: str) -> int:
    lines = (PROC / "status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))
