"""Rows of images and spectrograms with titles, captions, axes and colour bars."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from deepavfusion.figures.style import LARGE, NOTE, POWER, SMALL, WIDTH, new_figure, short
from deepavfusion.transforms.audio import FRAMES_PER_SECOND, N_MELS, SAMPLE_RATE
from deepavfusion.utils.names import printable

LOUDNESS = Normalize(-60, 20)  # dB re a mel power of 1: the darkest and the brightest colour
SHARES = Normalize(0, 1)
DECIBELS = "mel power (dB re 1)"
FEW, MANY = (0.5, 2, 8), (0.25, 0.5, 1, 2, 4, 8)  # kHz with ticks
CAPTION = 17  # letters a line, in `CAPTION_WIDTH`
CAPTION_WIDTH = 1.6  # inches


def grid(
    rows: int,
    widths: Sequence[float],
    left: float = CAPTION_WIDTH,
    right: float = 0.1,
    top: float = 0.6,
    bottom: float = 0.1,
    gaps: float | Sequence[float] = 0.08,
    down: float = 0.08,
    width: float = WIDTH,
) -> tuple[Figure, list[list[Axes]]]:
    """Axes at fixed places, which matplotlib draws several times faster than a layout that it has to find.

    Args:
        rows: how many.
        widths: of the columns, relative to the height of a row.
        left, right, top, bottom: margins, inches.
        gaps, down: between columns and between rows, inches.
        width: of the figure, inches; its height follows.
    """
    spaces = [gaps] * (len(widths) - 1) if isinstance(gaps, float) else list(gaps)
    height = (width - left - right - sum(spaces)) / sum(widths)
    total = top + rows * height + (rows - 1) * down + bottom
    figure = new_figure(width, total)
    axes = []
    for row in range(rows):
        line, x = [], left
        y = total - top - (row + 1) * height - row * down
        for wide, space in zip(widths, [*spaces, 0.0], strict=True):
            line.append(figure.add_axes((x / width, y / total, wide * height / width, height / total)))
            x += wide * height + space
        axes.append(line)
    return figure, axes


def head(figure: Figure, title: str, note: str = "") -> None:
    """What a figure shows, on top; and at its lower left edge what has to be known to read it."""
    width, height = figure.get_size_inches()
    figure.text(0.1 / width, 1 - 0.08 / height, printable(title), fontsize=LARGE, va="top")
    if note:
        lines = textwrap.fill(note, round(width * 14.2))
        figure.text(0.1 / width, 0.08 / height, lines, fontsize=SMALL, color=NOTE, va="bottom")


def caption(axis: Axes, name: str, detail: str = "", clear: float = 0.0) -> None:
    """Left of a row of panels, horizontally: a name in at most two lines, and a detail such as the clip's id.

    Args:
        axis: the first of the row.
        name: wrapped at blanks.
        detail: lines that are shortened.
        clear: points to leave free for labels of the axis.
    """
    lines = textwrap.wrap(printable(name), CAPTION, max_lines=2, placeholder=" …")
    lines += [short(part, CAPTION) for part in detail.split("\n") if part]
    place: Any = {"xy": (0, 0.5), "xycoords": "axes fraction", "xytext": (-6 - clear, 0), "textcoords": "offset points"}
    axis.annotate("\n".join(lines), **place, ha="right", va="center", annotation_clip=False)


def show_image(axis: Axes, image: ArrayLike, **options: Any) -> Any:
    """RGB [H, W, 3] (or values [H, W]) without ticks, filling the axis."""
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
    return axis.imshow(image, aspect="auto", **options)


def show_mel(
    axis: Axes,
    values: ArrayLike,
    colours: str = POWER,
    scale: Normalize = LOUDNESS,
    seconds: float | None = None,
    labels: str = "xy",
    ticks: Sequence[float] = FEW,
    **options: Any,
) -> Any:
    """A map over time and mel bands, e.g. a spectrogram in dB, low bands at the bottom.

    Args:
        axis: where to.
        values: [M, F], one for each mel band and spectrogram frame, or coarser, or RGBA [M, F, 4].
        colours: name of the colour map.
        scale: values of its ends.
        seconds: length; None: of F spectrogram frames.
        labels: which axes have labels: "xy" seconds and kHz, "x", "y" or "".
        ticks: kHz that have a tick.
    """
    values = np.asarray(values)
    seconds = values.shape[1] / FRAMES_PER_SECOND if seconds is None else seconds
    image = axis.imshow(
        values, cmap=colours, norm=scale, extent=(0, seconds, 0, N_MELS), origin="lower", aspect="auto",
        interpolation="nearest", **options,
    )  # fmt: skip
    axis.set_yticks([band_of(kilohertz) for kilohertz in ticks], [f"{kilohertz:g}" for kilohertz in ticks])
    axis.tick_params(labelleft="y" in labels, labelbottom="x" in labels, length=2.5, pad=2)
    if "y" in labels:
        axis.set_ylabel("kHz", labelpad=1)
    ticks_s = [tick for tick in MaxNLocator(4, steps=[1, 2, 5, 10]).tick_values(0, seconds) if 0 <= tick <= seconds]
    axis.set_xticks(ticks_s, [f"{tick:g}" for tick in ticks_s])
    if "x" in labels:
        axis.set_xlabel("time (s)", labelpad=1)
        for tick, text in zip(ticks_s, axis.get_xticklabels(), strict=True):  # clear of the next panel's
            text.set_horizontalalignment("left" if tick == 0 else "right" if tick > 0.95 * seconds else "center")
    return image


def band_of(kilohertz: float) -> float:
    """The position of a frequency among the mel bands (HTK's formula); band n is drawn from n to n + 1."""
    share = math.log10(1 + 1000 * kilohertz / 700) / math.log10(1 + SAMPLE_RATE / 2 / 700)
    return min((N_MELS + 1) * share - 0.5, N_MELS)


def colour_bar(
    figure: Figure, colours: str, scale: Normalize, label: str, left: float, bottom: float, width: float, **options: Any
) -> None:
    """A horizontal bar at a place in inches, its label below it; `options` as for matplotlib's `Figure.colorbar`."""
    across, height = figure.get_size_inches()
    axis = figure.add_axes((left / across, bottom / height, width / across, 0.1 / height))
    figure.colorbar(ScalarMappable(scale, colours), cax=axis, orientation="horizontal", **options)
    axis.set_xlabel(label, labelpad=1)
    axis.tick_params(length=2.5, pad=2)
