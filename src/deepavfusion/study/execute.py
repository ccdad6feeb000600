"""Work on the chains of a study, several at a time, each in a process of its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO

from deepavfusion.runs.lock import is_held
from deepavfusion.runs.signals import StopRequested, StopSignals
from deepavfusion.study.definition import Chain, Run
from deepavfusion.study.plan import Plan
from deepavfusion.study.work import failure_of, forget, note_failure, remove_checkpoints
from deepavfusion.utils.console import duration, progress_bar, say
from deepavfusion.utils.errors import FULL_DISK, UserError
from deepavfusion.utils.launch.cores import usable
from deepavfusion.utils.launch.launcher import alone
from deepavfusion.utils.launch.signals import STOPPED, requeue
from deepavfusion.utils.program import starting

LOOK_EVERY = 0.5  # s
LAST_CALL = 35.0  # s from the signal to stop until a chain is killed; it takes 25 by itself
ATTEMPTS = 2  # at a chain whose process was killed
LEAST_FREE = 0.5  # GB on the disk of the runs
PARENT = (
    "DEEPAVFUSION_STUDY"  # environment variable: the process that a chain's ends with, and the digest of that chain
)


@dataclass
class Job:
    """A chain that is being worked on.

    Args:
        log: what it prints.
        place: number of its share of the machine.
    """

    number: int
    chain: Chain
    process: subprocess.Popen[bytes]
    log: IO[bytes]
    place: int


class Executor:
    """Runs the chains that are not finished, each in a process that knows nothing of what launched this one.

    Args:
        words: the overrides of this command, which each chain's is given.
        processes: chains at a time.
        gpus: names of those of each, the same number, on which batches and rates depend; empty: on CPUs, which are
            dealt out.
        keep: whether the checkpoints of runs are kept that no other run starts from any more.
        seconds: name -> that a run is thought to take, of those that are left.
        numbers: of the chains that it works on; None: all.
    """

    def __init__(
        self,
        plan: Plan,
        words: list[str],
        processes: int,
        gpus: Sequence[Sequence[str]],
        keep: bool = True,
        seconds: Mapping[str, float] | None = None,
        numbers: Sequence[int] | None = None,
    ) -> None:
        self.plan, self.words, self.processes, self.gpus, self.keep = plan, words, processes, gpus, keep
        self.seconds, self.whole = seconds or {}, numbers is None
        self.chains = {n: plan.chain(n) for n in (range(plan.count) if numbers is None else numbers)}
        self.runs = list({run.name: run for chain in self.chains.values() for run in chain.runs}.values())
        self.failures = plan.failures
        self.attempts: Counter[int] = Counter()
        self.jobs: dict[int, Job] = {}

    def run(self) -> None:
        """Work until every run is finished or has failed; says how many have.

        Raises:
            StopRequested: a signal came; the chains have saved what they did.
            UserError: the disk is full.
        """
        if self.whole:  # what failed before is tried again
            shutil.rmtree(self.failures, ignore_errors=True)
        for chain in () if self.whole else self.chains.values():
            forget(chain, self.failures)
        (self.plan.reports / "output").mkdir(parents=True, exist_ok=True)
        waiting = deque(n for n, chain in self.chains.items() if self._left(chain))
        stop = StopSignals(lambda: None)  # the chains may take as long, and `LAST_CALL` is more
        stop.listen()
        begin, total = time.monotonic(), len(self.runs)
        try:
            with progress_bar() as bar:
                task = bar.add_task(f"{self.plan.name}: runs", total=total, completed=self._done())
                while waiting or self.jobs:
                    if stop.received is not None:
                        raise StopRequested(
                            f"study {self.plan.name} is stopped, with {self._done()} of {total} runs done: the same "
                            "command continues it."
                        )
                    self._check_disk()
                    for place in range(self.processes):
                        if place not in self.jobs and (number := self._next(waiting)) is not None:
                            waiting.remove(number)
                            self._start(number, place)
                    time.sleep(LOOK_EVERY)
                    for job in [job for job in self.jobs.values() if job.process.poll() is not None]:
                        self._end(job, waiting)
                    self._tidy()
                    bar.update(task, completed=self._done(), left=self.time_left())
        finally:
            self._stop_all()
            self._tidy()
            if stop.received is not None:  # as the job of a cluster
                requeue(stop.received)
            stop.release()
        say(f"{self._done()} of {total} runs done in {duration(time.monotonic() - begin)}")

    def _tidy(self) -> None:
        if not self.keep:
            remove_checkpoints(self.plan.runs)

    def _left(self, chain: Chain) -> list[Run]:
        return [run for run in chain.runs if not run.finished and failure_of(run, self.failures) is None]

    def _done(self) -> int:
        return sum(run.finished for run in self.runs)

    def time_left(self) -> float:
        """Seconds, as far as they can be foreseen."""
        return sum(self.seconds.get(run.name, 0.0) for run in self.runs if not run.finished) / self.processes

    def _next(self, waiting: deque[int]) -> int | None:
        """The first chain that need not wait for another one's run; drops those of which nothing is left."""
        working = {left[0].name for job in self.jobs.values() if (left := self._left(job.chain))}
        for number in list(waiting):
            left = self._left(self.chains[number])
            if not left:
                waiting.remove(number)
            elif left[0].name not in working and not is_held(left[0].directory):
                return number
        return None

    def _start(self, number: int, place: int) -> None:
        chain = self.chains[number]
        log = (self.plan.reports / "output" / f"{number:03d}.log").open("ab")
        command = [*starting("study"), *self.words, f"study.only={number}"]
        environment, every = {**alone(), PARENT: f"{os.getpid()} {chain.digest}"}, usable()
        if self.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(self.gpus[place])
        else:
            environment.pop("OMP_NUM_THREADS", None)  # as many as it has cores
        try:
            _bind(sorted(every)[place :: self.processes] or every)  # what is started from here on is bound to them, too
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
        finally:
            _bind(every)
        self.attempts[number] += 1
        self.jobs[place] = Job(number, chain, process, log, place)

    def _end(self, job: Job, waiting: deque[int]) -> None:
        """Say what has become of a chain; one whose process was killed is taken up again, once."""
        del self.jobs[job.place]
        job.log.close()
        status, left = job.process.returncode, self._left(job.chain)
        for run in job.chain.runs:
            if sentence := failure_of(run, self.failures):
                say(f"  {run.name} failed: {sentence}", "red")
        if not left:
            if all(run.finished for run in job.chain.runs):
                say(f"  {job.chain.name}: done", "dim")
            return
        mine = next((run for run in left if not is_held(run.directory)), None)  # others are of other chains
        if self.attempts[job.number] >= ATTEMPTS and mine is not None:
            how = f"by signal {-status} ({signal.Signals(-status).name})" if status < 0 else f"with status {status}"
            why = "; the system does that when memory runs out" if status == -signal.SIGKILL else ""
            note_failure(mine, self.failures, f"its process was ended {how}{why}: see {job.log.name}")
            if status not in (-signal.SIGKILL, -signal.SIGSEGV, STOPPED):
                return
        waiting.appendleft(job.number)

    def _check_disk(self) -> None:
        free = shutil.disk_usage(self.plan.folder).free / 1e9
        if free < LEAST_FREE:
            raise UserError(
                f"{FULL_DISK}{self.plan.folder} has {free:.1f} GB left: make room and give the same command again, "
                "which continues the study; study.keep_checkpoints=none needs less."
            )

    def _stop_all(self) -> None:
        """Let the chains that are being worked on save what they did."""
        for job in self.jobs.values():
            job.process.terminate()
        until = time.monotonic() + LAST_CALL
        for job in self.jobs.values():
            try:
                job.process.wait(max(0.1, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                job.process.kill()
                job.process.wait()
            job.log.close()
        self.jobs.clear()


def _bind(cores: set[int] | list[int]) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
