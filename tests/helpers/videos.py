"""Folders of small videos in several containers, as people have them."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

CODECS = {
    ".mp4": ("libx264", "aac"),
    ".mov": ("libx264", "aac"),
    ".mkv": ("libx264", "aac"),
    ".webm": ("libvpx", "libopus"),
}
KINDS = ("cats", "dogs", "birds", "größe")  # of the classes
NAMES = ("plain", "with blanks", "it's", 'a "quoted" one', "Föhn", "a=b", "a,b", "[x]", "UPPER", "(1)")  # of the files
RATE = 48_000  # Hz, of the audio
FPS = 4


def write(path: Path, kind: int = 0, seconds: float = 4.0, sound: bool = True, side: int = 64, seed: int = 0) -> Path:
    """A video whose colour and tone tell its kind; its ending names the container."""
    rng = np.random.default_rng([kind, seed])
    path.parent.mkdir(parents=True, exist_ok=True)
    video_codec, audio_codec = CODECS[path.suffix.lower()]
    with av.open(
        f"file:{path}", "w", format={".mkv": "matroska"}.get(path.suffix.lower(), path.suffix.lower()[1:])
    ) as file:
        options = {"x264-params": "bframes=0"} if video_codec == "libx264" else {}
        video = file.add_stream(video_codec, rate=FPS, options=options)
        video.width = video.height = side
        video.pix_fmt, video.thread_count = "yuv420p", 1
        pns = {"aac_pns": "0"} if audio_codec == "aac" else {}  # or windows depend on where decoding began
        audio = file.add_stream(audio_codec, rate=RATE, layout="mono", options=pns) if sound else None
        colour = np.array([(220, 30, 30), (30, 220, 30), (30, 30, 220), (220, 220, 30)][kind % 4])
        for n in range(max(1, round(seconds * FPS))):
            pixels = (colour + rng.integers(-30, 30, (side, side, 3))).clip(0, 255).astype(np.uint8)
            pixels[8 * n % side :][:8] = 255
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = n, Fraction(1, FPS)
            file.mux(video.encode(frame))
        file.mux(video.encode(None))
        if audio is not None:
            time = np.arange(round(seconds * RATE)) / RATE
            wave = 0.4 * np.sin(2 * np.pi * 220 * 2**kind * time) + 0.05 * rng.standard_normal(len(time))
            for begin in range(0, len(wave), 960):
                samples = wave[None, begin : begin + 960].astype(np.float32)
                block = av.AudioFrame.from_ndarray(
                    samples, format="fltp" if audio_codec == "aac" else "flt", layout="mono"
                )
                block.sample_rate, block.pts, block.time_base = RATE, begin, Fraction(1, RATE)
                file.mux(audio.encode(block))
            file.mux(audio.encode(None))
    return path


def write_long(path: Path, source: Path, seconds: float, times: int) -> Path:
    """The packets of a video, which lasts so many seconds, one after the other so many times: nothing is encoded."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(f"file:{source}") as reader:
        demuxed = (packet for packet in reader.demux() if packet.dts is not None)
        packets = [(packet.stream.index, packet.pts, packet.dts, packet.duration, packet.is_keyframe, bytes(packet))
                   for packet in demuxed if 0 <= packet.dts * packet.time_base < seconds]  # fmt: skip
        with av.open(f"file:{path}", "w", format="matroska" if path.suffix == ".mkv" else path.suffix[1:]) as writer:
            streams = {stream.index: writer.add_stream_from_template(stream) for stream in reader.streams}
            bases = {stream.index: stream.time_base for stream in reader.streams}
            for turn in range(times):
                for index, pts, dts, duration, key, content in packets:
                    packet = av.Packet(content)
                    shift = round(turn * seconds / bases[index])
                    packet.pts, packet.dts, packet.duration = pts + shift, dts + shift, duration
                    packet.time_base, packet.stream, packet.is_keyframe = bases[index], streams[index], key
                    writer.mux(packet)
    return path


def make_folder(root: Path, each: int = 10, kinds: Sequence[str] = KINDS, long: int = 360) -> Path:
    """So many videos of each kind, in folders of that name, in four containers; one has `long` times ten seconds, one
    no sound, and one is broken."""
    endings = (".mp4", ".webm", ".mkv", ".mov")
    for kind, name in enumerate(kinds):
        for n in range(each):
            ending = endings[(kind + n) % 4]
            place = root / name / ("deep/er" if n % 5 == 4 else "") / f"{NAMES[n % len(NAMES)]} {n}{ending}"
            if n == 1 and kind == 0 and long > 1:
                short = write(root / "short.mp4", kind, 10.0, side=32)
                write_long(place.with_suffix(".mp4"), short, 10.0, long)
                short.unlink()
            elif n == 2 and kind == 1:
                write(place, kind, sound=False)
            elif n == 3 and kind == 2:
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(b"\0\0\0\x18ftypmp42" + bytes(500))
            else:
                write(place, kind, seed=n)
    return root
