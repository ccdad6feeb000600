"""Writes results: figures and lists atomically, and one sentence where the output cannot be written."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from deepavfusion.figures.style import CAVEAT, CAVEAT_GROUND, LARGE, new_figure, styled
from deepavfusion.utils.errors import DecodeError, UserError
from deepavfusion.utils.files import whole, write_whole
from deepavfusion.weights.origin import Origin


@contextmanager
def saving(output: Path) -> Iterator[None]:
    """Turn the failures of writing to `output`, and of reading the video meanwhile, into `UserError`s."""
    try:
        yield
    except OSError as error:
        raise UserError(f"output {output} cannot be written: {error.strerror or error}; choose another.") from error
    except DecodeError as error:
        raise UserError(f"video {error.path} stops half-way: {error.detail}; fetch or copy it again.") from error


def made(folder: Path) -> Path:
    """The folder, made with its parents."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"folder {folder} cannot be made: {error.strerror}; give another output.") from None
    return folder


def write_list(
    folder: Path, name: str, listed: dict[str, Any], figure: Figure, network: Origin | None
) -> dict[str, Any]:
    """Write the figure (`picture`, PNG) and the list itself (JSON); returns the list with its own name as `list`.

    Args:
        network: where the network comes from: `network` in the list; its caveat is written below the figure.
    """
    listed["network"] = network.described() if network else None
    figures = [figure]
    if network and network.caveat:
        figures.append(_strip(network.caveat, figure))
    with whole(folder / listed["picture"]) as partial:
        Image.fromarray(np.vstack([_pixels(part) for part in figures])).save(partial, format="PNG")
    text = json.dumps(listed, indent=2, ensure_ascii=False) + "\n"
    # A file name that is not UTF-8 holds lone surrogates: escaped, they are valid JSON.
    write_whole(folder / name, text.encode(errors="backslashreplace").decode())
    return {**listed, "list": name}


@styled
def _strip(caveat: str, above: Figure) -> Figure:
    """A caveat in large letters on a coloured ground, as wide as the figure above it."""
    width = above.get_size_inches()[0]
    lines = textwrap.wrap(f"Caution: {caveat}", int(width * 12))
    height = 0.2 * len(lines) + 0.16
    strip = new_figure(width, height, dpi=above.dpi, facecolor=CAVEAT_GROUND)
    strip.text(0.15 / width, 0.5, "\n".join(lines), fontsize=LARGE, color=CAVEAT, va="center")
    return strip


def _pixels(figure: Figure) -> NDArray[np.uint8]:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())
