"""Every experiment composes and builds, at every scale; the demo is chosen when and only when there is no data."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch
from lightning import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from omegaconf import OmegaConf

from deepavfusion.config.check import check_ranges
from deepavfusion.config.compose import auto_precision, instantiate
from deepavfusion.config.ranges import RULES
from helpers.runs import CONFIGS, compose, leaves

EXPERIMENTS = sorted(path.stem for path in (CONFIGS / "experiment").glob("[!_]*.yaml"))
NETS = sorted(path.stem for path in (CONFIGS / "model" / "net").glob("[a-z]*.yaml"))
TRAINERS = sorted(path.stem for path in (CONFIGS / "trainer").glob("*.yaml"))


def test_there_are_experiments():
    assert "pretrain_vggsound" in EXPERIMENTS
    assert {"tiny", "small", "base", "large"} == set(NETS)
    assert {"auto", "cpu", "gpu", "ddp", "ddp_sim", "slurm"} <= set(TRAINERS)


@pytest.mark.parametrize("scale", ["paper", "demo"])
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_experiments_build_and_each_of_their_numbers_has_a_rule(experiment, scale, tmp_path):
    cfg = compose(f"experiment={experiment}", f"scale={scale}", "trainer=cpu")
    check_ranges(cfg)
    cfg.paths.run_dir = str(tmp_path)
    OmegaConf.resolve(cfg)
    plain = OmegaConf.to_container(cfg)
    numbers = {key for key, value in leaves(plain) if type(value) in (int, float)}
    assert len(numbers) > 30
    assert not numbers - set(RULES)
    if "num_classes" in cfg.model:
        cfg.model.num_classes = 5  # train.py asks the data
    if "multi_label" in cfg.model:
        cfg.model.multi_label = "audioset" in experiment
    with torch.device("meta"):
        model = instantiate(cfg.model)
    assert isinstance(model, LightningModule)
    assert isinstance(instantiate(cfg.data), LightningDataModule)
    callbacks = [instantiate(callback) for callback in cfg.callbacks.values()]
    assert all(isinstance(callback, Callback) for callback in callbacks)
    loggers = [instantiate(logger) for logger in cfg.logger.values()]
    assert all(isinstance(logger, TensorBoardLogger) for logger in loggers)
    assert isinstance(instantiate(cfg.trainer, callbacks=callbacks, logger=loggers), Trainer)
    header = (CONFIGS / "experiment" / f"{experiment}.yaml").read_text()
    assert all(word in header for word in ("# command", "# hardware", "# published", "# ours"))


def test_the_published_model_has_the_published_size():
    with torch.device("meta"):
        model = instantiate(compose("experiment=pretrain_vggsound", "scale=paper").model)
    assert sum(p.numel() for p in model.net.parameters()) / 1e6 == pytest.approx(320.6, abs=0.3)


@pytest.mark.parametrize(
    ("net", "dim", "depth"), [("tiny", 128, 4), ("small", 384, 12), ("base", 768, 12), ("large", 1024, 24)]
)
def test_network_sizes(net, dim, depth):
    with torch.device("meta"):
        model = instantiate(compose(f"model/net={net}", "scale=paper", "data.image_size=112").model)
    encoder = model.net.encoder
    assert (encoder.embed_dim, encoder.depth, len(encoder.fusion_blocks)) == (dim, depth, depth)
    assert encoder.image.grid == (7, 7)
    assert encoder.audio.grid == (8, 12)


@pytest.mark.parametrize("trainer", TRAINERS)
def test_trainers_compose(trainer):
    cfg = compose(f"trainer={trainer}")
    keys = set(cfg.trainer) - {"_target_"}
    assert keys <= set(inspect.signature(Trainer.__init__).parameters)
    assert cfg.trainer.use_distributed_sampler is False  # ours shards; Lightning's would pad evaluation
    expected = {"auto": auto_precision("auto"), "cpu": "32-true", "ddp_sim": "32-true"}
    assert cfg.trainer.precision == expected.get(trainer, "bf16-mixed")


def test_audio_length_reaches_the_model():
    cfg = compose("data.audio_seconds=2.0", "scale=paper")
    assert list(cfg.model.net.audio.input_size) == [128, 128]


def test_the_command_line_wins_over_the_demo():
    cfg = compose("scale=demo", "model/net=small", "trainer.max_epochs=3", "data.root=/somewhere")
    assert (cfg.model.net.image.embed_dim, cfg.trainer.max_epochs, cfg.data.root) == (384, 3, "/somewhere")
    assert Path(compose("scale=demo").data.root).parts[-2:] == ("demo", "vggsound")
