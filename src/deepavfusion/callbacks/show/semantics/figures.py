"""Plots of a semantics run: what each stream and each fusion token knows, and how the streams agree."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from deepavfusion.figures.by_class import LINE, draw_matrix
from deepavfusion.figures.panels import head
from deepavfusion.figures.style import BAR, BLACK, BLUE, NOTE, ORANGE, SHARE, VALUE, new_figure, styled
from deepavfusion.metrics.semantics import Findings

PANELS = {"knn": "1-NN accuracy", "map": "mean average precision of the class"}  # leave-one-out
ENDINGS = {"": "joint pass", "_of_image": "image alone", "_of_audio": "audio alone"}
MATRICES = {  # measure of two streams -> title, label, colours, lowest and highest value
    "unbiased_cka": ("How alike the streams are: unbiased linear CKA", "unbiased CKA", VALUE, 0.0, 1.0),
    "mutual_knn": ("Neighbours in common: mutual k-NN", "share of the nearest neighbours", SHARE, 0.0, 1.0),
    "auc": ("Own pair against pairs of two clips: area under ROC", "AUC, 0.5 is chance", VALUE, 0.5, 1.0),
}
NAME, PLOT, VALUE_ROOM = 1.8, 2.6, 0.6  # inches, of the names of streams, of a panel, and of its values beside it


def _value(found: Findings, stream: str, measure: str, network: str = "") -> float:
    return found.streams[stream].get(measure, {}).get(network, math.nan)


@styled
def draw_streams(found: Findings, what: str) -> Figure:
    """A bar for each type of token, each group of fusion tokens, and what costs no network.

    Args:
        found: see `Findings`.
        what: the clips are, for the title.
    """
    streams = [stream for stream, kind in found.kinds.items() if kind != "token"]
    streams.sort(key=lambda stream: ("type", "group", "free").index(found.kinds[stream]))
    places = [n + 0.7 * ("type", "group", "free").index(found.kinds[stream]) for n, stream in enumerate(streams)]
    width, high = NAME + 2 * (PLOT + VALUE_ROOM), LINE * 1.15 * (places[-1] + 1)
    figure = new_figure(width, high + 1.35)
    total = figure.get_size_inches()[1]
    for n, (measure, label) in enumerate(PANELS.items()):
        left = NAME + n * (PLOT + VALUE_ROOM)
        axis = figure.add_axes((left / width, 0.85 / total, PLOT / width, high / total))
        colours = [BAR if found.kinds[stream] == "free" else BLUE for stream in streams]
        values = [_value(found, stream, measure) for stream in streams]
        axis.barh(places, np.nan_to_num(values), color=colours, height=0.72)
        axis.plot([_value(found, stream, measure, "untrained") for stream in streams], places, "^", color=ORANGE,
                  markersize=6, markeredgecolor="white")  # fmt: skip
        by_chance = [_value(found, stream, measure, "chance") for stream in streams]
        axis.plot(by_chance, places, "|", color=BLACK, markersize=9)
        for place, value in zip(places, values, strict=True):
            axis.text(1.02, place, f"{value:.2f}", va="center", ha="left", clip_on=False)
        axis.set(xlim=(0, 1), ylim=(places[-1] + 0.6, -0.6), xlabel=label, xticks=[0, 0.25, 0.5, 0.75, 1])
        axis.set_yticks(places, streams if n == 0 else [""] * len(streams))
        axis.tick_params(axis="y", length=0)
    handles = [
        Patch(color=BLUE, label="this network"),
        Patch(color=BAR, label="no network"),
        Line2D([], [], color=ORANGE, marker="^", linestyle="", label="untrained network"),
        Line2D([], [], color=BLACK, marker="|", linestyle="", markersize=9, label="chance"),
    ]
    figure.legend(handles=handles, loc="lower left", ncols=4, bbox_to_anchor=(0.1 / width, 0.02), borderaxespad=0,
                  columnspacing=1.2, handletextpad=0.4)  # fmt: skip
    head(figure, f"What each stream knows of the classes of {what}")
    return figure


@styled
def draw_tokens(found: Findings, sizes: Sequence[int], what: str) -> Figure:
    """1-NN accuracy by each single fusion token, a panel for each pass.

    Args:
        found: see `Findings`.
        sizes: of the three groups of fusion tokens.
        what: the clips are, for the title.
    """
    width, high, count = 7.0, 1.35, sum(sizes)
    total = 3 * (high + 0.35) + 1.1
    figure = new_figure(width, total)
    names = ("pairs", "image aggregates", "audio aggregates")
    edges = [0, *np.cumsum(sizes).tolist()]
    for n, (ending, title) in enumerate(ENDINGS.items()):
        bottom = 0.85 + (2 - n) * (high + 0.35)
        axis = figure.add_axes((0.65 / width, bottom / total, (width - 0.75) / width, high / total))
        streams = [f"token_{number:02}{ending}" for number in range(count)]
        _token_panel(axis, found, streams)
        axis.set_title(title, loc="left", pad=3)
        for name, begin, end in zip(names, edges[:-1], edges[1:], strict=True):
            axis.axvline(end - 0.5, color=NOTE, linewidth=0.8)
            if n == 0:
                axis.text((begin + end - 1) / 2, 1.02, name, ha="center", va="bottom", color=NOTE)
        axis.set(xlim=(-0.5, count - 0.5), ylim=(0, 1), ylabel="1-NN accuracy", yticks=[0, 0.5, 1])
        every = 1 if count <= 20 else 4
        axis.set_xticks(range(0, count, every), [str(number) for number in range(0, count, every)])
        axis.tick_params(labelbottom=n == 2)
    figure.axes[-1].set_xlabel("fusion token")
    handles = [
        Line2D([], [], color=BLUE, marker="o", linestyle="", label="this network"),
        Line2D([], [], color=ORANGE, marker="^", linestyle="", label="untrained network"),
        Line2D([], [], color=BLACK, linestyle=":", label="chance"),
    ]
    figure.legend(handles=handles, loc="lower left", ncols=3, bbox_to_anchor=(0.1 / width, 0.02), borderaxespad=0)
    head(figure, f"What each fusion token knows of the classes of {what}")
    return figure


def _token_panel(axis: Axes, found: Findings, streams: Sequence[str]) -> None:
    places = range(len(streams))
    axis.plot(
        places, [_value(found, stream, "knn", "untrained") for stream in streams], "^", color=ORANGE, markersize=5
    )
    axis.plot(places, [_value(found, stream, "knn") for stream in streams], "o", color=BLUE, markersize=5)
    axis.axhline(_value(found, streams[0], "knn", "chance"), color=BLACK, linestyle=":", linewidth=1)


def draw_agreement(found: Findings, measure: str, what: str) -> Figure:
    """A matrix of the types: `unbiased_cka`, `mutual_knn` or `auc` of two of them."""
    title, label, colours, low, high = MATRICES[measure]
    names = _compared(found)
    values = np.full((len(names), len(names)), np.nan)
    for i, one in enumerate(names):
        for j, other in enumerate(names):
            first, second = (one, other) if i < j else (other, one)
            if i != j:
                values[i, j] = found.pairs[first, second][measure][""]
    return draw_matrix(values, names, f"{title}, {what}", "stream", "stream (its number)", label, colours, low, high,
                       digits=2)  # fmt: skip


def draw_search(found: Findings, what: str) -> Figure:
    """A matrix of the types: the mean average precision of the class, by query stream and searched stream."""
    names = _compared(found)
    values = [
        [
            _value(found, one, "map") if one == other else found.pairs[one, other]["map"][""]
            for other in names
        ]
        for one in names
    ]  # fmt: skip
    return draw_matrix(np.array(values), names, f"Which stream finds what: mAP by class, {what}", "query",
                       "searched stream (its number)", "mean average precision", SHARE, 0.0, 1.0, digits=2)  # fmt: skip


def _compared(found: Findings) -> list[str]:
    """The streams that are compared with each other."""
    return [stream for stream, kind in found.kinds.items() if kind == "type" and stream != "combined"]
