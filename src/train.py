"""Train: `python src/train.py experiment=<name>`. Keys: configs/train.yaml; runs: configs/experiment."""

from __future__ import annotations

from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from lightning import Trainer
from lightning.pytorch.callbacks import LambdaCallback, ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from rich import get_console
from rich.panel import Panel

from deepavfusion.config.compose import (
    CONFIG_DIR,
    check_choices,
    register_resolvers,
    resolve_scale,
)
from deepavfusion.config.ranges import check_ranges
from deepavfusion.runs.build import build, record
from deepavfusion.runs.cli import run, run_and_report
from deepavfusion.runs.directory import (
    checkpoints_to_go_on_from,
    choose_run_dir,
    link_latest,
    read_overrides,
    remove_if_empty,
    write_record,
)
from deepavfusion.runs.fingerprint import fingerprint
from deepavfusion.runs.provenance import record_provenance
from deepavfusion.transforms.audio import FRAMES_PER_SECOND
from deepavfusion.utils.console import say
from deepavfusion.utils.errors import UserError
from deepavfusion.weights.file import read_file
from deepavfusion.weights.weights import check_resumable

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
