"""Finds the clips of an index that are nearest to a video, an audio file or an image.

The embedding of a modality is the mean of all tokens, its own and fusion, of a pass that has met no other; of a network
that was trained for retrieval, its projection.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from deepavfusion.config.ranges import RULES
from deepavfusion.data.lists.text import count
from deepavfusion.inference.features import ALONE, UNIMODAL, Features, extract_features, states_of
from deepavfusion.inference.inputs import Inputs
from deepavfusion.models.deepavfusion import DeepAVFusion
from deepavfusion.models.retriever import Retriever
from deepavfusion.tasks.base import Task
from deepavfusion.utils.errors import UserError
from deepavfusion.utils.files import almost_there

MATCHES = {  # pairs of modalities, of the query and of the clips, whose similarities are averaged
    "both": (("image", "image"), ("audio", "audio")),
    "image": (("image", "image"),),
    "audio": (("audio", "audio"),),
    "image_to_audio": (("image", "audio"),),
    "audio_to_image": (("audio", "image"),),
}


BLOCK = 4096  # clips compared at a time


@dataclass(frozen=True)
class Neighbour:
    """A clip of the index: its name and absolute path there, the cosine of its embedding and the query's, what it has
    ("image audio", "image" or "audio"), and whether the file is the one that was embedded: "", "changed" or "gone"."""

    path: str
    place: str
    score: float
    modalities: str
    state: str


@dataclass
class Search:
    """The `nearest` clips, best first, of the `candidates` in the index that have the modality asked for, by an
    `embedding` in words.

    `own_rank` is the query's own place among them, from 1, where it is in the index, too, and one modality is searched
    by the other; None elsewhere. `notes` say what the result rests on.
    """

    query: str
    modalities: str
    match: str
    embedding: str
    nearest: list[Neighbour]
    candidates: int
    clips: int
    own_rank: int | None = None
    notes: list[str] = field(default_factory=list)


def search_clips(
    network: DeepAVFusion | Task,
    index: Features,
    query: str | Path | Features,
    match: str | None = None,
    top_k: int = 5,
    batch_size: int = 8,
) -> Search:
    """The nearest clips.

    Args:
        network: that the index was made with; a task that was trained for retrieval projects.
        index: features with passes="unimodal" or "all" and level="pooled".
        query: a video, an audio file or an image; or `embed_query` of one.
        match: of `MATCHES`; None: like for like with all that the query has, or else one by the other.
        top_k: how many clips.
        batch_size: windows at a time, of the query.

    Raises:
        UserError: the query does not decode, or lacks the modality asked for, as does the whole index; embeddings that
            are zero or not finite; `top_k` is no number of clips.
    """
    if index.level != "pooled" or not set(UNIMODAL) <= set(index.embeddings):
        raise UserError(
            f"the index has level={index.level} and {', '.join(index.embeddings)}, expected means of unimodal passes, "
            "in which no modality has met the other: extract_features(…, level='pooled', passes='unimodal')."
        )
    if not RULES["top_k"].holds(top_k):  # a negative one would leave out the farthest
        raise UserError(f"top_k is {top_k!r}, expected {RULES['top_k'].expected}.")
    asked = query if isinstance(query, Features) else embed_query(network, query, index.windows, batch_size)
    (query,), (has,) = asked.paths, asked.modalities
    chosen = _chosen(match, has, index, query)
    rows = _rows(index, chosen)
    place = os.path.realpath(asked.places[0])
    own = [row for row in rows if os.path.realpath(index.places[row]) == place]
    like_for_like = all(by == of for by, of in MATCHES[chosen])
    if like_for_like:
        rows = [row for row in rows if row not in own]
    if not rows:
        raise UserError(f"the index holds nothing but the query {query}: expected other files to compare it with.")
    scores = _scores(network, index, asked, chosen, rows)
    order = scores.argsort(descending=True, stable=True).tolist()
    nearest = _neighbours(index, [(rows[n], scores[n].item()) for n in order[:top_k]])
    notes = ["the query is in the index itself, and was left out of the comparison"] if like_for_like and own else []
    embedding = "projections" if is_retriever(network) else "mean tokens"
    return Search(
        query=query,
        modalities=has,
        match=chosen,
        embedding=f"{embedding} of unimodal passes",
        nearest=nearest,
        candidates=len(rows),
        clips=len(index),
        own_rank=None if like_for_like or not own else 1 + order.index(rows.index(own[0])),
        notes=[*notes, *_notes(network, index, asked, chosen, nearest)],
    )


def embed_query(network: DeepAVFusion | Task, query: str | Path, windows: int = 1, batch_size: int = 8) -> Features:
    """The embeddings of a query, before an index is made, which may take long; arguments as of `search_clips`.

    Raises:
        UserError: it does not decode.
    """
    found = extract_features(network, [query], windows=windows, batch_size=batch_size, passes="unimodal")
    if found.failed:
        almost = almost_there(str(query)) if found.failed[0].reason.startswith("missing") else ""
        raise UserError(
            f"query {query} cannot be used, {found.failed[0].reason}{almost}: expected a complete file with frames, "
            "audio or both, or an image."
        )
    return found


def _chosen(match: str | None, has: str, index: Features, query: str | Path) -> str:
    """The match; a `UserError` where it cannot be."""

    def fits(name: str) -> bool:
        return all(by in has.split() for by, _ in MATCHES[name])

    possible = [name for name in MATCHES if fits(name) and _rows(index, name)]
    if match is None and possible:
        return possible[0]
    if match is None:
        raise UserError(f"the index holds nothing that query {query} ({has}) can be compared with: index other files.")
    if match not in MATCHES:
        raise UserError(f"match is {match!r}: choose one of {', '.join(MATCHES)}.")
    instead = f"choose match={' or '.join(possible)}, " if possible else ""
    for by, of in MATCHES[match]:
        if by not in has.split():
            raise UserError(
                f"query {query} has no {by}, by which match={match} compares: {instead}or give a query with {by}."
            )
        if not _rows(index, of):  # a modality is the match of like for like, too
            raise UserError(f"no file of the index has {of}, which match={match} needs: {instead}or index other files.")
    if match not in possible:
        raise UserError(f"no file of the index has both image and audio: {instead}or index other files.")
    return match


def _rows(index: Features, match: str) -> list[int]:
    """Those that have the modalities that a match needs."""
    needed = {of for _, of in MATCHES[match]}
    return [row for row, has in enumerate(index.modalities) if needed <= set(has.split())]


def _scores(network: DeepAVFusion | Task, index: Features, asked: Features, match: str, rows: list[int]) -> Tensor:
    """Cosines of some rows and the query, float64 [N]."""
    queries = [(of, _unit(network, asked, by, [0])[0]) for by, of in MATCHES[match]]
    blocks = (rows[begin : begin + BLOCK] for begin in range(0, len(rows), BLOCK))
    found = (torch.stack([_unit(network, index, of, part) @ query for of, query in queries]) for part in blocks)
    return torch.cat([part.mean(dim=0) for part in found])


def _neighbours(index: Features, found: list[tuple[int, float]]) -> list[Neighbour]:
    """Rows with their scores; whether the files have changed is looked up now."""
    states = dict(states_of(Inputs({index.paths[row]: index.places[row] for row, _ in found})))
    nearest = []
    for row, score in found:
        path = index.paths[row]
        state = "gone" if path not in states else "" if states[path] == index.states[path] else "changed"
        nearest.append(Neighbour(path, index.places[row], score, index.modalities[row], state))
    return nearest


def _unit(network: DeepAVFusion | Task, features: Features, modality: str, rows: list[int]) -> Tensor:
    """Unit vectors of some rows, float64 [N, E]."""
    encoder = network.net.encoder if isinstance(network, Task) else network
    own, fusion = (torch.from_numpy(features.embeddings[name][rows]).double() for name in ALONE[modality])
    if own.shape[1] != encoder.embed_dim:
        raise UserError(
            f"the index has embeddings of {own.shape[1]} numbers, the network of {encoder.embed_dim}: it is of another "
            "checkpoint; give that, or index the files anew."
        )
    tokens = getattr(encoder, modality).num_patches, encoder.fusion_tokens.shape[1]
    mean = (tokens[0] * own + tokens[1] * fusion) / sum(tokens)
    if isinstance(network, Task) and isinstance(network.net, Retriever):
        with torch.inference_mode():
            mean = network.net.project({modality: mean.to(encoder.fusion_tokens)})[modality].cpu().double()
    wrong = ~mean.isfinite().all(dim=1) | (mean == 0).all(dim=1)
    if wrong.any():
        raise UserError(
            f"the {modality} embedding of {features.paths[rows[int(wrong.nonzero()[0, 0])]]} is zero or not finite, "
            "which is near to nothing: look for a checkpoint, or an index, that is damaged."
        )
    return F.normalize(mean, dim=1)


def is_retriever(network: DeepAVFusion | Task) -> bool:
    """Whether it was trained to compare image and audio."""
    return isinstance(network, Task) and isinstance(network.net, Retriever)


def _notes(
    network: DeepAVFusion | Task,
    index: Features,
    asked: Features,
    match: str,
    nearest: list[Neighbour],
) -> list[str]:
    """What limits the meaning of the scores."""
    found = [f"the query is {remark.reason}" for remark in asked.remarks]
    if not is_retriever(network) and any(a != b for a, b in MATCHES[match]):
        found.append(
            f"the network was not trained to compare audio and images (experiment=vggsound_retrieval does): {match} "
            "may find no better than chance"
        )
    if others := len(index) - len(_rows(index, match)):
        found.append(
            f"{count(others, 'file')} of the {len(index)} in the index cannot be compared so: no such modality"
        )
    if index.failed:
        found.append(f"{count(len(index.failed), 'file')} could not be indexed, e.g. {index.failed[0].path}")
    for state, what in (("changed", "was changed since it was indexed"), ("gone", "is not there any more")):
        if places := [each.place for each in nearest if each.state == state]:
            found.append(f"{places[0]} {what}{f', as are {len(places) - 1} more' if len(places) > 1 else ''}")
    return found
