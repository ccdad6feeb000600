"""What a separation run shows: audio and spectrograms of a few mixtures, and the SDR of every source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation, blended_transform_factory
from numpy.typing import NDArray

from deepavfusion.callbacks.evaluation import EvaluationCallback, first_loader
from deepavfusion.callbacks.show.clips import classes_of, playable, shown_clips, unnormalised
from deepavfusion.figures.by_class import NAMED, draw_bars, draw_matrix
from deepavfusion.figures.panels import DECIBELS, LOUDNESS, SHARES, colour_bar, grid, head, show_image, show_mel
from deepavfusion.figures.style import POWER, VALUE, WIDTH, save_figure, short, styled
from deepavfusion.loggers.board import board_of, step_of
from deepavfusion.transforms.audio import LOG_OFFSET, SAMPLE_RATE
from deepavfusion.types import Batch, SeparationOutput
from deepavfusion.utils.files import write_csv
from deepavfusion.utils.names import distinct, printable

ROWS = ("frame", "mixture", "truth", "estimate", "ideal mask", "predicted\nmask")


class SeparationImages(EvaluationCallback):
    """The same mixtures in each validation: audio of mixture, truths and estimates; spectrograms, masks and frames.

    Args:
        num_mixtures: how many to show, from the first validation batch.
    """

    def __init__(self, num_mixtures: int = 4) -> None:
        self.num_mixtures, self.truths_written = num_mixtures, False

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.drawn = False

    def on_batch(self, trainer: Trainer, task: LightningModule, outputs: Any, batch: Batch, loader: int) -> None:
        board = board_of(trainer)
        if board is None or outputs is None or self.drawn:
            return
        step, classes = step_of(trainer), classes_of(trainer)
        what = shown_clips(task, "validation clips")
        for mixture in range(min(self.num_mixtures, batch.items)):
            rows = range(mixture * batch.group, (mixture + 1) * batch.group)
            names = [printable(classes[int(batch.label[row])] if classes else batch.id[row]) for row in rows]
            names = distinct(names)  # both sources may be of one class
            audio = [(f"estimate_{name}", outputs.estimate[row]) for row, name in zip(rows, names, strict=True)]
            if not self.truths_written:
                audio += [(f"truth_{name}", batch.waveform[row]) for row, name in zip(rows, names, strict=True)]
                audio.append(("mixture", outputs.mixture[mixture]))
            for name, waveform in audio:
                board.audio(f"mixture_{mixture}/{name}", playable(waveform), step, SAMPLE_RATE)
            figure = draw_mixture(batch, outputs, mixture, names, what)
            board.figure(f"separation/mixture_{mixture}", figure, step)
        self.drawn = self.truths_written = True


@styled
def draw_mixture(batch: Batch, outputs: SeparationOutput, mixture: int, names: list[str], what: str) -> Figure:
    """A column for each source of a mixture: its frame, the spectrograms, and the ideal and the predicted mask."""
    assert batch.spectrogram is not None
    left, height = 1.55, 0.85
    wide = (WIDTH - left - 0.1) / height / batch.group - 0.1
    figure, axes = grid(len(ROWS), [wide] * batch.group, left=left, top=0.85, bottom=0.95, gaps=0.1 * height, down=0.07)
    mixed = outputs.mixture_mel[mixture, 0].float().cpu()
    for column, name in enumerate(names):
        row = mixture * batch.group + column
        frame = unnormalised(batch.image[row : row + 1])[0].permute(1, 2, 0)
        ideal, mask = outputs.target_mask[row, 0].float().cpu(), outputs.mask[row, 0].float().cpu()
        truth = batch.spectrogram[row, 0].float().cpu()
        powers = [(mixed + LOG_OFFSET).log10(), truth, (mixed * mask + LOG_OFFSET).log10()]
        line = [panels[column] for panels in axes]
        show_image(line[0], frame).axes.set_aspect("equal")
        side = "" if column else "y"
        for axis, values in zip(line[1:4], powers, strict=True):
            show_mel(axis, 10 * values, labels=side)
        for axis, values in zip(line[4:], (ideal, mask), strict=True):
            show_mel(axis, values, VALUE, SHARES, labels=side + "x" * (axis is line[-1]))
        line[0].set_title(f"{short(name, 26)}\n{short(batch.id[row], 26)}", pad=4)
    for panels, label in zip(axes, ROWS, strict=True):
        panels[0].text(0, 0.5, label, transform=_at_left(panels[0], left), ha="right", va="center")
    width = (WIDTH - 0.9) / 2
    colour_bar(figure, POWER, LOUDNESS, DECIBELS, left=0.3, bottom=0.42, width=width)
    colour_bar(figure, VALUE, SHARES, "mask: 0 removes, 1 keeps", left=0.6 + width, bottom=0.42, width=width)
    head(figure, f"Mixture of {what}, separated")
    return figure


def _at_left(axis: Axes, left: float) -> Any:
    """Coordinates with x in inches from where the captions of rows end, and y from 0 to 1 along an axis."""
    figure = axis.figure
    edge = ScaledTranslation(left - 0.45, 0, figure.dpi_scale_trans)
    return blended_transform_factory(figure.dpi_scale_trans + edge, axis.transAxes)


class SeparationReport(Callback):
    """Writes the mixtures of a test and the metrics of each source, and draws the SDR by pairs of classes.

    `mixtures_test.csv` (before the test): mixture, source, id, class, path. `separation_test.csv` (after it): the same
    mixtures with all metrics of each source. Shown: histograms, and the mean SDR by the class of the source and
    the class it is mixed with; of many classes as `sdr_by_class_test.png` in the run's directory.

    Args:
        run_dir: where the files go.
    """

    def __init__(self, run_dir: str) -> None:
        self.run_dir = Path(run_dir)
        self.sources: dict[tuple[int, int], tuple[str, str]] = {}  # mixture and source -> id and class

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        dataset = first_loader(trainer).dataset
        rows = []
        for mixture, members in enumerate(dataset.mixtures):
            for source, clip in enumerate(dataset.clips[member] for member in members):
                name = dataset.list.classes[clip.label] if 0 <= clip.label < len(dataset.list.classes) else ""
                self.sources[mixture, source] = (clip.id, name)
                rows.append((mixture, source, clip.id, name, clip.path))
        if trainer.is_global_zero:
            write_csv(self.run_dir / "mixtures_test.csv", [("mixture", "source", "id", "class", "path"), *rows])

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        metrics: Any = pl_module.test_metrics
        rows: list[dict[str, Any]] = metrics.rows()
        if not trainer.is_global_zero or not rows:
            return
        values = [name for name in rows[0] if name not in ("item", "source", "label", "others")]
        lines = [
            (row["item"], row["source"], *self.sources[row["item"], row["source"]], *(row[name] for name in values))
            for row in rows
        ]
        header = ("mixture", "source", "id", "class", *values)
        write_csv(self.run_dir / "separation_test.csv", [header, *lines])
        board, step, classes = board_of(trainer), step_of(trainer), classes_of(trainer)
        if len(classes) > NAMED:
            save_figure(class_figure(rows, classes, everything=True), self.run_dir / "sdr_by_class_test.png")
        if board is None:
            return
        board.table("sources/test", [header, *lines], step)
        sdr, before = (torch.tensor([row[key] for row in rows], dtype=torch.float64) for key in ("sdr", "sdr_mixture"))
        for name, found in (("sdr", sdr), ("sdr_improvement", sdr - before)):
            finite = found[found.isfinite()]
            if len(finite):
                board.histogram(f"test_sources/{name}", finite, step)
        if classes:
            board.figure("sdr_by_class/test", class_figure(rows, classes), step)


def class_table(rows: list[dict[str, Any]], classes: int) -> NDArray[np.float64]:
    """Mean SDR of the sources of class i in mixtures with class j, dB, [classes, classes]; nan where there is none."""
    total, number = np.zeros((classes, classes)), np.zeros((classes, classes))
    for row in rows:
        if np.isfinite(row["sdr"]):
            for other in row["others"]:
                total[row["label"], other] += row["sdr"]
                number[row["label"], other] += 1
    with np.errstate(invalid="ignore"):
        return total / number


def class_figure(rows: list[dict[str, Any]], classes: list[str], everything: bool = False) -> Figure:
    """`class_table`; of more than `NAMED` classes only the best and worst, unless `everything` is asked for."""
    table = class_table(rows, len(classes))
    finite = table[np.isfinite(table)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    if len(classes) <= NAMED or everything:
        return draw_matrix(
            table, classes, "Mean SDR of a class (row), mixed with another (column)", "source",
            "mixed with (number of the class)", "SDR (dB)", VALUE, low, max(high, low + 1), digits=1,
        )  # fmt: skip
    with np.errstate(invalid="ignore", divide="ignore"):
        means = np.nansum(table, axis=1) / np.isfinite(table).sum(axis=1)
    return draw_bars(
        means.tolist(), classes, f"Mean SDR by class of the source: {np.isfinite(means).sum()} classes", "SDR (dB)",
        low=min(float(np.nanmin(means)), 0.0), high=max(float(np.nanmax(means)), 1.0),
    )  # fmt: skip
