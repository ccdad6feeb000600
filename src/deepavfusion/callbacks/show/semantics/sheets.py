"""Sheets of nearest neighbours: a query, and what each type of token finds nearest to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from deepavfusion.figures.panels import caption, grid, head, show_image, show_mel
from deepavfusion.figures.style import BLUE, short, styled
from deepavfusion.metrics.retrieval import relevant
from deepavfusion.metrics.semantics import Findings
from deepavfusion.transforms.audio import FRAMES_PER_SECOND

JUDGED_BY = "fusion"  # the stream whose average precision names the best and the worst clips
PANEL = (1.0, 1.3)  # widths of a frame and of a spectrogram
EDGE = 0.035  # inches, from a clip to the line around it


@dataclass
class Shown:
    """A clip to draw: frame [3, H, W] in 0…1, spectrogram [M, F] in dB, names of its classes or its file, its id."""

    frame: Tensor
    spectrogram: Tensor
    classes: str
    id: str


def choose(found: Findings, queries: int, extremes: int, seed: int) -> dict[str, list[int]]:
    """Positions in `found.items` of the clips to query with: {"seed": chosen at random, "best", "worst"}, by the
    average precision of the fusion tokens. Of the best and of the worst, each has other classes, as far as there are.
    """
    precision = found.precision[JUDGED_BY]
    known = precision.isfinite().nonzero()[:, 0]
    random = known[torch.randperm(len(known), generator=torch.Generator().manual_seed(seed))]
    ranked = known[precision[known].argsort(descending=True, stable=True)]
    return {
        "seed": random[:queries].tolist(),
        "best": _of_different_classes(found.labels, ranked.tolist(), extremes),
        "worst": _of_different_classes(found.labels, ranked.flip(0).tolist(), extremes),
    }


def _of_different_classes(labels: Tensor, order: Sequence[int], count: int) -> list[int]:
    chosen, seen = [], set()
    for n in order:
        key = str(labels[n].tolist())
        if key not in seen:
            seen.add(key)
            chosen.append(n)
    return (chosen + [n for n in order if n not in chosen])[:count]


@styled
def draw_sheet(found: Findings, query: int, clips: Mapping[int, Shown], title: str, what: str) -> Figure:
    """The query, and a row for each type of token with the nearest clips, those that share a class framed.

    Args:
        found: see `Findings`.
        query: position in `found.items`.
        clips: by position; those that could not be read again are missing.
        title: which clip it is.
        what: the clips are.
    """
    columns = max(near.shape[1] for near in found.nearest.values())
    gaps = ([0.02, 0.18] * columns)[:-1]
    figure, axes = grid(len(found.nearest) + 1, PANEL * columns, left=1.35, right=0.15, top=0.62, bottom=0.5,
                        gaps=gaps, down=0.34, width=10.5)  # fmt: skip
    labelled = bool((found.labels >= 0).any())
    _draw_clip(axes[0][:2], clips[query])
    caption(axes[0][0], "query")
    for axis in axes[0][2:]:
        axis.set_visible(False)
    for line, (stream, near) in zip(axes[1:], found.nearest.items(), strict=True):
        others = near[query].tolist()
        right = relevant(found.labels[[query]], found.labels[others])[0].tolist()
        caption(line[0], stream.replace("_", " "), f"{sum(right)} of {len(others)}" if labelled else "")
        for place, (other, is_right) in enumerate(zip(others, right, strict=True)):
            pair = line[2 * place : 2 * place + 2]
            if other in clips:
                _draw_clip(pair, clips[other])
            if is_right:
                _frame(figure, pair)
    seconds = clips[query].spectrogram.shape[1] / FRAMES_PER_SECOND
    framed = "; framed: of the query's class" if labelled else ""
    note = (
        f"Nearest of all {what} by cosine first{framed}. Left the frame, right {seconds:g} s of its spectrogram, 0 to "
        "8 kHz. image, audio, fusion, combined: of the joint pass, which sees both."
    )
    head(figure, title, note)
    return figure


def _draw_clip(axes: Sequence[Axes], clip: Shown) -> None:
    show_image(axes[0], clip.frame.permute(1, 2, 0))
    show_mel(axes[1], clip.spectrogram, labels="")
    axes[1].set(xticks=[], yticks=[])
    axes[0].set_title(short(clip.classes, 24), loc="left", pad=7)  # clear of a frame


def _frame(figure: Figure, axes: Sequence[Axes]) -> None:
    width, height = figure.get_size_inches()
    first, last = (axis.get_position() for axis in axes)
    x, y = EDGE / width, EDGE / height
    size = last.x1 - first.x0 + 2 * x, last.y1 - first.y0 + 2 * y
    figure.add_artist(Rectangle((first.x0 - x, first.y0 - y), *size, fill=False, edgecolor=BLUE, linewidth=2.5))
