"""What a run shows besides curves: callbacks hand it to a `Board`, which gives it to every logger that can show it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from lightning import Trainer

Cards = Mapping[str, Mapping[str, Sequence[str]]]


class Shows:
    """What a logger can show. What it does not override is left out there: docs/loggers.md has the table."""

    def show_image(self, tag: str, image: NDArray[np.uint8], step: int) -> None:
        """RGB [H, W, 3]."""

    def show_audio(self, tag: str, waveform: NDArray[np.float32], step: int, rate: int) -> None:
        """[T] in -1…1, at a rate in Hz."""

    def show_video(self, tag: str, path: Path, step: int) -> None:
        """A file, which is there until the run ends."""

    def show_text(self, tag: str, text: str, step: int) -> None:
        """Markdown."""

    def show_table(self, tag: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        """Cells are texts and numbers."""

    def show_histogram(self, tag: str, values: NDArray[np.float64], step: int) -> None:
        """Of finite values [N]."""

    def show_embedding(self, tag: str, vectors: Tensor, labels: list[str], thumbnails: Tensor, step: int) -> None:
        """Points [N, D], their labels and pictures [N, 3, H, W] in 0…1, for a projection to two or three dimensions."""

    def show_settings(self, settings: Mapping[str, Any], metrics: Sequence[str], config: str) -> None:
        """What runs are compared by, the names of the curves that stand beside it, and the whole config as YAML."""

    def show_layout(self, cards: Cards) -> None:
        """Section -> title of a card -> its curves, as regular expressions of their whole names."""


class Board:
    """All loggers of a run that show more than curves; see `Shows`.

    Args:
        places: those loggers.
    """

    def __init__(self, places: Sequence[Shows]) -> None:
        self.places = places

    def figure(self, tag: str, figure: Figure, step: int) -> None:
        """Drawn once, whatever the number of loggers."""
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        image = np.array(canvas.buffer_rgba())[..., :3]
        for place in self.places:
            place.show_image(tag, image, step)

    def audio(self, tag: str, waveform: Tensor, step: int, rate: int) -> None:
        """[1, T] or [T], in -1…1, on any device."""
        samples = waveform.detach().float().cpu().flatten().numpy()
        for place in self.places:
            place.show_audio(tag, samples, step, rate)

    def video(self, tag: str, path: Path, step: int) -> None:
        for place in self.places:
            place.show_video(tag, path, step)

    def text(self, tag: str, text: str, step: int = 0) -> None:
        for place in self.places:
            place.show_text(tag, text, step)

    def table(self, tag: str, rows: Sequence[Sequence[Any]], step: int) -> None:
        """Rows of a file that is written as well, the header first."""
        for place in self.places:
            place.show_table(tag, [str(name) for name in rows[0]], rows[1:], step)

    def histogram(self, tag: str, values: Tensor, step: int) -> None:
        for place in self.places:
            place.show_histogram(tag, values.cpu().numpy(), step)

    def embedding(self, tag: str, vectors: Tensor, labels: list[str], thumbnails: Tensor, step: int) -> None:
        for place in self.places:
            place.show_embedding(tag, vectors, labels, thumbnails, step)

    def settings(self, settings: Mapping[str, Any], metrics: Sequence[str], config: str) -> None:
        for place in self.places:
            place.show_settings(settings, metrics, config)

    def layout(self, cards: Cards) -> None:
        for place in self.places:
            place.show_layout(cards)


def board_of(trainer: Trainer) -> Board | None:
    """Where a run shows more than curves; None where no logger does, and on all processes but the first."""
    from lightning.pytorch.loggers import TensorBoardLogger

    from deepavfusion.loggers.tensorboard import OnTensorBoard

    if not trainer.is_global_zero:
        return None
    places = [OnTensorBoard(each) if isinstance(each, TensorBoardLogger) else each for each in trainer.loggers]
    shown = [place for place in places if isinstance(place, Shows)]
    return Board(shown) if shown else None


def step_of(trainer: Trainer) -> int:
    """The last completed step, which Lightning logs under as well: a resumed run overwrites what comes after it."""
    return max(trainer.global_step - 1, 0)
