"""Small files that ask for much: every reader refuses the same ones, for the same reason, within bounds."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import numpy as np
import pytest

from deepavfusion.media import Media, bounds, packets
from deepavfusion.media import audio as audio_reader
from deepavfusion.media.stills import read_image, read_mask
from helpers.damage import Answer, ask
from helpers.errors import decode_error
from helpers.hostile_media import CASES, DOORS, sparse, through_every_door
from helpers.media import number, numbered, read_audio, read_frames, write_stream

PEAK_MB, SECONDS = 1200, 10.0  # of a worker, its libraries included


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Answer]:
    folder = tmp_path_factory.mktemp("hostile")
    for name, (build, _) in CASES.items():
        build(folder / name)
    return {Path(path).name: answer for path, answer in ask(through_every_door, sorted(folder.glob("*.*"))).items()}


@pytest.mark.parametrize("name", list(CASES))
@pytest.mark.full
def test_every_reader_refuses_the_same_files(answers: dict[str, Answer], name: str) -> None:
    answer, reason = answers[name], CASES[name][1]
    assert answer.word == "asked", answer
    assert answer.peak_mb < PEAK_MB
    assert answer.seconds < SECONDS
    found = dict(zip(DOORS, answer.detail.splitlines(), strict=True))
    if reason:
        assert [door for door, text in found.items() if reason not in text] == [], found
    if found["verify"] == "read":
        assert set(found.values()) == {"read"}, found


@pytest.mark.full
def test_a_header_that_claims_too_much_is_not_believed(answers: dict[str, Answer]) -> None:
    verify, *others = answers["long_header.mkv"].detail.splitlines()
    assert verify == "the file ends at 4.03 s, the header says 1000000.00 s"
    assert others == ["read"] * 3
    assert answers["aspect.mp4"].detail.splitlines() == ["read"] * 4


def test_a_frame_may_stay_as_long_as_there_is_audio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An hour of audio over one image is no gap."""
    monkeypatch.setattr(bounds, "MAX_GAP", 2.0)
    monkeypatch.setattr(packets, "MAX_GAP", 2.0)
    monkeypatch.setattr(packets, "LONGEST", 0.5)
    packets._surveyed.cache_clear()
    for suffix in ("mp4", "mkv"):
        sparse(tmp_path / f"still.{suffix}", [float(n) for n in range(8)], [0.0])
        with Media(tmp_path / f"still.{suffix}") as media:
            assert media.info.audio_end == pytest.approx(8.0, abs=0.1)
        sparse(tmp_path / f"gap.{suffix}", [0.0, 6.0], [0.0])
        with Media(tmp_path / f"gap.{suffix}") as media:
            assert "longer than its packets" in decode_error(lambda m=media: m.info).detail


def test_a_request_for_too_many_frames_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_stream(tmp_path / "a.mp4", frames=numbered(10))
    monkeypatch.setattr(bounds, "MAX_REQUEST", 20 * 3 * 32 * 128)
    assert len(read_frames(tmp_path / "a.mp4", [0.0] * 20)) == 20
    assert "21 frames of 128 × 32 at once" in decode_error(read_frames, tmp_path / "a.mp4", [0.0] * 21).detail


def test_long_windows_are_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wave = np.random.default_rng(0).uniform(-0.3, 0.3, (1, 5 * 16_000)).astype(np.float32)
    write_stream(tmp_path / "a.mkv", wave, frames=numbered(20))
    whole = read_audio(tmp_path / "a.mkv", 0.25, 9.0)
    most: list[int] = []
    resampled = audio_reader._resampled
    monkeypatch.setattr(audio_reader, "_resampled", lambda *args: most.append(args[3]) or resampled(*args))
    monkeypatch.setattr(audio_reader, "MAX_SAMPLES", 2 * 16_000)
    parts = read_audio(tmp_path / "a.mkv", 0.25, 9.0)
    assert len(parts) == len(whole) == pytest.approx(4.75 * 16_000, abs=1100)
    assert max(most) <= 2 * 16_000 + 16_000
    np.testing.assert_allclose(parts, whole, atol=2e-3)


@pytest.mark.parametrize("kind", ["pipe", "device", "socket", "folder"])
def test_what_is_no_regular_file_is_not_opened(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.png"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        socket.socket(socket.AF_UNIX).bind(os.path.relpath(path))
    for read, reason in ((read_image, "undecodable"), (read_mask, "bad_mask"), (Media, "undecodable")):
        error = decode_error(read, path)
        assert error.reason == reason
        assert f"it is a {'named ' * (kind == 'pipe')}{kind}, not a regular file" in error.detail


def test_a_time_stamp_that_wraps_is_followed(tmp_path: Path) -> None:
    """MPEG-TS counts to 2^33 at 90 kHz, 95 443.7 s."""
    beep = np.zeros((1, 4 * 16_000), np.float32)
    beep[0, 48_000:48_200] = 0.8
    for name, offset in (("plain.ts", 10.0), ("wraps.ts", 95_441.7)):
        write_stream(tmp_path / name, beep, frames=numbered(100), offset=offset, mpegts_copyts="1")
    with Media(tmp_path / "plain.ts") as plain, Media(tmp_path / "wraps.ts") as wraps:
        assert wraps.info.audio_end == pytest.approx(plain.info.audio_end, abs=0.01)
        times = [0.1, 1.5, 2.5, 3.9]
        assert [number(frame) for frame in wraps.frames(times)] == [number(frame) for frame in plain.frames(times)]
        heard = [int(np.abs(media.audio(2.0, 2.0).numpy()).argmax()) for media in (plain, wraps)]
        assert heard[0] == pytest.approx(heard[1], abs=20)
        assert heard[0] > 10_000
