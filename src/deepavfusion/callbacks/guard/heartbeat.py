"""Signs of life between the processes of a run, over the store at which they met."""

from __future__ import annotations

import atexit
import socket
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from deepavfusion.runs.signals import StopRequested
from deepavfusion.utils.errors import TemporaryError, UserError
from deepavfusion.utils.launch.signals import STOPPED

BEAT = 2.0  # s between two signs
LIMIT = 45.0  # s without one; Python code that keeps all threads of a process waiting (a sort of millions) takes less
KEY = "deepavfusion/heartbeat/{}"
END, HOST = KEY.format("end"), KEY.format("host {}")
READ = 1.0  # s that the others have at least to learn why they end, on busy cores, too
OVER, DONE, LEFT = "over", "done", "left"  # states: in no training or test, so that nobody waits; ended; asked to stop
NO_SIGN = "{} gave no sign of life for {:.0f} s (killed, stopped, or a machine or network fails), so the others end; "

Leave = Callable[[str, int], None]


class Heartbeat:
    """Two threads of a process: one exchanges signs with the others, the other ends the process when they stop.

    The first process watches all others, which watch the first one. Who sees that another one died, or ended with an
    error, calls `leave`; the first one lets all others know before, so that one process reports why.

    Signs count from when this process saw the one before, in time that it was running itself: clocks are not compared,
    and a job that was suspended as a whole continues. A collective operation tells nothing of who is late: it waits
    while data is slow, and by its time limit half an hour.

    Args:
        connect: makes a connection to the store (`torch.distributed.Store`).
        rank: of this process.
        processes: how many there are.
        leave: ends this process, with a text to print (empty: another one printed it) and an exit status.
        continues: what a text says at its end.
        beat: s between two signs.
        limit: s without one.
    """

    def __init__(
        self,
        connect: Callable[[], Any],
        rank: int,
        processes: int,
        leave: Leave,
        continues: str,
        beat: float = BEAT,
        limit: float = LIMIT,
    ) -> None:
        self.connect, self.rank, self.leave, self.continues = connect, rank, leave, continues
        self.beat, self.limit = beat, limit
        self.over = threading.Event()  # this process is in no training or test
        self.stopped = threading.Event()
        self.state = ""  # besides the number of a sign: nothing, DONE, LEFT, or the exit status of a process that ends
        self.end: int | None = None  # the exit status of all, once the first process says so
        self.store: Any = None
        self.others = [n for n in range(processes) if n != rank]
        self.signs: dict[int, str] = {}  # of each process, the last one
        self.silent = dict.fromkeys(self.others, 0.0)  # s since it changed
        self.hosts: dict[int, str] = {}
        self.threads = [threading.Thread(target=target, daemon=True) for target in (self._exchange, self._judge)]
        for thread in self.threads:
            thread.start()
        atexit.register(self.stop)  # a thread that is in the store when the interpreter ends crashes it

    @property
    def watched(self) -> list[int]:
        return self.others if self.rank == 0 else [0]

    def ends(self, error: BaseException) -> None:
        """Let the others know that this process ends, and reports why; those that are asked to stop do so together."""
        if isinstance(error, StopRequested) or (isinstance(error, TemporaryError) and error.between_steps):
            self.state = LEFT
            return
        status = error.status if isinstance(error, UserError) else 1
        self.state = str(status)
        if self.rank == 0:
            self.end = status

    def dead(self) -> list[int]:
        """The processes that ended, or gave no sign for a while, during which this waits.

        For a process that finds a connection broken: it may be by its own fault.
        """
        self.over.set()  # this process ends here
        self.silent |= {n: 0.0 for n in self.others if n not in self.watched}
        deadline = time.monotonic() + 6 * self.beat
        while time.monotonic() < deadline:
            time.sleep(self.beat / 2)
            with suppress(Exception):  # the store may be gone, with the first process
                self._read(self.store, self.others)
            if found := [n for n in self.others if self._status(n) or self.silent[n] > 4 * self.beat]:
                return [0] if 0 in found else found  # without its store, nobody gives a sign
        return []

    def text(self, ranks: Iterable[int]) -> tuple[str, int]:
        """What to print of processes that are gone, and the exit status of this one."""
        ranks = list(ranks)
        named = ", ".join(f"rank {n}" + (f" on {self.hosts[n]}" if n in self.hosts else "") for n in ranks[:4])
        named += f" and {len(ranks) - 4} more" if len(ranks) > 4 else ""
        failed = next((status for n in ranks if (status := self._status(n))), None)
        if failed is None:
            return NO_SIGN.format(named, max(self.silent[n] for n in ranks)) + self.continues, STOPPED
        return f"{named} ended with status {failed}: see above.", failed

    def stop(self) -> None:
        """Give a last sign. Once: what ends with the process has perhaps been stopped before, in a sweep."""
        if self.stopped.is_set():
            return
        self.state = self.state or (DONE if self.over.is_set() else "1")  # in the middle: nobody has said why
        deadline = time.monotonic() + 1.5 * self.beat
        # The store ends with this process: let the others say their last word there, or see that they have to end.
        while self.rank == 0 and time.monotonic() < deadline and not all(map(self._has_ended, self.others)):
            with suppress(Exception):
                self._read(self.store, self.others)
            time.sleep(self.beat / 40)
        self.stopped.set()
        for thread in self.threads:
            if thread is not threading.current_thread():
                thread.join(1.0)

    # ---- the exchange

    def _exchange(self) -> None:
        count, last = 0, False
        while not last:
            last = self.stopped.is_set()
            count += 1
            try:
                if self.store is None:
                    self.store = self.connect()
                    self.store.set(HOST.format(self.rank), socket.gethostname())
                state = self.state or (OVER if self.over.is_set() else "")
                self.store.set(KEY.format(self.rank), f"{count} {state}")
                if self.rank == 0 and self.end is not None:
                    self.store.set(END, str(self.end))
                self._read(self.store, self.watched)
                if self.rank and self.store.check([END]):
                    self.end = int(self.store.get(END))
            except Exception:  # the network, or the first process, which has the store: `_judge` gives it time
                self.store = None
            self.stopped.wait(self.beat)

    def _read(self, store: Any, ranks: list[int]) -> None:
        for n in ranks:
            if n not in self.hosts and store.check([HOST.format(n)]):
                self.hosts[n] = store.get(HOST.format(n)).decode()
        there = [n for n in ranks if n in self.signs or store.check([KEY.format(n)])]
        keys = [KEY.format(n) for n in there]
        values = store.multi_get(keys) if keys and store.has_extended_api() else [store.get(key) for key in keys]
        for n, value in zip(there, values, strict=True):
            if self.signs.get(n) != (sign := value.decode()):
                self.signs[n], self.silent[n] = sign, 0.0

    def _status(self, rank: int) -> int | None:
        """With which a process ended that met an error."""
        state = self._state(rank)
        return int(state) if state.isdecimal() else None

    def _has_ended(self, rank: int) -> bool:
        return self._state(rank) == DONE or self._status(rank) is not None

    def _state(self, rank: int) -> str:
        return self.signs.get(rank, "").partition(" ")[2]

    # ---- the judgement

    def _judge(self) -> None:
        tick = min(self.beat, 1.0) / 2
        ended: dict[int, float] = {}
        now = time.monotonic()
        while not self.stopped.wait(tick):
            before, now = now, time.monotonic()
            passed = min(now - before, 4 * tick)  # not what this process was stopped for
            for n in self.others:
                self.silent[n] += passed
            if self.over.is_set() or self.state:
                continue
            if self.end is not None:
                return self.leave("", self.end)
            for n in self.watched:
                if self._status(n) is not None:
                    ended[n] = ended.get(n, 0.0) + passed
            gone = [n for n, since in ended.items() if since > 2 * self.beat]  # it has printed why
            gone += [n for n in self.watched if self.silent[n] > self.limit and self._state(n) not in (OVER, DONE)]
            if gone:
                text, status = self.text(gone)
                if self.rank == 0:
                    self.end = status
                    time.sleep(max(2 * self.beat, READ))
                return self.leave(text, status)
