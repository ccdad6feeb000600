"""Train: `python src/train.py experiment=<name>`. Keys: configs/train.yaml; runs: configs/experiment."""

from __future__ import annotations

import hydra
from omegaconf import DictConfig

from deepavfusion.config.compose import CONFIG_DIR
from deepavfusion.config.ranges import check_ranges
from deepavfusion.runs.cli import overrides_of_run, resolves, run, run_and_report
from deepavfusion.runs.command import training_overrides
from deepavfusion.runs.training import train


@resolves(training_overrides)
@hydra.main(version_base="1.3", config_path=CONFIG_DIR, config_name="train")
@run_and_report
def main(cfg: DictConfig) -> None:
    check_ranges(cfg)
    train(cfg, overrides_of_run())


if __name__ == "__main__":
    run(main)
