"""What packed data keeps of a clip: everything that a sample may be cut from."""

from __future__ import annotations

import io
from math import ceil

import numpy as np
from PIL import Image

from deepavfusion.data.stores.packed import INT16, Item
from deepavfusion.data.stores.store import OpenClip
from deepavfusion.transforms.audio import SAMPLE_RATE
from deepavfusion.types import Clip
from deepavfusion.utils.errors import DecodeError

AUDIO_AT_ONCE = 3600  # s of audio in memory
FRAMES_AT_ONCE = 64  # frames in memory, of a long video


def make_item(clip: Clip, opened: OpenClip, short_side: int, quality: int) -> Item:
    """All of a clip: frames on the grid, the whole audio, masks.

    Args:
        short_side, quality: of the JPEGs, see `PackSettings`.

    Raises:
        DecodeError: it cannot be read.
    """
    times = opened.frame_times()
    jpegs, spans, shape = io.BytesIO(), [], (0, 0)
    last: tuple[bytes, tuple[int, int]] | None = None  # pixels of the previous frame, and its span
    step = min(FRAMES_AT_ONCE, opened.frames_at_once)
    for begin in range(0, len(times), step):
        for frame in opened.frames(times[begin : begin + step]):
            shape, pixels = (frame.height, frame.width), frame.pixels.tobytes()
            if last is None or last[0] != pixels:  # a still is stored once
                start = jpegs.tell()
                _shrunk(frame.pixels, short_side).save(jpegs, "JPEG", quality=quality, subsampling=0)
                last = pixels, (start, jpegs.tell())
            spans.append(last[1])
    sound = _sound(opened)
    if not sound:
        raise DecodeError(clip.path, "too_short", "the audio stream holds no sample", "audio")
    masks, mask_spans = io.BytesIO(), []
    for second in clip.frames:
        start = masks.tell()
        opened.mask(second).save(masks, "PNG")
        mask_spans.append((start, masks.tell()))
    return {
        "id": clip.id.encode(),
        "jpegs": jpegs.getvalue(),
        "masks": masks.getvalue(),
        "sound": sound,
        "times": np.array(times, np.float64),
        "spans": np.array(spans, np.int64).reshape(-1),
        "mask_seconds": np.array(clip.frames, np.int64),
        "mask_spans": np.array(mask_spans, np.int64).reshape(-1),
        "labels": np.array(clip.classes or (-1,), np.int64),
        "shape": np.array(shape, np.int64),
        "ends": np.array([opened.audio_end, opened.video_end], np.float64),
    }


def _sound(opened: OpenClip) -> bytes:
    """All of a clip's audio, int16; of a long one, an hour is in memory as float32."""
    parts: list[bytes] = []
    end = opened.audio_end + 1.0  # headers may end too early
    for begin in range(0, ceil(end), AUDIO_AT_ONCE):
        wanted = min(float(AUDIO_AT_ONCE), end - begin)
        waveform = opened.audio(float(begin), wanted).numpy()
        parts.append(np.round(waveform * INT16).astype(np.int16).tobytes())
        if len(waveform) < round(wanted * SAMPLE_RATE):
            break
    return b"".join(parts)


def _shrunk(image: Image.Image, short_side: int) -> Image.Image:
    factor = short_side / min(image.size)
    if factor >= 1:
        return image
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image.resize(size, Image.Resampling.BICUBIC)
