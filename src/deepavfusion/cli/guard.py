"""A script whose decoder crashes or hangs ends in a sentence, like any other error of its input."""

from __future__ import annotations

import atexit
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from deepavfusion.utils import processes
from deepavfusion.utils.launch import signals
from deepavfusion.utils.launch.workers import end_with
from deepavfusion.utils.names import printable

CRASHES = {signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL}
HANGS = 300  # s that a part of a file may take: frames for one request, or seconds of audio


def guarded(main: Callable[[], None], inputs: tuple[str, ...], time_limit: int = HANGS) -> None:
    """Call a script's main function in a child of this process, which lives and ends as it does.

    A decoder that crashes takes its process along, as does one that hangs after `time_limit` (s); this one is left to
    say so. To be called before libraries start threads, which do not survive a fork.

    Args:
        main: of the script.
        inputs: the keys of its command that name a media file.
        time_limit: of reading a part of a file.
    """
    held_back = signal.pthread_sigmask(signal.SIG_BLOCK, signals.SIGNALS)  # until either side knows what to do
    parent, child = os.getpid(), os.fork()
    if not child:
        signals.listen(signals.INTERRUPTED)
        end_with(parent)
        processes.reading_limit = time_limit
        main()
        _leave()
    signals.take(lambda _: None)  # the child's end is this one's, too
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal: the child gets it, too
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, lambda number, _: os.kill(child, number))
    signal.pthread_sigmask(signal.SIG_SETMASK, held_back)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        sys.exit(os.waitstatus_to_exitcode(status))
    number = signal.Signals(os.WTERMSIG(status))
    if number in CRASHES or number == signal.SIGALRM:
        given = printable(" ".join(word for word in sys.argv[1:] if word.partition("=")[0] in inputs))
        what = f"The process was ended by {number.name}, most likely by the decoder, with {given}"
        if number == signal.SIGALRM:
            what = f"The decoder, or the disk, gave nothing for {time_limit} s, with {given}"
        remedy = "write the file anew, e.g. `ffmpeg -i <file> new.mp4`, and use that; or leave it out"
        print(f"{what}: {remedy}.", file=sys.stderr)
        sys.exit(2)
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def _leave() -> NoReturn:
    """End this process without the destructors of libraries: CUDA's take 1.3 s, and 120 MB of pages to run."""
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
