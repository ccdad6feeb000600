"""What a file may hold. Whoever reads a file (verify, training, packing, prediction) asks here, and refuses the same.

A header alone is not believed: where a stream ends follows from its packets (packets.py), and time that no packet fills
is bounded. Every limit lies far beyond what is filmed, and keeps memory and time below what a small file may ask for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from deepavfusion.utils.errors import DecodeError

if TYPE_CHECKING:
    from deepavfusion.media.packets import Extent

MAX_PIXELS = 8192 * 4608  # of a frame or an image; 8K video has 7680 × 4320
MAX_ASPECT = 32  # longer side over shorter side; an image is resized by its shorter side
MAX_STREAMS = 64
MAX_RATE = 768_000  # Hz
MAX_CHANNELS = 64
MAX_SECONDS = 6 * 3600.0
MAX_GAP = 600.0  # s of a file that no packet fills, all gaps together; shorter gaps are silence or a frame that stays
LONGEST = 10.0  # s that a packet can last; what it claims beyond that is a gap
BACKWARDS = 0.25  # s that a clock may step back; so little does not change which frames are shown
MAX_PACKETS = 5_000_000  # that are counted: six hours of video and audio many times over, in about 10 s
MAX_WORK = 2**37  # pixels decoded for one request: three quarters of an hour of 1920 × 1080 at 25 Hz
MAX_REQUEST = 2**31  # bytes of the frames of one request
MAX_BLOCKS = 2_000_000  # of audio decoded for one window: half a day of AAC at 48 kHz
MAX_SAMPLES = 2**26  # at the file's rate, decoded at a time: 23 minutes at 48 kHz; longer windows are read in parts
LOUDEST = 100.0  # times full scale; more comes from damaged audio only, as do values that are not finite


def check_size(path: str, width: int, height: int, reason: str = "undecodable") -> None:
    """Refuse absurd frames and images; `reason` as in `DecodeError`."""
    short, long = sorted((width, height))
    if not 0 < width * height <= MAX_PIXELS or long > MAX_ASPECT * short:
        detail = f"the header gives {width} × {height} pixels, expected {MAX_PIXELS} and {MAX_ASPECT} : 1 at most"
        raise DecodeError(path, reason, detail)


def check_request(path: str, count: int, width: int, height: int) -> None:
    """Refuse to hold so many frames at once."""
    if 3 * count * width * height > MAX_REQUEST:
        at_most = max(1, MAX_REQUEST // (3 * width * height))
        raise DecodeError(path, "undecodable", f"{count} frames of {width} × {height} at once, expected {at_most}")


def check_audio(path: str, rate: int, channels: int) -> None:
    """Refuse absurd audio."""
    if rate > MAX_RATE:
        raise DecodeError(path, "undecodable", f"the audio has a sample rate of {rate} Hz, expected {MAX_RATE} at most")
    if channels > MAX_CHANNELS:
        raise DecodeError(path, "undecodable", f"the audio has {channels} channels, expected {MAX_CHANNELS} at most")


def check_samples(path: str, samples: NDArray[np.float32], time: float, rate: int) -> float:
    """Refuse samples [T] from `time` (s) on that no microphone gives; returns the largest absolute value."""
    values = np.abs(samples)
    peak = float(values.max(initial=0.0))
    if not peak < LOUDEST:  # also where it is not a number
        first = int(np.argmin(values < LOUDEST))
        what = f"{values[first]:.3g} times full scale" if np.isfinite(values[first]) else "no finite number"
        raise DecodeError(path, "undecodable", f"impossible samples at {time + first / rate:.2f} s: {what}")
    return peak


def check_times(path: str, extents: Mapping[str, Extent]) -> None:
    """Refuse files that claim to last much longer than their packets do, and those whose clock runs backwards.

    A frame may stay on screen as long as there is audio, so gaps between frames count only where the audio has ended.

    Args:
        path: of the file.
        extents: of its video and audio, by these names, as far as it has them.
    """
    for kind, extent in extents.items():
        if extent.breaks is not None:
            detail = f"packets of its {kind} are lost or run backwards at {extent.breaks:.2f} s, as in joined files"
            raise DecodeError(path, "undecodable", detail, kind)
    heard = extents["audio"].end if "audio" in extents else 0.0
    for kind, extent in extents.items():
        if extent.gaps > MAX_GAP and (kind == "audio" or extent.end > heard + MAX_GAP):
            detail = (
                f"its {kind} is longer than its packets: it ends at {extent.end:.0f} s, of which packets fill "
                f"{max(0.0, extent.end - extent.gaps):.0f} s"
            )
            raise DecodeError(path, "undecodable", detail, kind)
    for extent in extents.values():
        if not -MAX_SECONDS < extent.start <= extent.end < MAX_SECONDS:
            far = max(abs(extent.start), abs(extent.end))
            detail = f"its timestamps reach {far:.0f} s, expected {MAX_SECONDS:.0f} s at most"
            raise DecodeError(path, "undecodable", detail)
