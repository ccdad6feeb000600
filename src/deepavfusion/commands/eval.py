"""Evaluate a checkpoint: `python src/eval.py ckpt_path=<file>`. Keys: configs/eval.yaml."""

from __future__ import annotations

from omegaconf import DictConfig

from deepavfusion.cli.complete import evaluation_overrides
from deepavfusion.cli.entry import entry, overrides_of_run, run


@entry("eval", evaluation_overrides)
def main(cfg: DictConfig) -> None:
    from deepavfusion.runs.evaluation import evaluate  # takes seconds, which a mistake should not cost

    evaluate(cfg, overrides_of_run())


def start() -> None:
    """What the shell calls."""
    run(main)
