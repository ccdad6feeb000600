"""`benchmark=model`: time, peak memory and FLOPs of the network's passes; variants are timed in turn."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any, TypeVar

import torch
from rich.progress import track

from deepavfusion.benchmarks import flops, memory
from deepavfusion.benchmarks.model_report import compare, draw
from deepavfusion.benchmarks.passes import Case, Pass, Recipe
from deepavfusion.benchmarks.report import BenchmarkReport, Row
from deepavfusion.utils.compiler import check_compiler
from deepavfusion.utils.console import say
from deepavfusion.utils.errors import UserError

T = TypeVar("T")
Entry = Mapping[str, Any]  # one line of `cases`
Measured = dict[Case, tuple[float | None, int | None]]  # median seconds, peak bytes


def measure(
    cases: Mapping[str, Sequence[Entry]],
    recipe: dict[str, Any],
    reference: bool = False,
    rounds: int = 7,
    device: str = "auto",
) -> BenchmarkReport:
    """Measure the cases listed for a device.

    Args:
        cases: "cpu" and "cuda" -> entries; keys and defaults are those of `Case`, except `fusion` and `reference`, the
            kinds of fusion to compare (see `variants`), and `measure`, "time" (default) or "memory". On a GPU both are
            measured together; on a CPU memory needs a fresh process for each variant.
        recipe: arguments of `Recipe`.
        reference: also measure the plain reference.
        rounds: timed rounds after one of warm-up; the median counts.
        device: "cpu", "cuda" or "auto".

    Returns:
        One row a variant: its columns, `median_s`, `peak_bytes` (see `memory`), `gflop`, `mfu` (0…1), device and
        threads; None where nothing was measured.

    Raises:
        UserError: no GPU, no C++ compiler, or an unknown kind of fusion.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("benchmark.device is cuda, but PyTorch finds no GPU here: use benchmark.device=cpu.")
    on_gpu = device != "cpu" and torch.cuda.is_available()
    place = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
    entries, shared = cases[place.type], Recipe(**recipe)
    if any(entry.get("compiled") for entry in entries):
        check_compiler(f"compiled: false in benchmark.cases.{place.type}")
    rows: list[Row] = []
    try:
        for entry in track(entries, description="networks"):
            group = variants(entry, reference)
            gflops = [flops.count(case, shared) for case in group]  # first: a mistake in the case shows at once
            if on_gpu or entry.get("measure") != "memory":
                measured = time_in_turn(group, shared, rounds, place)
            else:
                measured = {case: (None, memory.cpu_peak(case, shared)) for case in group}
            for case, gflop in zip(group, gflops, strict=True):
                seconds, peak = measured.get(case, (None, None))
                mfu = None if seconds is None else flops.utilisation(gflop, seconds, place, case.precision)
                found = {"median_s": seconds, "peak_bytes": peak, "gflop": gflop, "mfu": mfu}
                rows.append({**case.columns(), **found, "device": place.type, "threads": torch.get_num_threads()})
    except KeyboardInterrupt:
        if not rows:
            raise
        say("interrupted: these are the rows so far", "yellow")
    title = f"Networks on {torch.cuda.get_device_name(place) if on_gpu else 'a CPU'}"
    return BenchmarkReport(rows, title, lambda path: draw(rows, path), compare(rows))


def variants(entry: Entry, reference: bool) -> list[Case]:
    """The networks that an entry compares: each kind of `fusion`, then the plain reference of each (or of those that
    the entry's own `reference` lists).

    The reference comes last because it frees gigabytes, which slows down what runs after it.
    """
    shared = {key: value for key, value in entry.items() if key not in ("fusion", "reference", "measure")}
    fast = entry.get("fusion", [Case.fusion])
    plain = entry.get("reference", fast) if reference else []
    kinds = {"fast": fast, "reference": plain}
    return [Case(name, kind, **shared) for name, listed in kinds.items() for kind in listed]


def alternate(
    runs: Mapping[T, Callable[[], None]],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
    wait: Callable[[], None] = lambda: None,
) -> dict[T, float]:
    """Median seconds of each run, timed A B A B …, so that a drift of the machine's speed affects all alike.

    Args:
        runs: what to time, by name.
        rounds: rounds that count, after one of warm-up.
        clock: returns seconds.
        wait: returns when the device has finished its queue.
    """
    seconds: dict[T, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            wait()
            begin = clock()
            run()
            wait()
            if number:
                seconds[name].append(clock() - begin)
    return {name: median(values) for name, values in seconds.items()}


def time_in_turn(cases: Sequence[Case], recipe: Recipe, rounds: int, device: torch.device) -> Measured:
    """Time variants held in memory together or, where they do not fit together, one after the other."""
    try:
        return _time(cases, recipe, rounds, device)
    except torch.OutOfMemoryError:
        pass  # continue outside: inside this block the exception's traceback keeps the networks in memory
    finally:
        torch.compiler.reset()
        gc.collect()
        torch.cuda.empty_cache()
    if len(cases) == 1:
        say(f"does not fit into the device's memory: {cases[0]}", "yellow")
        return {}
    measured: Measured = {}
    for case in cases:
        measured |= time_in_turn([case], recipe, rounds, device)
    return measured


def _time(cases: Sequence[Case], recipe: Recipe, rounds: int, device: torch.device) -> Measured:
    # All variants share the code of the same forward methods, so each counts as a recompilation of it.
    torch._dynamo.config.recompile_limit = 64
    passes = {case: Pass(case, recipe, device) for case in cases}
    if device.type == "cpu":
        return {case: (seconds, None) for case, seconds in alternate(passes, rounds).items()}
    medians = alternate(passes, rounds, wait=lambda: torch.cuda.synchronize(device))
    return {case: (medians[case], memory.cuda_peak(run, device)) for case, run in passes.items()}
