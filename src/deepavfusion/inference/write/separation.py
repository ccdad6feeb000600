"""Writes a separation: a WAV and an mp4 for each source, a figure, and a list of the files."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from torch import Tensor

from deepavfusion.figures.panels import MANY, SHARES, colour_bar, grid, head, show_image, show_mel
from deepavfusion.figures.pixels import colour_of
from deepavfusion.figures.style import BACKDROP, BLACK, POWER, VALUE, styled
from deepavfusion.inference.separate import Separation, separate_video
from deepavfusion.inference.write.film import film_frames, film_rate, film_size, film_times, write_film
from deepavfusion.inference.write.saving import claimed, made, saving, write_list
from deepavfusion.media import open_media
from deepavfusion.media.encode import write_wav
from deepavfusion.tasks.separate import Separate
from deepavfusion.transforms.audio import LOG_OFFSET
from deepavfusion.utils.files import whole
from deepavfusion.utils.names import stem_of
from deepavfusion.weights.origin import Origin

RANGE = 70.0  # dB below the loudest of the mixture, drawn as black
WIDE = 13.0  # inches, of the figure
DROP = Normalize(-RANGE, 0)  # dB
DASHES = ("-", "--", ":", "-.")


def write_separation(separation: Separation, folder: Path, network: Origin | None = None) -> dict[str, Any]:
    """Write the WAVs, the mp4s, the figure and the list; those of an earlier call are replaced.

    Args:
        separation: of a video.
        folder: where to; it must exist.
        network: where the network comes from.

    Returns:
        The content of the list, and its own name as `list`.

    Raises:
        UserError: the folder cannot be written to, or the video stops decoding.
    """
    stem = stem_of(separation.video)
    listed: dict[str, Any] = {
        "video": separation.video,
        "boxes_chosen_by": separation.chosen_by,
        "sample_rate": separation.sample_rate,
        "seconds": round(separation.seconds, 3),
        "mixture_level_db": _finite(separation.mixture_level),
        "sources": [
            {
                "box": [round(edge) for edge in box],
                "wav": f"{stem}_source{n}.wav",
                "mp4": f"{stem}_source{n}.mp4",
                "level_db": _finite(level),
            }
            for n, (box, level) in enumerate(zip(separation.boxes, separation.levels, strict=True), 1)
        ],
        "picture": f"{stem}_separation.png",
    }
    name = f"{stem}_sources.json"
    files = [source[kind] for source in listed["sources"] for kind in ("wav", "mp4")]
    rate = separation.sample_rate
    with saving(folder), claimed(folder, name, listed, *files, listed["picture"]):
        for n, source in enumerate(listed["sources"]):
            with whole(folder / source["wav"]) as partial:
                write_wav(partial, (part.numpy() for part in separation.audio(rate, n)), rate)
            _write_source_film(folder / source["mp4"], separation, n)
        listed = write_list(folder, name, listed, draw(separation), network)
    return listed


def _finite(level: float) -> float | None:
    return round(level, 1) if math.isfinite(level) else None


def _write_source_film(path: Path, separation: Separation, source: int) -> None:
    """The video with the audio of one source, its box outlined and the rest dimmed."""
    rate = film_rate(separation.sample_rate)
    with open_media(separation.source or separation.video) as media:
        times, fps = film_times(media.info, separation.seconds)
        height, width = separation.frame.shape[:2]
        rows, columns = film_size(height, width)
        x, y, line = columns / width, rows / height, max(2, min(rows, columns) // 120)
        box, colour = separation.boxes[source], (255 * colour_of(source)).astype(np.uint8)
        left, top, right, bottom = round(box.left * x), round(box.top * y), round(box.right * x), round(box.bottom * y)
        inside = (slice(top + line, max(bottom - line, 0)), slice(left + line, max(right - line, 0)))

        def outlined(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
            shown: NDArray[np.uint8] = frame // 3
            shown[top:bottom, left:right] = colour
            shown[inside] = frame[inside]
            return shown

        write_film(
            path, map(outlined, film_frames(media, times, rows, columns)), fps, separation.audio(rate, source), rate
        )


@styled
def draw(separation: Separation) -> Figure:
    """The mixture and each source, a row each: frame, spectrogram, and the mask from the mixture to the source."""
    sources, seconds = len(separation.boxes), separation.seconds
    rows, columns = separation.frame.shape[:2]
    figure, axes = grid(sources + 1, [min(max(columns / rows, 0.6), 1.8), 2.3, 2.3], left=0.15, right=0.15, top=0.75,
                        bottom=1.0, gaps=(0.55, 0.6), down=0.42, width=WIDE)  # fmt: skip
    by = "boxes chosen by the model" if separation.chosen_by == "model" else "boxes given"
    mels = [separation.mixture_mel, *separation.source_mel]
    loudest = float(_decibels(mels[0]).max())
    for row, level in enumerate([separation.mixture_level, *separation.levels]):
        still, spectrogram, mask = axes[row]
        show_image(still, separation.frame).axes.set_aspect("equal")
        shown = f"{level:.0f} dBFS".replace("-", "−") if math.isfinite(level) else "silent"
        still.set_title(f"{f'source {row}' if row else 'mixture'}, {shown}", loc="left")
        for source in range(sources) if row == 0 else [row - 1]:
            _outline(still, separation.boxes[source], colour_of(source))
        common: dict[str, Any] = {"seconds": seconds, "ticks": MANY, "labels": "xy" if row == sources else "y"}
        show_mel(spectrogram, _decibels(mels[row]) - loudest, POWER, DROP, **common)
        if row:
            show_mel(mask, separation.mask[row - 1], VALUE, SHARES, **common)
    _draw_levels(axes[0][2], separation)
    axes[0][1].set_title("spectrogram of the mixture", loc="left")
    axes[0][2].set_title("level over time (dB re the peak of the mixture)", loc="left")
    for row in range(1, sources + 1):
        axes[row][1].set_title(f"spectrogram of source {row}", loc="left")
        axes[row][2].set_title(f"mask that cuts source {row} out of the mixture", loc="left")
    for column, (colours, scale, label) in enumerate(
        [(POWER, DROP, "dB re the loudest of the mixture"), (VALUE, SHARES, "mask: 0 removes, 1 keeps")], 1
    ):
        box = axes[-1][column].get_position()
        colour_bar(figure, colours, scale, label, left=box.x0 * WIDE, bottom=0.42, width=box.width * WIDE)
    head(figure, f"{Path(separation.video).name} · {seconds:.1f} s · separated into {sources}, {by}")
    return figure


def _outline(axis: Axes, box: Any, colour: Any) -> None:
    """A box drawn inside its edges, so that it does not hang over those of the frame; its rim of black shows it on any
    background."""
    left, top, right, bottom = box
    rows, columns = axis.images[0].get_array().shape[:2]  # type: ignore[union-attr]
    inset = 0.012 * max(rows, columns)
    shape = (left + inset, top + inset), right - left - 2 * inset, bottom - top - 2 * inset
    for width, edge in ((5.0, BLACK), (3.0, colour)):
        axis.add_patch(Rectangle(*shape, fill=False, linewidth=width, edgecolor=edge, joinstyle="miter"))


def _decibels(power: Tensor) -> Tensor:
    return 10 * (power + LOG_OFFSET).log10()


def _draw_levels(axis: Axes, separation: Separation) -> None:
    """Levels of the sources over time, in front of that of the mixture."""
    mixture, sources = separation.mixture_mel.sum(dim=0), separation.source_mel.sum(dim=1)
    top = float(_decibels(mixture).max())
    times = (np.arange(len(mixture)) + 0.5) * separation.seconds / len(mixture)
    axis.fill_between(times, _decibels(mixture) - top, -RANGE, color=BACKDROP, label="mixture")
    for source, power in enumerate(sources):
        colour = 0.85 * colour_of(source)
        style = DASHES[source % len(DASHES)]
        axis.plot(times, _decibels(power) - top, style, color=colour, linewidth=1.8, label=f"source {source + 1}")
    axis.set(xlim=(0, separation.seconds), ylim=(-RANGE, 3))
    axis.set_ylabel("dB", labelpad=1)
    axis.tick_params(labelbottom=False)
    axis.legend(ncols=len(sources) + 1, loc="lower right", frameon=True)


def separate_to_folder(task: Separate, video: str | Path, folder: Path) -> tuple[Tensor, int]:
    """Separate a video with boxes chosen by the model, and write everything; returns the waveforms and their rate.

    Raises:
        UserError: see `separate_video` and `write_separation`.
    """
    separation = separate_video(task, video)
    write_separation(separation, made(folder), task.origin)
    return separation.waveforms, separation.sample_rate
