"""Commands in the process of the tests, and overrides that make their runs small."""

from __future__ import annotations

import csv
import importlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule
from omegaconf import DictConfig, OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams.metadata import SESSION_START_INFO_TAG, parse_session_start_info_plugin_data

from deepavfusion.cli import entry
from deepavfusion.config.compose import REPOSITORY
from deepavfusion.config.compose import compose as compose_config
from deepavfusion.types import Batch
from deepavfusion.utils.names import from_cell

CONFIGS = REPOSITORY / "configs"
NETWORK = ["model.net.image.embed_dim=32", "model.net.image.depth=2", "model.net.image.num_heads=2"]
DECODER = ["model.decoder_embed_dim=32", "model.decoder_depth=1", "model.decoder_num_heads=2"]
SMALL = [  # of every task
    "scale=demo",
    "trainer=cpu",
    "trainer.max_epochs=2",
    "trainer.check_val_every_n_epoch=1",
    "trainer.log_every_n_steps=1",
    "trainer.enable_progress_bar=false",
    "~callbacks.progress",
    *NETWORK,
    "data.batch_size=4",
    "data.num_workers=0",
    "data.image_size=64",
]
PRETRAIN = [
    *SMALL,
    *DECODER,
    "trainer.max_epochs=3",
    "model.warmup_epochs=1",
    "data.batch_size=6",
    "callbacks.reconstructions.num_clips=2",  # drawing takes longer than the rest of such a run
]
CLASSIFY = [
    *SMALL,
    "model.warmup_epochs=0.5",
    "data.audio_seconds=1.0",
    "data.dense_windows=3",
    "data.holdout_share=0.2",
]
SEPARATE = [
    *SMALL,
    "experiment=music_duet_separation",
    "callbacks.duets.limit=1",
    "callbacks.images.num_mixtures=2",
    "model.metric_workers=1",
    "data.audio_seconds=1.0",
    "data.batch_size=3",
    "data.holdout_share=0.2",
]
SEGMENT = [*SMALL, "experiment=avsbench_s4", "model.head_dim=16", "model.min_head_dim=8"]


class KilledError(Exception):
    pass


class Recorder(Callback):
    """Notes the clips of every step; may fall over once in the first step of an epoch, as a killed run does."""

    def __init__(self, path: str, dies_in_epoch: int = -1) -> None:
        self.path, self.dies_in_epoch = Path(path), dies_in_epoch

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.current_epoch == self.dies_in_epoch and not self.path.with_suffix(".died").exists():
            self.path.with_suffix(".died").touch()
            raise KilledError
        with self.path.open("a") as file:
            starts = [round(start, 6) for start in batch.window_start.tolist()]
            print(json.dumps([trainer.current_epoch, batch_idx, batch.id, starts]), file=file)


def recorder(path: Path, dies_in_epoch: int = -1) -> list[str]:
    return [
        "+callbacks.recorder._target_=helpers.runs.Recorder",
        f"+callbacks.recorder.path={path}",
        f"+callbacks.recorder.dies_in_epoch={dies_in_epoch}",
    ]


def compose(*overrides: str, config: str = "train") -> DictConfig:
    return compose_config(config, overrides)


def leaves(config: dict[str, Any], section: str = "") -> Iterator[tuple[str, Any]]:
    """Keys with values that are no sections."""
    for name, value in config.items():
        key = f"{section}.{name}" if section else str(name)
        yield from leaves(value, key) if isinstance(value, dict) else [(key, value)]


def call(monkeypatch: pytest.MonkeyPatch, script: str, *words: object) -> None:
    """What a shell would call, in this process."""
    monkeypatch.setattr(sys, "argv", [f"{script}.py", *map(str, words)])
    monkeypatch.delenv("DEEPAVFUSION_RUN_DIR", raising=False)
    threads = torch.get_num_threads()
    entry.run(importlib.import_module(script).main)
    torch.set_num_threads(threads)


def train(monkeypatch: pytest.MonkeyPatch, *overrides: object) -> None:
    call(monkeypatch, "train", *overrides)


def finished(logs: Path, name: str, *overrides: object) -> Path:
    """The directory of a run that has ended."""
    with pytest.MonkeyPatch.context() as patch:
        train(patch, *overrides, f"paths.log_dir={logs}", f"run.name={name}")
    (run_dir,) = logs.glob(f"*/runs/{name}")
    return run_dir


def evaluate(monkeypatch: pytest.MonkeyPatch, *overrides: object) -> None:
    call(monkeypatch, "eval", *overrides)


def sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *overrides: object, script: str = "train"
) -> str:
    """The one line on stderr of a command that ends with status 2."""
    with pytest.raises(SystemExit) as end:
        call(monkeypatch, script, *overrides)
    assert end.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def assert_learns(task: LightningModule, batch: Batch, lr: float) -> None:
    """Twelve steps lower the loss of a batch, and every trained parameter has a gradient: processes would wait."""
    trained = {name: p for name, p in task.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=lr)
    losses = []
    for _ in range(12):
        loss = task.training_step(batch, 0)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]
    assert [name for name, p in trained.items() if p.grad is None] == []


def read_table(path: Path) -> list[dict[str, str]]:
    """A CSV file that we wrote."""
    with path.open(encoding="utf-8", newline="") as file:
        return [{name: from_cell(cell) for name, cell in row.items()} for row in csv.DictReader(file)]


def events(run_dir: Path) -> EventAccumulator:
    """What TensorBoard shows of a run."""
    return EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"audio": 0, "images": 0}).Reload()


def check_dashboard(run_dir: Path, main: set[str]) -> None:
    """The first page shows the main curves, every card of the layout has a curve, and the run is described once."""
    shown = events(run_dir)
    scalars = shown.Tags()["scalars"]
    assert {tag.removeprefix("Overview/") for tag in scalars if tag.startswith("Overview/")} == main
    layout = layout_pb2.Layout.FromString(shown.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    cards = {chart.title: chart.multiline.tag for section in layout.category for chart in section.chart}
    assert "loss" in cards
    for title, curves in cards.items():
        assert all(any(re.match(curve, tag) for tag in scalars) for curve in curves), title
    files = sorted((run_dir / "tensorboard").glob("events.*"))
    found = [value for file in files for event in EventFileLoader(str(file)).Load() for value in event.summary.value]
    (session,) = [value for value in found if value.tag == SESSION_START_INFO_TAG]  # one, also if the run was resumed
    settings = parse_session_start_info_plugin_data(session.metadata.plugin_data.content).hparams
    cfg = OmegaConf.load(run_dir / "config.yaml")
    assert settings["data"].string_value == cfg.data.name  # "… (demo)" where the demo data is
    assert settings["batch"].number_value == cfg.data.batch_size
    assert settings["lr"].number_value == pytest.approx(cfg.model.blr * cfg.data.batch_size / 256)
    assert settings["epochs"].number_value == cfg.trainer.max_epochs
    assert settings["fusion"].string_value == cfg.model.net.fusion
    assert settings["start_weights"].string_value
    assert str(run_dir) in shown.Tensors("about/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "image_size: 64" in shown.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()


def numbers(path: Path, prefix: str = "test/") -> dict[str, float]:
    return {k: v for k, v in json.loads(path.read_text()).items() if k.startswith(prefix)}
