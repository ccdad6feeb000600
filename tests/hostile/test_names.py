"""Names of files, classes and clips do nothing: no address, no formula, no markup, no control, no other file."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from deepavfusion.callbacks.guard.data_report import DataReport
from deepavfusion.callbacks.show.dashboard import run_table
from deepavfusion.callbacks.show.duets import SeparateDuets
from deepavfusion.data.lists.clip_list import ClipList
from deepavfusion.data.lists.verified import bad_clips
from deepavfusion.figures.style import short, styled
from deepavfusion.inference.classify import classify_video
from deepavfusion.inference.segment import segment_video
from deepavfusion.inference.tasks import load_task
from deepavfusion.inference.write.classification import as_table, write_classification
from deepavfusion.inference.write.segmentation import shares, write_segmentation
from deepavfusion.media import Media, scan
from deepavfusion.media.encode import write_mp4
from deepavfusion.media.stills import read_image
from deepavfusion.types import Clip, Problem
from deepavfusion.utils import names
from deepavfusion.utils.console import say
from deepavfusion.utils.errors import UserError
from deepavfusion.utils.files import write_csv
from deepavfusion.verify.verify import verify
from helpers.checkpoints import write_classifier, write_segmenter
from helpers.media import coloured_noise, noise

BYTES = os.fsdecode(b"caf\xe9\xff")  # not UTF-8
ACTING = {  # text -> how it is shown
    "a\x1b[31mred\x07": r"a\x1b[31mred\x07",
    "a\nb\rc\td": r"a\nb\rc\td",
    "\u202eexe.mp4": r"\u202eexe.mp4",
    "a\u200bb\u2066c": r"a\u200bb\u2066c",
    "a\x9b2J\x00": r"a\x9b2J\x00",
    "a\u2028b": r"a\u2028b",
    BYTES: r"caf\xe9\xff",
}
PLAIN = ["playing violin, fiddle", "café 音楽 🎻", "[red]x[/]", "$x^2$", "a\u3000b"]
FILES = ["tcp:a.mp4", "concat:a|b.mp4", "pipe:0.mp4", "-.mp4", "http:a.mp4", "file:a.mp4", "data:,a.mp4", "%03d.mp4"]
FILES += ["-i.mp4", "a*?[b].mp4", "$(touch a).mp4", "a\nb.mp4", "crypto:a.mp4", "cache:a.mp4", "@a.mp4", f"{BYTES}.mp4"]


@pytest.mark.parametrize(("text", "safe"), ACTING.items())
def test_what_acts_is_shown_escaped(text: str, safe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert names.printable(text) == safe
    say(text, "yellow")
    assert capsys.readouterr().out == f"{safe}\n"
    assert str(UserError(f"clip '{text.strip()}'")).isprintable()
    assert short(text, 60) == safe


@pytest.mark.parametrize("text", PLAIN)
def test_other_text_stays(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    say(text)
    assert capsys.readouterr().out == f"{text}\n"


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_never_an_address(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_mp4(name, coloured_noise(6, 32, 48), 3, noise(2.0), 16_000)
    assert os.listdir() == [name]
    assert scan(name).frames == 6
    with Media(name) as media:
        assert media.frames([0.0, 1.0]).shape == (2, 32, 48, 3)
        assert len(media.audio(0.0, 1.0)) == 16_000


@pytest.mark.parametrize("name", ["%03d", "a*b", "tcp:a"])
def test_a_still_is_never_a_pattern(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    from PIL import Image

    Image.fromarray(coloured_noise(1, 32, 48)[0]).save(tmp_path / f"{name}.jpg")
    assert scan(f"{name}.jpg", audio=False).frames == 1
    assert read_image(Path(f"{name}.jpg")).size == (48, 32)


# ---------------------------------------------------------------- CSV

FORMULAS = [
    "=1+1",
    "-abcdefghij",
    "+1",
    "@sum",
    "\t=1",
    "\r=1",
    " =1+1",
    "＝1",
    "'=1",
    "''-a",
    "-1_000030",
    "=cmd|' /C'!A0",
]
HARMLESS = ["", "a", "'a", "a=b", "-1.5", "-1e-05", "-inf", "12", "a'b", "\u202e=1"]


def test_no_cell_is_a_formula_and_every_cell_is_read_back(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", [[text] for text in [*FORMULAS, *HARMLESS, BYTES]])
    with open(tmp_path / "a.csv", encoding="utf-8", errors="surrogateescape", newline="") as file:
        written = [row[0] if row else "" for row in csv.reader(file)]
    assert [names.from_cell(cell) for cell in written] == [*FORMULAS, *HARMLESS, BYTES]
    assert written[: len(FORMULAS)] == [f"'{text}" for text in FORMULAS]
    assert written[len(FORMULAS) :] == [*HARMLESS, BYTES]


def test_numbers_stay_numbers(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", [[-1.5, -3, "=x"]])
    assert (tmp_path / "a.csv").read_bytes() == b"-1.5,-3,'=x\r\n"


def undecodable(clip: Clip) -> Any:
    raise AssertionError("the report knows it")


@pytest.mark.parametrize("name", ["-abcdefghij", "=1+1", BYTES])
def test_a_verify_report_keeps_any_id(name: str, tmp_path: Path) -> None:
    path = tmp_path / f"{name}.mp4"
    path.write_bytes(b"no video")
    clips = ClipList("train", [Clip(name, str(path), 0)], ["=class"])
    assert verify([clips], tmp_path, tmp_path / "verify.csv") == {"undecodable": 1}
    text = (tmp_path / "verify.csv").read_bytes().decode(errors="surrogateescape")
    assert "'=class" in text
    assert (f"\n'{name}," in text) == (name != BYTES)
    assert bad_clips(tmp_path / "verify.csv", ["undecodable"]) == {name: "undecodable"}
    assert verify([clips], tmp_path, tmp_path / "verify.csv", check=undecodable) == {"undecodable": 1}


def test_an_old_report_with_plain_ids_is_read(tmp_path: Path) -> None:
    path = tmp_path / "-a.mp4"
    path.write_bytes(b"no video")
    verify([ClipList("train", [Clip("-a", str(path), 0)], ["a"])], tmp_path, tmp_path / "verify.csv")
    old = (tmp_path / "verify.csv").read_text().replace("\n'-a,", "\n-a,").replace(",'-a.mp4", ",-a.mp4")
    (tmp_path / "verify.csv").write_text(old)
    assert bad_clips(tmp_path / "verify.csv", ["undecodable"]) == {"-a": "undecodable"}


def test_problems_of_a_run_keep_any_id(tmp_path: Path) -> None:
    problem = Problem("-a", f"/x/{BYTES}", "undecodable", "=1+1", used=False)
    DataReport(str(tmp_path / "problems.csv"))._write([problem])
    assert b"\r\n'-a,undecodable,False,'=1+1,/x/caf\xe9\xff\r\n" in (tmp_path / "problems.csv").read_bytes()
    resumed = DataReport(str(tmp_path / "problems.csv"))
    resumed.setup(SimpleNamespace(global_rank=0), None, "fit")  # type: ignore[arg-type]
    assert resumed.seen == {("-a", f"/x/{BYTES}"): problem}


# ---------------------------------------------------------------- outputs


def film(folder: Path, name: str) -> Path:
    write_mp4(folder / name, coloured_noise(6, 64, 64), 3, noise(2.0), 16_000)
    return folder / name


def written(table: Any) -> str:
    console = Console(file=io.StringIO(), width=250)
    console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined]


CLASSES = ["[red]x[/]", "$x^2$", "_a", "=1+1", "dog", "dog", "\x1b[31m\u202e", "x" * 5000]


@pytest.mark.parametrize("stem", ["=1", BYTES, "$a_b$", "tcp:a", "n" * 250])
def test_a_classification_of_any_names(stem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = load_task(write_classifier(tmp_path / "a.ckpt", CLASSES))
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path)
    listed = write_classification(classify_video(task, film(tmp_path, f"{stem}.mp4")), tmp_path / "out", top_k=8)
    saved = json.loads((tmp_path / "out" / listed["list"]).read_text())
    assert Path(saved["video"]).stem == stem
    distinct = [*CLASSES[:5], "dog (2)", *CLASSES[6:]]
    assert saved["classes"] == distinct
    assert sorted(entry["class"] for entry in saved["whole"]["all"]) == sorted(distinct)
    with open(tmp_path / "out" / listed["table"], newline="") as file:
        cells = {row["class"] for row in csv.DictReader(file)}
    assert "'=1+1" in cells
    assert {names.from_cell(cell) for cell in cells} == set(distinct)
    text = written(as_table(listed))
    assert "[red]x[/]" in text
    assert not {"\x1b", "\u202e"} & set(text)
    assert all(len(os.fsencode(path.name)) < 256 for path in (tmp_path / "out").iterdir())


def test_equal_class_names_keep_their_own_shares(tmp_path: Path) -> None:
    task = load_task(write_segmenter(tmp_path / "a.ckpt", 5, ["background", "dog", "dog", "_a", "$"]))
    (tmp_path / "out").mkdir()
    found = segment_video(task, film(tmp_path, "a.mp4"), masks_per_second=2)
    assert found.classes == ["background", "dog", "dog (2)", "_a", "$"]
    listed = write_segmentation(found, tmp_path / "out")
    assert sum(shares(listed).values()) == pytest.approx(
        np.mean([each["share"] for each in listed["moments"]]), abs=1e-5
    )
    assert {"dog", "dog (2)"} <= shares(listed).keys()


def test_equal_class_names_of_a_list_are_numbered() -> None:
    assert ClipList("train", [], ["a", "b", "a", "a (2)", "a"]).classes == ["a", "b", "a (2)", "a (2) (2)", "a (3)"]


@styled
def drawn_text() -> Sequence[str]:
    from deepavfusion.figures.panels import head
    from deepavfusion.figures.style import new_figure

    figure = new_figure(3, 3)
    head(figure, "$\\badcommand$ \x1b")
    figure.canvas.draw()
    return [text.get_text() for text in figure.texts]


def test_a_title_holds_no_formula_and_no_control() -> None:
    assert drawn_text() == [r"$\badcommand$ \x1b"]


def test_files_of_ids_never_meet_or_leave_the_folder() -> None:
    ids = ["a/../../b", "a_.._.._b", "..", ".", "abc", "ABC", "x" * 5000, "x" * 4999, "", "a\0b", BYTES, "a:b", "a_b"]
    found = names.file_names(ids)
    assert len({name.casefold() for name in found}) == len(ids)
    assert all(name not in (".", "..", "") and "/" not in name and len(os.fsencode(name)) < 200 for name in found)
    assert names.file_names(["abc", "-bcdefghijk", "a b (c), d"]) == ["abc", "-bcdefghijk", "a b (c), d"]
    one, other = names.file_names(["CAF\u00c9", "cafe\u0301"])  # macOS has one file for both
    assert (one, other.partition("-")[0]) == ("CAF\u00c9", "cafe\u0301")
    assert len(other) > len("cafe\u0301-")


def test_duets_of_any_ids_stay_in_their_folder(tmp_path: Path) -> None:
    places: list[Path] = []

    def separate(_: Any, __: str, folder: Path) -> tuple[torch.Tensor, int]:
        places.append(folder)
        return torch.zeros(2, 10), 16_000

    clips = ClipList("duet", [Clip("a/../../../b", ""), Clip("abc", ""), Clip("ABC", "")], [])
    trainer: Any = SimpleNamespace(is_global_zero=True, loggers=[])
    SeparateDuets(lambda: clips, separate, str(tmp_path)).on_test_end(trainer, None)  # type: ignore[arg-type]
    assert [place.parent for place in places] == [tmp_path / "duets"] * 3
    assert len({place.name.casefold() for place in places}) == 3


@pytest.mark.parametrize("text", ["a`b", "a``b|c", "![x](http://a)", "<img src=x>", "a\nb", "`"])
def test_markdown_shows_text_as_code(text: str, tmp_path: Path) -> None:
    table = run_table(tmp_path, {"command": text, "commit": "a", "dirty": False, "date": "", "weights": []})
    (line,) = (line for line in table.splitlines() if line.startswith("| command |"))
    value = line.removeprefix("| command | ").removesuffix(" |")
    fence = value[: len(value) - len(value.lstrip("`"))]
    assert fence
    assert value.endswith(fence)
    inside = value[len(fence) : -len(fence)]
    assert fence not in inside
    assert inside.strip() == names.printable(text).replace("|", "\\|")
