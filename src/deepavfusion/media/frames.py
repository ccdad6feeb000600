"""The frames on screen at given times, decoded by PyAV from the key frame before them.

Each frame is found by its own timestamp: numbers of packets are those of frames only where every packet yields one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from math import atan2, ceil, cos, degrees, floor, hypot, radians, sin
from typing import Any

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

# s; a frame counts as on screen this much early. Containers round timestamps to their ticks (1 ms in Matroska), and
# n / fps is rounded, too: without slack the frame before the wanted one would be taken about every other time.
CLOCK_SLACK = 1e-3
# Of a scaler: loading is parallel across workers. Since version 17 PyAV takes one for each core.
ONE_THREAD: Any = {"threads": 1} if int(av.__version__.split(".")[0]) >= 17 else {}
SEEK_AHEAD = 2.0  # s; nearer frames are reached by decoding on, where no key frames are listed


def frames_at(container: Container, times: Sequence[float]) -> NDArray[np.uint8]:
    """See `Media.frames`."""
    stream = container.require("video")
    check_request(container.path, len(times), *container.size)
    limits = _limits(container, stream, times)
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


class _FrameReader:
    """Finds frames by their own timestamps, with PyAV; `at` is called with rising limits."""

    def __init__(self, container: Container, stream: Any) -> None:
        self.container, self.stream = container, stream
        self.frames: Iterator[Any] = iter(())
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
        if not is_listed(self.stream):
            return bool(limit - self.ahead.pts > SEEK_AHEAD / self.stream.time_base)
        entries = self.stream.index_entries
        return bool(entries[entries.search_timestamp(limit)].timestamp > self.ahead.pts)

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
