"""A classifier's predictions for each clip: probabilities, scores, and the files of a test."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from deepavfusion.types import ALL, HEADS, STREAMS
from deepavfusion.utils.files import whole

ALIKE = 2  # best examples of the same classes, at most, while there are others


class Verdict(NamedTuple):
    """One stream's prediction for a clip: the predicted classes, likeliest first; the probability of the first; and
    that of the truth, of several true classes the least likely one (nan if there is none)."""

    predicted: list[int]
    probability: float
    of_truth: float


def truth_of(target: Tensor, classes: int) -> Tensor:
    """int [N] or 0 and 1 [N, C] -> bool [N, C]"""
    return target.bool() if target.ndim == 2 else F.one_hot(target, classes).bool()


def _least(values: Tensor, truth: Tensor) -> Tensor:
    """values, bool [N, C] -> the smallest value of a true class [N], inf where there is none"""
    return values.masked_fill(~truth, math.inf).amin(dim=1)


def verdicts_of(logits: Tensor, target: Tensor) -> list[Verdict]:
    """A verdict on each clip. Probabilities are a softmax, or with several classes a clip a sigmoid; then all classes
    above 0.5 are predicted, or the likeliest if there is none.

    Args:
        logits: [N, C].
        target: int [N], or 0 and 1 [N, C] where clips may have several classes.
    """
    multi_label = target.ndim == 2
    chances = logits.sigmoid() if multi_label else logits.softmax(dim=1)
    ranked = logits.argsort(dim=1, descending=True, stable=True)  # ties: the lower class, as in the metrics
    many = (logits > 0).sum(dim=1).clamp(min=1).tolist() if multi_label else [1] * len(logits)
    of_truth = _least(chances, truth_of(target, logits.shape[1]))
    least = of_truth.masked_fill(of_truth.isinf(), math.nan).tolist()
    highest = chances.amax(dim=1).tolist()
    return [Verdict(row[:n].tolist(), p, q) for row, n, p, q in zip(ranked, many, highest, least, strict=True)]


def scores(logits: Tensor, target: Tensor) -> Tensor:
    """How well each clip is predicted, float64 [N]: the log probability of the truth.

    With several classes a clip: the logit of the least likely true class minus that of the likeliest other class,
    positive if all true classes come first. (Binary cross entropy would mostly reflect how many classes a clip has.)
    If no class is true, or all are, 0 replaces the missing logit.
    """
    logits, truth = logits.double(), truth_of(target, logits.shape[1])
    if target.ndim == 1:
        return _least(logits.log_softmax(dim=1), truth)
    least, most = _least(logits, truth), logits.masked_fill(truth, -math.inf).amax(dim=1)
    return least.masked_fill(~truth.any(dim=1), 0) - most.masked_fill(truth.all(dim=1), 0)


def choose(found: dict[str, Tensor], count: int, best: bool) -> list[int]:
    """Rows of the worst predictions, the worst first; or of the best, the best first, with at most `ALIKE` of the same
    classes while there are others."""
    order = scores(found[ALL], found["target"]).argsort(descending=best, stable=True).tolist()
    if not best:
        return order[:count]
    taken, first, later = Counter[tuple[int, ...]](), list[int](), list[int]()
    for row in order:
        kind = tuple(found["target"][row].flatten().tolist())
        taken[kind] += 1
        (first if taken[kind] <= ALIKE else later).append(row)
    return sorted((first + later)[:count], key=order.index)


def names(labels: Sequence[int], classes: Sequence[str]) -> str:
    return " + ".join(classes[label] for label in labels)


def rows(
    found: dict[str, Tensor], verdicts: dict[str, list[Verdict]], dense: dict[str, Tensor], dataset: Any
) -> Iterator[list[Any]]:
    """Lines of the table, the header first. The probability of the truth is that of its least likely class; the columns
    of the dense windows are empty for clips whose windows could not be read."""
    classes, items = dataset.list.classes, found["item"].tolist()
    columns = {"": verdicts[ALL], **{f"_{stream}": verdicts[stream] for stream in STREAMS}}
    by_item = {suffix: dict(zip(items, column, strict=True)) for suffix, column in columns.items()}
    if len(dense["item"]):
        column = verdicts_of(dense[ALL], dense["target"])
        by_item["_dense"] = dict(zip(dense["item"].tolist(), column, strict=True))
    words = ("predicted", "probability", "probability_of_truth")
    yield ["item", "id", "classes", *(f"{word}{suffix}" for suffix in by_item for word in words)]
    for item, truth in zip(items, truth_of(found["target"], len(classes)), strict=True):
        line = [item, dataset.clips[dataset.first_clip(item)].id, names(truth.nonzero().flatten().tolist(), classes)]
        for verdict_on in by_item.values():
            if verdict := verdict_on.get(item):
                line.append(names(verdict.predicted, classes))
                line += ["" if math.isnan(p) else f"{p:.6g}" for p in (verdict.probability, verdict.of_truth)]
            else:
                line += ["", "", ""]
        yield line


def write_logits(path: Path, found: dict[str, Tensor], dense: dict[str, Tensor], dataset: Any) -> None:
    """Everything needed to compute metrics, for `numpy.load`, without pickled objects.

    `classes` str [C]; `item` int64 [N], position in the list; `id` str [N]; `target` int64 [N], or 0 and 1 [N, C];
    `logits_{image,audio,fusion,all}` float32 [N, C]. `dense_…`: the same for the dense windows, if there are any, with
    the mean logits of a clip. Both are sorted by item; their lengths differ if some windows could not be read.
    """
    arrays = {"classes": np.array(dataset.list.classes, dtype=str)}
    for prefix, table in (("", found), ("dense_", dense)):
        if len(table["item"]):
            ids = [dataset.clips[dataset.first_clip(item)].id for item in table["item"].tolist()]
            arrays[f"{prefix}id"] = np.array(ids, dtype=str)
            arrays |= {f"{prefix}{name}": table[name].numpy() for name in ("item", "target")}
            arrays |= {f"{prefix}logits_{stream}": table[stream].numpy() for stream in HEADS}
    with whole(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
