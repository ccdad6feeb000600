"""Media that ask for more than they are: kilobytes that claim hours, absurd sizes, samples that are no numbers.

`CASES` builds each; tests/hostile/test_bounds.py checks what becomes of them, and tests/hostile_table.py measures it.
"""

from __future__ import annotations

import struct
import zlib
from collections import deque
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from deepavfusion.data.lists.clip_list import ClipList
from deepavfusion.data.lists.verified import USABLE
from deepavfusion.data.samples import FrameDataset, SampleSpec, WindowDataset
from deepavfusion.data.stores.item import make_item
from deepavfusion.data.stores.raw import RawStore
from deepavfusion.inference.video import audio_blocks, open_video
from deepavfusion.media import Media
from deepavfusion.media.files import failures
from deepavfusion.media.stills import read_image
from deepavfusion.transforms.audio import SAMPLE_RATE
from deepavfusion.types import Clip, Problem
from deepavfusion.utils.errors import DecodeError, UserError
from deepavfusion.verify.clip import check_clip
from helpers.media import numbered, write_stream

FIELD = Path(__file__).parents[1] / "hostile" / "field"
Build = Callable[[Path], None]


def sparse(
    path: Path,
    sounds: Sequence[float],
    frames: Sequence[float],
    size: tuple[int, int] = (64, 64),
    aspect: Fraction = Fraction(1),
    sound: float = 1.0,
) -> None:
    """`sound` seconds of audio from each of some times (s), and a frame at each of others; size: height and width."""
    rate, height, width = 16_000, *size
    tone = (0.5 * np.sin(np.arange(rate) / 5)).astype(np.float32)[None]
    with av.open(str(path), "w") as container:
        video = container.add_stream(
            "libx264", rate=10, options={"x264-params": "bframes=0:scenecut=0", "tune": "zerolatency"}
        )
        video.width, video.height, video.pix_fmt, video.thread_count = width, height, "yuv420p", 1
        video.time_base = video.codec_context.time_base = Fraction(1, 1000)
        video.codec_context.sample_aspect_ratio = aspect
        audio = container.add_stream("aac", rate=rate, layout="mono")
        for n, time in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.full((height, width, 3), 40 + 60 * (n % 3), np.uint8), format="rgb24")
            frame.pts, frame.time_base = round(time * 1000), Fraction(1, 1000)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        for start in sounds:
            for begin in range(0, round(sound * rate), 1024):
                block = av.AudioFrame.from_ndarray(tone[:, begin : begin + 1024].copy(), format="fltp", layout="mono")
                block.sample_rate, block.time_base, block.pts = rate, Fraction(1, rate), begin + round(start * rate)
                container.mux(audio.encode(block))
        container.mux(audio.encode(None))


def wav(path: Path, samples: np.ndarray, rate: int = 16_000, channels: int = 1, **sizes: int) -> None:
    """PCM of int16 or float32, as it is; sizes: `riff` and `data`, what the header says of them."""
    body = samples.tobytes()
    kind, width = (3 if samples.dtype.kind == "f" else 1), samples.dtype.itemsize
    head = struct.pack("<HHIIHH", kind, channels, rate, rate * channels * width, channels * width, 8 * width)
    data = struct.pack("<4sI", b"data", sizes.get("data", len(body))) + body
    content = b"WAVE" + struct.pack("<4sI", b"fmt ", len(head)) + head + data
    path.write_bytes(struct.pack("<4sI", b"RIFF", sizes.get("riff", len(content))) + content)


def from_field(name: str) -> Build:
    return lambda path: path.write_bytes((FIELD / name).read_bytes())


def long_header(path: Path) -> None:
    """A Matroska file that claims eleven days."""
    write_stream(path, np.zeros((1, 64_000), np.float32), frames=numbered(100))
    data = path.read_bytes()
    at = data.index(b"\x44\x89\x88") + 3
    path.write_bytes(data[:at] + struct.pack(">d", 1e9) + data[at + 8 :])


def many_streams(path: Path) -> None:
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("pcm_s16le", rate=16_000, layout="mono") for _ in range(100)]
        for stream in streams:
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.int16), format="s16", layout="mono")
            frame.sample_rate, frame.pts = 16_000, 0
            container.mux(stream.encode(frame))


def spoilt(value: float) -> Build:
    samples = np.zeros(5 * 16_000, np.float32)
    samples[20_000] = value
    return lambda path: wav(path, samples)


def hours(path: Path) -> None:
    """One frame, and a packet of audio every 9 s: six hours in a megabyte."""
    sparse(path, [9.0 * n for n in range(2390)], [0.0], sound=0.06)


THREE = (0.0, 1.0, 2.0)
CASES: dict[str, tuple[Build, str]] = {  # name of the file -> what makes it, and a word of the reason that it gets
    "16384x2.mp4": (from_field("16384x2.mp4"), "pixels"),
    "2x16384.mp4": (lambda path: sparse(path, THREE, THREE, size=(16_384, 2)), "pixels"),
    "gap_in_both.mp4": (from_field("gap_in_both.mp4"), "longer than its packets"),
    "gap_in_audio.mp4": (lambda path: sparse(path, (0.0, 1.0, 20_000.0), THREE), "longer than its packets"),
    "gap_in_audio.mkv": (lambda path: sparse(path, (0.0, 1.0, 20_000.0), THREE), "longer than its packets"),
    "hours.mp4": (hours, "longer than its packets"),
    "late_audio.mkv": (lambda path: sparse(path, (20_000.0, 20_001.0), THREE), ""),
    "late_picture.mkv": (from_field("late_picture.mkv"), "longer than its packets"),
    "late_frame.mp4": (lambda path: sparse(path, THREE, (0.0, 1.0, 30_000.0)), "longer than its packets"),
    "slow.mkv": (lambda path: sparse(path, THREE, [1000.0 * n for n in range(14)]), "longer than its packets"),
    "days.mkv": (
        lambda path: sparse(path, THREE, [9.0 * n for n in range(6000)], size=(16, 16)),
        "longer than its packets",
    ),
    "long_header.mkv": (long_header, ""),
    "aspect.mp4": (lambda path: sparse(path, THREE, THREE, aspect=Fraction(60_000, 1)), ""),
    "streams.mkv": (many_streams, "streams"),
    "rate.wav": (lambda path: wav(path, np.zeros(80_000, np.int16), rate=2**31 - 1), "sample rate"),
    "channels.wav": (lambda path: wav(path, np.zeros(2**18, np.int16), channels=256), "channels"),
    "nan.wav": (spoilt(float("nan")), "impossible samples at 1.25 s"),
    "infinite.wav": (spoilt(float("inf")), "impossible samples at 1.25 s"),
    "loud.wav": (spoilt(1e30), "impossible samples at 1.25 s"),
}


def png(*chunks: tuple[bytes, bytes]) -> Build:
    parts = (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
    return lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def header(width: int, height: int) -> tuple[bytes, bytes]:
    return b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)


STILLS: dict[str, Build] = {
    "wide.png": png(header(100_000, 100_000), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")),
    "flat.png": png(header(60_000, 1), (b"IDAT", zlib.compress(bytes(60_001))), (b"IEND", b"")),
    "text.png": png(
        header(64, 64),
        (b"zTXt", b"a\0\0" + zlib.compress(bytes(10**8))),
        (b"IDAT", zlib.compress(bytes(65 * 64))),
        (b"IEND", b""),
    ),
    **{name: from_field(name) for name in ("html.jpg", "empty.jpg")},
}

# ---------------------------------------------------------------- the doors by which a file comes in


def clip_of(path: Path) -> Clip:
    """A clip of a file; a WAV file becomes that of a folder of annotated images."""
    if path.suffix != ".wav":
        return Clip("a", str(path), 0)
    folder = path.with_suffix("")
    for part in ("frames", "labels_semantic"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 64), (0, 200, 0)).save(folder / "frames/0.jpg")
    Image.new("L", (64, 64), 1).save(folder / "labels_semantic/0.png")
    (folder / "audio.wav").write_bytes(path.read_bytes())
    return Clip("a", str(folder), 0, labels=(0,), frames=(0,))


def verify(path: Path) -> str:
    found = check_clip(clip_of(path), 3.0, None)
    return "read" if found.status in USABLE else found.detail


def train(path: Path) -> str:
    clip = clip_of(path)
    kind = FrameDataset if clip.frames else WindowDataset
    for seed in range(3):
        found = kind(ClipList("train", [clip], ["x"]), RawStore(), SampleSpec(32, train=True))[0, seed]
        if isinstance(found, Problem):
            return found.detail
    return "read"


def pack(path: Path) -> str:
    clip = clip_of(path)
    try:
        with RawStore().open(clip) as opened:
            make_item(clip, opened, 256, 90)
    except DecodeError as error:
        return error.detail
    return "read"


def predict(path: Path) -> str:
    try:
        if path.suffix == ".wav":
            with Media(path) as media:
                deque(audio_blocks(media, SAMPLE_RATE), maxlen=0)
            return "read"
        with open_video(path, "read") as media, failures(media.path):
            deque(audio_blocks(media, SAMPLE_RATE), maxlen=0)
            media.frames([0.0, media.info.video_end])
    except (DecodeError, UserError) as error:
        return str(error)
    return "read"


def still(path: Path) -> str:
    try:
        read_image(path)
    except DecodeError as error:
        return error.detail
    return "read"


STILL_DOORS = {"image": still}
DOORS: dict[str, Callable[[Path], str]] = {"verify": verify, "training": train, "packing": pack, "prediction": predict}


def through_every_door(path: str) -> tuple[str, str]:
    """For `helpers.damage.ask`: what each door says, one a line."""
    return "asked", "\n".join(door(Path(path)) for door in DOORS.values())
