"""How long a video is, without decoding: by its header, or by its packets where the header does not say."""

from __future__ import annotations

import os

import av

from deepavfusion.media.bounds import MAX_SECONDS
from deepavfusion.media.container import UNCERTAIN
from deepavfusion.media.files import failures
from deepavfusion.media.media import Media
from deepavfusion.media.packets import is_listed
from deepavfusion.utils.errors import DecodeError

LEAST_BYTES = 1000  # a second; a header that leaves fewer is compared with the packets, which then are few
STILL = 1.0  # s; of a shorter video the last frame stays


def playable(path: str | os.PathLike[str]) -> float:
    """Up to where a file has both picture and sound, seconds on its clock.

    The picture of a video of less than a second stays, and so does not end it.

    Raises:
        DecodeError: missing, no_video, no_audio, too_short (a stream holds nothing), truncated, undecodable.
    """
    with Media(path) as media, failures(media.path):
        for kind in ("video", "audio"):
            if media.stream(kind) is None:
                raise DecodeError(media.path, f"no_{kind}", f"the file has no {kind} stream", kind)
        ends = _by_header(media)
        if ends is None:
            if lacking := next((kind for kind in ("video", "audio") if kind not in media.extents), None):
                raise DecodeError(media.path, "too_short", f"the {lacking} stream holds no packet", lacking)
            ends = media.info.video_end, media.info.audio_end
        video, audio = ends
        seconds = audio if video < STILL else min(video, audio)
        if seconds <= 0:
            raise DecodeError(media.path, "too_short", f"picture and sound end at {seconds:.2f} s", "audio")
        return seconds


def _by_header(media: Media) -> tuple[float, float] | None:
    """Where video and audio end, s; None where the header does not say, or what it says cannot be."""
    if media.av.format.name in UNCERTAIN or any(is_listed(stream) for stream in media.streams.values()):
        return None  # the packets are listed in the header of an mp4 file
    whole, ends = (media.av.duration or 0) / av.time_base, list[float]()
    for kind in ("video", "audio"):
        start, length = media.span(media.streams[kind])
        ends.append(start + length if length > 0 else whole)
    size, (video, audio) = os.path.getsize(media.path), ends
    possible = min(ends) > 0 and max(ends) < MAX_SECONDS and max(ends) * LEAST_BYTES <= size
    return (video, audio) if possible else None
