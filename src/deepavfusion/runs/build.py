"""Build the objects of a run from its config, and write the record it starts with."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from pydoc import locate
from typing import Any

import torch
from lightning import Callback, Trainer, seed_everything
from lightning.fabric.plugins.environments import ClusterEnvironment
from lightning.pytorch.accelerators import CPUAccelerator, CUDAAccelerator
from lightning.pytorch.callbacks import Checkpoint, LearningRateMonitor, ModelSummary, ProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import DDPStrategy
from omegaconf import DictConfig, OmegaConf

from deepavfusion.config.compose import instantiate
from deepavfusion.config.continued import described, recorded_config
from deepavfusion.config.overrides import PACKED, in_demo_data, quoted, split_override
from deepavfusion.data.datamodule import ClipDataModule
from deepavfusion.data.stores.packed import MANIFEST
from deepavfusion.demo import demo
from deepavfusion.demo.plans import NOT_OURS
from deepavfusion.loggers.csv import CsvLogger
from deepavfusion.loggers.service import Service
from deepavfusion.runs.checkpoints import Opened
from deepavfusion.runs.directory import write_record
from deepavfusion.runs.fingerprint import DataHash, coverage_of
from deepavfusion.runs.provenance import NOT_FINISHED, complete, record_provenance
from deepavfusion.runs.signals import StopRequested
from deepavfusion.runs.signing import signed
from deepavfusion.tasks.base import Task
from deepavfusion.utils.commands import command
from deepavfusion.utils.console import say
from deepavfusion.utils.errors import TemporaryError, UserError
from deepavfusion.utils.launch.cores import own_cores
from deepavfusion.utils.launch.launcher import alone
from deepavfusion.utils.launch.signals import on_leaving
from deepavfusion.utils.launch.trainer import Fit, fit, join, meet
from deepavfusion.utils.program import starting
from deepavfusion.weights.restored import check_plan_of_task

SWITCHES = {
    "enable_progress_bar": ProgressBar,
    "enable_model_summary": ModelSummary,
    "enable_checkpointing": Checkpoint,
}


def build(
    cfg: DictConfig,
    overrides: list[str],
    training: bool = True,
    resume_step: int | None = None,
    restored: Opened | None = None,
) -> tuple[Trainer, Task, ClipDataModule]:
    """Instantiate what the config names; generates demo data if the config asks for it.

    Args:
        cfg: composed from configs/train.yaml or eval.yaml; it is not changed.
        overrides: it was composed with, for the record in checkpoints.
        training: False leaves out compilation; also left out where the task does not train.
        resume_step: the logged curves after this step are replaced; None: there are none.
        restored: the checkpoint that the task will be restored from, if any.

    Raises:
        UserError: what the config names cannot be built, or does not fit the checkpoint.
    """
    seed_everything(cfg.seed, workers=True, verbose=False)
    is_demo = ensure_demo_data(cfg)
    datamodule: ClipDataModule = instantiate(cfg.data)
    kind: Any = locate(cfg.model._target_)
    training = training and getattr(kind, "trains", True)
    datamodule.setup("fit" if training else "test")
    getattr(kind, "check_labels", Task.check_labels)(datamodule)
    missing = [key for key in ("num_classes", "multi_label") if key in cfg.model and cfg.model[key] is None]
    from_data = {key: getattr(datamodule, key) for key in missing}
    if restored:
        check_plan_of_task(lambda: instantiate(cfg.model, **from_data), restored.path, restored.content)
    task: Task = instantiate(cfg.model, **from_data)
    task.check_data(datamodule)
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    task.record = {  # in a checkpoint, so that it can be evaluated and used without its run directory
        "task": cfg.task,
        "model": plain["model"] | from_data,
        "data": {key: plain["data"][key] for key in ("name", "image_size", "audio_seconds")} | {"demo": is_demo},
        "classes": list(datamodule.classes),
        "overrides": overrides,
        "made_here": signed(overrides),  # tells this user's own checkpoints from those of others, see config/records.py
        "config": recorded_config(plain),  # what a run that resumes from it compares its own with
    }
    # A run is finished once its summary is written: after the files of all the others.
    configured = sorted((cfg.get("callbacks") or {}).items(), key=lambda each: each[0] == "run_summary")
    callbacks: list[Callback] = [instantiate(callback) for _, callback in configured]
    # Lightning refuses a callback whose kind is switched off, as eval.yaml does with checkpoints.
    off = tuple(kind for key, kind in SWITCHES.items() if cfg.trainer.get(key) is False)
    callbacks = [callback for callback in callbacks if not isinstance(callback, off)]
    if training and cfg.compile:
        task.compile_training("inductor" if cfg.compile is True else cfg.compile)
    # Run the progress bar last: it triggers a reduction of metrics on the first process, so every other exchange at the
    # end of an epoch has to come before it, or the processes deadlock.
    callbacks.sort(key=lambda callback: isinstance(callback, ProgressBar))
    loggers = make_loggers(cfg.get("logger") or {}, resume_step)
    if not loggers:  # Lightning refuses this one without
        callbacks = [callback for callback in callbacks if not isinstance(callback, LearningRateMonitor)]
    plugins = [instantiate(plugin) for plugin in cfg.trainer.get("plugins") or []]
    more = fit_trainer(cfg, overrides)
    if not any(isinstance(plugin, ClusterEnvironment) for plugin in plugins):
        plugins.append(more.environment)
    numbers = {"devices": more.devices, "num_nodes": more.num_nodes}
    trainer: Trainer = instantiate(cfg.trainer, callbacks=callbacks, logger=loggers, plugins=plugins, **numbers)
    # Its handlers of SIGTERM and SIGUSR1 wait for the other processes; see callbacks/guard/checkpoints.py.
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    if isinstance(trainer.strategy, DDPStrategy):
        # No time limit to be hit while one process waits for its storage, again and again; Lightning takes it where the
        # strategy is made. Processes that died are seen by callbacks/guard/heartbeat.py.
        patience = OmegaConf.select(cfg, "data.storage.patience_seconds") or 0
        trainer.strategy._timeout = timedelta(seconds=1800 + 3 * patience)
        set_up, place = trainer.strategy.setup_distributed, trainer.strategy.cluster_environment
        meeting: Any = partial(meet, place, partial(join, trainer.strategy, set_up))  # type: ignore[arg-type]
        trainer.strategy.setup_distributed = meeting  # type: ignore[method-assign]
    if trainer.num_devices > 1 and not more.environment.creates_processes_externally:  # Lightning starts the others
        datamodule.handover.give(datamodule.found)
    _drop_incomplete_step(trainer, datamodule)
    if isinstance(trainer.accelerator, CUDAAccelerator):
        torch.set_float32_matmul_precision(cfg.matmul_precision)
    threads = own_cores(trainer.num_devices).own
    if isinstance(trainer.accelerator, CPUAccelerator):
        # CPUs have no synchronised BatchNorm (`trainer.sync_batchnorm`): the first step would fail.
        trainer.strategy._layer_sync = None  # type: ignore[attr-defined]
        # Threads that wait for a core taken by a decoding worker cost several times what they gain.
        threads = max(1, threads - (datamodule.workers(trainer.num_devices) + 1) // 2)
        torch.set_num_threads(threads)
    if trainer.world_size > 1:
        # Or Lightning divides the cores that this process is bound to once more, by all processes of the machine.
        os.environ["OMP_NUM_THREADS"] = str(threads)
    return trainer, task, datamodule


def fit_trainer(cfg: DictConfig, overrides: list[str]) -> Fit:
    """Devices and machines of the trainer for the processes that a launcher started; to be called before anything is
    written.

    Raises:
        UserError: they are not as many as the config has.
    """
    given = any(split_override(override)[1] == "trainer.num_nodes" for override in overrides)
    trainer: Any = OmegaConf.to_container(cfg.trainer, resolve=True)
    return fit(trainer.get("devices", "auto"), trainer.get("num_nodes", 1), trainer.get("accelerator", "auto"), given)


def epoch_batches(trainer: Trainer, datamodule: ClipDataModule) -> int:
    """Training batches of an epoch on each process."""
    batches, limit = datamodule.train_batches(trainer.world_size), trainer.limit_train_batches or 0
    return min(batches, limit) if isinstance(limit, int) else int(batches * limit)


def _drop_incomplete_step(trainer: Trainer, datamodule: ClipDataModule) -> None:
    """End epochs with their last complete optimizer step, as published.

    Lightning would make another one of the batches that are left, with a part of the usual gradient. It does so where
    an epoch has too few batches for a single step.
    """
    batches = epoch_batches(trainer, datamodule)
    complete = batches - batches % trainer.accumulate_grad_batches
    if 0 < complete < batches:
        trainer.limit_train_batches = complete


def ensure_demo_data(cfg: DictConfig) -> bool:
    """Generate, and pack, the demo data that a config reads, where they are missing; whether it reads any."""
    if not in_demo_data(cfg.data.root, cfg.paths.data_dir):
        return False
    root, demos = Path(cfg.data.root).absolute(), Path(cfg.paths.data_dir).absolute() / "demo"
    if root.name in demo.PLANS or not root.is_dir():  # what else lies there is read as it is
        make_demo_data(demos, root.name)
        if root.parent.name == PACKED:
            pack_demo_data(demos / root.name, root, cfg.data.name)
    return True


def make_demo_data(root: Path, name: str) -> None:
    """Generate a demo dataset that is missing, in a process of its own so that its workers do without torch.

    Args:
        root: folder of the demo data.
        name: of the folder in it that a run reads.
    """
    if name not in demo.PLANS:
        raise UserError(
            f"there is no generated demo of data.name={name}, only of {', '.join(demo.PLANS)}: "
            f"give data.root=<folder>, where the {'videos are' if name == 'folder' else 'dataset is'}."
        )
    given = name in NOT_OURS and (root / name).is_dir()  # was asked for by name, with a seed of its own
    if not given and not demo.is_complete(root, name):
        root = root.absolute()
        command = [*starting("prepare"), "command=demo", f"root={quoted(str(root))}", f"sets=[{name}]"]
        with subprocess.Popen(command, env=alone()) as making:
            on_leaving(making.terminate)
        if making.returncode:
            raise UserError(f"the demo data under {root} could not be made, for the reason above; then run again.")


def pack_demo_data(raw: Path, packed: Path, name: str) -> None:
    """Pack a demo dataset, unless that was done since it was generated; only one process works at a time."""
    packed.parent.mkdir(exist_ok=True)
    with (packed.parent / ".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        done, made = packed / MANIFEST, raw / demo.MANIFEST
        if done.exists() and done.stat().st_mtime > made.stat().st_mtime:
            return
        shutil.rmtree(packed, ignore_errors=True)
        places = [f"data.root={quoted(str(raw.absolute()))}", f"output={quoted(str(packed.absolute()))}"]
        with subprocess.Popen([*starting("prepare"), "command=pack", f"data={name}", *places], env=alone()) as packing:
            on_leaving(packing.terminate)
        if packing.returncode:
            raise UserError(f"the demo data could not be packed in {packed}, for the reason above; then run again.")


def write_start(
    run_dir: Path,
    cfg: DictConfig,
    overrides: list[str],
    trainer: Trainer,
    datamodule: ClipDataModule,
    data_hash: DataHash,
    weights: list[dict[str, Any]],
    changed: Mapping[str, tuple[Any, Any]] | None = None,
) -> None:
    """On the first process, write config, overrides and provenance to the run directory.

    Args:
        data_hash: begins to be found; neither the first step nor the other processes wait for it.
        weights: origins of the files that weights were loaded from, see `weights.origin.Origin.described`.
        changed: what has other values than before the run was resumed, see `config.continued.changes`.
    """
    if not trainer.is_global_zero:
        return
    write_record(run_dir, OmegaConf.to_yaml(cfg, resolve=True), overrides)
    found = {"dataset_hash": NOT_FINISHED, "coverage": coverage_of(datamodule.lists)}
    for sentence in record_provenance(run_dir, cfg.seed, found, weights=weights, changed=described(changed or {})):
        say(sentence, "yellow")

    def then(dataset_hash: str) -> None:
        for sentence in complete(run_dir, dataset_hash):
            say(sentence, "yellow")

    data_hash.find(datamodule.lists, then)


# ---- loggers


def make_loggers(configured: Mapping[str, Any], resume_step: int | None) -> list[Logger]:
    """The loggers of a config.

    Args:
        configured: name -> config.
        resume_step: what was logged for this step and later ones is replaced; None: nothing was.
    """
    purge = {"purge_step": resume_step}
    return [instantiate(logger, **(purge if "purge_step" in logger else {})) for logger in configured.values()]


@contextmanager
def loggers_ended(trainer: Trainer) -> Iterator[None]:
    """End what the loggers of a trainer began, whichever way the block ends."""

    def close(status: str) -> None:
        open_ones = [logger for logger in trainer.loggers if isinstance(logger, (Service, CsvLogger))]
        if open_ones:  # all at once: after a signal there is little time, and each may be slow
            with ThreadPoolExecutor(len(open_ones)) as threads:
                list(threads.map(lambda logger: logger.close(status), open_ones))

    on_leaving(lambda: close("stopped"))
    try:
        yield
    except BaseException as error:
        close("stopped" if isinstance(error, (StopRequested, TemporaryError, KeyboardInterrupt)) else "failed")
        raise
    close("stopped" if trainer.interrupted else "finished")


def watching(loggers: Sequence[Logger], run_dir: Path) -> list[str]:
    """The commands that show what is logged."""
    templates = (getattr(logger, "watch", None) for logger in loggers)
    return [command(each, run_dir=str(run_dir), absolute=str(run_dir.resolve())) for each in templates if each]
