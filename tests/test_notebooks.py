"""The notebooks run from their first cell to the last on tiny demo data, and are committed without outputs."""

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


def html_of(notebook: nbformat.NotebookNode) -> str:
    """All that the cells show as HTML; plain text and figures of the inline backend are turned into it."""
    parts = []
    for output in (output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs):
        assert output.output_type != "error", output
        data = output.get("data", {"text/plain": output.get("text", "")})
        if "image/png" in data:
            parts.append(f'<img src="data:image/png;base64,{data["image/png"].strip()}">')
        parts.append(data.get("text/html") or data.get("text/plain", ""))
    return "\n".join(parts)


def tables(html: str) -> list[list[list[str]]]:
    """The cells of every table, row by row, its header first."""
    found = re.findall(r"<table>(.*?)</table>", html, re.DOTALL)
    return [[re.findall(r"<t[hd]>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", t)] for t in found]


def executed(path: Path, folder: Path) -> str:
    """Run a notebook in `folder`; what it shows, as HTML."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    return html_of(notebook)


def test_every_notebook_is_tested() -> None:
    assert {path.name for path in NOTEBOOKS} == set(LEAST)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_committed_without_outputs(path: Path) -> None:
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None), cell.id


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPAVFUSION_DEMO", str(root))
    monkeypatch.setenv("DEEPAVFUSION_SHOWN", "2")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))  # no start-up files of the person at the keyboard
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "elsewhere").mkdir()
    html = executed(path, tmp_path / "elsewhere")
    assert "Traceback" not in html
    assert not list((tmp_path / "elsewhere").iterdir())

    images = [Image.open(io.BytesIO(base64.b64decode(p))) for p in re.findall(r'image/png;base64,([^"]+)"', html)]
    sounds = [base64.b64decode(sound) for sound in re.findall(r'audio/wav;base64,([^"]+)"', html)]
    least_images, least_sounds = LEAST[path.name]
    assert len(images) >= least_images
    assert len(sounds) >= least_sounds
    assert all(np.asarray(image.convert("L")).std() > 10 for image in images)
    for sound in sounds:
        with wave.open(io.BytesIO(sound)) as file:
            assert (file.getframerate(), file.getnframes()) == (16_000, 48_000)
            assert np.frombuffer(file.readframes(48_000), np.int16).std() > 100

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
    with (root / "verify.csv").open(newline="") as file:
        assert {(row["id"], row["split"]) for row in csv.DictReader(file)} == listed
    (report,) = [table for table in shown if table[0][0] == "status"]
    assert [dict(zip(report[0], row, strict=True)) for row in report[1:]] == [
        {"status": status, "train": "8", "test": "8"} for status in ("ok", "clips")
    ]
