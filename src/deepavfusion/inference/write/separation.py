"""Writes a separation: a WAV and an mp4 for each source, a figure, and a list of the files."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from torch import Tensor
from torchaudio.functional import resample

from deepavfusion.inference.separate import Separation, separate_video
from deepavfusion.inference.write.film import film_frames, film_rate, film_size, film_times, write_film
from deepavfusion.inference.write.saving import made, saving, write_list
from deepavfusion.media import Media
from deepavfusion.media.encode import write_wav
from deepavfusion.tasks.separate import Separate
from deepavfusion.transforms.audio import LOG_OFFSET, N_MELS, SAMPLE_RATE
from deepavfusion.utils.drawing import colour_of
from deepavfusion.utils.files import whole
from deepavfusion.weights.origin import Origin

RANGE = 70.0  # dB below the loudest of the mixture, drawn as black
TICKS = (0.25, 0.5, 1, 2, 4, 8)  # kHz


def write_separation(separation: Separation, folder: Path, network: Origin | None = None) -> dict[str, Any]:
    """Write the WAVs, the mp4s, the figure and the list; existing files are replaced.

    Args:
        separation: of a video.
        folder: where to; it must exist.
        network: where the network comes from.

    Returns:
        The content of the list, and its own name as `list`.

    Raises:
        UserError: the folder cannot be written to, or the video stops decoding.
    """
    stem = Path(separation.video).stem
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
    with saving(folder):
        for n, source in enumerate(listed["sources"]):
            with whole(folder / source["wav"]) as partial:
                write_wav(partial, separation.waveforms[n].numpy(), separation.sample_rate)
            _write_source_film(folder / source["mp4"], separation, n)
        listed = write_list(folder, f"{stem}_sources.json", listed, draw(separation), network)
    return listed


def _finite(level: float) -> float | None:
    return round(level, 1) if math.isfinite(level) else None


def _write_source_film(path: Path, separation: Separation, source: int) -> None:
    """The video with the audio of one source, its box outlined and the rest dimmed."""
    rate = film_rate(separation.sample_rate)
    waveform = resample(separation.waveforms[source], separation.sample_rate, rate)
    with Media(separation.video) as media:
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

        write_film(path, map(outlined, film_frames(media, times, rows, columns)), fps, waveform, rate)


def draw(separation: Separation) -> Figure:
    """The mixture and each source, a row each: frame, spectrogram, and the mask from the mixture to the source."""
    sources, seconds = len(separation.boxes), separation.seconds
    figure = Figure(figsize=(15, 2.6 * (sources + 1) + 0.6), layout="constrained", dpi=100)
    axes = figure.subplots(sources + 1, 3, width_ratios=[1.1, 2.2, 2.2], squeeze=False)
    by = "boxes chosen by the model" if separation.chosen_by == "model" else "boxes given"
    figure.suptitle(f"{Path(separation.video).name} · {seconds:.1f} s · {by}")
    mels = [separation.mixture_mel, *separation.source_mel]
    loudest = float(_decibels(mels[0]).max())
    for row, level in enumerate([separation.mixture_level, *separation.levels]):
        still, spectrogram, mask = axes[row]
        still.imshow(separation.frame)
        still.set_axis_off()
        shown = f"{level:.0f} dB".replace("-", "−") if math.isfinite(level) else "silent"
        still.set_title(f"{f'source {row}' if row else 'mixture'}, {shown}", fontsize=10, loc="left")
        for source in range(sources) if row == 0 else [row - 1]:
            left, top, right, bottom = separation.boxes[source]
            edge: Any = {"fill": False, "linewidth": 3, "color": colour_of(source), "clip_on": False}
            still.add_patch(Rectangle((left, top), right - left, bottom - top, **edge))
        decibels = _show(spectrogram, _decibels(mels[row]) - loudest, seconds, "magma", -RANGE, 0)
        if row:
            share = _show(mask, separation.mask[row - 1], seconds, "viridis", 0, 1)
    _draw_levels(axes[0, 2], separation)
    axes[0, 1].set_title("spectrogram", fontsize=10, loc="left")
    axes[0, 2].set_title("level of each source", fontsize=10, loc="left")
    axes[1, 2].set_title("mask: share of the mixture that belongs to the source", fontsize=10, loc="left")
    for axis in axes[:-1, 1:].flat:
        axis.tick_params(labelbottom=False)
    for axis in axes[-1, 1:]:
        axis.set_xlabel("time (s)")
    bar: dict[str, Any] = {"fraction": 0.03, "pad": 0.01, "aspect": 20 * sources}
    figure.colorbar(decibels, ax=axes[:, 1], label="dB from the loudest of the mixture", **bar)
    figure.colorbar(share, ax=axes[1:, 2], label="mask", **bar)
    return figure


def _decibels(power: Tensor) -> Tensor:
    return 10 * (power + LOG_OFFSET).log10()


def _show(axis: Any, values: Tensor, seconds: float, colours: str, low: float, high: float) -> Any:
    """A map [M, columns] over seconds and kHz."""
    axis.set_yticks([_band(kilohertz) for kilohertz in TICKS], [f"{kilohertz:g}" for kilohertz in TICKS])
    axis.set_ylabel("kHz", labelpad=1)
    return axis.imshow(
        values.numpy(), cmap=colours, vmin=low, vmax=high, extent=(0, seconds, 0, N_MELS), origin="lower",
        aspect="auto", interpolation="nearest",
    )  # fmt: skip


def _draw_levels(axis: Any, separation: Separation) -> None:
    """Levels of the sources over time, in front of that of the mixture."""
    mixture, sources = separation.mixture_mel.sum(dim=0), separation.source_mel.sum(dim=1)
    top = float(_decibels(mixture).max())
    times = (np.arange(len(mixture)) + 0.5) * separation.seconds / len(mixture)
    axis.fill_between(times, _decibels(mixture) - top, -RANGE, color="0.85", label="mixture")
    for source, power in enumerate(sources):
        axis.plot(times, _decibels(power) - top, color=0.8 * colour_of(source), label=f"source {source + 1}")
    axis.set(xlim=(0, separation.seconds), ylim=(-RANGE, 3))
    axis.set_ylabel("dB", labelpad=1)
    axis.legend(fontsize=8, ncols=len(sources) + 1, loc="lower right")


def _band(kilohertz: float) -> float:
    """The position of a frequency among the mel bands (HTK's formula); band n is drawn from n to n + 1."""
    share = math.log10(1 + 1000 * kilohertz / 700) / math.log10(1 + SAMPLE_RATE / 2 / 700)
    return min((N_MELS + 1) * share - 0.5, N_MELS)


def separate_to_folder(task: Separate, video: str | Path, folder: Path) -> tuple[Tensor, int]:
    """Separate a video with boxes chosen by the model, and write everything; returns the waveforms and their rate.

    Raises:
        UserError: see `separate_video` and `write_separation`.
    """
    separation = separate_video(task, video)
    write_separation(separation, made(folder), task.origin)
    return separation.waveforms, separation.sample_rate
