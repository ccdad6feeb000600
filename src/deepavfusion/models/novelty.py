"""Novelty detection: is an input unlike everything that a network was trained on?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deepavfusion.utils.errors import UserError

SHRINKAGE = 0.01  # weight of the identity in the covariance, which a few hundred clips do not determine
QUANTILE = 0.95  # share of the held-out windows that count as known
MIN_HELD_OUT = 10  # windows, for a threshold


@dataclass(frozen=True)
class NoveltyDetector:
    """Mahalanobis distance of an embedding to those of the training clips (Lee et al., NeurIPS 2018, with one Gaussian
    for all classes), and the distance that one in twenty held-out windows exceeds.

    Attributes:
        mean: of the training clips' embeddings [D].
        whitening: [D, D]; (x − mean) @ whitening has the length of the distance.
        threshold: beyond this distance an input is novel.
    """

    mean: Tensor
    whitening: Tensor
    threshold: float

    @classmethod
    def fit(cls, train: Tensor, held_out: Tensor) -> NoveltyDetector | None:
        """From embeddings of training clips [N, D] and of clips that were not trained on [M, D]; None: too few."""
        if len(train) < 2 or len(held_out) < MIN_HELD_OUT:
            return None
        train, held_out = train.double(), held_out.double()
        mean, covariance = train.mean(dim=0), torch.cov(train.T)
        identity = torch.eye(len(mean), dtype=torch.float64) * covariance.trace() / len(mean)
        shrunk = (1 - SHRINKAGE) * covariance + SHRINKAGE * identity
        factor, failed = torch.linalg.cholesky_ex(shrunk)
        if failed:  # all alike, or not finite
            return None
        whitening = torch.linalg.solve_triangular(factor, torch.eye(len(mean), dtype=torch.float64), upper=False).T
        distance = torch.linalg.vector_norm((held_out - mean) @ whitening, dim=1)
        return cls(mean.float(), whitening.float(), float(distance.quantile(QUANTILE)))

    def distance(self, embedding: Tensor) -> Tensor:
        """[B, D] -> [B]"""
        mean, whitening = self.mean.to(embedding.device), self.whitening.to(embedding.device)
        return torch.linalg.vector_norm((embedding.float() - mean) @ whitening, dim=1)

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"mean": self.mean, "whitening": self.whitening, "threshold": self.threshold}

    @classmethod
    def from_state(cls, state: object, dim: int) -> NoveltyDetector | None:
        """From a checkpoint, which may come from anyone; None: it has none.

        Args:
            state: as `state` gave it.
            dim: of the embeddings.

        Raises:
            UserError: it does not fit.
        """
        if state is None:
            return None
        fields = state if isinstance(state, dict) else {}
        mean, whitening, threshold = (fields.get(name) for name in ("mean", "whitening", "threshold"))
        for values, shape in ((mean, (dim,)), (whitening, (dim, dim))):
            if not (isinstance(values, Tensor) and values.dtype == torch.float32 and values.shape == shape):
                raise _unfit(f"is not for embeddings of {dim} numbers")
            if not torch.isfinite(values).all():
                raise _unfit("has values that are NaN or infinite")
        if not (isinstance(threshold, float) and 0 < threshold < math.inf):
            raise _unfit("has no threshold")
        return cls(mean, whitening, threshold)  # type: ignore[arg-type]


def _unfit(why: str) -> UserError:
    return UserError(f"the checkpoint's novelty detector {why}: use a checkpoint that train.py wrote.")
