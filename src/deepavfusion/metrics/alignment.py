"""How alike two embeddings of the same clips are, and how one of them is spread.

Definitions: kernels and neighbours, Huh et al. 2024 (Platonic Representation Hypothesis), with Kornblith et al. 2019
(CKA) and Song et al. 2012 (its unbiased form); alignment and uniformity, Wang & Isola 2020; modality gap, Liang et al.
2022; RankMe, Garrido et al. 2023. All take rows [N, D]; where no formula subtracts them, the widths may differ.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deepavfusion.metrics.by_item import blocks

EPSILON = 1e-6  # added to the denominator of CKA by Huh et al.; it shows in the fifth digit


def mutual_knn(x: Tensor, y: Tensor, k: int = 10) -> float:
    """Share of the k nearest neighbours, by dot product, that a clip has in both embeddings, mean over clips, 0…1."""
    k = min(k, len(x) - 1)
    return common(nearest(x, k), nearest(y, k))


def common(near: Tensor, others: Tensor) -> float:
    """Share of its neighbours that a clip has in both lists, int64 [N, k] as of `nearest`; mean over clips, 0…1."""
    return (near.unsqueeze(2) == others.unsqueeze(1)).sum(dim=(1, 2)).double().mean().item() / near.shape[1]


def nearest(x: Tensor, k: int) -> Tensor:
    """Numbers of the k nearest others of each row, by dot product, nearest first: int64 [N, k]."""
    found = torch.zeros(len(x), k, dtype=torch.int64)
    for rows in blocks(len(x)):
        score = (x[rows] @ x.T).scatter_(1, rows.unsqueeze(1).to(x.device), -torch.inf)
        found[rows] = score.topk(k, dim=1).indices.cpu()
    return found


def cka(x: Tensor, y: Tensor, unbiased: bool = False, epsilon: float = EPSILON) -> float:
    """Linear centred kernel alignment, up to 1; by products of features, so that no [N, N] kernel is made."""
    hsic = _unbiased_hsic if unbiased else _hsic
    x, y = x.double(), y.double()
    return hsic(x, y) / ((hsic(x, x) * hsic(y, y)) ** 0.5 + epsilon)


def _hsic(x: Tensor, y: Tensor) -> float:
    """tr(K H L H) of the kernels K = x xᵀ and L = y yᵀ, H = centring."""
    return ((x - x.mean(dim=0)).T @ (y - y.mean(dim=0))).square().sum().item()


def _unbiased_hsic(x: Tensor, y: Tensor) -> float:
    """Song et al. 2012, equation 5, with the diagonals of the kernels left out."""
    n = len(x)
    diagonals = [rows.square().sum(dim=1) for rows in (x, y)]
    sums = [rows @ rows.sum(dim=0) - own for rows, own in zip((x, y), diagonals, strict=True)]  # K 1, L 1
    trace = (x.T @ y).square().sum() - (diagonals[0] * diagonals[1]).sum()  # of K L
    whole = sums[0].sum() * sums[1].sum() / ((n - 1) * (n - 2))
    return ((trace + whole - 2 / (n - 2) * (sums[0] * sums[1]).sum()) / (n * (n - 3))).item()


def alignment(x: Tensor, y: Tensor, alpha: float = 2.0) -> float:
    """Mean distance of pairs of unit vectors, to the power alpha: 0 where both are the same."""
    return (x - y).norm(dim=1).pow(alpha).mean().item()


def uniformity(x: Tensor, t: float = 2.0) -> float:
    """log of the mean of exp(−t · squared distance) over pairs of different clips' unit vectors: 0 where all are the
    same, the lower the more evenly they are spread."""
    total = 0.0
    for rows in blocks(len(x)):
        squared = (2 - 2 * (x[rows] @ x.T)).clamp_(min=0)
        total += squared.mul_(-t).exp_().sum().item() - len(rows)
    return torch.tensor(total / (len(x) * (len(x) - 1)), dtype=torch.float64).log().item()


def modality_gap(x: Tensor, y: Tensor) -> float:
    """Distance of the means of two sets of unit vectors."""
    return (x.mean(dim=0) - y.mean(dim=0)).norm().item()


def rank_me(x: Tensor) -> float:
    """exp of the entropy of the singular values, as shares of their sum: how many dimensions are used. Of embeddings
    as they are, neither centred nor normalised."""
    values = torch.linalg.svdvals(x.double())
    share = values / values.sum() + 1e-7
    return (-(share * share.log()).sum()).exp().item()
