"""Audio-visual segmentation metrics: those of the AVSBench papers and of DeepAVFusion's.

Letters: B frames of a batch · F frames · C classes · K thresholds · H × W pixels.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor

from deepavfusion.metrics.by_item import ItemMetric, mean


def _cuts(thresholds: int) -> list[float]:
    """Logits whose probabilities are `thresholds` equal steps from 0 to 1 − 1e-10; ascending."""
    top = 1 - 1e-10
    inner = [k * top / (thresholds - 1) for k in range(1, thresholds)]
    return [-math.inf, *(math.log(p / (1 - p)) for p in inner)]


# Logits are compared with these, not probabilities with thresholds: no rounding, the same on every device.
CUTS = sorted({*_cuts(255), *_cuts(256)})
AVSBENCH = [CUTS.index(cut) for cut in _cuts(255)]
PUBLISHED = [CUTS.index(cut) for cut in _cuts(256)]
BINS = len(CUTS) + 1


class SegmentationMetrics(ItemMetric):
    """Mean IoU and F-score of audio-visual segmentation, in each of the ways that papers publish; values in 0…1.

    F has β² = 0.3. A class occurs in a frame if truth or prediction has a pixel of it. 0/0 counts as 0. The prediction
    is probability > 0.5, or the class of the highest logit; ties go to the first.

    DeepAVFusion's published evaluator, which skips frames without a sounding pixel:
    - `miou`, `precision`, `recall`: mean over the frames in which a class occurs, then over the classes that occur;
      binary segmentation has the two classes background and sounding. `_nobg`: without the background.
    - `fscore`, semantic: likewise. Binary: of each frame the best F among 256 thresholds of the probability, from 0 to
      1 − 1e-10, then the mean; there `fscore_nobg` is the same.

    AVSBench, binary (Zhou et al. 2022, "Audio-Visual Segmentation"):
    - `miou_fg`: IoU of the sounding pixels, mean over all frames; of a frame that has none, the share of its pixels
      that are not marked.
    - `fscore_fg`: at each of 255 thresholds precision and recall, means over the frames with a sounding pixel; F of the
      two; then the best. `fscore_fg_frames`: at each threshold the mean of the frames' own F, then the best. AVSBench
      picks the best threshold for each batch (a clip of five frames) and averages these, usually more; here one
      threshold serves the whole dataset, so that the value does not depend on batches.

    AVSBench, semantic (Zhou et al. 2023, "Audio-Visual Segmentation with Semantics"), over all frames:
    - `miou_class`, `fscore_class`: mean over the frames in which a class occurs, then over the classes that occur.
      (AVSBench counts a class that never occurs as 0.) `_nobg`: without class 0. (AVSBench's code excludes its last
      class instead.)

    Frames are counted pixel by pixel in integers and identified by `item`, so the result is the same to the last bit
    for all batches, orders and numbers of processes, and a frame evaluated twice (samplers pad with repetitions)
    counts once.

    Args:
        num_classes: 1: sounding or not, one logit a pixel. Otherwise C, with the background as class 0.
    """

    def __init__(self, num_classes: int) -> None:
        if num_classes < 1:
            raise ValueError(f"expected at least one class, got num_classes {num_classes}")
        binary = num_classes == 1
        classes = 2 if binary else num_classes
        super().__init__({"counts": torch.zeros(0, 3 * classes + binary * 2 * BINS, dtype=torch.int64)})
        self.num_classes, self.binary, self._classes = num_classes, binary, classes

    @torch.no_grad()
    def update(self, logits: Tensor, mask: Tensor, item: Tensor) -> None:
        """logits [B, num_classes, H, W]; mask [B, H, W], a class a pixel, in the binary case 0 or 1;
        item int [B], which frame of the dataset it is. NaN and classes that do not exist are a ValueError.
        """
        frames, _, *size = logits.shape
        assert logits.shape[1] == self.num_classes, (logits.shape, self.num_classes)
        assert mask.shape == (frames, *size), (mask.shape, logits.shape)
        assert not mask.is_floating_point(), mask.dtype
        mask = mask.long()
        nan = logits.amax(dim=1).isnan().flatten(1).any(dim=1)
        unknown = ((mask < 0) | (mask >= self._classes)).flatten(1).any(dim=1)
        if (nan | unknown).any():
            wrong = {"NaN logits": item[nan].tolist(), "masks of unknown classes": item[unknown].tolist()}
            raise ValueError("; ".join(f"{what} in frames {which}" for what, which in wrong.items() if which))

        predicted = logits[:, 0] > 0 if self.binary else logits.argmax(dim=1)
        pairs = _histogram(mask * self._classes + predicted, self._classes**2).unflatten(1, (-1, self._classes))
        hit, marked, true = pairs.diagonal(dim1=1, dim2=2), pairs.sum(dim=1), pairs.sum(dim=2)
        columns = [hit, marked, true]
        if self.binary:
            passed = torch.bucketize(logits[:, 0].double(), _cuts_on(logits.device), right=True)
            columns.append(_histogram(mask * BINS + passed, 2 * BINS))
        self.keep({"item": item, "counts": torch.cat(columns, dim=1)})

    def compute(self) -> dict[str, Tensor]:
        """Float64 scalars by name (see the class), and the counts `frames` and `empty_frames`, those without a
        sounding pixel. A mean over nothing is excluded.
        """
        counts = self.gathered()["counts"]
        hit, marked, true = self._areas(counts)
        sounding = true[:, 1:].sum(dim=1) > 0
        occurs = marked + true > 0
        measures = _measures(hit, marked, true)
        means = {}
        for name, values in measures.items():
            per_class = _mean_over_frames(values[sounding], occurs[sounding])
            means[name], means[f"{name}_nobg"] = mean(per_class), mean(per_class[1:])
        if self.binary:  # F not at 0.5, but at the best threshold
            means["miou_fg"] = mean(self._iou_fg(counts).tolist())
            best = _measures(*self._at_thresholds(counts[sounding], PUBLISHED))["fscore"].amax(dim=1).tolist()
            means["fscore"] = means["fscore_nobg"] = mean(best)
            areas = _measures(*self._at_thresholds(counts[sounding], AVSBENCH)).items()  # each [F, K]
            at = {name: [mean(v.tolist()) for v in values.T] for name, values in areas}
            means["fscore_fg"] = max(map(_fscore_of, at["precision"], at["recall"]))
            means["fscore_fg_frames"] = max(at["fscore"])
        else:
            for name in ("miou", "fscore"):
                per_class = _mean_over_frames(measures[name], occurs)
                means[f"{name}_class"], means[f"{name}_class_nobg"] = mean(per_class), mean(per_class[1:])
        return self.scalars({**means, "frames": len(counts), "empty_frames": int((~sounding).sum())})

    def per_class(self) -> Tensor:
        """IoU of each class, float64 [C], nan where it never occurs; `miou_class` is the mean of the rest.

        Semantic segmentation only. After `compute` of the frames of all processes, before it of our own.
        """
        assert not self.binary, "sounding or not: no classes"
        hit, marked, true = self._areas(self.table()["counts"])
        means = _mean_over_frames(_measures(hit, marked, true)["miou"], marked + true > 0)
        return torch.tensor(means, dtype=torch.float64, device=self.device)

    def rows(self) -> list[dict[str, Any]]:
        """One row a frame, by item: after `compute` those of all processes, before it our own.

        Keys: `item`; `iou`: binary the frame's `miou_fg`, semantic the mean over the classes that occur in the frame;
        `miou`, `fscore`: as published, of this frame alone, nan where it has no sounding pixel; `sounding` and
        `marked`: the share of its pixels that sound in truth and in the prediction.
        """
        table = self.table()
        items, counts = table["item"].tolist(), table["counts"]
        hit, marked, true = self._areas(counts)
        pixels = true.sum(dim=1)
        occurs = marked + true > 0
        measures = _measures(hit, marked, true)
        mious = _mean_over_frames(measures["miou"].T, occurs.T)  # transposed: over the classes of each frame
        if self.binary:
            ious = self._iou_fg(counts).tolist()
            fscores = _measures(*self._at_thresholds(counts, PUBLISHED))["fscore"].amax(dim=1).tolist()
        else:
            ious, fscores = mious, _mean_over_frames(measures["fscore"].T, occurs.T)
        shares = [(areas[:, 1:].sum(dim=1) / pixels).tolist() for areas in (true, marked)]
        rows = []
        for item, iou, miou, fscore, *share in zip(items, ious, mious, fscores, *shares, strict=True):
            row = {"item": item, "iou": iou, "miou": miou, "fscore": fscore, "sounding": share[0], "marked": share[1]}
            rows.append(row if share[0] else row | {"miou": math.nan, "fscore": math.nan})
        return rows

    def _areas(self, counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pixels of each class, float64 [F, C]: rightly predicted, predicted, in truth."""
        hit, marked, true = counts[:, : 3 * self._classes].double().split(self._classes, dim=1)
        return hit, marked, true

    def _at_thresholds(self, counts: Tensor, chosen: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Pixels of what sounds, as `_areas`, at each of the chosen thresholds: float64 [F, K], [F, K] and [F, 1]."""
        bins = counts[:, -2 * BINS :].unflatten(1, (2, BINS))
        passed = bins.flip(2).cumsum(dim=2).flip(2)[:, :, 1:].double()  # [F, silent or sounding, cut]
        return passed[:, 1, chosen], passed[:, :, chosen].sum(dim=1), bins[:, 1].sum(dim=1, keepdim=True).double()

    def _iou_fg(self, counts: Tensor) -> Tensor:
        """AVSBench's of each frame, float64 [F]."""
        hit, marked, true = self._areas(counts)
        return torch.where(true[:, 1] > 0, _measures(hit, marked, true)["miou"][:, 1], hit[:, 0] / true.sum(dim=1))


@cache
def _cuts_on(device: torch.device) -> Tensor:
    return torch.tensor(CUTS, dtype=torch.float64, device=device)


def _histogram(values: Tensor, bins: int) -> Tensor:
    """int64 [B, H, W] in 0…bins − 1 -> how often each is in each frame [B, bins]"""
    offset = bins * torch.arange(len(values), device=values.device).view(-1, 1, 1)
    return torch.bincount((values + offset).flatten(), minlength=bins * len(values)).view(-1, bins)


def _measures(hit: Tensor, marked: Tensor, true: Tensor) -> dict[str, Tensor]:
    """Of pixel counts, float64; 0/0, which the bound of 1 makes 0/1, is 0."""
    return {
        "miou": hit / (marked + true - hit).clamp(min=1),
        "precision": hit / marked.clamp(min=1),
        "recall": hit / true.clamp(min=1),
        # (1 + β²)·P·R / (β²·P + R) = (1 + β²)·hit / (marked + β²·true), β² = 3/10, in whole numbers: rounded once
        "fscore": 13 * hit / (10 * marked + 3 * true).clamp(min=1),
    }


def _fscore_of(precision: float, recall: float) -> float:
    return 1.3 * precision * recall / (0.3 * precision + recall) if precision and recall else 0.0


def _mean_over_frames(values: Tensor, defined: Tensor) -> list[float]:
    """values [F, C], bool defined [F, C] -> means [C], nan where nothing is defined"""
    return [mean(v[d].tolist()) for v, d in zip(values.T, defined.T, strict=True)]
