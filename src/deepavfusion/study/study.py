"""A study, or one chain of it."""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import Any

import torch

from deepavfusion.runs.directory import in_sweep
from deepavfusion.runs.lock import InUseError, locked
from deepavfusion.study.execute import PARENT, Executor
from deepavfusion.study.plan import Plan
from deepavfusion.study.preview import preview
from deepavfusion.study.report import report
from deepavfusion.study.results import rows_of
from deepavfusion.study.work import failure_of, work
from deepavfusion.utils.errors import UserError
from deepavfusion.utils.launch.cores import cores
from deepavfusion.utils.launch.workers import end_with


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
    gpus = _gpus()
    processes = min(processes or (len(gpus) or cores()), plan.count)
    seconds = preview(plan, costs, processes, len(gpus), jobs, keep)
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
            Executor(plan, words, 1, _gpus(), keep, numbers=[number]).run()
        finally:
            report(plan)  # whichever job is the last one completes it
    left = [run for run in chain.runs if not run.finished]
    if left and not _ends_others(plan):
        raise UserError(f"{len(left)} of {len(chain.runs)} runs of {chain.name} failed: see {plan.failures}.")


def _ends_others(plan: Plan) -> bool:
    """Whether an error of this job would end those that follow it in its process."""
    if not in_sweep() or "SUBMITIT_EXECUTOR" in os.environ:
        return False
    return any(not run.finished and failure_of(run, plan.failures) is None for run in plan.runs)


def _gpus() -> list[str]:
    """The GPUs that this process sees, by the names that CUDA_VISIBLE_DEVICES has for them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return named.split(",")[:count] if named else list(map(str, range(count)))
