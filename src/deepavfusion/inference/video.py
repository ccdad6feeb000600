"""All of a video's sound, and the one sentence for a video that cannot be used."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

import torch
from torch import Tensor

from deepavfusion.media import Media
from deepavfusion.transforms.audio import SAMPLE_RATE
from deepavfusion.utils.errors import DecodeError, UserError

SILENT = 1e-4  # −80 dB; the last bit of 16-bit sound is −90 dB
BLOCK = 10  # s of sound decoded at a time


@contextmanager
def told(doing: str) -> Iterator[None]:
    """A video that does not decode is a UserError: "video … cannot be `doing`"."""
    try:
        yield
    except DecodeError as error:
        raise UserError(
            f"video {error.path} cannot be {doing}, {error.reason.replace('_', ' ')}: {error.detail}; expected a "
            f"whole video with picture and sound."
        ) from error


def whole_sound(media: Media, purpose: str) -> Tensor:
    """All of a video's sound from second 0, mono at 16 kHz, [T]; 64 kB a second.

    Args:
        media: the video; it has a picture, too.
        purpose: what a silent video does not serve, "there is nothing to …".

    Raises:
        DecodeError: no picture, no sound, or it does not decode.
        UserError: it is silent.
    """
    path = media.path
    media.require("video")
    media.require("audio")
    waveform = torch.cat(list(blocks(media, SAMPLE_RATE)))
    peak = waveform.abs().max().item() if len(waveform) else 0.0
    if peak < SILENT:
        found = f"peak at {20 * math.log10(peak):.0f} dB" if peak > 0 else "are all zero"
        raise UserError(
            f"video {path} is silent: its {len(waveform) / SAMPLE_RATE:.2f} s of sound {found}, expected a peak above "
            f"{20 * math.log10(SILENT):.0f} dB of full scale; there is nothing to {purpose}."
        )
    return waveform


def blocks(media: Media, rate: int) -> Iterator[Tensor]:
    """All of a file's sound from second 0, mono, in pieces of `BLOCK` seconds; the last one is shorter, even empty."""
    for n in count():
        block = media.audio(n * BLOCK, BLOCK, rate)
        yield block
        if len(block) < BLOCK * rate:
            return
