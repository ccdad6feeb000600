"""Measure: `python src/benchmark.py benchmark=<name>`. Keys: configs/benchmark.yaml and configs/benchmark/."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from deepavfusion.cli.entry import entry, run
from deepavfusion.config.compose import instantiate
from deepavfusion.runs.directory import choose_run_dir, link_latest, remove_if_empty, write_record
from deepavfusion.utils.console import say
from deepavfusion.utils.errors import UserError
from deepavfusion.utils.program import CLONE


@entry("benchmark")
def main(cfg: DictConfig) -> None:
    import torch  # takes seconds, as the next two, which a mistake should not cost
    from lightning.pytorch.utilities import rank_zero_only

    from deepavfusion.benchmarks.report import BenchmarkReport, environment, show, write_csv

    overrides = HydraConfig.get().overrides.task
    machine = environment(CLONE)  # before the run, during which the code may be edited
    run_dir = choose_run_dir(cfg.paths.log_dir, "benchmark", cfg.run.name)
    threads = torch.get_num_threads()
    try:
        # Called outside of instantiate, which would hide the traceback of a bug.
        measure = instantiate(cfg.benchmark, _partial_=True)
        check_complete(measure)
        report: BenchmarkReport = measure()
    except (UserError, HydraException):
        remove_if_empty(run_dir)
        raise
    finally:
        torch.set_num_threads(threads)  # a sweep measures the next benchmark in this process
    if rank_zero_only.rank:  # type: ignore[attr-defined]
        return
    write_record(run_dir, OmegaConf.to_yaml(cfg, resolve=True), list(overrides))
    write_csv([row | machine for row in report.rows], run_dir / "results.csv")
    report.draw(run_dir / "results.png")
    link_latest(run_dir)
    show([{name: row[name] for name in report.shown or row} for row in report.rows], report.title)
    for line in report.summary:
        say(line)
    say(f"written to {run_dir}/results.csv and results.png")


def check_complete(measure: Callable[..., Any]) -> None:
    """Raise a `UserError` if it lacks an argument, as where a command removes its key."""
    try:
        inspect.signature(measure).bind()
    except TypeError as error:
        raise UserError(f"benchmark has not all of its keys ({error}): remove none.") from error


def start() -> None:
    """What the shell calls."""
    run(main)
