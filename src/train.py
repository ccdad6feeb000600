"""Train: `python src/train.py experiment=<name>`. Keys: configs/train.yaml; runs: configs/experiment."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from lightning import Callback, Trainer, seed_everything
from lightning.pytorch.accelerators import CPUAccelerator, CUDAAccelerator
from lightning.pytorch.callbacks import LambdaCallback, ModelCheckpoint, ProgressBar
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from rich import get_console
from rich.panel import Panel

from deepavfusion.data import demo
from deepavfusion.data.datamodule import ClipDataModule
from deepavfusion.data.fingerprint import fingerprint
from deepavfusion.models.checkpoint_file import read_file
from deepavfusion.models.weights import check_resumable
from deepavfusion.tasks.base import Task
from deepavfusion.transforms.audio import FRAMES_PER_SECOND
from deepavfusion.utils.cli import run, run_and_report
from deepavfusion.utils.configs import (
    CONFIG_DIR,
    REPOSITORY,
    check_choices,
    instantiate,
    quoted,
    register_resolvers,
    resolve_scale,
)
from deepavfusion.utils.console import say
from deepavfusion.utils.errors import UserError
from deepavfusion.utils.provenance import record_provenance
from deepavfusion.utils.ranges import check_ranges
from deepavfusion.utils.run_dir import (
    checkpoints_to_go_on_from,
    choose_run_dir,
    link_latest,
    read_overrides,
    remove_if_empty,
    write_record,
)

register_resolvers(FRAMES_PER_SECOND)


def compose() -> tuple[DictConfig, list[str]]:
    """The config of this run and its overrides: the command's, or an unfinished run's with the command's on top."""
    overrides = list(HydraConfig.get().overrides.task)
    check_choices(overrides)
    cfg = hydra.compose("train", overrides=overrides)
    if cfg.resume:
        overrides = list(dict.fromkeys(read_overrides(str(cfg.resume)) + overrides))
        cfg = hydra.compose("train", overrides=overrides)
    cfg, demo_reason = resolve_scale(cfg, "train", overrides)
    check_ranges(cfg)
    if demo_reason:
        overrides.append("scale=demo")  # for those who come back to this run when there is data
    if demo_reason and rank_zero_only.rank == 0:
        text = f"[bold]Demo scale[/]: {demo_reason}.\nA tiny network learns on generated clips; "
        get_console().print(Panel(text + "for a real run give data.root=<folder>.", style="yellow", expand=False))
    return cfg, [override for override in overrides if not override.startswith("resume=")]


def make_demo_data(root: Path, name: str) -> None:
    """Generate a demo set that is missing, in a process of its own: its workers import nothing of ours but the demo."""
    if not demo.is_complete(root, name):
        command = [
            sys.executable,
            REPOSITORY / "src" / "prepare.py",
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
        cores = len(os.sched_getaffinity(0)) // trainer.num_devices
        torch.set_num_threads(max(1, cores - (datamodule.workers(trainer.num_devices) + 1) // 2))
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


def choose_checkpoint(run_dir: Path, asked: str | None) -> tuple[str | None, int | None]:
    """The newest whole checkpoint to go on from, and its step; a damaged one is named and the one before is taken.

    Returns:
        (None, 0) where a run that has left curves begins anew, (None, None) where there is nothing yet.

    Raises:
        UserError: there are checkpoints, but all are damaged.
    """
    found, damaged = checkpoints_to_go_on_from(run_dir, asked), list[str]()
    for path in found:
        try:
            content = read_file(path)
        except UserError as error:
            damaged.append(str(error))
            continue
        step = content.get("global_step") if isinstance(content, dict) else None  # None: weights, told when loaded
        for sentence in damaged:
            if rank_zero_only.rank == 0:
                say(f"{sentence} Going on from the one before it.", "yellow")
        return str(path), step
    if damaged:
        mend = (
            f" There is no other: give another run.name, or delete {found[0].parent} to begin anew."
            if not asked
            else ""
        )
        raise UserError(damaged[0] + mend)
    return None, 0 if any(run_dir.glob("tensorboard/*")) else None


def train(cfg: DictConfig, overrides: list[str]) -> Trainer:
    """Fit in a run directory; go on from its last checkpoint if there is one."""
    run_dir = choose_run_dir(cfg.paths.log_dir, cfg.task, cfg.run.name, cfg.resume)
    cfg.paths.run_dir = str(run_dir)
    try:
        ckpt_path, step = choose_checkpoint(run_dir, cfg.ckpt_path)
        if ckpt_path and "pretrained" in cfg.model:
            cfg.model.pretrained = ""  # the weights come from the checkpoint
        for logger in cfg.logger.values():
            if "purge_step" in logger:
                logger.purge_step = step
        trainer, model, datamodule = build(cfg)
        model.record = record(cfg, datamodule, overrides)
        if ckpt_path:
            check_resumable(model.net, ckpt_path)
    except UserError:
        remove_if_empty(run_dir)
        raise
    if trainer.is_global_zero:
        write_record(run_dir, OmegaConf.to_yaml(cfg, resolve=True), overrides)
        for sentence in record_provenance(run_dir, cfg.seed, fingerprint(datamodule.lists)):
            say(sentence, "yellow")
        if ckpt_path:
            say(f"going on from {ckpt_path}")
        if cfg.run.latest:  # a run that stops before its first step leaves `latest` where it was
            trainer.callbacks.append(LambdaCallback(on_train_start=lambda *_: link_latest(run_dir)))  # type: ignore
    if ckpt_path is None and cfg.validate_before:
        trainer.validate(model, datamodule, verbose=False)
    trainer.fit(model, datamodule=datamodule, ckpt_path=ckpt_path, weights_only=True)
    if cfg.test and not trainer.interrupted:
        trainer.test(model, datamodule=datamodule, ckpt_path=best_checkpoint(trainer), verbose=False, weights_only=True)
    return trainer


def best_checkpoint(trainer: Trainer) -> str | None:
    """The weights that validation judged best, if a callback watches it; otherwise None: those of the last step."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.best_model_score is not None:
            return callback.best_model_path
    return None


@hydra.main(version_base="1.3", config_path=CONFIG_DIR, config_name="train")
@run_and_report
def main(_: DictConfig) -> None:
    train(*compose())


if __name__ == "__main__":
    run(main)
