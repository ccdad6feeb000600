"""Windows of audio, mono, at any sample rate."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from math import ceil, floor, gcd
from typing import Any

import av
import numpy as np
import torch
from numpy.typing import NDArray

from deepavfusion.media.bounds import MAX_BLOCKS, MAX_SAMPLES, check_audio, check_samples
from deepavfusion.media.container import Container
from deepavfusion.media.files import damaged, nothing_in
from deepavfusion.utils.errors import DecodeError

PREROLL = 0.25  # s decoded before the window: AAC and Opus need up to 0.1 s after a seek to be right
MARGIN = 0.05  # s of real audio on both sides of the window, so that the resampling filter sees no edge
JITTER = 0.002  # s; packet times off by less are rounding, by more a gap
ENDS_EARLY = 0.15  # s; audio shorter than the header says by more is truncated (two AAC packets at 16 kHz)
MAX_OVERLAP = 10.0  # s of audio at times that are already filled; with more, the clock stands still
MAX_PLANES = 8  # PyAV reads at most so many planes, one per channel
SAMPLE_TYPES = {"u8": "u1", "s16": "i2", "s32": "i4", "s64": "i8", "flt": "f4", "dbl": "f8"}  # FFmpeg's -> NumPy's

Piece = tuple[float, NDArray[np.float32]]  # time of the first sample, s, and the samples


def window(container: Container, start: float, seconds: float, sample_rate: int) -> torch.Tensor:
    """See `Media.audio`."""
    assert seconds > 0, seconds
    rate = container.require("audio").codec_context.sample_rate
    most = MAX_SAMPLES // max(rate, sample_rate)  # s, so that memory does not grow with it
    lengths = [min(float(most), seconds - begin) for begin in range(0, ceil(seconds), most)]
    return torch.cat(list(windows(container, start, lengths, sample_rate)))


def windows(container: Container, start: float, lengths: Iterable[float], sample_rate: int) -> Iterator[torch.Tensor]:
    """Windows of some lengths (s), each from where the one before ended; the last one where the audio ends is shorter.

    They are cut out of one pass over the file, so that they join without a seam: where timestamps are rounded, as in
    Matroska, a pass that begins elsewhere places the same samples up to 0.5 ms apart.
    """
    reader: _Reader | None = None
    for seconds in lengths:
        reader = reader or _Reader(container, start, sample_rate)
        waveform = reader.window(start, seconds)
        yield waveform
        if len(waveform) < round(seconds * sample_rate):
            return
        start += seconds


class _Reader:
    """One pass over the audio of a file, from `start` (s) on; nothing else may read the file meanwhile."""

    def __init__(self, container: Container, start: float, sample_rate: int) -> None:
        self.path, self.stream, self.sample_rate = container.path, container.require("audio"), sample_rate
        container.read_only(self.stream)
        sound_start, length = container.span(self.stream)
        self.header_end = sound_start + length if length > 0 else None
        self.frames = _from(container, self.stream, self._needed(start)[1])
        self.pieces: list[Piece] = []  # decoded, and perhaps needed
        self.rate, self.decoded_to = 0, 0.0

    def _needed(self, start: float) -> tuple[float, float]:
        """Where the samples of a window begin, and where the audio has to be known from, s."""
        # The resampler places its output samples relative to its first input sample. Every window therefore starts at
        # a time that both sample rates hit exactly: the same time then gives the same sample in every window.
        rate = self.stream.codec_context.sample_rate
        begin = _on_both_grids(start, rate, self.sample_rate)
        return begin, begin - _margin(rate, self.sample_rate)

    def window(self, start: float, seconds: float) -> torch.Tensor:
        """The samples from `start` on, which rises from call to call."""
        begin, first_needed = self._needed(start)
        self._read(first_needed, start + seconds)
        if self.rate == 0:
            raise nothing_in(self.path, "audio")
        header_end, decoded_to = self.header_end, self.decoded_to
        if header_end is not None and decoded_to < min(start + seconds, header_end) - ENDS_EARLY:
            detail = f"the audio stops at {decoded_to:.2f} s, the header says {header_end:.2f} s"
            raise DecodeError(self.path, "truncated", detail)
        # The last AAC packet is padded, and the header says by how much. A header that is further off is ignored.
        padded = header_end is not None and header_end < decoded_to <= header_end + ENDS_EARLY
        end = header_end if header_end is not None and padded else decoded_to
        wanted, skip = round(seconds * self.sample_rate), round((start - begin) * self.sample_rate)
        samples = round(min(seconds, end - start) * self.sample_rate)
        waveform = _resampled(self.pieces, self.rate, begin, skip + wanted, self.sample_rate)[skip:][: max(0, samples)]
        check_samples(self.path, waveform.numpy(), start, self.sample_rate)
        return waveform.clip_(-1.0, 1.0)

    def _read(self, needed: float, end: float) -> None:
        """Decode what lies between two times (s), and a margin behind."""
        rate = self.rate or self.stream.codec_context.sample_rate
        self.pieces = [piece for piece in self.pieces if piece[0] + len(piece[1]) / rate >= needed]
        kept = sum(len(samples) for _, samples in self.pieces) / rate if self.pieces else 0.0
        if self.pieces and self.pieces[-1][0] > end + _margin(rate, self.sample_rate):
            return
        for blocks, (time, frame) in enumerate(self.frames):
            if blocks > MAX_BLOCKS:
                raise DecodeError(self.path, "undecodable", "too much audio lies before the requested window")
            if self.rate not in (0, frame.sample_rate):
                raise DecodeError(self.path, "undecodable", "the sample rate changes inside the file")
            self.rate = rate = frame.sample_rate
            check_audio(self.path, rate, frame.layout.nb_channels)
            self.decoded_to = time + frame.samples / rate
            if self.decoded_to >= needed:
                self.pieces.append((time, mono(frame)))
                kept += frame.samples / rate
                if kept > self.decoded_to - min(needed, self.pieces[0][0]) + MAX_OVERLAP:
                    raise DecodeError(self.path, "undecodable", f"the audio timestamps stand still at {time:.2f} s")
            if time > end + _margin(rate, self.sample_rate):
                return


def mono(frame: Any) -> NDArray[np.float32]:
    """A frame of any sample format as float32 [T] in about [−1, 1].

    Raises:
        ValueError: more channels than there can be.
    """
    channels, planar = frame.layout.nb_channels, frame.format.is_planar
    if planar and channels > MAX_PLANES:
        raise ValueError(f"the header gives {channels} audio channels")
    # Not to_ndarray: it reads beyond the eighth plane, and crashes.
    dtype, count = SAMPLE_TYPES[frame.format.packed.name], frame.samples * (1 if planar else channels)
    used = frame.planes[: channels if planar else 1]
    planes: list[NDArray[Any]] = [np.frombuffer(plane, dtype, count) for plane in used]
    samples = np.stack(planes) if planar else planes[0].reshape(-1, channels).T
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
    table = {"FL": 1.0, "FR": 1.0, "FLC": 1.0, "FRC": 1.0, "FC": 2**0.5, "LFE": 0.0, "LFE2": 0.0}
    known = "FL" in channels and "FR" in channels
    weights = np.array([table.get(name, 0.5**0.5) if known else 1.0 for name in channels], np.float32)
    return weights / weights.sum()


def _from(container: Container, stream: Any, needed: float) -> Iterator[tuple[float, Any]]:
    """Decoded audio frames with their times, from before `needed` (s) to the end."""
    first = stream.start_time or 0
    target = floor((needed - PREROLL + container.origin) / float(stream.time_base))
    for position in (target, first):
        container.seek(stream, position)
        clock: float | None = None
        for pts_time, frame in _decoded(container, stream, needed, sought=position > first):
            time = clock if pts_time is None else pts_time
            time = needed if time is None else time
            if clock is not None and abs(time - clock) <= JITTER:
                time = clock
            elif clock is None:
                time = round(time * frame.sample_rate) / frame.sample_rate  # the later ones lie on this grid, too
            if clock is None and position > first and time > needed:
                break  # the seek landed after the start of the window: read again from the beginning
            clock = time + frame.samples / frame.sample_rate
            yield time, frame
        else:
            if clock is not None:
                return  # otherwise the seek landed behind the last packet


def _decoded(container: Container, stream: Any, needed: float, sought: bool) -> Iterator[tuple[float | None, Any]]:
    """Frames from where the file is read on, with the times of their timestamps.

    Args:
        needed: where the samples that are wanted begin, s.
        sought: whether the file is read from its middle on, where the first packets may be parts of one (MPEG-PS).
    """
    tick, nothing_yet = float(stream.time_base), sought
    for packet in container.av.demux(stream):
        if packet.is_corrupt and container.av.format.name != "wav":  # whose last packet may just be shorter
            raise damaged(container.path, "an audio packet is incomplete")
        try:
            frames = packet.decode()
        except av.error.InvalidDataError:
            if nothing_yet or (packet.pts is not None and packet.pts * tick - container.origin < needed - MARGIN):
                continue  # a decoder that starts in mid-stream may fail on packets before the window
            raise
        for frame in frames:
            nothing_yet = False
            yield None if frame.pts is None else frame.pts * tick - container.origin, frame


def window_of(
    samples: NDArray[np.float32], source_rate: int, start: float, seconds: float, sample_rate: int
) -> torch.Tensor:
    """As `Media.audio`, of samples in memory: float32 [T], mono, the first of them at 0 s."""
    assert seconds > 0, seconds
    begin = _on_both_grids(start, source_rate, sample_rate)
    around = 2 * _margin(source_rate, sample_rate)
    first, last = ((time * source_rate) for time in (begin - around, start + seconds + around))
    first, last = max(0, floor(first)), max(0, ceil(last))
    wanted, skip = round(seconds * sample_rate), round((start - begin) * sample_rate)
    found = max(0, round(min(seconds, len(samples) / source_rate - start) * sample_rate))
    pieces = [(first / source_rate, samples[first:last])]
    return _resampled(pieces, source_rate, begin, skip + wanted, sample_rate)[skip:][:found].clip_(-1.0, 1.0)


def _on_both_grids(start: float, source_rate: int, rate: int) -> float:
    """The last time at or before `start` that is a whole number of samples at both rates, s."""
    divisor = gcd(source_rate, rate) or 1
    return floor(start * divisor + 1e-6) / divisor


def _margin(source_rate: int, rate: int) -> float:
    """At least MARGIN, s, and a whole number of samples at both rates, so that cutting it off shifts nothing."""
    divisor = gcd(source_rate, rate) or 1
    return ceil(MARGIN * divisor) / divisor


def _resampled(pieces: list[Piece], source_rate: int, start: float, length: int, rate: int) -> torch.Tensor:
    """Pieces of audio, laid out by their times over silence, at the requested rate: `length` samples from `start`."""
    margin = _margin(source_rate, rate)
    wave = np.zeros(ceil((length / rate + 2 * margin) * source_rate), np.float32)
    running: int | None = None
    for time, samples in pieces:
        position = round((time - start + margin) * source_rate)
        if running is not None and abs(position - running) <= JITTER * source_rate:
            position = running
        running = position + len(samples)
        begin, end = max(position, 0), min(running, len(wave))
        if begin < end:
            wave[begin:end] = samples[begin - position : end - position]
    if source_rate != rate:
        frame = av.AudioFrame.from_ndarray(wave[None], format="fltp", layout="mono")
        frame.sample_rate = source_rate
        resampler = av.AudioResampler(format="fltp", layout="mono", rate=rate)
        parts = (*resampler.resample(frame), *resampler.resample(None))
        wave = np.concatenate([part.to_ndarray()[0] for part in parts])
    skip = round(margin * rate)
    return torch.from_numpy(wave[skip : skip + length].copy())
