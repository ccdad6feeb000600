"""Records and lists of others take no more than they say: YAML, safetensors, lines without end, pipes in the way."""

import os
import struct
from pathlib import Path

import pytest

from deepavfusion.data.lists import text
from deepavfusion.data.lists.verified import COLUMNS, read_report
from deepavfusion.figures.panels import caption
from deepavfusion.figures.style import new_figure
from deepavfusion.inference.inputs import read_input
from deepavfusion.utils.errors import UserError
from deepavfusion.utils.files import LONGEST_LINE, write_whole
from deepavfusion.utils.plain_yaml import plain_yaml
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


def test_reports_that_spreadsheet_programs_saved(tmp_path):
    row = "{},train,drum,ok,,yes,,a.mp4,1,2026-01-01T00:00:00.000000000Z,,"
    path = tmp_path / "verify.csv"
    path.write_text(f"\ufeff{COLUMNS}\r\n{row.format('a')}\r\n")
    assert [found.id for found in read_report(path)] == ["a"]
    for content in (f"{COLUMNS}\r{row.format('a')}\r", f"{COLUMNS}\n{row.format('#NAME?')}\n"):
        path.write_bytes(content.encode())
        with pytest.raises(UserError, match="is damaged"):
            list(read_report(path))


def test_a_pipe_in_the_place_of_a_partial_file_is_replaced(tmp_path):
    os.mkfifo(tmp_path / "a.json.partial")
    write_whole(tmp_path / "a.json", "whole")
    assert (tmp_path / "a.json").read_text() == "whole"
    assert not (tmp_path / "a.json.partial").exists()


def test_a_caption_shows_control_characters_escaped():
    axis = new_figure(2, 2).subplots()
    caption(axis, "a\x1b[2Jb\u202e")
    assert [text.get_text() for text in axis.texts] == ["a\\x1b[2Jb\\u202e"]
