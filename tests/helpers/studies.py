"""A study of two cells that takes seconds, to be disturbed."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from helpers.runs import DECODER, SMALL


def write_study(folder: Path, data_root: Path, epochs: int = 6) -> None:
    """`study=mine`, for `--config-dir <folder>`: two kinds of fusion, pre-trained and probed with one seed."""
    small = [*(word for word in SMALL if word != "scale=demo"), f"data.root={data_root}", "data.holdout_share=0"]
    small += ["logger=none", f"trainer.max_epochs={epochs}", "model.warmup_epochs=1"]
    study = {
        "defaults": ["_study", "_self_"],
        "name": "trial",
        "question": "Which?",
        "seeds": 1,
        "scale": "demo",
        "overrides": small,
        "axes": {"model.net.fusion": ["factorized", "token"]},
        "stages": {
            "pretrain": {"experiment": "pretrain_vggsound", "overrides": DECODER, "metrics": ["knn/combined"]},
            "probe": {
                "experiment": "vggsound_linear_probe",
                "overrides": ["model.pretrained={pretrain}"],
                "metrics": ["test/top1"],
            },
        },
    }
    (folder / "study").mkdir(parents=True)
    (folder / "study" / "mine.yaml").write_text(json.dumps(study))


def results(logs: Path) -> list[dict[str, str]]:
    """Lines of results.csv and summary.csv, without what depends on the machine."""
    lines: list[dict[str, str]] = []
    for name in ("results.csv", "summary.csv"):
        with (logs / "study" / "trial" / "latest" / name).open(newline="") as file:
            lines += csv.DictReader(file)
    machine = ("seconds", "peak_memory_gb")
    return [{key: value for key, value in line.items() if not key.endswith(machine)} for line in lines]
