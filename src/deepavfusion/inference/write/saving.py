"""Writes results: figures and lists atomically, and one sentence where the output cannot be written."""

from __future__ import annotations

import json
import os
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
from deepavfusion.utils.reading import read_json
from deepavfusion.weights.origin import Origin

MOST_BYTES = 2**30  # in memory, of a list of results


@contextmanager
def saving(output: Path) -> Iterator[None]:
    """Turn the failures of writing to `output`, and of reading the video meanwhile, into `UserError`s."""
    try:
        yield
    except OSError as error:
        raise UserError(f"output {output} cannot be written: {error.strerror or error}; choose another.") from error
    except DecodeError as error:
        raise UserError(f"video {error.path} stops half-way: {error.detail}; fetch or copy it again.") from error


@contextmanager
def claimed(folder: Path, name: str, listed: dict[str, Any], *files: str) -> Iterator[None]:
    """Replace results of an earlier call, but no other files.

    What the earlier list names is ours. Until the list is written, the same names stand in `<name>.partial`, so that a
    call that was interrupted can be repeated.

    Args:
        folder: where to.
        name: of the list, see `write_list`.
        listed: its content, as far as it is known: it names all files.
        files: that are written, or folders of them.

    Raises:
        UserError: one exists that is not ours.
    """
    claim = f"{name}.partial"
    ours = {text for file in (name, claim) for text in _named_by(folder / file, file, listed["picture"])}
    for file in (name, claim, *files):
        path = folder / file
        free = not os.path.lexists(path) or (path.is_dir() and not path.is_symlink() and not any(path.iterdir()))
        if not free and (file not in ours or path.is_symlink()):
            raise UserError(
                f"output {path} is there, and is no earlier result that {name} names: it is left as it is; move it "
                "away, or choose another output."
            )
    write_whole(folder / claim, _as_json(listed))
    try:
        yield
    except BaseException:
        if not any(os.path.lexists(folder / file) for file in files):
            (folder / claim).unlink(missing_ok=True)
        raise


def _named_by(path: Path, name: str, picture: str) -> set[str]:
    """The texts in a list of results, and its own name; none if it is of something else."""
    if not os.path.lexists(path):
        return set()
    try:
        found = read_json(path, MOST_BYTES, "a list of results")
        return {name, *_texts(found)} if found["picture"] == picture else set()
    except (UserError, KeyError, TypeError, RecursionError):
        return set()


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, (dict, list)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _texts(part)
    elif isinstance(value, str):
        yield value


def made(folder: Path) -> Path:
    """The folder, made with its parents."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # the latter: no name that a folder may have
        why = getattr(error, "strerror", None) or error
        raise UserError(f"folder {folder} cannot be made: {why}; give another output.") from None
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
    write_whole(folder / name, _as_json(listed))
    return {**listed, "list": name}


def _as_json(listed: dict[str, Any]) -> str:
    text = json.dumps(listed, indent=2, ensure_ascii=False) + "\n"
    # A file name that is not UTF-8 holds lone surrogates: escaped, they are valid JSON.
    return text.encode(errors="backslashreplace").decode()


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
