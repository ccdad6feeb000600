"""What is computed on the device, for a whole batch: gain, log-mel, normalisation."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from deepavfusion.transforms.audio import LogMel, apply_gain
from deepavfusion.transforms.image import Normalise
from deepavfusion.types import Batch


class DeviceTransform(nn.Module):
    """From images and waveforms of a collated batch to what the model reads."""

    def __init__(self) -> None:
        super().__init__()
        self.log_mel = LogMel()
        self.normalise = Normalise()

    @torch.no_grad()
    def forward(self, batch: Batch) -> Batch:
        """Applies `gain_db` to `waveform`, fills `spectrogram` and normalises `image`."""
        waveform = apply_gain(batch.waveform, batch.gain_db)
        spectrogram = self.log_mel(waveform)
        image = self.normalise(batch.image).to(waveform.dtype)  # the precision of the model, which Lightning gives it
        return replace(batch, image=image, waveform=waveform, spectrogram=spectrogram)
