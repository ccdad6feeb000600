"""Nearest-neighbour accuracy: how well an embedding separates classes that it was not trained on."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

COMBINED = "combined"
CHUNK = 1024  # queries compared at a time


class NeighbourAccuracy(Metric):
    """k-NN accuracy by cosine similarity, one value per stream and one for the sum of the streams' similarities.

    Without gallery clips it is leave-one-out among the queries, as the paper's 1-NN during pre-training; with them,
    queries are classified by the gallery (train → test). Ties in the vote go to the class of the nearer neighbour.

    Args:
        streams: names of the embeddings, e.g. ("image", "audio", "fusion").
        k: neighbours that vote.
        leave_one_out: compare the queries with each other instead of with the gallery.

    Leave-one-out also leaves out what is of the query's group: windows of one video are alike. A query without others
    has no value, and without any class among the labels (all −1), there is nothing to measure.

    Shapes: embeddings {stream: [B, D]}, labels [B], groups [B].
    """

    full_state_update = False
    query_label: list[Tensor] | Tensor  # one tensor once processes are synchronised
    query_group: list[Tensor] | Tensor

    def __init__(self, streams: tuple[str, ...], k: int = 1, leave_one_out: bool = True) -> None:
        super().__init__()
        self.streams, self.k, self.leave_one_out = tuple(streams), k, leave_one_out
        for role in ("query", "gallery"):
            for name in (*self.streams, "label", "group"):
                self.add_state(f"{role}_{name}", default=[], dist_reduce_fx="cat")

    def update(
        self, embeddings: dict[str, Tensor], labels: Tensor, gallery: bool = False, groups: Tensor | None = None
    ) -> None:
        role = "gallery" if gallery else "query"
        for name in self.streams:
            getattr(self, f"{role}_{name}").append(F.normalize(embeddings[name].detach().float(), dim=-1))
        getattr(self, f"{role}_label").append(labels)
        getattr(self, f"{role}_group").append(torch.full_like(labels, -1) if groups is None else groups)

    def compute(self) -> dict[str, Tensor]:
        """Accuracies in 0…1, one for each stream and for "combined"; empty with too few clips to compare."""
        against = "query" if self.leave_one_out else "gallery"
        if not len(self.query_label) or not len(getattr(self, f"{against}_label")):
            return {}
        labels = dim_zero_cat(self.query_label)
        gallery_labels = dim_zero_cat(getattr(self, f"{against}_label"))
        if len(labels) < 1 or len(gallery_labels) < 1 + self.leave_one_out or (labels < 0).all():
            return {}
        groups = dim_zero_cat(self.query_group)
        queries = {name: dim_zero_cat(getattr(self, f"query_{name}")) for name in self.streams}
        gallery = {name: dim_zero_cat(getattr(self, f"{against}_{name}")) for name in self.streams}
        hits: dict[str, list[Tensor]] = {name: [] for name in (*self.streams, COMBINED)}
        for rows in torch.arange(len(labels), device=labels.device).split(CHUNK):
            similarity = {name: queries[name][rows] @ gallery[name].T for name in self.streams}
            similarity[COMBINED] = torch.stack(list(similarity.values())).sum(0)
            if self.leave_one_out:
                own = groups[rows].unsqueeze(1)
                alike = ((own == groups) & (own >= 0)).scatter(1, rows.unsqueeze(1), True)  # itself among them
                similarity = {name: values.masked_fill(alike, float("-inf")) for name, values in similarity.items()}
            for name, values in similarity.items():
                others = values.isfinite().any(dim=1)
                hits[name].append((_vote(values, gallery_labels, self.k) == labels[rows])[others])
        found = {name: torch.cat(values).float() for name, values in hits.items()}
        return {name: values.mean() for name, values in found.items() if len(values)}


def _vote(similarity: Tensor, labels: Tensor, k: int) -> Tensor:
    """similarity [Q, G], labels [G] -> the class most of the k nearest have [Q]"""
    nearest = labels[similarity.topk(min(k, similarity.shape[1]), dim=1).indices]
    votes = (nearest.unsqueeze(2) == nearest.unsqueeze(1)).sum(dim=2)
    return nearest.gather(1, votes.argmax(dim=1, keepdim=True)).squeeze(1)
