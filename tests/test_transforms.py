"""Sound and picture reach the model as the authors' code prepared them."""

from __future__ import annotations

import pytest
import torch

import golden_cases as cases
from deepavfusion.transforms.audio import LogMel, apply_gain, extend_by_mirror
from deepavfusion.transforms.device import DeviceTransform
from deepavfusion.transforms.image import Normalise, centre_crop, random_crop
from deepavfusion.types import Batch


def test_log_mel_matches_golden():
    golden = torch.from_numpy(cases.load("audio_front_end.npz")["log_mel"])
    with cases.float64():
        waveform = extend_by_mirror(cases.wave((1, 30000), 0.08, 0.00007, 0.8), 48000)
        log_mel = LogMel()(waveform)
    assert log_mel.shape == (1, 1, 128, 192)
    torch.testing.assert_close(log_mel[:, 0], golden, atol=1e-10, rtol=0)


def test_log_mel_of_silence_is_minus_seven():
    assert torch.allclose(LogMel()(torch.zeros(2, 48000)), torch.tensor(-7.0))


def test_short_sound_goes_back_and_forth():
    assert extend_by_mirror(torch.tensor([1.0, 2, 3]), 8).tolist() == [1, 2, 3, 3, 2, 1, 1, 2]
    assert extend_by_mirror(torch.tensor([1.0, 2, 3]), 2).tolist() == [1, 2]


def test_gain_is_in_decibels_and_clamped():
    waveform = torch.full((3, 2), 0.1)
    out = apply_gain(waveform, torch.tensor([0.0, 6.0206, 40.0]))
    torch.testing.assert_close(out[:, 0], torch.tensor([0.1, 0.2, 1.0]), atol=1e-5, rtol=0)


def test_normalisation_is_imagenets_and_reversible():
    image = torch.tensor([255, 0, 128], dtype=torch.uint8).view(1, 3, 1, 1)
    normalise = Normalise()
    expected = [(1 - 0.485) / 0.229, -0.456 / 0.224, (128 / 255 - 0.406) / 0.225]
    assert normalise(image).flatten().tolist() == pytest.approx(expected, abs=1e-5)
    torch.testing.assert_close(normalise.reverse(normalise(image)), image / 255)


def test_evaluation_crop_is_the_centre():
    image = torch.zeros(3, 256, 400, dtype=torch.uint8)
    image[:, 100:156, 172:228] = 200
    crop = centre_crop(image, 224)
    assert crop.shape == (3, 224, 224)
    assert crop.dtype == torch.uint8
    bright = crop[0].nonzero().float().mean(0)
    assert bright.tolist() == pytest.approx([111.5, 111.5], abs=1)


def test_training_crop_follows_the_seed_alone():
    image = torch.arange(3 * 60 * 80).remainder(251).view(3, 60, 80).to(torch.uint8)
    crops = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        crops.append(random_crop(image, 32))
    assert torch.equal(crops[0], crops[1])
    assert not torch.equal(crops[0], crops[2])


def test_device_transform_applies_the_gain_and_fills_the_spectrogram():
    waveform = cases.wave((2, 48000), 0.05, 0.001, 0.2)
    zeros, gain = torch.zeros(2), torch.tensor([0.0, -20.0])
    batch = Batch(torch.zeros(2, 3, 16, 16, dtype=torch.uint8), waveform, zeros.long(), ["a", "b"], zeros, zeros, gain)
    out = DeviceTransform()(batch)
    torch.testing.assert_close(out.waveform, waveform * torch.tensor([[1.0], [0.1]]))
    torch.testing.assert_close(out.spectrogram, LogMel()(out.waveform))
    assert out.spectrogram.shape == (2, 1, 128, 192)
    assert batch.spectrogram is None
