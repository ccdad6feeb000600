"""The evaluation of a checkpoint."""

from __future__ import annotations

from contextlib import ExitStack

from omegaconf import DictConfig

from deepavfusion.runs.build import build, fit_trainer, loggers_ended, write_start
from deepavfusion.runs.checkpoints import Opened
from deepavfusion.runs.directory import choose_run_dir, held, others_follow
from deepavfusion.runs.fingerprint import DataHash
from deepavfusion.runs.overview import say_evaluation
from deepavfusion.utils.commands import command
from deepavfusion.utils.console import say_once
from deepavfusion.utils.errors import UserError
from deepavfusion.utils.launch.trainer import part
from deepavfusion.weights.restored import check_restorable


def evaluate(cfg: DictConfig, overrides: list[str]) -> None:
    """Test a checkpoint in a directory of its own, logs/<task>/evals/<name>.

    Args:
        cfg: composed from configs/eval.yaml.
        overrides: it was composed with.

    Raises:
        UserError: what the config asks for cannot be done.
    """
    fit_trainer(cfg, overrides)
    run_dir = choose_run_dir(cfg.paths.log_dir, cfg.task, cfg.run.name, kind="evals")
    cfg.paths.run_dir = str(run_dir)
    with held(run_dir), DataHash() as data_hash, ExitStack() as stack:
        opened = Opened.read(cfg.ckpt_path)
        trainer, task, datamodule = build(cfg, overrides, training=False, restored=opened)
        stack.enter_context(loggers_ended(trainer))
        if cfg.task == "pretrain":
            probe = command("train.py experiment=vggsound_linear_probe model.pretrained={path}", path=cfg.ckpt_path)
            raise UserError(
                f"{cfg.ckpt_path} is of a pre-training, which has no test; expected a checkpoint of another task: "
                f"train a probe on it with `{probe}`, which is tested at its end."
            )
        origin = check_restorable(opened.path, opened.content, trainer, task, datamodule, training=False)
        write_start(run_dir, cfg, overrides, trainer, datamodule, data_hash, [origin.described()])
        trainer.callbacks.insert(0, data_hash)  # type: ignore[attr-defined]
        say_once(f"evaluating {origin}")
        for doubt in origin.doubts(task.record["data"]["name"], task.record["data"]["demo"]):
            say_once(f"note: {doubt}", "yellow")
        say_evaluation(cfg, run_dir, trainer, task, datamodule)
        trainer.test(task, datamodule=datamodule, ckpt_path=opened.hand_over(trainer), verbose=False, weights_only=True)
        if others_follow():
            part()
