"""Figures of a classification run: confusion matrix, accuracy by class, single clips."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray
from torch import Tensor

from deepavfusion.transforms.audio import FRAMES_PER_SECOND
from deepavfusion.types import ALL, HEADS, STREAMS

NAMED = 30  # classes, at most, with names in the confusion matrix
EXTREMES = 20  # best and worst classes shown, of many; and confused pairs listed
MARKS = {"image": ("o", "#0072b2", -0.27), "audio": ("^", "#d55e00", 0.0), "fusion": ("s", "#009e73", 0.27)}
RIGHT, WRONG = "#b5e0b8", "#f3bcb4"


@dataclass
class Example:
    """A clip to draw: frame [3, H, W] in 0…1, spectrogram RGB [3, M, F] in 0…1, waveform [1, T].

    `verdicts`: stream -> the likeliest class, its probability, that of the truth, whether the class is true.
    """

    name: str
    truth: str
    verdicts: dict[str, tuple[str, float, float, bool]]
    frame: Tensor
    spectrogram: Tensor
    waveform: Tensor


def draw_confusion(counts: NDArray[np.int64], classes: Sequence[str], split: str) -> Figure:
    """Fraction of the clips of each class (row) that are predicted as each class (column).

    Up to `NAMED` classes have names and percentages, up to 12 also counts. More classes are drawn by number, with small
    fractions enhanced, next to a list of the most frequently confused pairs.

    Args:
        counts: int [C, C], rows truth, columns prediction.
    """
    total = counts.sum(axis=1, keepdims=True)
    share = np.where(total > 0, counts / np.maximum(total, 1), np.nan)  # classes without clips: grey rows
    if len(classes) > NAMED:
        return _draw_many(counts, share, classes, split)
    size = max(4.5, 0.42 * len(classes) + 1.5) if len(classes) > 12 else max(4.5, 0.75 * len(classes) + 1.5)
    figure = Figure(figsize=(size + 0.8, size), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
    labels = [_short(name, 28) for name in classes]
    axis.set_xticks(range(len(classes)), labels, rotation=90)
    axis.set_yticks(range(len(classes)), labels)
    for (i, j), value in np.ndenumerate(share):
        if counts[i, j]:
            text = f"{100 * value:.0f}" + (f"\n({counts[i, j]})" if len(classes) <= 12 else "")
            colour = "white" if value > 0.55 else "0.15"
            axis.text(j, i, text, ha="center", va="center", color=colour, fontsize=8)
    _label(axis, figure, image, counts, split)
    return figure


def _draw_many(counts: NDArray[np.int64], share: NDArray[np.float64], classes: Sequence[str], split: str) -> Figure:
    side = max(6.5, len(classes) / 50)  # inches: two pixels a class
    figure = Figure(figsize=(side + 8.0, side + 0.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(side + 1.0, 3.0))
    image = left.imshow(share, cmap="magma", norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
    _label(left, figure, image, counts, split)
    left.set(xlabel="predicted (number of the class)", ylabel="truth (number of the class)")
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    rank = np.lexsort((np.arange(wrong.size), -np.nan_to_num(share).ravel(), -wrong.ravel()))[:EXTREMES]
    pairs = [divmod(int(n), len(classes)) for n in rank if wrong.flat[n]]
    texts = [" → ".join(f"{_short(classes[n], 34)} ({n})" for n in pair) for pair in pairs]
    shares = [float(share[pair]) for pair in pairs]
    right.barh(range(len(pairs)), shares, color="#c6a0b8")
    for place, (pair, value) in enumerate(zip(pairs, shares, strict=True)):
        right.text(value, place, f" {counts[pair]} of {counts[pair[0]].sum()}", va="center", fontsize=8)
    right.set_yticks(range(len(pairs)), texts, fontsize=8)
    right.set(xlim=(0, 1.4 * max(shares, default=1.0)), ylim=(EXTREMES - 0.4, -0.6), xlabel="share of the true clips")
    right.set_title("most often confused: truth → prediction (numbers)", loc="right", fontsize=9)
    return figure


def _label(axis: Axes, figure: Figure, image: Any, counts: NDArray[np.int64], split: str) -> None:
    axis.set(xlabel="predicted", ylabel="truth", facecolor="0.85")  # the background shows where a class has no clips
    axis.set_title(f"{split}: {np.trace(counts)} of {counts.sum()} clips right", fontsize=9)
    figure.colorbar(image, ax=axis, label="share of the clips of a class", shrink=0.8)


def _short(name: str, letters: int) -> str:
    """At most so many letters; a dollar sign is escaped, so that it starts no formula."""
    return (name if len(name) <= letters else f"{name[: letters - 1]}…").replace("$", r"\$")


def draw_classes(values: dict[str, list[float]], clips: Sequence[int], classes: Sequence[str], measure: str) -> Figure:
    """Bars for the mean of the heads, the best class first, and marks for each head; only the two ends of many classes.

    Args:
        values: stream -> value of each class, nan where it does not occur.
        clips: number of clips of each class.
        measure: name of the metric and the split.
    """
    known = [n for n, value in enumerate(values[ALL]) if not math.isnan(value)]
    order = sorted(known, key=lambda n: [-values[stream][n] for stream in (ALL, *STREAMS[::-1])])
    parts = {f"all {len(order)} classes (clips)": order}
    if len(order) > 2 * EXTREMES:
        best = f"the best {EXTREMES} of {len(order)} classes (clips)"
        parts = {best: order[:EXTREMES], f"the worst {EXTREMES}": order[-EXTREMES:]}
    lines = max(len(part) for part in parts.values())
    figure = Figure(figsize=(6.5 * len(parts), 0.24 * lines + 1.6), layout="constrained")
    axes = figure.subplots(1, len(parts), squeeze=False)[0]
    for axis, (title, part) in zip(axes, parts.items(), strict=True):
        places = np.arange(len(part))
        heights = [values[ALL][n] for n in part]
        axis.barh(places, heights, color="0.85")
        for stream, (mark, colour, shift) in MARKS.items():
            axis.plot([values[stream][n] for n in part], places + shift, mark, color=colour, markersize=3.5)
        for place, value in zip(places, heights, strict=True):
            axis.text(1.03, place, f"{value:.2f}", va="center", fontsize=8)
        axis.set_yticks(places, [f"{_short(classes[n], 36)} ({clips[n]})" for n in part], fontsize=8)
        axis.set(xlim=(-0.02, 1.13), ylim=(len(part) - 0.4, -0.6))  # room for the number
        axis.set(xticks=[0, 0.2, 0.4, 0.6, 0.8, 1], xlabel=measure)
        axis.set_title(title, fontsize=9)
    means = {stream: math.fsum(values[stream][n] for n in known) / len(known) for stream in HEADS}
    handles: list[Any] = [Patch(color="0.85", label=f"mean of the heads, {means[ALL]:.3f}")]
    for stream, (mark, colour, _) in MARKS.items():
        label = f"{stream}, {means[stream]:.3f}"
        handles.append(Line2D([], [], color=colour, marker=mark, markersize=4, linestyle="", label=label))
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8, title="mean over the classes",
                  title_fontsize=8)  # fmt: skip
    return figure


def draw_examples(examples: Sequence[Example]) -> Figure:
    """A row for each clip: frame, spectrogram, and for each stream a bar for the likeliest class and, to its right, the
    probability of the truth."""
    figure = Figure(figsize=(10, 1.75 * len(examples) + 0.5), layout="constrained")
    axes = figure.subplots(len(examples), 3, squeeze=False, width_ratios=(1, 1.9, 3))
    for line, example in zip(axes, examples, strict=True):
        seconds = example.spectrogram.shape[-1] / FRAMES_PER_SECOND
        line[0].imshow(example.frame.permute(1, 2, 0))
        line[0].set_xticks([])
        line[0].set_ylabel(_short(example.name, 24), fontsize=7)
        line[1].imshow(example.spectrogram.permute(1, 2, 0), aspect="auto", extent=(0, seconds, 0, 1))
        line[1].tick_params(labelsize=7)
        for axis in line[:2]:
            axis.set_yticks([])
        truth = textwrap.wrap(f"truth: {example.truth}".replace("$", r"\$"), 76, max_lines=2, placeholder=" …")
        line[2].set_title("\n".join(truth), loc="left", fontsize=8)
        for place, (name, probability, of_truth, right) in enumerate(example.verdicts.values()):
            line[2].barh(place, probability, color=RIGHT if right else WRONG)
            line[2].text(0.01, place, f"{_short(name, 40)}  {100 * probability:.1f} %", va="center", fontsize=8)
            if not math.isnan(of_truth):
                line[2].text(1.02, place, f"{100 * of_truth:.1f} %", va="center", fontsize=8)
        line[2].set_yticks(range(len(example.verdicts)), list(example.verdicts), fontsize=8)
        line[2].set(xlim=(0, 1), ylim=(len(example.verdicts) - 0.5, -0.5), xticks=[0, 0.5, 1])
        line[2].tick_params(axis="x", labelsize=7)
    axes[-1, 1].set_xlabel("s", fontsize=8)
    axes[-1, 2].set_xlabel("probability; right: of the truth (the least likely of several)", fontsize=8)
    handles = [Patch(color=RIGHT, label="the likeliest class is true"), Patch(color=WRONG, label="it is not")]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=8)
    return figure
