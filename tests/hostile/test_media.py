"""Damaged and malicious media: samples or a named problem, in bounded time and memory, and no other file opened."""

from __future__ import annotations

import errno
import io
import json
import os
import random
import shutil
import struct
import wave
import zlib
from collections import Counter
from collections.abc import Callable
from functools import cache, reduce
from operator import getitem
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from deepavfusion.data.datamodule import ClipDataModule
from deepavfusion.data.lists.clip_list import ClipList
from deepavfusion.data.lists.vggsound import vggsound
from deepavfusion.data.stores.pack import PackSettings, pack
from deepavfusion.data.stores.packed import PackedClip, _checked
from deepavfusion.data.stores.packed_list import CONFIG, packed_list
from deepavfusion.media import Media, bounds
from deepavfusion.media import audio as audio_reader
from deepavfusion.media import frames as frame_reader
from deepavfusion.media.encode import write_mp4
from deepavfusion.media.stills import read_image, read_mask, read_mask_of
from deepavfusion.types import Clip
from deepavfusion.utils.errors import DecodeError
from helpers.damage import Answer, ask, boxes, open_clip, summary
from helpers.errors import decode_error
from helpers.media import clicks, numbered, read_audio, read_frames, write_stream
from hostile.conftest import Refused

REASONS = set(DecodeError.REASONS) - {"bad_mask"}
PEAK_MB = 1200  # of a worker, its libraries included


@pytest.fixture(scope="module")
def wholes(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Undamaged clips of several kinds."""
    folder = tmp_path_factory.mktemp("whole")
    write_mp4(folder / "0.mp4", numbered(40, 64), 10, clicks(16_000), 16_000)
    write_mp4(folder / "1.mp4", numbered(40), 10, clicks(44_100, 2), 44_100, keyframe_interval=16)
    write_stream(
        folder / "2.mp4", clicks(48_000, 2), 48_000, "stereo", numbered(60), x264="bframes=3", movflags="faststart"
    )
    return [(folder / f"{n}.mp4").read_bytes() for n in range(3)]


# ---------------------------------------------------------------- kinds of damage


def of_kind(data: bytes, rng: random.Random, *kinds: bytes) -> tuple[int, int, bytes]:
    return rng.choice([box for box in boxes(data) if not kinds or box[2] in kinds])


def put(data: bytes, at: int, value: bytes) -> bytes:
    return data[:at] + value + data[at + len(value) :] if 0 <= at <= len(data) - len(value) else data


def cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(1, len(data))]


def flips(data: bytes, rng: random.Random) -> bytes:
    """Bits of the header or of anything."""
    out, (begin, end, _) = bytearray(data), of_kind(data, rng, b"moov")
    for _ in range(rng.choice([1, 4, 30, 200])):
        out[rng.randrange(begin, end) if rng.random() < 0.5 else rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def zeros(data: bytes, rng: random.Random) -> bytes:
    begin, end, _ = of_kind(data, rng)
    return put(data, begin + 8, bytes(max(0, min(end, len(data)) - begin - 8)))


def lost_box(data: bytes, rng: random.Random) -> bytes:
    return put(data, of_kind(data, rng)[0] + 4, b"free")


def box_size(data: bytes, rng: random.Random) -> bytes:
    size = rng.choice([0, 1, 7, 8, 2**31 - 1, 2**31, 2**32 - 1, rng.randrange(2**16)])
    return put(data, of_kind(data, rng)[0], struct.pack(">I", size))


def counts(data: bytes, rng: random.Random) -> bytes:
    """Of samples, chunks, times: the number of entries, or what an entry says."""
    begin, end, _ = of_kind(data, rng, b"stts", b"stsz", b"stco", b"stsc", b"stss", b"ctts", b"elst", b"stsd")
    value = struct.pack(">I", rng.choice([0, 1, 2**16, 2**28, 2**31 - 1, 2**31, 2**32 - 1]))
    return put(data, begin + rng.choice([12, 16, 20, 24, rng.randrange(8, max(9, end - begin - 4))]), value)


def clocks(data: bytes, rng: random.Random) -> bytes:
    """Time scale, duration and rate."""
    begin, _, kind = of_kind(data, rng, b"mvhd", b"mdhd", b"tkhd")
    at = {b"mvhd": (20, 24), b"mdhd": (20, 24), b"tkhd": (28,)}[kind]
    return put(data, begin + rng.choice(at), struct.pack(">I", rng.choice([0, 1, 7, 2**31, 2**32 - 1])))


def long_clocks(data: bytes, rng: random.Random) -> bytes:
    """Headers of version 1, with a duration of 64 bits."""
    begin, _, _ = of_kind(data, rng, b"mvhd", b"mdhd")
    fields = struct.pack(">IQQIQ", 1 << 24, 0, 0, rng.choice([1, 1000]), rng.choice([2**63 - 1, 2**63, 2**64 - 1]))
    return put(data, begin + 8, fields)


def formats(data: bytes, rng: random.Random) -> bytes:
    """Width and height of frames; channels, bits and rate of audio."""
    at = data.find(rng.choice([b"avc1", b"mp4a"]), data.find(b"stsd")) + 4
    if data[at - 4 : at] == b"avc1":
        return put(data, at + 24, struct.pack(">HH", *rng.choices([0, 1, 7, 65_535], k=2)))
    return put(put(data, at + 16, struct.pack(">H", rng.choice([0, 3, 255, 65_535]))), at + 24, rng.randbytes(2))


def codec_setup(data: bytes, rng: random.Random) -> bytes:
    """Bytes of the decoders' own headers (avcC, esds): sizes and profiles."""
    at = data.find(rng.choice([b"avcC", b"esds"])) + 4
    for _ in range(rng.choice([1, 3, 10])):
        data = put(data, at + rng.randrange(40), rng.randbytes(1))
    return data


def swapped(data: bytes, rng: random.Random) -> bytes:
    a, b, c = sorted(rng.sample(range(len(data)), 3))
    return data[:a] + data[b:c] + data[a:b] + data[c:]


def tail(data: bytes, rng: random.Random) -> bytes:
    return data + rng.choice([rng.randbytes(5000), data, b"\0" * 5000, struct.pack(">I4s", 2**31, b"moov")])


def packets(data: bytes, rng: random.Random) -> bytes:
    """Noise in the coded video and audio."""
    begin, end, _ = of_kind(data, rng, b"mdat")
    return put(data, rng.randrange(begin + 8, end - 600), rng.randbytes(rng.choice([1, 20, 500])))


KINDS: list[Callable[[bytes, random.Random], bytes]] = [
    cut, flips, zeros, lost_box, box_size, counts, clocks, long_clocks, formats, codec_setup, swapped, tail, packets
]  # fmt: skip


def foreign_files(folder: Path, whole: bytes) -> dict[str, set[str]]:
    """Things that are no clip, under a clip's name; and the words that fit them."""
    secret = folder / "secret.ts"
    write_stream(secret, clicks(16_000), frames=numbered(60))
    playlist = "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:4,\n{}\n#EXT-X-ENDLIST\n"
    texts = {
        "hls": playlist.format(secret),
        "hls here": playlist.format("secret.ts"),
        "hls file": playlist.format(f"file:{secret}"),
        "hls http": playlist.format("http://127.0.0.1:9/a.ts"),
        "hls key": f'#EXTM3U\n#EXT-X-KEY:METHOD=AES-128,URI="file:{secret}"\n' + playlist.format(secret),
        "concat": f"ffconcat version 1.0\nfile '{secret}'\n",
        "concat here": "ffconcat version 1.0\nfile secret.ts\n",
        "concat line": f"concat:{secret}|{secret}",
        "dash": f'<?xml version="1.0"?><MPD type="static"><BaseURL>file://{secret}</BaseURL></MPD>',
        "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
        "subtitles": "1\n00:00:00,000 --> 00:00:05,000\nhello\n" * 9,
        "address": "http://127.0.0.1:9/a.mp4",
        "reference": f"[Reference]\nRef1=http://127.0.0.1:9/a.mp4\nRef2={secret}\n",
        "svg": '<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        "pickle": "cos\nsystem\n(S'true'\ntR.",
    }
    expected = {name: {"undecodable", "no_audio", "no_video", "truncated"} for name in texts}
    for name, text in texts.items():
        (folder / f"{name}.mp4").write_text(text)
    (folder / "folder.mp4").mkdir()
    os.mkfifo(folder / "pipe.mp4")
    (folder / "device.mp4").symlink_to("/dev/zero")
    (folder / "endless.mp4").symlink_to("endless.mp4")
    (folder / "dangling.mp4").symlink_to(folder / "nowhere")
    (folder / "real.bin").write_bytes(whole)
    (folder / "linked.mp4").symlink_to(folder / "real.bin")
    (folder / "empty.mp4").touch()
    (folder / "whole -i http:%0a.mp4").write_bytes(whole)
    expected |= {name: {"undecodable"} for name in ("folder", "pipe", "device", "endless")}
    return expected | {
        "dangling": {"missing"},
        "linked": {"read"},
        "empty": {"truncated"},
        "whole -i http:%0a": {"read"},
    }


# ---------------------------------------------------------------- the checks


def check(found: dict[str, Answer]) -> None:
    for path, answer in found.items():
        assert answer.word in REASONS | {"read"}, (path, answer)
        assert answer.peak_mb < PEAK_MB, (path, answer)


def damaged_files(folder: Path, wholes: list[bytes], count: int) -> list[Path]:
    files = []
    for n in range(count):
        rng, kind = random.Random(n), KINDS[n % len(KINDS)]
        files.append(folder / f"{n:04d}_{kind.__name__}.mp4")
        files[-1].write_bytes(kind(wholes[n // len(KINDS) % len(wholes)], rng))
    return files


def check_damaged(folder: Path, wholes: list[bytes], count: int, workers: int) -> None:
    files = damaged_files(folder, wholes, count)
    found = ask(open_clip, files, workers)
    print(summary(found))
    assert len(found) == count
    check(found)
    words = Counter(answer.word for answer in found.values())
    assert {"read", "undecodable", "truncated"} <= set(words)
    assert words["read"] < 0.7 * count, words


def test_damaged_clips_give_samples_or_a_named_problem(tmp_path: Path, wholes: list[bytes]) -> None:
    check_damaged(tmp_path, wholes, 75, workers=1)


@pytest.mark.full
def test_a_thousand_damaged_clips(tmp_path: Path, wholes: list[bytes]) -> None:
    check_damaged(tmp_path, wholes, 1000, workers=len(os.sched_getaffinity(0)))


def test_what_is_no_clip_opens_nothing_else(tmp_path: Path, wholes: list[bytes]) -> None:
    expected = foreign_files(tmp_path, wholes[0])
    found = ask(open_clip, [tmp_path / f"{name}.mp4" for name in expected])
    print(summary(found))
    check(found)
    for name, words in expected.items():
        assert found[str(tmp_path / f"{name}.mp4")].word in words, (name, found[str(tmp_path / f"{name}.mp4")])


# ---------------------------------------------------------------- bombs


def undecodable(function: Callable[..., object], *args: object, reason: str = "undecodable") -> str:
    error = decode_error(function, *args)
    assert error.reason == reason, error
    return error.detail


@pytest.mark.parametrize("rate", [768_001, 2**31 - 1, 2**32 - 1])
def test_an_absurd_sample_rate_is_refused(tmp_path: Path, rate: int) -> None:
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(48_000)
        file.writeframes(bytes(96_000))
    data = (tmp_path / "a.wav").read_bytes()
    assert len(read_audio(tmp_path / "a.wav", 0.0, 0.5)) == 8000
    (tmp_path / "a.wav").write_bytes(data[:24] + struct.pack("<I", rate) + data[28:])
    assert undecodable(read_audio, tmp_path / "a.wav", 0.0, 3.0)


def test_sound_whose_clock_stands_still_does_not_pile_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_stream(tmp_path / "a.mkv", clicks(16_000, seconds=30.0))
    with Media(tmp_path / "a.mkv") as media:
        monkeypatch.setattr(audio_reader, "_from", lambda *_: ((0.0, frame) for frame in media.av.decode(audio=0)))
        assert "stand still" in undecodable(read_audio, tmp_path / "a.mkv", 0.0, 1.0)


def test_pictures_that_grow_in_mid_stream_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each half is a file of its own; Matroska can be joined like text."""
    for size, offset in ((64, 0.0), (640, 0.8)):
        frames = np.full((20, size, size, 3), 90, np.uint8)
        write_stream(tmp_path / f"{size}.mkv", frames=frames, x264="repeat-headers=1:bframes=0", offset=offset)
    joined = tmp_path / "a.mkv"
    joined.write_bytes((tmp_path / "64.mkv").read_bytes() + (tmp_path / "640.mkv").read_bytes())
    monkeypatch.setattr(bounds, "MAX_PIXELS", 512 * 512)
    assert read_frames(joined, [0.0]).shape == (1, 64, 64, 3)
    undecodable(read_frames, tmp_path / "640.mkv", [0.0])
    shapes = set()
    for moment in (0.0, 0.5, 1.0, 2.0, 9.0):
        try:
            shapes.add(read_frames(joined, [moment]).shape)
        except DecodeError:
            shapes.add(())
    assert shapes == {(1, 64, 64, 3), ()}


@pytest.mark.skipif(frame_reader.decord is None, reason="decord has no wheel for this machine")
def test_films_that_may_change_their_size_are_not_given_to_decord(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[str] = []
    keep = frame_reader.decord_frames
    monkeypatch.setattr(frame_reader, "decord_frames", lambda path, *a, **k: given.append(path) or keep(path, *a, **k))
    write_stream(tmp_path / "fixed.mp4", frames=numbered(20))
    write_stream(tmp_path / "headers.mp4", frames=numbered(20), x264="repeat-headers=1")
    for name in ("fixed.mp4", "headers.mp4"):
        assert read_frames(tmp_path / name, [0.0, 0.5]).shape == (2, 32, 128, 3)
    assert [Path(path).name for path in given] == ["fixed.mp4"]


def test_the_work_for_one_picture_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_stream(tmp_path / "a.ts", frames=numbered(60), x264="keyint=1000:scenecut=0")
    assert read_frames(tmp_path / "a.ts", [2.3]).shape == (1, 32, 128, 3)
    monkeypatch.setattr(frame_reader, "MAX_WORK", 20 * 2**16)
    assert "too many frames" in undecodable(read_frames, tmp_path / "a.ts", [2.3])


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *more: bytes, data: bytes = b"") -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


@cache
def bombs() -> dict[str, bytes]:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64)).save(buffer, "JPEG")
    jpeg = buffer.getvalue()
    at = jpeg.index(b"\xff\xc0") + 5
    text = zlib.compress(bytes(10**8))
    return {
        "wide jpeg": jpeg[:at] + struct.pack(">HH", 65_535, 65_535) + jpeg[at + 4 :],
        "flat jpeg": jpeg[:at] + struct.pack(">HH", 0, 64) + jpeg[at + 4 :],
        "cut jpeg": jpeg[: len(jpeg) // 2],
        "wide png": png(100_000, 100_000, data=bytes(1000)),
        "widest png": png(2**31 - 1, 2**31 - 1),
        "short png": png(64, 64, data=bytes(100)),
        "text png": png(64, 64, chunk(b"zTXt", b"a\0\0" + text), data=bytes(64 * 65)),
        "international png": png(64, 64, chunk(b"iTXt", b"a\0\1\0\0\0" + text), data=bytes(64 * 65)),
        "texts png": png(64, 64, *[chunk(b"zTXt", b"%d\0\0" % n + zlib.compress(bytes(10**6))) for n in range(70)]),
        "profile png": png(64, 64, chunk(b"iCCP", b"a\0\0" + text), data=bytes(64 * 65)),
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n(exploded) (w) file closefile\nshowpage\n",
        "text": b"no image",
        "nothing": b"",
    }


@pytest.mark.parametrize("name", list(bombs()))
def test_pictures_that_are_bombs(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = bombs()[name]
    path = tmp_path / "0.png"
    path.write_bytes(data)
    undecodable(read_mask, path, reason="bad_mask")
    undecodable(read_image, io.BytesIO(data), "a.bin")
    undecodable(read_mask_of, path, path, reason="bad_mask")
    assert not (tmp_path / "exploded").exists()


# ---------------------------------------------------------------- packed data


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    for name in "ab":
        write_mp4(folder / f"{name}.mp4", numbered(30), 10, clicks(16_000, seconds=3.0, times=(1.0,)), 16_000)
    clips = ClipList("train", [Clip(name, str(folder / f"{name}.mp4"), 0) for name in "ab"], ["x"])
    pack({"train": clips}, folder / "out", "vggsound", PackSettings(clips_per_chunk=5), 1)
    return folder / "out"


def _spec(named: str) -> str:
    """An item's structure, as litdata writes it, that names another class."""
    spec = {**CONFIG["data_spec"][1], "type": named}
    return json.dumps([1, spec])


INDEX, MANIFEST, CLIPS = "train/index.json", "packed.json", "train/clips.json"
FIRST, OF_TRAIN = "chunks.0.", "splits.train.chunks.0."
CHANGES = [  # file, key, and the value that it gets; ... takes it out
    *((INDEX, FIRST + "filename", name) for name in ("../../x.bin", "/etc/passwd")),
    *((INDEX, FIRST + key, 2**40) for key in ("chunk_bytes", "chunk_size")),
    (INDEX, "config.data_format", ["pickle"] * 11),
    (INDEX, "config.compression", "zstd"),
    *((INDEX, "config.data_spec", value) for value in (_spec("os.system"), _spec("builtins.list"), None, 5, "[", ...)),
    *((INDEX, f"config.{key}", value) for key, value in (("item_loader", "TokensLoader"), ("data_format", ...))),
    *((INDEX, f"config.{key}", value) for key, value in (("encryption", {"algorithm": "x"}), ("chunk_size", "65"))),
    *((INDEX, f"config.{key}", "x") for key in ("chunk_bytes", "compression_level", "ipc_compression", "types", "new")),
    *((INDEX, FIRST + key, value) for key, value in (("dim", 10**12), ("dim", ...), ("new", 1), ("chunk_size", 2.0))),
    *((INDEX, key, [{"path": "http://127.0.0.1/"}]) for key in ("shards", "keys", "updated_at")),
    *((INDEX, key, value) for key, value in (("config", None), ("config", []), ("chunks", {}))),
    (INDEX, "chunks", None),
    (INDEX, "chunks", "twice"),
    *((MANIFEST, OF_TRAIN + "file", name) for name in ("../../x.bin", "/etc/passwd", "chunk-0\0.bin", 5)),
    *((MANIFEST, OF_TRAIN + "items", value) for value in (10**12, 2.0, True, -2, 0)),
    *((MANIFEST, OF_TRAIN + key, value) for key, value in (("sha256", "../x"), ("sha256", ...), ("bytes", 40))),
    (MANIFEST, "splits.train.chunks", "twice"),
    *((MANIFEST, key, value) for key, value in (("splits", 5), ("name", {"a": 1}))),
    (MANIFEST, "splits", ["train"]),
    (MANIFEST, "format", ...),
    *((CLIPS, "clips.label", value) for value in ([0, 7], ["0", "0"])),
    *((CLIPS, "clips.id", value) for value in (["a", "a"], ["a"])),
    *((CLIPS, key, value) for key, value in (("clips.id", ["a", "\ud800"]), ("notes", ["\udcff"]))),  # no report has it
    (CLIPS, "clips.labels", [[0], [-9]]),
    (CLIPS, "missing", ...),
    *((CLIPS, key, value) for key, value in (("split", "other"), ("classes", [5]), ("classes", "x"), ("notes", [[1]]))),
    *((CLIPS, key, value) for key, value in (("mixtures", [[5]]), ("multi_label", "yes"), ("lost_frames", -1))),
    *(
        (CLIPS, "clips." + key, value)
        for key, value in (("id", [5, 6]), ("video", [None, None]), ("frames", [["a"], []]))
    ),
    *(
        (CLIPS, "clips." + key, value)
        for key, value in (("frames", [[-1], []]), ("label", [0.0, 0]), ("labels", [0, 0]))
    ),
]


@pytest.mark.parametrize(("file", "key", "value"), CHANGES)
def test_packed_lists_that_are_damaged_or_hostile(
    packed: Path, tmp_path: Path, file: str, key: str, value: Any, refused: Refused
) -> None:
    root = tmp_path / "p"
    shutil.copytree(packed, root)
    content = json.loads((root / file).read_text())
    *parents, last = (int(part) if part.isdigit() else part for part in key.split("."))
    inner = reduce(getitem, parents, content)
    if value is ...:
        del inner[last]
    else:
        inner[last] = 2 * inner[last] if value == "twice" else value
    assert json.dumps(content) != (root / file).read_text()
    (root / file).write_text(json.dumps(content))
    refused(lambda: packed_list(str(root), "train", "vggsound"), str(root), "pack")


@pytest.mark.parametrize("file", [INDEX, MANIFEST, CLIPS])
@pytest.mark.parametrize("content", ["", "[]", "{}", "null", "[" * 100_000, '{"a"', "\ud800"])
def test_packed_files_of_anything(packed: Path, tmp_path: Path, file: str, content: str, refused: Refused) -> None:
    root = tmp_path / "p"
    shutil.copytree(packed, root)
    (root / file).write_bytes(content.encode("utf-8", "surrogatepass"))
    refused(lambda: packed_list(str(root), "train", "vggsound"), "pack")
    (root / file).unlink()
    refused(lambda: packed_list(str(root), "train", "vggsound"), "pack")


@pytest.mark.parametrize("file", [INDEX, MANIFEST, CLIPS, "train/chunk-00000.bin"])
def test_packed_files_that_are_no_files(packed: Path, tmp_path: Path, file: str, refused: Refused) -> None:
    for n, kind in enumerate((os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero"))):
        root = tmp_path / str(n)
        shutil.copytree(packed, root)
        (root / file).rename(tmp_path / "elsewhere")
        kind(root / file)
        if file != MANIFEST or n == 0:
            refused(lambda root=root: packed_list(str(root), "train", "vggsound"), str(root / file), "pack")
        shutil.rmtree(root)
        shutil.copytree(packed, root)
        (root / file).rename(tmp_path / "elsewhere")
        (root / file).symlink_to(tmp_path / "elsewhere")  # as a download cache does
        assert len(packed_list(str(root), "train", "vggsound")[0]) == 2


@pytest.mark.parametrize("file", [INDEX, MANIFEST, CLIPS])
def test_packed_lists_are_not_read_without_end(packed: Path, tmp_path: Path, file: str, refused: Refused) -> None:
    root = tmp_path / "p"
    shutil.copytree(packed, root)
    os.truncate(root / file, 2**40)  # takes no place on the disk
    refused(lambda: packed_list(str(root), "train", "vggsound"), str(root / file), "pack", "at most")
    for growing in ('{"":0},', "[],", '"ab",'):  # 32 MB, of which Python would make hundreds
        (root / file).write_text(f"[{growing * (2**25 // len(growing))}0]")
        refused(lambda: packed_list(str(root), "train", "vggsound"), str(root / file), "MB of memory", "at most")


PART, PLAN = "train/.parts/00000.json", ".pack.json"
OTHERS = [  # in a folder that is packed into again: key, and its value
    *(("packed", value) for value in (["a"], ["b", "a"], ["x", "a"], 5, ["a", "b", "a"])),
    *(("bad", value) for value in ([["x", "why"]], [["a", "why"]], [["a", 5]], 5, [["x", "y"], ["x", "y"]])),
    *(("file", value) for value in ("../x", "chunk-00001.bin")),
    *(("litdata.config.data_spec", value) for value in (_spec("os.system"), None)),
    *(("litdata." + key, value) for key, value in (("chunks", []), ("config.encryption", "x"), ("config.new", "x"))),
    *((key, value) for key, value in (("bytes", "5"), ("sha256", "../x"), ("sha256", 5), ("litdata", 5))),
]


@pytest.mark.parametrize(("key", "value"), OTHERS)
def test_records_of_a_pack_that_are_not_ours_are_written_again(
    packed: Path, tmp_path: Path, key: str, value: Any
) -> None:
    out = tmp_path / "out"
    shutil.copytree(packed, out)
    record = json.loads((out / PART).read_text())
    *parents, last = key.split(".")
    reduce(getitem, parents, record)[last] = value
    (out / PART).write_text(json.dumps(record))
    clips = ClipList("train", [Clip(name, str(packed.parent / f"{name}.mp4"), 0) for name in "ab"], ["x"])
    pack({"train": clips}, out, "vggsound", PackSettings(clips_per_chunk=5), 1)
    for path in packed.rglob("*"):
        assert path.is_dir() or path.read_bytes() == (out / path.relative_to(packed)).read_bytes(), path


@pytest.mark.parametrize("content", ["", "[]", "5", "[" * 100_000, "link"])
def test_a_plan_that_is_not_ours_is_left_alone(packed: Path, tmp_path: Path, content: str, refused: Refused) -> None:
    out, clips = tmp_path / "out", ClipList("train", [Clip(name, f"{name}.mp4", 0) for name in "ab"], ["x"])
    shutil.copytree(packed, out)
    if content == "link":
        (out / "train").rename(tmp_path / "mine")
        (out / "train").symlink_to(tmp_path / "mine")
    else:
        (out / PLAN).write_text(content)
    settings = PackSettings(clips_per_chunk=5)
    refused(lambda: pack({"train": clips}, out, "vggsound", settings, 1), "choose another output")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("spans", [-5, 10]),
        ("spans", [0, 2**62]),
        ("spans", [2**62, 2**62 + 5]),
        ("spans", [0]),
        ("mask_spans", [0, 5]),
        ("times", []),
        ("times", [float("nan")]),
        ("ends", [float("inf"), 3.0]),
        ("shape", [0, 5]),
        ("shape", [-1, 5]),
        ("sound", b"odd"),
        ("id", b"other"),
    ],
)
def test_items_whose_parts_do_not_fit(packed: Path, key: str, value: Any) -> None:
    clips, store = packed_list(str(packed), "train", "vggsound")
    with store.open(clips.clips[0]) as opened:
        whole = opened.item
        assert PackedClip(whole, "a").frames([0.0])[0].pixels.size == (128, 32)
        before = value if isinstance(value, bytes) else np.array(value, whole[key].dtype)
        with pytest.raises(ValueError, match=r"another clip|lie outside|out of range"):
            _checked({**whole, key: before}, clips.clips[0].id)


def test_chunks_with_any_bytes_give_items_or_a_named_problem(packed: Path, tmp_path: Path) -> None:
    data = (packed / "train" / "chunk-00000.bin").read_bytes()
    words: Counter[str] = Counter()
    for n in range(60):
        rng, root = random.Random(n), tmp_path / str(n)
        shutil.copytree(packed, root)
        out = bytearray(data)
        for _ in range(rng.choice([1, 20])):
            out[rng.randrange(200) if n % 2 else rng.randrange(len(out))] ^= 1 << rng.randrange(8)
        (root / "train" / "chunk-00000.bin").write_bytes(out)
        clips, source = packed_list(str(root), "train", "vggsound")
        for clip in clips.clips:
            try:
                with source.open(clip) as opened:
                    opened.frames([0.5])
                    opened.audio(0.0, 2.0)
                words["read"] += 1
            except DecodeError:
                words["refused"] += 1
    assert min(words["read"], words["refused"]) > 5, words


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
def test_a_clip_that_the_disk_does_not_give_is_named_and_counted(data_root, monkeypatch, number):
    """It is not called truncated, and the run goes on."""
    module = ClipDataModule(vggsound, str(data_root), "vggsound", batch_size=16, image_size=32, num_workers=0)
    module.setup()
    victim, opened = module.lists["train"].clips[3], av.open

    def refusing(path: str, *args: object, **more: object) -> object:
        if path.endswith(victim.path):
            raise OSError(number, os.strerror(number), path)
        return opened(path, *args, **more)

    monkeypatch.setattr(av, "open", refusing)
    (batch,) = module.train_dataloader()
    ((clip, reason, detail),) = [(p.id, p.reason, p.detail) for p in batch.problems]
    assert (clip, reason, len(batch)) == (victim.id, "undecodable", 15)
    assert detail == f"it cannot be read: {os.strerror(number)}"


def test_a_machine_that_may_open_no_more_files_is_no_clips_fault(data_root, monkeypatch):
    def exhausted(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), "file")

    monkeypatch.setattr(av, "open", exhausted)
    with pytest.raises(OSError, match="Too many open files"):
        Media(str(next(data_root.rglob("*.mp4"))))
