"""`benchmark=model`: time, peak memory and FLOPs of the network's passes; variants are timed in turn."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import torch

from deepavfusion.benchmarks import flops, memory
from deepavfusion.benchmarks.passes import Case, Pass, Recipe
from deepavfusion.benchmarks.report import BenchmarkReport, Row
from deepavfusion.figures.style import BAR, BLUE, new_figure, save_figure, styled
from deepavfusion.tasks.compiler import check_compiler
from deepavfusion.utils.console import say, track
from deepavfusion.utils.errors import UserError

T = TypeVar("T")
Entry = Mapping[str, Any]  # one line of `cases`
Measured = dict[Case, tuple[float | None, int | None]]  # median seconds, peak bytes
SETTING = ("masked", "batch", "precision", "compiled", "size", "pass")
UNITS = {"median_s": ("time", "ms", 1e3), "peak_bytes": ("memory", "MB", 1e-6)}


def measure(
    cases: Mapping[str, Sequence[Entry]], recipe: dict[str, Any], reference: bool, rounds: int, device: str
) -> BenchmarkReport:
    """Measure the cases listed for a device.

    Args:
        cases: "cpu" and "cuda" -> entries, with the keys and defaults of `Case`, except `fusion` and `reference`, the
            kinds of fusion to compare (see `variants`), and `measure`, "time" (default) or "memory". A GPU measures
            both at once; on a CPU, memory needs a fresh process for each variant.
        recipe: arguments of `Recipe`.
        reference: also measure the plain reference.
        rounds: timed rounds, after one of warm-up; the median counts.
        device: "cpu", "cuda" or "auto".

    Returns:
        One row per variant: its columns, `median_s`, `peak_bytes` (see `memory`), `gflop`, `mfu` (0…1), device and
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
        for entry in track(entries, "networks", len(entries)):
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
    return BenchmarkReport(rows, title, partial(draw, rows), compare(rows))


def variants(entry: Entry, reference: bool) -> list[Case]:
    """The cases of an entry: each kind of `fusion`, then the reference of each, or of those its `reference` lists.

    The reference comes last because it frees gigabytes, which slows down what runs after it.
    """
    shared = {key: value for key, value in entry.items() if key not in ("fusion", "reference", "measure")}
    fast = entry.get("fusion", [Case.fusion])
    plain = entry.get("reference", fast) if reference else []
    return [Case("fast", kind, **shared) for kind in fast] + [Case("reference", kind, **shared) for kind in plain]


def alternate(runs: Mapping[T, Callable[[], None]], rounds: int, wait: Callable[[], None]) -> dict[T, float]:
    """Median seconds of each run, timed A B A B …, so that a drift of the machine's speed affects all alike.

    Args:
        runs: what to time, by name.
        rounds: timed rounds, after one of warm-up.
        wait: returns when the device has finished its queue.
    """
    seconds: dict[T, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            wait()
            begin = time.perf_counter()
            run()
            wait()
            if number:
                seconds[name].append(time.perf_counter() - begin)
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
    on_gpu = device.type == "cuda"
    medians = alternate(passes, rounds, partial(torch.cuda.synchronize, device) if on_gpu else lambda: None)
    return {case: (medians[case], memory.cuda_peak(run, device) if on_gpu else None) for case, run in passes.items()}


def compare(rows: list[Row]) -> list[str]:
    """Ratios such as "1.65 ×  time, reference / fast: factorized, masked, batch 8, fp32, eager, base, train_step".

    Reference against fast, and dense against factorized fusion of the fast implementation.
    """
    lines = []
    fast = [row for row in rows if row["implementation"] == "fast"]
    for column, above, below, other, among in (
        ("implementation", "reference", "fast", "fusion", rows),
        ("fusion", "dense", "factorized", "implementation", fast),
    ):
        shared = (other, *SETTING)
        for quantity, (name, _, _) in UNITS.items():
            measured = [(row, tuple(row[key] for key in shared)) for row in among if row[quantity]]
            divisors = {settings: row[quantity] for row, settings in measured if row[column] == below}
            lines += [
                f"{row[quantity] / divisors[settings]:6.2f} ×  {name}, {above} / {below}: {describe(row, shared)}"
                for row, settings in measured
                if row[column] == above and settings in divisors
            ]
    return lines


def describe(row: Row, names: Sequence[str]) -> str:
    """Columns of a row in words, such as "dense, all tokens, batch 1, fp32, eager, base, encoder_forward"."""
    words = {
        "masked": "masked" if row["masked"] else "all tokens",
        "batch": f"batch {row['batch']}",
        "compiled": "compiled" if row["compiled"] else "eager",
    }
    return ", ".join(str(words.get(name, row[name])) for name in names)


@styled
def draw(rows: list[Row], path: Path) -> None:
    """For each setting one panel of the time per clip and one of the memory, with a bar per variant."""
    panels: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        for quantity in UNITS:
            if row[quantity]:
                panels.setdefault((quantity, *(row[name] for name in SETTING)), []).append(row)
    counts = [len(shown) for shown in panels.values()] or [1]
    figure = new_figure(8, 0.28 * sum(counts) + 0.75 * len(counts), layout="constrained")
    grid = figure.subplots(len(counts), height_ratios=counts, squeeze=False)
    for ((quantity, *_), shown), axes in zip(panels.items(), grid.flat, strict=False):
        name, unit, factor = UNITS[quantity]
        labels = [f"{row['implementation']} {row['fusion']}" for row in shown]
        values = [row[quantity] * factor / row["batch"] for row in shown]
        bars = axes.barh(labels, values, color=[BLUE if row["implementation"] == "fast" else BAR for row in shown])
        axes.bar_label(bars, [f"{v:,.0f}" if v >= 100 else f"{v:.3g}" for v in values], padding=3)
        axes.invert_yaxis()
        axes.margins(x=0.1)
        axes.set_title(f"{name}, {unit} a clip: {describe(shown[0], SETTING)}", loc="left")
    save_figure(figure, path)
