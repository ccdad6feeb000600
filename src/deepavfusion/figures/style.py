"""The one style of all figures: fonts, sizes, colours. TensorBoard shows a figure about 350 pixels wide, so figures
are narrow and their letters large.

Colours are of Okabe & Ito, "Color Universal Design" (2008), which people with any colour vision tell apart; green is
left out, so that no figure asks to tell it from red. Colour maps are perceptually uniform.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.artist import allow_rasterization
from matplotlib.backend_bases import RendererBase
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from deepavfusion.utils.files import whole
from deepavfusion.utils.names import printable

BLUE, SKY, ORANGE, VERMILLION = "#0072B2", "#56B4E9", "#E69F00", "#D55E00"
PURPLE, YELLOW, BLACK = "#CC79A7", "#F0E442", "#202020"
LINES = (BLUE, ORANGE, PURPLE, SKY, VERMILLION, BLACK)  # on white
STREAMS = {"image": ("o", BLUE), "audio": ("^", ORANGE), "fusion": ("s", PURPLE)}  # marker and colour
BAR, BACKDROP = "#C8C8C8", "#EBEBEB"  # neutral bars; what has no value
RIGHT, WRONG = "#A9D3EE", "#F6CF8C"  # bars with black text on them, of BLUE and ORANGE
NOTE, CAVEAT, CAVEAT_GROUND = "#505050", "#6E2A00", "#FDEBD3"
POWER, SHARE, VALUE = "magma", "Blues", "viridis"  # colour maps: spectrograms; shares of a whole; anything else

WIDTH = 6.4  # inches, of a figure for TensorBoard
SMALL, NORMAL, LARGE = 9.0, 10.0, 11.0  # points

STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": SMALL,
    "axes.titlesize": NORMAL,
    "axes.labelsize": SMALL,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "legend.fontsize": SMALL,
    "legend.title_fontsize": SMALL,
    "legend.frameon": False,
    "figure.titlesize": LARGE,
    "figure.dpi": 110,
    "savefig.dpi": "figure",
    "axes.prop_cycle": cycler(color=LINES),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "grid.color": "#D8D8D8",
    "grid.linewidth": 0.8,
    "hatch.color": "#909090",
    "hatch.linewidth": 0.6,
    "image.cmap": VALUE,
    "text.color": BLACK,
    "axes.labelcolor": BLACK,
    "xtick.color": BLACK,
    "ytick.color": BLACK,
    "text.parse_math": False,  # a dollar sign in the name of a class or a video starts no formula
    "axes.formatter.use_mathtext": False,
}

P = ParamSpec("P")
R = TypeVar("R")


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Decorates a function that makes a figure: what it makes is in this style, and the caller's settings stay."""
    return matplotlib.rc_context(STYLE)(draw)


class StyledFigure(Figure):
    """A figure that is rendered in the style, too: matplotlib makes ticks and their labels only then."""

    @allow_rasterization  # matplotlib asks for it of every `draw`
    def draw(self, renderer: RendererBase) -> None:
        with matplotlib.rc_context(STYLE):
            super().draw(renderer)


@styled
def new_figure(width: float, height: float, **options: Any) -> StyledFigure:
    """An empty figure, inches; `options` as for matplotlib's `Figure`."""
    return StyledFigure(figsize=(width, height), **options)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG atomically."""
    with whole(path) as partial:
        figure.savefig(partial, format="png")


def ink(colour: Any) -> str:
    """Black or white, whichever is easier to read on a colour (relative luminance of WCAG 2)."""
    rgb = np.asarray(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return "black" if linear @ (0.2126, 0.7152, 0.0722) > 0.179 else "white"


def short(text: str, letters: int) -> str:
    """At most so many letters: the middle is left out, as ids and class names often differ at both ends."""
    text = printable(text)
    if len(text) <= letters:
        return text
    tail = (letters - 1) // 3
    return f"{text[: letters - 1 - tail]}…{text[len(text) - tail :]}"


def in_legend(name: str) -> str:
    """A name as label of a legend, from which matplotlib leaves out those that begin with "_"."""
    return f" {name}" if name.startswith("_") else name
