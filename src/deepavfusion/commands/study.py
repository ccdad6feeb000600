"""Answer a question by many runs: `python src/study.py study=<name>`. Keys: configs/study.yaml and configs/study/."""

from __future__ import annotations

import os
from typing import Any

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
    from deepavfusion.runs.lock import locked
    from deepavfusion.study.execute import Executor
    from deepavfusion.study.plan import Plan
    from deepavfusion.study.results import rows_of
    from deepavfusion.study.work import forget, work
    from deepavfusion.utils.launch.workers import end_with

    if cfg.study.name is None:
        raise UserError(f"study=<name> is missing: expected one of {', '.join(choices('study'))}.")
    plan = Plan(cfg.study, cfg.paths.log_dir, cfg.paths.data_dir)
    failures = plan.failures
    if cfg.study.only is not None:
        if cfg.study.only >= plan.count:
            raise UserError(f"study.only is {cfg.study.only}, expected a number below {plan.count}.")
        chain = plan.chain(cfg.study.only)
        if in_sweep():
            forget(chain, failures)
        else:
            end_with(os.getppid())
        work(chain, failures)
        if in_sweep():  # whichever job is the last one completes it
            _report(plan, cfg)
        return
    gpus = _gpus()
    processes = min(cfg.study.processes or (len(gpus) or cores()), plan.count)
    _show_plan(plan, cfg, processes)
    if cfg.study.list:
        return
    plan.folder.mkdir(parents=True, exist_ok=True)
    with locked(plan.folder):
        try:
            Executor(plan, overrides_of_run(), processes, gpus).run()
            failed = sum(not run.finished for run in plan.runs)
        finally:
            if any(row.values for row in rows_of(plan, failures)):
                _report(plan, cfg)
    if failed:
        raise UserError(
            f"{failed} of {len(plan.runs)} runs failed, as the report says; the same command tries them again."
        )


def _gpus() -> list[str]:
    """The GPUs that this process sees, by the names that CUDA_VISIBLE_DEVICES has for them."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return named.split(",")[:count] if named else list(map(str, range(count)))


def _show_plan(plan: Any, cfg: DictConfig, processes: int) -> None:
    """Print what is going to run, with an estimate of time and disk."""
    from deepavfusion.study.cost import Estimator, free_gb, makespan

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
    seen: set[str] = set()
    chains = []
    for chain in plan.chains:
        mine = [each.name for each in chain.runs if each.name in seconds and each.name not in seen]
        seen.update(mine)
        chains.append(sum(seconds[name] for name in mine))
    room = sum(disk.values())
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
