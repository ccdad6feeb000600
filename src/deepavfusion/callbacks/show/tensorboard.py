"""The TensorBoard logger, and what the callbacks that use it share: the step, the conversion of images and audio."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
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

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        unlike = unlike_rates(metrics)
        shown = {name: value for name, value in metrics.items() if not name.startswith("lr/") or name in unlike}
        main = {f"Overview/{name.replace('/', '_')}": metrics[name] for name in self.overview if name in metrics}
        super().log_metrics({**shown, **main}, step)


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
