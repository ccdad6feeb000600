"""The TensorBoard logger, and what TensorBoard shows besides curves."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from deepavfusion.loggers.board import Cards, Shows
from deepavfusion.loggers.curves import worth_showing
from deepavfusion.utils.names import fence_of


class CurveLogger(TensorBoardLogger):
    """Lightning's logger, with the main curves on top of the page and few learning rates.

    TensorBoard sorts by name, upper case first, and opens at the top: the main curves are written a second time as
    `Overview/<name>`.

    Args:
        overview: names of the main curves.
        kwargs: of Lightning's logger.
    """

    def __init__(self, *, overview: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.overview = overview

    @property
    @rank_zero_experiment
    def experiment(self) -> SummaryWriter:
        if self._experiment is None:
            self._experiment = LateWriter(self.log_dir, **self._kwargs)
        return self._experiment

    def flush(self) -> None:
        """Write what was logged to the disk."""
        if self._experiment is not None:
            self._experiment.flush()

    watch = "tensorboard --logdir {run_dir}"  # what shows it, see `utils.commands.command`

    def save(self) -> None:
        if self._experiment is not None and self._experiment.all_writers is not None:
            super().save()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        if status == "success" and self._kwargs.get("purge_step") is not None:
            self.experiment._get_file_writer()  # drops the points of steps that were lost, also where none followed
        super().finalize(status)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        main = {f"Overview/{name.replace('/', '_')}": metrics[name] for name in self.overview if name in metrics}
        super().log_metrics({**worth_showing(metrics), **main}, step)


class LateWriter(SummaryWriter):
    """Opens its file with the first value, not when Lightning sets things up: a start that is refused leaves none."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.made = False
        super().__init__(*args, **kwargs)
        self.made = True

    def _get_file_writer(self) -> Any:
        if not self.made:
            return None
        if self.file_writer is None:
            folder = Path(self.log_dir)
            put_before(folder, int(time.time()))
            # Lightning keeps that of a former start.
            (folder / TensorBoardLogger.NAME_HPARAMS_FILE).unlink(missing_ok=True)
        return super()._get_file_writer()


def put_before(folder: Path, now: int) -> None:
    """Rename the event files of earlier starts so that one which begins now follows them.

    TensorBoard reads the files in the order of their names, which begin with the time in s, and takes the newest start
    for the one that replaces what came after its step. A clock that jumped back, or two starts within a second, would
    turn that round.
    """
    found = sorted(folder.glob("events.out.tfevents.*.*"))
    files = [path for path in found if path.name.split(".")[3].isdecimal()]  # others are not TensorBoard's
    times = [int(path.name.split(".")[3]) for path in files]
    latest = now - 1
    for n in reversed(range(len(files))):
        times[n] = latest = min(times[n], latest)
        latest -= 1
    for path, seconds in zip(files, times, strict=True):  # the earliest first: they stay in order all the time
        rest = path.name.split(".", 4)[4]
        path.rename(path.with_name(f"events.out.tfevents.{seconds:010d}.{rest}"))


class OnTensorBoard(Shows):
    """What TensorBoard shows.

    Args:
        logger: has the writer.
    """

    def __init__(self, logger: TensorBoardLogger) -> None:
        self.writer: SummaryWriter = logger.experiment

    def show_image(self, tag: str, image: NDArray[np.uint8], step: int) -> None:
        self.writer.add_image(tag, image, step, dataformats="HWC")

    def show_audio(self, tag: str, waveform: NDArray[np.float32], step: int, rate: int) -> None:
        self.writer.add_audio(tag, waveform, step, sample_rate=rate)

    def show_text(self, tag: str, text: str, step: int) -> None:
        self.writer.add_text(tag, text, step)

    def show_histogram(self, tag: str, values: NDArray[np.float64], step: int) -> None:
        self.writer.add_histogram(tag, values, step)

    def show_embedding(self, tag: str, vectors: Tensor, labels: list[str], thumbnails: Tensor, step: int) -> None:
        self.writer.add_embedding(vectors, metadata=labels, label_img=thumbnails, global_step=step, tag=tag)

    def show_settings(self, settings: Mapping[str, Any], metrics: Sequence[str], config: str) -> None:
        # SummaryWriter.add_hparams would make a second run of its own in a subfolder, and log_hyperparams of the
        # logger points at step 0. The metrics are those that are logged anyway: only their names are needed here.
        experiment, session, _ = hparams(dict(settings), dict.fromkeys(metrics))
        for summary in (experiment, session):
            self.writer._get_file_writer().add_summary(summary)
        if config:
            self.writer.add_text("config", f"{fence_of(config)}yaml\n{config}\n{fence_of(config)}")

    def show_layout(self, cards: Cards) -> None:
        self.writer.add_custom_scalars(  # it matches the beginnings of names
            {
                section: {title: ["Multiline", [f"{curve}$" for curve in curves]] for title, curves in found.items()}
                for section, found in cards.items()
            }
        )
