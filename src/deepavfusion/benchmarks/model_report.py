"""What the rows of `benchmark=model` show: ratios between variants, and a figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from deepavfusion.benchmarks.report import Row

SETTING = ("masked", "batch", "precision", "compiled", "size", "pass")
CASE = ("implementation", "fusion", *SETTING)
UNITS = {"median_s": ("time", "ms", 1e3), "peak_bytes": ("memory", "MB", 1e-6)}


def compare(rows: list[Row]) -> list[str]:
    """Lines such as "1.65 ×  time, reference / fast: factorized, masked, batch 8, fp32, eager, base, train_step".

    Reference against fast, and dense against factorized fusion of the fast implementation.
    """
    lines = []
    fast = [row for row in rows if row["implementation"] == "fast"]
    for column, above, below, among in (
        ("implementation", "reference", "fast", rows),
        ("fusion", "dense", "factorized", fast),
    ):
        shared = [name for name in CASE if name != column]
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


def draw(rows: list[Row], path: Path) -> None:
    """A panel for the time and one for the memory a clip of each setting, with a bar for each variant."""
    panels: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        for quantity in UNITS:
            if row[quantity]:
                panels.setdefault((quantity, *(row[name] for name in SETTING)), []).append(row)
    counts = [len(shown) for shown in panels.values()] or [1]
    figure = Figure(figsize=(8, 0.25 * sum(counts) + 0.7 * len(counts)), layout="constrained")
    grid = figure.subplots(len(counts), height_ratios=counts, squeeze=False)
    for ((quantity, *_), shown), axes in zip(panels.items(), grid.flat, strict=False):
        name, unit, factor = UNITS[quantity]
        labels = [f"{row['implementation']} {row['fusion']}" for row in shown]
        values = [row[quantity] * factor / row["batch"] for row in shown]
        bars = axes.barh(labels, values, color=["C0" if row["implementation"] == "fast" else "C7" for row in shown])
        axes.bar_label(bars, [f"{v:,.0f}" if v >= 100 else f"{v:.3g}" for v in values], padding=3, fontsize=8)
        axes.invert_yaxis()
        axes.margins(x=0.1)
        axes.set_title(f"{name}, {unit} a clip: {describe(shown[0], SETTING)}", fontsize=8, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    figure.savefig(path, dpi=120)
