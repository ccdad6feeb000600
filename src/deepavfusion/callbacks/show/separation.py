"""What a separation run shows: audio and spectrograms of a few mixtures, and the SDR of every source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from deepavfusion.callbacks.evaluation import EvaluationCallback, first_loader
from deepavfusion.callbacks.show.tensorboard import LOUD, QUIET, classes_of, playable, step_of, unnormalised, writer_of
from deepavfusion.transforms.audio import FRAMES_PER_SECOND, LOG_OFFSET, SAMPLE_RATE
from deepavfusion.types import Batch, SeparationOutput
from deepavfusion.utils.files import write_csv

TITLES = ("frame", "mixture", "truth", "estimate", "ideal mask", "mask")


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
        writer = writer_of(trainer)
        if writer is None or outputs is None or self.drawn:
            return
        step, classes = step_of(trainer), classes_of(trainer)
        frames = unnormalised(batch.image)
        for mixture in range(min(self.num_mixtures, batch.items)):
            rows = range(mixture * batch.group, (mixture + 1) * batch.group)
            names = [classes[int(batch.label[row])] if classes else batch.id[row] for row in rows]
            audio = [(f"estimate_{name}", outputs.estimate[row]) for row, name in zip(rows, names, strict=True)]
            if not self.truths_written:
                audio += [(f"truth_{name}", batch.waveform[row]) for row, name in zip(rows, names, strict=True)]
                audio.append(("mixture", outputs.mixture[mixture]))
            for name, waveform in audio:
                writer.add_audio(f"mixture_{mixture}/{name}", playable(waveform), step, SAMPLE_RATE)
            writer.add_figure(f"separation/mixture_{mixture}", _figure(batch, outputs, frames, mixture, names), step)
        self.drawn = self.truths_written = True


def _figure(batch: Batch, outputs: SeparationOutput, frames: Tensor, mixture: int, names: list[str]) -> Figure:
    """A row for each source of a mixture: frame, spectrograms and masks side by side."""
    assert batch.spectrogram is not None
    figure = Figure(figsize=(2.4 * len(TITLES), 2.1 * batch.group), layout="constrained")
    axes = figure.subplots(batch.group, len(TITLES), squeeze=False)
    mixed = outputs.mixture_mel[mixture, 0].float().cpu()
    seconds = mixed.shape[-1] / FRAMES_PER_SECOND
    for line, name in enumerate(names):
        row = mixture * batch.group + line
        mask, target = outputs.mask[row, 0].float().cpu(), outputs.target_mask[row, 0].float().cpu()
        truth = batch.spectrogram[row, 0].float().cpu()
        powers = [(mixed + LOG_OFFSET).log10(), truth, (mixed * mask + LOG_OFFSET).log10()]
        axes[line, 0].imshow(frames[row].permute(1, 2, 0))
        shades = 3 * [("magma", QUIET, LOUD)] + 2 * [("gray", 0.0, 1.0)]
        for axis, values, (cmap, low, high) in zip(axes[line, 1:], (*powers, target, mask), shades, strict=True):
            axis.imshow(values, cmap, aspect="auto", vmin=low, vmax=high, origin="lower", extent=(0, seconds, 0, 1))
        axes[line, 0].set_ylabel(name)
        for axis, title in zip(axes[line], TITLES, strict=True):
            axis.set_yticks([])
            if title == "frame" or line + 1 < batch.group:
                axis.set_xticks([])
            if line == 0:
                axis.set_title(title)
        axes[-1, 1].set_xlabel("s")
    return figure


class SeparationReport(Callback):
    """Writes the mixtures of a test and the metrics of each source, and draws the SDR by pairs of classes.

    `mixtures_test.csv` (before the test): mixture, source, id, class, path. `separation_test.csv` (after it): the same
    mixtures with all metrics of each source. TensorBoard: histograms, and the mean SDR by the class of the source and
    the class it is mixed with.

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
        writer = writer_of(trainer)
        if writer is None:
            return
        step = step_of(trainer)
        sdr, before = (torch.tensor([row[key] for row in rows], dtype=torch.float64) for key in ("sdr", "sdr_mixture"))
        for name, found in (("sdr", sdr), ("sdr_improvement", sdr - before)):
            finite = found[found.isfinite()]
            if len(finite):
                writer.add_histogram(f"test_sources/{name}", finite, step)
        writer.add_figure("sdr_by_class/test", class_figure(rows, classes_of(trainer)), step)


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


def class_figure(rows: list[dict[str, Any]], classes: list[str]) -> Figure:
    """`class_table` as a figure with names and numbers."""
    table = class_table(rows, len(classes))
    size = max(4.0, 0.5 * len(classes) + 2)
    figure = Figure(figsize=(size + 1, size), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(table, cmap="viridis")
    axis.set_xticks(range(len(classes)), classes, rotation=90)
    axis.set_yticks(range(len(classes)), classes)
    axis.set(xlabel="mixed with", ylabel="source")
    if len(classes) <= 25:
        for (i, j), value in np.ndenumerate(table):
            if np.isfinite(value):
                axis.text(j, i, f"{value:.0f}", ha="center", va="center", color="white", fontsize=8)
    figure.colorbar(image, ax=axis, label="SDR (dB)")
    return figure
