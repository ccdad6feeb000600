"""Plots of a study: a metric over the cells, and against what they cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from deepavfusion.figures.style import BLUE, NOTE, ORANGE, WIDTH, new_figure, short, styled

LETTERS = 24  # of the name of a cell

Values = Mapping[str, Sequence[float]]
"""Name of a cell -> a value for each seed."""


@styled
def draw_axis(values: Values, metric: str, title: str) -> Figure:
    """The mean of each cell with its standard deviation, and each seed as a dot."""
    figure = new_figure(WIDTH, 3.2, layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(values))
    for place, found in zip(places, values.values(), strict=True):
        axes.plot([place] * len(found), found, "o", color=ORANGE, markersize=4, alpha=0.8, zorder=2)
        error = np.std(found, ddof=1) if len(found) > 1 else 0.0
        axes.errorbar([place], [np.mean(found)], yerr=error, fmt="_", color=BLUE, markersize=16, capsize=4, zorder=3)
    axes.set_xticks(places, [short(name, LETTERS) for name in values])
    if len(values) > 4:
        axes.tick_params(axis="x", rotation=30)
    axes.set_xlim(-0.5, len(values) - 0.5)
    axes.set_ylabel(metric)
    axes.set_title(title, wrap=True)
    axes.grid(axis="y")
    return figure


@styled
def draw_trade(values: Values, gflop: Mapping[str, float], metric: str, lower: bool) -> Figure:
    """The mean of each cell against GFLOP of its encoder; a line joins those that no cheaper one equals."""
    figure = new_figure(WIDTH, 3.2, layout="constrained")
    axes = figure.subplots()
    means = {name: float(np.mean(found)) for name, found in values.items()}
    front, best = [], None
    for name in sorted(means, key=lambda name: (gflop[name], means[name] if lower else -means[name])):
        if best is None or (means[name] < best if lower else means[name] > best):
            best = means[name]
            front.append(name)
    axes.plot([gflop[name] for name in front], [means[name] for name in front], color=BLUE, zorder=1)
    for name, found in values.items():
        error = np.std(found, ddof=1) if len(found) > 1 else 0.0
        axes.errorbar([gflop[name]], [means[name]], yerr=error, fmt="o", color=BLUE, capsize=3, zorder=2)
        axes.annotate(
            short(name, LETTERS), (gflop[name], means[name]), xytext=(5, 5), textcoords="offset points", color=NOTE
        )
    axes.set_xlabel("GFLOP of the encoder for a clip")
    axes.set_ylabel(metric)
    axes.margins(x=0.15, y=0.15)
    axes.grid()
    return figure
