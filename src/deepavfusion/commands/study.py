"""Answer a question by many runs: `python src/study.py study=<name>`. Keys: configs/study.yaml and configs/study/."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich import get_console
from rich.table import Table

from deepavfusion.cli.entry import entry, overrides_of_run, run
from deepavfusion.config.compose import choices
from deepavfusion.runs.directory import in_sweep
from deepavfusion.utils.console import duration, say
from deepavfusion.utils.errors import UserError
from deepavfusion.utils.launch.cores import cores


@entry("study")
def main(cfg: DictConfig) -> None:
    from deepavfusion.runs.lock import InUseError, locked
    from deepavfusion.study.execute import PARENT, Executor
    from deepavfusion.study.plan import Plan
    from deepavfusion.study.results import rows_of
    from deepavfusion.study.work import failure_of, forget, remove_checkpoints, work
    from deepavfusion.utils.launch.workers import end_with

    if parent := os.environ.get(PARENT):
        end_with(int(parent))
    if cfg.study.name is None:
        raise UserError(f"study=<name> is missing: expected one of {', '.join(choices('study'))}.")
    plan = Plan(cfg.study, cfg.paths.log_dir, cfg.paths.data_dir)
    failures = plan.failures
    if cfg.study.only is not None:
        if cfg.study.only >= plan.count:
            raise UserError(f"study.only is {cfg.study.only}, expected a number below {plan.count}.")
        chain = plan.chain(cfg.study.only)
        if not parent:  # which has done so
            forget(chain, failures)
        work(chain, failures)
        left = [run for run in chain.runs if not run.finished]
        if in_sweep():
            if cfg.study.keep_checkpoints == "none":
                remove_checkpoints(plan.runs)
            _report(plan, cfg)  # whichever job is the last one completes it
        more = any(not run.finished and failure_of(run, failures) is None for run in plan.runs)
        if left and not (in_sweep() and more and "SUBMITIT_EXECUTOR" not in os.environ):  # where this would end others
            raise UserError(f"{len(left)} of {len(chain.runs)} runs of {chain.name} failed: see {failures}.")
        return
    gpus = _gpus()
    processes = min(cfg.study.processes or (len(gpus) or cores()), plan.count)
    _show_plan(plan, cfg, processes)
    if cfg.study.list:
        return
    plan.folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(plan.folder))
        except InUseError as error:
            where = str(error).removeprefix("run ").partition(": wait")[0]
            raise UserError(f"study {where}: wait until that ends, or stop it, and give the same command.") from None
        try:
            words = [*_own_configs(), *overrides_of_run()]
            Executor(plan, words, processes, gpus, cfg.study.keep_checkpoints == "last").run()
            failed = sum(not run.finished for run in plan.runs)
        finally:
            if any(row.values for row in rows_of(plan, failures)):
                _report(plan, cfg)
    if failed:
        raise UserError(
            f"{failed} of {len(plan.runs)} runs failed, as the report says; the same command tries them again."
        )


def _own_configs() -> list[str]:
    """The words for a folder of configs that the command named."""
    sources = HydraConfig.get().runtime.config_sources
    return [f"--config-dir={Path(each.path).resolve()}" for each in sources if each.provider == "command-line"]


def _gpus() -> list[str]:
    """The GPUs that this process sees, by the names that CUDA_VISIBLE_DEVICES has for them."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return named.split(",")[:count] if named else list(map(str, range(count)))


def _show_plan(plan: Any, cfg: DictConfig, processes: int) -> None:
    """Print what is going to run, with an estimate of time and disk."""
    from deepavfusion.study.cost import Estimator, free_gb, makespan, room_of, shares

    costs: Any = OmegaConf.to_container(cfg.study.costs, resolve=True)
    estimator, seconds, disk = Estimator(plan, costs), {}, {}
    cell_of = {run.name: chain.cell for chain in plan.chains for run in chain.runs}
    for each in plan.runs:
        if not each.finished:
            found = estimator.estimate(each, cell_of[each.name])
            seconds[each.name], disk[each.name] = found.seconds, found.disk
    table = Table(title=f"Study {plan.name}: {plan.question}", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for title in ("stage", "experiment", "runs", "finished", "each", "reported"):
        table.add_column(title)
    for stage in plan.stages:
        runs = [each for each in plan.runs if each.stage == stage]
        left = [seconds[each.name] for each in runs if each.name in seconds]
        each_takes = f"about {duration(sum(left) / len(left))}" if left else ""
        done = sum(each.finished for each in runs)
        table.add_row(stage.name, stage.experiment, str(len(runs)), str(done), each_takes, ", ".join(stage.metrics))
    get_console().print(table)
    say(f"{len(plan.cells)} cells: {'; '.join(cell.name for cell in plan.cells)}; baseline: {plan.baseline_name}")
    chains = shares(plan, seconds)
    if cfg.study.list:
        table = Table(title="Jobs", title_justify="left", box=None, padding=(0, 2, 0, 0))
        for title in ("study.only", "cell", "seed", "runs", "left", "takes"):
            table.add_column(title)
        for number, (chain, each) in enumerate(zip(plan.chains, chains, strict=True)):
            left = [run for run in chain.runs if not run.finished]
            numbers = [str(chain.seed), str(len(chain.runs)), str(len(left)), f"about {duration(each)}" if each else ""]
            table.add_row(str(number), chain.cell.name, *numbers)
        get_console().print(table)
    room = room_of(plan, disk, processes, cfg.study.keep_checkpoints == "last")
    say(
        f"{len(seconds)} of {len(plan.runs)} runs are left, {processes} at a time: about "
        f"{duration(makespan(chains, processes))} and {room:.1f} GB in {plan.folder}"
    )
    if not cfg.study.list and room > free_gb(plan.folder):
        raise UserError(
            f"the disk of {plan.folder} has {free_gb(plan.folder):.1f} GB left, and the study needs about {room:.1f}: "
            "make room, set paths.log_dir, or study.keep_checkpoints=none."
        )


def _report(plan: Any, cfg: DictConfig) -> None:
    from deepavfusion.runs.provenance import provenance, short
    from deepavfusion.study.cost import sizes
    from deepavfusion.study.report import write_report
    from deepavfusion.study.results import rows_of
    from deepavfusion.utils.files import link
    from deepavfusion.utils.program import CLONE

    found = provenance(CLONE)
    machine = found["machine"]
    about = {
        "command": f"`{found['command']}`",
        "commit": short(found["commit"]) + (", with changes" if found["dirty"] is True else ""),
        "machine": ", ".join([machine["cpu"], f"{machine['cores']} cores", *machine["gpus"]]),
        "scale": f"{plan.scale}{', quick' if plan.quick else ''}",
        "date": found["date"],
    }
    write_report(plan, rows_of(plan, plan.failures), sizes(plan), about, plan.reports)
    link(plan.folder / "latest", os.path.relpath(plan.reports, plan.folder))
    say(f"report: {plan.folder / 'latest' / 'report.md'}")


def start() -> None:
    """What the shell calls."""
    run(main)
