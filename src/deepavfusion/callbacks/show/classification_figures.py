"""Figures of a classification run: confusion matrix, accuracy by class, single clips."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray
from torch import Tensor

from deepavfusion.figures.by_class import LINE, NAMED, draw_bars, draw_matrix
from deepavfusion.figures.panels import DECIBELS, LOUDNESS, colour_bar, grid, head, show_image, show_mel
from deepavfusion.figures.style import BAR, BLACK, POWER, RIGHT, SHARE, STREAMS, WIDTH, WRONG, new_figure, short, styled
from deepavfusion.types import ALL
from deepavfusion.utils.names import printable

PAIRS = 12  # confused pairs listed, of many classes


@dataclass
class Example:
    """A clip to draw: frame [3, H, W] in 0…1, spectrogram [M, F] in dB, waveform [1, T].

    `verdicts`: stream -> the likeliest class, its probability, that of the truth, whether the class is true.
    """

    name: str
    truth: str
    verdicts: dict[str, tuple[str, float, float, bool]]
    frame: Tensor
    spectrogram: Tensor
    waveform: Tensor


def draw_confusion(counts: NDArray[np.int64], classes: Sequence[str], split: str, everything: bool = False) -> Figure:
    """Percentage of the clips of each class (row) that are predicted as each class (column).

    Of more than `NAMED` classes, the pairs most frequently confused instead, unless `everything` is asked for.

    Args:
        counts: int [C, C], rows truth, columns prediction.
        classes: their names.
        split: of the data, for the title.
        everything: the whole matrix of many classes, for a file.
    """
    total = counts.sum(axis=1, keepdims=True)
    percent = np.where(total > 0, 100 * counts / np.maximum(total, 1), np.nan)  # classes without clips
    right = f"{np.trace(counts)} of {counts.sum()} clips right"
    if len(classes) > NAMED and not everything:
        return _draw_pairs(counts, percent, classes, f"Classes confused most often, {split}: {right}")
    names = [f"{short(name, 23)} ({number})" for name, number in zip(classes, total[:, 0], strict=True)]
    return draw_matrix(
        percent, names, f"Confusion matrix, {split}: {right}", "truth (clips)", "predicted class (its number)",
        "% of the clips of the true class", SHARE, 0, 100, zeros=False,
    )  # fmt: skip


@styled
def _draw_pairs(counts: NDArray[np.int64], percent: NDArray[np.float64], classes: Sequence[str], title: str) -> Figure:
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    rank = np.lexsort((np.arange(wrong.size), -np.nan_to_num(percent).ravel(), -wrong.ravel()))[:PAIRS]
    pairs = [divmod(int(n), len(classes)) for n in rank if wrong.flat[n]]
    figure = new_figure(WIDTH, 2 * LINE * PAIRS + 1.0, layout="constrained")
    axis = figure.subplots()
    shares = [float(percent[pair]) for pair in pairs]
    axis.barh(range(len(pairs)), shares, color=BAR, height=0.6)
    for place, (pair, share) in enumerate(zip(pairs, shares, strict=True)):
        axis.text(share, place, f" {counts[pair]} of {counts[pair[0]].sum()}", va="center")
    axis.set_yticks(range(len(pairs)), ["\n→ ".join(short(classes[n], 36) for n in pair) for pair in pairs])
    axis.tick_params(axis="y", length=0)
    axis.set(xlim=(0, 1.3 * max(shares, default=100.0)), ylim=(PAIRS - 0.4, -0.6))
    axis.set_xlabel("% of the clips of the true class")
    figure.suptitle(title + "\ntruth → prediction")
    return figure


def draw_classes(
    values: dict[str, list[float]],
    clips: Sequence[int],
    classes: Sequence[str],
    measure: str,
    split: str,
    everything: bool = False,
) -> Figure:
    """Bars for the mean of the heads, the best class first, and marks for each head; only the two ends of many classes.

    Args:
        values: stream -> value of each class, nan where it does not occur.
        clips: number of clips of each class.
        classes: their names.
        measure: name of the metric.
        split: of the data.
        everything: all classes, for a file.
    """
    known = sum(not math.isnan(value) for value in values[ALL])
    some = f"{known} classes" if known == len(classes) else f"{known} of {len(classes)} classes occur"
    marks = {stream: (mark, colour, values[stream]) for stream, (mark, colour) in STREAMS.items()}
    return draw_bars(
        values[ALL],
        [f"{short(name, 26)} ({number})" for name, number in zip(classes, clips, strict=True)],
        f"{measure.capitalize()} by class, {split}: {some} (clips)",
        measure,
        marks,
        "all heads",
        everything=everything,
    )


@styled
def draw_examples(examples: Sequence[Example], title: str) -> Figure:
    """A row for each clip: frame, spectrogram, and for each stream the likeliest class and the truth's probability.

    Args:
        examples: what to draw.
        title: what they are.
    """
    figure, axes = grid(len(examples), (1, 1.4, 3.4), left=0.1, right=0.15, top=0.72, bottom=1.42,
                        gaps=(0.46, 0.56), down=0.34)  # fmt: skip
    for line, example in zip(axes, examples, strict=True):
        show_image(line[0], example.frame.permute(1, 2, 0))
        show_mel(line[1], example.spectrogram, labels="xy" if line is axes[-1] else "y")
        _draw_verdicts(line[2], example)
        truth = textwrap.shorten(printable(example.truth), 34, placeholder=" …")
        line[0].set_title(f"{truth}   ({short(example.name, 24)})", loc="left", pad=4, fontweight="bold")
        line[2].tick_params(labelbottom=line is axes[-1])
    axes[-1][2].set_xlabel("probability", labelpad=1)
    colour_bar(figure, POWER, LOUDNESS, DECIBELS, left=0.2, bottom=0.45, width=2.3)
    handles = [
        Patch(color=RIGHT, label="✓ the likeliest class, and right"),
        Patch(color=WRONG, label="✗ the likeliest class, and wrong"),
        Line2D([], [], color=BLACK, linewidth=2.5, label="the true class; of several, the least likely"),
    ]
    width, height = figure.get_size_inches()
    figure.legend(handles=handles, loc="lower left", bbox_to_anchor=(2.9 / width, 0.08 / height), borderaxespad=0)
    head(figure, title)
    return figure


def _draw_verdicts(axis: Axes, example: Example) -> None:
    for place, (name, probability, of_truth, right) in enumerate(example.verdicts.values()):
        axis.barh(place - 0.09, probability, color=RIGHT if right else WRONG, height=0.74)
        axis.text(
            0.015, place - 0.09, f"{'✓' if right else '✗'} {short(name, 30)}  {100 * probability:.0f} %", va="center"
        )
        if not math.isnan(of_truth):
            axis.barh(place + 0.36, of_truth, color=BLACK, height=0.14)
    axis.set_yticks(range(len(example.verdicts)), list(example.verdicts))
    axis.set(xlim=(0, 1), ylim=(len(example.verdicts) - 0.5, -0.5), xticks=[0, 0.25, 0.5, 0.75, 1])
    axis.tick_params(axis="y", length=0)
    axis.tick_params(axis="x", length=2.5, pad=2)
