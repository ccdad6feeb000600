"""Train: `python src/train.py experiment=<name>`. Keys: configs/train.yaml; runs: configs/experiment."""

from __future__ import annotations

from omegaconf import DictConfig

from deepavfusion.cli.complete import training_overrides
from deepavfusion.cli.entry import entry, overrides_of_run, run


@entry("train", training_overrides)
def main(cfg: DictConfig) -> None:
    from deepavfusion.runs.training import train  # takes seconds, which a mistake should not cost

    train(cfg, overrides_of_run())


def start() -> None:
    """What the shell calls."""
    run(main)
