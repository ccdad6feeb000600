"""Audio and images reach the model as the authors' code prepared them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from deepavfusion.transforms.audio import LogMel, apply_gain, extend_by_mirror
from deepavfusion.transforms.device import DeviceTransform
from deepavfusion.transforms.image import Normalise, View, centre_view, random_view
from deepavfusion.types import Batch
from helpers import golden as cases


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


def gradient(height: int, width: int) -> Image.Image:
    """Red grows from 0 to 250 along x, green along y."""
    y, x = np.mgrid[0:height, 0:width]
    levels = np.stack([250 * (x + 0.5) / width, 250 * (y + 0.5) / height, 0 * x], axis=-1)
    return Image.fromarray(levels.round().astype(np.uint8))


def test_evaluation_view_is_the_centre():
    image = gradient(256, 400)
    seen = centre_view(256, 400).of(image, 224)
    assert seen.shape == (3, 224, 224)
    assert seen.dtype == torch.uint8
    # nothing to resize: the very pixels
    assert torch.equal(seen, torch.from_numpy(np.array(image)[16:240, 88:312]).permute(2, 0, 1))
    # segmentation sees the whole shorter side, or the whole image squeezed
    square = centre_view(256, 400, zoom=1.0)
    assert (square.top, square.bottom) == (0, 1)
    assert (square.left, square.right) == pytest.approx((0.18, 0.82))
    squeezed = View().of(image, 128)[:, 64].float()
    assert squeezed[0].tolist() == pytest.approx([250 * (n + 0.5) / 128 for n in range(128)], abs=2)


def test_training_view_follows_the_seed_alone():
    views = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        views.append(random_view(60, 80))
    assert views[0] == views[1] != views[2]


@pytest.mark.parametrize(("height", "width"), [(60, 80), (360, 640), (30, 3000)])
def test_training_views_cover_what_random_resized_crop_would(height, width):
    torch.manual_seed(0)
    views = [random_view(height, width) for _ in range(300)]
    for view in views:
        w, h = (view.right - view.left) * width, (view.bottom - view.top) * height
        assert 0 <= view.left < view.right <= 1 + 1e-9
        assert 0 <= view.top < view.bottom <= 1 + 1e-9
        assert 3 / 4 - 1e-6 <= w / h <= 4 / 3 + 1e-6
        if width < 3000:  # there no part of that area fits, so the middle is taken
            assert 0.5 - 1e-6 <= w * h / (width * height) <= 1 + 1e-6
    assert 0.4 < sum(view.flip for view in views) / 300 < 0.6
    if width < 3000:
        assert min(view.left for view in views) < 0.03 < 0.97 < max(view.right for view in views)


def test_a_view_shows_the_same_of_a_smaller_picture_and_of_a_mask():
    torch.manual_seed(0)
    large, small = gradient(360, 640), gradient(256, 455)
    y, x = np.mgrid[0:360, 0:640]
    mask = Image.fromarray(((x > 320) * 7 + (y > 180) * 1).astype(np.uint8))
    for _ in range(20):
        view = random_view(360, 640)
        raw, packed = view.of(large, 112).int(), view.of(small, 112).int()
        assert (raw - packed).abs().max() <= 2
        seen = view.of_mask(mask, 112)
        assert seen.dtype == torch.uint8
        assert set(seen.unique().tolist()) <= {0, 1, 7, 8}
        right, low = raw[0] > 250 * 0.51, raw[1] > 250 * 0.51  # clear of the edges by more than rounding
        left, high = raw[0] < 250 * 0.49, raw[1] < 250 * 0.49
        assert set(seen[right & low].tolist()) <= {8}
        assert set(seen[left & high].tolist()) <= {0}
        assert set(seen[right & high].tolist()) <= {7}


def test_device_transform_applies_the_gain_and_fills_the_spectrogram():
    waveform = cases.wave((2, 48000), 0.05, 0.001, 0.2)
    zeros, gain = torch.zeros(2), torch.tensor([0.0, -20.0])
    batch = Batch(
        torch.zeros(2, 3, 16, 16, dtype=torch.uint8),
        waveform,
        zeros.long(),
        ["a", "b"],
        zeros,
        zeros,
        gain,
        zeros.long(),
    )
    out = DeviceTransform()(batch)
    torch.testing.assert_close(out.waveform, waveform * torch.tensor([[1.0], [0.1]]))
    torch.testing.assert_close(out.spectrogram, LogMel()(out.waveform))
    assert out.spectrogram.shape == (2, 1, 128, 192)
    assert batch.spectrogram is None
