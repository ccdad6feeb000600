"""Every task with every logger at once: all hold the same curves, pictures and sounds; so does a killed run."""

from __future__ import annotations

import csv
import re
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from deepavfusion.loggers import wandb_log
from helpers import wandb_files
from helpers.runs import CLASSIFY, PRETRAIN, SEGMENT, SEPARATE, SMALL, KilledError, events, finished, recorder, train

ALL = "logger=[tensorboard,csv,wandb,mlflow]"
SEMANTICS = [*SMALL, "experiment=vggsound_semantics", "data.audio_seconds=1.0", "data.eval_split=train"]
TASKS = {
    "pretrain": PRETRAIN,
    "classify": [*CLASSIFY, "experiment=vggsound_finetune"],
    "retrieve": [*CLASSIFY, "experiment=vggsound_retrieval"],
    "semantics": SEMANTICS,
    "separate": SEPARATE,
    "segment": SEGMENT,
}
Curves = dict[str, list[tuple[int, float]]]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))


def of_tensorboard(run_dir: Path) -> Curves:
    shown = events(run_dir)
    tags = [tag for tag in shown.Tags()["scalars"] if not tag.startswith("Overview/")]
    return {tag: [(event.step, event.value) for event in shown.Scalars(tag)] for tag in tags}


def of_csv(run_dir: Path) -> Curves:
    found: Curves = {}
    with open(run_dir / "metrics.csv", newline="") as file:
        for row in csv.DictReader(file):
            for name, cell in row.items():
                if cell and name != "step":
                    found.setdefault(name, []).append((int(row["step"]), float(cell)))
    return found


def of_wandb(run_dir: Path) -> Curves:
    found: Curves = {}
    for name, points in wandb_files.history(run_dir).items():
        values = [(step, float(value)) for step, value in points if isinstance(value, (int, float, str))
                  and re.fullmatch(r"[-\d.e+]+|nan|-?inf(inity)?", str(value), re.IGNORECASE)]  # fmt: skip
        if len(values) == len(points) and not re.search(r"\.(_type|size|height|width|ncols|nrows|sha256)$", name):
            found[name] = values
    return found


def client_of(run_dir: Path) -> tuple[Any, Any]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{run_dir}/mlflow/mlflow.db")
    (experiment,) = (each for each in client.search_experiments() if each.name == "deepavfusion")
    (run,) = client.search_runs([experiment.experiment_id])
    return client, run


def of_mlflow(run_dir: Path) -> Curves:
    client, run = client_of(run_dir)
    histories = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
    return {name: [(point.step, point.value) for point in points] for name, points in histories.items()}


def assert_equal(found: Curves, expected: Curves, names: Iterator[str] | set[str]) -> None:
    for name in names:
        got, wanted = sorted(found[name]), sorted(expected[name])
        assert [step for step, _ in got] == [step for step, _ in wanted], name
        assert [v for _, v in got] == pytest.approx([v for _, v in wanted], rel=1e-6, nan_ok=True), name


@pytest.mark.full
@pytest.mark.parametrize("task", TASKS)
def test_all_loggers_hold_the_same(task: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    given = list(TASKS[task])
    if task in ("classify", "retrieve", "semantics"):
        given += [f"data.root={request.getfixturevalue('classify_data') / 'vggsound'}"]
        given += [f"model.pretrained={request.getfixturevalue('pretrained')}"]
    else:
        root = {"pretrain": "data_root", "separate": "music_root", "segment": "avsbench_root"}[task]
        given += [f"data.root={request.getfixturevalue(root)}"]
    run_dir = finished(tmp_path, "all", *given, ALL)
    expected, shown = of_tensorboard(run_dir), events(run_dir)
    assert len(expected) > 10 or task == "semantics"
    for found in (of_csv(run_dir), of_wandb(run_dir), of_mlflow(run_dir)):
        assert found.keys() == expected.keys()
        assert_equal(found, expected, set(expected) - {"epoch"})
    _, run = client_of(run_dir)
    assert run.info.status == "FINISHED"
    assert wandb_files.exits(run_dir) == [0]
    files, artifacts = (
        next(run_dir.glob("wandb/offline-run-*/files")),
        Path(run.info.artifact_uri.removeprefix("file://")),
    )
    given_names = {name.removesuffix("._type") for name in wandb_files.history(run_dir) if name.endswith("._type")}
    for tag in (*shown.Tags()["images"], *shown.Tags()["audio"]):
        plain = re.sub(r"[^\w. /-]", "_", tag)[:40]
        assert any(name.startswith(plain) for name in given_names), tag
    pictures, sounds = list(files.glob("media/images/**/*.png")), list(files.glob("media/audio/**/*.wav"))
    assert len(pictures) == sum(len(shown.Images(tag)) for tag in shown.Tags()["images"])
    assert len(sounds) == sum(len(shown.Audio(tag)) for tag in shown.Tags()["audio"])
    assert len(list(artifacts.glob("images/*.png"))) == len(pictures)
    assert len(list(artifacts.glob("audio/**/*.wav"))) == len(sounds)
    for picture in pictures:
        assert min(Image.open(picture).size) > 50
    for sound in sounds:
        with wave.open(str(sound)) as file:
            assert file.getframerate() == 16_000
            assert file.getnframes() > 1000
    tables = {"classify": "predictions", "separate": "sources", "segment": "frames"}
    if task in tables:
        assert list(artifacts.glob(f"tables/{tables[task]}/test_*.csv"))
        assert list(files.glob(f"media/table/{tables[task]}/test_*.table.json"))
    if task != "semantics":  # which is no training
        assert (artifacts / "config.yaml").read_text() == (run_dir / "config.yaml").read_text()


@pytest.mark.full
def test_a_run_that_was_killed_has_each_point_once(data_root: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Also those between its last checkpoint and its end, which are logged again."""
    command = [*PRETRAIN, f"data.root={data_root}", f"paths.log_dir={tmp_path}", "run.latest=false", ALL]
    command += ["callbacks.checkpoints.every_n_epochs=2", "~callbacks.reconstructions", "~callbacks.projector"]
    train(monkeypatch, *command, "run.name=whole")
    command += ["run.name=killed", *recorder(tmp_path / "order", dies_in_epoch=1)]
    with pytest.raises(KilledError):
        train(monkeypatch, *command)
    train(monkeypatch, *command)
    whole, killed = (tmp_path / "pretrain/runs" / name for name in ("whole", "killed"))
    for curves in (of_csv, of_wandb, of_mlflow, of_tensorboard):
        found, expected = curves(killed), curves(whole)
        assert found.keys() == expected.keys()
        assert_equal(found, expected, {name for name in expected if name not in ("clips_per_second", "epoch")})
        if curves is not of_tensorboard:
            steps = [step for step, _ in found["clips_per_second"]]
            assert len(steps) == len(set(steps))
    assert len(list(killed.glob("wandb/offline-run-*"))) == 2
    ids = {record.run.run_id for record in wandb_log.records(killed / "wandb") if record.HasField("run")}
    assert len(ids) == 1
    assert wandb_files.exits(killed) == [1, 0]
