"""Pictures and sounds of the reconstruction, and the embedding to walk through, in TensorBoard."""

from __future__ import annotations

from typing import Any, cast

import matplotlib
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.nn import functional as F
from torch.utils.tensorboard import SummaryWriter
from torchvision.utils import make_grid

from deepavfusion.transforms.audio import SAMPLE_RATE
from deepavfusion.transforms.image import Normalise
from deepavfusion.types import Batch

QUIET, LOUD = -6.0, 2.0  # log10 power shown as the darkest and the brightest colour


def step_of(trainer: Trainer) -> int:
    """The step that was done last, under which Lightning logs, too: a run that goes on drops what comes after it."""
    return max(trainer.global_step - 1, 0)


def writer_of(trainer: Trainer) -> SummaryWriter | None:
    """The TensorBoard writer, on the process that has one."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
            return logger.experiment
    return None


def is_due(trainer: Trainer, every_n_epochs: int) -> bool:
    """Before training, after the last epoch, and after every so many epochs; within a validation."""
    passed = trainer.current_epoch + 1
    return trainer.state.fn == "validate" or passed % every_n_epochs == 0 or passed == trainer.max_epochs


def first_loader(loaders: Any) -> Any:
    """Lightning hands over a loader, or a list of them. Its dataset is a `data.clips.ClipDataset`."""
    return loaders[0] if isinstance(loaders, list) else loaders


def playable(waveform: Tensor) -> Tensor:
    """[T] -> [1, T] on the CPU, no louder than full scale"""
    waveform = waveform.detach().float().cpu()
    return (waveform / waveform.abs().max().clamp(min=1.0)).unsqueeze(0)


def spectrogram_picture(spectrogram: Tensor) -> Tensor:
    """log10 power mel spectrogram [B, 1, M, F] -> RGB [B, 3, M, F] in 0…1, low bands at the bottom."""
    level = ((spectrogram[:, 0].float() - QUIET) / (LOUD - QUIET)).clamp(0, 1).flip(1)
    colours = matplotlib.colormaps["magma"](level.cpu().numpy())[..., :3]
    return torch.from_numpy(colours).permute(0, 3, 1, 2).float()


class ReconstructionPictures(Callback):
    """For the same test clips each time: original | masked | reconstructed, of picture and spectrogram.

    Their sound is written once. Drawn by validations that `is_due` names.

    Args:
        num_clips: clips shown, from the first validation batch.
        every_n_epochs: epochs between two drawings.
    """

    def __init__(self, num_clips: int = 6, every_n_epochs: int = 1) -> None:
        self.num_clips, self.every_n_epochs = num_clips, every_n_epochs
        self.clips: Batch | None = None
        self.normalise = Normalise()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        writer = writer_of(trainer)
        if writer is None or self.clips is not None or dataloader_idx or not len(batch):
            return
        self.clips = batch.first(self.num_clips)
        for clip_id, waveform in zip(self.clips.id, self.clips.waveform, strict=True):
            writer.add_audio(f"sound/{clip_id}", waveform.unsqueeze(0), step_of(trainer), SAMPLE_RATE)

    @torch.no_grad()
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        writer = writer_of(trainer)
        if writer is None or self.clips is None or not is_due(trainer, self.every_n_epochs):
            return
        drawn = cast(Any, pl_module).draw(self.clips)
        assert self.clips.spectrogram is not None
        unnormalise = self.normalise.to(self.clips.image.device).reverse
        columns = {
            "image": [unnormalise(x) for x in (self.clips.image, *drawn["image"].values())],
            "audio": [spectrogram_picture(x) for x in (self.clips.spectrogram, *drawn["audio"].values())],
        }
        for stream, pictures in columns.items():
            rows = torch.stack(pictures, dim=1).flatten(0, 1).cpu()  # original, masked, reconstructed of clip 0, 1, …
            writer.add_image(f"reconstruction/{stream}", make_grid(rows, nrow=3), step_of(trainer))


class EmbeddingProjector(Callback):
    """The fusion embedding of the test clips for TensorBoard's projector, with labels and thumbnails.

    Args:
        max_clips: the first so many clips of loader 0.
        every_n_epochs: epochs between two writings.
    """

    def __init__(self, max_clips: int = 1000, every_n_epochs: int = 1) -> None:
        self.max_clips, self.every_n_epochs = max_clips, every_n_epochs
        self.normalise = Normalise()
        self.clear()

    def clear(self) -> None:
        self.embeddings: list[Tensor] = []
        self.labels: list[int] = []
        self.thumbnails: list[Tensor] = []

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.clear()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if not trainer.is_global_zero or dataloader_idx or len(self.labels) >= self.max_clips:
            return
        self.embeddings.append(outputs["embeddings"]["fusion"].float().cpu())
        self.labels += batch.label.tolist()
        pictures = self.normalise.to(batch.image.device).reverse(batch.image)
        self.thumbnails.append(F.interpolate(pictures, size=32, mode="area").cpu())

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        writer = writer_of(trainer)
        if writer is None or len(self.labels) < 2 or not is_due(trainer, self.every_n_epochs):
            return
        classes = getattr(getattr(trainer, "datamodule", None), "classes", [])
        names = [classes[label] if 0 <= label < len(classes) else str(label) for label in self.labels]
        writer.add_embedding(
            torch.cat(self.embeddings)[: self.max_clips],
            metadata=names[: self.max_clips],
            label_img=torch.cat(self.thumbnails)[: self.max_clips],
            global_step=step_of(trainer),
            tag="fusion",
        )
