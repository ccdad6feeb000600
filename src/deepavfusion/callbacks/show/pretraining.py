"""What a pre-training run shows: nearest neighbours, reconstructions, attention, and the embedding."""

from __future__ import annotations

import zlib
from typing import Any, cast

import torch
from lightning import LightningModule, Trainer
from torch import Tensor
from torch.nn import functional as F

from deepavfusion.callbacks.evaluation import EvaluationCallback, first_loader
from deepavfusion.callbacks.show.clips import classes_of, shown_clips, unnormalised
from deepavfusion.callbacks.show.pretraining_figures import class_names, draw_attention, draw_reconstruction
from deepavfusion.loggers.board import board_of, step_of
from deepavfusion.metrics.neighbours import NeighbourAccuracy
from deepavfusion.transforms.audio import SAMPLE_RATE
from deepavfusion.types import STREAMS, Batch
from deepavfusion.utils.console import say_once
from deepavfusion.utils.errors import UserError
from deepavfusion.utils.names import printable


class ReconstructionImages(EvaluationCallback):
    """The same clips in each validation, as images and spectrograms: original, masked, reconstructed; and what the
    fusion tokens of the last fusion layer attend to in them. Their audio once.

    Shown: `reconstruction/{image,audio}`, `attention/fusion`.

    Args:
        num_clips: how many to show, from the first validation batch.
    """

    def __init__(self, num_clips: int = 6) -> None:
        self.num_clips, self.reported = num_clips, False
        self.clips: Batch | None = None

    def on_batch(self, trainer: Trainer, task: LightningModule, outputs: Any, batch: Batch, loader: int) -> None:
        board = board_of(trainer)
        if board is None or self.clips is not None or loader or not len(batch):
            return
        self.clips = batch.first(self.num_clips)
        for clip_id, waveform in zip(self.clips.id, self.clips.waveform, strict=True):
            board.audio(f"audio/{printable(clip_id)}", waveform, step_of(trainer), SAMPLE_RATE)

    @torch.no_grad()
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        board = board_of(trainer)
        if board is None or self.clips is None:
            return
        clips, step, module = self.clips, step_of(trainer), cast(Any, pl_module)
        names, what = class_names(clips, classes_of(trainer)), shown_clips(pl_module)
        for stream, drawn in module.draw(clips).items():
            figure = draw_reconstruction(stream, clips, names, drawn["hidden"], drawn["reconstructed"], what)
            board.figure(f"reconstruction/{stream}", figure, step)
        encoder = module.net.encoder
        try:
            maps = encoder.attention_maps(clips.image, clips.spectrogram)
        except UserError as reason:
            if not self.reported:
                say_once(f"attention/fusion is not drawn: {reason}", "yellow")
            self.reported = True
            return
        grids = {stream: getattr(encoder, stream).grid for stream in ("image", "audio")}
        board.figure("attention/fusion", draw_attention(clips, names, grids, maps, what), step)


class EmbeddingProjector(EvaluationCallback):
    """The fusion embedding of the test clips for a projector, with labels and thumbnails.

    Args:
        max_clips: at most so many, the first of loader 0.
    """

    def __init__(self, max_clips: int = 1000) -> None:
        self.max_clips = max_clips

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.embeddings: list[Tensor] = []
        self.labels: list[int] = []
        self.thumbnails: list[Tensor] = []

    def on_batch(self, trainer: Trainer, task: LightningModule, outputs: Any, batch: Batch, loader: int) -> None:
        if not trainer.is_global_zero or loader or len(self.labels) >= self.max_clips:
            return
        self.embeddings.append(outputs["embeddings"]["fusion"].float().cpu())
        self.labels += batch.label.tolist()
        self.thumbnails.append(F.interpolate(unnormalised(batch.image), size=32, mode="area"))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        board = board_of(trainer)
        if board is None or len(self.labels) < 2:
            return
        classes = classes_of(trainer)
        names = [classes[label] if 0 <= label < len(classes) else str(label) for label in self.labels]
        board.embedding(
            "fusion",
            torch.cat(self.embeddings)[: self.max_clips],
            names[: self.max_clips],
            torch.cat(self.thumbnails)[: self.max_clips],
            step_of(trainer),
        )


class KNNProbe(EvaluationCallback):
    """Logs `knn/<stream>` (leave-one-out 1-NN among the test clips) and `knn_train/<stream>` (train → test k-NN).

    Streams are image, audio, fusion (means over tokens) and combined (sum of the three cosine similarities).
    `knn` leaves out all clips of the query's own video.
    It reads {"embeddings": {stream: [B, D]}} from `validation_step`: loader 0 has the test clips, loader 1 the
    gallery of train clips. Sets too small to compare log nothing.

    Args:
        k: neighbours that vote in `knn_train`.
    """

    def __init__(self, k: int = 5) -> None:
        self.metrics = {
            "knn": NeighbourAccuracy(STREAMS, k=1, leave_one_out=True),
            "knn_train": NeighbourAccuracy(STREAMS, k=k, leave_one_out=False),
        }

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for metric in self.metrics.values():
            metric.to(pl_module.device).reset()

    def on_batch(self, trainer: Trainer, task: LightningModule, outputs: Any, batch: Batch, loader: int) -> None:
        if loader == 0:
            self.metrics["knn"].update(outputs["embeddings"], batch.label, groups=videos_of(trainer, batch))
        self.metrics["knn_train"].update(outputs["embeddings"], batch.label, gallery=loader == 1)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        found = {
            f"{prefix}/{name}": value
            for prefix, metric in self.metrics.items()
            if metric.update_called  # False for an empty split
            for name, value in metric.compute().items()
        }
        pl_module.log_dict(found, sync_dist=True)  # equal on all processes
        if trainer.state.fn == "validate" and "knn/fusion" not in found:
            why = "fewer than two test clips" if classes_of(trainer) else "the clips have no classes"
            say_once(f"knn: {why}, so there are no nearest neighbours to compare", "yellow")


def videos_of(trainer: Trainer, batch: Batch) -> Tensor:
    """Numbers of the videos that the rows of a batch are cut from, int64 [B]."""
    clips = first_loader(trainer).dataset.clips
    numbers = [zlib.crc32(clips[item].video_id.encode(errors="backslashreplace")) for item in batch.item.tolist()]
    return torch.tensor(numbers, dtype=torch.int64, device=batch.label.device)
