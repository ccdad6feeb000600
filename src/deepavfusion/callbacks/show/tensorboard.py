"""The TensorBoard logger, and what the callbacks that use it share: the step, the conversion of images and audio."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import torch
from lightning import LightningModule, Trainer
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from deepavfusion.transforms.image import Normalise

QUIET, LOUD = -6.0, 2.0  # log10 power of the darkest and the brightest colour


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

    def save(self) -> None:
        if self._experiment is not None and self._experiment.all_writers is not None:
            super().save()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        if status == "success" and self._kwargs.get("purge_step") is not None:
            self.experiment._get_file_writer()  # drops the points of steps that were lost, also where none followed
        super().finalize(status)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        unlike = unlike_rates(metrics)
        shown = {name: value for name, value in metrics.items() if not name.startswith("lr/") or name in unlike}
        main = {f"Overview/{name.replace('/', '_')}": metrics[name] for name in self.overview if name in metrics}
        super().log_metrics({**shown, **main}, step)


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


def unlike_rates(names: Iterable[str]) -> set[str]:
    """The learning rates worth a curve: not those without weight decay, which equal those with it, and of the layers,
    whose rates are multiples of each other, only the lowest and the highest."""
    rates = {name for name in names if name.startswith("lr/")}
    rates -= {f"{name}_no_decay" for name in rates}
    layers = sorted(name for name in rates if name.startswith("lr/layer_"))
    return rates - set(layers[1:-1])


def step_of(trainer: Trainer) -> int:
    """The last completed step, which Lightning logs under as well: a resumed run overwrites what comes after it."""
    return max(trainer.global_step - 1, 0)


def writer_of(trainer: Trainer) -> SummaryWriter | None:
    """The TensorBoard writer, on the process that has one."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
            return logger.experiment
    return None


def classes_of(trainer: Trainer) -> list[str]:
    """Class names of the data module, if it has any."""
    datamodule: Any = getattr(trainer, "datamodule", None)
    return getattr(datamodule, "classes", [])


def shown_clips(pl_module: LightningModule, kind: str = "test clips") -> str:
    """What is in a figure, for its title: test clips; or that they are generated, as a demo's numbers mean little."""
    record: dict[str, Any] = getattr(pl_module, "record", {})
    return f"generated {kind} (demo)" if record.get("data", {}).get("demo") else kind


def playable(waveform: Tensor) -> Tensor:
    """[T] -> [1, T] on the CPU, scaled down to full scale if it is louder."""
    waveform = waveform.detach().float().cpu()
    return (waveform / waveform.abs().max().clamp(min=1.0)).unsqueeze(0)


def unnormalised(image: Tensor) -> Tensor:
    """Input of a network [B, 3, H, W] -> RGB [B, 3, H, W] in 0…1 on the CPU."""
    return Normalise().to(image.device).reverse(image).float().cpu()


def spectrogram_image(spectrogram: Tensor) -> Tensor:
    """log10 power mel spectrogram [B, 1, M, F] -> RGB [B, 3, M, F] in 0…1, low bands at the bottom."""
    level = ((spectrogram[:, 0].float() - QUIET) / (LOUD - QUIET)).clamp(0, 1).flip(1)
    colours = matplotlib.colormaps["magma"](level.cpu().numpy())[..., :3]
    return torch.from_numpy(colours).permute(0, 3, 1, 2).float()
