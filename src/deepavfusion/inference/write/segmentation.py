"""Writes a segmentation: a mask per time, a film with the sounding pixels in colour, a figure, and a list."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from deepavfusion.figures.panels import caption, grid, head, show_image
from deepavfusion.figures.pixels import Pixels, highlight, palette
from deepavfusion.figures.style import in_legend, short, styled
from deepavfusion.inference.segment import Segmentation
from deepavfusion.inference.video import audio_blocks
from deepavfusion.inference.write.film import film_frames, film_rate, film_size, film_times, write_film
from deepavfusion.inference.write.saving import claimed, saving, write_list
from deepavfusion.media import Still, open_media
from deepavfusion.utils.files import whole
from deepavfusion.utils.names import stem_of
from deepavfusion.weights.origin import Origin

SOUNDING = 255  # in the mask of a model without classes
FIGURE_TIMES = 6
FIGURE_PIXELS = 480  # of a frame's shorter side
COLUMN_INCHES, LEGEND_INCHES = 2.3, 1.9  # of the figure: a time, and a class in the legend
FONT = "fonts/ttf/DejaVuSans.ttf"  # comes with matplotlib and covers most scripts
MIN_TEXT = 12  # pixels high
LEGEND_GROUND = (24, 24, 24)
LEGEND_SHARE = 1 / 3  # of the height of the frame above it, at most
LETTERS = 60  # of a name in a legend
MIN_LINES = 4  # of a legend, allowed below any frame


def write_segmentation(
    segmentation: Segmentation,
    folder: Path,
    on_progress: Callable[[int, int], Any] | None = None,
    network: Origin | None = None,
) -> dict[str, Any]:
    """Write the masks as they are made, then the film, the figure and the list; those of an earlier call are replaced.

    Args:
        segmentation: of a video; its masks are consumed.
        folder: where to; it must exist.
        on_progress: called with the number of film frames done and of all.
        network: where the network comes from.

    Returns:
        The content of the list, and its own name as `list`: names of the files, classes, and the shares at each time.

    Raises:
        UserError: the folder cannot be written to, or the video stops decoding.
    """
    stem = stem_of(segmentation.video)
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
    name = f"{stem}_segmentation.json"
    with saving(folder), claimed(folder, name, listed, *(listed[key] for key in ("film", "picture", "masks"))):
        listed["moments"] = _write_masks(segmentation, folder, listed["masks"])
        _write_overlay_film(folder, segmentation, listed, on_progress)
        listed = write_list(folder, name, listed, draw(segmentation, folder, listed), network)
    return listed


def shares(listed: dict[str, Any]) -> dict[str, float]:
    """The classes that occur and their share of all masks' pixels, 0…1, the largest first."""
    found: dict[str, float] = {}
    for time in listed["moments"]:
        for name, share in time.get("classes", {}).items():
            found[name] = found.get(name, 0.0) + share / len(listed["moments"])
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))


def _write_masks(segmentation: Segmentation, folder: Path, name: str) -> list[dict[str, Any]]:
    """Write the PNG files, replacing those of an earlier run, and return the list's entry for each."""
    classes, entries = segmentation.classes, []
    for time, mask in zip(segmentation.times, segmentation.masks, strict=True):
        file = f"{name}/{round(1000 * time):07d}.png"
        (folder / name).mkdir(exist_ok=True)
        image = Image.fromarray(mask if classes else mask * np.uint8(SOUNDING))
        if classes:
            image.putpalette(palette(len(classes)).tobytes())
        with whole(folder / file) as partial:
            image.save(partial, format="PNG")
        counts = np.bincount(mask.ravel(), minlength=2) / mask.size
        entry = {"time": round(time, 3), "file": file, "share": round(float(counts[1:].sum()), 6)}
        if classes:
            found = sorted(np.flatnonzero(counts[1:]) + 1, key=lambda n: -counts[n])
            entry["classes"] = {classes[n]: round(float(counts[n]), 6) for n in found}
        entries.append(entry)
    written = {entry["file"] for entry in entries}
    for old in (folder / name).glob("[0-9]*.png"):  # of an earlier run, at other times
        if old.stem.isdecimal() and len(old.stem) >= 7 and f"{name}/{old.name}" not in written:
            old.unlink()
    return entries


def read_mask(path: Path) -> NDArray[np.uint8]:
    """The classes in a file that `write_segmentation` wrote; 0 and 1 without classes. uint8 [H, W]"""
    with Image.open(path) as image:
        values = np.asarray(image)
        return values if image.mode == "P" else (values > 0).astype(np.uint8)


def _write_overlay_film(
    folder: Path, segmentation: Segmentation, listed: dict[str, Any], on_progress: Callable[[int, int], Any] | None
) -> None:
    """The video with the nearest mask (one is held) over each frame, a legend below, and its audio in mono."""
    rows, columns = film_size(segmentation.height, segmentation.width)
    classes = segmentation.classes or []
    colours = palette(len(classes or [0, 1]))
    strip = legend({name: colours[classes.index(name)] for name in shares(listed)}, columns, rows)
    source = segmentation.source or segmentation.video
    with open_media(source) as media, open_media(source) as audio:
        assert not isinstance(audio, Still)  # no image has audio
        rate = film_rate(media.info.sample_rate)
        times, fps = film_times(media.info, segmentation.seconds, segmentation.masks_per_second)

        def frames() -> Iterator[Pixels]:
            shown = -1
            for n, frame in enumerate(film_frames(media, times, rows, columns)):
                nearest = min(round(times[n] * segmentation.masks_per_second), len(segmentation.times) - 1)
                if nearest != shown:
                    shown, mask = nearest, _mask(folder / listed["moments"][nearest]["file"], rows, columns)
                yield np.concatenate([highlight(frame, mask, colours), strip])
                if on_progress:
                    on_progress(n + 1, len(times))

        write_film(folder / listed["film"], frames(), fps, (block[None] for block in audio_blocks(audio, rate)), rate)


def _mask(path: Path, rows: int, columns: int) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(read_mask(path)).resize((columns, rows), Image.Resampling.NEAREST))


def legend(names: dict[str, Any], width: int, height: int) -> Pixels:
    """The names of classes, each beside its colour (RGB, 0…255), in a grid below a frame.

    Names that would take more than `LEGEND_SHARE` of the frame's height are left out and counted.

    Args:
        names: name -> colour, the most important first.
        width, height: of the frame, pixels, even.

    Returns:
        uint8 [H, width, 3]; H is even, 0 without names.
    """
    size = max(MIN_TEXT, height // 30)
    font = ImageFont.truetype(str(Path(matplotlib.get_data_path(), FONT)), size)
    line, gap = 2 * ((3 * size) // 4), size // 2
    cell = max([int(font.getlength(short(name, LETTERS))) for name in names], default=0) + 2 * size + gap
    columns = max(1, (width - gap) // cell)
    room = columns * max(MIN_LINES, int(height * LEGEND_SHARE) // line)
    cells: list[tuple[str, Any]] = [(short(name, LETTERS), colour) for name, colour in names.items()]
    if len(cells) > room:
        cells = [*cells[: room - 1], (f"+ {len(cells) - room + 1} more", None)]
    strip = Image.new("RGB", (width, math.ceil(len(cells) / columns) * line), LEGEND_GROUND)
    pen = ImageDraw.Draw(strip)
    for n, (name, colour) in enumerate(cells):
        x, middle = n % columns * cell + gap, n // columns * line + line // 2
        rgb = None if colour is None else tuple(map(int, colour))
        if rgb:
            pen.rectangle([x, middle - size // 2, x + size - 1, middle - size // 2 + size - 1], fill=rgb)
        pen.text((x + size + gap, middle), name, fill="white", font=font, anchor="lm")
    return np.asarray(strip)


@styled
def draw(segmentation: Segmentation, folder: Path, listed: dict[str, Any]) -> Figure:
    """Evenly spaced times, a column each: the frame, and its sounding pixels in colour, from the written masks."""
    shown = min(FIGURE_TIMES, len(listed["moments"]))
    chosen = [int((n + 0.5) * len(listed["moments"]) / shown) for n in range(shown)]
    scale = min(1.0, FIGURE_PIXELS / min(segmentation.height, segmentation.width))
    rows, columns = (max(1, round(side * scale)) for side in (segmentation.height, segmentation.width))
    with open_media(segmentation.source or segmentation.video) as media:
        frames = list(film_frames(media, [segmentation.times[n] for n in chosen], rows, columns))
    colours, found = palette(len(segmentation.classes or [0, 1])), shares(listed)
    of_class = dict(zip(segmentation.classes or [], colours / 255, strict=False))
    names = [name for name, share in found.items() if share > 0 and name in of_class]
    width = max(COLUMN_INCHES * shown + 1.3, 6.0)
    across = max(1, int(width / LEGEND_INCHES))
    figure, axes = grid(2, [columns / rows] * shown, left=1.2, top=0.72, down=0.1, width=width,
                        bottom=0.42 + 0.19 * math.ceil(len(names) / across))  # fmt: skip
    for (above, below), frame, n in zip(zip(*axes, strict=True), frames, chosen, strict=True):
        entry = listed["moments"][n]
        show_image(above, frame)
        show_image(below, highlight(frame, _mask(folder / entry["file"], rows, columns), colours))
        above.set_title(f"at {entry['time']:.1f} s", pad=4)
        below.set_xlabel(f"{100 * entry['share']:.0f} % of the pixels")
    caption(axes[0][0], "frame")
    caption(axes[1][0], "sounding pixels")
    if names:
        handles = [Patch(color=of_class[name], label=in_legend(short(name, 22))) for name in names]
        height = figure.get_size_inches()[1]
        figure.legend(handles=handles, loc="lower center", bbox_to_anchor=(0.5, 0.05 / height), ncols=across)
    per_second = f"{segmentation.masks_per_second:g} masks per second"
    head(figure, f"{Path(segmentation.video).name} · {segmentation.seconds:.1f} s · {per_second}: sounding pixels")
    return figure
