"""Log-mel and mel mask as matrix products, which ONNX has: its own STFT differs from runtime to runtime.

They compute in float64 and are exact to float32. The network's own, by a float32 FFT, is not where a band is far
quieter than the clip's loudest: there the two differ by up to about 1e-3 (of log10), elsewhere by 1e-6.

Shapes: B clips · T samples · M mel bands · F frames · W samples of a frame (`N_FFT`) · 2K real and imaginary parts.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deepavfusion.transforms.audio import HOP_LENGTH, LOG_OFFSET, N_FFT, LogMel, MelMask

HOPS = math.ceil(N_FFT / HOP_LENGTH)  # that a frame spans
BINS = N_FFT // 2 + 1


def windowed_fourier(window: Tensor) -> Tensor:
    """[W] -> float64 [W, 2K]: a frame times this is its windowed discrete Fourier transform, real then imaginary."""
    sample, frequency = (torch.arange(n, dtype=torch.float64).unsqueeze(d) for n, d in ((N_FFT, 1), (BINS, 0)))
    angle = 2 * math.pi / N_FFT * (sample * frequency % N_FFT)
    return window.double().unsqueeze(1) * torch.cat([angle.cos(), -angle.sin()], dim=1)


def frames_of(waveform: Tensor, count: int) -> Tensor:
    """[B, T] -> [B, count, W]: frame n is centred on sample n · `HOP_LENGTH`; mirrored at the ends, as by torch.stft"""
    margin = N_FFT // 2
    ends = waveform[:, 1 : margin + 1].flip(1), waveform[:, -margin - 1 : -1].flip(1)
    padded = torch.cat([ends[0], waveform, ends[1]], dim=1)
    wanted = (count + HOPS - 1) * HOP_LENGTH
    padded = F.pad(padded, (0, max(0, wanted - padded.shape[1])))[:, :wanted]  # the last frame's rest is cut off below
    hops = padded.unflatten(1, (-1, HOP_LENGTH))
    return torch.cat([hops[:, n : n + count] for n in range(HOPS)], dim=2)[..., :N_FFT]


def overlap_add(frames: Tensor) -> Tensor:
    """[B, F, W] -> [B, (F + HOPS − 1) · HOP_LENGTH]: each frame `HOP_LENGTH` samples after the one before, summed"""
    hops = F.pad(frames, (0, HOPS * HOP_LENGTH - N_FFT)).unflatten(2, (HOPS, HOP_LENGTH))
    return sum(F.pad(hops[:, :, n], (0, 0, n, HOPS - 1 - n)) for n in range(HOPS)).flatten(1)  # type: ignore[union-attr]


class ExportedLogMel(nn.Module):
    """`transforms.audio.LogMel` for waveforms of one length."""

    def __init__(self) -> None:
        super().__init__()
        mel = LogMel().mel
        self.fourier: Tensor
        self.bank: Tensor
        self.register_buffer("fourier", windowed_fourier(mel.spectrogram.window), persistent=False)
        self.register_buffer("bank", mel.mel_scale.fb.double(), persistent=False)

    def forward(self, waveform: Tensor) -> Tensor:
        """float32 [B, T] -> [B, 1, M, T // 250]"""
        bins = frames_of(waveform.double(), waveform.shape[1] // HOP_LENGTH) @ self.fourier
        real, imaginary = bins.split(BINS, dim=2)
        power = ((real.square() + imaginary.square()) @ self.bank).float()
        return (power + LOG_OFFSET).log10().transpose(1, 2).unsqueeze(1)


class ExportedMelMask(nn.Module):
    """`transforms.audio.MelMask`, "normalised", for waveforms of one length."""

    def __init__(self, length: int) -> None:
        super().__init__()
        own = MelMask("normalised")
        fourier, frames = windowed_fourier(own.window), length // HOP_LENGTH + 1
        weight = torch.full((BINS,), 2.0, dtype=torch.float64)
        weight[0] = weight[-1] = 1.0  # 0 Hz and the highest occur once in a spectrum, the others twice
        square = own.window.double().square().expand(1, frames, -1)
        self.length = length
        self.fourier: Tensor
        self.inverse: Tensor
        self.bank: Tensor
        self.envelope: Tensor
        self.register_buffer("fourier", fourier, persistent=False)
        self.register_buffer("inverse", (fourier * weight.repeat(2) / N_FFT).T.contiguous(), persistent=False)
        self.register_buffer("bank", own.bank.T.double(), persistent=False)
        self.register_buffer("envelope", self._inside(overlap_add(square)), persistent=False)

    def forward(self, mask: Tensor, waveform: Tensor) -> Tensor:
        """mask [B, 1, M, F] in 0…1, waveform float32 [B, T] -> [B, T]"""
        mask = torch.cat([mask[:, 0], mask[:, 0, :, -1:]], dim=-1).transpose(1, 2).double() @ self.bank
        bins = frames_of(waveform.double(), mask.shape[1]) @ self.fourier
        return (self._inside(overlap_add(bins * mask.repeat(1, 1, 2) @ self.inverse)) / self.envelope).float()

    def _inside(self, padded: Tensor) -> Tensor:
        return padded[:, N_FFT // 2 : N_FFT // 2 + self.length]
