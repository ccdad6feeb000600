"""What is left of a separation: a WAV and an mp4 for each source, a figure, and a list of it all."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from torch import Tensor
from torchaudio.functional import resample

from deepavfusion.inference.boxes import Box, as_lists
from deepavfusion.inference.separate import Separation, separate_video
from deepavfusion.inference.write.film import AAC_BIT_RATE, AAC_RATES, film_frames, film_size, film_times
from deepavfusion.media import Media
from deepavfusion.media.encode import write_mp4, write_wav
from deepavfusion.tasks.separate import Separate
from deepavfusion.transforms.audio import LOG_OFFSET, N_MELS, SAMPLE_RATE
from deepavfusion.utils.drawing import colour_of
from deepavfusion.utils.errors import DecodeError, UserError

QUIETEST = 70.0  # dB below the loudest of the mixture, drawn as black
TICKS = (0.25, 0.5, 1, 2, 4, 8)  # kHz


def write_separation(separation: Separation, folder: Path) -> dict[str, list[str]]:
    """Write the WAVs, mp4s, the figure and the list of them; what is there is overwritten.

    Args:
        separation: what was separated.
        folder: where to; it must exist.

    Returns:
        The names of the files: wav and mp4 (one for each source), picture and list.

    Raises:
        UserError: the folder cannot be written to, or the video stops decoding.
    """
    stem, numbers = Path(separation.video).stem, range(1, len(separation.boxes) + 1)
    names = {
        "wav": [f"{stem}_source{n}.wav" for n in numbers],
        "mp4": [f"{stem}_source{n}.mp4" for n in numbers],
        "picture": [f"{stem}_separation.png"],
        "list": [f"{stem}_sources.json"],
    }
    try:
        for n, (wav, mp4) in enumerate(zip(names["wav"], names["mp4"], strict=True)):
            write_wav(folder / wav, separation.waveforms[n].numpy(), separation.sample_rate)
            _write_video(folder / mp4, separation, n)
        FigureCanvasAgg(draw(separation)).print_png(folder / names["picture"][0])
        (folder / names["list"][0]).write_text(json.dumps(_as_json(separation, names), indent=2) + "\n")
    except OSError as error:
        raise UserError(f"output {folder} cannot be written: {error.strerror or error}; choose another.") from error
    except DecodeError as error:
        raise UserError(f"video {error.path} stops half-way: {error.detail}; fetch or copy it again.") from error
    return names


def _as_json(separation: Separation, names: dict[str, list[str]]) -> dict[str, Any]:
    def finite(level: float) -> float | None:
        return round(level, 1) if math.isfinite(level) else None

    return {
        "video": separation.video,
        "boxes_chosen_by": separation.chosen_by,
        "sample_rate": separation.sample_rate,
        "seconds": round(separation.seconds, 3),
        "mixture_level_db": finite(separation.mixture_level),
        "sources": [
            {"box": box, "wav": wav, "mp4": mp4, "level_db": finite(level)}
            for box, wav, mp4, level in zip(
                as_lists(separation.boxes), names["wav"], names["mp4"], separation.levels, strict=True
            )
        ],
        "picture": names["picture"][0],
    }


# ---------------------------------------------------------------- video


def _write_video(path: Path, separation: Separation, source: int) -> None:
    """The pictures of the video with the sound of one source, its box outlined and the rest dimmed."""
    waveform, rate = separation.waveforms[source], separation.sample_rate
    if rate not in AAC_RATES:
        waveform, rate = resample(waveform, rate, 48_000), 48_000
    with Media(separation.video) as media:
        times, fps = film_times(media.info, separation.seconds)
        rows, columns = film_size(*separation.frame.shape[:2])
        frames = _marked(film_frames(media, times, rows, columns), separation, source)
        write_mp4(path, frames, fps, waveform.numpy(), rate, audio_bit_rate=AAC_BIT_RATE)


def _marked(frames: Iterable[NDArray[np.uint8]], separation: Separation, source: int) -> Iterator[NDArray[np.uint8]]:
    height, width = separation.frame.shape[:2]
    box, colour = separation.boxes[source], (255 * colour_of(source)).astype(np.uint8)
    for shown in frames:
        rows, columns = shown.shape[:2]
        x, y = columns / width, rows / height
        left, top, right, bottom = round(box.left * x), round(box.top * y), round(box.right * x), round(box.bottom * y)
        line = max(2, min(rows, columns) // 120)
        inside = (slice(top + line, max(bottom - line, 0)), slice(left + line, max(right - line, 0)))
        marked: NDArray[np.uint8] = shown // 3
        marked[top:bottom, left:right] = colour
        marked[inside] = shown[inside]
        yield marked


# ---------------------------------------------------------------- figure


def draw(separation: Separation) -> Figure:
    """The mixture and each source, a row each: picture, spectrogram, and the mask that makes the one of the other."""
    sources, seconds = len(separation.boxes), separation.seconds
    figure = Figure(figsize=(15, 2.6 * (sources + 1) + 0.6), layout="constrained", dpi=100)
    axes = figure.subplots(sources + 1, 3, width_ratios=[1.1, 2.2, 2.2], squeeze=False)
    by = "boxes chosen by the model" if separation.chosen_by == "model" else "boxes given"
    figure.suptitle(f"{Path(separation.video).name} · {seconds:.1f} s · {by}")
    mels = [separation.mixture_mel, *separation.source_mel]
    loudest = float(_decibels(mels[0]).max())
    levels = [f"mixture, {_in_words(separation.mixture_level)}"]
    levels += [f"source {n}, {_in_words(level)}" for n, level in enumerate(separation.levels, 1)]
    for row, (picture, sound, mask) in enumerate(axes):
        picture.imshow(separation.frame)
        picture.set_axis_off()
        picture.set_title(levels[row], fontsize=10, loc="left")
        for source in range(sources) if row == 0 else [row - 1]:
            _outline(picture, separation.boxes[source], source)
        heard = _show(sound, _decibels(mels[row]) - loudest, seconds, "magma", -QUIETEST, 0)
        if row:
            share = _show(mask, separation.mask[row - 1], seconds, "viridis", 0, 1)
    _draw_levels(axes[0, 2], separation)
    for axis, title in (
        (axes[0, 1], "what is heard"),
        (axes[0, 2], "level of each source"),
        (axes[1, 2], "mask: the part of the mixture that belongs to the source"),
    ):
        axis.set_title(title, fontsize=10, loc="left")
    for axis in axes[:-1, 1:].flat:
        axis.tick_params(labelbottom=False)
    for axis in axes[-1, 1:]:
        axis.set_xlabel("time (s)")
    bar: dict[str, Any] = {"fraction": 0.03, "pad": 0.01, "aspect": 20 * sources}
    figure.colorbar(heard, ax=axes[:, 1], label="dB from the loudest of the mixture", **bar)
    figure.colorbar(share, ax=axes[1:, 2], label="mask", **bar)
    return figure


def _in_words(level: float) -> str:
    return f"{level:.0f} dB".replace("-", "−") if math.isfinite(level) else "silent"


def _decibels(power: Tensor) -> Tensor:
    return 10 * (power + LOG_OFFSET).log10()


def _outline(axis: Any, box: Box, source: int) -> None:
    width, height = box.right - box.left, box.bottom - box.top
    axis.add_patch(
        Rectangle((box.left, box.top), width, height, fill=False, linewidth=3, color=colour_of(source), clip_on=False)
    )


def _show(axis: Any, values: Tensor, seconds: float, colours: str, low: float, high: float) -> Any:
    """A map [M, columns] over seconds and kHz."""
    axis.set_yticks([_band(kilohertz) for kilohertz in TICKS], [f"{kilohertz:g}" for kilohertz in TICKS])
    axis.set_ylabel("kHz", labelpad=1)
    return axis.imshow(
        values.numpy(), cmap=colours, vmin=low, vmax=high, extent=(0, seconds, 0, N_MELS), origin="lower",
        aspect="auto", interpolation="nearest",
    )  # fmt: skip


def _draw_levels(axis: Any, separation: Separation) -> None:
    """Power of the sources over time, and of the mixture behind them."""
    seconds = separation.seconds
    mixture, sources = separation.mixture_mel.sum(dim=0), separation.source_mel.sum(dim=1)
    top = float(_decibels(mixture).max())
    times = (np.arange(len(mixture)) + 0.5) * seconds / len(mixture)
    axis.fill_between(times, _decibels(mixture) - top, -QUIETEST, color="0.85", label="mixture")
    for source, power in enumerate(sources):
        axis.plot(times, _decibels(power) - top, color=0.8 * colour_of(source), label=f"source {source + 1}")
    axis.set_xlim(0, seconds)
    axis.set_ylim(-QUIETEST, 3)
    axis.set_ylabel("dB", labelpad=1)
    axis.legend(fontsize=8, ncols=len(sources) + 1, loc="lower right")


def _band(kilohertz: float) -> float:
    """Where a frequency lies among the mel bands (HTK's formula); band n is drawn from n to n + 1."""

    def mel(hertz: float) -> float:
        return math.log10(1 + hertz / 700)

    return min((N_MELS + 1) * mel(1000 * kilohertz) / mel(SAMPLE_RATE / 2) - 0.5, N_MELS)


def separate_to_folder(task: Separate, video: str | Path, folder: Path) -> tuple[Tensor, int]:
    """Separate a video, the model choosing the sources, and write everything; the waveforms and their rate.

    Raises:
        UserError: see `separate_video` and `write_separation`.
    """
    separation = separate_video(task, video)
    folder.mkdir(parents=True, exist_ok=True)
    write_separation(separation, folder)
    return separation.waveforms, separation.sample_rate
