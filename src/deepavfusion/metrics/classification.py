"""How well clips are classified: top-1 and top-5 for one class a clip, mAP, AUC and d′ for several.

Letters: B clips of a batch · N clips · C classes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc, binary_average_precision, multiclass_confusion_matrix

from deepavfusion.metrics.by_item import ItemMetric, mean
from deepavfusion.types import ALL, STREAMS


class ClassificationMetrics(ItemMetric):
    """Accuracy of three heads and of the mean of their logits.

    Names without suffix are of the mean, `_image`, `_audio` and `_fusion` of one head, e.g. `top1_class_image`.

    One class a clip; shares of the clips, 0…1. Of equal logits the class with the lower number comes first.
    - `top1`, `top5`: the true class is the first, or among the first five; with fewer than five classes all count.
    - `top1_class`: accuracy of each class, then the mean over the classes that occur in truth (balanced accuracy).

    Several classes a clip, each by the order of its clips' logits; equal ones are one threshold:
    - `map`: average precision Σ (Rᵢ − Rᵢ₋₁)·Pᵢ over the thresholds, not interpolated, 0…1; then the mean over the
      classes that occur.
    - `auc`: area under the ROC curve, 0…1: the share of the pairs of a clip with the class and one without that are in
      the right order, equal ones count half; then the mean over the classes that have both.
    - `dprime`: d′ = √2 · Φ⁻¹(auc) of the mean auc, as usual for AudioSet (Hershey et al. 2017, "CNN Architectures for
      Large-Scale Audio Classification"). 0 is chance; inf or, by rounding, at least 7 where auc is 1.

    The result depends neither on batches and order nor on the number of processes, see `ItemMetric`. torchmetrics
    divides average precision and AUC in float32: they are exact to 1e-6.

    Args:
        num_classes: C.
        multi_label: several classes, or none, a clip.
    """

    def __init__(self, num_classes: int, multi_label: bool = False) -> None:
        if num_classes < 1:
            raise ValueError(f"expected at least one class, got num_classes {num_classes}")
        label = torch.zeros(0, num_classes, dtype=torch.uint8) if multi_label else torch.zeros(0, dtype=torch.int64)
        super().__init__({"target": label, **dict.fromkeys(STREAMS, torch.zeros(0, num_classes))})
        self.num_classes = num_classes
        self.multi_label = multi_label

    @torch.no_grad()
    def update(self, logits: dict[str, Tensor], target: Tensor, item: Tensor) -> None:
        """logits {"image", "audio", "fusion": float [B, C]}; target int [B], a class a clip, or, multi label, [B, C] of
        0 and 1, of any type; item int [B], the clip's position in the dataset.

        ValueError: NaN (also as mean of inf and −inf), a class that does not exist, a label that is not 0 or 1.
        """
        shape = (len(item), self.num_classes)
        for name in STREAMS:
            assert logits[name].shape == shape, (name, logits[name].shape, shape)
            assert logits[name].is_floating_point(), (name, logits[name].dtype)
        assert target.shape == (shape if self.multi_label else shape[:1]), (target.shape, shape)
        assert self.multi_label or not target.is_floating_point(), target.dtype
        heads = {name: logits[name].detach().float() for name in STREAMS}
        nan = _mean_of_heads(heads).isnan().any(dim=1)
        if self.multi_label:
            unknown, known = ((target != 0) & (target != 1)).any(dim=1), "0 and 1"
        else:
            unknown, known = (target < 0) | (target >= self.num_classes), f"0…{self.num_classes - 1}"
        if (nan | unknown).any():
            wrong = {"NaN logits": item[nan].tolist(), f"targets other than {known}": item[unknown].tolist()}
            raise ValueError("; ".join(f"{what} in clips {which}" for what, which in wrong.items() if which))

        self.keep({"item": item, "target": target, **heads})

    def compute(self) -> dict[str, Tensor]:
        """Float64 scalars by name (see the class), and `clips`, their count. A mean over nothing is excluded."""
        table = self.gathered()
        figures = self._multi_label if self.multi_label else self._single_label
        result: dict[str, float] = {}
        for stream, suffix in {ALL: "", **{name: f"_{name}" for name in STREAMS}}.items():
            result |= {f"{name}{suffix}": value for name, value in figures(table[stream], table["target"]).items()}
        return self.scalars({**result, "clips": len(table["item"])})

    def table(self) -> dict[str, Tensor]:
        """Each clip once, by item, on the CPU: after `compute` those of all processes, before it our own.

        {"item": int64 [N], "target": int64 [N] or uint8 [N, C], "image", "audio", "fusion", "all": logits, float32
        [N, C]}. All figures are those of these numbers.
        """
        table = super().table()
        return table if ALL in table else {**table, ALL: _mean_of_heads(table)}

    def confusion(self, stream: str = ALL) -> Tensor:
        """How many clips of each class (row) were predicted as each (column), int64 [C, C]; not for multi label.

        After `compute` of the clips of all processes, before it of our own. `stream`: a head, or "all".
        """
        assert not self.multi_label, "several classes a clip: no confusion matrix"
        table = self.table()
        return self._confusion(_ranked(table[stream])[:, 0], table["target"]).to(self.device)

    def per_class(self, stream: str = ALL) -> Tensor:
        """Accuracy, or for multi label average precision, of each class, float64 [C], nan where it does not occur;
        `top1_class`, or `map`, is the mean of the rest.

        After `compute` of the clips of all processes, before it of our own. `stream`: a head, or "all".
        """
        if self.multi_label:
            table = self.table()
            precision, _ = _precision_and_auc(table[stream], table["target"])
            return torch.tensor(precision, dtype=torch.float64, device=self.device)
        return _accuracy_per_class(self.confusion(stream))

    def _single_label(self, logits: Tensor, target: Tensor) -> dict[str, float]:
        clips = len(target)
        if not clips:
            return {}
        ranked = _ranked(logits)
        hits = ranked[:, :5] == target.unsqueeze(1)
        return {
            "top1": int(hits[:, 0].sum()) / clips,
            "top5": int(hits.sum()) / clips,
            "top1_class": mean(_accuracy_per_class(self._confusion(ranked[:, 0], target)).tolist()),
        }

    def _multi_label(self, logits: Tensor, target: Tensor) -> dict[str, float]:
        precision, auc = _precision_and_auc(logits, target)
        area = torch.tensor(mean(auc), dtype=torch.float64)
        return {"map": mean(precision), "auc": area.item(), "dprime": math.sqrt(2) * torch.special.ndtri(area).item()}

    def _confusion(self, predicted: Tensor, target: Tensor) -> Tensor:
        return multiclass_confusion_matrix(predicted, target, self.num_classes, validate_args=False)


def _mean_of_heads(logits: dict[str, Tensor]) -> Tensor:
    """Float32 [N, C], rounded once."""
    image, audio, fusion = (logits[name] for name in STREAMS)
    return (image.double() + audio + fusion).div_(len(STREAMS)).float()


def _ranked(logits: Tensor) -> Tensor:
    """logits [N, C] -> each clip's classes from the likeliest on, int64 [N, C]"""
    return logits.argsort(dim=1, descending=True, stable=True)


def _accuracy_per_class(confusion: Tensor) -> Tensor:
    """Float64 [C], nan where the class does not occur."""
    return confusion.diagonal().double() / confusion.sum(dim=1)


def _precision_and_auc(logits: Tensor, target: Tensor) -> tuple[list[float], list[float]]:
    """logits [N, C], target 0 or 1 [N, C] -> average precision [C] and area under the ROC curve [C]

    nan: precision of a class without positives; area of one without positives or without negatives.
    """
    precisions, areas = [], []
    for score, true in zip(logits.double().sigmoid().T, target.long().T, strict=True):
        positives = int(true.sum())
        precisions.append(binary_average_precision(score, true).item() if positives else math.nan)
        both = 0 < positives < len(true)
        areas.append(min(binary_auroc(score, true).item(), 1.0) if both else math.nan)  # up to 1 + 1e-7
    return precisions, areas
