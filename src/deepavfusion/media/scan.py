"""Decodes every frame and sample of a file, to see whether it is intact.

Players and the rest of this package conceal damage where they can; this reader looks for it. It finds packets and
frames that the decoder rejects or marks, byte sequences that H.264 and HEVC forbid (a block of zeros), frames that are
lost in decoding, audio or video that ends before the header says, and timestamps that run backwards. It cannot find
damage in bytes that no decoder reads, nor changed bits that are still valid video or audio, such as another brightness
or loudness: mp4 has no checksums.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from deepavfusion.media.audio import ENDS_EARLY, mono
from deepavfusion.media.bounds import BACKWARDS, check_samples
from deepavfusion.media.container import Container
from deepavfusion.media.files import clause, damaged, failures, nothing_in, riff_cut_short
from deepavfusion.media.frames import DisplayClock, length_prefix, units
from deepavfusion.media.media import HEADER_BEHIND, Media
from deepavfusion.utils.errors import DecodeError

STRICT = {"err_detect": "crccheck+bitstream+buffer+explode"}
LOOK_EVERY = 0.25  # s between the frames in which movement is measured
SIDE = 32  # of their grey versions, px
# H.264 (7.4.1) and HEVC (7.4.2) rule these bytes out inside a unit; zeros at a unit's end are padding.
FORBIDDEN = re.compile(b"\0\0[\0-\2]")


@dataclass
class Scan:
    """What a whole file contains; zeros for a stream that was not decoded."""

    frames: int = 0  # decoded
    video_end: float = 0.0  # s on the file's clock, where the last of them ends
    audio_end: float = 0.0  # s on the file's clock, by the rules of `Media.audio`
    peak: float = 0.0  # largest absolute value of the mono mix; 1 is full scale
    movement: float = 0.0  # largest change of a pixel since the first frame, 0…255, in grey versions of 32 × 32 pixels


def scan(path: str | os.PathLike[str], video: bool = True, audio: bool = True) -> Scan:
    """Decode a file from end to end, in constant memory and one thread.

    Args:
        path: the file.
        video, audio: which of the two streams it must have, and is decoded.

    Raises:
        DecodeError: missing, no_video, no_audio, too_short (a stream without frames or samples), truncated,
            undecodable; in a file with several faults, the first one in this order or in the file.
    """
    with Media(path) as media, failures(media.path):
        found, _ = Scan(), media.info  # whose own checks cover the streams that are not decoded, too
        kinds = [kind for kind, wanted in ((_Frames, video), (_Samples, audio)) if wanted]
        checks = {check.stream.index: check for check in (kind(media, found) for kind in kinds)}
        streams = [check.stream for check in checks.values()]
        media.read_only(*streams)
        for packet in media.av.demux(streams):
            check = checks[packet.stream.index]
            with failures(media.path, check.kind):
                check.take(packet)
        for check in checks.values():
            with failures(media.path, check.kind):
                check.finish()
        _check_header(media)
        return found


def _check_header(media: Media) -> None:
    """Refuse a file that lasts less than it says as a whole, or more; Matroska does not say it of the streams."""
    if "matroska" not in media.av.format.name or not media.av.duration:
        return
    whole, end = media.av.duration / av.time_base, max((extent.end for extent in media.extents.values()), default=0.0)
    only = all(stream.type in ("video", "audio") for stream in media.av.streams)  # subtitles may last longer
    detail = f"the file ends at {end:.2f} s, the header says {whole:.2f} s"
    if only and whole > end + max(0.0, media.origin) + HEADER_BEHIND:  # FFmpeg may count from 0, not the first packet
        raise DecodeError(media.path, "truncated", detail)
    if end > whole + HEADER_BEHIND:  # joined files: a seek does not find what lies behind the first
        raise DecodeError(media.path, "undecodable", detail)


class _Stream:
    """What video and audio share: strict decoding, and counts of packets and of frames."""

    def __init__(self, container: Container, stream: Any, found: Scan) -> None:
        self.container, self.path, self.stream, self.found = container, container.path, stream, found
        self.kind: str = stream.type  # "video" or "audio"
        self.tick = float(stream.time_base)
        self.one_to_one = "mp4" in container.av.format.name.split(",")  # a packet gives exactly one frame
        self.packets, self.count, self.end = 0, 0, 0.0
        start, length = container.span(stream)
        self.header_end = start + length if length > 0 else None
        stream.codec_context.options = STRICT

    def bad(self, detail: str) -> DecodeError:
        return damaged(self.path, f"{self.kind}: {detail}")

    def seconds(self, pts: int) -> float:
        """Of a timestamp, on the file's clock."""
        return pts * self.tick - self.container.origin

    def decoded(self, packet: Any) -> list[Any]:
        """The frames that a packet yields."""
        if packet.is_corrupt and self.container.av.format.name != "wav":  # whose last packet may just be shorter
            raise self.bad(f"the packet at {self.seconds(packet.pts or 0):.2f} s is incomplete")
        try:
            return list(packet.decode())
        except av.error.FFmpegError as error:
            if packet.pts is None:
                raise
            raise self.bad(f"{clause(error, self.path)} at {self.seconds(packet.pts):.2f} s") from error

    def check_end(self) -> None:
        if self.header_end is not None and self.end < self.header_end - ENDS_EARLY:
            detail = f"{self.kind} ends at {self.end:.2f} s, the header says {self.header_end:.2f} s"
            raise DecodeError(self.path, "truncated", detail)


class _Frames(_Stream):
    """Every frame of a file."""

    def __init__(self, container: Container, found: Scan) -> None:
        super().__init__(container, container.require("video"), found)
        self.clock = DisplayClock(container)
        self.prefix = length_prefix(self.stream.codec_context)
        self.first_key: int | None = None  # its pts
        self.last_pts: int | None = None
        self.reformatter = VideoReformatter()
        self.first: NDArray[np.int16] | None = None
        self.last: Any = None  # the newest frame, until `look` has compared it
        self.looked = 0.0

    def take(self, packet: Any) -> None:
        self.clock.prepare(packet)
        time = packet.dts if packet.pts is None else packet.pts
        if packet.size and packet.is_keyframe and self.first_key is None:
            self.first_key = time
        # Cuts by stream copy begin with frames that refer to what was cut away; they are not shown, and may be broken.
        leading = packet.size and (self.leads(time) or packet.is_discard)
        if packet.size:
            self.packets += not leading
            checked = bytes(packet) if self.prefix and not leading else b""
            if any(FORBIDDEN.search(unit.rstrip(b"\0")) for unit in units(checked, self.prefix)):
                raise self.bad(f"impossible bytes at {self.seconds(time):.2f} s")
            if not packet.is_discard:
                self.end = max(self.end, self.seconds(time + (packet.duration or 0)))
        try:
            frames = self.decoded(packet)
        except DecodeError:
            if leading:
                return
            raise
        for frame in frames:
            self.clock.set(frame)
            self.see(frame)

    def leads(self, pts: int | None) -> bool:
        """Whether a frame comes before the first that can be decoded on its own."""
        if pts is None:
            raise DecodeError(self.path, "undecodable", "the frames have no timestamps")
        return self.first_key is None or pts < self.first_key

    def see(self, frame: Any) -> None:
        if self.leads(frame.pts):
            return
        time = self.seconds(frame.pts)
        if frame.is_corrupt:
            raise self.bad(f"the frame at {time:.2f} s is damaged")
        if self.last_pts is not None and (self.last_pts - frame.pts) * self.tick > BACKWARDS:
            raise self.bad(f"timestamps run backwards at {time:.2f} s")
        self.last_pts, self.last = frame.pts, frame
        self.count += 1
        if self.first is None or time >= self.looked + LOOK_EVERY:
            self.look(time)

    def look(self, time: float) -> None:
        """Compare the newest frame with the first."""
        grey = self.reformatter.reformat(self.last, SIDE, SIDE, "gray").to_ndarray().astype(np.int16)
        self.first = grey if self.first is None else self.first
        self.found.movement = max(self.found.movement, float(np.abs(grey - self.first).max()))
        self.looked, self.last = time, None

    def finish(self) -> None:
        if self.count == 0:
            raise nothing_in(self.path, self.kind)
        if self.last is not None:
            self.look(self.looked)
        if self.one_to_one and self.count < self.packets:
            raise self.bad(f"{self.count} of {self.packets} frames decode")
        self.check_end()
        self.found.frames, self.found.video_end = self.count, self.end


class _Samples(_Stream):
    """Every audio sample of a file."""

    def __init__(self, container: Container, found: Scan) -> None:
        super().__init__(container, container.require("audio"), found)
        self.rate = 0
        self.last_time = float("-inf")

    def take(self, packet: Any) -> None:
        self.packets += packet.size > 0
        for frame in self.decoded(packet):
            if self.rate not in (0, frame.sample_rate):
                raise DecodeError(self.path, "undecodable", "the sample rate changes inside the file")
            self.rate = frame.sample_rate
            time = self.end if frame.pts is None else self.seconds(frame.pts)
            if time < self.last_time - BACKWARDS or frame.is_corrupt:
                raise self.bad(f"{'damage' if frame.is_corrupt else 'timestamps run backwards'} at {time:.2f} s")
            self.last_time, self.end = time, time + frame.samples / frame.sample_rate
            self.count += 1
            self.found.peak = max(self.found.peak, check_samples(self.path, mono(frame), time, frame.sample_rate))

    def finish(self) -> None:
        self.check_end()
        if riff_cut_short(self.path):
            raise DecodeError(self.path, "truncated", f"the audio ends at {self.end:.2f} s, before the header says")
        if self.count == 0:
            raise nothing_in(self.path, self.kind)
        if self.one_to_one and self.count > self.packets:
            raise self.bad(f"{self.packets} packets give {self.count} blocks of samples")
        self.found.audio_end = self.end
        if self.header_end is not None and self.end <= self.header_end + ENDS_EARLY:
            self.found.audio_end = min(self.end, self.header_end)  # the last AAC packet is padded
