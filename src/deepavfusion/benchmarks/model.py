"""Networks: time, peak memory and FLOPs of their passes, for a grid of settings; variants are timed in turn."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from statistics import median
from typing import Any, TypeVar

import torch
from rich.progress import track

from deepavfusion.benchmarks import flops, memory
from deepavfusion.benchmarks.model_report import compare, draw
from deepavfusion.benchmarks.passes import FUSIONS, IMPLEMENTATIONS, PASSES, PRECISIONS, Case, Pass, Recipe
from deepavfusion.benchmarks.report import Report, Row
from deepavfusion.utils.compiler import check_compiler
from deepavfusion.utils.console import say
from deepavfusion.utils.errors import UserError

T = TypeVar("T")
Entry = Mapping[str, Any]  # of the list of cases: key -> value, or list of values

DEFAULTS: dict[str, Any] = {
    "fusion": "factorized",
    "masked": True,
    "batch": 8,
    "precision": "fp32",
    "compiled": False,
    "size": "base",
    "passes": list(PASSES),
}
FLAGS = {"timed": True, "memory": False, "reference": True}


@dataclass
class Group:
    """Cases that differ in implementation and fusion only: they are timed in turn."""

    cases: list[Case] = field(default_factory=list)
    timed: bool = False
    memory: bool = False


def measure(
    cases: Mapping[str, Sequence[Entry]],
    recipe: dict[str, Any],
    reference: bool = False,
    rounds: int = 7,
    device: str = "auto",
    **instead: Any,
) -> Report:
    """Run a grid.

    Args:
        cases: "cpu" and "cuda" -> list of entries. An entry names a value, or a list of values, of `fusion`, `masked`,
            `batch`, `precision`, `compiled`, `size` and `passes`, and stands for all combinations; a training step is
            always masked. `memory` measures peak memory on a CPU, too, where each takes a process of its own;
            `timed: false` leaves out the time, `reference: false` the plain reference.
        recipe: arguments of `Recipe`.
        reference: also the plain reference, in turn with the fast one.
        rounds: after one of warm-up; the median counts.
        device: "cpu", "cuda" or "auto".
        instead: values that replace those of every entry, by its keys; None: as the entries say.

    Returns:
        One row a case: its columns, `median_s`, `peak_bytes` (see `memory`), `gflop`, `mfu` (0…1), device and threads.
        None where nothing was measured.

    Raises:
        UserError: a device, key or value that there is not, or no compiler.
    """
    place = _device(device)
    shared = Recipe(**recipe)
    implementations = IMPLEMENTATIONS if reference else IMPLEMENTATIONS[:1]
    given = {key: value for key, value in instead.items() if value is not None}
    groups = groups_of([{**entry, **given} for entry in cases[place.type]], list(shared.nets), implementations)
    rows: list[Row] = []
    gflops: dict[tuple[Any, ...], float] = {}
    try:
        for group in track(groups, description="networks"):
            rows += _rows(group, shared, rounds, place, gflops)
    except KeyboardInterrupt:
        if not rows:
            raise
        say("interrupted: these are the rows so far", "yellow")
    title = f"Networks on {'a CPU' if place.type == 'cpu' else torch.cuda.get_device_name(place)}"
    return Report(rows, title, lambda path: draw(rows, path), [str(ratio) for ratio in compare(rows)])


def _device(name: str) -> torch.device:
    if name not in ("auto", "cpu", "cuda"):
        raise UserError(f"benchmark.device is {name!r}: choose one of auto, cpu, cuda.")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("benchmark.device is cuda, but PyTorch finds no GPU here: use benchmark.device=cpu.")
    on_gpu = name != "cpu" and torch.cuda.is_available()
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")


# ---- which cases


def groups_of(entries: Iterable[Entry], sizes: Sequence[str], implementations: Sequence[str]) -> list[Group]:
    """The combinations that the entries stand for, each once.

    Raises:
        UserError: an unknown key or value, or nothing left to run.
    """
    groups: dict[tuple[Any, ...], Group] = {}
    for entry in entries:
        flags = {**FLAGS, **entry}
        for fusion, masked, batch, precision, compiled, size, passed in product(*_values(entry, sizes)):
            if passed == "train_step" and not masked:
                continue
            group = groups.setdefault((masked, batch, precision, compiled, size, passed), Group())
            for name in implementations if flags["reference"] else implementations[:1]:
                case = Case(name, fusion, masked, batch, precision, compiled, size, passed)
                if case not in group.cases:
                    group.cases.append(case)
            group.timed |= bool(flags["timed"])
            group.memory |= bool(flags["memory"])
    if not groups:
        raise UserError("no case is left to run: a train_step is always masked, and every key needs a value.")
    for (
        group
    ) in groups.values():  # what frees gigabytes, which the system takes back, does not run before what does not
        group.cases.sort(key=lambda case: implementations.index(case.implementation))
    return list(groups.values())


def _values(entry: Entry, sizes: Sequence[str]) -> list[list[Any]]:
    """The values of each key in the order of `DEFAULTS`."""
    unknown = set(entry) - set(DEFAULTS) - set(FLAGS)
    if unknown:
        keys = ", ".join((*DEFAULTS, *FLAGS))
        raise UserError(f"a case of the model benchmark has the key {min(unknown)!r}: expected {keys}.")
    chosen = {key: value if isinstance(value, list) else [value] for key, value in {**DEFAULTS, **entry}.items()}
    choices: dict[str, Sequence[Any]] = {
        "fusion": FUSIONS,
        "masked": (True, False),
        "precision": PRECISIONS,
        "compiled": (True, False),
        "size": sizes,
        "passes": PASSES,
    }
    for key, known in choices.items():
        for value in chosen[key]:
            if value not in known or isinstance(value, bool) != isinstance(known[0], bool):
                raise UserError(f"benchmark.{key} is {value!r}: choose among {', '.join(map(str, known))}.")
    for value in chosen["batch"]:
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UserError(f"benchmark.batch is {value!r}: expected a number of clips, 1 or more.")
    return [chosen[key] for key in DEFAULTS]


# ---- how they are measured


def alternate(
    variants: Mapping[T, Callable[[], None]],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
    wait: Callable[[], None] = lambda: None,
) -> dict[T, float]:
    """Median seconds of each variant: A B A B …, so that a drift of the machine's speed meets all alike.

    Args:
        variants: to run, by name.
        rounds: that count, after one of warm-up.
        clock: gives seconds.
        wait: returns when the device has finished what it was given.
    """
    seconds: dict[T, list[float]] = {name: [] for name in variants}
    for number in range(rounds + 1):
        for name, run in variants.items():
            wait()
            begin = clock()
            run()
            wait()
            if number:
                seconds[name].append(clock() - begin)
    return {name: median(values) for name, values in seconds.items()}


def _rows(
    group: Group, recipe: Recipe, rounds: int, device: torch.device, gflops: dict[tuple[Any, ...], float]
) -> list[Row]:
    seconds: dict[Case, float] = {}
    peaks: dict[Case, int | None] = {}
    if group.timed or device.type == "cuda":
        seconds, peaks = _time_what_fits(group.cases, recipe, rounds, device)
        _free()
    rows = []
    for case in group.cases:
        key = (case.implementation, case.fusion, case.masked, case.batch, case.size, case.passed)
        if key not in gflops:
            gflops[key] = flops.count(case, recipe)
        if group.memory and device.type == "cpu":
            peaks[case] = memory.cpu_peak(case, recipe)
        time_s = seconds.get(case) if group.timed else None
        mfu = None if time_s is None else flops.utilisation(gflops[key], time_s, device, case.precision)
        measured = {"median_s": time_s, "peak_bytes": peaks.get(case), "gflop": gflops[key], "mfu": mfu}
        rows.append({**case.columns(), **measured, "device": device.type, "threads": torch.get_num_threads()})
    return rows


def _time_what_fits(
    cases: list[Case], recipe: Recipe, rounds: int, device: torch.device
) -> tuple[dict[Case, float], dict[Case, int | None]]:
    """All together or, where the device's memory is too small for that, one after the other."""
    try:
        return _time(cases, recipe, rounds, device)
    except torch.OutOfMemoryError:
        pass  # and go on below: in here the exception still holds the networks
    if len(cases) == 1:
        say(f"does not fit into the device's memory: {cases[0]}", "yellow")
        return {}, {}
    seconds: dict[Case, float] = {}
    peaks: dict[Case, int | None] = {}
    for case in cases:
        _free()
        alone = _time_what_fits([case], recipe, rounds, device)
        seconds, peaks = seconds | alone[0], peaks | alone[1]
    return seconds, peaks


def _time(
    cases: list[Case], recipe: Recipe, rounds: int, device: torch.device
) -> tuple[dict[Case, float], dict[Case, int | None]]:
    """Median seconds, and on a GPU the peak bytes, of cases that are held in memory together."""
    if cases[0].compiled:
        check_compiler("benchmark.compiled=false")
        torch._dynamo.config.recompile_limit = max(64, len(cases))  # one for each variant
    variants = {case: Pass(case, recipe, device) for case in cases}
    if device.type == "cpu":
        return alternate(variants, rounds), {}
    seconds = alternate(variants, rounds, wait=lambda: torch.cuda.synchronize(device))
    return seconds, {case: memory.cuda_peak(run, device) for case, run in variants.items()}


def _free() -> None:
    torch.compiler.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
