"""`benchmark=cost`: what each kind, depth and number of tokens of fusion takes, beside what theory says of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from deepavfusion.benchmarks import memory, theory
from deepavfusion.benchmarks.model import alternate
from deepavfusion.benchmarks.passes import Case, Pass, Recipe
from deepavfusion.benchmarks.report import BenchmarkReport, Row
from deepavfusion.figures.style import BAR, BLUE, ORANGE, new_figure, save_figure, styled
from deepavfusion.utils.console import track
from deepavfusion.utils.errors import UserError

PRODUCT, COPY = "product", "copy"  # names of the yardsticks among the cases that are timed
OF_VARIANTS = ("fusion", "reference", "measure")  # keys of a case that `vary` decides here
SHOWN = ("masked", "batch", "size", "median_s", "time_ratio", "peak_bytes", "memory_ratio")  # in the table
PANELS = (  # measured, theory, title, factor
    ("median_s", "bound_s", "time, ms a clip", 1e3),
    ("peak_bytes", "activation_bytes", "memory beyond weights and inputs, MB a clip", 1e-6),
)


def measure(
    cases: Mapping[str, Sequence[Mapping[str, Any]]],
    vary: Mapping[str, Sequence[Any]],
    recipe: dict[str, Any],
    rounds: int,
    device: str,
) -> BenchmarkReport:
    """Measure networks that differ in one respect from the first, in each case listed for a device.

    Args:
        cases: "cpu" and "cuda" -> entries, with the keys and defaults of `Case`, but for the kind of fusion.
        vary: key of the network -> values; the first ones together are the first network.
        recipe: arguments of `Recipe`.
        rounds: timed rounds, after one of warm-up; the median counts.
        device: "cpu", "cuda" or "auto".

    Returns:
        One row a network and case. Measured: `median_s`, `peak_bytes` (see `memory`), and the rates of the device in
        the same rounds, `gflop_per_s` and `gb_per_s`. By theory (see `theory`): `bound_s`, the least time at these
        rates, `gflop`, `moved_bytes`, `activation_bytes`, `weight_bytes` and `parameters`. Ratios of measured to
        theory: `time_ratio`, which is below 1 where caches are faster than memory, and `memory_ratio`.

    Raises:
        UserError: no GPU, a case with a key that `vary` decides.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("benchmark.device is cuda, but PyTorch finds no GPU here: use benchmark.device=cpu.")
    on_gpu = device != "cpu" and torch.cuda.is_available()
    place = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
    rows: list[Row] = []
    for number, entry in enumerate(cases[place.type]):
        if wrong := next((key for key in OF_VARIANTS if key in entry), None):
            raise UserError(
                f"benchmark.cases.{place.type}[{number}] has {wrong}, which benchmark.vary decides in benchmark=cost, "
                "expected a case without: remove it there, or use benchmark=model."
            )
        rows += _rows(Case(**entry), networks(vary), Recipe(**recipe), rounds, place)
    title = f"Cost on {torch.cuda.get_device_name(place) if on_gpu else 'a CPU'}, measured and by theory"
    shown = [*vary, *(key for key in SHOWN if key not in vary)]
    return BenchmarkReport(rows, title, partial(draw, rows, list(vary)), _summary(rows), shown)


def networks(vary: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Keys and values of each: the first values, and what differs from them in one."""
    first = {key: values[0] for key, values in vary.items()}
    return [first, *({**first, key: value} for key, values in vary.items() for value in values[1:])]


def _rows(case: Case, nets: Sequence[dict[str, Any]], recipe: Recipe, rounds: int, device: torch.device) -> list[Row]:
    base = recipe.nets[case.size]
    recipe = replace(recipe, nets={_name(net): {**base, **net} for net in nets})
    variants = [replace(case, fusion=net.get("fusion", case.fusion), size=_name(net)) for net in nets]
    found = [theory.of_pass(each, recipe, device) for each in track(variants, "theory", len(variants))]
    sticks = theory.Yardsticks(device, case.precision)
    passes = {each.size: Pass(each, recipe, device) for each in variants}
    runs: dict[str, Callable[[], None]] = {PRODUCT: sticks.product, COPY: sticks.copy, **passes}
    on_gpu = device.type == "cuda"
    medians = alternate(runs, rounds, partial(torch.cuda.synchronize, device) if on_gpu else lambda: None)
    rates = sticks.rates(medians[PRODUCT], medians[COPY])
    peaks = [
        memory.cuda_peak(passes[each.size], device) if on_gpu else memory.cpu_peak(each, recipe)
        for each in track(variants, "memory", len(variants))
    ]
    rows = []
    for net, each, said, peak in zip(nets, variants, found, peaks, strict=True):
        seconds, bound = medians[each.size], said.seconds(rates)
        columns = {key: value for key, value in each.columns().items() if key not in ("implementation", "fusion")}
        row = {key: _text(value) for key, value in net.items()} | columns | {"size": case.size}
        row |= {"median_s": seconds, "bound_s": bound, "time_ratio": seconds / bound}
        row |= {"peak_bytes": peak, "activation_bytes": said.peak}
        row |= {"memory_ratio": None if peak is None else peak / said.peak}
        row |= {"gflop": said.flop / 1e9, "moved_bytes": int(said.moved), "weight_bytes": said.weights}
        row |= {"parameters": said.parameters, "gflop_per_s": rates.flops / 1e9, "gb_per_s": rates.bytes / 1e9}
        rows.append({**row, "device": device.type, "threads": torch.get_num_threads()})
    return rows


def _name(net: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {_text(value)}" for key, value in net.items())


def _text(value: Any) -> str:
    return "+".join(map(str, value)) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)


def _summary(rows: Sequence[Row]) -> list[str]:
    row = rows[0]
    return [
        "time_ratio, memory_ratio: measured / theory, whose numbers are in results.csv: operations and bytes of each "
        f"kernel at the speed of a large product and a large copy ({row['gflop_per_s']:,.0f} GFLOP/s and "
        f"{row['gb_per_s']:,.1f} GB/s in the same rounds), and the tensors in use at a time"
    ]


@styled
def draw(rows: list[Row], names: Sequence[str], path: Path) -> None:
    """A panel of time and one of memory: a bar for each row, named by some columns, and a line where theory has it."""
    figure = new_figure(10, 0.32 * len(rows) + 1.2, layout="constrained")
    panels = figure.subplots(1, len(PANELS), sharey=True)
    labels = [", ".join(row[name] for name in names) for row in rows]
    for axes, (measured, said, title, factor) in zip(panels, PANELS, strict=True):
        places = range(len(rows))
        values = [(row[measured] or 0.0) * factor / row["batch"] for row in rows]
        bounds = [row[said] * factor / row["batch"] for row in rows]
        bars = axes.barh(places, values, color=[BLUE if n == 0 else BAR for n in places], label="measured")
        axes.bar_label(bars, [f"{value:.3g}" if value else "" for value in values], padding=3)
        axes.plot(bounds, places, "|", color=ORANGE, markersize=14, markeredgewidth=3, label="theory")
        axes.set_title(title, loc="left")
        axes.margins(x=0.15)
    panels[0].set_yticks(range(len(rows)), labels)
    panels[0].invert_yaxis()
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    save_figure(figure, path)
