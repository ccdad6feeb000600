"""Source separation: from a mixture of several sources, extract the one that is visible."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from deepavfusion.metrics.separation import SeparationMetrics
from deepavfusion.models.deepavfusion import DeepAVFusion
from deepavfusion.models.separator import Init, MaskKind, Separator, mask_loss, target_mask
from deepavfusion.tasks.finetune import FineTune, freeze_unread
from deepavfusion.transforms.audio import LogMel, MelMask
from deepavfusion.types import Batch, SeparationOutput
from deepavfusion.utils.launch.cores import own_cores


class Separate(FineTune):
    """Mix the audio of several clips and predict the mask of the one whose frame is given (Mo & Morgado, section 4.3).

    Test evaluates every mixture with each of its frames; also with the frame of another of its sources (`wrong_frame`,
    which shows how much the frame matters), and with the ideal ratio and binary masks on the same mel grid.

    Args:
        net: the backbone.
        head_dim: channels at the bottom of the head's U-Net; None: as wide as the encoder.
        mask: the target, see `models.separator.target_mask`.
        train_images: "all": each image of a mixture is an example; "first": only that of the first source, as
            published.
        head_init: start values of the head, see `SeparationHead`.
        weighted_loss: weight the loss by the power of the mixture.
        spread: how a mel mask is applied to the waveform in evaluation, see `transforms.audio.MelMask`.
        metric_workers: threads that compute the metrics; None: one per core of this process.
        recipe: see `FineTune`.
    """

    def __init__(
        self,
        net: DeepAVFusion,
        head_dim: int | None = None,
        mask: MaskKind = "ratio",
        train_images: Literal["all", "first"] = "all",
        head_init: Init = "torch",
        weighted_loss: bool = True,
        spread: Literal["transposed", "normalised"] = "transposed",
        metric_workers: int | None = None,
        **recipe: Any,
    ) -> None:
        super().__init__(**recipe)
        freeze_unread(net)
        self.net = Separator(net, head_dim, head_init)
        self.log_mel = LogMel()
        self.mel_mask = MelMask(spread)
        self.val_metrics = SeparationMetrics(("model",), metric_workers)
        self.test_metrics = SeparationMetrics(("model", "wrong_frame", "ideal", "ideal_binary"), metric_workers)

    def setup(self, stage: str) -> None:
        if self.hparams["metric_workers"] is None:  # the processes of this machine share its cores
            for metrics in (self.val_metrics, self.test_metrics):
                metrics.workers = own_cores(self.trainer.num_devices).own

    def mix(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The mixtures of a batch: waveforms [B / n, T] and log10 power mel [B / n, 1, M, F]."""
        mixture = batch.waveform.unflatten(0, (-1, batch.group)).sum(dim=1)
        return mixture, self.log_mel(mixture)

    def _target(self, batch: Batch, mixture_mel: Tensor, kind: MaskKind) -> Tensor:
        assert batch.spectrogram is not None
        return target_mask(_power(batch.spectrogram), mixture_mel.repeat_interleave(batch.group, dim=0), kind)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.check_shapes(batch)
        _, log_mel = self.mix(batch)
        if self.hparams["train_images"] == "first":
            batch = batch.first_of_each()
        loss, _ = self._loss(batch, self.net(batch.image, log_mel), _power(log_mel))
        self.log_train({"train/loss": loss}, batch.items)
        return loss

    def _loss(self, batch: Batch, logits: Tensor, mixture_mel: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of mask logits, and the mask they should give."""
        target = self._target(batch, mixture_mel, self.hparams["mask"])
        weight = mixture_mel.repeat_interleave(batch.group, dim=0) if self.hparams["weighted_loss"] else None
        return mask_loss(logits, target, weight), target

    def evaluate(self, batch: Batch, part: str, metrics: SeparationMetrics) -> SeparationOutput:
        mixture, log_mel = self.mix(batch)
        mixture_mel, every_mixture = _power(log_mel), mixture.repeat_interleave(batch.group, dim=0)
        logits = self.net(batch.image, log_mel)
        loss, target = self._loss(batch, logits, mixture_mel)
        getattr(self, f"{part}_loss").update(loss, batch.items)

        def by_mixture(rows: Tensor) -> Tensor:
            return rows.unflatten(0, (-1, batch.group))

        def estimated(mask: Tensor) -> Tensor:
            return self.mel_mask(mask, every_mixture)

        estimate = estimated(logits.sigmoid())
        estimates = {"model": by_mixture(estimate)}
        if part == "test":
            # With the frame of another source, the model's estimate is the one it makes for that source.
            estimates["wrong_frame"] = estimates["model"].roll(1, dims=1)
            estimates |= {name: by_mixture(estimated(mask)) for name, mask in self._ideal_masks(batch).items()}
        items, labels = by_mixture(batch.item)[:, 0], by_mixture(batch.label)
        metrics.update(by_mixture(batch.waveform), estimates, mixture, items, labels)
        return SeparationOutput(mixture, estimate, mixture_mel, logits.sigmoid(), target)

    def _ideal_masks(self, batch: Batch) -> dict[str, Tensor]:
        """Upper bounds on the mel grid: each source's share of the total power, and whether it exceeds the others."""
        assert batch.spectrogram is not None
        sources = _power(batch.spectrogram)
        together = sources.unflatten(0, (-1, batch.group)).sum(dim=1).repeat_interleave(batch.group, dim=0)
        return {"ideal": sources / together, "ideal_binary": target_mask(sources, together, "dominant")}


def _power(log_mel: Tensor) -> Tensor:
    return torch.pow(10.0, log_mel)
