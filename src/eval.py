"""Evaluate a checkpoint: `python src/eval.py ckpt_path=<file>`. Keys: configs/eval.yaml."""

from __future__ import annotations

from omegaconf import DictConfig

from deepavfusion.cli.complete import evaluation_overrides
from deepavfusion.cli.entry import entry, overrides_of_run, run
from deepavfusion.config.ranges import check_ranges


@entry("eval", evaluation_overrides)
def main(cfg: DictConfig) -> None:
    check_ranges(cfg)
    from deepavfusion.runs.evaluation import evaluate  # takes seconds, which a mistake should not cost

    evaluate(cfg, overrides_of_run())


if __name__ == "__main__":
    run(main)
