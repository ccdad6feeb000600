"""Opening media files: one clock, one kind of error, and no file left open."""

from __future__ import annotations

import os
from functools import cached_property
from math import ceil
from typing import Any

import av

from deepavfusion.media import bounds
from deepavfusion.media.files import check_file, cut_short, damaged, failures, is_indexed, open_file
from deepavfusion.media.packets import Extent, extents, is_listed
from deepavfusion.utils.errors import DecodeError

COVER = av.stream.Disposition.attached_pic
AVI_UNKNOWN = 2**30  # frames in the header of an AVI file that FFmpeg wrote to a pipe
SQUARE = 0.01  # deviation of the pixels' aspect ratio from 1 that is not seen
ELEMENTARY = ("aac", "ac3", "eac3", "amr", "mp3")  # packets of sound one after the other, and nothing else
# FFmpeg gives their streams the length of the file, counts it from 0, ends it where the last packet begins, or takes it
# from the size of the file and the first packets.
UNCERTAIN = ("asf", "ogg", "mpegts", "mpeg", *ELEMENTARY)


class Container:
    """An open media file, read with PyAV: what `Media` builds on.

    Second 0 of its clock is the earliest timestamp of any stream, as in FFmpeg's players. Where timestamps wrap (at 33
    bits in MPEG-TS), those before the wrap are negative.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        check_file(self.path)
        with failures(self.path):
            self.av: Any = open_file(self.path)
        self.origin = (self.av.start_time or 0) / av.time_base
        self.fresh = True  # nothing has been read yet, so there is nothing to rewind
        self.turned: bool | None = None  # whether frames have a display matrix, once it is known
        self.size = (0, 0)  # width and height at which the header wants the video shown, before it is turned

    @cached_property
    def sequential(self) -> bool:
        """Whether times are right only if the file is read from its start on.

        So it is where packets have none, and the sizes of what lies before do not give them: elementary streams, coded
        sound in WAV, AVI without a list of packets. And of FLAC in Ogg, FFmpeg is wrong about them after a seek.
        """
        kind, sound = self.av.format.name, self._first("audio")
        codec = "" if sound is None else sound.codec_context.name
        coded = kind in ("wav", "w64") and not codec.startswith("pcm_")
        flac = kind == "ogg" and codec == "flac"
        return kind in ELEMENTARY or coded or flac or (kind == "avi" and not is_indexed(self.path))

    @cached_property
    def streams(self) -> dict[str, Any]:
        """The video and the audio that can be decoded, by these names, as far as the file has them.

        Raises:
            DecodeError: undecodable; the header is beyond the bounds that all readers share (bounds.py).
        """
        if len(self.av.streams) > bounds.MAX_STREAMS:
            detail = f"the file has {len(self.av.streams)} streams, expected {bounds.MAX_STREAMS} at most"
            raise DecodeError(self.path, "undecodable", detail)
        first = {kind: self._first(kind) for kind in ("video", "audio")}
        streams = {kind: stream for kind, stream in first.items() if stream and stream.codec_context}
        if (video := streams.get("video")) is not None:
            self.size = _shown_size(video)
            bounds.check_size(self.path, *self.size)
        if (audio := streams.get("audio")) is not None:
            bounds.check_audio(self.path, audio.codec_context.sample_rate, audio.codec_context.channels)
        return streams

    @cached_property
    def extents(self) -> dict[str, Extent]:
        """Where the video and the audio begin and end by their packets, without streams that have none.

        Raises:
            DecodeError: undecodable; the file is beyond the bounds that all readers share (bounds.py).
        """
        found = extents(self.path, self.origin, {stream.index: stream for stream in self.streams.values()})
        by_kind = {kind: found[stream.index] for kind, stream in self.streams.items() if stream.index in found}
        bounds.check_times(self.path, by_kind)
        return by_kind

    def _first(self, kind: str) -> Any | None:
        """The first video or audio stream that is not cover art, whether or not it can be decoded."""
        streams = (stream for stream in getattr(self.av.streams, kind) if not stream.disposition & COVER)
        return next(streams, None)

    def stream(self, kind: str) -> Any | None:
        """The first video or audio stream that is not cover art; None without one."""
        stream = self._first(kind)
        if stream is not None and stream.codec_context is None:
            raise damaged(self.path, f"there is no decoder for its {kind}")
        if stream is None and cut_short(self.path):  # half a header lists half of the streams
            raise DecodeError(self.path, "truncated", f"what is left of the file shows no {kind} stream")
        return stream

    def require(self, kind: str) -> Any:
        """`stream`, or a `DecodeError` (no_video, no_audio) without one."""
        with failures(self.path, kind):
            stream = self.stream(kind)
            _ = self.extents
        if stream is None:
            raise DecodeError(self.path, f"no_{kind}", f"the file has no {kind} stream", kind)
        return stream

    def has(self, kind: str) -> bool:
        """Whether there is such a stream; every other failure of `require` is raised."""
        try:
            self.require(kind)
        except DecodeError as error:
            if error.reason == f"no_{kind}":
                return False
            raise
        return True

    def read_only(self, *streams: Any) -> None:
        """Skip the packets of other streams, and decode in this thread: loading is parallel across workers."""
        for other in self.av.streams:
            if not self.sequential:  # there, FFmpeg notes all packets it reads, and can return to the first
                other.discard = av.stream.Discard.all
        for stream in streams:
            stream.discard = av.stream.Discard.default
            codec = stream.codec_context
            if not codec.is_open:
                codec.thread_count = 1
                if stream.type == "video":  # frames may be larger than the header says
                    codec.options = {**codec.options, "max_pixels": str(bounds.MAX_PIXELS)}

    def seek(self, stream: Any, target: int) -> None:
        """To the key frame before `target` (ticks), or to the very start if nothing of the stream lies before it."""
        first, second = stream.start_time or 0, ceil(1 / stream.time_base)
        fresh, self.fresh = self.fresh, False
        target = first if self.sequential else target
        if fresh and target <= first:
            return
        try:
            # In MPEG-TS a seek to the first timestamp finds the second key frame.
            self.av.seek(target if target > first else first - second, stream=stream, backward=True)
        except av.error.FFmpegError:
            # Nothing lies before it: then forward, from where the encoder's priming must be, to the first packet.
            self.av.seek(first - second, stream=stream, backward=False)

    def span(self, stream: Any) -> tuple[float, float]:
        """Start on the file's clock and length of a stream by its header, s; length 0 if unknown."""
        kind, tick = self.av.format.name, float(stream.time_base)
        # AVI counts the empty packets before audio that starts late, which FFmpeg skips.
        uncounted = kind == "avi" and (stream.type == "audio" or stream.frames >= AVI_UNKNOWN)
        length = 0 if uncounted or kind in UNCERTAIN else stream.duration or 0
        return (stream.start_time or 0) * tick - self.origin, length * tick

    def is_cut(self, stream: Any) -> bool:
        """Whether packets of the stream lie behind the end of the file."""
        if is_listed(stream):
            size = os.path.getsize(self.path)
            return any(entry.pos + entry.size > size for entry in stream.index_entries)
        return cut_short(self.path)


def _shown_size(video: Any) -> tuple[int, int]:
    """Width and height of a video stream on square pixels, as FFmpeg's player shows it."""
    width, height = video.codec_context.width, video.codec_context.height
    aspect = float(video.sample_aspect_ratio or 1)
    return (width if abs(aspect - 1) < SQUARE else max(1, round(width * aspect))), height
