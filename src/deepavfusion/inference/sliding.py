"""Sliding windows over a long waveform, and the joining of their results."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

COLUMNS = 1500  # of an overview, at most


def window_starts(length: int, window: int) -> list[int]:
    """Start times (samples) of windows that overlap by half; the last one ends with the waveform."""
    return [*range(0, length - window, window // 2), length - window] if length > window else [0]


def overlap_add(pieces: Iterable[tuple[int, Tensor]], length: int) -> Iterator[Tensor]:
    """Join overlapping pieces, each cross-faded into the next over their whole overlap.

    The weights of the pieces sum to 1 everywhere and change over at least half a window, so that no seam is audible.
    Only what the next piece may change is held in memory.

    Args:
        pieces: start (samples) and signal [..., T] of each, by rising start; together they cover everything.
        length: of the result, samples; what exceeds it is cut off.

    Yields:
        The result from its beginning on, [..., length] in parts.
    """
    held, first, done = torch.empty(0), 0, 0  # what is held begins at `first`
    for start, piece in pieces:
        assert start <= done, f"nothing covers the samples from {done} to {start}"
        piece = piece[..., : length - start]
        shared = done - start
        phase = (torch.arange(shared, device=piece.device, dtype=piece.dtype) + 0.5) / max(shared, 1)  # 0…1
        fade = torch.sin(math.pi / 2 * phase) ** 2
        if start > first:
            yield held[..., : start - first]
        joined = piece.clone()
        joined[..., :shared] = held[..., start - first :].lerp(piece[..., :shared], fade) if shared else 0
        held, first, done = joined, start, start + piece.shape[-1]
    assert done == length, f"nothing covers the samples from {done} to {length}"
    yield held


class Overview:
    """Averages the maps of windows into at most `COLUMNS` columns for a figure, however long the audio is.

    Args:
        frames: spectrogram frames of the whole audio.
    """

    def __init__(self, frames: int) -> None:
        self.step = math.ceil(frames / COLUMNS)  # frames per column
        self.columns = math.ceil(frames / self.step)
        self.sums, self.weights = torch.empty(0), torch.zeros(self.columns)

    def add(self, first_frame: float, maps: Tensor) -> None:
        """Add maps [N, M, F] of a window, weighted by a Hann window."""
        if not len(self.sums):
            self.sums = maps.new_zeros(*maps.shape[:2], self.columns)
        column = ((first_frame + torch.arange(maps.shape[2])) / self.step).long()
        inside = column < self.columns
        weight = torch.hann_window(maps.shape[2] + 2)[1:-1][inside]
        self.sums.index_add_(2, column[inside], maps[..., inside] * weight)
        self.weights.index_add_(0, column[inside], weight)

    @property
    def maps(self) -> Tensor:
        """[N, M, columns]"""
        return self.sums / self.weights.clamp(min=1e-9)
