"""`benchmark=data`, and what all benchmarks write and print."""

from __future__ import annotations

import csv

import pytest
from PIL import Image

from deepavfusion.benchmarks.data import PARTS
from deepavfusion.benchmarks.report import show, write_csv
from helpers.runs import call


def test_reading_raw_and_packed_clips(tmp_path, monkeypatch):
    small = {"clips": 2, "seconds": 4.0, "height": 48, "width": 64, "fps": 10.0, "sample_rate": 16000, "rounds": 1}
    overrides = [f"benchmark.{key}={value}" for key, value in small.items()]
    where = ["data.image_size=32", f"paths.log_dir={tmp_path}", "run.name=here"]
    call(monkeypatch, "benchmark", "benchmark=data", *overrides, *where)
    latest = tmp_path / "benchmark" / "latest"
    rows = list(csv.DictReader((latest / "results.csv").open()))
    sources = [("raw", "cpu"), ("raw", "device"), ("packed", "cpu"), ("packed", "device")]
    assert [(row["source"], row["mel"]) for row in rows] == sources
    assert list(rows[0])[:3] == ["source", "mel", "clips_per_second"]
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
