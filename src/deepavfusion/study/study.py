"""A study, or one chain of it."""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import Any

import torch
from rich import get_console
from rich.table import Table

from deepavfusion.runs.directory import in_sweep
from deepavfusion.runs.lock import InUseError, locked
from deepavfusion.study.cost import Estimator, free_gb, makespan, room_of, shares
from deepavfusion.study.execute import PARENT, Executor
from deepavfusion.study.plan import Plan
from deepavfusion.study.report import report
from deepavfusion.study.results import rows_of
from deepavfusion.study.work import failure_of, work
from deepavfusion.utils.console import cell, duration, say
from deepavfusion.utils.errors import UserError
from deepavfusion.utils.launch.cores import cores
from deepavfusion.utils.launch.workers import end_with

SHOWN = 3  # metrics of a stage in the table of the plan


def answer(plan: Plan, words: list[str], costs: dict[str, Any], processes: int | None, jobs: bool, keep: bool) -> None:
    """Run what is left of a study, and report it.

    Args:
        words: those that each chain's process is given.
        costs: see `cost.Estimator`.
        processes: chains at a time; None: one for each GPU, or each core.
        jobs: only list what would run.
        keep: see `execute.Executor`.

    Raises:
        UserError: another command works on it, the disk is full, or some runs failed.
        StopRequested: a signal came.
    """
    gpus = dealt(_gpus(), processes)
    processes = min(processes or len(gpus) or cores(), plan.count)
    seconds = _preview(plan, costs, processes, len(gpus[0]) if gpus else 0, jobs, keep)
    if jobs:
        return
    plan.folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(plan.folder))
        except InUseError as error:
            end = "wait until that ends, or stop it, and give the same command."
            raise UserError(f"study {plan.folder} is in use by {error.by}: {end}") from None
        try:
            Executor(plan, words, processes, gpus, keep, seconds).run()
        finally:
            report(plan)
    if failed := sum(not run.finished for run in plan.runs):
        raise UserError(
            f"{failed} of {len(plan.runs)} runs failed, as the report says; the same command tries them again."
        )
    if lacking := {f"{stage}: {why}" for row in rows_of(plan, plan.failures) for stage, why in row.missing.items()}:
        raise UserError(f"all runs are finished, but results are missing: {'; '.join(sorted(lacking))[:500]}.")


def work_on(plan: Plan, number: int, words: list[str], keep: bool) -> None:
    """Run what is left of one chain: as a job of a sweep, or by itself; as a process of a study, at once.

    Args:
        words, keep: see `answer`.

    Raises:
        UserError: there is no such chain, or some of its runs failed.
        StopRequested: a signal came.
    """
    if number >= plan.count:
        raise UserError(f"study.only is {number}, expected a number below {plan.count}.")
    chain = plan.chain(number)
    if found := os.environ.get(PARENT):
        parent, digest = found.split()
        end_with(int(parent))
        if chain.digest != digest:
            raise UserError("configs have changed since the study began: stop it, and give the same command again.")
        work(chain, plan.failures)
    else:
        try:
            Executor(plan, words, 1, dealt(_gpus(), 1), keep, numbers=[number]).run()
        finally:
            report(plan)  # whichever job is the last one completes it
    left = [run for run in chain.runs if not run.finished]
    if left and not _ends_others(plan):
        raise UserError(f"{len(left)} of {len(chain.runs)} runs of {chain.name} failed: see {plan.failures}.")


def _preview(plan: Plan, costs: dict[str, Any], processes: int, gpus: int, jobs: bool, keep: bool) -> dict[str, float]:
    """Print what is going to run, with an estimate of time and disk.

    Args:
        costs: see `cost.Estimator`.
        processes: chains at a time.
        gpus: of a chain; 0: they share the cores.
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
        done, more = sum(each.finished for each in runs), len(stage.metrics) - SHOWN
        reported = ", ".join(stage.metrics[:SHOWN]) + (f" and {more} more" if more > 0 else "")
        table.add_row(stage.name, stage.experiment, str(len(runs)), str(done), each_takes, reported)
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
        f"{duration(makespan(plan, seconds, processes))} and {room:.1f} GB in {plan.folder}"
    )
    if not jobs and room > free_gb(plan.folder):
        raise UserError(
            f"the disk of {plan.folder} has {free_gb(plan.folder):.1f} GB left, and the study needs about {room:.1f}: "
            "make room, set paths.log_dir, or study.keep_checkpoints=none."
        )
    return seconds


def _ends_others(plan: Plan) -> bool:
    """Whether an error of this job would end those that follow it in its process."""
    if not in_sweep() or "SUBMITIT_EXECUTOR" in os.environ:
        return False
    return any(not run.finished and failure_of(run, plan.failures) is None for run in plan.runs)


def dealt(gpus: list[str], processes: int | None) -> list[list[str]]:
    """Those of each of several chains at a time: as many for one as for another, since batches depend on it; not fewer
    where there are fewer chains than that. Empty: there are none.

    Args:
        processes: chains at a time; None: one for each GPU. More than GPUs share them.
    """
    if not gpus:
        return []
    count = processes or len(gpus)
    each = max(1, len(gpus) // count)
    return [[gpus[(place * each + n) % len(gpus)] for n in range(each)] for place in range(count)]


def _gpus() -> list[str]:
    """The GPUs that this process sees, by the names that CUDA_VISIBLE_DEVICES has for them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return named.split(",")[:count] if named else list(map(str, range(count)))
