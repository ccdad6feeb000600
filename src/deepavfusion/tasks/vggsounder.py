"""VGGSounder, a benchmark of classifiers of VGGSound's classes; an evaluation only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from deepavfusion.metrics.classification import ClassificationMetrics
from deepavfusion.metrics.vggsounder import VGGSounderMetrics
from deepavfusion.metrics.vggsounder_labels import VGGSounderLabels, read_labels
from deepavfusion.models.deepavfusion import DeepAVFusion
from deepavfusion.tasks.classify import Classify
from deepavfusion.types import Batch
from deepavfusion.utils.console import say_once
from deepavfusion.utils.errors import UserError


class VGGSounder(Classify):
    """Test a classifier on VGGSounder, besides its test on VGGSound, of whose test clips those of VGGSounder are.

    It logs `vggsounder_<set of labels>/<figure>`, see `VGGSounderMetrics`, and `…_dense` of several windows per clip.
    The prediction by both modalities is the mean of the heads; that by one of them is the mean of the two heads there
    are where the other modality is absent from the network, and, as `…_head`, the head of that modality where both are
    present: through the fusion tokens it has seen, or heard, the other one.

    Args:
        net: the backbone.
        num_classes: of the data.
        label_sets: see `read_labels`.
        classify: see `Classify`, which it restores the checkpoints of.
    """

    labels: VGGSounderLabels
    order: list[int]  # our class of each class of the benchmark
    test_sounder: VGGSounderMetrics
    dense_sounder: VGGSounderMetrics

    def __init__(
        self, net: DeepAVFusion, num_classes: int, label_sets: Sequence[str] = ("304d10a", "v1.0"), **classify: Any
    ) -> None:
        super().__init__(net, num_classes, **classify)

    def check_data(self, datamodule: Any) -> None:
        """Read the labels; raise a `UserError` unless they are of these classes, and of some of the test clips."""
        super().check_data(datamodule)
        self.labels = read_labels(self.hparams["label_sets"])
        theirs, ours = self.labels.classes, list(datamodule.classes)
        if missing := sorted(set(theirs) ^ set(ours)):
            where = "VGGSounder" if missing[0] in theirs else "the data"
            raise UserError(
                f"VGGSounder has {len(theirs)} classes and {datamodule.dataset_name} under {datamodule.root} "
                f"{len(ours)}, of which {len(set(theirs) & set(ours))} are the same ({missing[0]!r} is only in "
                f"{where}): expected a classifier trained on VGGSound with its whole list, and that data."
            )
        self.order = [ours.index(name) for name in theirs]
        clips = datamodule.lists["test"].clips
        if not self.labels.known(clip.id for clip in clips):
            raise UserError(
                f"none of the {len(clips)} clips of the {datamodule.lists['test'].split} split under "
                f"{datamodule.root} (e.g. {clips[0].id}) is in VGGSounder (e.g. {next(iter(self.labels.rows))}): "
                "expected VGGSound's test clips with their ids and start times; set data.root or data.eval_split."
            )
        self.test_sounder, self.dense_sounder = (VGGSounderMetrics(self.labels.sets, len(theirs)) for _ in range(2))

    def setup(self, stage: str) -> None:
        if stage == "fit":
            raise UserError(
                "experiment=vggsounder evaluates a classifier and trains none: give `python src/eval.py "
                "experiment=vggsounder ckpt_path=<checkpoint>` that of a run of vggsound_finetune or "
                "vggsound_linear_probe."
            )
        super().setup(stage)

    def evaluate(self, batch: Batch, part: str, metrics: ClassificationMetrics) -> dict[str, Tensor]:
        both = super().evaluate(batch, part, metrics)
        rows = self.labels.known(batch.id[:: batch.group])
        audio, image = (self.mean_logits(self.net, batch, without=absent) for absent in ("image", "audio"))
        passes = {
            "av": _mean(both),
            "a": _mean(audio),
            "v": _mean(image),
            "a_head": both["audio"],
            "v_head": both["image"],
        }
        ids = [batch.id[row * batch.group] for row in rows]
        codes = self.labels.codes[[self.labels.rows[clip] for clip in ids]].to(batch.item.device)
        sounder: VGGSounderMetrics = getattr(self, f"{part}_sounder")
        ordered = {name: logits[rows][:, self.order] for name, logits in passes.items()}
        sounder.update(ordered, codes, batch.item[:: batch.group][rows])
        return both

    def on_test_epoch_end(self) -> None:
        super().on_test_epoch_end()
        found = self.test_sounder.compute()
        for name, listed in self.labels.sets.items():
            if (clips := int(found[f"{name}/clips"])) < listed:
                say_once(f"VGGSounder, labels {name}: {clips} of {listed} clips were evaluated", "yellow")
        if "dense" in self.more_metrics():
            found |= {f"{name}_dense": value for name, value in self.dense_sounder.compute().items()}
        self.log_dict({f"vggsounder_{name}": value for name, value in found.items()}, sync_dist=True)


def _mean(logits: dict[str, Tensor]) -> Tensor:
    """Of the heads there are, float32 [N, C], rounded once as in `ClassificationMetrics`."""
    return (sum(x.double() for x in logits.values()) / len(logits)).float()  # type: ignore[union-attr]
