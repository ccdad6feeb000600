"""When the streams of a file begin and end, by their packets: what a header claims may be absent or wrong.

An mp4 file lists its packets in its header, which FFmpeg reads anyway. Other files are read through once, without
decoding, and what was found is remembered: 1 ms for a clip of 10 s.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from itertools import islice
from typing import Any, NamedTuple

import av

from deepavfusion.media.bounds import BACKWARDS, LONGEST, MAX_GAP, MAX_PACKETS
from deepavfusion.media.files import open_file

REMEMBERED = 16_384  # files
SLACK = 4  # times the samples that the codec puts into a packet


class Extent(NamedTuple):
    """Of one stream, seconds on the file's clock."""

    start: float
    end: float  # of the last packet; an mp4 file says in its header how long that lasts
    gaps: float  # of the time from 0 to the end, what no packet fills
    breaks: float | None = None  # where packets are lost, or the clock runs backwards, as in joined files


def extents(path: str, origin: float, streams: Mapping[int, Any]) -> dict[int, Extent]:
    """The extents of some streams (by index) of an open file whose clock begins at `origin` (s); not of empty ones."""
    if all(is_listed(stream) and _header_end(stream, origin) <= MAX_GAP for stream in streams.values()):
        return {index: _ends(stream, origin) for index, stream in streams.items()}
    status = os.stat(path)
    found = _surveyed(path, status.st_size, status.st_mtime_ns, status.st_ino, origin)
    return {index: found[index] for index in streams if index in found}


def last_extents(container: Any, streams: Mapping[int, Any], origin: float) -> dict[int, Extent]:
    """As `extents`, by the packets from the last key frame before the end that the header claims.

    Only these are read, so that starts and gaps are theirs. Without a stream of which none lies there.
    """
    found = {index: _Sum(float(stream.time_base), origin, _longest(stream)) for index, stream in streams.items()}
    with suppress(av.error.FFmpegError):  # as in `_surveyed`
        container.seek((container.start_time or 0) + (container.duration or 0))
        for packet in islice(container.demux(list(streams.values())), MAX_PACKETS):
            time = packet.dts if packet.pts is None else packet.pts
            if packet.size and time is not None:
                found[packet.stream.index].add(time, packet.duration or 0)
    return {index: packets.extent() for index, packets in found.items() if packets.count}


def is_listed(stream: Any) -> bool:
    """Whether the header of an mp4 file lists every packet of the stream (PCM is listed by chunks)."""
    entries = getattr(stream, "index_entries", ())  # PyAV 14 does not show them
    return "mp4" in stream.container.format.name.split(",") and 0 < stream.frames == len(entries)


def _header_end(stream: Any, origin: float) -> float:
    return float(((stream.start_time or 0) + (stream.duration or 0)) * stream.time_base) - origin


def _ends(stream: Any, origin: float) -> Extent:
    """From the first and last entry of a list that is too short for a gap."""
    tick, entries = float(stream.time_base), stream.index_entries
    first, last = (entries[n].timestamp * tick - origin for n in (0, len(entries) - 1))
    return Extent(first, max(first, last, _header_end(stream, origin)), 0.0)


@lru_cache(REMEMBERED)
def _surveyed(path: str, size: int, modified: int, inode: int, origin: float) -> dict[int, Extent]:
    """The extents of all streams of a file, as it was when it had this size, time and inode.

    It is opened anew: what is read afterwards does not depend on whether it was surveyed now or before.
    """
    with open_file(path) as container:
        streams = {stream.index: stream for stream in container.streams if stream.type in ("video", "audio")}
        found = {index: _Sum(float(stream.time_base), origin, _longest(stream)) for index, stream in streams.items()}
        listed = {index for index, stream in streams.items() if is_listed(stream)}
        for index in listed:
            for entry in streams[index].index_entries:
                found[index].add(entry.timestamp, 0)
            found[index].end = max(found[index].end, _header_end(streams[index], origin))
        others = [stream for index, stream in streams.items() if index not in listed]
        counted = container.format.name == "mpegts"  # its packets are numbered
        with suppress(av.error.FFmpegError):  # reading meets the damage, if it gets there
            for packet in islice(container.demux(others) if others else (), MAX_PACKETS):
                time = packet.dts if packet.pts is None else packet.pts
                if packet.size and time is not None:
                    lost = counted and packet.is_corrupt
                    found[packet.stream.index].add(time, packet.duration or 0, packet.dts, lost)
    return {index: packets.extent() for index, packets in found.items() if packets.count}


def _longest(stream: Any) -> float:
    """How long a packet can last, s: what it claims beyond that is a gap."""
    codec = stream.codec_context
    samples = getattr(codec, "frame_size", 0) if stream.type == "audio" and codec is not None else 0
    return min(LONGEST, SLACK * samples / codec.sample_rate) if samples and codec.sample_rate else LONGEST


class _Sum:
    """Adds up the packets of a stream, in whatever order they are stored."""

    def __init__(self, tick: float, origin: float, longest: float) -> None:
        self.tick, self.origin, self.longest = tick, origin, longest
        self.start = self.end = self.reached = self.last = self.gaps = self.step = 0.0
        self.count = 0
        self.decoded = float("-inf")  # when the last one is
        self.breaks: float | None = None

    def add(self, time: int, duration: int, dts: int | None = None, lost: bool = False) -> None:
        """A packet at `time` ticks that lasts `duration`, 0 if unknown; dts: when it is decoded."""
        begin, length = time * self.tick - self.origin, max(0, duration) * self.tick
        if self.count and 0.0 < begin - self.last <= self.longest:
            self.step = begin - self.last
        length = length or self.step
        self.gaps += max(0.0, begin - self.reached)
        self.start = min(self.start, begin) if self.count else begin
        self.end, self.reached = max(self.end, begin + length), max(self.reached, begin + min(length, self.longest))
        self.count, self.last = self.count + 1, begin
        if dts is not None:
            lost = lost or dts * self.tick < self.decoded - BACKWARDS
            self.decoded = dts * self.tick
        if lost and self.breaks is None:
            self.breaks = begin

    def extent(self) -> Extent:
        return Extent(self.start, self.end, self.gaps + max(0.0, self.end - self.reached), self.breaks)
