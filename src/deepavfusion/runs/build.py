"""From a config to the objects of a run: trainer, task and datamodule."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer, seed_everything
from lightning.pytorch.accelerators import CPUAccelerator, CUDAAccelerator
from lightning.pytorch.callbacks import ProgressBar
from omegaconf import DictConfig, OmegaConf

from deepavfusion.config.compose import (
    REPOSITORY,
    instantiate,
    quoted,
)
from deepavfusion.data.datamodule import ClipDataModule
from deepavfusion.demo import demo
from deepavfusion.tasks.base import Task
from deepavfusion.utils.errors import UserError
from deepavfusion.utils.processes import cores


def make_demo_data(root: Path, name: str) -> None:
    """Generate a demo set that is missing, in a process of its own: its workers import nothing of ours but the demo."""
    if not demo.is_complete(root, name):
        command = [
            sys.executable,
            str(REPOSITORY / "src" / "prepare.py"),
            "command=demo",
            f"root={quoted(str(root))}",
            f"sets=[{name}]",
        ]
        if subprocess.run(command).returncode:
            raise UserError(f"the demo data under {root} could not be made, for the reason above; then run again.")


def build(cfg: DictConfig) -> tuple[Trainer, Task, ClipDataModule]:
    """Instantiate what the config names; makes the demo data if that is what it names."""
    seed_everything(cfg.seed, workers=True, verbose=False)
    if Path(cfg.data.root).parent == Path(cfg.paths.data_dir) / "demo":
        make_demo_data(Path(cfg.data.root).parent, cfg.data.name)
    datamodule: ClipDataModule = instantiate(cfg.data)
    datamodule.setup("fit")
    for key in ("num_classes", "multi_label"):
        if key in cfg.model and cfg.model[key] is None:
            cfg.model[key] = getattr(datamodule, key)
    model: Task = instantiate(cfg.model)
    model.check_data(datamodule)
    if cfg.compile:
        model.compile_training("inductor" if cfg.compile is True else cfg.compile)
    callbacks: list[Callback] = [instantiate(callback) for callback in cfg.callbacks.values()]
    # A progress bar reads the epoch's metrics, which the first process then gathers: whatever else is exchanged at the
    # end of an epoch has to come before it, or the processes wait for each other.
    callbacks.sort(key=lambda callback: isinstance(callback, ProgressBar))
    loggers = [instantiate(logger) for logger in cfg.logger.values()]
    trainer: Trainer = instantiate(cfg.trainer, callbacks=callbacks, logger=loggers)
    if isinstance(trainer.accelerator, CUDAAccelerator):
        torch.set_float32_matmul_precision(cfg.matmul_precision)
    if isinstance(trainer.accelerator, CPUAccelerator):
        # Threads that wait for a core which a decoding worker holds cost several times what they bring.
        share = cores() // trainer.num_devices
        torch.set_num_threads(max(1, share - (datamodule.workers(trainer.num_devices) + 1) // 2))
    return trainer, model, datamodule


def record(cfg: DictConfig, datamodule: ClipDataModule, overrides: list[str]) -> dict[str, Any]:
    """What a checkpoint says about itself, so that it can be evaluated and used without its run directory."""
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    data = {key: plain["data"][key] for key in ("name", "image_size", "audio_seconds")}
    return {
        "task": cfg.task,
        "model": plain["model"],
        "data": data,
        "classes": list(datamodule.classes),
        "overrides": overrides,
    }
