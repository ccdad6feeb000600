"""Retrieval of paired embeddings: which of all images belongs to an audio, and the other way round.

Ties are counted as if they came in random order: a network that gives all clips the same embedding finds 1 in N, not
all (as "1 + those that are strictly greater" would have it), and every query counts once.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from deepavfusion.metrics.by_item import ItemMetric, blocks
from deepavfusion.utils.errors import UserError

AT = (1, 5, 10)
DIRECTIONS = {"audio_to_image": (0, 1), "image_to_audio": (1, 0)}  # of queries and gallery among audio and image
STEPS = 2**40  # in which similarities differ: below, it is the rounding of the matrix product


class Ranks(NamedTuple):
    """Of each query: how many are nearer than its own pair, how many as near, and the average precision of its class.

    Shapes: greater and equal int64 [N]; precision float64 [N], 0…1, nan where a query has no class.
    """

    greater: Tensor
    equal: Tensor
    precision: Tensor

    def summary(self) -> dict[str, float]:
        """Shares 0…1 and ranks from 1, means over random orders of what is tied: `r1`, `r5`, `r10`, `median_rank`,
        `mean_rank`, `map` (mean average precision by class, of queries that have one), and `ties`, the queries whose
        pair has an equal rival."""
        greater, equal = self.greater.double(), self.equal.double()
        rank = 1 + greater + equal / 2
        found = {f"r{k}": ((k - greater) / (equal + 1)).clamp(0, 1).mean().item() for k in AT}
        found |= {"median_rank": float(np.median(rank.numpy())), "mean_rank": rank.mean().item()}
        return {**found, "map": self.precision.nanmean().item(), "ties": float((equal > 0).sum())}


def rank_pairs(queries: Tensor, gallery: Tensor, labels: Tensor | None = None) -> Ranks:
    """Rank the gallery for each query by the dot product. Query n and gallery n are a pair.

    Args:
        queries, gallery: [N, D], in general unit vectors, see `unit`.
        labels: classes, int64 [N] or bool [N, C]; relevant is what shares a class.
    """
    queries, gallery = queries.double(), gallery.double()
    count = len(queries)
    # Taken before the blocks: small results between them would keep the allocator from using their room again.
    greater, equal = torch.zeros(2, count, dtype=torch.int64)
    found = Ranks(greater, equal, torch.full((count,), torch.nan, dtype=torch.float64))
    for rows in blocks(count):
        # Equal vectors tie only after rounding: a matrix product adds in an order that depends on the column.
        score = (queries[rows] @ gallery.T * STEPS).round_().to(torch.int64)
        own = score.gather(1, rows.unsqueeze(1).to(score.device))
        found.greater[rows] = (score > own).sum(dim=1).cpu()
        found.equal[rows] = (score == own).sum(dim=1).cpu() - 1
        if labels is not None:
            found.precision[rows] = average_precision(score, relevant(labels[rows], labels))
    return found


def chance(labels: Tensor) -> dict[str, float]:
    """What `Ranks.summary` is of a random order, on average; `labels` as of `rank_pairs`."""
    count = len(labels)
    with_class = torch.zeros(count, dtype=torch.float64)
    for rows in blocks(count):
        with_class[rows] = relevant(labels[rows], labels).sum(dim=1).double()
    precision = chance_precision(with_class[with_class > 0], count)
    found = {f"r{k}": min(k / count, 1.0) for k in AT}
    middle = (count + 1) / 2
    return {**found, "median_rank": middle, "mean_rank": middle, "map": precision.mean().item(), "ties": 0.0}


def chance_precision(relevant: Tensor, count: int) -> Tensor:
    """Average precision of so many relevant ones [N] among `count` in random order, on average: float64 [N]."""
    harmonic = (1 / torch.arange(1, count + 1, dtype=torch.float64)).sum().item()
    return ((relevant - 1) / max(count - 1, 1) * (count - harmonic) + harmonic) / count


def unit(embeddings: Tensor, what: str) -> Tensor:
    """Float64 unit vectors [N, D].

    Raises:
        UserError: one is zero or not finite, so that it is as near to everything; it would count as found, or vanish.
    """
    embeddings = embeddings.double()
    wrong = ~embeddings.isfinite().all(dim=-1) | (embeddings == 0).all(dim=-1)
    if wrong.any():
        raise UserError(
            f"{int(wrong.sum())} of {len(embeddings)} {what} embeddings are zero or not finite (the first: row "
            f"{int(wrong.nonzero()[0, 0])}), which are near to nothing: expected numbers; look for a loss that is not "
            "finite, or a checkpoint that is damaged."
        )
    return F.normalize(embeddings, dim=-1)


def relevant(labels: Tensor, others: Tensor) -> Tensor:
    """Which of the others share a class: bool [Q, N]; labels as of `rank_pairs`, −1 for none, which nothing shares."""
    if labels.ndim == 1:
        return (labels.unsqueeze(1) == others) & (labels.unsqueeze(1) >= 0)
    return labels.float() @ others.float().T > 0


def average_precision(score: Tensor, relevant: Tensor) -> Tensor:
    """score int64 [Q, N], relevant bool [Q, N] -> [Q], the mean over all orders of what is tied.

    In n items of equal score, r of them relevant, after g others, R of them relevant, the i-th is relevant with
    probability r / n, and then (i − 1)(r − 1) / (n − 1) of those before it in the group are, on average (McSherry &
    Najork 2008): it adds r / n · (R + 1 + (i − 1)(r − 1) / (n − 1)) / (g + i).
    """
    # One sort of whole numbers, the relevance in the last bit: several times faster than sorting indices.
    unsorted = 2 * score + relevant
    keys = (unsorted.sort(dim=1).values.cpu().numpy() if unsorted.is_cuda else np.sort(unsorted.numpy()))[:, ::-1]
    hits, value = (keys & 1).astype(np.float64), keys >> 1
    number = np.arange(1, keys.shape[1] + 1, dtype=np.float64)
    found = np.cumsum(hits, axis=1)
    total = found[:, -1]
    precision = (found / number * hits).sum(axis=1)
    for row in np.flatnonzero((value[:, 1:] == value[:, :-1]).any(axis=1)):
        _, begin, size = np.unique(-value[row], return_index=True, return_counts=True)
        group = np.repeat(np.arange(len(size)), size)
        relevant_of = np.add.reduceat(hits[row], begin)
        before = np.cumsum(relevant_of) - relevant_of
        among = (relevant_of - 1) / np.maximum(size - 1, 1)
        expected = (before[group] + 1 + (number - 1 - begin[group]) * among[group]) / number
        precision[row] = (relevant_of[group] / size[group] * expected).sum()
    with np.errstate(invalid="ignore"):
        return torch.from_numpy(precision / total)


class PairRetrieval(ItemMetric):
    """Ranks of audio → image and image → audio over all clips of an evaluation, perhaps of several windows each.

    Windows are compared in two ways: the mean similarity of each window of one clip to each of the other, and, named
    `…_diagonal`, of each to that of the same number only (CAV-MAE Sync, Araujo et al., CVPR 2025).

    Args:
        dim: of the embeddings.
        num_classes: of several labels a clip; 0: one label each.

    Shapes of `update`: audio and image [B · windows, D]; labels int64 [B] or bool [B, C]; item int64 [B].
    """

    def __init__(self, dim: int, num_classes: int = 0) -> None:
        label = torch.zeros((0, num_classes) if num_classes else 0, dtype=torch.bool if num_classes else torch.int64)
        columns = {"audio": torch.zeros(0, dim), "image": torch.zeros(0, dim), "label": label}
        super().__init__({**columns, "window": torch.zeros(0, dtype=torch.int64)})

    def update(self, audio: Tensor, image: Tensor, labels: Tensor, item: Tensor) -> None:
        windows = max(1, len(audio) // max(1, len(item)))
        labels, item = (x.repeat_interleave(windows, dim=0) for x in (labels, item))
        window = torch.arange(len(item), device=item.device) % windows
        rows = {"audio": audio.detach().float(), "image": image.detach().float(), "label": labels}
        self.keep({"item": item * windows + window, "window": window, **rows})

    def compute(self) -> dict[str, Tensor]:
        """`audio_to_image_…` and `image_to_audio_…` of `Ranks.summary`, and `clips`."""
        table = self.gathered()
        if not len(table["item"]):
            return {}
        windows = int(table["window"].max()) + 1
        labels = table["label"][::windows]
        audio, image = (unit(table[name], name).unflatten(0, (-1, windows)) for name in ("audio", "image"))
        found: dict[str, float] = {"clips": float(len(labels))}
        pairs = {"": (audio.mean(dim=1), image.mean(dim=1))}
        if windows > 1:
            pairs["_diagonal"] = audio.flatten(1) / windows, image.flatten(1)
        for suffix, pair in pairs.items():
            for direction, order in DIRECTIONS.items():
                ranks = rank_pairs(pair[order[0]], pair[order[1]], labels)
                found |= {f"{direction}_{name}{suffix}": value for name, value in ranks.summary().items()}
        return self.scalars(found)
