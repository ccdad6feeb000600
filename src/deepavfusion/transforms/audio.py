"""Waveform to log-mel spectrogram, with every audio constant of the project.

Shapes: T samples · M mel bands · F frames.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torchaudio.transforms import MelSpectrogram

SAMPLE_RATE = 16_000  # Hz, mono
N_FFT = 800  # samples: 50 ms windows
HOP_LENGTH = 250  # samples: one frame every 1/64 s
N_MELS = 128  # bands from 0 Hz to 8 kHz
FRAMES_PER_SECOND = SAMPLE_RATE // HOP_LENGTH  # 64
LOG_OFFSET = 1e-7  # added to the power before log10: silence is −7
CLIP_SECONDS = 3.0  # 192 frames


def extend_by_mirror(waveform: Tensor, length: int) -> Tensor:
    """Waveforms [..., T] made `length` samples long by appending its mirror image as often as needed; longer is cut."""
    assert waveform.shape[-1] > 0, "there is no audio to extend"
    while waveform.shape[-1] < length:
        waveform = torch.cat([waveform, waveform.flip(-1)], dim=-1)
    return waveform[..., :length]


def apply_gain(waveform: Tensor, gain_db: Tensor) -> Tensor:
    """Waveforms [B, T] amplified by gain_db [B], dB, and clamped to [−1, 1]."""
    return (waveform * 10 ** (gain_db / 20).unsqueeze(1)).clamp(-1, 1)


class LogMel(nn.Module):
    """log10 power mel spectrogram, torchaudio's MelSpectrogram with the constants above; no normalisation."""

    def __init__(self) -> None:
        super().__init__()
        with torch.device("cpu"):  # torchaudio looks into the filter bank, which has no values on the meta device
            self.mel = MelSpectrogram(SAMPLE_RATE, n_fft=N_FFT, hop_length=HOP_LENGTH, n_mels=N_MELS, power=2.0)

    def forward(self, waveform: Tensor) -> Tensor:
        """waveform [B, T] at 16 kHz in [−1, 1] -> [B, 1, M, T // 250]; the last, half-empty frame is dropped."""
        if waveform.shape[0] == 0:  # the STFT refuses an empty batch; not len(), which would fix the batch of an export
            return waveform.new_zeros(0, 1, N_MELS, waveform.shape[-1] // HOP_LENGTH)
        with torch.autocast(waveform.device.type, enabled=False):  # bfloat16 has 8 bits of precision, too few for audio
            power = self.mel(waveform.to(self.mel.mel_scale.fb.dtype))[..., :-1]
            return (power + LOG_OFFSET).log10().unsqueeze(1).to(waveform.dtype)


class MelMask(nn.Module):
    """A mask on the mel grid, applied to a waveform: spread to the bins of its STFT, multiplied, transformed back.

    Args:
        spread: how the mask of the bands becomes one of the frequencies. "transposed": by the transpose of the filter
            bank, as published; the lowest frequency, the highest and the last frame are silent, and a mask of ones
            reproduces the waveform to 20 … 28 dB. "normalised": each frequency takes the weighted mean of its bands,
            those three take their neighbour's, and a mask of ones reproduces the waveform.
    """

    def __init__(self, spread: Literal["transposed", "normalised"] = "normalised") -> None:
        super().__init__()
        assert spread in ("transposed", "normalised"), spread
        self.bank: Tensor
        self.window: Tensor
        self.spread = spread
        bank = LogMel().mel.mel_scale.fb.clone()  # [frequencies, bands]
        if spread == "normalised":
            bank[0], bank[-1] = bank[1], bank[-2]  # 0 Hz and 8 kHz, at which all filters are 0
            bank = bank / bank.sum(dim=1, keepdim=True)
        self.register_buffer("bank", bank, persistent=False)
        self.register_buffer("window", torch.hann_window(N_FFT), persistent=False)

    def forward(self, mask: Tensor, waveform: Tensor) -> Tensor:
        """mask [B, 1, M, F] in 0…1, waveform [B, T] -> [B, T]"""
        mask = mask[:, 0].to(self.bank.dtype)
        last = torch.zeros_like(mask[..., :1]) if self.spread == "transposed" else mask[..., -1:]
        with torch.autocast(waveform.device.type, enabled=False):
            return self.apply_to_bins(self.bank @ torch.cat([mask, last], dim=-1), waveform)

    def apply_to_bins(self, mask: Tensor, waveform: Tensor) -> Tensor:
        """The same with a mask for every frequency and frame, [B, N_FFT // 2 + 1, F + 1]."""
        window, length = self.window, waveform.shape[-1]
        bins = torch.stft(waveform.to(window.dtype), N_FFT, HOP_LENGTH, window=window, return_complex=True)
        return torch.istft(bins * mask, N_FFT, HOP_LENGTH, window=window, length=length)
