"""`benchmark=data`, and what all benchmarks write and print."""

from __future__ import annotations

import csv

import pytest
from PIL import Image

from deepavfusion.benchmarks.data import PARTS
from deepavfusion.benchmarks.report import show, write_csv
from helpers.runs import call, sentence


def test_reading_raw_and_packed_clips(tmp_path, monkeypatch):
    small = {"clips": 2, "seconds": 4.0, "height": 48, "width": 64, "fps": 10.0, "sample_rate": 16000, "rounds": 1}
    overrides = [f"benchmark.{key}={value}" for key, value in small.items()]
    where = ["data.image_size=32", f"paths.log_dir={tmp_path}", "run.name=here"]
    call(monkeypatch, "benchmark", "benchmark=data", *overrides, *where)
    latest = tmp_path / "benchmark" / "latest"
    rows = list(csv.DictReader((latest / "results.csv").open()))
    sources = [("raw", "cpu"), ("raw", "device"), ("packed", "cpu"), ("packed", "device")]
    assert [(row["data"], row["mel"]) for row in rows] == sources
    assert list(rows[0])[:3] == ["data", "mel", "clips_per_second"]
    for row in rows:
        parts = {part: float(row[f"{part}_ms"]) for part in PARTS}
        # of one round, so that the parts add up to a clip
        assert sum(parts.values()) == pytest.approx(1e3 / float(row["clips_per_second"]), rel=1e-3)
        assert (parts["mel"] == 0) == (row["mel"] == "device")
    assert Image.open(latest / "results.png").width > 300


def test_csv_keeps_small_numbers_and_leaves_missing_ones_empty(tmp_path):
    write_csv([{"a": 1.23456e-5, "b": None, "c": True, "d": 123456.0}], tmp_path / "rows.csv")
    assert (tmp_path / "rows.csv").read_text().split() == ["a,b,c,d", "1.23456e-05,,True,123456"]


def test_the_table_names_shared_settings_once(capsys):
    row = {"size": "base", "batch": 1, "median_s": 0.5, "peak_bytes": None, "gflop": 2.0}
    show([row, {**row, "batch": 2, "gflop": 1234.5}], "Networks")
    said = capsys.readouterr().out
    assert "Networks · size base" in said
    assert said.count("base") == 1
    assert "1,234.50" in said
    assert "None" not in said
    assert "peak" not in said


@pytest.mark.parametrize(
    ("kind", "override", "expected"),
    [
        ("model", "benchmark.cases.cpu=[{fusion: [sparse]}]", "is 'sparse': choose one of factorized, dense"),
        ("model", "benchmark.cases.cpu=[{fusion: dense}]", "benchmark.cases.cpu[0].fusion is 'dense', expected a list"),
        ("model", "benchmark.cases.cpu=[{}, {size: giant}]", "cases.cpu[1].size is 'giant', expected tiny or"),
        ("model", "benchmark.cases.cpu=[{precision: fp8}]", "cpu[0].precision is 'fp8', expected fp32 or bf16"),
        ("model", "benchmark.cases.cpu=[{passes: back}]", "cpu[0].passes is 'back', expected encoder_forward or"),
        ("model", "benchmark.cases.cuda=[{masked: 1}]", "benchmark.cases.cuda[0].masked is 1, expected true or false"),
        ("model", "benchmark.cases.cpu=[{masked: false}]", "cpu[0].masked is false, but a train_step is always masked"),
        ("model", "benchmark.cases.cpu=[{batch: 0}]", "benchmark.cases.cpu[0].batch is 0, expected a whole number"),
        ("model", "benchmark.cases.cpu=[{fusoin: [dense]}]", "unknown key 'fusoin', expected one of fusion, reference"),
        ("model", "benchmark.cases.cpu=[]", "benchmark.cases.cpu is [], expected a list of cases"),
        ("model", "benchmark.device=tpu", "benchmark.device is 'tpu', expected auto or cpu or cuda"),
        ("model", "~benchmark.rounds", "(missing a required argument: 'rounds'): remove none."),
        ("step", "benchmark.steps=0", "benchmark.steps is 0, expected a whole number from 1"),
        ("step", "benchmark.experiment=no_such", "Could not find 'experiment/no_such'"),
        ("step", "benchmark.overrides=['data.root=/no/such/folder']", "data.root=/no/such/folder is not a folder"),
    ],
)
def test_a_wrong_value_gives_one_sentence_and_leaves_no_run(kind, override, expected, tmp_path, monkeypatch, capsys):
    words = [f"benchmark={kind}", override, f"paths.log_dir={tmp_path}"]
    assert expected in sentence(monkeypatch, capsys, *words, script="benchmark")
    assert not list(tmp_path.glob("benchmark/runs/*"))
