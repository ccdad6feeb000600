"""What every task shares: seeded steps, AdamW with its schedule, and checkpoints that say what they are."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MeanMetric

from deepavfusion.models.deepavfusion import DeepAVFusion
from deepavfusion.optim.param_groups import layer_decay_groups
from deepavfusion.optim.schedules import warmup_cosine
from deepavfusion.types import Batch
from deepavfusion.utils.compiler import check_compiler
from deepavfusion.utils.console import say_once
from deepavfusion.utils.errors import UserError
from deepavfusion.weights.weights import load_encoder

Group = dict[str, Any]


class Task(LightningModule):
    """A LightningModule around a network with an `encoder`.

    A subclass saves its hyperparameters; used here are `batch_size`, `blr`, `betas`, `warmup_epochs` and `seed`.
    `record` goes into every checkpoint: the config of the model, so that a checkpoint can be opened by itself.
    """

    net: Any

    def __init__(self) -> None:
        super().__init__()
        self.record: dict[str, Any] = {}
        self.train_means: dict[str, MeanMetric] = {}  # of the epoch so far; no part of the network, nor of its summary
        self._compiled_rows: int | None = None  # of the batches that the compiled network is for; 0: not yet known

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["record"] = self.record
        mine = {name: [float(mean.mean_value), float(mean.weight)] for name, mean in self.train_means.items()}
        checkpoint["train_means"] = [mine]
        if self.trainer.world_size > 1:
            checkpoint["train_means"] = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(checkpoint["train_means"], mine)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        processes = checkpoint.get("train_means", [])
        if self._trainer is not None and len(processes) == self.trainer.world_size:  # else the epoch begins anew
            for name, (total, weight) in processes[self.trainer.global_rank].items():
                mean = self._train_mean(name)
                mean.update(total, 1.0)
                mean.weight.fill_(weight)

    def on_train_epoch_start(self) -> None:
        for mean in self.train_means.values():
            mean.reset()  # an epoch that is gone on with does not come here

    def log_train(self, values: dict[str, Tensor], rows: int) -> None:
        """Log a step's values as `<name>_step`, and as `<name>` their mean over an epoch, which outlives a resume.

        The curve by the step is this process's own; only the epoch's mean is worth waiting for the others.

        Args:
            values: name -> scalar.
            rows: that they are means of.
        """
        for name, value in values.items():
            mean = self._train_mean(name)
            mean.update(value.detach(), torch.full_like(value, rows))
            self.log(f"{name}_step", value.detach(), batch_size=rows)
            self.log(name, mean, on_step=False, on_epoch=True, metric_attribute=f"train_means.{name}")

    def _train_mean(self, name: str) -> MeanMetric:
        if name not in self.train_means:
            self.train_means[name] = MeanMetric(nan_strategy="disable")
        mean = self.train_means[name]
        return mean if mean.device == self.device else mean.to(self.device)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """What is random in a step follows from seed, epoch, step and process: it survives a resume unchanged."""
        step = (self.hparams["seed"] * 100_003 + self.current_epoch) * 1_000_003 + batch_idx
        seed = (step * 4096 + self.global_rank) % 2**63
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002  # what others draw from it
        if self._compiled_rows is not None:
            self._compiled_rows = self._compiled_rows or len(batch)
            torch.compiler.set_stance("default" if len(batch) == self._compiled_rows else "force_eager")

    def compile_training(self, backend: str = "inductor") -> None:
        """Compile the network for training steps, in place: names of parameters stay as they are.

        It is compiled once, for whole batches: a batch that lacks clips, and evaluation, run it as it stands.

        Raises:
            UserError: torch has no such backend, or its own finds no C++ compiler.
        """
        backends = torch.compiler.list_backends(exclude_tags=None)
        if backend not in backends:
            raise UserError(
                f"compile={backend} is no backend of torch.compile: expected true, or {', '.join(backends)}."
            )
        if backend == "inductor":
            check_compiler("compile=false")
        self.net.compile(dynamic=False, backend=backend)
        self._compiled_rows = 0

    def on_validation_start(self) -> None:
        if self._compiled_rows is not None:
            torch.compiler.set_stance("force_eager")

    def on_test_start(self) -> None:
        self.on_validation_start()

    def on_fit_end(self) -> None:
        if self._compiled_rows is not None:
            torch.compiler.set_stance("default")  # it holds for the whole process

    def adamw(
        self, groups: list[Group], extra: Callable[[Group, float, int], float] | None = None
    ) -> OptimizerLRSchedulerConfig:
        """`scheduled` AdamW, on GPUs as one kernel for all parameters."""
        betas, fused = tuple(self.hparams["betas"]), self.device.type == "cuda"
        return self.scheduled(lambda lr: torch.optim.AdamW(groups, lr=lr, betas=betas, fused=fused), extra)

    def scheduled(
        self,
        optimizer_of: Callable[[float], Optimizer],
        extra: Callable[[Group, float, int], float] | None = None,
    ) -> OptimizerLRSchedulerConfig:
        """The learning rate for the effective batch: linear warm-up, then a cosine to 0, by the step.

        Args:
            optimizer_of: makes the optimizer of a learning rate; `lr_scale` of a group multiplies its rate.
            extra: a further factor, as a function of group, epoch (fractions included) and epochs of the run.
        """
        effective = self.hparams["batch_size"] * self.trainer.world_size * self.trainer.accumulate_grad_batches
        optimizer = optimizer_of(self.hparams["blr"] * effective / 256)
        epochs = self.trainer.max_epochs
        if not epochs or epochs < 0:
            raise UserError(f"trainer.max_epochs is {epochs}: the learning-rate schedule needs the number of epochs.")
        steps_per_epoch = self.trainer.estimated_stepping_batches / epochs
        warmup = self.hparams["warmup_epochs"]

        def factor(group: Group) -> Callable[[int], float]:
            def at(step: int) -> float:
                epoch = step / steps_per_epoch
                scale = group.get("lr_scale", 1.0) * (extra(group, epoch, epochs) if extra else 1.0)
                return scale * warmup_cosine(epoch, epochs, warmup)

            return at

        schedule = LambdaLR(optimizer, [factor(group) for group in optimizer.param_groups])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step", "name": "lr"}}

    def check_data(self, datamodule: Any) -> None:
        """Raise a `UserError` unless the classes of the data are those of the network."""

    def check_shapes(self, batch: Batch) -> None:
        """The sizes of the data are those of the model.

        Raises:
            UserError: with the keys that set them.
        """
        encoder = self.net.encoder
        expected = (encoder.image.patch_embed.input_size, encoder.audio.patch_embed.input_size)
        assert batch.spectrogram is not None
        found = (tuple(batch.image.shape[2:]), tuple(batch.spectrogram.shape[2:]))
        if found != expected:
            raise UserError(
                f"the data gives frames of {found[0]} pixels and spectrograms of {found[1]}, the model expects "
                f"{expected[0]} and {expected[1]}: set data.image_size and data.audio_seconds, from which "
                f"model.net takes its sizes."
            )


class FineTune(Task):
    """A task that starts from a pre-trained encoder, with a learning rate that decays from layer to layer.

    Used besides: `weight_decay` and `layer_decay`.
    """

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        weight_decay, layer_decay = self.hparams["weight_decay"], self.hparams["layer_decay"]
        return self.adamw(layer_decay_groups(self.net, weight_decay, layer_decay, self.net.encoder.depth))


def freeze_unread(encoder: DeepAVFusion) -> None:
    """For heads that read the layers of image and sound: what only the final tokens depend on is not trained.

    These are the final norms and the last fusion block. Processes that train together would wait for their gradients.
    """
    unread: list[nn.Module] = [encoder.image.norm, encoder.audio.norm, encoder.fusion_norm]
    unread += list(encoder.fusion_blocks.values())[-1:]
    for module in unread:
        module.requires_grad_(False)
    if not encoder.fusion_blocks:
        encoder.fusion_tokens.requires_grad_(False)


def load_pretrained(encoder: DeepAVFusion, pretrained: str | None, latest: str | None) -> None:
    """Load the encoder of a checkpoint, and say in one line what became of it.

    Args:
        encoder: to fill.
        pretrained: a file; "auto": `latest` if it is there and fits; None: start from scratch; "": the weights of a
            whole run follow, and nothing is said.
        latest: checkpoint of the newest pre-training.

    Raises:
        UserError: a file that was asked for cannot be read or does not fit.
    """
    if pretrained == "":
        return
    if pretrained != "auto":
        say_once(f"encoder from {load_encoder(encoder, pretrained)}" if pretrained else "encoder from scratch")
        return
    if latest is None or not Path(latest).is_file():
        say_once("encoder from scratch: nothing was pre-trained here yet (model.pretrained=<checkpoint> gives one)")
        return
    try:
        say_once(f"encoder from {load_encoder(encoder, latest)}")
    except UserError as error:
        say_once(f"encoder from scratch: {error}", "yellow")
