"""What is left of a segmentation: a mask for each moment, a film with what sounds in colour, a figure, and a list."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from deepavfusion.inference.segment import Segmentation
from deepavfusion.inference.video import blocks
from deepavfusion.inference.write.film import AAC_BIT_RATE, AAC_RATES, film_frames, film_size, film_times
from deepavfusion.media import Media
from deepavfusion.media.encode import write_mp4
from deepavfusion.utils.drawing import Pixels, highlight, palette
from deepavfusion.utils.errors import DecodeError, UserError

SOUNDS = 255  # in the mask of a model without classes
FIGURE_MOMENTS = 6
FIGURE_PIXELS = 480  # of a picture's shorter side
LEGEND_COLUMNS = 8
FONT = "fonts/ttf/DejaVuSans.ttf"  # comes with matplotlib, and knows most scripts
LEAST_TEXT = 12  # pixels high
LEGEND_GROUND = (24, 24, 24)
LEGEND_SHARE = 1 / 3  # of the height of the picture, at most, below it
LEAST_LINES = 4  # however low the picture is


def write_segmentation(
    segmentation: Segmentation, folder: Path, on_progress: Callable[[int, int], Any] | None = None
) -> dict[str, Any]:
    """Write the masks while they are made, then the film, the figure and the list; what is there is overwritten.

    Args:
        segmentation: of a video; its masks are used up.
        folder: where to; it must exist.
        on_progress: called with the pictures of the film done and their number.

    Returns:
        What the list says, and its own name as `list`: names of the files, classes, and the shares of each moment.

    Raises:
        UserError: the folder cannot be written to, or the video stops decoding.
    """
    stem = Path(segmentation.video).stem
    listed: dict[str, Any] = {
        "video": segmentation.video,
        "seconds": round(segmentation.seconds, 3),
        "width": segmentation.width,
        "height": segmentation.height,
        "masks_per_second": segmentation.masks_per_second,
        "film": f"{stem}_segmentation.mp4",
        "picture": f"{stem}_segmentation.png",
        "masks": f"{stem}_masks",
        "classes": segmentation.classes,
    }
    try:
        listed["moments"] = _write_masks(segmentation, folder, listed["masks"])
        _write_film(folder, segmentation, listed, on_progress)
        FigureCanvasAgg(draw(segmentation, folder, listed)).print_png(folder / listed["picture"])
        name = f"{stem}_segmentation.json"
        (folder / name).write_text(json.dumps(listed, indent=2, ensure_ascii=False) + "\n")
    except OSError as error:
        raise UserError(f"output {folder} cannot be written: {error.strerror or error}; choose another.") from error
    except DecodeError as error:
        raise UserError(f"video {error.path} stops half-way: {error.detail}; fetch or copy it again.") from error
    return {**listed, "list": name}


def shares(listed: dict[str, Any]) -> dict[str, float]:
    """The classes that occur and their share of all masks' pixels, 0…1, the greatest first."""
    found: dict[str, float] = {}
    for moment in listed["moments"]:
        for name, share in moment.get("classes", {}).items():
            found[name] = found.get(name, 0.0) + share / len(listed["moments"])
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))


# ---------------------------------------------------------------- masks


def _write_masks(segmentation: Segmentation, folder: Path, name: str) -> list[dict[str, Any]]:
    """The PNG files, of which earlier ones are replaced; what the list says of each."""
    classes, moments = segmentation.classes, []
    for time, mask in zip(segmentation.times, segmentation.masks, strict=True):
        file = f"{name}/{round(1000 * time):07d}.png"
        (folder / name).mkdir(exist_ok=True)
        picture = Image.fromarray(mask if classes else mask * np.uint8(SOUNDS))
        if classes:
            picture.putpalette(palette(len(classes)).tobytes())
        picture.save(folder / file)
        counts = np.bincount(mask.ravel(), minlength=2) / mask.size
        moment = {"time": round(time, 3), "file": file, "share": round(float(counts[1:].sum()), 6)}
        if classes:
            found = sorted(np.flatnonzero(counts[1:]) + 1, key=lambda n: -counts[n])
            moment["classes"] = {classes[n]: round(float(counts[n]), 6) for n in found}
        moments.append(moment)
    written = {moment["file"] for moment in moments}
    for old in (folder / name).glob("[0-9]*.png"):  # at other moments, of an earlier run
        if old.stem.isdecimal() and len(old.stem) >= 7 and f"{name}/{old.name}" not in written:
            old.unlink()
    return moments


def read_mask(path: Path) -> NDArray[np.uint8]:
    """Of a file that `write_segmentation` wrote, classes; 0 and 1 without classes. uint8 [H, W]"""
    with Image.open(path) as picture:
        values = np.asarray(picture)
        return values if picture.mode == "P" else (values > 0).astype(np.uint8)


# ---------------------------------------------------------------- film


def _write_film(
    folder: Path, segmentation: Segmentation, listed: dict[str, Any], on_progress: Callable[[int, int], Any] | None
) -> None:
    """The video with the nearest mask over each picture, a legend below, and its sound, mono."""
    rows, columns = film_size(segmentation.height, segmentation.width)
    classes = segmentation.classes
    colours = palette(len(classes or [0, 1]))
    names = {name: colours[(classes or []).index(name)] for name in shares(listed)}
    strip = legend(names, columns, rows)
    with Media(segmentation.video) as media:
        rate = media.info.sample_rate if media.info.sample_rate in AAC_RATES else 48_000
        sound = torch.cat(list(blocks(media, rate)))
        times, fps = film_times(media.info, segmentation.seconds, segmentation.masks_per_second)
        masks = _nearest(folder, segmentation, listed, times)

        def pictures() -> Iterator[Pixels]:
            for n, (frame, mask) in enumerate(zip(film_frames(media, times, rows, columns), masks, strict=True), 1):
                yield np.concatenate([highlight(frame, _enlarged(mask, rows, columns), colours), strip])
                if on_progress:
                    on_progress(n, len(times))

        write_mp4(folder / listed["film"], pictures(), fps, sound.numpy(), rate, audio_bit_rate=AAC_BIT_RATE)


def _nearest(
    folder: Path, segmentation: Segmentation, listed: dict[str, Any], times: Iterable[float]
) -> Iterator[NDArray[np.uint8]]:
    """The mask that is nearest to each of the times, which rise; one is held."""
    shown, last = -1, len(segmentation.times) - 1
    for time in times:
        nearest = min(round(time * segmentation.masks_per_second), last)
        if nearest != shown:
            shown, mask = nearest, read_mask(folder / listed["moments"][nearest]["file"])
        yield mask


def _enlarged(mask: NDArray[np.uint8], rows: int, columns: int) -> NDArray[np.uint8]:
    if mask.shape == (rows, columns):
        return mask
    return np.asarray(Image.fromarray(mask).resize((columns, rows), Image.Resampling.NEAREST))


def legend(names: dict[str, Any], width: int, height: int) -> Pixels:
    """The names of classes, each in its colour (RGB, 0…255), in lines below a picture.

    What would take more than `LEGEND_SHARE` of its height is left out, and counted.

    Args:
        names: name -> colour, the most important first.
        width, height: of the picture, pixels, even.

    Returns:
        uint8 [H, width, 3]; H is even, 0 without names.
    """
    size = max(LEAST_TEXT, height // 30)
    font = ImageFont.truetype(str(Path(matplotlib.get_data_path(), FONT)), size)
    line, gap = 2 * ((3 * size) // 4), size // 2
    most = max(LEAST_LINES, int(height * LEGEND_SHARE) // line)
    for kept in range(len(names), -1, -1):
        left_out = len(names) - kept
        words: list[tuple[str, Any]] = list(names.items())[:kept]
        words += [(f"+ {left_out} more", None)] if left_out else []
        places = _places([int(font.getlength(word)) + 2 * size + gap for word, _ in words], width - gap)
        if not places or places[-1][0] < most:
            break
    lines = places[-1][0] + 1 if places else 0
    strip = Image.new("RGB", (width, lines * line), LEGEND_GROUND)
    pen = ImageDraw.Draw(strip)
    for (word, colour), (row, left) in zip(words, places, strict=True):
        x, middle = left + gap, row * line + line // 2
        rgb = None if colour is None else tuple(int(value) for value in colour)
        if rgb:
            pen.rectangle([x, middle - size // 2, x + size - 1, middle - size // 2 + size - 1], fill=rgb)
        pen.text((x + size + gap, middle), word, fill=rgb or "white", font=font, anchor="lm")
    return np.asarray(strip)


def _places(widths: Sequence[int], width: int) -> list[tuple[int, int]]:
    """Line and left edge of each word, set one after the other into lines of `width`."""
    places, row, left = [], 0, 0
    for one in widths:
        if left and left + one > width:
            row, left = row + 1, 0
        places.append((row, left))
        left += one
    return places


# ---------------------------------------------------------------- figure


def draw(segmentation: Segmentation, folder: Path, listed: dict[str, Any]) -> Figure:
    """Moments at even distances, a column each: the picture, and what sounds in colour. It reads what was written."""
    shown = min(FIGURE_MOMENTS, len(listed["moments"]))
    chosen = [int((n + 0.5) * len(listed["moments"]) / shown) for n in range(shown)]
    moments = [listed["moments"][n] for n in chosen]
    scale = min(1.0, FIGURE_PIXELS / min(segmentation.height, segmentation.width))
    rows, columns = (max(1, round(side * scale)) for side in (segmentation.height, segmentation.width))
    with Media(segmentation.video) as media:
        frames = list(film_frames(media, [segmentation.times[n] for n in chosen], rows, columns))
    colours, found = palette(len(segmentation.classes or [0, 1])), shares(listed)
    across = 15 / FIGURE_MOMENTS
    down = across * rows / columns
    lines = -(-len(found) // LEGEND_COLUMNS)
    size = (max(across * shown, 5.0), 2 * down + 1.0 + 0.25 * lines)
    figure = Figure(figsize=size, layout="constrained", dpi=100)
    axes = figure.subplots(2, shown, squeeze=False)
    per_second = f"{segmentation.masks_per_second:g} masks a second"
    figure.suptitle(f"{Path(segmentation.video).name} · {segmentation.seconds:.1f} s · {per_second}")
    for (above, below), frame, moment in zip(axes.T, frames, moments, strict=True):
        mask = _enlarged(read_mask(folder / moment["file"]), rows, columns)
        above.imshow(frame)
        below.imshow(highlight(frame, mask, colours))
        above.set_title(f"{moment['time']:.1f} s", fontsize=10)
        below.set_xlabel(f"{100 * moment['share']:.0f} % marked", fontsize=9)
        for axis in (above, below):
            axis.set_xticks([])
            axis.set_yticks([])
    axes[0, 0].set_ylabel("picture", fontsize=9)
    axes[1, 0].set_ylabel("what sounds", fontsize=9)
    if segmentation.classes and found:
        handles = [Patch(color=colours[segmentation.classes.index(name)] / 255, label=name) for name in found]
        figure.legend(handles=handles, loc="outside lower center", ncols=LEGEND_COLUMNS, fontsize=9)
    return figure
