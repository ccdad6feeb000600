"""Waveform to log-mel spectrogram. Every audio constant of the project stands here.

Shapes: T samples · M mel bands · F frames.
"""

from __future__ import annotations

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
    """Sound [..., T] made `length` samples long by appending its mirror image, as often as needed; longer is cut."""
    assert waveform.shape[-1] > 0, "there is no sound to extend"
    while waveform.shape[-1] < length:
        waveform = torch.cat([waveform, waveform.flip(-1)], dim=-1)
    return waveform[..., :length]


def apply_gain(waveform: Tensor, gain_db: Tensor) -> Tensor:
    """Sound [B, T] made louder by gain_db [B], dB, and clamped to [−1, 1]."""
    return (waveform * 10 ** (gain_db / 20).unsqueeze(1)).clamp(-1, 1)


class LogMel(nn.Module):
    """log10 power mel spectrogram, torchaudio's MelSpectrogram with the constants above; no normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.mel = MelSpectrogram(SAMPLE_RATE, n_fft=N_FFT, hop_length=HOP_LENGTH, n_mels=N_MELS, power=2.0)

    def forward(self, waveform: Tensor) -> Tensor:
        """waveform [B, T] at 16 kHz in [−1, 1] -> [B, 1, M, T // 250]; the last, half-empty frame is dropped."""
        if not len(waveform):  # the STFT refuses an empty batch
            return waveform.new_zeros(0, 1, N_MELS, waveform.shape[-1] // HOP_LENGTH)
        return (self.mel(waveform)[..., :-1] + LOG_OFFSET).log10().unsqueeze(1)
