"""Runs each check in its own process, so that one that raises, crashes or hangs becomes a line like any other."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection

from rich.table import Column, Table
from rich.text import Text

from deepavfusion.doctor.software import ANEW
from deepavfusion.utils.errors import UserError, explained
from deepavfusion.utils.names import printable

Check = Callable[[], str]


@dataclass(frozen=True)
class Found:
    """The result of a check: a clause if it passed, else a sentence that says how to fix it."""

    name: str
    ok: bool
    text: str


def examine(name: str, check: Check, time_limit: float) -> Found:
    """Call a check in a forked process, which is killed after `time_limit` seconds with every process it started.

    A process pool would end only its worker, and the training that it started would continue.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(sender, check), daemon=True)
    process.start()
    sender.close()
    try:
        if not receiver.poll(time_limit):
            why = "a disk, a network or a driver does not respond, or the check needs more time (time_limit=<s>)"
            return Found(name, False, f"not finished after {time_limit:g} s: {why}.")
        return Found(name, *receiver.recv())
    except EOFError:
        process.join(10)
        code = process.exitcode or 0
        how = signal.Signals(-code).name if code < 0 else f"status {code}"
        return Found(name, False, f"its process was ended by {how}; a library or driver is broken: {ANEW}.")
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid or 0, signal.SIGKILL)
        process.kill()
        process.join(10)


def _answer(sender: Connection, check: Check) -> None:
    os.setsid()
    silence = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # libraries print
        os.dup2(silence, stream)
    try:
        found = True, check()
    except UserError as error:
        found = False, str(error)
    except BaseException as error:
        sentence = explained(error) if isinstance(error, OSError) else None
        found = False, sentence or f"{type(error).__name__}: {' '.join(str(error).split())}"
    sender.send(found)


def as_table(found: Sequence[Found], running: str | None = None) -> Table:
    """A line for each finished check, and one for the check that is running."""
    table = Table(Column(no_wrap=True), Column(overflow="fold"), show_header=False, box=None, pad_edge=False)
    for each in found:
        state = ("ok", "green") if each.ok else ("fix:", "bold red")
        table.add_row(each.name, Text.assemble(state, " ", (printable(each.text), "" if each.ok else "red")))
    if running:
        table.add_row(running, "…")
    return table
