"""Classification of clips, by a linear probe on a frozen encoder or by fine-tuning."""

from __future__ import annotations

from copy import deepcopy
from itertools import zip_longest
from typing import Any

import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.nn import functional as F

from deepavfusion.metrics.classification import ClassificationMetrics
from deepavfusion.metrics.row_mean import RowMean
from deepavfusion.models.classifier import Classifier, classification_loss
from deepavfusion.models.deepavfusion import DeepAVFusion
from deepavfusion.models.novelty import NoveltyDetector
from deepavfusion.optim.lars import LARS
from deepavfusion.optim.param_groups import param_groups
from deepavfusion.tasks.base import learning_rate
from deepavfusion.tasks.finetune import FineTune
from deepavfusion.transforms.mixup import draw_shares, mixup
from deepavfusion.types import STREAMS, Batch
from deepavfusion.utils.errors import UserError


class Classify(FineTune):
    """Classify clips by image, audio and fusion tokens, and by all three (Mo & Morgado, section 4.2).

    Test evaluates the centre window of every clip and, if there is a second loader, the mean logits over its windows
    (`…_dense`). With `compare_untrained` the same probe is trained on an untrained encoder alongside and tested on the
    centre windows (`…_untrained`), which shows what pre-training is worth.

    Args:
        net: the backbone.
        num_classes: of the data.
        multi_label: clips may have several classes (AudioSet): binary cross-entropy and mAP instead of top-1.
        frozen: linear probe, see `models.classifier`; otherwise everything is trained.
        per_head: the loss is the mean of the losses of the three heads, not the loss of their mean logits.
        compare_untrained: only with `frozen`.
        optimizer: "adamw" or "lars".
        momentum, trust_coefficient: of LARS.
        mixup: α of the Beta distribution, with one share for image and audio; 0: no mixup.
        label_smoothing: share of the target that is spread over all classes.
        log_odds_bias: initialise the heads' biases from the class frequencies of the train clips.
        class_weighted: divide each class's part of the loss by its frequency (mean weight 1 over the classes that
            occur; 0 for the others).
        drop_unseen: leave classes without a train clip out of the loss, as published; otherwise they are learned to be
            absent.
        recipe: see `FineTune`; `layer_decay` only applies to fine-tuning with AdamW.
    """

    class_weight: Tensor | None
    seen: Tensor | None  # indices of the classes that the loss compares; None: all
    novelty: NoveltyDetector | None = None  # fitted after the last epoch
    second_test = "dense"  # of several windows per clip

    def __init__(
        self,
        net: DeepAVFusion,
        num_classes: int,
        multi_label: bool = False,
        frozen: bool = False,
        per_head: bool = False,
        compare_untrained: bool = False,
        optimizer: str = "adamw",
        momentum: float = 0.9,
        trust_coefficient: float = 0.001,
        mixup: float = 0.0,
        label_smoothing: float = 0.0,
        log_odds_bias: bool = False,
        class_weighted: bool = False,
        drop_unseen: bool = False,
        **recipe: Any,
    ) -> None:
        super().__init__(**recipe)
        # Start weights are loaded into `net` later, so this copy stays untrained.
        untrained = deepcopy(net) if compare_untrained else None
        self.net = Classifier(net, num_classes, frozen)
        self.untrained = Classifier(untrained, num_classes, frozen) if untrained is not None else None
        if self.untrained is not None:
            for stream, head in self.untrained.heads.items():
                head.load_state_dict(self.net.heads[stream].state_dict())
        self.register_buffer("class_weight", torch.ones(num_classes) if class_weighted else None)
        self.register_buffer("seen", None, persistent=False)
        self.val_metrics = ClassificationMetrics(num_classes, multi_label)
        self.test_metrics = ClassificationMetrics(num_classes, multi_label)
        self.dense_metrics = ClassificationMetrics(num_classes, multi_label)
        self.untrained_metrics = ClassificationMetrics(num_classes, multi_label)

    @classmethod
    def check_labels(cls, datamodule: Any) -> None:
        if len(datamodule.classes) < (1 if datamodule.multi_label else 2):
            classes = ", ".join(map(repr, datamodule.classes)) or "no classes"
            raise UserError(
                f"{datamodule.dataset_name} has {classes}, expected two classes or more to tell apart: give data with "
                "labels (of data=folder, a sub-folder for each class, or a CSV file with a column label), or do "
                "without them: experiment=folder_pretrain, experiment=vggsound_retrieval."
            )

    def check_data(self, datamodule: Any) -> None:
        self.check_classes(datamodule)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        if self.novelty:
            checkpoint["novelty"] = self.novelty.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self._check_classes(checkpoint)
        self.novelty = NoveltyDetector.from_state(checkpoint.get("novelty"), self.net.embedding_dim)

    def _check_classes(self, checkpoint: dict[str, Any]) -> None:
        """The shapes fit where the classes are others, or in another order; the numbers would mean nothing."""
        record, now = checkpoint.get("record"), self.record.get("classes")
        before = record.get("classes") if isinstance(record, dict) else None
        if not isinstance(before, list) or not now or before == now:
            return
        pairs = enumerate(zip_longest(before, now, fillvalue="none"))
        n, (there, here) = next((n, pair) for n, pair in pairs if pair[0] != pair[1])
        raise UserError(
            f"the checkpoint was trained with other classes than the data has, or in another order (number {n} is "
            f"{there!s:.80} there and {here!s:.80} here): expected the list that it was trained with; set data.root or "
            "data.index.annotations to it."
        )

    def fit_novelty(self, train: Tensor, held_out: Tensor) -> None:
        """See `NoveltyDetector.fit`."""
        self.novelty = NoveltyDetector.fit(train, held_out)

    def setup(self, stage: str) -> None:
        """Before training, set what depends on the class frequencies."""
        super().setup(stage)
        datamodule = getattr(self.trainer, "datamodule", None)
        if datamodule is None or not (stage == "fit" or self.hparams["drop_unseen"]):
            return
        counts = torch.tensor(datamodule.class_counts, dtype=torch.float64)
        if self.hparams["drop_unseen"] and not counts.all():
            self.seen = counts.nonzero()[:, 0].to(self.device)
        if stage == "fit":  # a resumed checkpoint overwrites this
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
        lr = learning_rate(self.hparams, self.trainer)[0]
        return self.scheduled(LARS(groups, lr, momentum=momentum, trust_coefficient=trust))

    def shares(self, label: Tensor) -> Tensor:
        """The share of each class, float32 [B, C], from one class per clip [B] or from zeros and ones [B, C]."""
        return label.float() if self.hparams["multi_label"] else F.one_hot(label, self.net.num_classes).float()

    def label(self, batch: Batch) -> Tensor:
        label = batch.labels if self.hparams["multi_label"] else batch.label
        assert label is not None
        return label

    def loss(self, logits: dict[str, Tensor], target: Tensor, smoothing: float = 0.0) -> Tensor:
        multi_label, per_head = self.hparams["multi_label"], self.hparams["per_head"]
        weight = None if self.class_weight is None else self.class_weight.to(target.device)
        seen = None if self.seen is None else self.seen.to(target.device)
        return classification_loss(logits, target, multi_label, per_head, smoothing, weight, seen)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.check_shapes(batch)
        assert batch.spectrogram is not None
        image, audio, target = batch.image, batch.spectrogram, self.shares(self.label(batch))
        if self.hparams["mixup"] > 0:
            share = draw_shares(len(batch), self.hparams["mixup"], image.device)
            image, audio, target = mixup([image, audio, target], share)
        losses = [self.loss(net(image, audio), target, self.hparams["label_smoothing"]) for net in self._nets()]
        self.log_train({"train/loss": losses[0]}, batch.items)
        return torch.stack(losses).sum()

    def evaluate(self, batch: Batch, part: str, metrics: ClassificationMetrics) -> dict[str, Tensor]:
        """Update metrics with the mean logits over the windows of each clip; those of `net`, [B / group, C] each."""
        label, item = self.label(batch)[:: batch.group], batch.item[:: batch.group]
        if part == "test" and self.untrained is not None:
            self.untrained_metrics.update(self.mean_logits(self.untrained, batch), label, item)
        means = self.mean_logits(self.net, batch)
        metrics.update(means, label, item)
        return means

    def mean_logits(self, net: Classifier, batch: Batch, without: str = "") -> dict[str, Tensor]:
        """Mean logits of each stream over the windows of each clip [B / group, C]; `without` "image" or "audio"."""
        image = None if without == "image" else batch.image
        audio = None if without == "audio" else batch.spectrogram
        return {stream: x.unflatten(0, (-1, batch.group)).mean(dim=1) for stream, x in net(image, audio).items()}

    def results(self, metrics: ClassificationMetrics, loss: RowMean) -> dict[str, Tensor]:
        """The metrics, and the loss of the mean logits over the windows of each clip."""
        found, table = metrics.compute(), metrics.table()
        if len(table["item"]):
            found["loss"] = self.loss({stream: table[stream] for stream in STREAMS}, self.shares(table["target"]))
        return found

    def more_metrics(self) -> dict[str, Any]:
        return super().more_metrics() | ({} if self.untrained is None else {"untrained": self.untrained_metrics})
