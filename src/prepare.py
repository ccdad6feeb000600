"""Prepare data: `python src/prepare.py command=demo` writes the demo data. Keys: configs/prepare.yaml."""

from __future__ import annotations

import os

import hydra
from omegaconf import DictConfig

from deepavfusion.data import demo
from deepavfusion.utils.cli import run, run_and_report
from deepavfusion.utils.configs import CONFIG_DIR, REPOSITORY
from deepavfusion.utils.errors import UserError


def make_demo(cfg: DictConfig) -> None:
    """Generate the demo data that is missing; with `force=true` all that `sets` names."""
    root = REPOSITORY / cfg.root  # an absolute root stays as it is
    workers = (os.cpu_count() or 1) if cfg.workers == "auto" else cfg.workers
    if not isinstance(workers, int) or workers < 1:
        raise UserError(f"workers is {cfg.workers!r}, expected auto or a whole number of at least 1.")
    sets = [cfg.sets] if isinstance(cfg.sets, str) else list(cfg.sets)
    demo.ensure(root, sets, seed=cfg.seed, workers=workers, force=cfg.force)


COMMANDS = {"demo": make_demo}


@hydra.main(version_base="1.3", config_path=CONFIG_DIR, config_name="prepare")
@run_and_report
def main(cfg: DictConfig) -> None:
    if cfg.command not in COMMANDS:
        given = "no command was given" if cfg.command is None else f"there is no command {cfg.command!r}"
        raise UserError(f"prepare.py: {given}; add command=<one of: {', '.join(COMMANDS)}>.")
    COMMANDS[cfg.command](cfg)


if __name__ == "__main__":
    run(main)
