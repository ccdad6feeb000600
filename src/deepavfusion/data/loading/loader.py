"""A loader that resumes in the middle of an epoch, and survives decoding processes that die or hang."""

from __future__ import annotations

import inspect
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from multiprocessing.connection import wait
from threading import current_thread, main_thread
from typing import Any, Protocol

from torch.utils.data import DataLoader
from torch.utils.data._utils import signal_handling

from deepavfusion.data.loading.sampler import ClipSampler
from deepavfusion.data.loading.transport import Sender
from deepavfusion.data.loading.watch import PATIENCE, HangWatch
from deepavfusion.data.loading.workers import Board, start_worker
from deepavfusion.types import Clip, Problem
from deepavfusion.utils.console import say
from deepavfusion.utils.errors import TemporaryError, UserError
from deepavfusion.utils.launch.workers import worker_context
from deepavfusion.utils.processes import shorten_socket_names

TRIES = 2  # of a clip before it is excluded
KILLS = 3  # from outside, without a batch in between
CRASH_SIGNALS = {signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL, signal.SIGSYS}
MEMORY = signal.SIGKILL  # for lack of which the system ends a process; twice on one clip is that clip's fault
CRASHES = 100  # blamed on clips, without a batch in between: then the decoder or the machine is at fault


class Items(Protocol):
    """What the loader needs of a dataset."""

    clips: list[Clip]  # that it reads
    unit: str  # what its items are: clips, mixtures, …
    reading: Callable[[int], AbstractContextManager[Problem | None]] | None  # to be called around reading an item

    def first_clip(self, item: int) -> int:
        """Position of the (first) clip that an item reads."""


class ResumableLoader(DataLoader[Any]):
    """A DataLoader over a `ClipSampler` whose state is `batches_done`, the number of batches of this epoch so far.

    A resumed epoch yields its remaining batches exactly once: `__iter__` turns the restored number into
    `sampler.items_done`. When a decoding process dies or hangs, all are restarted and the missing batches are read
    again, with the same clips, windows and crops. A clip on which this happens twice is excluded, as a `Problem` of its
    batch ("undecodable" or "hung"); a signal from outside blames no clip, but SIGKILL, which comes for lack of memory.

    Args:
        dataset: a dataset of its own: the loader sets its `reading`.
        hang_seconds: time after which reading one item counts as hung, s; without any sign of life for as long, the run
            stops.
        together: batches that are read before the first of them is given: those of an optimizer step, where reading may
            fail for a while, so that it fails between two steps. 0: they are not for training.
        kwargs: of `DataLoader`.

    Raises:
        UserError: while iterating, if decoding processes die again and again, no batch comes, or a dataset gives the
            error in place of items.
    """

    sampler: ClipSampler
    batches_done = 0
    resume_from = 0  # `batches_done` at the start of the next epoch

    def __init__(self, dataset: Items, hang_seconds: float = 300.0, together: int = 0, **kwargs: Any) -> None:
        self.board = Board(kwargs.get("num_workers", 0))
        dataset.reading = self.board.reading
        self.items = dataset
        self.hang_seconds, self.together = hang_seconds, together
        self.ends: Counter[int] = Counter()  # of processes while they read an item
        if kwargs.get("num_workers"):
            kwargs["multiprocessing_context"] = worker_context("fork")
        kwargs["collate_fn"] = Sender(kwargs["collate_fn"], self.board.piped)
        super().__init__(dataset, worker_init_fn=start_worker, **kwargs)  # type: ignore[arg-type]  # a `Dataset`, too

    def state_dict(self) -> dict[str, int]:
        return {"delivered": self.batches_done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.resume_from = state["delivered"] % len(self)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        self.batches_done, self.resume_from = self.resume_from, 0
        ready: list[Any] = []
        try:
            for batch in self._batches(self.batches_done):
                ready.append(batch)
                if len(ready) % max(1, self.together) and self.batches_done + len(ready) < len(self):
                    continue
                while ready:
                    self.batches_done += 1
                    yield ready.pop(0)
        except TemporaryError as error:
            error.between_steps = self.together > 0
            raise

    def _batches(self, done: int) -> Iterator[Any]:
        """The batches of an epoch after the first `done`."""
        assert self.batch_size is not None
        kills = crashes = 0  # since the last batch
        while True:
            self.sampler.items_done = done * self.batch_size
            iterator = self._start()
            workers = getattr(iterator, "_workers", [])
            with HangWatch(self.board, self.hang_seconds, workers, self._described) as watch:
                while True:
                    try:
                        with watch.waiting():
                            batch = next(iterator)
                    except StopIteration:
                        return
                    except (RuntimeError, EOFError, OSError) as error:  # the latter two: it died while sending
                        if watch.stalled:
                            raise UserError(watch.stalled) from error
                        if not wait([worker.sentinel for worker in workers], timeout=1):
                            raise  # no process has died: an error of the dataset
                        failure = error
                        break
                    if isinstance(batch, UserError):
                        self._end(iterator, watch)  # left to itself, torch waits five seconds for each process
                        raise batch
                    kills = crashes = 0
                    done += 1
                    if done == len(self):  # Lightning does not ask for more; this ends the workers
                        next(iterator, None)
                    yield batch
            crashed, how = self._clear_away(iterator, watch)
            kills, crashes = kills + (not crashed), crashes + crashed
            ended = f"times in a row by {how}"
            if kills > KILLS:
                why = "by another program or a time limit"
                if how == MEMORY.name:
                    why = f"for lack of memory: set data.num_workers lower, it is {self.num_workers}"
                raise UserError(f"decoding processes were ended {kills} {ended}, probably {why}.") from failure
            if crashes > CRASHES:
                raise UserError(
                    f"decoding processes were ended {crashes} {ended}, on clip after clip: make doctor checks whether "
                    "the decoders work here."
                ) from failure

    def _start(self) -> Any:
        # With the first workers of a process, those of any DataLoader, torch installs a SIGCHLD handler that raises a
        # RuntimeError when a worker dies, in whatever code the main process runs at that time: a training step, a
        # checkpoint being written, the end of the other workers below. `next` above notices a dead worker anyway, where
        # it can be handled, so the former handler is restored.
        shorten_socket_names()
        iterator = super().__iter__()
        handler = signal.getsignal(signal.SIGCHLD)
        if getattr(handler, "__module__", None) == signal_handling.__name__ and current_thread() is main_thread():
            former = inspect.getclosurevars(handler).nonlocals.get("previous_handler")  # type: ignore[arg-type]
            signal.signal(signal.SIGCHLD, former or signal.SIG_DFL)
        return iterator

    def _clear_away(self, iterator: Any, watch: HangWatch) -> tuple[bool, str]:
        """End all processes; returns whether one crashed or hung, and how one ended by itself."""
        dead = [(number, worker.exitcode) for number, worker in enumerate(iterator._workers) if not worker.is_alive()]
        crashed, how = False, ""
        for number, code in dead:
            item, hung = self.board.item(number), number in watch.ended
            how = signal.Signals(-code).name if code < 0 else f"status {code}"
            own = hung or code > 0 or -code in CRASH_SIGNALS
            if item is None or not (own or -code == MEMORY):  # a signal from outside
                say(f"a decoding process was ended by {how}; all are restarted", "yellow")
                continue
            crashed |= own
            what = f"did not finish within {self.hang_seconds:g} s" if hung else f"was ended by {how}"
            reason = "hung" if hung else "undecodable"
            self._blame(item, reason, f"the decoding process {what} while reading it")
        self._end(iterator, watch)
        return crashed, how

    def _end(self, iterator: Any, watch: HangWatch) -> None:
        """End all processes."""
        workers = getattr(iterator, "_workers", [])
        for worker in workers:
            worker.kill()
        for worker in workers:
            worker.join(PATIENCE)
            if worker.is_alive():
                raise UserError(f"a decoding process cannot be ended: {watch.reason()}")
        if workers:
            iterator._shutdown_workers()
        self._iterator = None
        self.board.rows.zero_()

    def _described(self, item: int) -> str:
        clip = self.items.clips[self.items.first_clip(item)]
        return f"clip {clip.id} ({clip.path})"

    def _blame(self, item: int, reason: str, detail: str) -> None:
        clip = self.items.clips[self.items.first_clip(item)]
        if self.items.unit == "mixtures":
            detail += " or a clip it is mixed with"
        self.ends[item] += 1
        if self.ends[item] < TRIES:
            say(f"{self._described(item)}: {detail}; it will be tried again", "yellow")
        else:
            detail += f", {self.ends[item]} times"
            self.board.excluded[item] = Problem(clip.id, clip.path, reason, detail, used=False)
