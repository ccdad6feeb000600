"""Media as people have them: from pipes, mirrored, with bytes behind the end, without times, stills of any format."""

from __future__ import annotations

import io
import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from deepavfusion.data.lists.clip_list import ClipList
from deepavfusion.data.samples import SampleSpec, WindowDataset
from deepavfusion.data.stores.item import make_item
from deepavfusion.data.stores.raw import RawStore
from deepavfusion.media import Media, scan
from deepavfusion.media import frames as frame_reader
from deepavfusion.media.encode import write_mp4
from deepavfusion.media.stills import read_image, read_mask_of
from deepavfusion.types import Clip
from deepavfusion.utils.errors import DecodeError
from deepavfusion.verify.clip import check_clip
from helpers.errors import decode_error
from helpers.hostile_media import FIELD, clip_of, wav
from helpers.media import FPS, clicks, noise, number, numbered, read_audio, read_frames, write_stream


def piped(path: Path, kind: str, video: str, audio: str, rate: int = 48_000, **options: str) -> None:
    """12 s of numbered frames and noise, as a program writes them that cannot go back to the header."""
    pipe = Unseekable()
    with av.open(pipe, "w", format=kind, options=options) as container:
        write_streams(container, video, audio, rate)
    path.write_bytes(bytes(pipe.data))


class Unseekable:
    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, data: bytes) -> int:
        self.data += data
        return len(data)


def write_streams(
    container: Any,
    codec: str,
    audio_codec: str,
    rate: int,
    seconds: int = 12,
    ticks: int = FPS,
    late: float = 0.0,
    **options: str,
) -> None:
    """Numbered frames, and noise from `late` (s) on; ticks: frames per second that the container counts."""
    video = container.add_stream(codec, rate=ticks, options=options)
    video.width, video.height, video.pix_fmt, video.thread_count = 128, 32, "yuv420p", 1
    audio = container.add_stream(audio_codec, rate=rate, layout="mono") if audio_codec else None
    frames = numbered(250)
    for n in range(seconds * FPS):
        frame = av.VideoFrame.from_ndarray(frames[n % 250], format="rgb24")
        frame.pts, frame.time_base = n * ticks // FPS, Fraction(1, ticks)
        container.mux(video.encode(frame))
    container.mux(video.encode(None))
    if audio is not None:
        resampler = av.AudioResampler(format=audio.format, layout="mono", rate=rate, frame_size=960)
        block = av.AudioFrame.from_ndarray(noise(seconds, rate), format="fltp", layout="mono")
        block.sample_rate, block.time_base, block.pts = rate, Fraction(1, rate), round(late * rate)
        for part in (*resampler.resample(block), *resampler.resample(None)):
            container.mux(audio.encode(part))
        container.mux(audio.encode(None))


PIPED = [
    ("matroska", "libx264", "aac", {}),
    ("webm", "libvpx", "libopus", {}),
    ("flv", "libx264", "aac", {"flvflags": "no_duration_filesize"}),
    ("mpegts", "libx264", "aac", {}),
    ("avi", "mpeg4", "libmp3lame", {}),
    ("mp4", "libx264", "aac", {"movflags": "frag_keyframe+empty_moov"}),
    ("matroska", "libx264", "aac", {"live": "1"}),
]


@pytest.mark.parametrize(("kind", "video", "audio", "options"), PIPED)
def test_a_recording_without_a_duration_lasts_as_long_as_its_packets(
    tmp_path: Path, kind: str, video: str, audio: str, options: dict[str, str]
) -> None:
    path = tmp_path / "clip"
    piped(path, kind, video, audio, **options)
    with Media(path) as media:
        assert media.info.audio_end == pytest.approx(12.0, abs=0.15)
        assert media.info.video_end == pytest.approx(12.0, abs=0.15)
    clip = Clip("a", str(path), 0)
    assert check_clip(clip, 3.0, None).status == "ok"
    windows = WindowDataset(ClipList("test", [clip], ["x"]), RawStore(), SampleSpec(32), windows=4)[0, 0]
    assert isinstance(windows, list)
    assert [sample.window_start for sample in windows] == pytest.approx([0, 3, 6, 9], abs=0.15)
    with RawStore().open(clip) as opened:
        item = make_item(clip, opened, 256, 90)
    assert len(item["sound"]) / 2 / 16_000 == pytest.approx(12.0, abs=0.15)
    assert len(item["times"]) in (24, 25)


# ---------------------------------------------------------------- display matrices


def with_matrix(path: Path, a: float, b: float, c: float, d: float) -> None:
    """Write a display matrix into an mp4 file's track header (ISO 14496-12, 8.3.2)."""
    data = path.read_bytes()
    at = data.index(b"tkhd") + 44
    cells = (round(65_536 * cell) for cell in (a, b, 0, c, d, 0, 0, 0))
    path.write_bytes(data[:at] + struct.pack(">9i", *cells, 2**30) + data[at + 36 :])


MATRICES = {  # a, b, c, d -> what FFmpeg's command line shows, as NumPy says it
    (1, 0, 0, 1): lambda x: x,
    (0, 1, -1, 0): lambda x: np.rot90(x, -1),
    (-1, 0, 0, -1): lambda x: np.rot90(x, 2),
    (0, -1, 1, 0): np.rot90,
    (-1, 0, 0, 1): np.fliplr,
    (1, 0, 0, -1): np.flipud,
    (0, 1, 1, 0): lambda x: x.swapaxes(0, 1),
    (0, -1, -1, 0): lambda x: np.rot90(x.swapaxes(0, 1), 2),
    (2, 0, 0, -2): np.flipud,  # a scale does not count
    (0, 0, 0, 0): lambda x: x,
}


@pytest.mark.parametrize("matrix", list(MATRICES))
def test_frames_are_turned_and_mirrored_as_ffmpeg_does(tmp_path: Path, matrix: tuple[int, int, int, int]) -> None:
    scene = np.random.default_rng(0).integers(0, 255, (6, 8, 3), np.uint8).repeat(16, 0).repeat(16, 1)
    write_mp4(tmp_path / "a.mp4", np.stack([scene] * 8), 4, noise(2.0)[0], 16_000)
    stored = read_frames(tmp_path / "a.mp4", [0.0])[0]
    with_matrix(tmp_path / "a.mp4", *matrix)
    shown = MATRICES[matrix](stored)
    np.testing.assert_array_equal(read_frames(tmp_path / "a.mp4", [0.0])[0], shown)
    for frame in read_frames(tmp_path / "a.mp4", [0.0, 0.5, 1.0]):
        assert frame.shape == shown.shape
        assert np.abs(frame.astype(int) - shown).mean() < 3  # each frame is coded anew
    with RawStore().open(clip := Clip("a", str(tmp_path / "a.mp4"), 0)) as opened:
        item = make_item(clip, opened, 256, 90)
    assert tuple(item["shape"]) == shown.shape[:2]
    packed = np.asarray(Image.open(io.BytesIO(item["jpegs"][: item["spans"][1]])))
    assert np.abs(packed.astype(int) - shown).mean() < 10


def test_a_matrix_of_another_angle_turns_within_the_frame(tmp_path: Path) -> None:
    write_mp4(tmp_path / "a.mp4", np.full((4, 96, 128, 3), 200, np.uint8), 4)
    with_matrix(tmp_path / "a.mp4", 0.866, 0.5, -0.5, 0.866)
    (frame,) = read_frames(tmp_path / "a.mp4", [0.0])
    assert frame.shape == (96, 128, 3)
    assert frame[48, 64].min() > 180
    assert frame[0, 0].max() < 20  # the corners are black


# ---------------------------------------------------------------- bytes between and behind the boxes


def box(kind: bytes, body: bytes, size: int | None = None) -> bytes:
    return struct.pack(">I4s", len(body) + 8 if size is None else size, kind) + body


ENDINGS = {
    "five": b"\1\2\3\4\5",
    "one": b"\n",
    "zeros": bytes(5000),
    "tag": b"TAG" + bytes(125),
    "text": b"</body></html>\r\n" * 9,
    "free": box(b"free", bytes(90)),
    "short free": box(b"free", bytes(20), size=4000),
    "short udta": box(b"udta", b"abc", size=900),
    "unknown": box(b"\xa9xyz", bytes(8), size=2**31),
}


@pytest.mark.parametrize("order", ["", "faststart"])
@pytest.mark.parametrize("name", list(ENDINGS))
def test_bytes_behind_the_last_box_are_no_damage(tmp_path: Path, name: str, order: str) -> None:
    path = tmp_path / "a.mp4"
    write_stream(path, clicks(16_000), frames=numbered(100), **({"movflags": order} if order else {}))
    path.write_bytes(path.read_bytes() + ENDINGS[name])
    assert number(read_frames(path, [3.97])[0]) == 99
    assert [number(frame) for frame in read_frames(path, [0.0, 2.0, 3.97])] == [0, 50, 99]
    assert scan(path).frames == 100
    assert len(read_audio(path, 3.0, 1.0)) == 16_000


def test_a_box_that_is_longer_than_its_content_hides_nothing(tmp_path: Path) -> None:
    """The header lists the packets, and all of them are there."""
    path = tmp_path / "a.mp4"
    write_stream(path, clicks(16_000), frames=numbered(100), movflags="faststart")
    data = path.read_bytes()
    at = data.rindex(b"mdat") - 4
    path.write_bytes(data[:at] + struct.pack(">I", len(data) - at + 7) + data[at + 4 :])
    assert number(read_frames(path, [3.97])[0]) == 99
    path.write_bytes(data[:-200])
    assert decode_error(read_frames, path, [3.97]).reason == "truncated"


# ---------------------------------------------------------------- AVI


@pytest.mark.parametrize(
    ("codec", "options", "delay"),
    [
        ("libx264", {"x264-params": "keyint=32:bframes=3:b-pyramid=normal:scenecut=0"}, 2),
        ("libx264", {"x264-params": "keyint=32:bframes=1:scenecut=0"}, 1),
        ("libx264", {"x264-params": "keyint=32:bframes=0"}, 1),  # FFmpeg writes an empty second frame
        ("mpeg4", {"bf": "2", "g": "24"}, 1),
    ],
)
def test_avi_shows_frames_in_the_order_and_at_the_times_of_ffmpeg(
    tmp_path: Path, codec: str, options: dict[str, str], delay: int
) -> None:
    """AVI has decoding times only: FFmpeg shows a frame as late as the decoder holds it back."""
    with av.open(str(tmp_path / "a.avi"), "w") as container:
        write_streams(container, codec, "libmp3lame", 48_000, seconds=4, **options)
    shown = [number(frame) for frame in read_frames(tmp_path / "a.avi", [n / FPS + 0.01 for n in range(100)])]
    assert shown == [max(0, n - delay) for n in range(100)]
    for n in (3, 40, 41, 42, 95):
        assert number(read_frames(tmp_path / "a.avi", [n / FPS + 0.01])[0]) == n - delay
    assert scan(tmp_path / "a.avi").frames == 100


def test_avi_without_an_index_is_read_from_its_start(tmp_path: Path) -> None:
    """Its times follow from the packets before, which a seek skips; one in 24 is filled, as if copied from mp4."""
    pipe = Unseekable()
    with av.open(pipe, "w", format="avi") as container:
        write_streams(container, "libx264", "aac", 48_000, 8, ticks=600, **{"x264-params": "keyint=16:bframes=2"})
    (path := tmp_path / "a.avi").write_bytes(bytes(pipe.data))
    times = [n / FPS + 0.01 for n in range(0, 200, 7)]
    together = [number(frame) for frame in read_frames(path, times)]
    assert together == [max(0, n - 2) for n in range(0, 200, 7)]
    with Media(path) as media:
        for n in (20, 5, 12, 26):
            assert number(media.frames([times[n]])[0]) == together[n]
            assert len(media.audio(times[n], 0.5)) == 8_000


@pytest.mark.parametrize(("kind", "codec"), [("avi", "aac"), ("avi", "libmp3lame"), ("asf", "aac"), ("ogg", "libopus")])
def test_audio_that_starts_late_is_not_cut_off(tmp_path: Path, kind: str, codec: str) -> None:
    """The lengths in these headers count from elsewhere. AVI has no late audio: FFmpeg plays it from the start."""
    with av.open(str(tmp_path / "a"), "w", format=kind) as container:
        write_streams(container, "libvpx" if kind == "ogg" else "mpeg4", codec, 48_000, 4, late=1.5)
    assert check_clip(Clip("a", str(tmp_path / "a"), 0), 3.0, None).status == "ok"
    with Media(tmp_path / "a") as media:
        assert media.info.audio_end == pytest.approx(4.0 if kind == "avi" else 5.5, abs=0.15)
        assert len(media.audio(1.0, 3.0)) == pytest.approx(48_000, abs=800)


def test_an_avi_file_that_lacks_its_end_is_named(tmp_path: Path) -> None:
    """Also if it ends between two packets."""
    with av.open(str(path := tmp_path / "a.avi"), "w") as container:
        write_streams(container, "mpeg4", "aac", 48_000, 4)
    content = path.read_bytes()
    path.write_bytes(content[: content.rindex(b"01wb", 0, len(content) // 2)])
    assert check_clip(Clip("a", str(path), 0), 3.0, None).status == "truncated"


# ---------------------------------------------------------------- WAV from a pipe

UNKNOWN = [(0, 0), (2**32 - 1, 2**32 - 1), (2**32 - 1, 2**32 - 37), (0x7FFFF024, 0x7FFFF000), (2**31, 2**31 - 36)]
UNKNOWN += [(160_036, 2**31), (160_036, 999_999), (36, 0), (0, 160_000), (2**32 - 1, 160_000)]


@pytest.mark.parametrize(("riff", "data"), UNKNOWN)
def test_wav_files_without_a_length_are_read_whole(tmp_path: Path, riff: int, data: int) -> None:
    samples = (noise(5.0)[0] * 32_767).astype(np.int16)
    wav(tmp_path / "a.wav", samples, riff=riff, data=data)
    np.testing.assert_allclose(read_audio(tmp_path / "a.wav", 0.0, 6.0), samples / 32_768, atol=1e-6)
    np.testing.assert_allclose(read_audio(tmp_path / "a.wav", 4.0, 1.0), samples[64_000:] / 32_768, atol=1e-6)
    assert check_clip(clip_of(tmp_path / "a.wav"), 3.0, None).status == "ok"
    with RawStore().open(clip_of(tmp_path / "a.wav")) as opened:
        assert opened.audio_end == 5.0


def test_a_wav_file_that_lacks_its_end_is_named(tmp_path: Path) -> None:
    samples = (noise(5.0)[0] * 32_767).astype(np.int16)
    wav(tmp_path / "a.wav", samples)
    for kept in (100_000, 44 + 2048 * 40):
        (tmp_path / "b.wav").write_bytes((tmp_path / "a.wav").read_bytes()[:kept])
        assert check_clip(clip_of(tmp_path / "b.wav"), 3.0, None).status == "truncated"


# ---------------------------------------------------------------- stills

SCENE = np.random.default_rng(1).integers(0, 255, (4, 6, 3), np.uint8).repeat(16, 0).repeat(16, 1)


def still(kind: str) -> bytes:
    """The scene in some format, as a program writes it."""
    image, buffer, more = Image.fromarray(SCENE), io.BytesIO(), {}
    grey = np.asarray(image.convert("L"))
    if kind == "16 bits":
        image, kind = Image.fromarray(grey.astype(np.uint16) * 257), "PNG"
    elif kind == "grey and alpha":
        image, kind = Image.merge("LA", (image.convert("L"), Image.new("L", image.size, 9))), "PNG"
    elif kind == "CMYK":
        image, kind = image.convert("CMYK"), "JPEG"
    elif kind == "palette":
        image, kind = image.quantize(200), "PNG"
    elif kind in ("GIF", "TIFF", "MPO", "WEBP"):
        more = {"save_all": True, "append_images": [Image.new("RGB", image.size)]}
    quality = {"quality": 95} if kind in ("JPEG", "WEBP", "MPO", "AVIF") else {}
    image.save(buffer, kind, **more, **quality)
    return buffer.getvalue()


COLOUR = ("JPEG", "PNG", "MPO", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "palette", "CMYK")


@pytest.mark.parametrize("kind", [*COLOUR, "16 bits", "grey and alpha"])
def test_stills_are_read_whatever_their_names_end_in(tmp_path: Path, kind: str) -> None:
    (tmp_path / "0.jpg").write_bytes(still(kind))
    pixels = np.asarray(read_image(tmp_path / "0.jpg")).astype(int)
    expected = SCENE if kind in COLOUR else np.asarray(Image.fromarray(SCENE).convert("L"))[..., None]
    assert pixels.shape == (64, 96, 3)
    assert np.abs(pixels - expected).mean() < 12
    clip = annotated(tmp_path, still(kind), np.ones((64, 96), np.uint8))
    assert check_clip(clip, 3.0, None).status == "ok"


@pytest.mark.parametrize("name", ["WEBP.jpg", "BMP.jpg", "GIF.jpg"])
def test_stills_of_the_field(name: str) -> None:
    assert read_image(FIELD / name).size == (32, 32)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("html.jpg", None, "it is no image, it begins with '<html>404 not found"),
        ("empty.jpg", None, "the file is empty"),
        ("lfs.jpg", b"version https://git-lfs.github.com/spec/v1\n", "it begins with 'version https://git-lfs."),
        ("json.jpg", b'{"error": "\xff\x1b[31m"}', r"""it begins with '{"error": "\xff\x1b[31m"}'"""),
        ("video.jpg", b"\0\0\0\x20ftypisom", r"it begins with '\x00\x00\x00 ftypisom'"),
    ],
)
def test_what_is_no_image_is_named_as_what_it_is(tmp_path: Path, name: str, content: bytes | None, words: str) -> None:
    path = tmp_path / name
    path.write_bytes((FIELD / name).read_bytes() if content is None else content)
    error = decode_error(read_image, path)
    assert error.reason == "undecodable"
    assert words in error.detail


def annotated(folder: Path, image: bytes, mask: np.ndarray, **exif: Any) -> Clip:
    """A folder of one annotated image."""
    for part in ("clip/frames", "clip/labels_semantic"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    wav(folder / "clip/audio.wav", (noise(5.0)[0] * 32_767).astype(np.int16))
    (folder / "clip/frames/0.jpg").write_bytes(image)
    Image.fromarray(mask).save(folder / "clip/labels_semantic/0.png", **exif)
    return Clip("a", str(folder / "clip"), 0, labels=(0,), frames=(0,))


def with_orientation(scene: np.ndarray, orientation: int) -> bytes:
    """A JPEG file whose EXIF data says how to turn it."""
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(scene).save(buffer, "JPEG", quality=95, exif=exif)
    return buffer.getvalue()


UPRIGHT = {1: lambda x: x, 2: np.fliplr, 3: lambda x: np.rot90(x, 2), 4: np.flipud, 5: lambda x: x.swapaxes(0, 1)}
UPRIGHT |= {6: lambda x: np.rot90(x, -1), 7: lambda x: np.rot90(x.swapaxes(0, 1), 2), 8: np.rot90}


@pytest.mark.parametrize("orientation", list(UPRIGHT))
def test_image_and_mask_agree_or_a_sentence_says_why_not(tmp_path: Path, orientation: int) -> None:
    turn, stored = UPRIGHT[orientation], (SCENE.sum(axis=2) > 400).astype(np.uint8)
    image = with_orientation(SCENE, orientation)
    frames, masks = tmp_path / "clip/frames/0.jpg", tmp_path / "clip/labels_semantic/0.png"
    clip = annotated(tmp_path, image, stored)
    assert np.abs(np.asarray(read_image(frames)).astype(int) - turn(SCENE)).mean() < 12
    if orientation in (2, 3, 4):  # of the stored and of the turned image's size: nobody knows
        error = decode_error(read_mask_of, frames, masks)
        assert error.reason == "bad_mask"
        assert f"EXIF orientation {orientation}, and labels_semantic/0.png may be drawn on" in error.detail
        assert check_clip(clip, 3.0, None).status == "bad_mask"
    else:
        for drawn in (stored, turn(stored)):  # on the one or on the other
            clip = annotated(tmp_path, image, np.ascontiguousarray(drawn))
            np.testing.assert_array_equal(np.asarray(read_mask_of(frames, masks)), turn(stored))
            assert check_clip(clip, 3.0, None).status == "ok"
    exif = Image.Exif()
    exif[0x0112] = orientation
    annotated(tmp_path, image, stored, exif=exif)  # drawn on a copy, which kept the tag
    np.testing.assert_array_equal(np.asarray(read_mask_of(frames, masks)), turn(stored))
    annotated(tmp_path, image, np.ones((32, 32), np.uint8))
    with pytest.raises(DecodeError, match="bad mask"):
        read_mask_of(frames, masks)


@pytest.mark.skipif(frame_reader.decord is None, reason="decord has no wheel for this machine")
def test_the_readers_agree_on_frames_that_decord_could_misread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a display matrix PyAV reads, without one decord may."""
    given: list[str] = []
    keep = frame_reader.decord_frames
    monkeypatch.setattr(frame_reader, "decord_frames", lambda path, *a, **k: given.append(path) or keep(path, *a, **k))
    for name, matrix in (("plain", (1, 0, 0, 1)), ("turned", (-1, 0, 0, 1))):
        write_mp4(tmp_path / f"{name}.mp4", numbered(20), FPS)
        with_matrix(tmp_path / f"{name}.mp4", *matrix)
        read_frames(tmp_path / f"{name}.mp4", [0.0, 0.4])
    assert [Path(path).stem for path in given] == ["plain"]
