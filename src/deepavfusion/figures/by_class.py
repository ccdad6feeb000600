"""Values of classes, and of pairs of classes: as bars and as a matrix."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from deepavfusion.figures.style import BACKDROP, BAR, BLUE, LARGE, WIDTH, ink, new_figure, short, styled

NUMBERED = 15  # classes up to which the cells of a matrix have room for a number
ROOMY = 10  # classes up to which it may have decimals
NAMED = 30  # classes up to which a matrix with names is readable in TensorBoard
EXTREMES = 10  # best and worst classes shown in TensorBoard, of many
LINE = 0.19  # inches a line of names
COLUMN = 70  # lines in a column of bars of a file
LETTERS = 30  # of a name
NAMES = 2.75  # inches left of a matrix

Marks = Mapping[str, tuple[str, str, Sequence[float]]]  # name -> marker, colour, a value for each class


@styled
def draw_matrix(
    values: NDArray[np.float64],
    names: Sequence[str],
    title: str,
    rows: str,
    columns: str,
    label: str,
    colours: str,
    low: float,
    high: float,
    zeros: bool = True,
    digits: int = 0,
) -> Figure:
    """A value for each pair of classes. Rows have names and numbers, columns the same numbers, horizontal.

    Args:
        values: [C, C]; nan, drawn hatched, where there is none.
        names: of the classes.
        title: what one sees.
        rows, columns: what they are.
        label: quantity and unit, of cells and colour bar.
        colours: name of the colour map from `low` to `high`.
        low, high: values of its ends.
        zeros: whether cells that are 0 have a number.
        digits: decimals of the numbers; none of them if there is no room.
    """
    classes = len(names)
    side = max(2.6, LINE * classes) if classes > NUMBERED else 3.3
    width, height = side + NAMES + 0.9, side + 0.95
    figure = new_figure(width, height)  # placed by hand: a layout that is searched for cuts names off here
    axis = figure.add_axes((NAMES / width, 0.45 / height, side / width, side / height))
    beside = figure.add_axes(((NAMES + side + 0.12) / width, 0.45 / height, 0.15 / width, side / height))
    axis.patch.set(facecolor=BACKDROP, hatch="////")  # seen where there is no value
    image = axis.imshow(values, cmap=colours, vmin=low, vmax=high, interpolation="nearest")
    axis.set_yticks(range(classes), [f"{short(name, LETTERS)}  {n}" for n, name in enumerate(names, 1)])
    every = 1 if classes <= NUMBERED else 2 if classes <= NAMED else 5
    axis.set_xticks(range(0, classes, every), [str(n + 1) for n in range(0, classes, every)])
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    axis.set(xlabel=columns, ylabel=rows)
    if classes <= NUMBERED:
        shade = matplotlib.colormaps[colours]
        for (i, j), value in np.ndenumerate(values):
            if np.isfinite(value) and (zeros or value):
                colour = ink(shade(Normalize(low, high)(value))[:3])
                number = _number(value, digits if classes <= ROOMY else 0)
                axis.text(j, i, number, ha="center", va="center", color=colour)
    figure.colorbar(image, cax=beside, label=label)
    figure.text(0.1 / width, 1 - 0.1 / height, title, fontsize=LARGE, va="top")
    axis.yaxis.set_label_coords(-(NAMES - 0.15) / side, 0.5)
    return figure


def _number(value: float, digits: int) -> str:
    """With a minus sign that is one, and no negative zero."""
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "−")


@styled
def draw_bars(
    values: Sequence[float],
    names: Sequence[str],
    title: str,
    label: str,
    marks: Marks | None = None,
    legend: str = "",
    low: float = 0.0,
    high: float = 1.0,
    everything: bool = False,
) -> Figure:
    """A bar for each class, the highest first; of many classes only both ends, or all of them in several columns.

    Args:
        values: of the classes; those that are nan are not drawn.
        names: of the classes, with what is to be read beside each bar.
        title: what one sees.
        label: quantity and unit.
        marks: further values of each class, drawn as markers; ties are in the order of the last of them.
        legend: name of the bars, if there are marks.
        low, high: ends of the axis; bars start at 0.
        everything: all classes, for a file.
    """
    marks = marks or {}
    ties = [mark[2] for mark in reversed(list(marks.values()))]
    known = [n for n, value in enumerate(values) if not math.isnan(value)]
    order = sorted(known, key=lambda n: [-values[n], *(-found[n] for found in ties)])
    parts: list[list[int | None]] = [[*order]]
    if everything:
        parts = [[*order[n : n + COLUMN]] for n in range(0, len(order), COLUMN)] or [[]]
    elif len(order) > 2 * EXTREMES + 1:
        parts = [[*order[:EXTREMES], None, *order[-EXTREMES:]]]
    lines = max(len(part) for part in parts)
    figure = new_figure(WIDTH * len(parts), LINE * max(lines, 3) + 1.25, layout="constrained")
    for axis, part in zip(figure.subplots(1, len(parts), squeeze=False)[0], parts, strict=True):
        _draw_part(axis, part, values, names, marks, (low, high), len(order) - 2 * EXTREMES)
        axis.set(ylim=(lines - 0.4, -0.6), xlabel=label)
    if marks:
        first = figure.axes[0]
        handles: list[Any] = [*first.containers, *first.lines]
        found = {legend: values} | {name: mark[2] for name, mark in marks.items()}
        texts = [f"{name} {_mean(each, known):.2f}" for name, each in found.items()]
        figure.legend(handles, texts, loc="outside lower center", ncols=4, handletextpad=0.4, columnspacing=1.4,
                      title="mean over the classes")  # fmt: skip
    figure.suptitle(title)
    return figure


def _draw_part(
    axis: Axes, part: Sequence[int | None], values: Any, names: Any, marks: Marks, ends: tuple[float, float], left: int
) -> None:
    """The bars of one column; None is a gap that says how many classes are left out."""
    low, high = ends
    shown = [(line, n) for line, n in enumerate(part) if n is not None]
    places = np.array([line for line, _ in shown])
    heights = [values[n] for _, n in shown]
    axis.barh(places, heights, color=BAR if marks else BLUE, height=0.78)
    shifts = np.linspace(-0.25, 0.25, len(marks))
    for shift, (mark, colour, found) in zip(shifts, marks.values(), strict=True):
        axis.plot([found[n] for _, n in shown], places + shift, mark, color=colour, markersize=4.5)
    edge = high + 0.03 * (high - low)
    for place, value in zip(places, heights, strict=True):
        axis.text(edge, place, _number(value, 2), va="center", clip_on=False)
    for line, n in enumerate(part):
        if n is None:
            axis.text(low, line, f"… {left} classes between …", va="center", style="italic")
    axis.set_yticks(places, [short(names[n], LETTERS + 6) for _, n in shown])
    axis.set_xlim(low - 0.02 * (high - low), high + 0.14 * (high - low))  # room for the number
    axis.set_xticks([tick for tick in MaxNLocator(5).tick_values(low, high) if low <= tick <= high])
    axis.tick_params(axis="y", length=0)


def _mean(values: Sequence[float], known: Sequence[int]) -> float:
    return math.fsum(values[n] for n in known) / max(len(known), 1)
