"""What the rows of `benchmark=model` say: ratios of variants, and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepavfusion.benchmarks.report import Row, plt

VARIANT = ("implementation", "fusion")
SETTING = ("size", "masked", "precision", "compiled")
CASE = ("implementation", "fusion", "masked", "batch", "precision", "compiled", "size", "pass")
COMPARED = (("implementation", "reference", "fast"), ("fusion", "dense", "factorized"))
UNITS = {"median_s": ("time", "ms", 1e3), "peak_bytes": ("memory", "MB", 1e-6)}


@dataclass(frozen=True)
class Ratio:
    """Two rows that differ in one column only.

    Args:
        quantity: "time" (the medians) or "memory" (the peaks).
        above, below: what that column says in the two rows.
        value: of the first row, divided by that of the second.
        case: the settings they share, in words.
    """

    quantity: str
    above: str
    below: str
    value: float
    case: str

    def __str__(self) -> str:
        return f"{self.value:6.2f} ×  {self.quantity}, {self.above} / {self.below}: {self.case}"


def compare(rows: list[Row]) -> list[Ratio]:
    """Reference against fast, and what dense fusion costs in the fast implementation."""
    found = []
    for column, above, below in COMPARED:
        shared = [name for name in CASE if name != column]
        second = {tuple(row[name] for name in shared): row for row in rows if row[column] == below}
        for row in rows:
            other = second.get(tuple(row[name] for name in shared))
            if row[column] != above or other is None or (column == "fusion" and row["implementation"] != "fast"):
                continue
            for key, (quantity, _, _) in UNITS.items():
                if row[key] is not None and other[key]:
                    case = describe(row, shared)
                    found.append(Ratio(quantity, above, below, row[key] / other[key], case))
    return found


def describe(row: Row, names: Sequence[str]) -> str:
    """Settings of a row in words, such as "dense, all tokens, batch 1, fp32, eager, base, encoder_forward"."""
    words = {
        "masked": "masked" if row["masked"] else "all tokens",
        "batch": f"batch {row['batch']}",
        "compiled": "compiled" if row["compiled"] else "eager",
    }
    return ", ".join(str(words.get(name, row[name])) for name in names)


def draw(rows: list[Row], path: Path) -> None:
    """A line of panels for each setting: one for each pass and quantity, in it a bar for each variant and batch.

    Bars are parted by the batch, so that those of different batches can be compared.
    """
    lines: dict[tuple[Any, ...], dict[tuple[str, str], list[Row]]] = {}
    for quantity in UNITS:
        for row in rows:
            if row[quantity] is not None:
                line = lines.setdefault(tuple(row[name] for name in SETTING), {})
                line.setdefault((row["pass"], quantity), []).append(row)
    variants = list(dict.fromkeys(tuple(row[name] for name in VARIANT) for row in rows))
    fusions = list(dict.fromkeys(fusion for _, fusion in variants))
    colours = {
        (implementation, fusion): (f"C{fusions.index(fusion)}", 1.0 if implementation == "fast" else 0.45)
        for implementation, fusion in variants
    }
    width = max(map(len, lines.values()), default=1)
    size = (3.4 * width + 0.4, 2.5 * max(len(lines), 1) + 0.8)
    figure, grid = plt.subplots(max(len(lines), 1), width, figsize=size, squeeze=False, layout="constrained")
    for axes in grid.flat:
        axes.axis("off")
    for line, places in zip(lines.values(), grid, strict=False):
        for ((passed, quantity), shown), axes in zip(line.items(), places, strict=False):
            axes.axis("on")
            _bars(axes, shown, quantity, colours)
            name, unit, _ = UNITS[quantity]
            axes.set_title(f"{passed}: {name}, {unit} a clip\n{describe(shown[0], SETTING)}", fontsize=8, loc="left")
    handles = [plt.Rectangle((0, 0), 1, 1, color=colour, alpha=alpha) for colour, alpha in colours.values()]
    names = [" ".join(variant) for variant in variants]
    figure.legend(handles, names, loc="outside upper center", ncols=4, frameon=False, fontsize=9)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _bars(axes: plt.Axes, rows: list[Row], quantity: str, colours: dict[tuple[str, str], tuple[str, float]]) -> None:
    batches = sorted({row["batch"] for row in rows})
    present = {(row["implementation"], row["fusion"]) for row in rows}
    variants = [variant for variant in colours if variant in present]
    width = 0.8 / len(variants)
    for row in rows:
        variant = (row["implementation"], row["fusion"])
        colour, alpha = colours[variant]
        place = batches.index(row["batch"]) + (variants.index(variant) + 0.5) * width - 0.4
        height = row[quantity] * UNITS[quantity][2] / row["batch"]
        bar = axes.bar(place, height, 0.9 * width, color=colour, alpha=alpha)
        if len(rows) <= 8:  # more would lie over each other
            axes.bar_label(bar, fmt="{:,.3g}" if height < 100 else "{:,.0f}", fontsize=7)
    axes.set_xticks(range(len(batches)), [f"batch {batch}" for batch in batches])
    axes.set_xlim(-0.6, len(batches) - 0.4)
    axes.margins(y=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
