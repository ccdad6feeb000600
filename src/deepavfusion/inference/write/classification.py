"""Writes a classification: a table of every window, a list, and a figure of the scores over time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.table import Table

from deepavfusion.figures import panels
from deepavfusion.figures.style import BACKDROP, LINES, POWER, SMALL, new_figure, short, styled
from deepavfusion.inference.classify import Classification, best, spans
from deepavfusion.inference.write.film import film_frames
from deepavfusion.inference.write.saving import claimed, saving, write_list
from deepavfusion.media import open_media
from deepavfusion.transforms.audio import FRAMES_PER_SECOND, SAMPLE_RATE, LogMel, extend_by_mirror
from deepavfusion.types import ALL, HEADS
from deepavfusion.utils.console import cell
from deepavfusion.utils.files import write_csv
from deepavfusion.utils.names import stem_of
from deepavfusion.weights.origin import Origin

COLUMNS = ("start", "end", "stream", "rank", "class", "probability", "novelty", "modalities")
TITLES = {"image": "image tokens", "audio": "audio tokens", "fusion": "fusion tokens", ALL: "all three"}
ALONE = {"image": "no audio: by its images alone", "audio": "no video: by its audio alone"}
SIZE, HEIGHTS = (12.0, 8.2), (1.0, 1.3, 1.3, 1.3, 1.3)  # of the figure, inches; of its parts
EDGES = {"left": 0.065, "right": 0.745, "top": 0.935, "bottom": 0.065}  # shares of it; right of them the legends
MAX_FRAMES, FRAME_ROWS = 16, 120
EDGE = 0.125  # s of audio around a spectrogram, so that none shows where it was cut
EDGE_COLUMNS = round(EDGE * FRAMES_PER_SECOND)
DASHES = ("-", "--", ":", "-.")  # of the first use of the colours, the second, …
MAX_POINTS = 400  # of a line; with more windows, neighbours are averaged
MAX_MARKED = 40  # windows up to which each is marked by a dot
MAX_LABEL = 30  # characters of a class in a legend


def write_classification(
    found: Classification, folder: Path, top_k: int = 5, network: Origin | None = None
) -> dict[str, Any]:
    """Write the table (CSV), the list (JSON) and the figure (PNG); those of an earlier call are replaced.

    Args:
        found: of a video.
        folder: where to; it must exist.
        top_k: how many classes to list for each window and for the whole video.
        network: where the network comes from.

    Returns:
        The content of the list, and its own name as `list`: names of the files, the whole video's top classes by
        stream, its parts of equal top class, and the windows.

    Raises:
        UserError: the folder cannot be written to; the video stops decoding.
    """
    stem = stem_of(found.video)
    listed: dict[str, Any] = {
        "video": found.video,
        "checkpoint": str(network.path) if network else "",
        "table": f"{stem}_classes.csv",
        "picture": f"{stem}_timeline.png",
        "seconds": round(found.seconds, 3),
        "window_seconds": found.window,
        "hop_seconds": found.hop_seconds,
        "modalities": list(found.modalities),
        "several_classes_a_clip": found.multi_label,
        "notes": found.notes,
        "whole": {
            head: [{"class": found.classes[n], "probability": round(float(scores[n]), 6)} for n in best(scores, top_k)]
            for head, scores in zip(HEADS, found.mean, strict=True)
            if head in found.heads
        },
        "parts": [
            {
                "start": round(s.start, 3),
                "end": round(s.end, 3),
                "class": s.label,
                "probability": round(s.score, 6),
                "novel": s.novel,
            }
            for s in spans(found)
        ],
        "windows": [_times(found, start) for start in found.starts],
        "novelty": found.novelty and [round(ratio, 4) for ratio in found.novelty],
        "classes": found.classes,
    }
    name = f"{stem}_classes.json"
    with saving(folder), claimed(folder, name, listed, listed["table"], listed["picture"]):
        write_csv(folder / listed["table"], _rows(found, top_k))
        listed = write_list(folder, name, listed, draw(found, top_k), network)
    return listed


def as_table(listed: dict[str, Any]) -> Table:
    """The whole video's top classes of each stream, for the terminal; see `write_classification`."""
    table = Table("", *listed["whole"], title="mean over the windows")
    for rank, row in enumerate(zip(*listed["whole"].values(), strict=True), 1):
        table.add_row(str(rank), *(cell(f"{each['probability']:.2f} {each['class']}") for each in row))
    return table


def _times(found: Classification, start: float) -> list[float]:
    """Start and end of a window, s."""
    return [round(start, 3), round(min(start + found.window, found.seconds), 3)]


def _rows(found: Classification, top_k: int) -> Iterator[tuple[object, ...]]:
    yield COLUMNS
    novelty = [f"{ratio:.4f}" for ratio in found.novelty or ()] or [""] * len(found.starts)
    for start, heads, ratio in zip(found.starts, found.scores, novelty, strict=True):
        for head, scores in zip(HEADS, heads, strict=True):
            for rank, n in enumerate(best(scores, top_k) if head in found.heads else (), 1):
                score = round(float(scores[n]), 6)
                yield *_times(found, start), head, rank, found.classes[n], score, ratio, " ".join(found.modalities)


@styled
def draw(found: Classification, top_k: int = 5) -> Figure:
    """Frames of the video above, and the scores of each stream's top classes below, on one time axis."""
    figure, heads = new_figure(*SIZE), found.heads
    rows = 1 + len(heads)
    axes = figure.subplots(rows, height_ratios=HEIGHTS[:rows], gridspec_kw={**EDGES, "hspace": 0.26})
    count = len(found.starts)
    windows = f"{count} windows of {found.window:g} s" if count > 1 else "one window"
    if count > MAX_POINTS:
        windows += f", drawn as means over {math.ceil(count / MAX_POINTS)}"
    alone = ALONE[found.modalities[0]] if len(found.modalities) == 1 else ""
    title = " · ".join(filter(None, (Path(found.video).name, f"{found.seconds:.1f} s", alone, windows)))
    panels.head(figure, f"{title}: probability of each class")
    (_draw_frames if "image" in found.modalities else _draw_audio)(axes[0], found)
    top = {head: best(found.mean[HEADS.index(head)], top_k) for head in heads}
    order = list(dict.fromkeys(n for classes in (top[ALL], *top.values()) for n in classes))
    looks = {n: (DASHES[place // len(LINES) % len(DASHES)], LINES[place % len(LINES)]) for place, n in enumerate(order)}
    drawn = np.unique(order)
    shown, times = _thinned(found, drawn)
    highest = min(1.0, 1.12 * max(float(np.nanmax(shown)), 1e-3))
    edges = found.edges()
    unlike = [(edges[n], edges[n + 1]) for n, novel in enumerate(found.novel()) if novel]
    if unlike:
        words = "hatched: unlike the training clips"
        axes[-1].text(1.03, -0.12, words, transform=axes[-1].transAxes, va="top", fontsize=SMALL)
    for place, (stream, panel) in enumerate(zip(heads, axes[1:], strict=True)):
        number = HEADS.index(stream)
        for n in top[stream]:
            scores, (dash, colour) = shown[:, number, np.searchsorted(drawn, n)], looks[n]
            label = f"{found.mean[number, n]:.2f}  {short(found.classes[n], MAX_LABEL)}"
            panel.plot(times, scores, dash, color=colour, linewidth=1.8, label=label, clip_on=False)
            if count <= MAX_MARKED:  # all points but the two ends, which are not windows
                panel.plot(times[1:-1], scores[1:-1], ".", color=colour, markersize=7, clip_on=False)
        for begin, end in unlike:
            panel.axvspan(begin, end, facecolor=BACKDROP, hatch="///", linewidth=0, zorder=0)
        panel.set(xlim=(0, found.seconds), ylim=(0, highest if highest < 0.6 else 1.0))
        both = f"{found.modalities[0]} and fusion"
        panel.set_title(both if alone and stream == ALL else TITLES[stream], loc="left", pad=3)
        panel.grid()
        panel.tick_params(labelbottom=stream == ALL)
        panel.set_ylabel("probability")
        panel.legend(
            title="mean over the file" if place == 0 else None, alignment="left", loc="upper left",
            bbox_to_anchor=(1.005, 1.12), borderaxespad=0, labelspacing=0.3,
        )  # fmt: skip
    panel.set_xlabel("time (s)")
    return figure


def _thinned(found: Classification, classes: NDArray[np.integer]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Scores of some classes to be drawn, [points, 4, classes], and the times of the points, s.

    The points are the middles of the windows, or of groups of neighbours, averaged; the first and the last scores are
    repeated at the ends of the video.
    """
    count, step = len(found.starts), math.ceil(len(found.starts) / MAX_POINTS)
    edges = found.edges()
    begins = range(0, count, step)
    points = np.stack([found.scores[n : n + step][:, :, classes].mean(axis=0) for n in begins])
    middles = [(edges[n] + edges[min(n + step, count)]) / 2 for n in begins]
    if step == 1 and count > 1:
        middles = [start + found.window / 2 for start in found.starts]
    return np.concatenate([points[:1], points, points[-1:]]), np.array([edges[0], *middles, edges[-1]])


def _draw_frames(axis: Any, found: Classification) -> None:
    """Frames side by side, each from the middle of its part of the video, cropped a little to fit."""
    strip = axis.get_window_extent()
    with open_media(found.source or found.video) as media:
        height, width = media.frames([0.0]).shape[1:3]
        count = min(MAX_FRAMES, max(1, round(strip.width / strip.height * height / width)))
        part = found.seconds / count
        times = [(n + 0.5) * part for n in range(count)]
        for n, frame in enumerate(film_frames(media, times, FRAME_ROWS, max(1, round(FRAME_ROWS * width / height)))):
            extent = (n * part, (n + 1) * part, 0, 1)
            axis.imshow(_crop(frame, strip.width / count / strip.height), extent=extent, aspect="auto")
    axis.set(xlim=(0, found.seconds), ylim=(0, 1), yticks=[])
    axis.set_xticks([n * part for n in range(1, count)], [])
    axis.tick_params(length=0)
    axis.grid(axis="x", color="white", linewidth=1.5)


def _draw_audio(axis: Any, found: Classification) -> None:
    """Log-mel spectrograms side by side, each of the beginning of its part of the audio."""
    count = min(MAX_FRAMES, math.ceil(found.seconds / found.window))
    part, log_mel = found.seconds / count, LogMel()
    length = min(part, found.window)
    with open_media(found.source or found.video) as media:
        for n in range(count):
            waveform = media.audio(n * part - EDGE, length + 2 * EDGE, SAMPLE_RATE)
            if len(waveform):
                whole = extend_by_mirror(waveform, round((length + 2 * EDGE) * SAMPLE_RATE))
                extent = (n * part, (n + 1) * part, 0, 1)
                decibels = 10 * log_mel(whole[None])[0, 0, :, EDGE_COLUMNS:-EDGE_COLUMNS].numpy()
                axis.imshow(decibels, POWER, panels.LOUDNESS, aspect="auto", origin="lower", extent=extent)
    axis.set(xlim=(0, found.seconds), ylim=(0, 1), yticks=[])
    axis.tick_params(labelbottom=False)


def _crop(frame: NDArray[np.uint8], ratio: float) -> NDArray[np.uint8]:
    """The middle of a frame [H, W, 3] with this ratio of width to height."""
    height, width = frame.shape[:2]
    rows, columns = min(height, math.ceil(width / ratio)), min(width, math.ceil(height * ratio))
    top, left = (height - rows) // 2, (width - columns) // 2
    return frame[top : top + rows, left : left + columns]
