"""What is left of a classification: a table of every window, a list, and a figure of the scores over time."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.markup import escape
from rich.table import Table

from deepavfusion.inference.classify import Classification, best_of, spans
from deepavfusion.inference.write.film import film_frames
from deepavfusion.media import Media
from deepavfusion.types import HEADS
from deepavfusion.utils.drawing import colour_of
from deepavfusion.utils.errors import DecodeError, UserError

COLUMNS = ("start", "end", "stream", "rank", "class", "probability")
TITLES = {"image": "image tokens", "audio": "audio tokens", "fusion": "fusion tokens", "all": "all three"}
# Of the figure, inches; the scores are drawn between LEFT and LEFT + WIDTH, the legends right of them.
LEFT, WIDTH, LEGENDS = 0.75, 11.0, 3.25
TOP, STRIP, PANEL, GAP, BOTTOM = 0.5, 1.05, 1.35, 0.3, 0.55
MOST_PICTURES = 16
HUES, DARKER = 7, (0.85, 0.5, 0.3)  # so many colours by hue, then the same ones darker
MOST_POINTS = 400  # of a line; of more windows neighbours are averaged
MARKED = 40  # windows, up to which each is marked by a dot
LONGEST = 34  # characters of a class in a legend


def write_classification(
    found: Classification, folder: Path, top_k: int = 5, checkpoint: str | Path = ""
) -> dict[str, Any]:
    """Write the table (CSV), the list (JSON) and the figure (PNG); what is there is overwritten.

    Args:
        found: of a video.
        folder: where to; it must exist.
        top_k: classes that are told, of each window and of the whole video.
        checkpoint: which file the model came from.

    Returns:
        What the list says, and its own name as `list`: names of the files, the whole video's top classes of each
        stream, its parts of equal top class, and the windows.

    Raises:
        UserError: `top_k` is no number of classes; the folder cannot be written to; the video stops decoding.
    """
    check_top_k(top_k)
    stem = Path(found.video).stem
    listed: dict[str, Any] = {
        "video": found.video,
        "checkpoint": str(checkpoint),
        "table": f"{stem}_classes.csv",
        "picture": f"{stem}_timeline.png",
        "seconds": round(found.seconds, 3),
        "window_seconds": found.window,
        "hop_seconds": found.hop_seconds,
        "several_classes_a_clip": found.multi_label,
        "notes": found.notes,
        "whole": {head: _named(best_of(found.mean[n], found.classes, top_k)) for n, head in enumerate(HEADS)},
        "parts": [
            {"start": round(s.start, 3), "end": round(s.end, 3), "class": s.label, "probability": _rounded(s.score)}
            for s in spans(found)
        ],
        "windows": [[_time(start), _window_end(found, start)] for start in found.starts],
        "classes": found.classes,
    }
    name = f"{stem}_classes.json"
    try:
        _write_table(found, folder / listed["table"], top_k)
        FigureCanvasAgg(draw(found, top_k)).print_png(folder / listed["picture"])
        (folder / name).write_text(json.dumps(listed, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"output {folder} cannot be written: {error.strerror or error}; choose another.") from error
    except DecodeError as error:
        raise UserError(f"video {error.path} stops half-way: {error.detail}; fetch or copy it again.") from error
    return {**listed, "list": name}


def check_top_k(top_k: Any) -> None:
    """Raise a `UserError` unless it is a number of classes."""
    if type(top_k) is not int or top_k < 1:
        raise UserError(f"top_k is {top_k!r}, expected a whole number of at least 1.")


def as_table(listed: dict[str, Any]) -> Table:
    """The whole video's top classes of each stream, for the terminal; see `write_classification`."""
    table = Table("", *HEADS, title="mean over the windows")
    for rank, row in enumerate(zip(*(listed["whole"][head] for head in HEADS), strict=True), 1):
        table.add_row(str(rank), *(escape(f"{cell['probability']:.2f} {cell['class']}") for cell in row))
    return table


def _named(pairs: Sequence[tuple[str, float]]) -> list[dict[str, Any]]:
    return [{"class": name, "probability": _rounded(score)} for name, score in pairs]


def _rounded(probability: float) -> float:
    return round(probability, 6)


def _time(seconds: float) -> float:
    return round(seconds, 3)


def _window_end(found: Classification, start: float) -> float:
    return _time(min(start + found.window, found.seconds))


def _write_table(found: Classification, path: Path, top_k: int) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for start, scores in zip(found.starts, found.scores, strict=True):
            for head, row in zip(HEADS, scores, strict=True):
                for rank, (name, score) in enumerate(best_of(row, found.classes, top_k), 1):
                    writer.writerow([_time(start), _window_end(found, start), head, rank, name, _rounded(score)])


# ---------------------------------------------------------------- figure


def draw(found: Classification, top_k: int = 5) -> Figure:
    """Pictures of the video above, and the scores of each stream's top classes below, on one axis of time."""
    width, height = LEFT + WIDTH + LEGENDS, TOP + STRIP + len(HEADS) * (PANEL + GAP) + BOTTOM
    figure = Figure(figsize=(width, height), dpi=100)
    count = len(found.starts)
    windows = f"{count} windows of {found.window:g} s" if count > 1 else "one window"
    if count > MOST_POINTS:
        windows += f", drawn as means over {math.ceil(count / MOST_POINTS)}"
    figure.text(LEFT / width, 1 - 0.28 / height, f"{Path(found.video).name} · {found.seconds:.1f} s · {windows}")

    def axis(top: float, inches: float) -> Any:
        return figure.add_axes((LEFT / width, 1 - (top + inches) / height, WIDTH / width, inches / height))

    _draw_pictures(axis(TOP, STRIP), found)
    best = {head: found.top(head, top_k) for head in HEADS}
    order = list(dict.fromkeys(n for head in ("all", *HEADS) for n in best[head]))
    colours = {n: DARKER[place // HUES % len(DARKER)] * colour_of(place) for place, n in enumerate(order)}
    drawn = np.unique(order)
    shown, times = _thinned(found, drawn)
    highest = min(1.0, 1.12 * max(float(shown.max()), 1e-3))
    for number, head in enumerate(HEADS):
        panel = axis(TOP + STRIP + GAP + number * (PANEL + GAP), PANEL)
        for n in best[head]:
            scores = shown[:, number, np.searchsorted(drawn, n)]
            label = f"{_shortened(found.classes[n])}  {found.mean[number, n]:.2f}"
            panel.plot(times, scores, color=colours[n], linewidth=1.6, label=label, clip_on=False)
            if len(found.starts) <= MARKED:  # without the two ends
                panel.plot(times[1:-1], scores[1:-1], ".", color=colours[n], markersize=6, clip_on=False)
        panel.set_xlim(0, found.seconds)
        panel.set_ylim(0, highest if highest < 0.6 else 1.0)
        panel.set_title(TITLES[head], fontsize=10, loc="left", pad=3)
        panel.grid(alpha=0.3)
        panel.tick_params(labelsize=8, labelbottom=number == len(HEADS) - 1)
        panel.set_ylabel("probability", fontsize=8)
        panel.legend(
            title="mean over the video" if number == 0 else None, title_fontsize=8, fontsize=8, alignment="left",
            loc="upper left", bbox_to_anchor=(1.005, 1.06), frameon=False, borderaxespad=0,
        )  # fmt: skip
    panel.set_xlabel("time (s)", fontsize=9)
    return figure


def _thinned(found: Classification, classes: NDArray[np.integer]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Scores of some classes to be drawn, [points, 4, classes], and the moments of the points, s.

    They are those of the windows' middles, or means over neighbours; the first and the last are held to the ends.
    """
    count, step = len(found.starts), math.ceil(len(found.starts) / MOST_POINTS)
    edges = found.edges()
    begins = range(0, count, step)
    points = np.stack([found.scores[n : n + step][:, :, classes].mean(axis=0) for n in begins])
    middles = [(edges[n] + edges[min(n + step, count)]) / 2 for n in begins]
    if step == 1 and count > 1:
        middles = [start + found.window / 2 for start in found.starts]
    return np.concatenate([points[:1], points, points[-1:]]), np.array([edges[0], *middles, edges[-1]])


def _shortened(name: str) -> str:
    return name if len(name) <= LONGEST else name[: LONGEST - 1] + "…"


def _draw_pictures(axis: Any, found: Classification) -> None:
    """Pictures side by side, each that of the moment in its middle; a little is cut off so that they fit."""
    with Media(found.video) as media:
        height, width = media.frames([0.0]).shape[1:3]
        count = min(MOST_PICTURES, max(1, round(WIDTH / (STRIP * width / height))))
        part = found.seconds / count
        rows = 120
        columns = max(1, round(rows * width / height))
        times = [(n + 0.5) * part for n in range(count)]
        for n, frame in enumerate(film_frames(media, times, rows, columns)):
            extent = (n * part, (n + 1) * part, 0, 1)
            axis.imshow(_cut(frame, WIDTH / count / STRIP), extent=extent, aspect="auto")
    axis.set_xlim(0, found.seconds)
    axis.set_ylim(0, 1)
    axis.set_xticks([n * part for n in range(1, count)], [])
    axis.tick_params(length=0)
    axis.grid(axis="x", color="white", linewidth=1.5)
    axis.set_yticks([])


def _cut(frame: NDArray[np.uint8], ratio: float) -> NDArray[np.uint8]:
    """The middle of a picture [H, W, 3] with this ratio of width to height."""
    height, width = frame.shape[:2]
    rows, columns = min(height, math.ceil(width / ratio)), min(width, math.ceil(height * ratio))
    top, left = (height - rows) // 2, (width - columns) // 2
    return frame[top : top + rows, left : left + columns]
