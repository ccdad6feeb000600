"""Learning-rate schedules as plain functions of the epoch, which may be a fraction: they are set every step."""

from __future__ import annotations

import math


def warmup_cosine(epoch: float, epochs: float, warmup_epochs: float) -> float:
    """Factor of the base learning rate: linear from 0 to 1 over the warm-up, then half a cosine down to 0 at the end.

    Args:
        epoch: epochs passed, fractions included.
        epochs: length of the run.
        warmup_epochs: length of the warm-up.
    """
    if epoch < warmup_epochs:
        return epoch / warmup_epochs
    if epochs <= warmup_epochs:
        return 1.0
    progress = min((epoch - warmup_epochs) / (epochs - warmup_epochs), 1.0)
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def half_cosine_rise(epoch: float, rise_epochs: float) -> float:
    """Factor from 0 to 1 along half a cosine; 1 from `rise_epochs` on.

    Holds back branches that start from published weights while the fusion blocks beside them are new.
    """
    if epoch >= rise_epochs:
        return 1.0
    return 0.5 * (1.0 - math.cos(math.pi * epoch / rise_epochs))
