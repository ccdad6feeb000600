"""A training run, from its config to the final metrics."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lightning import Trainer
from lightning.pytorch.callbacks import LambdaCallback, ModelCheckpoint
from omegaconf import DictConfig, OmegaConf

from deepavfusion.config.continued import described
from deepavfusion.runs.build import build, fit_trainer, loggers_ended, write_start
from deepavfusion.runs.checkpoints import Opened, choose_checkpoint
from deepavfusion.runs.directory import CHECKPOINTS, LAST, choose_run_dir, held, link_latest, others_follow
from deepavfusion.runs.fingerprint import DataHash
from deepavfusion.runs.overview import say_evaluation, say_training
from deepavfusion.runs.start_weights import load_start_weights
from deepavfusion.utils.console import say_once
from deepavfusion.utils.launch.trainer import part
from deepavfusion.weights.origin import origin_of
from deepavfusion.weights.restored import check_restorable


def train(cfg: DictConfig, overrides: list[str]) -> None:
    """Fit in a run directory, resuming from its last checkpoint if there is one, and test if the config says so.

    A task that does not train is tested with its start weights.

    Args:
        cfg: composed from configs/train.yaml.
        overrides: it was composed with.

    Raises:
        UserError: what the config asks for cannot be done.
    """
    fit_trainer(cfg, overrides)
    run_dir = choose_run_dir(cfg.paths.log_dir, cfg.task, cfg.run.name, cfg.resume)
    cfg.paths.run_dir = str(run_dir)
    with held(run_dir), DataHash() as data_hash, ExitStack() as stack:
        _train(cfg, overrides, run_dir, data_hash, stack)
        if others_follow():
            part()


def _train(cfg: DictConfig, overrides: list[str], run_dir: Path, data_hash: DataHash, stack: ExitStack) -> None:
    # Nothing in the directory of a run that continues is changed before its state is restored: what is refused until
    # then has changed nothing.
    resumed, step = choose_checkpoint(run_dir, cfg.ckpt_path)
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    changed = resumed.changes(plain, overrides) if resumed else {}
    trainer, task, datamodule = build(cfg, overrides, resume_step=step, restored=resumed)
    stack.enter_context(loggers_ended(trainer))
    origins: list[dict[str, Any]] = []
    if resumed:
        resumed.check(trainer, task, datamodule)
    else:
        origins = load_start_weights(task, Path(cfg.paths.log_dir, "pretrain", "latest", CHECKPOINTS, LAST))

    recorded: list[bool] = []

    def record(*_: Any) -> None:
        write_start(run_dir, cfg, overrides, trainer, datamodule, data_hash, origins, changed)
        recorded.append(True)

    trainer.callbacks.insert(0, data_hash)  # type: ignore[attr-defined]
    if resumed:
        trainer.callbacks.insert(0, LambdaCallback(on_train_start=record))  # type: ignore[attr-defined]
        say_once(f"resuming from {resumed.path}")
        for line in filter(None, (*described(changed), resumed.other_steps(trainer, datamodule))):
            say_once(f"  {line}", "yellow")
    else:
        record()
    (say_training if task.trains else say_evaluation)(cfg, run_dir, trainer, task, datamodule)
    if trainer.is_global_zero and cfg.run.latest and not cfg.trainer.get("fast_dev_run"):
        # Not before the first step: a run that fails earlier leaves `latest` alone.
        start = "on_train_start" if task.trains else "on_test_end"
        trainer.callbacks.append(LambdaCallback(**{start: lambda *_: link_latest(run_dir)}))  # type: ignore
    if not task.trains:
        trainer.test(task, datamodule=datamodule, verbose=False)
        data_hash.wait()
        return
    if resumed is None and cfg.validate_before:
        trainer.validate(task, datamodule, verbose=False)
    path = resumed.hand_over(trainer) if resumed else None
    trainer.fit(task, datamodule=datamodule, ckpt_path=path, weights_only=True)
    if not recorded:  # there was nothing left to train
        record()
    data_hash.wait()
    if cfg.test and not trainer.interrupted:
        last = run_dir / CHECKPOINTS / LAST
        if last.exists():  # for what a test writes with the network
            task.origin = origin_of(last, {"record": task.record, "global_step": trainer.global_step})
        if path := _best_checkpoint(trainer):
            best = Opened.read(path)
            check_restorable(best.path, best.content, trainer, task, datamodule, training=False)
            best.hand_over(trainer)
        trainer.test(task, datamodule=datamodule, ckpt_path=path, verbose=False, weights_only=True)


def _best_checkpoint(trainer: Trainer) -> str | None:
    """The best weights by validation if a callback keeps them; None: those of the last step."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.best_model_score is not None:
            return callback.best_model_path
    return None
