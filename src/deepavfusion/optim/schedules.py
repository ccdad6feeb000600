"""Learning-rate schedules as plain functions of the fractional epoch: the rate is set before every step."""

from __future__ import annotations

import math


def warmup_cosine(epoch: float, epochs: float, warmup_epochs: float) -> float:
    """Factor of the base learning rate: linear from 0 to 1 over the warm-up, then half a cosine down to 0 at the end.

    Args:
        epoch: epochs completed, with the fraction of the current one.
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

    Slows down branches that start from published weights while the fusion blocks are still untrained.
    """
    if epoch >= rise_epochs:
        return 1.0
    return 0.5 * (1.0 - math.cos(math.pi * epoch / rise_epochs))
