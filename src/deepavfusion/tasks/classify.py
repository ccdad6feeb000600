"""Classification: what a clip shows and sounds like; as a linear probe of a frozen encoder, or fine-tuned."""

from __future__ import annotations

import warnings
from copy import deepcopy
from typing import Any

import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.nn import functional as F

from deepavfusion.metrics.classification import ClassificationMetrics
from deepavfusion.models.classifier import Classifier, classification_loss
from deepavfusion.models.deepavfusion import DeepAVFusion
from deepavfusion.optim.lars import LARS
from deepavfusion.optim.param_groups import param_groups
from deepavfusion.tasks.base import FineTune, load_pretrained
from deepavfusion.transforms.mixup import draw_shares, mixup
from deepavfusion.types import STREAMS, Batch
from deepavfusion.utils.errors import UserError

DENSE = 1  # number of the test loader that gives several windows of each clip


class Classify(FineTune):
    """Name the classes of clips by image, by audio, by fusion tokens and by all (Mo & Morgado, section 4.2).

    Test evaluates the centre window of every clip; where there is a second loader, the mean logits of its windows, too
    (`…_dense`). With `compare_untrained` the same probe learns on an untrained encoder, step by step, and is tested
    on the centre windows (`…_untrained`): what pre-training is worth.

    Args:
        net: the backbone.
        num_classes: of the data.
        multi_label: clips may have several classes (AudioSet): binary cross entropy and mAP, not top-1.
        frozen: linear probe, see `models.classifier`; otherwise everything is trained.
        per_head: the loss is the mean of the three heads' own, instead of that of their mean logit.
        compare_untrained: only with `frozen`.
        batch_size: clips a step and process, for the learning rate.
        blr: learning rate for 256 clips; the run's is blr · effective batch / 256.
        optimizer: "adamw" or "lars".
        weight_decay: parameters of one dimension do not decay.
        betas: of AdamW.
        momentum, trust_coefficient: of LARS.
        warmup_epochs: linear warm-up, then a cosine to 0.
        layer_decay: fine-tuning with AdamW: factor of the learning rate from layer to layer, from the head down.
        mixup: α of the share that a clip keeps of itself, one for picture and sound; 0: none.
        label_smoothing: share of the target that is spread over all classes.
        log_odds_bias: the heads start from the frequencies of the classes among the train clips.
        class_weighted: divides each class's part of the loss by its frequency (mean 1 over the classes that occur;
            those that do not count nothing).
        pretrained: checkpoint of the encoder; "auto": `latest_pretraining` if it is there and fits; None: from scratch.
        latest_pretraining: checkpoint of the newest pre-training.
        seed: each step and process draws its own from it.

    Raises:
        UserError: a setting that cannot be; a checkpoint that cannot be read or does not fit.
    """

    class_weight: Tensor | None

    def __init__(
        self,
        net: DeepAVFusion,
        num_classes: int,
        multi_label: bool = False,
        frozen: bool = False,
        per_head: bool = False,
        compare_untrained: bool = False,
        batch_size: int = 32,
        blr: float = 3e-4,
        optimizer: str = "adamw",
        weight_decay: float = 0.05,
        betas: tuple[float, float] = (0.9, 0.999),
        momentum: float = 0.9,
        trust_coefficient: float = 0.001,
        warmup_epochs: float = 20,
        layer_decay: float = 0.75,
        mixup: float = 0.0,
        label_smoothing: float = 0.0,
        log_odds_bias: bool = False,
        class_weighted: bool = False,
        pretrained: str | None = "auto",
        latest_pretraining: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["net"])
        if optimizer not in ("adamw", "lars"):
            raise UserError(f"model.optimizer is {optimizer!r}: expected adamw or lars.")
        if compare_untrained and not frozen:
            raise UserError(
                "model.compare_untrained is for linear probes: set model.frozen=true, or leave it out and run the "
                "fine-tuning once more with model.pretrained=null."
            )
        for name, value, most in (("mixup", mixup, float("inf")), ("label_smoothing", label_smoothing, 1.0)):
            if not 0 <= value < most:
                raise UserError(f"model.{name} is {value}, expected a number from 0 to {most:g}, 0 for none.")
        untrained = deepcopy(net) if compare_untrained else None
        load_pretrained(net, pretrained, latest_pretraining)
        self.net = Classifier(net, num_classes, frozen)
        self.untrained = None
        if untrained is not None:
            self.untrained = Classifier(untrained, num_classes, frozen)
            for stream, head in self.untrained.heads.items():
                head.load_state_dict(self.net.heads[stream].state_dict())
        self.register_buffer("class_weight", torch.ones(num_classes) if class_weighted else None)
        self.val_metrics = ClassificationMetrics(num_classes, multi_label)
        self.test_metrics = ClassificationMetrics(num_classes, multi_label)
        self.dense_metrics = ClassificationMetrics(num_classes, multi_label)
        self.untrained_metrics = ClassificationMetrics(num_classes, multi_label)

    def check_data(self, datamodule: Any) -> None:
        ours = (self.net.num_classes, self.hparams["multi_label"])
        theirs = (datamodule.num_classes, datamodule.multi_label)
        if ours != theirs:
            there, here = (f"{count} classes, {'several' if many else 'one'} a clip" for count, many in (theirs, ours))
            raise UserError(
                f"{datamodule.dataset_name} has {there}, the network {here}: leave model.num_classes and "
                f"model.multi_label out, or choose other data."
            )

    def setup(self, stage: str) -> None:
        """Before training, what depends on the frequencies of the classes."""
        datamodule = getattr(self.trainer, "datamodule", None)
        if self.net.frozen:
            warnings.filterwarnings("ignore", r".*in eval mode at the start of training")  # as it has to be
        if stage == "fit" and datamodule is not None:  # a checkpoint to go on from is loaded after this
            counts = torch.tensor(datamodule.class_counts, dtype=torch.float64)
            if self.hparams["log_odds_bias"]:
                for net in self._nets():
                    net.start_from_log_odds(counts)
            if self.class_weight is not None:
                weight = torch.where(counts > 0, 1 / counts.clamp(min=1), 0)
                self.class_weight.copy_(weight * (counts > 0).sum() / weight.sum())

    def _nets(self) -> list[Classifier]:
        return [self.net] if self.untrained is None else [self.net, self.untrained]

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        if not self.net.frozen and self.hparams["optimizer"] == "adamw":
            return super().configure_optimizers()
        groups = param_groups(self, self.hparams["weight_decay"])
        if self.hparams["optimizer"] == "adamw":
            return self.adamw(groups)
        momentum, trust = self.hparams["momentum"], self.hparams["trust_coefficient"]
        return self.scheduled(lambda lr: LARS(groups, lr, momentum=momentum, trust_coefficient=trust))

    def shares(self, label: Tensor) -> Tensor:
        """The share of each class, float32 [B, C], of a class a clip [B], or of 0 and 1 for each [B, C]."""
        return label.float() if self.hparams["multi_label"] else F.one_hot(label, self.net.num_classes).float()

    def label(self, batch: Batch) -> Tensor:
        label = batch.labels if self.hparams["multi_label"] else batch.label
        assert label is not None
        return label

    def loss(self, logits: dict[str, Tensor], target: Tensor, smoothing: float = 0.0) -> Tensor:
        multi_label, per_head = self.hparams["multi_label"], self.hparams["per_head"]
        weight = None if self.class_weight is None else self.class_weight.to(target.device)
        return classification_loss(logits, target, multi_label, per_head, smoothing, weight)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.check_shapes(batch)
        assert batch.spectrogram is not None
        image, sound, target = batch.image, batch.spectrogram, self.shares(self.label(batch))
        if self.hparams["mixup"] > 0:
            share = draw_shares(len(batch), self.hparams["mixup"], image.device)
            image, sound, target = mixup([image, sound, target], share)
        losses = [self.loss(net(image, sound), target, self.hparams["label_smoothing"]) for net in self._nets()]
        self.log_train({"train/loss": losses[0]}, batch.items)
        return torch.stack(losses).sum()

    def _evaluate(self, net: Classifier, batch: Batch, metrics: ClassificationMetrics) -> None:
        """The windows of a clip, whose logits are averaged, count once."""
        if not len(batch):
            return
        self.check_shapes(batch)
        logits = net(batch.image, batch.spectrogram)
        means = {stream: x.unflatten(0, (-1, batch.group)).mean(dim=1) for stream, x in logits.items()}
        metrics.update(means, self.label(batch)[:: batch.group], batch.item[:: batch.group])

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._evaluate(self.net, batch, self.val_metrics)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        if dataloader_idx == DENSE:
            return self._evaluate(self.net, batch, self.dense_metrics)
        self._evaluate(self.net, batch, self.test_metrics)
        if self.untrained is not None:
            self._evaluate(self.untrained, batch, self.untrained_metrics)

    def _found(self, metrics: ClassificationMetrics) -> dict[str, Tensor]:
        """What the metrics say, and the loss: of all clips at once, so that batches and processes do not matter."""
        found, table = metrics.compute(), metrics.table()
        if len(table["item"]):
            found["loss"] = self.loss({stream: table[stream] for stream in STREAMS}, self.shares(table["target"]))
        return found

    def on_validation_epoch_start(self) -> None:
        self.val_metrics.reset()

    def on_test_epoch_start(self) -> None:
        for metrics in (self.test_metrics, self.dense_metrics, self.untrained_metrics):
            metrics.reset()

    def on_validation_epoch_end(self) -> None:
        self.log_dict({f"val/{name}": value for name, value in self._found(self.val_metrics).items()})

    def on_test_epoch_end(self) -> None:
        found = {f"test/{name}": value for name, value in self._found(self.test_metrics).items()}
        loaders, more = self.trainer.test_dataloaders, {}
        if isinstance(loaders, list) and len(loaders) > DENSE:
            more["dense"] = self.dense_metrics
        if self.untrained is not None:
            more["untrained"] = self.untrained_metrics
        for suffix, metrics in more.items():
            values = metrics.compute()
            found |= {f"test/{name}_{suffix}": value for name, value in values.items() if name != "clips"}
        self.log_dict(found)
