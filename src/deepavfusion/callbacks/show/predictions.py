"""A classifier's predictions for each clip: probabilities, scores, and the files of a test."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from deepavfusion.types import ALL, HEADS, STREAMS
from deepavfusion.utils.files import whole

ALIKE = 2  # best examples of the same classes, at most, while there are others


@dataclass
class Said:
    """One stream's predictions for N clips: the predicted classes, likeliest first; the probability of the first; and
    that of the truth, of several true classes the least likely one (nan if there is none)."""

    predicted: list[list[int]]
    probability: list[float]
    of_truth: list[float]


def truth_of(target: Tensor, classes: int) -> Tensor:
    """int [N] or 0 and 1 [N, C] -> bool [N, C]"""
    return target.bool() if target.ndim == 2 else F.one_hot(target, classes).bool()


def _least(values: Tensor, truth: Tensor) -> Tensor:
    """values, bool [N, C] -> the smallest value of a true class [N], inf where there is none"""
    return values.masked_fill(~truth, math.inf).amin(dim=1)


def said(logits: Tensor, target: Tensor, multi_label: bool) -> Said:
    """Probabilities are a softmax, or with several classes a clip a sigmoid; then all classes above 0.5 are predicted,
    or the likeliest if there is none.

    Args:
        logits: [N, C].
        target: int [N], or 0 and 1 [N, C].
        multi_label: whether clips may have several classes.
    """
    chances = logits.sigmoid() if multi_label else logits.softmax(dim=1)
    ranked = logits.argsort(dim=1, descending=True, stable=True)  # ties: the lower class, as in the metrics
    many = (logits > 0).sum(dim=1).clamp(min=1).tolist() if multi_label else [1] * len(logits)
    of_truth = _least(chances, truth_of(target, logits.shape[1]))
    return Said(
        predicted=[row[:n].tolist() for row, n in zip(ranked, many, strict=True)],
        probability=chances.gather(1, ranked[:, :1]).squeeze(1).tolist(),
        of_truth=of_truth.masked_fill(of_truth.isinf(), math.nan).tolist(),
    )


def scores(logits: Tensor, target: Tensor, multi_label: bool) -> Tensor:
    """How well each clip is predicted, float64 [N]: the log probability of the truth.

    With several classes a clip: the logit of the least likely true class minus that of the likeliest other class,
    positive if all true classes come first. (Binary cross entropy would mostly reflect how many classes a clip has.)
    If no class is true, or all are, 0 replaces the missing logit.
    """
    logits, truth = logits.double(), truth_of(target, logits.shape[1])
    if not multi_label:
        return _least(logits.log_softmax(dim=1), truth)
    least, most = _least(logits, truth), logits.masked_fill(truth, -math.inf).amax(dim=1)
    return least.masked_fill(~truth.any(dim=1), 0) - most.masked_fill(truth.all(dim=1), 0)


def choose(found: dict[str, Tensor], multi_label: bool, count: int, best: bool) -> list[int]:
    """Rows of the worst predictions, the worst first; or of the best, the best first, with at most `ALIKE` of the same
    classes while there are others."""
    order = scores(found[ALL], found["target"], multi_label).argsort(descending=best, stable=True).tolist()
    if not best:
        return order[:count]
    taken: Counter[tuple[int, ...]] = Counter()
    first: list[int] = []
    later: list[int] = []
    for row in order:
        kind = tuple(found["target"][row].flatten().tolist())
        taken[kind] += 1
        (first if taken[kind] <= ALIKE else later).append(row)
        if len(first) == count:
            break
    return sorted((first + later)[:count], key=order.index)


def names(labels: Sequence[int], classes: Sequence[str]) -> str:
    return " + ".join(classes[label] for label in labels)


def rows(
    found: dict[str, Tensor], verdicts: dict[str, Said], dense: dict[str, Tensor], multi_label: bool, dataset: Any
) -> Iterator[list[Any]]:
    """Lines of the table, the header first. The probability of the truth is that of its least likely class; the columns
    of the dense windows are empty for clips whose windows could not be read."""
    classes = dataset.list.classes
    columns = {"": verdicts[ALL], **{f"_{stream}": verdicts[stream] for stream in STREAMS}}
    place = {suffix: {n: n for n in range(len(found["item"]))} for suffix in columns}  # row -> row of the verdict
    if len(dense["item"]):
        row_of = {item: n for n, item in enumerate(dense["item"].tolist())}
        columns["_dense"] = said(dense[ALL], dense["target"], multi_label)
        place["_dense"] = {n: row_of[item] for n, item in enumerate(found["item"].tolist()) if item in row_of}
    words = ("predicted", "probability", "probability_of_truth")
    yield ["item", "id", "classes", *(f"{word}{suffix}" for suffix in columns for word in words)]
    truth = truth_of(found["target"], len(classes))
    for n, item in enumerate(found["item"].tolist()):
        line = [item, dataset.clips[dataset.first_clip(item)].id, names(truth[n].nonzero().flatten().tolist(), classes)]
        for suffix, verdict in columns.items():
            if (at := place[suffix].get(n)) is None:
                line += ["", "", ""]
                continue
            line.append(names(verdict.predicted[at], classes))
            line += ["" if math.isnan(p) else f"{p:.6g}" for p in (verdict.probability[at], verdict.of_truth[at])]
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
