"""Records and lists of others take no more than they say: YAML, safetensors, lines without end, pipes in the way."""

import csv
import os
import struct
import tracemalloc
import unicodedata
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from deepavfusion.callbacks.guard.data_report import COLUMNS as PROBLEMS
from deepavfusion.callbacks.guard.data_report import DataReport
from deepavfusion.data.lists import text
from deepavfusion.data.lists.verified import COLUMNS, ReportRow, read_report
from deepavfusion.figures.panels import caption
from deepavfusion.figures.style import new_figure
from deepavfusion.inference.inputs import read_input
from deepavfusion.types import Problem
from deepavfusion.utils import reading
from deepavfusion.utils.errors import UserError
from deepavfusion.utils.files import write_csv, write_whole
from deepavfusion.utils.names import to_cell
from deepavfusion.utils.reading import LONGEST_LINE, json_memory, own_rows, plain_yaml, read_json
from deepavfusion.verify.report import OF_CLASSES, Journal
from deepavfusion.weights import file
from deepavfusion.weights.file import read_file


def test_plain_yaml_reads_what_runs_write():
    assert plain_yaml("- seed=1\n- 'a: b'\n") == ["seed=1", "a: b"]
    assert plain_yaml("a: {b: [1, 2.5, null, true]}\n") == {"a": {"b": [1, 2.5, None, True]}}


@pytest.mark.parametrize(
    "record",
    [
        "- &a [x, x]\n- [*a, *a]\n",
        "- 0x" + "f" * 6000,
        "- 1" + ":1" * 6000,
        "- 1" + ":1" * 6000 + ".5",
        '- !!int ""',
        "- !!timestamp x",
        "- !!bool x",
        "[" * 10000,
        "- 2001-99-99",
    ],
)
def test_yaml_that_grows_or_breaks_is_a_value_error(record):
    with pytest.raises(ValueError, match=r"."):
        plain_yaml(record)


def test_a_header_of_too_many_tensors_is_refused(tmp_path):
    entries = ",".join(f'"{n:x}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for n in range(100_001))
    header = f"{{{entries}}}".encode()
    header += b" " * (-len(header) % 8)
    path = tmp_path / "many.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(UserError, match="more memory than its size says"):
        read_file(path)


def test_a_file_that_is_cut_while_it_is_read(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.ones(1000), "b": torch.ones(1000)}, path)

    def cut(data):  # between the header and the tensors
        os.truncate(path, 4500)
        return json_memory(data)

    monkeypatch.setattr(file, "json_memory", cut)
    with pytest.raises(UserError, match=r"a\.safetensors \(8\d\d\d bytes\) cannot be read"):
        read_file(path)


def sparse(path: Path) -> Path:
    with path.open("wb") as file:
        file.truncate(2 * 10**9)
    return path


def test_a_line_without_end_is_not_read(tmp_path):
    path = sparse(tmp_path / "list.csv")
    for read in (text.read_rows(tmp_path, "list.csv", "a,b"), read_report(path)):
        with pytest.raises(UserError, match=f"line 1, has more than {LONGEST_LINE} characters"):
            list(read)
    with pytest.raises(UserError, match="has more than"):
        read_input(sparse(tmp_path / "list.txt"))


def test_a_list_that_a_spreadsheet_program_cut_off(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "SPREADSHEET_LINES", 3)
    (tmp_path / "a.csv").write_text("abcdefghijk,1\n" * 3)
    with pytest.raises(UserError, match="exactly 3 lines, the most that spreadsheet programs keep"):
        list(text.read_rows(tmp_path, "a.csv", "id,start"))
    (tmp_path / "b.csv").write_text("abcdefghijk,1\n" * 4)
    assert len(list(text.read_rows(tmp_path, "b.csv", "id,start"))) == 4


def test_a_number_with_a_comma_is_no_id(tmp_path):
    (tmp_path / "a.csv").write_text('"1,23457E+10",1\n')
    with pytest.raises(UserError, match="took a cell for a number"):
        list(text.read_rows(tmp_path, "a.csv", "id,start"))


CLASSES = 'a;b,c"d|é'
ROW = ["=a", "train", CLASSES, "ok", "", "yes", "", "-a.mp4", "1", "2026-01-01T00:00:00.000000000Z", "", ""]
PROBLEM = ["-a", "truncated", "True", "it, ends", "=a.mp4"]
FORMS = {  # of a CSV file of ours that a spreadsheet program saved: separator, line end, quotes, first bytes
    "as written": (",", "", csv.QUOTE_MINIMAL, ""),
    "UTF-8": (",", "\r\n", csv.QUOTE_MINIMAL, "\ufeff"),
    "semicolons": (";", "\r\n", csv.QUOTE_MINIMAL, ""),
    "tabs": ("\t", "\n", csv.QUOTE_MINIMAL, "\ufeff"),
    "quotes": (",", "\n", csv.QUOTE_ALL, ""),
    "quotes and semicolons": (";", "\n", csv.QUOTE_ALL, "\ufeff"),
    "old Mac": (",", "\r", csv.QUOTE_MINIMAL, ""),
}


def saved(path: Path, form: str, columns: Sequence[str], row: list[str], end: str) -> None:
    separator, its_end, quoting, mark = FORMS[form]
    with path.open("w", newline="") as file:
        file.write(mark)
        rows = csv.writer(file, delimiter=separator, lineterminator=its_end or end, quoting=quoting)
        rows.writerows([columns, map(to_cell, row)])


@pytest.mark.parametrize("form", FORMS)
def test_our_lists_are_read_after_a_spreadsheet_program_saved_them(tmp_path, form):
    path = tmp_path / "verify.csv"
    saved(path, form, ReportRow._fields, ROW, "\n")
    saved(tmp_path / "verify_classes.csv", form, OF_CLASSES, ["train", "-a", "1", "1", "1"], "\n")
    with Journal(path) as journal:
        assert [*map(list, journal.rows.values())] == [ROW]
    assert path.read_text() == f'{COLUMNS}\n\'=a,train,"a;b,c""d|é",ok,,yes,,\'-a.mp4,1,{ROW[9]},,\n'
    path = tmp_path / "data_problems.csv"
    saved(path, form, PROBLEMS, PROBLEM, "\r\n")
    report = DataReport(str(path))
    report.setup(SimpleNamespace(global_rank=0), None, "fit")
    assert report.seen == {("-a", "=a.mp4"): Problem("-a", "=a.mp4", "truncated", "it, ends", used=True)}
    report._write([Problem("b", "b.mp4", "missing", "gone", used=False)])
    head = ",".join(PROBLEMS)
    written = f"{head}\r\n'-a,truncated,True,\"it, ends\",'=a.mp4\r\nb,missing,False,gone,b.mp4\r\n"
    assert path.read_bytes() == written.encode()


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("name", ["a\rb", "\ra", "a\r", "a\r\nb", "a\u2028b", "\ufeffa", " a ", "a\udcff", "a;b", "\t"])
def test_our_lists_hold_any_name(tmp_path, end, name):
    write_csv(tmp_path / "a.csv", [("id", "path"), (name, "x"), ("x", name)], end)
    assert [cells for _, cells in own_rows(tmp_path / "a.csv", ("id", "path"), "", end)] == [[name, "x"], ["x", name]]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (f"{COLUMNS}\na\n".encode("utf-16"), "verify.csv is UTF-16 text, as spreadsheet programs write it"),
        (f"{COLUMNS}\r\n{','.join(ROW)}\r\n".encode("cp1252"), "verify.csv, line 2, is not UTF-8 text"),
        (f'"{COLUMNS}"\n'.encode(), f"is damaged: line 1, reads `{COLUMNS}`"),
        (f"{COLUMNS}\na;b\n".encode(), "is damaged: line 2, reads `a;b`"),
        (b"notes", "is damaged: line 1, reads `notes`"),
    ],
)
def test_what_a_spreadsheet_program_made_of_a_report(tmp_path, content, sentence):
    (tmp_path / "verify.csv").write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        list(read_report(tmp_path / "verify.csv"))


def test_switches_that_a_spreadsheet_program_translated(tmp_path):
    for word, right in (("TRUE", True), ("WAHR", False)):
        saved(tmp_path / "p.csv", "semicolons", PROBLEMS, [*PROBLEM[:2], word, *PROBLEM[3:]], "")
        with nullcontext() if right else pytest.raises(UserError, match="line 2, reads `-a,truncated,WAHR,"):
            assert [problem.used for problem in DataReport(str(tmp_path / "p.csv"))._read()] == [right]


def test_a_list_of_videos_with_semicolons(tmp_path):
    (tmp_path / "problems.csv").write_text("\ufeffid;path\r\na;'-a, b.mp4\r\n")
    assert list(read_input(tmp_path / "problems.csv").files) == ["-a, b.mp4"]


@pytest.mark.parametrize("name", ["A.MP4", "caf\u00e9.mp4", "a\u200b.mp4"])
def test_a_video_that_is_almost_there(tmp_path, name):
    there = unicodedata.normalize("NFD", name).lower()
    (tmp_path / there).touch()
    wanted = name.replace("\u200b", "")
    with pytest.raises(UserError, match=r"does not exist; '.* is there, which differs only in case, in"):
        read_input(tmp_path / wanted)
    assert list(read_input(tmp_path / there).files) == [str(tmp_path / there)]


def test_lists_have_an_end(tmp_path, monkeypatch):
    (tmp_path / "a.csv").write_text("a,b\n" * 9)
    for name, most in (("MOST_LINES", 8), ("MOST_CHARACTERS", 35)):
        with monkeypatch.context() as patch:
            patch.setattr(reading, name, most)
            rows = text.read_rows(tmp_path, "a.csv", "a,b")
            assert len(list(islice(rows, 8))) == 8
            with pytest.raises(UserError, match=r"a\.csv has more than .* lines or"):
                next(rows)


JSON_THAT_GROWS = {
    "lists": "[],",
    "dicts": '{"":0},',
    "empty dicts": "{},",
    "texts": '"ab",',
    "numbers": "1.5,",
    "large numbers": "999,",
    "nested": "[[[[0]]]],",
}


@pytest.mark.parametrize("kind", JSON_THAT_GROWS)
def test_what_json_takes_is_known_before_it_is_read(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(reading, "MULTIPLE", 100)
    path, each = tmp_path / "a.json", JSON_THAT_GROWS[kind]
    path.write_text(f"[{each * 20_000}0]")
    tracemalloc.start()
    found = read_json(path, 2**30, "a list")
    taken = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found) == 20_001
    with pytest.raises(UserError, match=r"a\.json would take \d+ MB of memory, expected a list, at most"):
        read_json(path, taken - 1, "a list")


def test_a_pipe_in_the_place_of_a_partial_file_is_replaced(tmp_path):
    os.mkfifo(tmp_path / "a.json.partial")
    write_whole(tmp_path / "a.json", "whole")
    assert (tmp_path / "a.json").read_text() == "whole"
    assert not (tmp_path / "a.json.partial").exists()


def test_a_caption_shows_control_characters_escaped():
    axis = new_figure(2, 2).subplots()
    caption(axis, "a\x1b[2Jb\u202e")
    assert [text.get_text() for text in axis.texts] == ["a\\x1b[2Jb\\u202e"]
