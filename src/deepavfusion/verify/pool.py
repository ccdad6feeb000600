"""Calls a function on many items in short-lived processes that may crash or hang without harm to the rest.

A server process imports what is needed once (seconds) and is forked for every worker (milliseconds); it decodes
nothing itself. A worker makes some dozen calls and ends, so leaks and spoilt memory do not spread.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import connection, forkserver
from time import monotonic
from typing import Any, Generic, TypeVar

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

CALLS = 50  # of a worker before it ends
STARTS = 5  # workers in a row that may fail before their first call
PRELOAD = ["deepavfusion.verify.verify", "deepavfusion.runs.cli"]  # the second: workers import the main script, too
ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Lost:
    """A call without a result: it took too long (`hung`), or brought its process down."""

    hung: bool
    detail: str


class _Worker(Generic[ItemT, ResultT]):
    def __init__(self, context: Any, function: Callable[[ItemT], ResultT], time_limit: float, item: ItemT) -> None:
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, function, time_limit), daemon=True)
        self.process.start()
        theirs.close()
        self.item: ItemT = item
        self.calls, self.deadline = 0, float("inf")  # the clock runs from when it says that it is ready

    def send(self, item: ItemT, time_limit: float) -> None:
        self.item, self.deadline = item, monotonic() + time_limit
        self.calls += 1
        with suppress(OSError):  # it has died; the pipe will say so
            self.pipe.send(item)

    def close(self) -> None:
        """Let it end."""
        self.pipe.close()

    def kill(self) -> None:
        self.process.kill()
        self.pipe.close()

    def death(self) -> str:
        """Why it died, once it has."""
        self.process.join(10)
        code = self.process.exitcode or 0
        if code >= 0:
            return f"the decoding process ended with status {code}"
        name = signal.Signals(-code).name if -code in list(signal.Signals) else f"signal {-code}"
        return f"the decoding process was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")


def call_apart(
    function: Callable[[ItemT], ResultT], items: Iterable[ItemT], workers: int, time_limit: float
) -> Iterator[tuple[ItemT, ResultT | Lost]]:
    """function(item) for every item, in any order.

    Args:
        function: picklable; an exception of its own is a `Lost`, too.
        items: picklable.
        workers: processes.
        time_limit: seconds a call; a process past it is killed.

    Raises:
        RuntimeError: no worker can be started.
    """
    context = _server()
    waiting, failed = iter(items), 0
    again: list[ItemT] = []  # of workers that failed to start
    live: list[_Worker[ItemT, ResultT]] = []

    def next_item() -> Any:
        return again.pop() if again else next(waiting, _END)

    try:
        while True:
            while len(live) < workers and (item := next_item()) is not _END:
                live.append(_Worker(context, function, time_limit, item))
            if not live:
                return
            timeout = min(worker.deadline for worker in live) - monotonic()
            pipes: dict[Any, _Worker[ItemT, ResultT]] = {worker.pipe: worker for worker in live}
            ready = connection.wait(list(pipes), None if timeout == float("inf") else max(0.0, timeout))
            for worker in (pipes[pipe] for pipe in ready):
                item = worker.item
                try:
                    result = worker.pipe.recv()
                except (EOFError, OSError):
                    live.remove(worker)
                    detail = worker.death()
                    worker.close()
                    if worker.calls:
                        yield item, Lost(False, detail)
                        continue
                    failed += 1
                    if failed >= STARTS:
                        raise RuntimeError(f"{failed} workers in a row could not start: {detail}") from None
                    again.append(item)
                    continue
                if worker.calls == 0:
                    failed = 0
                    worker.send(item, time_limit)
                    continue
                following = next_item() if worker.calls < CALLS else _END
                if following is _END:
                    live.remove(worker)
                    worker.close()
                else:
                    worker.send(following, time_limit)
                yield item, result
            now = monotonic()
            for worker in [worker for worker in live if worker.deadline <= now and not worker.pipe.poll()]:
                live.remove(worker)
                worker.kill()
                yield worker.item, Lost(True, f"not done after {time_limit:g} s")
    finally:
        for worker in live:
            worker.kill()


_END: Any = object()


def _server() -> Any:
    """The context whose processes are forked from a server that has everything imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    before = {name: os.environ.get(name) for name in ONE_THREAD}
    os.environ.update(dict.fromkeys(ONE_THREAD, "1"))
    try:
        forkserver.ensure_running()
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    return context


def _serve(pipe: Any, function: Callable[[Any], Any], time_limit: float) -> None:
    """A worker: says that it is ready, then answers until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    warnings.simplefilter("ignore")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what libraries say of broken files
    try:
        pipe.send(None)
        while True:
            item = pipe.recv()
            signal.alarm(int(2 * time_limit) + 10)  # ends this process if the parent, who would, is gone
            try:
                result = function(item)
            except Exception as error:
                words = " ".join(str(error).split())
                result = Lost(False, f"{type(error).__name__}: {words}")
            pipe.send(result)
            signal.alarm(0)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass
