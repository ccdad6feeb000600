"""Retrieval: the image that belongs to an audio, and the audio that belongs to an image."""

from __future__ import annotations

import zlib
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from deepavfusion.metrics.by_item import blocks
from deepavfusion.metrics.retrieval import DIRECTIONS, PairRetrieval, chance
from deepavfusion.metrics.row_mean import RowMean
from deepavfusion.models.deepavfusion import DeepAVFusion
from deepavfusion.models.retriever import Retriever, info_nce, joint_means, solo_means
from deepavfusion.tasks.finetune import FineTune
from deepavfusion.types import Batch
from deepavfusion.utils.console import say_once
from deepavfusion.utils.errors import UserError
from deepavfusion.utils.structure import DictOf, misfit

BASELINES = ("untrained", "zero_shot", "joint")


class Retrieve(FineTune):
    """Retrieve clips across modalities, by embeddings that have seen or heard one of them only.

    Test evaluates the centre window of every clip and, if there is a second loader, several windows (`…_dense`). Beside
    each result of the centre windows stand that of a random order (`…_chance`), and those of mean tokens without any
    training here: of an untrained encoder (`…_untrained`), of the one that training starts from (`…_zero_shot`), and of
    that one in a joint pass, whose embeddings have met the answer (`…_joint`).

    Args:
        net: the backbone.
        num_classes: of the data.
        multi_label: clips may have several classes; what shares one is relevant.
        embed_dim, frozen, temperature: see `models.retriever`.
        recipe: see `FineTune`.
    """

    second_test = "dense"  # of several windows per clip

    def __init__(
        self,
        net: DeepAVFusion,
        num_classes: int,
        multi_label: bool = False,
        embed_dim: int = 256,
        frozen: bool = False,
        temperature: float = 0.07,
        **recipe: Any,
    ) -> None:
        super().__init__(**recipe)
        # Start weights are loaded into `net` later, so this copy stays untrained. The list keeps it out of checkpoints.
        self._untrained = [deepcopy(net)]
        self.net = Retriever(net, embed_dim, frozen, temperature)
        self.baselines: dict[str, float] = {}  # <direction>_<measure>_<baseline> -> value
        self.baselines_of = 0  # see `clips_of`
        self.val_metrics, self.test_metrics, self.dense_metrics = (self.new_metric(embed_dim) for _ in range(3))

    def new_metric(self, dim: int) -> PairRetrieval:
        """For embeddings of this width."""
        return PairRetrieval(dim, self.hparams["num_classes"] if self.hparams["multi_label"] else 0)

    def check_data(self, datamodule: Any) -> None:
        self.check_classes(datamodule)
        if datamodule.batch_size > self.hparams["batch_size"]:
            raise UserError(
                f"data.batch_size is {datamodule.batch_size}, model.batch_size {self.hparams['batch_size']}, expected "
                "the same: leave model.batch_size out."
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["baselines"] = {"of": self.baselines_of, "values": dict(self.baselines)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        found = checkpoint.get("baselines", {"of": 0, "values": {}})
        if wrong := misfit(found, {"of": 0, "values": DictOf(0.0)}, "baselines"):
            raise UserError(f"the checkpoint's {wrong}: use one that train.py wrote.")
        self.baselines_of = found["of"]
        self.baselines = {name: value for name, value in found["values"].items() if name.endswith(BASELINES)}
        if self.baselines:
            self._untrained = []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.check_shapes(batch)
        found, scale = self.net(batch.image, batch.spectrogram), self.net.scale
        loss = info_nce(found["image"], found["audio"], scale, self.hparams["batch_size"])
        self.log_train({"train/loss": loss, "train/temperature": 1 / scale.detach()}, len(batch))
        return loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.net.limit_scale()

    def evaluate(self, batch: Batch, part: str, metrics: PairRetrieval) -> None:
        self.update(metrics, self.net(batch.image, batch.spectrogram), batch)

    def update(self, metrics: PairRetrieval, found: dict[str, Tensor], batch: Batch) -> None:
        """Add the embeddings {"image", "audio"} of a batch."""
        label = batch.labels if self.hparams["multi_label"] else batch.label
        assert label is not None
        metrics.update(found["audio"], found["image"], label[:: batch.group], batch.item[:: batch.group])

    def results(self, metrics: PairRetrieval, loss: RowMean) -> dict[str, Tensor]:
        """The metrics, and the loss of all clips at once: it does not depend on batches and processes."""
        found, table = metrics.compute(), metrics.table()
        if len(table["item"]):
            audio, image, scale = (x.cpu().double() for x in (table["audio"], table["image"], self.net.scale.detach()))
            total = torch.zeros((), dtype=torch.float64)
            for queries, gallery in ((audio, image), (image, audio)):
                for rows in blocks(len(audio)):
                    logits = scale * queries[rows] @ gallery.T
                    total += F.cross_entropy(logits, rows, reduction="sum") / (2 * len(audio))
            found["loss"] = total.to(self.device)
        return found

    def on_test_epoch_end(self) -> None:
        super().on_test_epoch_end()
        loaders: Any = self.trainer.test_dataloaders
        table = self.test_metrics.table()
        if not len(table["item"]):
            return
        found = self.of_chance(table["label"])
        if self.baselines and self.baselines_of == clips_of(loaders[0].dataset, table["item"]):
            found |= self.baselines
        elif self.baselines:
            names = ", ".join(f"…_{name}" for name in BASELINES)
            say_once(f"other clips than at the start of the training: {names} are left out", "yellow")
        self.log_dict({f"test/{name}": value for name, value in found.items()}, sync_dist=True)

    def of_chance(self, labels: Tensor) -> dict[str, float]:
        """<direction>_<measure>_chance of clips with these labels."""
        found = chance(labels)
        return {f"{direction}_{name}_chance": value for direction in DIRECTIONS for name, value in found.items()}

    # ---- before training

    @torch.no_grad()
    def baseline_means(self, batch: Batch) -> dict[str, dict[str, Tensor]]:
        """Mean tokens of a batch without any training here: baseline -> {"image", "audio"} -> [B, D]."""
        encoder, (untrained,) = self.net.encoder, self._untrained
        tensor = next(encoder.parameters())
        assert batch.spectrogram is not None
        image, audio = batch.image.to(tensor.dtype), batch.spectrogram.to(tensor.dtype)
        return {
            "untrained": solo_means(untrained.to(tensor).eval(), image, audio),
            "zero_shot": solo_means(encoder, image, audio),
            "joint": joint_means(encoder, image, audio),
        }

    def keep_baselines(self, dataset: Any, metrics: dict[str, PairRetrieval]) -> dict[str, float]:
        """Compute and keep the baselines of a dataset.

        Args:
            dataset: of the clips.
            metrics: baseline -> what it is measured by, see `baseline_means`.

        Returns:
            <direction>_<measure>_<baseline or chance> -> value.
        """
        for name, metric in metrics.items():
            found = {key: float(value) for key, value in metric.compute().items()}
            self.baselines |= {f"{key}_{name}": found[key] for key in found if key.startswith((*DIRECTIONS,))}
        table = metrics["zero_shot"].table()
        self.baselines_of, self._untrained = clips_of(dataset, table["item"]), []
        return {**self.baselines, **self.of_chance(table["label"])}


def clips_of(dataset: Any, item: Tensor) -> int:
    """A number that tells which clips of a dataset were evaluated."""
    number = 0
    for n in item.tolist():
        number = zlib.crc32(f"{dataset.clips[n].id}\n".encode(errors="backslashreplace"), number)
    return number
