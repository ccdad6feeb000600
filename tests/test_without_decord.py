"""Where decord has no wheel (Macs, ARM), PyAV reads all frames: the same ones, with the same errors."""

from __future__ import annotations

import configparser
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from packaging.requirements import Requirement

from deepavfusion.benchmarks import report
from deepavfusion.config.compose import REPOSITORY
from deepavfusion.doctor import software
from deepavfusion.media import Media
from deepavfusion.media import frames as frame_reader
from deepavfusion.media.encode import write_mp4
from deepavfusion.runs import provenance
from helpers.errors import decode_error
from helpers.media import FPS, copy_from, number, numbered, read_frames, write_stream

READING = ("test_decode", "test_field_media", "test_field_streams", "test_inference", "hostile/test_media")
MACHINES = {  # system, machine -> whether there is a wheel of decord for it
    ("linux", "x86_64"): True,
    ("win32", "AMD64"): True,
    ("linux", "aarch64"): False,
    ("darwin", "arm64"): False,
    ("darwin", "x86_64"): False,
}


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame_reader, "decord", None)


@pytest.mark.parametrize("error", [ImportError, OSError])
def test_the_reader_loads_where_decord_cannot_be_imported(
    error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OSError: a wheel for another machine, whose library is not found."""
    (tmp_path / "decord.py").write_text(f"raise {error.__name__}('libdecord.so')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "decord", raising=False)
    spec = importlib.util.spec_from_file_location("frames_without_decord", frame_reader.__file__)
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.decord is None
    write_mp4(tmp_path / "a.mp4", numbered(20), FPS)
    with Media(tmp_path / "a.mp4") as media:
        assert [number(frame) for frame in module.frames_at(media, [0.4, 0.0, 0.2])] == [10, 0, 5]


@pytest.mark.skipif(frame_reader.decord is None, reason="decord has no wheel for this machine")
def test_both_read_the_same_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit, in files that decord reads."""
    y, x = np.mgrid[:96, :160].astype(np.uint8)
    moving = np.stack([np.stack([x + 3 * n, 2 * y + n, x + y], -1) for n in range(40)])
    starts = np.cumsum(np.random.default_rng(0).uniform(0.01, 0.3, 40)).tolist()
    write_mp4(tmp_path / "plain.mp4", moving, FPS)
    write_stream(tmp_path / "b_frames.mp4", frames=moving, x264="bframes=3")
    write_stream(tmp_path / "uneven.mp4", frames=moving, times=[start - starts[0] for start in starts])
    times = [1.5, 0.0, 0.31, 0.3, 99.0, -1.0, 0.31]
    asked: list[str] = []
    keep = frame_reader.decord_frames
    monkeypatch.setattr(frame_reader, "decord_frames", lambda path, *a, **k: asked.append(path) or keep(path, *a, **k))
    files = sorted(tmp_path.iterdir())
    by_decord = [read_frames(file, times) for file in files]
    assert asked == [str(file) for file in files]
    monkeypatch.setattr(frame_reader, "decord", None)
    for file, frames in zip(files, by_decord, strict=True):
        np.testing.assert_array_equal(read_frames(file, times), frames, err_msg=file.name)
    assert len(asked) == len(files)


@pytest.mark.usefixtures("without")
def test_times_cuts_and_broken_files_are_as_they_are_with_decord(tmp_path: Path) -> None:
    write_stream(tmp_path / "long.mp4", frames=numbered(100), x264="bframes=0")
    copy_from(tmp_path / "long.mp4", tmp_path / "cut.mp4", 38 / FPS)  # from its key frame, 32, on
    assert [number(frame) for frame in read_frames(tmp_path / "cut.mp4", [0.001, 0.4, 1.2])] == [38, 48, 68]
    write_stream(tmp_path / "fast.mp4", frames=numbered(100), movflags="faststart")
    whole = (tmp_path / "fast.mp4").read_bytes()
    assert whole.index(b"moov") < len(whole) // 2  # the header is in front
    (tmp_path / "half.mp4").write_bytes(whole[: len(whole) // 2])
    assert decode_error(read_frames, tmp_path / "half.mp4", [0.0, 3.9]).reason == "truncated"
    (tmp_path / "no.mp4").write_bytes(bytes(2000))
    assert decode_error(read_frames, tmp_path / "no.mp4", [0.0, 1.0]).reason == "undecodable"


@pytest.mark.usefixtures("without")
def test_doctor_and_records_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    known = provenance.metadata.version

    def version(name: str) -> str:
        if name == "decord":
            raise provenance.metadata.PackageNotFoundError(name)
        return known(name)

    monkeypatch.setattr(provenance.metadata, "version", version)
    monkeypatch.setitem(sys.modules, "decord", None)
    assert software.decoders().endswith("as they were written; decord is not installed here, PyAV reads all frames")
    assert "20 frames from PyAV, and 2 s" in software.decoders()
    assert software.imports(["json", "decord"]).startswith("torch ")
    assert provenance.versions()["decord"] == "unknown"
    assert report.environment(REPOSITORY)["decord"] == "unknown"


def test_setup_and_the_lock_ask_for_it_where_there_are_wheels() -> None:
    setup = configparser.ConfigParser()
    setup.read(REPOSITORY / "setup.cfg")
    for text in (setup["options"]["install_requires"], (REPOSITORY / "requirements.lock").read_text()):
        (need,) = (Requirement(line) for line in text.splitlines() if line.startswith("decord="))
        assert need.marker is not None
        for (system, machine), there in MACHINES.items():
            assert need.marker.evaluate({"sys_platform": system, "platform_machine": machine}) == there


@pytest.mark.full
def test_all_reading_tests_pass_without_it(tmp_path: Path) -> None:
    (tmp_path / "no_decord.py").write_text("import sys\nsys.modules['decord'] = None\n")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    files = [str(Path(__file__).parent / f"{name}.py") for name in READING]
    command = [sys.executable, "-m", "pytest", "-p", "no_decord", "-p", "no:cacheprovider", *files]
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "skipped" in done.stdout  # what decord is given
