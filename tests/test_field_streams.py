"""Streams as they come from calls, broadcasts and long recordings: sizes that change, clocks that begin late, ends."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from deepavfusion.data.stores.item import make_item
from deepavfusion.data.stores.raw import RawStore
from deepavfusion.media import Media, scan
from deepavfusion.media.files import failures
from deepavfusion.media.stills import check_sums, read_mask
from deepavfusion.types import Clip
from deepavfusion.verify.clip import check_clip
from helpers.errors import decode_error
from helpers.hostile_media import DOORS, sparse
from helpers.media import FPS, noise, number, numbered, read_frames, write_stream


def write_call(path: Path, sizes: list[tuple[int, int]], seconds: int = 2) -> None:
    """WebM as a browser records a call: the frame size (width, height) changes every `seconds`, within one stream."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libvpx", rate=FPS)
        video.width, video.height, video.pix_fmt = *sizes[0], "yuv420p"
        sound = container.add_stream("libopus", rate=48_000, layout="mono")
        for part, (width, height) in enumerate(sizes):
            encoder = av.CodecContext.create("libvpx", "w")
            encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuv420p"
            encoder.time_base, encoder.framerate, encoder.thread_count = Fraction(1, FPS), Fraction(FPS), 1
            encoder.options = {"deadline": "realtime", "lag-in-frames": "0"}
            frames = range(part * seconds * FPS, (part + 1) * seconds * FPS)
            packets = []
            for n in frames:
                frame = av.VideoFrame.from_ndarray(numbered(n + 1)[n], format="rgb24").reformat(
                    width, height, "yuv420p"
                )
                frame.pts, frame.time_base = n, Fraction(1, FPS)
                packets += encoder.encode(frame)
            for packet in [*packets, *encoder.encode(None)]:
                packet.stream = video
                container.mux(packet)
        block = av.AudioFrame.from_ndarray(noise(seconds * len(sizes), 48_000), format="fltp", layout="mono")
        block.sample_rate, block.time_base, block.pts = 48_000, Fraction(1, 48_000), 0
        resampler = av.AudioResampler(format="flt", layout="mono", rate=48_000, frame_size=960)
        for piece in (*resampler.resample(block), *resampler.resample(None)):
            container.mux(sound.encode(piece))
        container.mux(sound.encode(None))


def write_with(path: Path, codecs: tuple[str, str], frames: int, wave: np.ndarray) -> None:
    """Numbered frames and int16 samples [1, T] at 48 kHz, by these codecs of video and audio."""
    with av.open(str(path), "w") as container:
        video = container.add_stream(codecs[0], rate=FPS)
        video.width, video.height, video.pix_fmt = 128, 32, "yuv420p"
        sound = container.add_stream(codecs[1], rate=48_000, layout="mono")
        for n, pixels in enumerate(numbered(frames)):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = n, Fraction(1, FPS)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        for begin in range(0, wave.shape[1], 1152):
            block = av.AudioFrame.from_ndarray(wave[:, begin : begin + 1152], format="s16", layout="mono")
            block.sample_rate, block.time_base, block.pts = 48_000, Fraction(1, 48_000), begin
            container.mux(sound.encode(block))
        container.mux(sound.encode(None))


def test_frames_have_one_size_where_it_changes_in_the_stream(tmp_path: Path) -> None:
    write_call(path := tmp_path / "call.webm", [(128, 32), (64, 16), (128, 64)])
    clip = Clip("a", str(path), 0)
    assert check_clip(clip, 3.0, None).status == "ok"
    times = [0.5, 1.5, 2.5, 3.5, 4.5, 5.5]
    with Media(path) as media:
        together, alone = media.frames(times), [media.frames([time])[0] for time in reversed(times)]
        assert (media.info.height, media.info.width) == (32, 128)
    assert together.shape == (6, 32, 128, 3)
    np.testing.assert_array_equal(together, alone[::-1])
    assert [number(frame) for frame in together] == [int(time * FPS) for time in times]
    with RawStore().open(clip) as opened:
        item = make_item(clip, opened, 256, 90)
    assert tuple(item["shape"]) == (32, 128)


def test_a_cut_recording_without_an_index_is_read_to_its_end(tmp_path: Path) -> None:
    """A seek behind its last key frame may find a frame that needs it."""
    write_call(path := tmp_path / "cut.webm", [(128, 32)], seconds=8)
    path.write_bytes(path.read_bytes()[: int(0.94 * path.stat().st_size)])
    clip = Clip("a", str(path), 0)
    assert check_clip(clip, 3.0, None).status == "ok"
    with Media(path) as media:
        assert media.info.video_duration > 7
        assert number(media.frames([media.info.video_end])[0]) > 7 * FPS
    with RawStore().open(clip) as opened:
        make_item(clip, opened, 256, 90)


def test_audio_of_less_than_a_sample_is_no_audio(tmp_path: Path) -> None:
    write_with(tmp_path / "a.mkv", ("libx264", "pcm_s16le"), 50, np.ones((1, 1), np.int16))
    verdict = check_clip(Clip("a", str(tmp_path / "a.mkv"), 0), 3.0, None)
    assert (verdict.status, verdict.detail) == ("no_audio", "the audio stream holds less than a sample")


def test_matroska_may_count_its_length_from_before_the_first_packet(tmp_path: Path) -> None:
    path = tmp_path / "late.mkv"
    write_stream(path, noise(4.0), frames=numbered(100), offset=1_000.0, avoid_negative_ts="disabled")
    with Media(path) as media:
        assert (media.origin, media.av.duration / av.time_base) == pytest.approx((1_000, 1_004), abs=0.1)
    assert scan(path).audio_end == pytest.approx(4.0, abs=0.1)


def test_a_window_behind_the_end_is_empty_in_a_program_stream(tmp_path: Path) -> None:
    """Of which a seek behind the end finds nothing."""
    path = tmp_path / "a.mpg"
    write_with(path, ("mpeg1video", "mp2"), 75, (noise(3.0, 48_000) * 32_767).astype(np.int16))
    with Media(path) as media:
        assert len(media.audio(1.0, 1.0)) == 16_000
        assert [len(media.audio(start, 1.0)) for start in (3.6, 60.0)] == [0, 0]


def test_a_window_is_read_where_a_seek_finds_parts_of_packets() -> None:
    """In MPEG-PS, FFmpeg may join parts of packets for a while after a seek before it finds where one begins."""
    path = Path(__file__).parent / "golden" / "unaligned_packets.mpg"  # sound that FFmpeg 9 wrote, 48 kbit/s
    with Media(path) as media:
        whole = media.audio(0.0, 2.0)
    for start in np.arange(0.1, 1.6, 0.02):
        with Media(path) as media:
            np.testing.assert_allclose(media.audio(start, 0.25), whole[round(start * 16_000) :][:4_000], atol=1e-3)


@pytest.mark.parametrize("kind", ["ts", "mpg"])
def test_audio_is_read_to_its_end_where_no_header_says_it(tmp_path: Path, kind: str) -> None:
    """FFmpeg takes the time of the last packet for the end, which holds several blocks."""
    path = tmp_path / f"a.{kind}"
    write_with(path, ("mpeg2video", "ac3"), 75, (noise(3.0, 48_000) * 32_767).astype(np.int16))
    with Media(path) as media:
        assert len(media.audio(0.0, 5.0)) >= 48_000


def write_sound(path: Path, codec: str, wave: np.ndarray) -> None:
    """Samples [T] at 48 kHz."""
    with av.open(str(path), "w") as container:
        sound = container.add_stream(codec, rate=48_000, layout="mono")
        sound.bit_rate = 192_000
        form = "s16" if codec in ("flac", "adpcm_ms", "g722") else "fltp"
        samples = (wave * 32_767).astype(np.int16) if form == "s16" else wave.astype(np.float32)
        for begin in range(0, len(wave), 1024):
            block = av.AudioFrame.from_ndarray(samples[None, begin : begin + 1024], format=form, layout="mono")
            block.sample_rate, block.time_base, block.pts = 48_000, Fraction(1, 48_000), begin
            container.mux(sound.encode(block))
        container.mux(sound.encode(None))


@pytest.mark.parametrize(
    ("name", "codec"), [("a.ogg", "flac"), ("a.ac3", "ac3"), ("a.wav", "adpcm_ms"), ("b.wav", "g722"), ("a.aac", "aac")]
)
def test_windows_are_those_of_the_whole_where_a_seek_finds_other_times(tmp_path: Path, name: str, codec: str) -> None:
    """For want of timestamps, FFmpeg works them out of sizes. Of such files it takes the length from the first packets,
    too: in quiet ones, here, there are few bytes a second."""
    wave = noise(6.0, 48_000)[0]
    wave[: 48_000 * 3] *= 0.001
    write_sound(path := tmp_path / name, codec, wave)
    with Media(path) as media:
        whole = media.audio(0.0, 10.0)
    assert len(whole) == pytest.approx(96_000, abs=1_000)
    assert scan(path, video=False).audio_end == pytest.approx(len(whole) / 16_000, abs=0.05)
    for start in (1.25, 3.5, 5.0):
        with Media(path) as media:
            found = media.audio(start, 0.5)
        np.testing.assert_allclose(found, whole[round(start * 16_000) :][:8_000], atol=0.01)


@pytest.mark.parametrize("kind", ["mkv", "flv", "mp4", "ts"])
def test_blocks_of_audio_join_without_a_seam(tmp_path: Path, kind: str) -> None:
    """Also where timestamps are rounded to milliseconds; a block of AAC has 23.2 ms."""
    wave = 0.5 * np.sin(2 * np.pi * 997 * np.arange(44_100 * 6) / 44_100, dtype=np.float32)[None]
    write_stream(path := tmp_path / f"a.{kind}", wave, 44_100, frames=numbered(150))
    with Media(path) as media:
        blocks = list(media.audio_blocks(1.0))
    assert [len(block) for block in blocks[:-1]] == [16_000] * (len(blocks) - 1)
    assert len(blocks[-1]) < 16_000
    with Media(path) as media:
        whole = media.audio(0.0, 10.0)
    assert len(whole) == pytest.approx(96_000, abs=1_000)
    np.testing.assert_allclose(np.concatenate(blocks), whole, atol=1e-5)


@pytest.mark.parametrize(
    "text", ["1\n00:00:00,000 --> 00:00:05,000\nhello\n\n", "ffconcat version 1.0\nfile 'a.mp4'\n"]
)
def test_subtitles_and_playlists_are_said_to_have_no_format_that_is_read(tmp_path: Path, text: str) -> None:
    (path := tmp_path / "a.mp4").write_text(text)
    assert decode_error(scan, path).detail == "it has no format that is read, or its header is wrong"


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [("JPEG", {}, "it is a JPEG"), ("TIFF", {"compression": "jpeg"}, "it is a JPEG"), ("PNG", {}, ""), ("BMP", {}, "")],
)
def test_masks_are_of_formats_that_keep_their_values(
    tmp_path: Path, kind: str, options: dict[str, str], said: str
) -> None:
    path, values = tmp_path / "0.png", np.zeros((20, 30), np.uint8)
    values[5:15, 5:15] = 255
    Image.fromarray(values).save(path, format=kind, **options)
    if said:
        assert said in decode_error(read_mask, path).detail
    else:
        np.testing.assert_array_equal(read_mask(path), values)
    Image.fromarray(values.astype(np.uint16)).save(path)
    assert "expected one value of 8 bits each" in decode_error(read_mask, path).detail


def test_a_mask_may_be_animated_and_end_in_other_bytes(tmp_path: Path) -> None:
    """Training reads it, so verify does, too; a wrong checksum is found."""
    mask, path = Image.fromarray(np.eye(8, dtype=np.uint8)), tmp_path / "0.png"
    mask.save(path, save_all=True, append_images=[mask.rotate(90)])
    path.write_bytes(whole := path.read_bytes() + b"abc")
    assert np.array_equal(read_mask(path), np.eye(8))
    check_sums(path)
    place = whole.index(b"IDAT") - 5  # the last byte of the checksum of the chunk before
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    assert decode_error(check_sums, path).reason == "bad_mask"


def test_what_ffmpeg_says_of_anything_is_not_said_of_permissions(tmp_path: Path) -> None:
    (path := tmp_path / "a").write_bytes(b"x")

    def read(error: Exception) -> None:
        with failures(str(path)):
            raise error

    assert decode_error(read, av.error.PermissionError(1, "Operation not permitted")).detail == "invalid data"
    assert "cannot be read: Not allowed" in decode_error(read, PermissionError(1, "Not allowed")).detail


JOINED = [("ts", 0, 0), ("ts", 0, 100), ("ts", 0, 3.5), ("ts", 700, 0), ("mkv", 0, 0), ("mkv", 100, 0), ("mkv", 0, 9)]


@pytest.mark.parametrize(("kind", "first", "second"), JOINED)
def test_joined_files_are_refused(tmp_path: Path, kind: str, first: float, second: float) -> None:
    """By all if their time runs backwards or packets that are counted do not follow each other; else by verify."""
    for name, start in (("a", first), ("b", second)):
        write_stream(tmp_path / f"{name}.{kind}", noise(4.0), frames=numbered(100), offset=start)
    path = tmp_path / f"joined.{kind}"
    path.write_bytes(b"".join((tmp_path / f"{name}.{kind}").read_bytes() for name in "ab"))
    found = {door: read(path) for door, read in DOORS.items()}
    reasons = ("as in joined files", "longer than its packets", "the header says")
    refused = [door for door, said in found.items() if any(reason in said for reason in reasons)]
    assert refused == (["verify"] if (kind, second) == ("mkv", 9) else list(DOORS)), found


def test_a_film_of_pixels_that_are_not_square_is_shown_as_wide_as_players_show_it(tmp_path: Path) -> None:
    for aspect, width in ((Fraction(16, 15), 102), (Fraction(1, 2), 48), (Fraction(640, 639), 96), (Fraction(0), 96)):
        sparse(path := tmp_path / "a.mp4", (0.0, 1.0), (0.0, 1.0), size=(64, 96), aspect=aspect)
        with Media(path) as media:
            assert media.frames([0.0]).shape == (1, 64, width, 3)
            np.testing.assert_array_equal(media.frames([0.0, 1.0])[0], media.frames([0.0])[0])
            assert media.info.width == width


def test_the_time_between_frames_may_be_short(tmp_path: Path) -> None:
    with av.open(str(path := tmp_path / "a.mp4"), "w") as container:
        video = container.add_stream("libx264", rate=1000)
        video.width, video.height, video.pix_fmt = 128, 32, "yuv420p"
        for n, pixels in enumerate(numbered(60)):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = n, Fraction(1, 1000)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
    times = [(n + 0.5) / 1000 for n in range(60)]
    assert [number(frame) for frame in read_frames(path, times)] == list(range(60))
    assert [number(read_frames(path, [times[n]])[0]) for n in (0, 31, 59)] == [0, 31, 59]
