"""Plots of a study: a metric over the values of an axis, and against what the cells cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from deepavfusion.figures.style import LINES, NOTE, WIDTH, new_figure, short, styled

MARKERS = "osD^vPX"  # as many as are no multiple of the colours, so that 42 cells differ in one or the other
LETTERS, LONG = 24, 48  # of a label at least, and of the name of a cell
ROOM = 90  # letters of all labels
COLUMNS, LEAST_COLUMNS, ROW = 3, 2, 0.2  # of a legend: with short names, with long ones; inches
SPREAD = 0.2  # of the distance of two labels, over which several lines are put side by side
BESIDE = 0.05  # of that distance, from the seeds to their mean

Seeds = Sequence[float]
"""A value for each seed."""


@styled
def draw_axis(lines: Mapping[str, Mapping[str, Seeds]], labels: Sequence[str], metric: str, title: str) -> Figure:
    """The mean at each label with its standard deviation, and each seed as a dot beside it.

    Args:
        lines: name of a line, empty if there is only one -> label -> values; labels without values are left out.
        labels: of the axis, in their order.
        metric: what the values are.
        title: what one sees.
    """
    figure = new_figure(WIDTH, 3.4, layout="constrained")
    axes = figure.subplots()
    shifts = np.linspace(-SPREAD / 2, SPREAD / 2, len(lines)) if len(lines) > 1 else [0.0]
    for shift, colour, (name, found) in zip(shifts, _colours(len(lines)), lines.items(), strict=False):
        places = [n + shift for n, label in enumerate(labels) if found.get(label)]
        values = [found[label] for label in labels if found.get(label)]
        for place, seeds in zip(places, values, strict=True):
            axes.plot([place - BESIDE] * len(seeds), seeds, ".", color=colour, alpha=0.5, zorder=2)
        means, errors = [np.mean(seeds) for seeds in values], [_error(seeds) for seeds in values]
        style = "o-" if name else "o"
        axes.errorbar(places, means, errors, fmt=style, color=colour, capsize=4, zorder=3, label=name or None)
    letters = max(LETTERS, ROOM // len(labels))
    axes.set_xticks(range(len(labels)), [short(label, letters) for label in labels])
    if sum(map(len, labels)) > 60:
        for tick in axes.get_xticklabels():
            tick.set(rotation=30, ha="right", rotation_mode="anchor")
    axes.set_xlim(-0.5, len(labels) - 0.5)
    axes.set_ylabel(metric)
    axes.set_title(f"{title} (mean ± standard deviation; dots: seeds)", wrap=True)
    axes.grid(axis="y")
    if any(lines):
        figure.legend(loc="outside lower center", ncols=3)
    return figure


@styled
def draw_trade(
    values: Mapping[str, Seeds], costs: Mapping[str, Mapping[str, float]], metric: str, lower: bool
) -> Figure:
    """The mean of each cell against each kind of cost; a line joins those that no cheaper one equals.

    Args:
        values: name of a cell -> values.
        costs: kind of cost -> name of a cell -> value.
        metric: what the values are.
        lower: whether lower values are better.
    """
    names = list(values)
    columns = COLUMNS if max(map(len, names)) <= LETTERS else LEAST_COLUMNS
    rows = -(-len(names) // columns)
    figure = new_figure(WIDTH, 3.2 + ROW * rows, layout="constrained")
    panels = figure.subplots(1, len(costs), sharey=True, squeeze=False)[0]
    for axes, (kind, cost) in zip(panels, costs.items(), strict=True):
        _trade(axes, values, cost, lower)
        axes.set_xlabel(kind)
    panels[0].set_ylabel(metric)
    figure.suptitle("mean ± standard deviation; dashed: the best of what costs no more", fontsize="medium")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=columns)
    return figure


def _trade(axes: Axes, values: Mapping[str, Seeds], cost: Mapping[str, float], lower: bool) -> None:
    means = {name: float(np.mean(found)) for name, found in values.items() if name in cost}
    sign = 1 if lower else -1
    front: list[str] = []
    for name in sorted(means, key=lambda name: (cost[name], sign * means[name])):
        if not front or sign * means[name] < sign * means[front[-1]]:
            front.append(name)
    axes.plot([cost[name] for name in front], [means[name] for name in front], "--", color=NOTE, lw=1, zorder=1)
    for n, (name, colour) in enumerate(zip(values, _colours(len(values)), strict=True)):
        at = ([cost[name]], [means[name]], [_error(values[name])]) if name in means else ([], [], [])
        marker = MARKERS[n % len(MARKERS)]
        axes.errorbar(*at, fmt=marker, color=colour, capsize=3, zorder=2, label=short(name, LONG))
    axes.margins(x=0.1, y=0.1)
    axes.locator_params(axis="x", nbins=4)
    axes.grid()


def _error(seeds: Seeds) -> float:
    return float(np.std(seeds, ddof=1)) if len(seeds) > 1 else 0.0


def _colours(count: int) -> list[str]:
    return [LINES[n % len(LINES)] for n in range(count)]
