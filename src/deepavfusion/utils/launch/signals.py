"""Signals that ask a command to stop, from its first line on.

Python calls a handler in the main thread only, between two of its own instructions. The main thread may wait in C for
another process for half an hour, and libraries replace handlers. So a signal is noticed by a thread, which reads what
the system's half of the handler writes into a pipe.

Every script begins with this module, which therefore imports next to nothing.
"""

from __future__ import annotations

import _thread
import atexit
import os
import signal
import time

TYPE_CHECKING = False  # without `typing`, whose import takes longer than all others
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import Any, ClassVar, NoReturn, TypeAlias

    Taker: TypeAlias = Callable[[signal.Signals], None]

STOPPED = 75  # exit status of a run that was asked to stop and can be resumed: EX_TEMPFAIL, "try again"
INTERRUPTED = 130  # of other commands
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
FIRST_LEAVES = 5.0  # s in which the first process puts the job back into the queue, before another one's end ends it
UNWINDS = 10.0  # s from a signal to the end of a command that is interrupted
ANSWERS = 10.0  # s for SLURM to answer


class _State:
    """Of this process."""

    listening = False
    watching = False  # whether its thread has begun
    status = STOPPED  # to leave with
    interrupted = False  # see `is_interrupted`
    silent = False  # the command has ended, and only its process has not
    taker: Taker | None = None  # what a signal is given to; None: it ends the process at once
    forks = False  # whether that is seen to
    masks: ClassVar[dict[int, set[int]]] = {}  # of threads that are forking, by their number
    on_leaving: ClassVar[list[Callable[[], Any]]] = []


def listen(status: int = STOPPED) -> None:
    """From here on, the first of `SIGNALS` ends this process with an exit status and a sentence, until `take`."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    _State.listening, _State.status, _State.silent, _State.taker = True, status, False, None
    _State.interrupted = False
    _State.on_leaving.clear()
    for number in SIGNALS:
        signal.signal(number, _wait_for_the_end)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    # What arrives from here on is kept in the pipe. The thread must not wait for a module that this one is importing.
    import deepavfusion.utils.launch.launcher  # noqa: F401

    if not _State.watching:
        atexit.register(_ignore)  # first of all, so that it is called last
    _State.watching = True
    _thread.start_new_thread(_watch, (reader,))
    if not _State.forks:
        _State.forks = True
        os.register_at_fork(before=_hold_back, after_in_parent=_let_through, after_in_child=_forget)
    # A launcher may hold them back until here (env --block-signal), so that none comes too early.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def _ignore() -> None:
    """Python restores the system's handlers before its modules are torn down, which takes a while: a signal that comes
    then would make a command that has ended one that was killed."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def is_listening() -> bool:
    return _State.listening


def take(taker: Taker | None) -> None:
    """Let a function have the signals, which is called in a thread; None: they end the process at once again."""
    _State.taker = taker


def on_leaving(undo: Callable[[], Any]) -> None:
    """Call a function before a signal ends this command at once; the latest first."""
    if _State.listening:
        _State.on_leaving.append(undo)


def finish(status: int) -> None:
    """The command has ended with this status: a signal does not change it any more."""
    if _State.listening:
        _State.status, _State.silent, _State.taker = status, True, None


def interrupt() -> None:
    """From here on, a signal raises a KeyboardInterrupt in the main thread, as Ctrl-C does in any Python program."""
    if not _State.listening:
        return
    for number in SIGNALS:
        signal.signal(number, _interrupt)
    take(_leave_if_still_here)


def _interrupt(number: int, _: FrameType | None) -> NoReturn:
    _State.interrupted = True
    raise KeyboardInterrupt


def is_interrupted() -> bool:
    """Whether one was raised: a library that was being imported may have made another error of it."""
    return _State.interrupted


def _leave_if_still_here(number: signal.Signals) -> None:
    time.sleep(UNWINDS)
    leave(number)


def _watch(reader: int) -> None:
    while True:
        for number in os.read(reader, 64):
            if number in SIGNALS:  # others have handlers, too
                (_State.taker or leave)(signal.Signals(number))


def _wait_for_the_end(number: int, _: FrameType | None) -> None:
    """Nothing is begun any more by the main thread, while the other one ends the process."""
    if _State.taker is None and _State.watching:
        time.sleep(3 * ANSWERS)
        os._exit(_State.status)


def _hold_back() -> None:
    """A signal to a process that is just forked would be written into this one's pipe."""
    _State.masks[_thread.get_ident()] = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def _let_through() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _State.masks[_thread.get_ident()])


def _forget() -> None:
    """A forked process, which has no such thread, ends by signals again, until it listens itself."""
    _State.listening, _State.watching, _State.taker = False, False, None
    _State.on_leaving.clear()
    signal.set_wakeup_fd(-1)
    for number in SIGNALS:
        if signal.getsignal(number) in (_wait_for_the_end, _interrupt):
            ends = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, ends)
    _let_through()


def tell(text: str) -> None:
    """Print a line, whichever thread is printing; where it goes nowhere (a full disk, a lost terminal), that is all."""
    try:
        os.write(2, f"{text}\n".encode(errors="backslashreplace"))
    except OSError:  # the process that says so is about to end, and has to
        return


def named(number: int) -> str:
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name


def leave(number: signal.Signals, text: str = "") -> NoReturn:
    """End this process, in the middle of whatever it does: what it writes, it writes whole or not at all.

    Args:
        number: of the signal that asked for it.
        text: what the first process says, if more is known than that.
    """
    from deepavfusion.utils.launch.launcher import launch

    if _State.silent:
        os._exit(_State.status)
    found = launch()
    if found.rank:
        time.sleep(FIRST_LEAVES)
        if found.by == "lightning":  # whose first process watches how the others end, see callbacks/guard
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            os.kill(os.getpid(), signal.SIGKILL)
        os._exit(_State.status)
    for undo in reversed(_State.on_leaving):
        try:
            undo()
        except Exception:  # the process ends anyway
            continue
    if _State.silent:
        os._exit(_State.status)
    if _State.status == STOPPED:
        requeue(number)
    tell(text or f"stopped by {named(number)}: give the same command again.")
    os._exit(_State.status)


def requeue(number: int) -> None:
    """After a signal that asks for it, put the SLURM job of this process back into the queue, and say so.

    SIGUSR1 does, and SIGTERM where the job is pre-empted: one that ends in its time of grace would be over for SLURM.
    """
    job = os.environ.get("SLURM_ARRAY_JOB_ID", os.environ.get("SLURM_JOB_ID"))
    if job is None:
        return
    if "SLURM_ARRAY_TASK_ID" in os.environ:
        job += f"_{os.environ['SLURM_ARRAY_TASK_ID']}"
    if number != signal.SIGUSR1 and (number != signal.SIGTERM or not _is_preempted(job)):
        return
    failed, said = _run("scontrol", "requeue", job)
    tell(f"SLURM job {job} could not be requeued: {said}" if failed else f"SLURM job {job} is requeued")


def _is_preempted(job: str) -> bool:
    failed, said = _run("scontrol", "show", "job", "--oneliner", job)
    return not failed and any(word.startswith("PreemptTime=") and word != "PreemptTime=None" for word in said.split())


def _run(*command: str) -> tuple[bool, str]:
    """Run a command; whether it failed, and what it said, or why there is nothing.

    Without `subprocess`, which the main thread may be importing just now.
    """
    reader, writer = os.pipe()
    try:
        said = [(os.POSIX_SPAWN_DUP2, writer, 1), (os.POSIX_SPAWN_DUP2, writer, 2)]
        pid = os.posix_spawnp(command[0], command, os.environ, file_actions=said)
    except OSError as error:
        return True, f"{command[0]}: {error.strerror}"
    finally:
        os.close(writer)
    try:
        until = time.monotonic() + ANSWERS
        while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
            if time.monotonic() > until:
                return True, f"{command[0]} did not answer within {ANSWERS:g} s"
            time.sleep(0.02)
        os.set_blocking(reader, False)  # what it left running may keep the pipe open
        try:
            text = os.read(reader, 2**16).decode(errors="replace")
        except BlockingIOError:
            text = ""
        return bool(ended[1]), " ".join(text.split()) or f"status {ended[1]}"
    finally:
        os.close(reader)
