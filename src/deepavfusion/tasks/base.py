"""What every task shares: the recipe, seeded steps, AdamW with its schedule, and self-describing checkpoints."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MeanMetric, Metric

from deepavfusion.models.deepavfusion import DeepAVFusion
from deepavfusion.optim.param_groups import layer_decay_groups
from deepavfusion.optim.resuming import Position, Progress, end_epoch_with, recipe_of, set_recipe
from deepavfusion.optim.schedules import warmup_cosine
from deepavfusion.types import Batch
from deepavfusion.utils.compiler import check_compiler
from deepavfusion.utils.errors import UserError

ParamGroup = dict[str, Any]
COUNTS = ("clips", "frames", "empty_frames")  # of metrics: equal for all loaders of a test


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
        seed: of masks, mixup and dropped paths; each step and process derives its own.
    """

    net: Any
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
        self.train_means: dict[str, MeanMetric] = {}  # of this epoch; not a ModuleDict, to stay out of the summary
        self.progress: Progress | None = None  # once there is a schedule
        self._resumed: Mapping[str, Any] | None = None  # of the checkpoint that training continues from, until it does
        self._recipe: list[ParamGroup] = []  # what the config gives the optimizer
        self._compiled_rows: int | None = None  # the batch size that is compiled for; 0: not known yet

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["record"] = self.record
        if self.progress is not None:
            checkpoint["progress"] = asdict(self.progress)
        mine = {name: [float(mean.mean_value), float(mean.weight)] for name, mean in self.train_means.items()}
        checkpoint["train_means"] = [mine]
        if self.trainer.world_size > 1:
            checkpoint["train_means"] = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(checkpoint["train_means"], mine)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING:
            self._resumed = {key: checkpoint[key] for key in ("global_step", "loops", "progress") if key in checkpoint}
        processes = checkpoint.get("train_means", [])
        if self._trainer is not None and len(processes) == self.trainer.world_size:  # otherwise the epoch restarts
            for name, (total, weight) in processes[self.trainer.global_rank].items():
                mean = self._train_mean(name)
                mean.update(total, 1.0)
                mean.weight.fill_(weight)

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

        Only the epoch's mean is reduced over processes; the curves per step are those of the first one.

        Args:
            values: name -> scalar.
            rows: how many rows each value is a mean of.
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
        """Seed each step from seed, epoch, step and process, so that a resumed run draws the same numbers."""
        step = (self.hparams["seed"] * 100_003 + self.current_epoch) * 1_000_003 + batch_idx
        seed = (step * 4096 + self.global_rank) % 2**63
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002  # libraries draw from it
        if self._compiled_rows is not None:
            self._compiled_rows = self._compiled_rows or len(batch)
            torch.compiler.set_stance("default" if len(batch) == self._compiled_rows else "force_eager")

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


class FineTune(Task):
    """A task that starts from a pre-trained encoder and has a metric for each data loader.

    It logs `val/…` by `val_metrics`, `test/…` by `test_metrics`, and `test/…_<name>` by the metrics in `more_metrics`.

    Args:
        layer_decay: factor of the learning rate from layer to layer, from the head down.
        recipe: see `Task`.
    """

    second_test = ""  # what a second test loader evaluates, by `<second_test>_metrics`

    def __init__(self, layer_decay: float = 0.75, **recipe: Any) -> None:
        super().__init__(**recipe)

    def evaluate(self, batch: Batch, part: str, metrics: Any) -> Any:
        """Update the metrics with a batch that is not empty; Lightning passes the return value on to the callbacks.

        Args:
            batch: from a loader of the validation or the test.
            part: "val", "test" or `second_test`.
            metrics: `<part>_metrics`.
        """
        raise NotImplementedError

    def _evaluate(self, batch: Batch, part: str) -> Any:
        if not len(batch):
            return None
        self.check_shapes(batch)
        return self.evaluate(batch, part, getattr(self, f"{part}_metrics"))

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Any:
        return self._evaluate(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Any:
        return self._evaluate(batch, self.second_test if dataloader_idx else "test")

    def on_validation_epoch_start(self) -> None:
        for metrics in self.children():
            if isinstance(metrics, Metric):
                metrics.reset()

    on_test_epoch_start = on_validation_epoch_start

    def results(self, metrics: Any) -> dict[str, Tensor]:
        """What is logged of a metric, by name, over all items at once: independent of batches and processes."""
        return metrics.compute()

    def more_metrics(self) -> dict[str, Any]:
        """Further metrics of a test, by name."""
        loaders, name = self.trainer.test_dataloaders, self.second_test
        return {name: getattr(self, f"{name}_metrics")} if isinstance(loaders, list) and len(loaders) > 1 else {}

    def on_validation_epoch_end(self) -> None:
        # Equal on all processes: what `sync_dist` adds is that Lightning does not warn.
        self.log_dict({f"val/{name}": value for name, value in self.results(self.val_metrics).items()}, sync_dist=True)

    def on_test_epoch_end(self) -> None:
        found = {f"test/{name}": value for name, value in self.results(self.test_metrics).items()}
        for suffix, metrics in self.more_metrics().items():
            found |= {f"test/{n}_{suffix}": value for n, value in metrics.compute().items() if n not in COUNTS}
        self.log_dict(found, sync_dist=True)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        weight_decay, layer_decay = self.hparams["weight_decay"], self.hparams["layer_decay"]
        return self.adamw(layer_decay_groups(self.net, weight_decay, layer_decay, self.net.encoder.depth))


def freeze_unread(encoder: DeepAVFusion) -> None:
    """Freeze what heads on the layers of image and audio do not use: the final norms and the last fusion block.

    Distributed training would wait for gradients that never come.
    """
    unread: list[nn.Module] = [encoder.image.norm, encoder.audio.norm, encoder.fusion_norm]
    unread += list(encoder.fusion_blocks.values())[-1:]
    for module in unread:
        module.requires_grad_(False)
    if not encoder.fusion_blocks:
        encoder.fusion_tokens.requires_grad_(False)


def learning_rate(hparams: Mapping[str, Any], trainer: Trainer) -> tuple[float, str]:
    """The peak learning rate of a run, and the line that explains it.

    Args:
        hparams: of a task; `lr` is used as it is, otherwise `blr` is scaled by the effective batch.
        trainer: says how many batches make up one optimizer step.
    """
    if hparams["lr"] is not None:
        return hparams["lr"], f"lr {_scientific(hparams['lr'])} (model.lr)"
    effective = hparams["batch_size"] * trainer.world_size * trainer.accumulate_grad_batches
    lr = hparams["blr"] * effective / 256
    return lr, f"lr {_scientific(lr)} = blr {_scientific(hparams['blr'])} × {effective} / 256"


def _scientific(value: float) -> str:
    """3.0e-4, 1.25e-3"""
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa.removesuffix('0')}e{int(exponent)}"
