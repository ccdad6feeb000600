"""What a segmentation run shows: masks on frames with their audio, the IoU of each class, the frames that fail."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from deepavfusion.callbacks.evaluation import EvaluationCallback, first_loader, read_again
from deepavfusion.callbacks.show.clips import playable, shown_clips, unnormalised
from deepavfusion.figures.by_class import EXTREMES, draw_bars
from deepavfusion.figures.panels import caption, grid, head, show_image
from deepavfusion.figures.pixels import CORRECT, MISSED, TOO_MUCH, Pixels, errors, highlight, palette
from deepavfusion.figures.style import in_legend, save_figure, short, styled
from deepavfusion.loggers.board import board_of, step_of
from deepavfusion.transforms.audio import SAMPLE_RATE
from deepavfusion.types import Batch
from deepavfusion.utils.files import write_csv
from deepavfusion.utils.names import printable

TITLES = ("frame", "truth", "prediction", "error")


@dataclass
class Shown:
    """A frame to draw: pixels uint8 [H, W, 3], truth and prediction uint8 [H, W], waveform [1, T]; the names of its
    classes, the clip's id, and its time, s."""

    classes: str
    clip: str
    time: float
    pixels: Pixels
    truth: Pixels
    predicted: Pixels
    waveform: Tensor

    @property
    def name(self) -> str:
        """For a tag."""
        return f"{self.classes}_{self.clip}_{self.time:.1f}s"


class SegmentationImages(EvaluationCallback):
    """The same frames in each validation with truth, prediction and error; their audio once.

    With several processes, the frames are from the share of the first.

    Args:
        num_frames: how many to show, evenly spread over the split.
    """

    def __init__(self, num_frames: int = 6) -> None:
        self.num_frames, self.audio_written = num_frames, False

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.shown: list[Shown] = []
        self.seen = 0  # frames in this validation

    def on_batch(self, trainer: Trainer, task: LightningModule, outputs: Any, batch: Batch, loader: int) -> None:
        if board_of(trainer) is None or outputs is None:
            return
        frames = first_loader(trainer)
        every = max(1, len(frames.sampler) // self.num_frames)
        rows = [n for n in range(len(batch)) if (self.seen + n) % every == 0]
        self.seen += len(batch)
        self.shown += shown(batch, outputs, rows, frames.dataset)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        board = board_of(trainer)
        if board is None or not self.shown:
            return
        frames, step = self.shown[: self.num_frames], step_of(trainer)
        title = f"What sounds in {shown_clips(pl_module, 'validation frames')}: truth and prediction"
        board.figure("segmentation/frames", draw(frames, _mask_classes(trainer), title), step)
        if not self.audio_written:
            for frame in frames:
                board.audio(f"audio/{printable(frame.name)}", frame.waveform, step, SAMPLE_RATE)
        self.audio_written, self.shown = True, []


class SegmentationReport(Callback):
    """IoU by class of every validation and test; after a test the worst frames, and a table of all frames.

    `segmentation_test.csv`: item, id, second, classes, the metrics of each frame, and its IoU with the wrong audio.
    Shown: `iou_by_class/{val,test}`, `failures/frames` with their audio. Of many classes, the logger has the best and
    the worst, and `iou_by_class_test.png` in the run's directory all.

    Args:
        run_dir: where the table goes.
        num_failures: how many frames to show, the worst first, at most one per clip.
    """

    def __init__(self, run_dir: str, num_failures: int = 6) -> None:
        self.run_dir, self.num_failures = Path(run_dir), num_failures

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """By now the metrics have gathered the frames of all processes."""
        board = board_of(trainer)
        if board is not None:
            module: Any = pl_module
            means = iou_by_class(module.val_metrics, first_loader(trainer).dataset)
            board.figure("iou_by_class/val", draw_classes(means, "val"), step_of(trainer))

    @torch.no_grad()
    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        loader, module = first_loader(trainer), cast(Any, pl_module)
        dataset, metrics = loader.dataset, module.test_metrics
        rows = metrics.rows()
        if not rows:
            return
        lines = self._write(rows, module.wrong_audio_metrics.rows(), dataset)
        board, step, means = board_of(trainer), step_of(trainer), iou_by_class(metrics, dataset)
        if len(means) > 2 * EXTREMES + 1:
            save_figure(draw_classes(means, "test", everything=True), self.run_dir / "iou_by_class_test.png")
        if board is None:
            return
        board.table("frames/test", lines, step)
        board.figure("iou_by_class/test", draw_classes(means, "test"), step)
        worst: dict[int, int] = {}  # clip -> its worst frame
        for row in sorted(rows, key=lambda row: row["iou"]):
            worst.setdefault(dataset.first_clip(row["item"]), row["item"])
        frames: list[Shown] = []
        for item in list(worst.values())[: self.num_failures]:
            batch = read_again(trainer, pl_module, loader, item)
            if len(batch):
                frames += shown(batch, module.mark(batch), [0], dataset)
        if frames:
            title = f"The worst {shown_clips(pl_module, 'test frames')}: truth and prediction"
            board.figure("failures/frames", draw(frames, _mask_classes(trainer), title), step)
        for place, frame in enumerate(frames, 1):
            board.audio(f"failures/{place}_{printable(frame.name)}", frame.waveform, step, SAMPLE_RATE)

    def _write(self, rows: list[dict[str, Any]], wrong: list[dict[str, Any]], dataset: Any) -> list[list[Any]]:
        values = [name for name in rows[0] if name != "item"]
        with_wrong_audio = {row["item"]: row["iou"] for row in wrong}
        lines: list[list[Any]] = [["item", "id", "second", "classes", *values, "iou_wrong_audio"]]
        for row in rows:
            position, second = dataset.frames[row["item"]]
            known = [row["item"], dataset.clips[position].id, second, " + ".join(class_names(dataset, row["item"]))]
            lines.append([*known, *(row[name] for name in values), with_wrong_audio.get(row["item"], "")])
        write_csv(self.run_dir / "segmentation_test.csv", lines)
        return lines


def class_names(dataset: Any, item: int) -> list[str]:
    """Names of the classes that the clip of a frame is annotated with."""
    clip, classes = dataset.clips[dataset.first_clip(item)], dataset.list.classes
    return [classes[label] for label in clip.classes if label < len(classes)]


def shown(batch: Batch, marked: Tensor, rows: Sequence[int], dataset: Any) -> list[Shown]:
    """Some rows of a batch, with their predicted masks, to draw."""
    if not rows:
        return []
    assert batch.mask is not None
    index = torch.tensor(rows, device=batch.image.device)
    pixels = (unnormalised(batch.image[index]) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    predicted, truth = marked[index].cpu().numpy(), batch.mask[index].cpu().numpy()
    out = []
    for n, row in enumerate(rows):
        names = "+".join(class_names(dataset, int(batch.item[row])))
        known = (names, batch.id[row], batch.frame_time[row].item())
        out.append(Shown(*known, pixels[n], truth[n], predicted[n], playable(batch.waveform[row])))
    return out


@styled
def draw(frames: Sequence[Shown], classes: Sequence[str], title: str) -> Figure:
    """A row for each frame: the frame, truth, prediction and error.

    Args:
        frames: what to draw.
        classes: names of the masks' values, the background first.
        title: what they are.
    """
    colours = palette(len(classes))
    legend = _legend(frames, classes, colours)
    across = 2 if len(classes) > 2 else 3
    figure, axes = grid(len(frames), (1, 1, 1, 1), bottom=0.15 + 0.19 * math.ceil(len(legend) / across), down=0.06)
    for line, frame in zip(axes, frames, strict=True):
        images = (
            frame.pixels,
            highlight(frame.pixels, frame.truth, colours),
            highlight(frame.pixels, frame.predicted, colours),
            errors(frame.pixels, frame.predicted, frame.truth),
        )
        for axis, image in zip(line, images, strict=True):
            show_image(axis, image)
        either = int(((frame.predicted > 0) | (frame.truth > 0)).sum())
        both = int(((frame.predicted == frame.truth) & (frame.truth > 0)).sum())
        iou = f"IoU {both / either:.2f}" if either else "nothing sounds"
        caption(line[0], frame.classes, f"{frame.clip}\nat {frame.time:.1f} s\n{iou}")
    for axis, name in zip(axes[0], TITLES, strict=True):
        axis.set_title(name, pad=4)
    if legend:
        height = figure.get_size_inches()[1]
        figure.legend(
            handles=legend, loc="lower center", bbox_to_anchor=(0.5, 0.04 / height), ncols=across, borderaxespad=0
        )
    head(figure, title)
    return figure


def _legend(frames: Sequence[Shown], classes: Sequence[str], colours: Pixels) -> list[Patch]:
    """What occurs in the columns: classes, if there are several, and kinds of errors."""
    pairs = [(frame.truth, frame.predicted) for frame in frames]
    kinds = {
        "error: none (correct)": (CORRECT, any(((a == b) & (a > 0)).any() for a, b in pairs)),
        "error: too much" + " or wrong class" * (len(classes) > 2): (
            TOO_MUCH, any(((a != b) & (b > 0)).any() for a, b in pairs)
        ),
        "error: missed": (MISSED, any(((b == 0) & (a > 0)).any() for a, b in pairs)),
    }  # fmt: skip
    found: list[tuple[Any, str]] = [(colour, name) for name, (colour, occurs) in kinds.items() if occurs]
    if len(classes) > 2:
        present = np.unique([part for pair in pairs for part in pair])
        found += [(colours[n], in_legend(short(classes[n], 24))) for n in present if n]
    return [Patch(color=np.divide(colour, 255), label=label) for colour, label in found]


def iou_by_class(metrics: Any, dataset: Any) -> dict[str, float]:
    """Class -> IoU of its pixels; where masks have no classes, the mean IoU of the frames of its clips."""
    if metrics.num_classes > 1:
        found = metrics.per_class().tolist()
        return {name: v for name, v in zip(dataset.list.classes, found, strict=True) if not math.isnan(v)}
    values: dict[str, list[float]] = defaultdict(list)
    for row in metrics.rows():
        for name in class_names(dataset, row["item"]):
            values[name].append(row["iou"])
    return {name: math.fsum(found) / len(found) for name, found in sorted(values.items())}


def draw_classes(means: dict[str, float], split: str, everything: bool = False) -> Figure:
    """Bars, the best class first; see `draw_bars`."""
    title = f"IoU by class, {split}: {len(means)} classes"
    return draw_bars(list(means.values()), list(means), title, "IoU (1: the masks are the same)", everything=everything)


def _mask_classes(trainer: Trainer) -> list[str]:
    datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
    return datamodule.classes if datamodule.num_classes > 1 else ["silent", "sounding"]
