"""Writes a search: a list, and a contact sheet of the query and the nearest clips."""

from __future__ import annotations

import math
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from rich.table import Table

from deepavfusion.data.lists.clip_list import ClipList
from deepavfusion.data.samples import SampleSpec, Unreadable
from deepavfusion.figures import panels
from deepavfusion.figures.style import BACKDROP, NOTE, ORANGE, POWER, SMALL, new_figure, short, styled
from deepavfusion.inference.search.nearest import MATCHES, Search
from deepavfusion.inference.video import PartialDataset, PartialStore
from deepavfusion.inference.write.saving import claimed, saving, write_list
from deepavfusion.transforms.audio import LogMel
from deepavfusion.types import Clip
from deepavfusion.utils.console import cell, from_here
from deepavfusion.utils.names import stem_of
from deepavfusion.weights.origin import Origin

SHOWN = 23  # nearest clips on a sheet
COLUMNS = 6
SIDE, MEL, TITLE, GAP, HEAD = 1.7, 0.75, 0.58, 0.18, 0.42  # inches: image, spectrogram below it, text above, between
PIXELS = 240  # of an image
LETTERS = 20  # of a name in a title
WORDS = {
    "both": "by image and audio",
    "image": "image by image",
    "audio": "audio by audio",
    "image_to_audio": "audio by image",
    "audio_to_image": "images by audio",
}
assert WORDS.keys() == MATCHES.keys()


def write_search(
    found: Search, folder: Path, index: str, seconds: float, network: Origin | None = None
) -> dict[str, Any]:
    """Write the list (JSON) and the contact sheet (PNG); those of an earlier call are replaced.

    Args:
        found: of `search_clips`.
        folder: where to; it must exist.
        index: name of the index.
        seconds: length of the audio that the network takes.
        network: where the network comes from.

    Returns:
        The content of the list, and its own name as `list`.

    Raises:
        UserError: the folder cannot be written to.
    """
    stem = stem_of(found.query)
    listed: dict[str, Any] = {
        "query": found.query,
        "modalities": found.modalities.split(),
        "match": found.match,
        "embedding": found.embedding,
        "index": index,
        "checkpoint": str(network.path) if network else "",
        "picture": f"{stem}_nearest.png",
        "clips": found.clips,
        "compared": found.candidates,
        "own_rank": found.own_rank,
        "nearest": [
            {"rank": rank, **asdict(each), "score": round(each.score, 6)} for rank, each in enumerate(found.nearest, 1)
        ],
        "notes": found.notes,
    }
    name = f"{stem}_nearest.json"
    with saving(folder), claimed(folder, name, listed, listed["picture"]):
        return write_list(folder, name, listed, draw(found, seconds), network)


def as_table(found: Search) -> Table:
    """The nearest clips, for the terminal."""
    table = Table("", "score", "has", title=f"nearest of {found.candidates}, {WORDS[found.match]}")
    table.add_column("clip", overflow="fold")
    names = [each.path for each in found.nearest]
    folder = os.path.commonpath(map(os.path.dirname, names)) if len({*map(os.path.isabs, names)}) == 1 else ""
    for rank, each in enumerate(found.nearest, 1):
        name = os.path.relpath(each.path, folder) if folder else each.path
        table.add_row(str(rank), f"{each.score:.3f}", each.modalities.replace(" ", ", "), cell(name))
    table.caption = cell(f"in {from_here(f'{folder}/')}") if folder else None
    return table


@styled
def draw(found: Search, seconds: float) -> Figure:
    """The query and its nearest clips: the image and the spectrogram that the network saw of each, and the score."""
    tiles = [os.path.abspath(found.query), *(each.place for each in found.nearest[:SHOWN])]
    columns = min(COLUMNS, len(tiles))
    rows = math.ceil(len(tiles) / columns)
    width = max(5.0, GAP + columns * (SIDE + GAP))
    height = HEAD + rows * (TITLE + SIDE + MEL + GAP)
    figure = new_figure(width, height)
    panels.head(figure, f"{short(Path(found.query).name, 40)} · nearest of {found.candidates}, {WORDS[found.match]}")
    log_mel = LogMel()
    for n, place in enumerate(tiles):
        left = GAP + n % columns * (SIDE + GAP)
        top = height - HEAD - n // columns * (TITLE + SIDE + MEL + GAP)
        image, mel = _glimpse(place, seconds, log_mel)
        each = found.nearest[n - 1] if n else None
        title = "query" if each is None else f"{n} · {each.score:.3f}"
        names = "\n".join(short(part, LETTERS) for part in Path(place).parts[-2:] if part != "/")
        figure.text(left / width, (top - 0.04) / height, title, va="top", weight="bold")
        figure.text(left / width, (top - TITLE + 0.05) / height, names, va="bottom", fontsize=SMALL, color=NOTE)
        shown = figure.add_axes((left / width, (top - TITLE - SIDE) / height, SIDE / width, SIDE / height))
        heard = figure.add_axes((left / width, (top - TITLE - SIDE - MEL) / height, SIDE / width, MEL / height))
        for axis, values, absent in ((shown, image, "no image"), (heard, mel, "no audio")):
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
            if values is None:
                axis.set_facecolor(BACKDROP)
                axis.text(0.5, 0.5, absent, transform=axis.transAxes, ha="center", va="center", color=NOTE)
            elif axis is shown:
                axis.imshow(values, aspect="auto")
            else:
                axis.imshow(values, POWER, panels.LOUDNESS, aspect="auto", origin="lower", interpolation="nearest")
        if each is None:  # framed
            corner, sides = (left - 0.04, top - TITLE - SIDE - MEL - 0.04), (SIDE + 0.08, SIDE + MEL + 0.08)
            figure.add_artist(
                Rectangle(
                    (corner[0] / width, corner[1] / height), sides[0] / width, sides[1] / height,
                    fill=False, edgecolor=ORANGE, linewidth=2.5,
                )
            )  # fmt: skip
    return figure


def _glimpse(
    place: str, seconds: float, log_mel: LogMel
) -> tuple[NDArray[np.uint8] | None, NDArray[np.float32] | None]:
    """The image [H, W, 3] and the spectrogram [M, F] (dB) of a file's middle; None what it does not have."""
    spec = SampleSpec(PIXELS, seconds)
    dataset = PartialDataset(ClipList("", [Clip(place, place)], []), PartialStore(), spec)
    try:
        (sample,) = dataset.read(0)
    except Unreadable:  # gone, or damaged meanwhile; the notes say so
        return None, None
    image = sample.image.permute(1, 2, 0).numpy() if sample.image.numel() else None
    mel = 10 * log_mel(sample.waveform[None])[0, 0].numpy() if sample.waveform.numel() else None
    return image, mel
