"""What every task shares: the recipe, seeded steps, AdamW with its schedule, and self-describing checkpoints."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, ClassVar

import numpy as np
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from deepavfusion.metrics.row_mean import RowMean
from deepavfusion.optim.resuming import Position, Progress, end_epoch_with, recipe_of, set_recipe
from deepavfusion.optim.schedules import warmup_cosine
from deepavfusion.tasks.compiler import check_compiler
from deepavfusion.types import Batch
from deepavfusion.utils.errors import UserError
from deepavfusion.utils.shared_rows import Counts

ParamGroup = dict[str, Any]


class Task(LightningModule):
    """A LightningModule around `net`, a network with an `encoder`, and the recipe it is trained with.

    All arguments, those of subclasses too, are saved as hyperparameters. `record` goes into every checkpoint: the
    config of the model, so that a checkpoint can be opened on its own.

    Args:
        batch_size: rows per step and process: clips, mixtures or frames.
        blr: base learning rate, for a batch of 256; see `learning_rate`.
        lr: learning rate; overrides `blr`.
        weight_decay: not applied to one-dimensional parameters.
        betas: of AdamW.
        warmup_epochs: of linear warm-up, followed by a cosine to 0 at the end of the run; both per step.
        pretrained: start weights, "auto" or None; they are loaded by `runs.start_weights`.
        seed: of masks, mixup and dropped paths; each step derives its own.
    """

    trains: ClassVar[bool] = True  # False: train.py only tests, on start weights
    net: Any
    counts: Counts  # rows, items and drawn items of the training step
    origin: Any = None  # a `weights.origin.Origin`, once opened from a checkpoint

    def __init__(
        self,
        batch_size: int = 16,
        blr: float = 3e-4,
        lr: float | None = None,
        weight_decay: float = 0.05,
        betas: tuple[float, float] = (0.9, 0.999),
        warmup_epochs: float = 20,
        pretrained: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["net"])
        self.record: dict[str, Any] = {}
        self.train_means: dict[str, RowMean] = {}  # of this epoch; not a ModuleDict, to stay out of the summary
        self.progress: Progress | None = None  # once there is a schedule
        self._resumed: Mapping[str, Any] | None = None  # of the checkpoint that training continues from, until it does
        self._recipe: list[ParamGroup] = []  # what the config gives the optimizer
        self._compiled_rows: int | None = None  # the batch size that is compiled for; 0: not known yet

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["record"] = self.record
        if self.progress is not None:
            checkpoint["progress"] = asdict(self.progress)
        mine = {name: [float(mean.total), float(mean.rows)] for name, mean in self.train_means.items()}
        checkpoint["train_means"], checkpoint["train_means_of"] = [mine], "rows"
        if self.trainer.world_size > 1:
            checkpoint["train_means"] = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(checkpoint["train_means"], mine)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING:
            self._resumed = {key: checkpoint[key] for key in ("global_step", "loops", "progress") if key in checkpoint}
        processes = checkpoint.get("train_means", [])
        # Earlier commits counted steps, not rows.
        rows = 1 if checkpoint.get("train_means_of") == "rows" else self.hparams["batch_size"]
        if self._trainer is not None and len(processes) == self.trainer.world_size:  # others go on between epochs only
            for name, (total, weight) in processes[self.trainer.global_rank].items():
                mean = self._train_mean(name)
                mean.total.fill_(total * rows)
                mean.rows.fill_(weight * rows)

    def on_train_start(self) -> None:
        if self._resumed is not None:  # Lightning has restored the optimizer with its former recipe
            (config,) = self.trainer.lr_scheduler_configs
            assert isinstance(config.scheduler, LambdaLR)
            set_recipe(config.scheduler, self._recipe)
            self._resumed = None

    def on_train_epoch_start(self) -> None:
        for mean in self.train_means.values():
            mean.reset()  # not called when an epoch is resumed

    def log_train(self, values: dict[str, Tensor], rows: int) -> None:
        """Log the values of a step as `<name>_step` and their mean over the epoch, kept across a resume, as `<name>`.

        Only the epoch's mean is reduced over processes; the curves per step are those of the first one. A step without
        rows has no values.

        Args:
            values: name -> scalar.
            rows: how many rows each value is a mean of.
        """
        for name, value in values.items():
            mean = self._train_mean(name)
            mean.update(value, rows)
            if rows:
                self.log(f"{name}_step", value.detach(), batch_size=rows)
            # Also without rows: all processes have to exchange the same means at the end of the epoch.
            self.log(name, mean, on_step=False, on_epoch=True, metric_attribute=f"train_means.{name}")

    def _train_mean(self, name: str) -> RowMean:
        if name not in self.train_means:
            self.train_means[name] = RowMean()
        mean = self.train_means[name]
        return mean if mean.device == self.device else mean.to(self.device)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed each step from seed, epoch and step, so that a resumed run draws the same numbers.

        All processes are seeded alike: what is drawn for each row goes through `draw_rows`.
        """
        step = (self.hparams["seed"] * 100_003 + self.current_epoch) * 1_000_003 + batch_idx
        seed = step * 4096 % 2**63
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002  # libraries draw from it
        self.counts = Counts((len(batch), batch.items, batch.drawn), batch.image.device)
        if self._compiled_rows is not None:
            self._compiled_rows = self._compiled_rows or len(batch)
            torch.compiler.set_stance("default" if len(batch) == self._compiled_rows else "force_eager")

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Gradients of the mean over the rows of all processes, of which one may have fewer: its clips failed."""
        super().backward(self.counts.weighted(loss), *args, **kwargs)

    def compile_training(self, backend: str = "inductor") -> None:
        """Compile the network for training steps, in place: parameter names do not change.

        It is compiled once, for full batches; smaller batches and evaluation run eagerly.

        Raises:
            UserError: torch has no such backend, or inductor finds no C++ compiler.
        """
        backends = torch.compiler.list_backends(exclude_tags=None)
        if backend not in backends:
            raise UserError(
                f"compile={backend} is not a backend of torch.compile: expected true, or {', '.join(backends)}."
            )
        if backend == "inductor":
            check_compiler("compile=false")
        self.net.compile(dynamic=False, backend=backend)
        self._compiled_rows = 0

    def on_validation_start(self) -> None:
        if self._compiled_rows is not None:
            torch.compiler.set_stance("force_eager")

    on_test_start = on_validation_start

    def on_fit_end(self) -> None:
        if self._compiled_rows is not None:
            torch.compiler.set_stance("default")  # the stance is global to the process

    def adamw(
        self, groups: list[ParamGroup], extra: Callable[[ParamGroup, float, int], float] | None = None
    ) -> OptimizerLRSchedulerConfig:
        """`scheduled` AdamW; on GPUs the fused one, a single kernel for all parameters."""
        lr, betas = learning_rate(self.hparams, self.trainer)[0], tuple(self.hparams["betas"])
        return self.scheduled(torch.optim.AdamW(groups, lr, betas, fused=self.device.type == "cuda"), extra)

    def scheduled(
        self, optimizer: Optimizer, extra: Callable[[ParamGroup, float, int], float] | None = None
    ) -> OptimizerLRSchedulerConfig:
        """Linear warm-up to the learning rate of the run, then a cosine to 0; both per step.

        Args:
            optimizer: with the learning rate of the run; `lr_scale` of a group multiplies it.
            extra: a further factor, given group, epoch (with fraction) and number of epochs.
        """
        epochs = self.trainer.max_epochs
        if not epochs or epochs < 0:
            raise UserError(f"trainer.max_epochs is {epochs}: the learning-rate schedule needs the number of epochs.")
        progress = self.progress = self._progress(epochs)
        warmup = self.hparams["warmup_epochs"]

        def factor(group: ParamGroup) -> Callable[[int], float]:
            def at(step: int) -> float:
                epoch = progress.at(step)
                scale = group.get("lr_scale", 1.0) * (extra(group, epoch, epochs) if extra else 1.0)
                return scale * warmup_cosine(epoch, epochs, warmup)

            return at

        schedule = LambdaLR(optimizer, [factor(group) for group in optimizer.param_groups])
        self._recipe = recipe_of(schedule)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step", "name": "lr"}}

    def _progress(self, epochs: int) -> Progress:
        """How the schedule proceeds with the steps; after a resume with other batches, over the steps that are left."""
        trainer, resumed = self.trainer, self._resumed
        steps = trainer.estimated_stepping_batches
        self.record["steps"] = steps
        progress = Progress(steps_per_epoch=steps / epochs)
        if resumed is None:
            return progress
        if "progress" in resumed:
            progress = Progress(**resumed["progress"])
        position, batches = Position.of(resumed), int(trainer.num_training_batches)
        last = position.last_step(math.ceil(batches / trainer.accumulate_grad_batches), epochs, trainer.max_steps)
        self.record["steps"] = max(last, position.step)
        if not position.batches:
            end_epoch_with(resumed, batches)
        return progress.continued(position.step, last, epochs)

    @classmethod
    def check_labels(cls, datamodule: Any) -> None:
        """Raise a `UserError` unless the data has the labels that such a task needs; called before it is built."""

    def check_data(self, datamodule: Any) -> None:
        """Raise a `UserError` unless data and network have the same classes."""

    def check_shapes(self, batch: Batch) -> None:
        """Raise a `UserError` unless the inputs have the sizes of the model."""
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


def learning_rate(hparams: Mapping[str, Any], trainer: Trainer) -> tuple[float, str]:
    """The peak learning rate of a run, and the line that explains it.

    Args:
        hparams: of a task; `lr` is used as it is, otherwise `blr` is scaled by the effective batch.
        trainer: says how many batches make up one optimizer step.
    """
    if hparams["lr"] is not None:
        return hparams["lr"], f"lr {_scientific(hparams['lr'])} (model.lr)"
    batch = effective_batch(hparams, trainer)
    lr = hparams["blr"] * batch / 256
    return lr, f"lr {_scientific(lr)} = blr {_scientific(hparams['blr'])} × {batch} / 256"


def effective_batch(hparams: Mapping[str, Any], trainer: Trainer) -> int:
    """Rows of an optimizer step, over all processes."""
    return hparams["batch_size"] * trainer.world_size * trainer.accumulate_grad_batches


def _scientific(value: float) -> str:
    """3.0e-4, 1.25e-3"""
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa.removesuffix('0')}e{int(exponent)}"
