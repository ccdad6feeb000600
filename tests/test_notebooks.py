"""The notebooks run from their first cell to the last on tiny demo data, and are committed with small outputs."""

from __future__ import annotations

import base64
import csv
import io
import re
import wave
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from PIL import Image

from deepavfusion.config.compose import REPOSITORY
from deepavfusion.demo import demo
from helpers.runs import read_table

NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
LEAST = {"01_data.ipynb": (9, 12)}  # images and audio players that a notebook shows, with two examples a section
COUNTS = demo.Counts(
    vggsound_train=1, vggsound_test=1, vggsound_music_train=1, vggsound_music_test=1, solos=8, duets=1,
    s4_train=1, s4_val=1, s4_test=1, ms3_train=1, ms3_val=1, ms3_test=2,
    audioset_balanced=1, audioset_unbalanced=1, audioset_eval=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    demo.ensure(folder, workers=1, counts=COUNTS)
    return folder


def outputs_of(notebook: nbformat.NotebookNode) -> list[list[dict[str, str]]]:
    """For each code cell, what it shows: MIME type -> content."""
    cells = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    for output in (output for outputs in cells for output in outputs):
        assert output.output_type != "error", output
    return [[output.get("data") or {"text/plain": output.text} for output in outputs] for outputs in cells]


def kinds(outputs: list[list[dict[str, str]]]) -> list[list[str]]:
    """For each code cell, the kinds of figures and tables that it shows."""
    return [sorted({kind for shown in cell for kind in shown} & {"image/jpeg", "text/html"}) for cell in outputs]


def tables(html: str) -> list[list[list[str]]]:
    """The cells of every table, row by row, its header first."""
    found = re.findall(r"<table>(.*?)</table>", html, re.DOTALL)
    return [[re.findall(r"<t[hd]>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", t)] for t in found]


def executed(path: Path, folder: Path) -> list[list[dict[str, str]]]:
    """Run a notebook in `folder`; what it shows."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    return outputs_of(notebook)


def test_every_notebook_is_tested() -> None:
    assert {path.name for path in NOTEBOOKS} == set(LEAST)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_committed_with_small_outputs_of_one_run(path: Path) -> None:
    """`make notebook` stores them."""
    assert path.stat().st_size < 500_000
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    stored = outputs_of(notebook)
    figures = [shown for cell in stored for shown in cell if "image/jpeg" in shown]
    assert len(figures) >= LEAST[path.name][0]
    assert sum(map(bool, stored)) >= len(code) - 2  # all but the first two, which import and define
    for shown in (shown for cell in stored for shown in cell):
        text = "\n".join(content for kind, content in shown.items() if kind.startswith("text/"))
        assert "base64" not in text
        assert not re.search(r"/(home|Users|root|tmp|mnt|media|var|work|data)/|[A-Z]:\\", text), text


@pytest.mark.full
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPAVFUSION_DEMO", str(root))
    monkeypatch.setenv("DEEPAVFUSION_SHOWN", "2")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))  # no start-up files of the person at the keyboard
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "elsewhere").mkdir()
    shown = executed(path, tmp_path / "elsewhere")
    assert not list((tmp_path / "elsewhere").iterdir())

    flat = [output for cell in shown for output in cell]
    html = "\n".join(output.get("text/html", "") for output in flat)
    pixels = [output["image/jpeg"] for output in flat if "image/jpeg" in output]
    images = [Image.open(io.BytesIO(base64.b64decode(content))) for content in pixels]
    sounds = [base64.b64decode(sound) for sound in re.findall(r'audio/wav;base64,([^"]+)"', html)]
    least_images, least_sounds = LEAST[path.name]
    assert len(images) >= least_images
    assert len(sounds) >= least_sounds
    assert all(np.asarray(image.convert("L")).std() > 10 for image in images)
    for sound in sounds:
        with wave.open(io.BytesIO(sound)) as file:
            assert (file.getframerate(), file.getnframes()) == (16_000, 48_000)
            assert np.frombuffer(file.readframes(48_000), np.int16).std() > 100

    silent = [[output for output in cell if "<audio" not in output.get("text/html", "")] for cell in shown]
    assert kinds(silent) == kinds(outputs_of(nbformat.read(path, as_version=4)))  # else: make notebook
    if path.name == "01_data.ipynb":
        check_data(tables(html), root / "vggsound")


def check_data(shown: list[list[list[str]]], root: Path) -> None:
    """Raw and packed agree; the verify report names every clip, and the table counts them all."""
    (packed,) = [table[1:] for table in shown if table[0][0] == "id"]
    assert len(packed) == 2
    for _, _, window, psnr, snr in packed:
        assert window == "0.50 s"
        assert float(psnr.removesuffix(" dB")) > 34
        assert float(snr.removesuffix(" dB")) > 40

    with (root / "annotations" / "vggsound.csv").open(newline="") as file:
        listed = {(f"{video}_{int(start):06d}", split) for video, start, _, split in csv.reader(file)}
    assert {(row["id"], row["split"]) for row in read_table(root / "verify.csv")} == listed
    (report,) = [table for table in shown if table[0][0] == "status"]
    assert [dict(zip(report[0], row, strict=True)) for row in report[1:]] == [
        {"status": status, "train": "8", "test": "8"} for status in ("ok", "clips")
    ]
