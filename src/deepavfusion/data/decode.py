"""Reads media: the frames on screen at given times, and windows of sound. No other file imports a decoder.

One clock for picture and sound: second 0 is where the file starts to play (the earliest timestamp of any
stream; timestamps below 0 are encoder priming or trimmed pictures, so 0 stays 0 there).

Sound comes from PyAV. Frames come from decord where it can be trusted: it numbers packets, so it shows the
wrong picture when a packet yields none (clips cut by stream copy, open GOPs), and its timestamps start at the
first picture, not at the start of the file. The packets' own timestamps, read with PyAV, therefore say which
frame is wanted, and PyAV decodes whatever decord would misnumber, is slow at (long files) or gives up on. Both
give the same pixels, decord a little slower; over 12 000 reads a process stays flat with decord and grows by
20 MB of fragmented heap with PyAV.

Every failure of a file is a `DecodeError`.
"""

from __future__ import annotations

import os
import stat
import struct
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, floor, gcd
from typing import Any

# Read once by decord: how often it polls for frames that never come (its default stalls for seconds). When it
# gives up early on a busy machine, PyAV takes over.
os.environ.setdefault("DECORD_EOF_RETRY_MAX", "1024")

import av
import decord
import numpy as np
import torch
from numpy.typing import NDArray

from deepavfusion.utils.errors import DecodeError

av.logging.set_level(av.logging.PANIC)
decord.logging.set_level(decord.logging.QUIET)

CLOCK_SLACK = 1e-3  # s; a frame counts as on screen this much early: containers round timestamps, callers divide
PREROLL = 0.25  # s decoded before the window: AAC and Opus need up to 0.1 s after a seek to be right
MARGIN = 0.05  # s of real sound on both sides of the window while resampling
JITTER = 0.002  # s; packet times off by less are rounding, by more a gap
ENDS_EARLY = 0.15  # s; sound missing this much of what the header gives is truncated (two AAC packets at 16 kHz)
DECORD_FRAMES = 1500  # decord reads the whole file first, so longer ones go to PyAV, which seeks
SEEK_AHEAD = 2.0  # s; nearer frames are reached by decoding on
MAX_PIXELS = 8192 * 8192  # a larger picture is a damaged header


@dataclass(frozen=True)
class MediaInfo:
    """What the header says.

    Times are seconds on the file's clock. Values are 0 where the header is silent or there is no such stream;
    `frames` is 0 for containers that do not count them; `width` and `height` are before rotation.
    """

    duration: float
    has_video: bool
    video_start: float
    video_duration: float
    frames: int
    fps: float
    width: int
    height: int
    has_audio: bool
    audio_start: float
    audio_duration: float
    sample_rate: int
    channels: int


def probe(path: str | os.PathLike[str]) -> MediaInfo:
    """Read the header only.

    Raises:
        DecodeError: missing, truncated, undecodable.
    """
    path = os.fspath(path)
    with _opened(path) as (container, origin):
        video, audio = _stream(path, container, "video"), _stream(path, container, "audio")
        duration = (container.duration or 0) / av.time_base
        start, length = _span(video, origin) if video else (0.0, 0.0)
        sound_start, sound_length = _span(audio, origin) if audio else (0.0, 0.0)
        # Matroska gives the length of the whole file only.
        length = length or (max(0.0, duration - start) if video else 0.0)
        sound_length = sound_length or (max(0.0, duration - sound_start) if audio else 0.0)
        return MediaInfo(
            duration=max(duration, start + length, sound_start + sound_length),
            has_video=video is not None,
            video_start=start,
            video_duration=length,
            frames=video.frames if video else 0,
            fps=float(video.average_rate or 0) if video else 0.0,
            width=video.codec_context.width if video else 0,
            height=video.codec_context.height if video else 0,
            has_audio=audio is not None,
            audio_start=sound_start,
            audio_duration=sound_length,
            sample_rate=audio.codec_context.sample_rate if audio else 0,
            channels=audio.codec_context.channels if audio else 0,
        )


def read_frames(path: str | os.PathLike[str], times: Sequence[float]) -> NDArray[np.uint8]:
    """The frames on screen at `times`.

    Args:
        path: the media file.
        times: seconds on the file's clock, at least one, in any order. Before the first frame the first
            is taken, after the last the last.

    Returns:
        uint8 [N, H, W, 3], RGB, upright, in the order of `times`.

    Raises:
        DecodeError: missing, no_video, too_short (a stream without frames), truncated, undecodable.
    """
    path = os.fspath(path)
    with _opened(path) as (container, origin):
        stream = _stream(path, container, "video")
        if stream is None:
            raise DecodeError(path, "no_video", "the file has no video stream")
        width, height = stream.codec_context.width, stream.codec_context.height
        if not 0 < width * height <= MAX_PIXELS:
            raise DecodeError(path, "undecodable", f"the header gives a picture of {width} × {height} pixels")
        _read_only(container, stream)
        tick = float(stream.time_base)
        # A frame is on screen from pts ≤ limit on; the bounds keep any float within what a seek takes.
        limits = [floor((min(max(t, -1.0), 1e7) + origin + CLOCK_SLACK) / tick) for t in times]
        if 0 < stream.frames <= DECORD_FRAMES:
            pts = _countable_pts(container, stream)
            if len(pts) == stream.frames:
                wanted = [max(0, bisect_right(pts, limit) - 1) for limit in limits]
                pictures = _decord_frames(path, wanted, count=len(pts))
                if pictures is not None:
                    return pictures
        reader = _FrameReader(path, container, stream)
        found = {limit: reader.at(limit) for limit in sorted(set(limits))}
        return np.stack([found[limit] for limit in limits])


def read_audio(path: str | os.PathLike[str], start: float, seconds: float, sample_rate: int = 16_000) -> torch.Tensor:
    """A window of sound, mono.

    Sample k lies at `start + k / sample_rate` on the file's clock. Before the audio stream's first sample,
    and in gaps inside it, there is silence. Surround sound is mixed as `_mono_weights` says.

    Args:
        path: the media file.
        start: seconds; may be negative.
        seconds: length of the window, more than 0.
        sample_rate: of the result, Hz.

    Returns:
        float32 [T] in [−1, 1]; T = round(seconds · sample_rate), fewer (even 0) where the sound ends earlier.

    Raises:
        DecodeError: missing, no_audio, too_short (a stream without samples), truncated, undecodable.
    """
    path = os.fspath(path)
    assert seconds > 0, seconds
    with _opened(path) as (container, origin):
        stream = _stream(path, container, "audio")
        if stream is None:
            raise DecodeError(path, "no_audio", "the file has no audio stream")
        _read_only(container, stream)
        sound_start, length = _span(stream, origin)
        header_end = sound_start + length if length > 0 else None
        first_needed = start - _margin(stream.codec_context.sample_rate, sample_rate)
        pieces: list[tuple[float, NDArray[np.float32]]] = []
        rate, decoded_to = 0, 0.0
        for time, frame in _sound_from(path, container, stream, origin, first_needed):
            if rate not in (0, frame.sample_rate):
                raise DecodeError(path, "undecodable", "the sample rate changes inside the file")
            rate = frame.sample_rate
            decoded_to = time + frame.samples / rate
            if time > start + seconds + _margin(rate, sample_rate):
                break
            if decoded_to >= first_needed:
                pieces.append((time, _mono(frame)))
        if rate == 0:
            if _cut_short(path):
                raise DecodeError(path, "truncated", "the file ends before its first sound")
            raise DecodeError(path, "too_short", "the audio stream holds no sample")
        if header_end is not None and decoded_to < min(start + seconds, header_end) - ENDS_EARLY:
            detail = f"the sound stops at {decoded_to:.2f} s, the header says {header_end:.2f} s"
            raise DecodeError(path, "truncated", detail)
    # The last AAC packet is padded; the header knows by how much. A header further off is not believed.
    padded = header_end is not None and header_end < decoded_to <= header_end + ENDS_EARLY
    end = header_end if header_end is not None and padded else decoded_to
    samples = round(min(seconds, end - start) * sample_rate)
    return _resampled(pieces, rate, start, seconds, sample_rate)[: max(0, samples)]


# ---------------------------------------------------------------- files and failures


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[tuple[Any, float]]:
    """The open container and its clock's origin (s); whatever is wrong becomes a `DecodeError`."""
    path = os.fspath(path)
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        raise DecodeError(path, "missing", "there is no such file") from None
    except (OSError, ValueError) as error:
        raise DecodeError(path, "undecodable", _clause(error, path)) from None
    if stat.S_ISDIR(status.st_mode):
        raise DecodeError(path, "undecodable", "it is a folder, not a media file")
    if not stat.S_ISREG(status.st_mode):
        raise DecodeError(path, "undecodable", "it is not a regular file")
    if status.st_size == 0:
        raise DecodeError(path, "truncated", "the file is empty")
    try:
        # "file:" and the whitelist: a path or a playlist must never make FFmpeg open anything else.
        options = {"protocol_whitelist": "file"}
        with av.open(f"file:{path}", options=options, metadata_errors="ignore") as container:
            yield container, max(0, container.start_time or 0) / av.time_base
    except (av.error.FFmpegError, ArithmeticError, MemoryError, OSError, RuntimeError, ValueError) as error:
        raise _damaged(path, _clause(error, path)) from error


def _damaged(path: str, detail: str) -> DecodeError:
    if _cut_short(path):
        return DecodeError(path, "truncated", f"the file ends before its last box does ({detail})")
    return DecodeError(path, "undecodable", detail)


def _clause(error: BaseException, path: str) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.replace(path, "the file").split()) or type(error).__name__


def _cut_short(path: str) -> bool:
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


def _stream(path: str, container: Any, kind: str) -> Any | None:
    """The first video or audio stream that is not cover art; None without one."""
    for stream in getattr(container.streams, kind):
        if not stream.disposition & av.stream.Disposition.attached_pic:
            if stream.codec_context is None:
                raise ValueError(f"there is no decoder for its {kind}")
            return stream
    if _cut_short(path):  # half a header lists half of the streams
        raise DecodeError(path, "truncated", f"what is left of the file shows no {kind} stream")
    return None


def _read_only(container: Any, stream: Any) -> None:
    """Skip the packets of the other streams, and decode in this thread: the workers are the parallel part."""
    for other in container.streams:
        if other.index != stream.index:
            other.discard = av.stream.Discard.all
    stream.codec_context.thread_count = 1


def _seek(container: Any, stream: Any, target: int) -> None:
    """To the key frame before `target` (ticks), or to the very start if that is where the stream starts."""
    first = stream.start_time or 0
    try:
        # In MPEG-TS a seek to the first timestamp finds the second key frame.
        early = ceil(1 / stream.time_base) if target <= first else 0
        container.seek(max(target, first) - early, stream=stream, backward=True)
    except av.error.FFmpegError:
        container.seek(first, stream=stream, backward=True)


def _span(stream: Any, origin: float) -> tuple[float, float]:
    """Start on the file's clock and length of a stream by its header, s; length 0 if unknown."""
    tick = float(stream.time_base)
    return (stream.start_time or 0) * tick - origin, (stream.duration or 0) * tick


# ---------------------------------------------------------------- pictures


def _countable_pts(container: Any, stream: Any) -> list[int]:
    """The pts of all frames, rising; empty unless every packet yields one frame wherever decoding starts.

    Not so with packets that are decoded but not shown, damaged ones, and pictures that lean on the group
    before their key frame (they come after it and are shown before it).
    """
    if not {"mp4", "matroska"} & set(container.format.name.split(",")):
        return []
    pts, key = [], None
    for packet in container.demux(stream):
        if packet.size == 0:  # the end
            continue
        if packet.pts is None or packet.is_discard or packet.is_corrupt:
            return []
        key = packet.pts if packet.is_keyframe else key
        if key is None or packet.pts < key:
            return []
        pts.append(packet.pts)
    return sorted(pts)


def _decord_frames(path: str, wanted: list[int], count: int) -> NDArray[np.uint8] | None:
    """uint8 [N, H, W, 3] by frame number, or None when decord fails or counts otherwise."""
    try:
        reader = decord.VideoReader(path, num_threads=1)
        if len(reader) != count:
            return None
        return np.asarray(reader.get_batch(wanted).asnumpy(), dtype=np.uint8)
    except (decord.DECORDError, RuntimeError, AssertionError, StopIteration):
        return None


class _FrameReader:
    """Finds frames by their own timestamps, in rising order, with PyAV."""

    def __init__(self, path: str, container: Any, stream: Any) -> None:
        self.path, self.container, self.stream = path, container, stream
        self.frames: Iterator[Any] = iter(())
        self.shown: Any | None = None  # the frame on screen
        self.ahead: Any | None = None  # the one after it

    def at(self, limit: int) -> NDArray[np.uint8]:
        """The last frame with pts ≤ limit, or the first of all."""
        if self.ahead is None or limit - self.ahead.pts > SEEK_AHEAD / self.stream.time_base:
            self._seek(limit)
        while self.ahead is not None and self.ahead.pts <= limit:
            self.shown, self.ahead = self.ahead, next(self.frames, None)
        frame = self.shown or self.ahead
        if self.ahead is None and _cut_short(self.path):
            raise DecodeError(self.path, "truncated", "the file ends before the picture that was asked for")
        if frame is None:
            raise DecodeError(self.path, "too_short", "the video stream holds no frame")
        if frame.is_corrupt:
            raise _damaged(self.path, "the picture is damaged")
        # Counter-clockwise degrees the picture has to be turned by.
        return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), k=round(frame.rotation / 90)))

    def _seek(self, limit: int) -> None:
        """Begin at a key frame from which the frame on screen can be decoded."""
        first, back = self.stream.start_time or 0, 0
        while True:
            target = max(first, limit - back)
            _seek(self.container, self.stream, target)
            self.frames = self._decoded()
            self.shown, self.ahead = None, next(self.frames, None)
            if target == first or (self.ahead is not None and self.ahead.pts <= limit):
                return
            # Landed too late (a seek goes by decoding time), or behind the last frame.
            back = max(2 * back, ceil(1 / self.stream.time_base))

    def _decoded(self) -> Iterator[Any]:
        for packet in self.container.demux(self.stream):
            if packet.is_corrupt:
                raise _damaged(self.path, "a packet of the picture is incomplete")
            for frame in packet.decode():
                if frame.pts is None:
                    raise DecodeError(self.path, "undecodable", "the pictures carry no timestamps")
                yield frame


# ---------------------------------------------------------------- sound


def _sound_from(path: str, container: Any, stream: Any, origin: float, needed: float) -> Iterator[tuple[float, Any]]:
    """Decoded frames of sound with their times, from before `needed` (s) to the end."""
    tick = float(stream.time_base)
    first = stream.start_time or 0
    target = floor((needed - PREROLL + origin) / tick)
    for position in (target, first):
        if position > first or target > first:
            _seek(container, stream, position)
        late = False
        clock: float | None = None
        for packet in container.demux(stream):
            if packet.is_corrupt:
                raise _damaged(path, "a packet of the sound is incomplete")
            try:
                frames = packet.decode()
            except av.error.InvalidDataError:
                if packet.pts is not None and packet.pts * tick - origin < needed - MARGIN:
                    continue  # a decoder that starts in mid-stream may stumble before the window
                raise
            for frame in frames:
                time = clock if frame.pts is None else frame.pts * tick - origin
                time = needed if time is None else time
                if clock is None and position > first and time > needed:
                    late = True  # the seek landed behind the window: once more from the start
                    break
                clock = time + frame.samples / frame.sample_rate
                yield time, frame
            if late:
                break
        if not late:
            return


def _mono(frame: Any) -> NDArray[np.float32]:
    """A frame of any sample format as float32 [T] in about [−1, 1]."""
    samples = frame.to_ndarray()
    if not frame.format.is_planar:
        samples = samples.reshape(-1, frame.layout.nb_channels).T
    if samples.dtype == np.uint8:
        samples = (samples.astype(np.float32) - 128) / 128
    elif samples.dtype.kind == "i":
        samples = samples / np.float32(2 ** (8 * samples.dtype.itemsize - 1))
    weights = _mono_weights(tuple(channel.name for channel in frame.layout.channels))
    return weights @ samples.astype(np.float32, copy=False)


@lru_cache
def _mono_weights(channels: tuple[str, ...]) -> NDArray[np.float32]:
    """What each channel counts in the mono mix, [C], sum 1, so that the mix cannot clip.

    The mean of the stereo downmix of ITU-R BS.775: front left and right 1, centre 0.71 on both sides, each
    surround channel 0.71 on its own, no low-frequency effects. A plain mean of 5.1 would bury the centre,
    where speech and most sources on screen are, under ambience, and add the effects channel, which is
    meant for another kind of loudspeaker. Unknown layouts: the mean.
    """
    front, centre = dict.fromkeys(("FL", "FR", "FLC", "FRC"), 1.0), {"FC": 2**0.5}
    silent = dict.fromkeys(("LFE", "LFE2"), 0.0)
    table = {**front, **centre, **silent}
    known = "FL" in channels and "FR" in channels
    weights = np.array([table.get(name, 0.5**0.5) if known else 1.0 for name in channels], np.float32)
    return weights / weights.sum()


def _margin(source_rate: int, rate: int) -> float:
    """At least MARGIN, s, and a whole number of samples at both rates, so that resampling shifts nothing."""
    divisor = gcd(source_rate, rate) or 1
    return ceil(MARGIN * divisor) / divisor


def _resampled(
    pieces: list[tuple[float, NDArray[np.float32]]], source_rate: int, start: float, seconds: float, rate: int
) -> torch.Tensor:
    """Pieces of sound, laid out by their times over silence, at the rate asked for, [seconds · rate]."""
    margin = _margin(source_rate, rate)
    source = np.zeros(round((seconds + 2 * margin) * source_rate), np.float32)
    running: int | None = None
    for time, samples in pieces:
        position = round((time - start + margin) * source_rate)
        if running is not None and abs(position - running) <= JITTER * source_rate:
            position = running
        running = position + len(samples)
        begin, end = max(position, 0), min(running, len(source))
        if begin < end:
            source[begin:end] = samples[begin - position : end - position]
    if source_rate != rate:
        frame = av.AudioFrame.from_ndarray(source[None], format="fltp", layout="mono")
        frame.sample_rate = source_rate
        resampler = av.AudioResampler(format="fltp", layout="mono", rate=rate)
        parts = [part.to_ndarray()[0] for part in (*resampler.resample(frame), *resampler.resample(None))]
        source = np.concatenate(parts)
    skip = round(margin * rate)
    window = np.nan_to_num(source[skip : skip + round(seconds * rate)])
    return torch.from_numpy(np.clip(window, -1.0, 1.0))
