"""What a run is about to do, in a few lines, before its first step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from lightning import Trainer
from lightning.pytorch.accelerators import CUDAAccelerator
from omegaconf import DictConfig

from deepavfusion.data.datamodule import ClipDataModule
from deepavfusion.runs.build import epoch_batches, watching
from deepavfusion.tasks.base import Task, effective_batch, learning_rate
from deepavfusion.utils.console import say_once
from deepavfusion.utils.launch.cores import own_cores

PUBLISHED_BATCH = 512  # items a step of the recipes


def say_training(cfg: DictConfig, run_dir: Path, trainer: Trainer, task: Task, datamodule: ClipDataModule) -> None:
    """Print what runs where, on which data, with which batch and learning rate, for how long, and how to watch it."""
    rows = [
        ("run", str(run_dir)),
        ("data", _data(datamodule, task.record["data"]["demo"], "train", "val")),
        ("network", _network(task)),
        ("device", _device(trainer, datamodule)),
        ("batch", _batch(trainer, task)),
        ("rate", learning_rate(task.hparams, trainer)[1]),
        *(("", line) for line in _other_batch(trainer, task)),
        ("length", _length(trainer, datamodule)),
    ]
    commands = watching(trainer.loggers, run_dir)
    rows += [("" if number else "watch", line) for number, line in enumerate(commands)]
    _say(f"{_experiment(cfg)}: training", rows)


def say_evaluation(cfg: DictConfig, run_dir: Path, trainer: Trainer, task: Task, datamodule: ClipDataModule) -> None:
    """Print the data, the network, the device and where the results go."""
    rows = [
        ("data", _data(datamodule, task.record["data"]["demo"], "test")),
        ("network", _network(task)),
        ("device", _device(trainer, datamodule)),
        ("results", str(run_dir)),
    ]
    _say(f"{_experiment(cfg)}: evaluation", rows)


def _say(title: str, rows: list[tuple[str, str]]) -> None:
    say_once(title, "bold")
    for name, text in rows:
        say_once(f"  {name:8} {text}")


def _choices() -> Mapping[str, Any]:
    """Of config groups."""
    return HydraConfig.get().runtime.choices if HydraConfig.initialized() else {}


def _experiment(cfg: DictConfig) -> str:
    chosen = _choices()
    parts = [chosen.get("experiment") or cfg.task, *(["scale=demo"] if chosen.get("scale") == "demo" else [])]
    return ", ".join([*parts, f"seed {cfg.seed}"])


def _data(datamodule: ClipDataModule, demo: bool, *roles: str) -> str:
    """What each split has on disk, of what it lists; its items where they are not clips."""
    shown = []
    for role in roles:
        clips = datamodule.lists[role]
        count = f"{len(clips)}" if len(clips) == clips.listed else f"{len(clips)} of {clips.listed}"
        items, unit = datamodule.count(role)
        of = "" if unit == "clips" else f"{items} {unit} of "
        named = "" if clips.split == role else f" ({clips.split})"
        shown.append(f"{role} {of}{count} clip{'' if clips.listed == 1 else 's'}{named}")
    return f"{datamodule.dataset_name}{' (demo)' if demo else ''}: {', '.join(shown)}"


def _network(task: Task) -> str:
    parameters = list(task.parameters())
    total, trained = (sum(p.numel() for p in parameters if p.requires_grad or every) for every in (True, False))
    return f"{_millions(total)} parameters, {_millions(trained)} trained"


def _millions(count: int) -> str:
    return f"{count / 1e6:.2f} M" if count >= 1e6 else f"{count:,}"


def _device(trainer: Trainer, datamodule: ClipDataModule) -> str:
    processes, workers = trainer.world_size, datamodule.workers(trainer.num_devices)
    if isinstance(trainer.accelerator, CUDAAccelerator):
        name = f"{processes} × {torch.cuda.get_device_name(trainer.strategy.root_device)}"
    else:
        name = f"{_count(processes, 'process', 'es')} on {trainer.strategy.root_device.type.upper()}"
        name += f", {_count(torch.get_num_threads(), 'thread')}"
    each, (own, seen, why) = " each" if processes > 1 else "", own_cores(trainer.num_devices)
    cores = f"{own} of {_count(seen, 'core')}{f' ({why})' if why else ''}"
    return f"{name}, precision {trainer.precision}, {_count(workers, 'decoding worker')}{each}, {cores}"


def _batch(trainer: Trainer, task: Any) -> str:
    batch, processes, accumulated = task.hparams["batch_size"], trainer.world_size, trainer.accumulate_grad_batches
    product = f"{batch} × {_count(processes, 'process', 'es')} × {accumulated} accumulated"
    return f"{effective_batch(task.hparams, trainer)} = {product}"


def _other_batch(trainer: Trainer, task: Any) -> Iterator[str]:
    """What a batch other than the published one does to the learning rate."""
    recipe, batch = task.hparams, effective_batch(task.hparams, trainer)
    # The demo has a recipe of its own, and the published probes have batches of 512 and of 1024.
    other_recipe = _choices().get("scale", "demo") == "demo" or recipe.get("frozen") or recipe["lr"] is not None
    if not other_recipe and batch != PUBLISHED_BATCH:
        lr, published = (recipe["blr"] * size / 256 for size in (batch, PUBLISHED_BATCH))
        yield (
            f"the published batch is {PUBLISHED_BATCH}, at lr {published:.3g}: with {batch} it becomes {lr:.3g} "
            f"(× {lr / published:.3g}), as model.blr is per 256; model.lr={published:.3g} keeps it"
        )


def _length(trainer: Trainer, datamodule: ClipDataModule) -> str:
    epochs = trainer.max_epochs or 1
    steps = -(-epoch_batches(trainer, datamodule) // trainer.accumulate_grad_batches)
    total = steps * epochs if trainer.max_steps < 0 else min(steps * epochs, trainer.max_steps)
    every = trainer.check_val_every_n_epoch or 1
    often = "each epoch" if every == 1 else f"every {every} epochs"
    if every > epochs:
        often = "at the end"
    elif epochs % every:
        often += " and at the end"
    return f"{_count(epochs, 'epoch')} × {_count(steps, 'step')} = {_count(total, 'step')}, validation {often}"


def _count(number: int, noun: str, plural: str = "s") -> str:
    return f"{number} {noun}{'' if number == 1 else plural}"
