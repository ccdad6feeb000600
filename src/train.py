"""Train: `python src/train.py experiment=<name>`. Keys: configs/train.yaml; runs: configs/experiment."""

from __future__ import annotations

from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from lightning import Callback, LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from rich import get_console
from rich.panel import Panel

from deepavfusion.data import demo
from deepavfusion.utils.cli import run_and_report
from deepavfusion.utils.configs import instantiate, register_resolvers, resolve_scale
from deepavfusion.utils.run_dir import choose_run_dir, last_checkpoint, link_latest, read_overrides, write_record

register_resolvers()


def compose() -> DictConfig:
    """The config of this run: the command's, an unfinished run's with the command's on top, or the demo's."""
    overrides = list(HydraConfig.get().overrides.task)
    cfg = hydra.compose("train", overrides=overrides)
    if cfg.resume:
        overrides = read_overrides(cfg.resume) + overrides
        cfg = hydra.compose("train", overrides=overrides)
    cfg, reason = resolve_scale(cfg, "train", overrides)
    run_dir = choose_run_dir(cfg.paths.log_dir, cfg.task, cfg.run.name, cfg.resume)
    cfg.paths.run_dir = str(run_dir)
    if rank_zero_only.rank == 0:
        write_record(run_dir, OmegaConf.to_yaml(cfg, resolve=True), [o for o in overrides if not o.startswith("resume=")])
        if reason:
            text = f"[bold]Demo scale[/]: {reason}.\nA tiny network learns on generated clips; give data.root=… for a real run."
            get_console().print(Panel(text, style="yellow", expand=False))
    return cfg


def train(cfg: DictConfig) -> Trainer:
    """Build what the config names and fit it."""
    seed_everything(cfg.seed, workers=True, verbose=False)
    run_dir = Path(cfg.paths.run_dir)
    if Path(cfg.data.root).parent == Path(cfg.paths.data_dir) / "demo":
        demo.ensure(Path(cfg.data.root).parent, [cfg.data.name])
    datamodule: LightningDataModule = instantiate(cfg.data)
    datamodule.setup("fit")
    model: LightningModule = instantiate(cfg.model)
    callbacks: list[Callback] = [instantiate(c) for c in cfg.callbacks.values()]
    trainer: Trainer = instantiate(cfg.trainer, callbacks=callbacks, logger=[instantiate(c) for c in cfg.logger.values()])
    if cfg.run.latest and trainer.is_global_zero:
        link_latest(run_dir)
    ckpt_path = str(last_checkpoint(run_dir) or "") or cfg.ckpt_path
    if ckpt_path is None and cfg.validate_before:
        trainer.validate(model, datamodule, verbose=False)
    trainer.fit(model, datamodule=datamodule, ckpt_path=ckpt_path, weights_only=True)
    return trainer


@hydra.main(version_base="1.3", config_path="../configs", config_name="train")
@run_and_report
def main(_: DictConfig) -> None:
    train(compose())


if __name__ == "__main__":
    main()
