"""Opening a media file, and saying in one way what is wrong with it."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import av

from deepavfusion.utils import processes
from deepavfusion.utils.errors import DecodeError
from deepavfusion.utils.files import regular_file

av.logging.set_level(av.logging.PANIC)

# The containers that are read. Playlists are not among them: they would make FFmpeg open what they name.
FORMATS = (
    "mov,mp4,matroska,webm,mpegts,mpeg,mpegvideo,avi,asf,flv,mxf,ogg,wav,w64,aiff,au,caf,flac,mp3,aac,ac3,eac3,amr,"
    "h264,hevc,av1,ivf,obu,m4v,mjpeg,gif,image2,jpeg_pipe,png_pipe,bmp_pipe,webp_pipe"
)

# Endings of the names by which files in a folder are taken for videos, or for audio alone; in lower case.
VIDEO_ENDINGS = (
    ".3g2", ".3gp", ".asf", ".avi", ".divx", ".f4v", ".flv", ".m2t", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg",
    ".mpg", ".mts", ".mxf", ".ogv", ".qt", ".ts", ".vob", ".webm", ".wmv",
)  # fmt: skip
AUDIO_ENDINGS = (
    ".aac", ".ac3", ".aif", ".aiff", ".amr", ".au", ".caf", ".flac", ".m4a", ".mka", ".mp3", ".oga", ".ogg", ".opus",
    ".w64", ".wav", ".wma",
)  # fmt: skip

# Metadata in any encoding; since version 19 PyAV reads it so by itself, and the argument is gone.
METADATA: Any = {} if int(av.__version__.split(".")[0]) >= 19 else {"metadata_errors": "ignore"}

UNREAD = {  # by what the system says
    *(errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.EREMOTEIO),
    *(errno.ENOTCONN, errno.EHOSTDOWN, errno.ETIMEDOUT),
}
EXHAUSTED = {errno.EMFILE, errno.ENFILE}

CONTENT = (b"moov", b"mdat", b"moof")  # boxes of an mp4 file that hold what is played
FIRST = (b"ftyp", b"free", b"skip", b"wide", *CONTENT)
RIFF_UNKNOWN = 0x7FFF0000  # a length that is no length: sox writes 0x7FFFF000 to a pipe, FFmpeg 0xFFFFFFFF, others 0
MAX_BOXES = 100_000  # a fragmented recording has two a second
MAX_HEADER = 2**20  # bytes, of an AVI file


def check_file(path: str) -> os.stat_result:
    """The status of a file that can be opened, and holds something.

    Raises:
        DecodeError: missing, undecodable (a folder, a pipe, a device, no permission), truncated.
    """
    try:
        status = regular_file(path)
    except (FileNotFoundError, NotADirectoryError):
        raise DecodeError(path, "missing", "there is no such file") from None
    except (OSError, ValueError) as error:
        raise DecodeError(path, "undecodable", clause(error, path)) from None
    if status.st_size == 0:
        raise DecodeError(path, "truncated", "the file is empty")
    return status


def open_file(path: str) -> Any:
    """PyAV's container of a file that `check_file` has passed; a `DecodeError`, or any of PyAV's errors."""
    # "file:" and the whitelists: a path or a playlist must never make FFmpeg open anything else.
    options = {"protocol_whitelist": "file", "format_whitelist": FORMATS}
    try:
        return av.open(f"file:{path}", options=options, **METADATA)
    except av.error.ArgumentError:
        raise damaged(path, "it has no format that is read, or its header is wrong") from None


@contextmanager
def failures(path: str, stream: str | None = None) -> Iterator[None]:
    """Any exception that reading a file raises becomes a `DecodeError`; `stream` is what was being read."""
    try:
        with processes.limited():
            yield
    except DecodeError as error:
        error.stream = error.stream or stream
        raise
    except (av.error.FFmpegError, ArithmeticError, MemoryError, OSError, RuntimeError, ValueError) as error:
        number = getattr(error, "errno", None)
        if number in EXHAUSTED:  # which is no file's fault
            raise
        what = clause(error, path)
        if number in UNREAD and not _says_nothing(error):  # nor may what `damaged` looks at
            failure = DecodeError(path, "undecodable", f"it cannot be read: {what}")
        else:
            failure = damaged(path, what)
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
    text = "invalid data" if _says_nothing(error) else getattr(error, "strerror", None) or str(error)
    return " ".join(text.replace(path, "the file").split()) or type(error).__name__


def _says_nothing(error: BaseException) -> bool:
    """Whether it is FFmpeg's −1, for anything that fails, which reads as the system's "operation not permitted"."""
    return isinstance(error, av.error.FFmpegError) and error.errno == errno.EPERM


def cut_short(path: str) -> bool:
    """Whether an mp4 file ends inside a box with content, or before its header (moov).

    Whatever lies behind the last box, such as tags, padding or a few bytes of a download, is no part of the file.
    """
    size, offset = os.path.getsize(path), 0
    boxes: list[bytes] = []
    with open(path, "rb") as file:
        while offset < size and len(boxes) < MAX_BOXES:
            file.seek(offset)
            head = file.read(16)
            length, kind = struct.unpack(">I4s", head[:8]) if len(head) >= 8 else (0, b"")
            if not boxes and kind not in FIRST:
                return False  # not an mp4 file
            if length == 1 and len(head) == 16:  # a 64-bit length follows
                length = struct.unpack(">Q", head[8:])[0]
            if 0 < length < 8:
                return False  # damaged, not short
            boxes.append(kind)
            if length == 0:  # to the end of the file, or fewer bytes than a box has
                break
            offset += length
            if offset > size and kind in CONTENT:
                return True
    return bool(boxes) and not (b"moov" in boxes and {b"mdat", b"moof"} & set(boxes))


def riff_cut_short(path: str) -> bool:
    """Whether a WAV or AVI file ends before both lengths in its header say.

    A program that writes to a pipe cannot go back to fill them in: it leaves 0, or a number as large as possible.
    """
    size = os.path.getsize(path)
    for kind, begin, length, whole in _riff_chunks(path):
        if kind in (b"data", b"movi"):
            return max(length, whole) < RIFF_UNKNOWN and begin + length > size and whole + 8 > size
    return False


def is_indexed(path: str) -> bool:
    """Whether an AVI file lists its packets: not if it was written to a pipe, or is cut off."""
    with open(path, "rb") as file:
        for kind, begin, length, _ in _riff_chunks(path):
            file.seek(begin)
            if kind == b"idx1" or (kind == b"hdrl" and b"indx" in file.read(min(length, MAX_HEADER))):
                return True
    return False


def _riff_chunks(path: str) -> Iterator[tuple[bytes, int, int, int]]:
    """The outer chunks of a RIFF file: name (of a list its kind), first byte, length, and that of the whole file."""
    with open(path, "rb") as file:
        head = file.read(12).ljust(12)
        whole = int.from_bytes(head[4:8], "little")
        for _ in range(MAX_BOXES):
            if head[:4] != b"RIFF" or len(chunk := file.read(8)) < 8:
                return
            name, length = struct.unpack("<4sI", chunk)
            begin = file.tell()
            yield file.read(4) if name == b"LIST" else name, begin, length, whole
            file.seek(begin + length + length % 2)
