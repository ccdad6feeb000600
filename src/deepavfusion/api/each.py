"""Calls a function for one source or for each of a list, with a bar, in threads if asked to."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Literal

import torch
from typing_extensions import TypedDict

from deepavfusion.api.arguments import check_arguments, is_source, listed
from deepavfusion.api.progress import Report, showing
from deepavfusion.api.results import Result, Results
from deepavfusion.inference.features import Remark
from deepavfusion.media import Recording, Source
from deepavfusion.utils.errors import ArgumentError, UserError

Errors = Literal["raise", "collect"]
_forked = False  # whether this process is a fork of one that had this module


def _note_fork() -> None:
    global _forked
    _forked = True


os.register_at_fork(after_in_child=_note_fork)


class Options(TypedDict, total=False):
    """What the methods of a `Model` share, see there."""

    batch_size: int
    num_workers: int
    device: str | torch.device | None
    progress: bool | None
    errors: Errors


@contextmanager
def fork_safe() -> Iterator[None]:
    """One thread in a forked process: those of OpenMP were not forked, and it would wait for them forever."""
    threads = torch.get_num_threads()
    if not _forked or threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@fork_safe()
def for_each(
    title: str,
    source: Source | Iterable[Source],
    one: Callable[[Source, Report], Result],
    num_workers: int,
    show: bool | None,
    errors: Errors,
) -> Result | Results[Result]:
    """The result of a source, or those of a list.

    Args:
        title: of the bar.
        source: one, or a list.
        one: gives the result of a source, and reports what is done of it.
        num_workers: threads, each of which works on one source.
        show: see `showing`.
        errors: see `Model.classify`.
    """
    if errors not in ("raise", "collect"):
        raise ArgumentError(f"errors is {errors!r:.80}, expected raise or collect.")
    check_arguments(num_workers=num_workers)
    if is_source(source):
        with showing(title, show) as bar:
            return one(source, bar)  # type: ignore[arg-type]
    given = listed(source)
    shares = [0.0] * len(given)
    with showing(title, show) as bar:

        def work(n: int) -> Result | Remark:
            def share(done: float, total: float) -> None:
                shares[n] = done / max(total, 1)
                bar(sum(shares), len(given))

            try:
                return one(given[n], share)
            except UserError as error:
                if errors == "raise":
                    raise
                return _failure(given[n], error)

        if min(num_workers, len(given)) < 2:
            found = [work(n) for n in range(len(given))]
        else:
            with ThreadPoolExecutor(min(num_workers, len(given))) as pool:
                try:
                    found = list(pool.map(work, range(len(given))))
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
    failed = [each for each in found if isinstance(each, Remark)]
    return Results((each for each in found if not isinstance(each, Remark)), failed)


def _failure(source: Source, error: UserError) -> Remark:
    if isinstance(source, Recording):
        return Remark(source.path, str(error), "")
    return Remark(os.fspath(source), str(error), os.path.abspath(source))
