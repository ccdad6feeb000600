"""How long a video is, without decoding: by its header where that lists the packets, else by the last packets."""

from __future__ import annotations

import os

from deepavfusion.media.container import UNCERTAIN
from deepavfusion.media.files import failures
from deepavfusion.media.media import Media
from deepavfusion.media.packets import Extent, is_listed, last_extents
from deepavfusion.utils.errors import DecodeError

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
        if last := _last_packets(media):
            media.extents = last
        if lacking := next((kind for kind in ("video", "audio") if kind not in media.extents), None):
            raise DecodeError(media.path, "too_short", f"the {lacking} stream holds no packet", lacking)
        video, audio = media.info.video_end, media.info.audio_end
        seconds = audio if video < STILL else min(video, audio)
        if seconds <= 0:
            raise DecodeError(media.path, "too_short", f"picture and sound end at {seconds:.2f} s", "audio")
        return seconds


def _last_packets(media: Media) -> dict[str, Extent] | None:
    """Where video and audio end; None where the file has to be read through, or its header lists the packets.

    What a header claims is not believed: recordings and downloads that were cut off keep the length they had.
    """
    kind_of = {stream.index: kind for kind, stream in media.streams.items()}
    known = (media.av.duration or 0) > 0 and media.av.format.name not in UNCERTAIN and not media.sequential
    if not known or any(map(is_listed, media.streams.values())):
        return None
    streams = {stream.index: stream for stream in media.streams.values()}
    found = {kind_of[index]: extent for index, extent in last_extents(media.av, streams, media.origin).items()}
    return found if len(found) == len(streams) else None
