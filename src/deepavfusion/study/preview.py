"""What a study is going to run, before anything does."""

from __future__ import annotations

from typing import Any

from rich import get_console
from rich.table import Table

from deepavfusion.study.cost import Estimator, free_gb, makespan, room_of, shares
from deepavfusion.study.plan import Plan
from deepavfusion.utils.console import cell, duration, say
from deepavfusion.utils.errors import UserError


def preview(plan: Plan, costs: dict[str, Any], processes: int, gpus: int, jobs: bool, keep: bool) -> dict[str, float]:
    """Print what is going to run, with an estimate of time and disk.

    Args:
        costs: see `cost.Estimator`.
        processes: chains at a time.
        gpus: that they share; 0: they share the cores.
        jobs: whether the chains are listed.
        keep: see `execute.Executor`.

    Returns:
        Name -> seconds that a run is thought to take, of those that are left.

    Raises:
        UserError: the disk has less room than the study needs, unless the chains are listed.
    """
    estimator, seconds, disk = Estimator(plan, costs, processes, gpus), dict[str, float](), dict[str, float]()
    for each in plan.runs:
        if not each.finished:
            found = estimator.estimate(each)
            seconds[each.name], disk[each.name] = found.seconds, found.disk
    table = Table(
        title=cell(f"Study {plan.name}: {plan.question}"), title_justify="left", box=None, padding=(0, 2, 0, 0)
    )
    for title in ("stage", "experiment", "runs", "finished", "each", "reported"):
        table.add_column(title)
    for stage in plan.stages:
        runs = [each for each in plan.runs if each.stage == stage]
        left = [seconds[each.name] for each in runs if each.name in seconds]
        each_takes = f"about {duration(sum(left) / len(left))}" if left else ""
        done = sum(each.finished for each in runs)
        table.add_row(stage.name, stage.experiment, str(len(runs)), str(done), each_takes, ", ".join(stage.metrics))
    get_console().print(table)
    if len(plan.cells) > 1:
        say(f"{len(plan.cells)} cells: {'; '.join(cell.name for cell in plan.cells)}; baseline: {plan.baseline_name}")
    chains = shares(plan, seconds)
    if jobs:
        table = Table(title="Jobs", title_justify="left", box=None, padding=(0, 2, 0, 0))
        for title in ("study.only", "cell", "seed", "runs", "left", "takes"):
            table.add_column(title)
        for number, (chain, takes) in enumerate(zip(plan.chains, chains, strict=True)):
            unfinished = sum(not run.finished for run in chain.runs)
            time = f"about {duration(takes)}" if takes else ""
            numbers = [str(chain.seed), str(len(chain.runs)), str(unfinished), time]
            table.add_row(str(number), cell(chain.cell.name), *numbers)
        get_console().print(table)
    room = room_of(plan, disk, processes, keep)
    say(
        f"{len(seconds)} of {len(plan.runs)} runs are left, {processes} at a time: about "
        f"{duration(makespan(chains, processes))} and {room:.1f} GB in {plan.folder}"
    )
    if not jobs and room > free_gb(plan.folder):
        raise UserError(
            f"the disk of {plan.folder} has {free_gb(plan.folder):.1f} GB left, and the study needs about {room:.1f}: "
            "make room, set paths.log_dir, or study.keep_checkpoints=none."
        )
    return seconds
