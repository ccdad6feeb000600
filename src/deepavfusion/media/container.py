"""Opening media files: one clock, one kind of error, and no file left open."""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil
from typing import Any

import av

from deepavfusion.utils.errors import DecodeError

av.logging.set_level(av.logging.PANIC)

MAX_PIXELS = 8192 * 8192  # a header that gives a larger frame is damaged

# The containers that are read. Playlists are not among them: they would make FFmpeg open what they name.
FORMATS = (
    "mov,mp4,matroska,webm,mpegts,mpeg,mpegvideo,avi,asf,flv,mxf,ogg,wav,w64,aiff,au,caf,flac,mp3,aac,ac3,eac3,amr,"
    "h264,hevc,av1,ivf,obu,m4v,mjpeg,gif,image2,jpeg_pipe,png_pipe,bmp_pipe,webp_pipe"
)

# Metadata in any encoding; since version 19 PyAV reads it so by itself, and the argument is gone.
METADATA: Any = {} if int(av.__version__.split(".")[0]) >= 19 else {"metadata_errors": "ignore"}


class Container:
    """An open media file, read with PyAV: what `Media` builds on.

    Second 0 of its clock is where the file starts to play: the earliest timestamp of any stream, or timestamp 0 when
    that is later (timestamps below 0 are encoder priming or trimmed frames).
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._check()
        # "file:" and the whitelists: a path or a playlist must never make FFmpeg open anything else.
        options = {"protocol_whitelist": "file", "format_whitelist": FORMATS}
        with failures(self.path):
            self.av: Any = av.open(f"file:{self.path}", options=options, **METADATA)
        self.origin = max(0, self.av.start_time or 0) / av.time_base
        self.fresh = True  # nothing has been read yet, so there is nothing to rewind

    def stream(self, kind: str) -> Any | None:
        """The first video or audio stream that is not cover art; None without one."""
        for stream in getattr(self.av.streams, kind):
            if not stream.disposition & av.stream.Disposition.attached_pic:
                if stream.codec_context is None:
                    raise damaged(self.path, f"there is no decoder for its {kind}")
                return stream
        if cut_short(self.path):  # half a header lists half of the streams
            raise DecodeError(self.path, "truncated", f"what is left of the file shows no {kind} stream")
        return None

    def require(self, kind: str) -> Any:
        """`stream`, or a `DecodeError` (no_video, no_audio) without one."""
        with failures(self.path, kind):
            stream = self.stream(kind)
        if stream is None:
            raise DecodeError(self.path, f"no_{kind}", f"the file has no {kind} stream", kind)
        return stream

    def read_only(self, *streams: Any) -> None:
        """Skip the packets of other streams, and decode in this thread: loading is parallel across workers."""
        for other in self.av.streams:
            other.discard = av.stream.Discard.all
        for stream in streams:
            stream.discard = av.stream.Discard.default
            codec = stream.codec_context
            if not codec.is_open:
                codec.thread_count = 1
                if stream.type == "video":  # frames may be larger than the header says
                    codec.options = {**codec.options, "max_pixels": str(MAX_PIXELS)}

    def seek(self, stream: Any, target: int) -> None:
        """To the key frame before `target` (ticks), or to the very start if nothing of the stream lies before it."""
        first, second = stream.start_time or 0, ceil(1 / stream.time_base)
        fresh, self.fresh = self.fresh, False
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
        tick = float(stream.time_base)
        return (stream.start_time or 0) * tick - self.origin, (stream.duration or 0) * tick

    def _check(self) -> None:
        try:
            status = os.stat(self.path)
        except (FileNotFoundError, NotADirectoryError):
            raise DecodeError(self.path, "missing", "there is no such file") from None
        except (OSError, ValueError) as error:
            raise DecodeError(self.path, "undecodable", clause(error, self.path)) from None
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder, not a media file" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise DecodeError(self.path, "undecodable", f"it is {kind}")
        if status.st_size == 0:
            raise DecodeError(self.path, "truncated", "the file is empty")


@contextmanager
def failures(path: str, stream: str | None = None) -> Iterator[None]:
    """Any exception that reading a file raises becomes a `DecodeError`; `stream` is what was being read."""
    try:
        yield
    except DecodeError as error:
        error.stream = error.stream or stream
        raise
    except (av.error.FFmpegError, ArithmeticError, MemoryError, OSError, RuntimeError, ValueError) as error:
        failure = damaged(path, clause(error, path))
        failure.stream = stream
        raise failure from error


def damaged(path: str, detail: str) -> DecodeError:
    """The error for a file with invalid content: truncated where its boxes say so."""
    if cut_short(path):
        return DecodeError(path, "truncated", f"the file ends before its last box does ({detail})")
    return DecodeError(path, "undecodable", detail)


def nothing_in(path: str, kind: str) -> DecodeError:
    """The error for a stream, "video" or "audio", of which nothing was decoded."""
    unit, packet = ("frame", "frame") if kind == "video" else ("sample", "audio packet")
    if cut_short(path):
        return DecodeError(path, "truncated", f"the file ends before its first {packet}")
    return DecodeError(path, "too_short", f"the {kind} stream holds no {unit}")


def clause(error: BaseException, path: str) -> str:
    """An exception's message without the path, on one line."""
    text = getattr(error, "strerror", None) or str(error)
    return " ".join(text.replace(path, "the file").split()) or type(error).__name__


def cut_short(path: str) -> bool:
    """Whether a box of an mp4 file reaches past the end of the file, or the header (moov) never came."""
    size, offset = os.path.getsize(path), 0
    boxes: list[bytes] = []
    with open(path, "rb") as file:
        while offset < size and len(boxes) < 10_000:
            file.seek(offset)
            head = file.read(16)
            if len(head) < 8:
                break
            length, kind = struct.unpack(">I4s", head[:8])
            if not boxes and kind not in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide"):
                return False  # not an mp4 file
            boxes.append(kind)
            if length == 1 and len(head) == 16:  # a 64-bit length follows
                length = struct.unpack(">Q", head[8:])[0]
            if length == 0:  # "to the end of the file"
                length = size - offset
            if length < 8:
                return False  # damaged, not short
            offset += length
    return bool(boxes) and (offset != size or b"moov" not in boxes)
