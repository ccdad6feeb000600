"""The benchmark VGGSounder (Zverev et al., ICCV 2025): several classes a clip, each heard, seen, or both.

Letters: B clips of a batch · N clips · C classes, in the order of the benchmark · S sets of labels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from deepavfusion.metrics.by_item import ItemMetric, mean

HEARD, SEEN, BOTH = 1, 2, 3  # codes of a label; 0: the class is not in the clip
SUBSETS = {"a": (HEARD, BOTH), "v": (SEEN, BOTH), "av": (BOTH,), "a_only": (HEARD,), "v_only": (SEEN,)}
PASSES = ("av", "a", "v", "a_head", "v_head")
AT = (1, 3, 5, 10)


class VGGSounderMetrics(ItemMetric):
    """How well clips are classified by both modalities and by one of them, see `figures`.

    Names are `<set>/<figure>`: each set of labels is a test of its own. `<set>/clips`: those of the set that were
    evaluated, `<set>/coverage`: their share of the set, 0…1.

    The result depends neither on batches and order nor on the number of processes, see `ItemMetric`.

    Args:
        listed: name of each set -> how many clips it labels.
        num_classes: C.
    """

    def __init__(self, listed: dict[str, int], num_classes: int) -> None:
        logits = dict.fromkeys(PASSES, torch.zeros(0, num_classes))
        super().__init__({"codes": torch.zeros(0, len(listed), num_classes, dtype=torch.uint8), **logits})
        self.listed, self.num_classes = listed, num_classes

    @torch.no_grad()
    def update(self, logits: dict[str, Tensor], codes: Tensor, item: Tensor) -> None:
        """logits {pass: float [B, C]} of `PASSES`; codes uint8 [B, S, C]; item int [B], position in the dataset.

        ValueError: NaN.
        """
        assert codes.shape == (len(item), len(self.listed), self.num_classes), codes.shape
        for name in PASSES:
            assert logits[name].shape == (len(item), self.num_classes), (name, logits[name].shape)
            if (nan := logits[name].isnan().any(dim=1)).any():
                raise ValueError(f"NaN logits of {name} in clips {item[nan].tolist()}")
        self.keep({"item": item, "codes": codes, **{name: logits[name].detach() for name in PASSES}})

    def compute(self) -> dict[str, Tensor]:
        """Float64 scalars by name, see the class."""
        table, found = self.gathered(), dict[str, float]()
        for n, (name, listed) in enumerate(self.listed.items()):
            codes = table["codes"][:, n]
            rows = (codes > 0).any(dim=1)
            found |= {f"{name}/clips": int(rows.sum()), f"{name}/coverage": int(rows.sum()) / listed}
            ours = figures({key: table[key][rows] for key in PASSES}, codes[rows])
            found |= {f"{name}/{key}": value for key, value in ours.items()}
        return self.scalars(found)


def figures(logits: dict[str, Tensor], codes: Tensor) -> dict[str, float]:
    """All figures of one set of labels, as the benchmark defines them; shares, 0…1.

    `<subset>_<measure>`, with the subsets `a` (labels heard), `v` (seen), `av` (both at once), `a_only`, `v_only`; a
    clip without such a label is not in the subset (`<subset>_clips`). Measures, where the prediction is the set of the
    k = 1, 3, 5, 10 classes with the highest logits (of equal ones those with the lower number; of fewer classes, all):
    - `hit_at_k`: a predicted class is right.
    - `accuracy_at_k`: the set is that of the true classes.
    - `precision_at_k recall_at_k f1_at_k jaccard_at_k`: of all labels together (micro).
    - `f1_macro_at_k`: mean over all classes, also those without a label, which count 0.
    - `auc_roc auc_pr`: areas under the ROC and the precision-recall curve, the latter not interpolated; means over
      classes that some clips have and some have not.
    - `f1_at_k_perfect`: what knowing all labels gets, since a clip has more or fewer of them than k.
    - `f1_at_k_frequent hit_at_k_frequent`: what the k commonest classes get for every clip, without a network.

    `mu_a mu_v mu_av`: modality confusion, the share of clips whose first class by audio (by the image; by both, each)
    is one of its labels, of any modality, while that by both together is none.

    Args:
        logits: {pass: [N, C]}; `a` and `v` of the passes by one modality, `a_head` and `v_head` of heads of the pass by
            both, `av`. What is computed of heads has the suffix `_head`; without such passes there is none.
        codes: uint8 [N, C].
    """
    ranked, found = {name: _first(x, AT[-1]) for name, x in logits.items()}, dict[str, float]()
    for subset, kinds in SUBSETS.items():
        truth = torch.isin(codes, torch.tensor(kinds, dtype=codes.dtype))
        rows = truth.any(dim=1)
        truth = truth[rows]
        if not len(truth):
            continue
        found[f"{subset}_clips"] = len(truth)
        for suffix in ("", "_head"):
            name = subset.removesuffix("_only") + suffix
            if name in logits:
                ours = sets(ranked[name][rows], truth) | areas(logits[name][rows], truth)
                found |= {f"{subset}_{key}{suffix}": value for key, value in ours.items()}
        common = _first(truth.sum(dim=0, keepdim=True), AT[-1]).expand(len(truth), -1)
        bounds = {"perfect": (("f1",), _first(truth.byte(), AT[-1])), "frequent": (("f1", "hit"), common)}
        for bound, (measures, classes) in bounds.items():
            theirs = sets(classes, truth)
            names = (f"{measure}_at_{k}" for measure in measures for k in AT)
            found |= {f"{subset}_{key}_{bound}": theirs[key] for key in names}
    if len(codes):
        for suffix in ("", "_head"):
            if {f"a{suffix}", f"v{suffix}"} <= logits.keys():
                right = {key: _is_label(ranked[name], codes) for key, name in
                         (("a", f"a{suffix}"), ("v", f"v{suffix}"), ("both", "av"))}  # fmt: skip
                lost = {"a": right["a"], "v": right["v"], "av": right["a"] & right["v"]}
                found |= {f"mu_{key}{suffix}": _share(x & ~right["both"]) for key, x in lost.items()}
    return found


def sets(ranked: Tensor, truth: Tensor) -> dict[str, float]:
    """Measures of the first k classes. ranked int64 [N, 10], likeliest first; truth bool [N, C]; N > 0"""
    found, labels = dict[str, float](), truth.sum(dim=0)
    for k in AT:
        marked = torch.zeros_like(truth).scatter_(1, ranked[:, :k], True)
        right = marked & truth
        hits, marks = right.sum(dim=0), marked.sum(dim=0)
        hit, mark, label = (int(counts.sum()) for counts in (hits, marks, labels))
        by_class = 2 * hits.double() / (marks + labels).clamp(min=1)
        found |= {
            f"hit_at_{k}": _share(right.any(dim=1)),
            f"accuracy_at_{k}": _share((marked == truth).all(dim=1)),
            f"precision_at_{k}": hit / mark,
            f"recall_at_{k}": hit / label,
            f"f1_at_{k}": 2 * hit / (mark + label),
            f"jaccard_at_{k}": hit / (mark + label - hit),
            f"f1_macro_at_{k}": mean(by_class.tolist()),
        }
    return found


def areas(logits: Tensor, truth: Tensor) -> dict[str, float]:
    """logits [N, C], truth bool [N, C] -> `auc_roc` and `auc_pr`, nan if no class has both"""
    both = truth.any(dim=0) & ~truth.all(dim=0)
    each = [_areas(logits[:, n], truth[:, n]) for n in both.nonzero()[:, 0].tolist()]
    return {f"auc_{name}": mean([pair[n] for pair in each]) for n, name in enumerate(("roc", "pr"))}


def _areas(scores: Tensor, true: Tensor) -> tuple[float, float]:
    """Of one class, [N] each; equal scores are one threshold.

    Not torchmetrics', which divides in float32: the published numbers have six digits.
    """
    order = scores.argsort(descending=True)
    scores, true = scores[order], true[order]
    last = torch.ones(len(scores), dtype=torch.bool)
    last[:-1] = scores[1:] != scores[:-1]
    hits = true.cumsum(dim=0)[last].double()  # at each threshold
    marked = last.nonzero()[:, 0].double() + 1
    misses, zero = marked - hits, hits.new_zeros(1)
    gained, lost = hits.diff(prepend=zero), misses.diff(prepend=zero)
    roc = (lost * (hits - gained / 2)).sum() / (hits[-1] * misses[-1])
    precision = (gained * hits / marked).sum() / hits[-1]
    return roc.item(), precision.item()


def _first(scores: Tensor, k: int) -> Tensor:
    """scores [N, C] -> the k classes with the highest, int64 [N, k]; of equal ones those with the lower number"""
    return scores.argsort(dim=1, descending=True, stable=True)[:, :k]


def _is_label(ranked: Tensor, codes: Tensor) -> Tensor:
    """Whether the first class is a label of the clip, bool [N]"""
    return codes.gather(1, ranked[:, :1])[:, 0] > 0


def _share(values: Tensor) -> float:
    return int(values.sum()) / len(values) if len(values) else math.nan
