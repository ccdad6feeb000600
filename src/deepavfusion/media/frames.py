"""The frames on screen at given times.

A single frame, as in training, comes from PyAV, which seeks to the key frame before it: for decord the whole file has
to be read first, twice (640 × 360, 10 s: 20 ms of CPU time, with PyAV 12 ms). Several frames come from decord where it
can be trusted. It numbers packets, so it returns the wrong frame when a packet yields none (clips cut by stream copy,
open GOPs), and its timestamps start at the first frame, not at the start of the file. The packets' own timestamps, read
with PyAV, therefore say which frame is wanted, and PyAV decodes whatever decord would misnumber, is slow at (long
files) or fails on. Both give the same pixels, so that PyAV may read everything, and does where there is no decord.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import groupby
from math import atan2, ceil, cos, degrees, floor, hypot, radians, sin
from typing import Any

# Read once by decord: how often it polls for frames that never come (its default stalls for seconds). When it
# gives up early on a busy machine, PyAV takes over.
os.environ.setdefault("DECORD_EOF_RETRY_MAX", "1024")

import av
import numpy as np
from av.sidedata.sidedata import SideDataContainer, Type
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray
from PIL import Image

from deepavfusion.media.bounds import MAX_WORK, check_request, check_size
from deepavfusion.media.container import Container
from deepavfusion.media.files import damaged, nothing_in
from deepavfusion.media.packets import is_listed
from deepavfusion.utils.errors import DecodeError

try:
    import decord
except (ImportError, OSError):  # there are wheels for Linux and Windows on x86-64 only; PyAV reads everything
    decord: Any = None  # type: ignore[no-redef]
else:
    decord.logging.set_level(decord.logging.QUIET)

# s; a frame counts as on screen this much early. Containers round timestamps to their ticks (1 ms in Matroska), and
# n / fps is rounded, too: without slack the frame before the wanted one would be taken about every other time.
CLOCK_SLACK = 1e-3
# Of a scaler: loading is parallel across workers. Since version 17 PyAV takes one for each core.
ONE_THREAD: Any = {"threads": 1} if int(av.__version__.split(".")[0]) >= 17 else {}
DECORD_FRAMES = 1500  # longer files go to PyAV
DECORD_PIXELS = 2**23  # larger frames than 4K, too: decord keeps many
SEEK_AHEAD = 2.0  # s; nearer frames are reached by decoding on, where no key frames are listed


def frames_at(container: Container, times: Sequence[float]) -> NDArray[np.uint8]:
    """See `Media.frames`."""
    stream = container.require("video")
    check_request(container.path, len(times), *container.size)
    limits = _limits(container, stream, times)
    if decord is not None and len(times) > 1 and 0 < stream.frames <= DECORD_FRAMES and _is_plain(container, stream):
        pts = _countable_pts(container, stream)
        if len(pts) == stream.frames:
            wanted = [max(0, bisect_right(pts, limit) - 1) for limit in limits]
            found = decord_frames(container.path, wanted, count=len(pts))
            if found is not None:
                return found
    found = None
    with _FrameReader(container, stream) as reader:
        for limit in sorted(set(limits)):
            frame = reader.at(limit)
            found = np.empty((len(limits), *frame.shape), np.uint8) if found is None else found
            found[[n for n, other in enumerate(limits) if other == limit]] = frame
    assert found is not None
    return found


def frames_in_turn(container: Container, times: Sequence[float]) -> Iterator[NDArray[np.uint8]]:
    """See `Media.frames_in_turn`."""
    stream = container.require("video")
    with _FrameReader(container, stream) as reader:
        for limit, repeats in groupby(_limits(container, stream, times)):
            frame, reader.work = reader.at(limit), 0
            yield from (frame for _ in repeats)


def _limits(container: Container, stream: Any, times: Sequence[float]) -> list[int]:
    """For each time (s) the largest pts of a frame that is on screen then; bounds keep any float within a seek's."""
    if container.av.format.flags & av.format.Flags.no_timestamps.value:  # raw H.264
        raise DecodeError(container.path, "undecodable", "the frames have no timestamps")
    container.read_only(stream)
    tick = float(stream.time_base)
    slack = min(CLOCK_SLACK, 0.25 / float(stream.average_rate or 1))  # less in films of more than 250 frames a second
    return [floor((min(max(t, -1.0), 1e7) + container.origin + slack) / tick) for t in times]


class DisplayClock:
    """Gives decoded frames the times at which FFmpeg shows them.

    AVI stores frames in the order of decoding, without the times at which they are shown. Its demuxer makes some up,
    which are wrong for B-frames: without them, a frame is shown when the packet that released it was due.
    """

    def __init__(self, container: Container) -> None:
        self.untimed = container.av.format.name == "avi"
        self.last: int | None = None
        self.step = 0

    def prepare(self, packet: Any) -> None:
        """Before it is decoded."""
        if self.untimed:
            packet.pts = None

    def set(self, frame: Any) -> None:
        """In the order in which the decoder releases them. The pts stays None where there are no times at all."""
        if frame.pts is None:
            frame.pts = frame.dts
        if frame.pts is None and self.last is not None:  # the decoder's last ones, which no packet released
            frame.pts = self.last + self.step
        if frame.pts is not None:
            self.step, self.last = frame.pts - (frame.pts if self.last is None else self.last), frame.pts


def _display_matrix(frame: Any) -> tuple[int, ...]:
    """FFmpeg's 3 × 3 matrix by which players turn and mirror a frame; empty without one."""
    # Not `frame.side_data`: the frame would keep it, in a cycle that outlives the reading. A process that is forked
    # before Python's garbage collector finds it hangs when it frees the scaler's threads, which it does not have.
    try:
        container: Any = SideDataContainer
        found = container(frame).get(Type.DISPLAYMATRIX)  # whose stub lacks the argument
    except ValueError:  # there is other side data, of a kind that this PyAV does not know
        x, y = (round(part(radians(frame.rotation)) * 2**16) for part in (cos, sin))
        return x, -y, 0, y, x
    return () if found is None else tuple(np.frombuffer(found, np.int32)[:9].tolist())


def upright(pixels: NDArray[np.uint8], matrix: Sequence[int]) -> NDArray[np.uint8]:
    """A frame [H, W, 3], turned and mirrored as FFmpeg does by default (`configure_input_video_filter`)."""
    if not matrix:
        return pixels
    across, down = hypot(matrix[0], matrix[3]), hypot(matrix[1], matrix[4])
    if not across or not down:
        return pixels
    angle = round(degrees(atan2(matrix[1] / down, matrix[0] / across))) % 360  # clockwise
    if angle == 90:
        return pixels.swapaxes(0, 1) if matrix[3] > 0 else np.rot90(pixels, -1)
    if angle == 270:
        return np.rot90(pixels.swapaxes(0, 1), 2) if matrix[3] < 0 else np.rot90(pixels)
    if angle in (0, 180):
        return pixels[:: -1 if matrix[4] < 0 else 1, :: -1 if matrix[0] < 0 else 1]
    return np.asarray(Image.fromarray(pixels).rotate(-angle, Image.Resampling.BILINEAR))


def _is_plain(container: Container, stream: Any) -> bool:
    """Whether decord gives PyAV's pixels: 8 bits, square, no display matrix, of which it knows a few only."""
    codec = stream.codec_context
    if codec.width != container.size[0] or codec.width * codec.height > DECORD_PIXELS:
        return False
    if codec.format is None or any(component.bits != 8 for component in codec.format.components):
        return False
    if container.turned is None:
        container.seek(stream, stream.start_time or 0)
        packet = next(container.av.demux(stream))
        frames = packet.decode() or (codec.decode(None) if packet.size else [])
        container.turned = not frames or bool(_display_matrix(frames[0]))
    return not container.turned


def _countable_pts(container: Container, stream: Any) -> list[int]:
    """The pts of all frames, rising; empty unless every packet yields one frame wherever decoding starts.

    Not so with packets that are decoded but not shown, damaged packets, and frames that refer to the group before
    their key frame (they are stored after it and shown before it). Streams that may change their frame size are
    excluded, too: decord sets no limit to that.
    """
    prefix = length_prefix(stream.codec_context)
    if not {"mp4", "matroska"} & set(container.av.format.name.split(",")) or not prefix:
        return []
    container.seek(stream, stream.start_time or 0)
    pts: list[int] = []
    key = None
    for packet in container.av.demux(stream):
        if packet.size == 0:  # the end
            continue
        doubtful = packet.pts is None or packet.is_discard or packet.is_corrupt or len(pts) == stream.frames
        if doubtful or any(_sets_format(unit, stream.codec_context.name) for unit in units(bytes(packet), prefix)):
            return []
        key = packet.pts if packet.is_keyframe else key
        if key is None or packet.pts < key:
            return []
        pts.append(packet.pts)
    return sorted(pts)


def length_prefix(codec: Any) -> int:
    """Bytes in front of each unit of a packet that hold its length; 0 where units are not stored so."""
    header = bytes(codec.extradata or b"")
    if codec.name == "h264" and len(header) > 6 and header[0] == 1:
        return (header[4] & 3) + 1
    if codec.name == "hevc" and len(header) > 22 and header[0] == 1:
        return (header[21] & 3) + 1
    return 0


def units(packet: bytes, prefix: int) -> Iterator[bytes]:
    """The units of an H.264 or HEVC packet, without the `prefix` bytes of length in front of each."""
    begin = 0
    while begin + prefix < len(packet):
        end = begin + prefix + int.from_bytes(packet[begin : begin + prefix], "big")
        yield packet[begin + prefix : end]
        begin = end


def _sets_format(unit: bytes, codec: str) -> bool:
    """Whether a unit is a sequence parameter set, which gives the frame size."""
    return bool(unit) and ((unit[0] & 31 == 7) if codec == "h264" else (unit[0] >> 1 & 63 == 33))


def decord_frames(path: str, wanted: list[int], count: int) -> NDArray[np.uint8] | None:
    """Frames by number, uint8 [N, H, W, 3].

    None where there is no decord, and when it fails, or does not count `count` frames in the file.
    """
    if decord is None:
        return None
    try:
        reader = decord.VideoReader(os.path.abspath(path), num_threads=1)  # a bare name could be read as an address
        if len(reader) != count:
            return None
        return np.asarray(reader.get_batch(wanted).asnumpy(), dtype=np.uint8)
    except (decord.DECORDError, RuntimeError, AssertionError, StopIteration, UnicodeEncodeError):
        return None  # the last: a name that is not UTF-8


class _FrameReader:
    """Finds frames by their own timestamps, with PyAV; `at` is called with rising limits."""

    def __init__(self, container: Container, stream: Any) -> None:
        self.container, self.stream = container, stream
        self.frames: Iterator[Any] = iter(())
        self.listed = stream.index_entries if is_listed(stream) else None
        self.reformatter = VideoReformatter()  # one for all: each frame's own would be set up anew, at 1 ms
        self.shown: Any | None = None  # the frame on screen
        self.ahead: Any | None = None  # the one after it
        self.work = 0  # pixels decoded

    def __enter__(self) -> _FrameReader:
        return self

    def __exit__(self, *_: object) -> None:
        # The generator refers to the reader: as a cycle, both would keep the decoder's buffers until Python's garbage
        # collector runs, and the memory of a process would grow from fragments of them.
        self.frames = iter(())

    def at(self, limit: int) -> NDArray[np.uint8]:
        """The last frame with pts ≤ limit, or the first of all."""
        path = self.container.path
        if (self.ahead or self.shown) is None or self._is_far(limit):
            self._seek(limit)
        while self.ahead is not None and self.ahead.pts <= limit:
            self.shown, self.ahead = self.ahead, next(self.frames, None)
        frame = self.shown or self.ahead
        if self.ahead is None and self.container.is_cut(self.stream):
            raise DecodeError(path, "truncated", "the file ends before the requested frame")
        if frame is None:
            raise nothing_in(path, "video")
        if frame.is_corrupt:
            raise damaged(path, "the frame is damaged")
        # Recordings of calls and broadcasts change their frame size: all frames get that of the first, as from FFmpeg.
        width, height = self.container.size
        pixels: Any = self.reformatter.reformat(frame, width, height, "rgb24", **ONE_THREAD).to_ndarray()
        return np.ascontiguousarray(upright(pixels, _display_matrix(frame)))

    def _is_far(self, limit: int) -> bool:
        """Whether a seek saves decoding: to a key frame that lies ahead; where they are not listed, perhaps."""
        if self.ahead is None or self.container.sequential:
            return False
        if self.listed is None:
            return bool(limit - self.ahead.pts > SEEK_AHEAD / self.stream.time_base)
        return bool(self.listed[self.listed.search_timestamp(limit)].timestamp > self.ahead.pts)

    def _seek(self, limit: int) -> None:
        """Begin at a key frame from which the frame on screen can be decoded."""
        first, back = self.stream.start_time or 0, 0
        while True:
            target = max(first, limit - back)
            self.container.seek(self.stream, target)
            self.frames = self._decoded()
            self.shown = self.ahead = None
            try:
                self.ahead = next(self.frames, None)
            except av.error.InvalidDataError:  # without an index, a seek may find a frame that needs earlier ones
                if target == first:
                    raise
            if target == first or (self.ahead is not None and self.ahead.pts <= limit):
                return
            # Landed too late (a seek goes by decoding time), or behind the last frame.
            back = max(2 * back, ceil(1 / self.stream.time_base))

    def _decoded(self) -> Iterator[Any]:
        path, codec, clock = self.container.path, self.stream.codec_context, DisplayClock(self.container)
        size = codec.width, codec.height
        for packet in self.container.av.demux(self.stream):
            if packet.is_corrupt:
                raise damaged(path, "a video packet is incomplete")
            self.work += max(codec.width * codec.height, 2**16)
            if self.work > MAX_WORK:
                raise DecodeError(path, "undecodable", "too many frames lie before the requested one")
            clock.prepare(packet)
            for frame in packet.decode():
                clock.set(frame)
                if frame.pts is None:
                    raise DecodeError(path, "undecodable", "the frames have no timestamps")
                if (frame.width, frame.height) != size:  # than the header gives
                    check_size(path, *(size := (frame.width, frame.height)))
                yield frame
