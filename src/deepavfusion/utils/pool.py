"""Calls a function on many items in worker processes, which may crash or hang without affecting the other items.

A fork server imports everything once (seconds) and is forked for each worker (milliseconds). It decodes nothing itself,
and workers are replaced after some calls, so that leaks and corrupted memory do not spread.
"""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, TimeoutError, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from multiprocessing import forkserver
from multiprocessing.context import BaseContext
from typing import Any, Literal, TypeVar

from pebble import ProcessExpired, ProcessPool

from deepavfusion.utils.errors import UserError
from deepavfusion.utils.launch.workers import shielded, worker_context

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")
Why = Literal["hung", "raised", "crashed", "outside"]

CALLS = 100  # of a worker before it is replaced
ATTEMPTS = 5  # pools in a row that may break without a result
# What the fork server imports: what is called, and what the main script imports, as workers import it, too.
PRELOAD = ["deepavfusion.verify.verify", "deepavfusion.data.stores.pack", "deepavfusion.cli.entry"]
OUTSIDE = {signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2}
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


@dataclass(frozen=True)
class Lost:
    """A call without a result: it took too long, raised, or its process crashed or was ended from outside."""

    why: Why
    detail: str

    @property
    def hung(self) -> bool:
        return self.why == "hung"


def call_apart(
    function: Callable[[ItemT], ResultT],
    items: Iterable[ItemT],
    workers: int,
    time_limit: float | Callable[[ItemT], float],
    tries: int = 1,
) -> Iterator[tuple[ItemT, ResultT | Lost]]:
    """function(item) for every item, in any order.

    Args:
        function: picklable; an exception it raises becomes a `Lost`.
        items: picklable; read as workers become free.
        workers: processes.
        time_limit: seconds a call, or what gives them for an item; a process that exceeds it is killed.
        tries: how often an item may crash or exceed it. A signal from outside is not its fault.

    Raises:
        UserError: no worker can be started, or they are ended from outside again and again.
    """
    waiting, again = iter(items), list[tuple[ItemT, int]]()  # the second with the tries that are left
    failed = 0
    while failed < ATTEMPTS:
        pool = ProcessPool(workers, CALLS, _start_worker, context=_fork_server())
        pending: dict[Future[Any], tuple[ItemT, int]] = {}
        limits: dict[Future[Any], float] = {}
        try:
            while pool.active and failed < ATTEMPTS:
                room = 2 * workers - len(pending)  # bounds memory; keeps every worker busy
                again += [(item, tries) for item in islice(waiting, max(0, room - len(again)))]
                for item, left in again[:room]:
                    limit = time_limit(item) if callable(time_limit) else time_limit
                    future: Future[Any] = Future()  # never done if the pool has just broken
                    with suppress(RuntimeError):
                        future = pool.schedule(_call, (function, item, limit), timeout=limit)
                    pending[future], limits[future] = (item, left), limit
                del again[:room]
                if not pending:
                    return
                done, _ = wait(pending, timeout=1, return_when=FIRST_COMPLETED)  # a broken pool may leave some undone
                for future in done:
                    limit = limits.pop(future)
                    try:
                        result = future.result()
                    except BrokenProcessPool:
                        continue
                    except TimeoutError:
                        result = Lost("hung", f"not done after {limit:g} s")
                    except ProcessExpired as error:
                        why: Why = "outside" if -error.exitcode in OUTSIDE else "crashed"
                        result = Lost(why, f"the decoding process {_ending(error.exitcode)}")
                    item, left = pending.pop(future)
                    if isinstance(result, Lost) and result.why != "raised":
                        failed += result.why == "outside"
                        left -= result.why != "outside"
                        if left:
                            again.append((item, left))
                            continue
                    failed = 0
                    yield item, result
        finally:
            pool.stop()
            pool.join()
        # A worker died between two calls. Which one it would have taken is unknown: all are tried again.
        again += pending.values()
        failed += 1
    raise UserError(
        f"worker processes ended {ATTEMPTS} times in a row before they returned any result, through another program, a "
        "time limit or lack of memory: set workers lower, or run the same command again; what is done is kept."
    )


def _ending(code: int) -> str:
    if code >= 0:
        return f"ended with status {code}"
    name = signal.Signals(-code).name if -code in list(signal.Signals) else f"signal {-code}"
    return f"was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")


def _fork_server() -> BaseContext:
    context = worker_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    before = {name: os.environ.get(name) for name in ONE_THREAD}
    os.environ.update(ONE_THREAD)  # libraries read it when they are imported; there is a worker for each core
    try:
        with shielded():
            forkserver.ensure_running()
    finally:
        for name, value in before.items():
            del os.environ[name]
            if value is not None:
                os.environ[name] = value
    return context


def _start_worker() -> None:
    warnings.simplefilter("ignore")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libraries print about broken files


def _call(function: Callable[[ItemT], ResultT], item: ItemT, time_limit: float) -> ResultT | Lost:
    signal.alarm(int(2 * time_limit) + 10)  # ends a worker that hangs after its parent was killed
    try:
        return function(item)
    except Exception as error:  # as text: not every exception survives pickling
        return Lost("raised", f"{type(error).__name__}: {' '.join(str(error).split())}")
    finally:
        signal.alarm(0)
