"""Evaluate a checkpoint: `python src/eval.py ckpt_path=<file>`. Keys: configs/eval.yaml."""

from __future__ import annotations

import hydra
from omegaconf import DictConfig

from deepavfusion.config.compose import CONFIG_DIR
from deepavfusion.config.ranges import check_ranges
from deepavfusion.runs.cli import overrides_of_run, resolves, run, run_and_report
from deepavfusion.runs.command import evaluation_overrides
from deepavfusion.runs.evaluation import evaluate


@resolves(evaluation_overrides)
@hydra.main(version_base="1.3", config_path=CONFIG_DIR, config_name="eval")
@run_and_report
def main(cfg: DictConfig) -> None:
    check_ranges(cfg)
    evaluate(cfg, overrides_of_run())


if __name__ == "__main__":
    run(main)
