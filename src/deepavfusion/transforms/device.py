"""What happens to a batch on the accelerator, in one go: gain, log-mel, normalisation."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from deepavfusion.transforms.audio import LogMel, random_gain
from deepavfusion.transforms.image import Normalise
from deepavfusion.types import Batch


class DeviceTransform(nn.Module):
    """uint8 frames and waveforms of a collated batch to what the model reads.

    Args:
        max_gain_db: random gain in training, −max_gain_db…+max_gain_db; 0 leaves the loudness alone.
    """

    def __init__(self, max_gain_db: float = 6.0) -> None:
        super().__init__()
        self.max_gain_db = max_gain_db
        self.log_mel = LogMel()
        self.normalise = Normalise()

    @torch.no_grad()
    def forward(self, batch: Batch, train: bool) -> Batch:
        """Fills `spectrogram`, normalises `image`, and with train=True changes the loudness of `waveform`."""
        waveform = random_gain(batch.waveform, self.max_gain_db) if train and self.max_gain_db else batch.waveform
        spectrogram = self.log_mel(waveform)
        return replace(batch, image=self.normalise(batch.image), waveform=waveform, spectrogram=spectrogram)
