"""What embeddings know of classes they were not trained on: neighbours, clusters; and how two embeddings agree.

Rows are compared by cosine. Whatever ties counts as if it came in random order, so that an embedding that is the same
for all clips is as good as chance. Two take equal neighbours in any order, always the same: `mutual_knn`, for which two
such embeddings agree, and the vote of `knn_train`, which then is for one class throughout.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics.functional.clustering import adjusted_rand_score, mutual_info_score, normalized_mutual_info_score
from torchmetrics.functional.clustering.utils import calculate_contingency_matrix, calculate_entropy

from deepavfusion.metrics.alignment import alignment, cka, common, modality_gap, rank_me, uniformity
from deepavfusion.metrics.by_item import blocks
from deepavfusion.metrics.retrieval import STEPS, average_precision, chance_precision, rank_pairs, relevant

LAST = -(2**61)  # similarity of a clip with itself, which is no neighbour of its own
SETTLED = 1e-5  # rows that differ by less, relative to their largest number, differ by rounding

STREAM_MEASURES = {  # name -> what it is
    "knn": "1-NN accuracy among the evaluated clips, leave-one-out",
    "knn_train": "k-NN accuracy by train clips",
    "map": "mean average precision of the clips' classes, leave-one-out",
    "map_train": "mean average precision of the clips' classes among train clips",
    "nmi": "normalised mutual information of k-means clusters and classes",
    "ami": "the same, adjusted for chance",
    "ari": "adjusted Rand index of k-means clusters and classes",
    "uniformity": "log mean exp(−2 · squared distance) of unit vectors, the lower the more evenly spread",
    "rank_me": "dimensions in use",
}
TOKEN_MEASURES = ("knn", "knn_train", "map", "map_train")  # of single tokens, of which there are many
PAIR_MEASURES = {
    "cka": "linear centred kernel alignment",
    "unbiased_cka": "the same, without bias",
    "mutual_knn": "share of the nearest neighbours that both have",
    "alignment": "mean squared distance of a clip's two unit vectors",
    "modality_gap": "distance of the means of the unit vectors",
    "auc": "area under ROC, a clip's own pair against pairs of two clips",
}
SEARCH_MEASURES = {  # of a query stream in another
    "map": "mean average precision of the query's class, its own clip left out",
    "r1": "share of the clips whose own pair is found first",
    "median_rank": "median rank of the own pair",
}


@dataclass
class Findings:
    """All that a test found, of three networks: "" as it is, "untrained", and "chance".

    `streams` and `pairs` map a stream, or two in order, to a measure's value by network. `kinds` are those of the
    streams: "type", "free" (which costs no network), "group" and "token". `nearest` and `precision` are of the types of
    the network as it is: the nearest others of each clip [N, k], positions in `items`, and each clip's average
    precision [N]; `items` are positions in the dataset, `labels` int64 [N] or bool [N, C].
    """

    kinds: dict[str, str]
    items: Tensor
    labels: Tensor
    train_clips: int
    streams: dict[str, dict[str, dict[str, float]]] = field(init=False)
    pairs: dict[tuple[str, str], dict[str, dict[str, float]]] = field(default_factory=dict)
    nearest: dict[str, Tensor] = field(default_factory=dict)
    precision: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.streams = {stream: {} for stream in self.kinds}

    def metrics(self) -> dict[str, float]:
        """Flat names: `<stream>_<measure>`, with `_untrained` or `_chance`; `<stream>_to_<stream>_<measure>`. Of single
        tokens, of which `semantics.csv` has all, the 1-NN accuracy only."""
        found = {
            f"{stream}_{measure}{f'_{network}' if network else ''}": value
            for stream, measures in self.streams.items()
            for measure, networks in measures.items()
            for network, value in networks.items()
            if self.kinds[stream] != "token" or (measure == "knn" and network != "chance")
        }
        found |= {
            f"{one}_to_{other}_{measure}{f'_{network}' if network else ''}": value
            for (one, other), measures in self.pairs.items()
            for measure, networks in measures.items()
            for network, value in networks.items()
        }
        return {name: value for name, value in found.items() if math.isfinite(value)}


class Neighbours(NamedTuple):
    """Of each query, float64 [N]: whether the nearest has its class, whether the vote of the nearest does, and the
    average precision of its class, nan where no other clip has it."""

    first: Tensor
    voted: Tensor
    precision: Tensor


def settled(rows: Tensor) -> Tensor:
    """Rows that differ by rounding only, as those of tokens that see nothing, made equal: it would put them in order.

    rows [N, D] -> [N, D]
    """
    middle = rows.mean(dim=0)
    same = (rows - middle).abs().max() <= SETTLED * middle.abs().max()
    return middle.expand_as(rows) if same else rows


def neighbours(
    queries: Tensor, gallery: Tensor, labels: Tensor, others: Tensor, votes: int = 1, leave_one_out: bool = False
) -> Neighbours:
    """Compare each query with all rows of a gallery.

    Args:
        queries, gallery: unit vectors [Q, D] and [N, D].
        labels, others: their classes, int64 [Q] and [N], or bool [Q, C] and [N, C] where clips may have several.
        votes: how many nearest ones vote; equal votes go to the class of the nearer.
        leave_one_out: query n and row n of the gallery are of one clip, which is left out.
    """
    queries, gallery = queries.double(), gallery.double()
    labels, others = labels.to(queries.device), others.to(queries.device)
    found = Neighbours(*torch.full((3, len(queries)), torch.nan, dtype=torch.float64))
    for rows in blocks(len(queries), len(gallery)):
        score = (queries[rows] @ gallery.T * STEPS).round_().to(torch.int64)
        alike = relevant(labels[rows], others)
        if leave_one_out:
            own = rows.unsqueeze(1).to(score.device)
            score, alike = score.scatter_(1, own, LAST), alike.scatter_(1, own, False)
        best = score == score.amax(dim=1, keepdim=True)
        found.first[rows] = ((best & alike).sum(dim=1) / best.sum(dim=1)).double().cpu()
        found.voted[rows] = _vote(score, labels[rows], others, votes).double().cpu()
        found.precision[rows] = average_precision(score, alike)
    return found


def _vote(score: Tensor, labels: Tensor, others: Tensor, votes: int) -> Tensor:
    """Whether the class with most votes is one of the query's: bool [Q]"""
    near = others[score.topk(min(votes, score.shape[1]), dim=1).indices]  # [Q, k] or [Q, k, C]
    # Halves of halves, less than a vote in all, decide between equal votes.
    weight = 1 + 0.5 ** torch.arange(1, near.shape[1] + 1, dtype=torch.float64, device=near.device)
    if near.ndim == 3:
        winner = (near * weight.unsqueeze(1)).sum(dim=1).argmax(dim=1)
        return labels.gather(1, winner.unsqueeze(1))[:, 0]
    counts = weight.new_zeros(len(near), int(others.max()) + 1)
    return counts.scatter_add_(1, near, weight.expand(near.shape)).argmax(dim=1) == labels


def chance(labels: Tensor, others: Tensor | None = None) -> dict[str, float]:
    """What `knn` and `map` are of neighbours in random order, on average.

    Args:
        labels: as of `neighbours`.
        others: of a gallery; None: leave-one-out.
    """
    left_out = int(others is None)
    others = labels if others is None else others
    count = len(others) - left_out
    with_class = torch.zeros(len(labels), dtype=torch.float64)
    for rows in blocks(len(labels), len(others)):
        with_class[rows] = relevant(labels[rows], others).sum(dim=1).double() - left_out
    precision = chance_precision(with_class[with_class > 0], count)
    return {"knn": with_class.mean().item() / count, "map": precision.mean().item()}


def k_means(rows: Tensor, clusters: int, seed: int, restarts: int = 4, iterations: int = 100) -> Tensor:
    """The cluster of each row, int64 [N]: Lloyd's algorithm from k-means++ starts, the best of some restarts."""
    random = torch.Generator().manual_seed(seed)
    best, least = torch.zeros(len(rows), dtype=torch.int64), math.inf
    for _ in range(restarts):
        centres = _spread_out(rows, clusters, random)
        member = torch.full((len(rows),), -1, device=rows.device)
        for _ in range(iterations):
            squared, now = _squared(rows, centres).min(dim=1)
            if torch.equal(now, member):
                break
            member, count = now, torch.bincount(now, minlength=clusters).unsqueeze(1)
            sums = torch.zeros_like(centres).index_add_(0, member, rows)
            centres = torch.where(count > 0, sums / count.clamp(min=1), centres)
        total = squared.sum().item()
        if total < least:
            best, least = member.cpu(), total
    return best


def _spread_out(rows: Tensor, clusters: int, random: torch.Generator) -> Tensor:
    """Starts of k-means++ (Arthur & Vassilvitskii 2007): each drawn by its squared distance to those before."""
    chosen = [int(torch.randint(len(rows), (1,), generator=random))]
    squared = torch.full((len(rows),), math.inf, dtype=rows.dtype, device=rows.device)
    while len(chosen) < clusters:
        squared = torch.minimum(squared, _squared(rows, rows[chosen[-1:]])[:, 0])
        weight = squared.double().cpu().cumsum(dim=0)
        drawn = torch.rand(1, generator=random, dtype=torch.float64) * weight[-1]
        chosen.append(min(int(torch.searchsorted(weight, drawn)), len(rows) - 1))
    return rows[chosen]


def _squared(rows: Tensor, centres: Tensor) -> Tensor:
    """Squared distances of unit vectors [N, D] to centres [C, D]: [N, C]"""
    return (1 + centres.square().sum(dim=1) - 2 * rows @ centres.T).clamp_(min=0)


def cluster_agreement(member: Tensor, labels: Tensor) -> dict[str, float]:
    """`nmi`, `ami` and `ari` of clusters and classes, int64 [N] each."""
    with torch.sparse.check_sparse_tensor_invariants(False):  # torch asks for a choice, torchmetrics makes none
        found = {"nmi": normalized_mutual_info_score(member, labels).item(), "ami": _adjusted(member, labels)}
        return {**found, "ari": adjusted_rand_score(member, labels).item()}


def _adjusted(member: Tensor, labels: Tensor) -> float:
    """Adjusted mutual information (Vinh, Epps & Bailey 2010), arithmetic mean of the entropies.

    torchmetrics' adds the expectation in a Python loop, minutes for 309 classes.
    """
    table = calculate_contingency_matrix(member, labels).double()
    if 1 in table.shape:
        return 0.0
    found = mutual_info_score(member, labels).item()
    size = (calculate_entropy(member) + calculate_entropy(labels)).item() / 2
    expected = _expected_information(table.sum(dim=1), table.sum(dim=0))
    return (found - expected) / (size - expected) if size > expected else 0.0


def _expected_information(a: Tensor, b: Tensor) -> float:
    """Mutual information of two partitions in groups of these sizes, float64 [R] and [C], on average."""
    count, shared = a.sum(), torch.arange(1, int(min(a.max(), b.max())) + 1, dtype=torch.float64)
    total = 0.0
    for size in a:  # a row of the table at a time
        other, n = b.unsqueeze(1), shared.unsqueeze(0)
        possible = (n <= size) & (n <= other) & (n >= size + other - count)
        factorials = (
            torch.lgamma(size + 1) + torch.lgamma(other + 1) + torch.lgamma(count - size + 1)
            + torch.lgamma(count - other + 1) - torch.lgamma(count + 1) - torch.lgamma(n + 1)
            - torch.lgamma((size - n).clamp(min=0) + 1) - torch.lgamma((other - n).clamp(min=0) + 1)
            - torch.lgamma((count - size - other + n).clamp(min=0) + 1)
        )  # fmt: skip
        term = n / count * (n * count / (size * other)).log() * factorials.exp()
        total += term[possible].sum().item()
    return total


def describe(
    rows: Tensor,
    vectors: Tensor,
    labels: Tensor,
    gallery: tuple[Tensor, Tensor] | None,
    votes: int,
    seed: int,
    single: bool = False,
) -> tuple[dict[str, float], Tensor]:
    """The measures of a stream, `STREAM_MEASURES`, and the average precision of each clip, leave-one-out.

    Args:
        rows: embeddings [N, D], those of `settled`.
        vectors: of length 1, of the same.
        labels: see `neighbours`.
        gallery: unit vectors of train clips and their labels.
        votes: of train clips.
        seed: of k-means.
        single: a token: `TOKEN_MEASURES` only.
    """
    own = neighbours(vectors, vectors, labels, labels, leave_one_out=True)
    found = {"knn": own.first.mean().item(), "map": own.precision.nanmean().item()}
    if gallery is not None:
        theirs = neighbours(vectors, gallery[0], labels, gallery[1], votes)
        found |= {"knn_train": theirs.voted.mean().item(), "map_train": theirs.precision.nanmean().item()}
    if not single:
        if labels.ndim == 1:
            member = k_means(vectors.float(), len(labels.unique()), seed)
            found |= cluster_agreement(member, labels)
            order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
            found["nmi_chance"] = cluster_agreement(member[order], labels)["nmi"]
        found |= {"uniformity": uniformity(vectors), "rank_me": rank_me(rows)}
    return found, own.precision


def compare(one: Tensor, other: Tensor, near: tuple[Tensor, Tensor], seed: int) -> dict[str, float]:
    """`PAIR_MEASURES` of two embeddings of the same clips, unit vectors [N, D], whatever their order.

    Args:
        near: their `nearest` neighbours, as many of one as of the other.
        seed: of the order in which clips are put for what chance gives (`cka_chance`, `alignment_chance`).
    """
    order = torch.randperm(len(one), generator=torch.Generator().manual_seed(seed)).to(other.device)
    return {
        "cka": cka(one, other),
        "cka_chance": cka(one, other[order]),
        "unbiased_cka": cka(one, other, unbiased=True),
        "unbiased_cka_chance": 0.0,
        "mutual_knn": common(*near),
        "mutual_knn_chance": near[0].shape[1] / (len(one) - 1),
        "alignment": alignment(one, other),
        "alignment_chance": alignment(one, other[order]),
        "modality_gap": modality_gap(one, other),
        "auc": pair_auc(one, other),
        "auc_chance": 0.5,
    }


def search(queries: Tensor, gallery: Tensor, labels: Tensor) -> dict[str, float]:
    """`SEARCH_MEASURES` of a query stream in another; unit vectors [N, D]."""
    of_class = neighbours(queries, gallery, labels, labels, leave_one_out=True)
    ranks = rank_pairs(queries, gallery).summary()
    count = len(queries)
    return {
        "map": of_class.precision.nanmean().item(),
        "map_chance": chance(labels)["map"],
        "r1": ranks["r1"],
        "r1_chance": 1 / count,
        "median_rank": ranks["median_rank"],
        "median_rank_chance": (count + 1) / 2,
    }


def pair_auc(one: Tensor, other: Tensor) -> float:
    """Share of the cases in which a clip's own pair is more alike than a pair of two clips; equal ones count half."""
    own = ((one.double() * other.double()).sum(dim=1) * STEPS).round().to(torch.int64)
    ranked, count = own.sort().values, len(own)

    def won(score: Tensor) -> int:
        """Twice the number of own pairs above each score, equal ones counted once, in all."""
        below = torch.searchsorted(ranked, score) + torch.searchsorted(ranked, score, right=True)
        return int(2 * count * score.numel() - below.sum())

    total = -won(own)  # what follows has each clip's own pair among those of two clips
    for rows in blocks(count):
        total += won((one[rows].double() @ other.double().T * STEPS).round_().to(torch.int64))
    return total / (2 * count * count * (count - 1))
