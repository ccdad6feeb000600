"""Evaluate a checkpoint: `python src/eval.py ckpt_path=<file>`. Keys: configs/eval.yaml."""

from __future__ import annotations

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from deepavfusion.config.compose import CONFIG_DIR, check_choices, recorded_overrides, resolve_scale
from deepavfusion.config.ranges import check_ranges
from deepavfusion.runs.build import build, record
from deepavfusion.runs.cli import run, run_and_report
from deepavfusion.runs.directory import choose_run_dir, remove_if_empty, write_record
from deepavfusion.runs.fingerprint import fingerprint
from deepavfusion.runs.provenance import record_provenance
from deepavfusion.utils.console import say
from deepavfusion.utils.errors import UserError
from deepavfusion.weights.weights import check_resumable, read_record

WRITERS = (".ModelCheckpoint", ".Checkpoints")  # callbacks


def compose() -> tuple[DictConfig, list[str]]:
    """The config of the checkpoint's run with the command's overrides on top."""
    given = list(HydraConfig.get().overrides.task)
    check_choices(given)
    path = next((value.split("=", 1)[1] for value in given if value.startswith("ckpt_path=")), None)
    if path is None:
        raise UserError(
            "ckpt_path is missing: expected the checkpoint to evaluate, e.g. "
            "ckpt_path=logs/classify/latest/checkpoints/last.ckpt, or best.ckpt under logs/segment."
        )
    known = recorded_overrides(read_record(path.strip("'\"")), given, path)
    if not known and not any(value.startswith("experiment=") for value in given):
        raise UserError(f"{path} does not say which run it is of: add experiment=<name>, as in the run.")
    overrides = list(dict.fromkeys(known + given))
    cfg, demo = resolve_scale(hydra.compose("eval", overrides=overrides), "eval", overrides)
    check_ranges(cfg)
    return cfg, [*overrides, "scale=demo"] if demo else overrides


def evaluate(cfg: DictConfig, overrides: list[str]) -> None:
    """Test in a directory of its own."""
    run_dir = choose_run_dir(cfg.paths.log_dir, cfg.task, cfg.run.name, kind="evals")
    cfg.paths.run_dir = str(run_dir)
    try:
        with open_dict(cfg):  # nothing is trained: no start weights, no checkpoints
            cfg.model.pretrained = ""
            for name in [n for n, callback in cfg.callbacks.items() if callback._target_.endswith(WRITERS)]:
                cfg.callbacks.pop(name)
            cfg.trainer.enable_checkpointing = False
            cfg.compile = False  # it is for training steps
            if "run_summary" in cfg.callbacks:  # what it would name next lies in the directory of a training
                cfg.callbacks.run_summary.next_commands = ["make tensorboard"]
        trainer, model, datamodule = build(cfg)
        model.record = record(cfg, datamodule, overrides)
        check_resumable(model.net, cfg.ckpt_path)
    except UserError:
        remove_if_empty(run_dir)
        raise
    if trainer.is_global_zero:
        write_record(run_dir, OmegaConf.to_yaml(cfg, resolve=True), overrides)
        for sentence in record_provenance(run_dir, cfg.seed, fingerprint(datamodule.lists)):
            say(sentence, "yellow")
    trainer.test(model, datamodule=datamodule, ckpt_path=cfg.ckpt_path, verbose=False, weights_only=True)


@hydra.main(version_base="1.3", config_path=CONFIG_DIR, config_name="eval")
@run_and_report
def main(_: DictConfig) -> None:
    evaluate(*compose())


if __name__ == "__main__":
    run(main)
