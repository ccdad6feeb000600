"""A script that is guarded ends as it would alone, except where its decoder crashes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

SCRIPT = """
import os, signal, sys, time
from deepavfusion.cli.guard import guarded
def main():
    {}
guarded(main, ("video",), 1)
"""


def started(body: str, **options: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SCRIPT.format(body), "task=a", "video=b\x1b.mp4"]
    return subprocess.Popen(command, cwd="src", stdout=-1, stderr=-1, text=True, **options)  # type: ignore[call-overload]


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGBUS"])
def test_a_crash_is_a_sentence(name: str) -> None:
    process = started(f"os.kill(os.getpid(), signal.{name})")
    _, err = process.communicate(timeout=30)
    assert process.returncode == 2
    assert f"ended by {name}, most likely by the decoder, with video=b\\x1b.mp4: write the file" in err


def test_a_decoder_that_hangs_is_a_sentence_and_a_slow_network_is_none() -> None:
    """Also where calls of the reader nest."""
    lines = ["from deepavfusion.media.files import failures", "time.sleep(1.5)", "print('computed', flush=True)"]
    lines += ["with failures('a'):", "    with failures('a'): pass", "    time.sleep(30)"]
    out, err = (process := started("\n    ".join(lines))).communicate(timeout=30)
    assert (out, process.returncode) == ("computed\n", 2)
    assert "The decoder, or the disk, gave nothing for 1 s, with video=b\\x1b.mp4: write the file anew" in err


@pytest.mark.parametrize(("body", "status"), [("print(1)", 0), ("sys.exit(2)", 2), ("raise ValueError('a')", 1)])
def test_other_ends_are_those_of_the_script(body: str, status: int) -> None:
    process = started(body)
    out, err = process.communicate(timeout=30)
    assert process.returncode == status
    assert (out == "1\n") == (status == 0)
    assert ("ValueError: a" in err) == (status == 1)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 130), (signal.SIGUSR1, 130), (signal.SIGKILL, -9)])
def test_a_signal_ends_both(number: signal.Signals, status: int) -> None:
    process = started("print(os.getpid(), flush=True); time.sleep(60)")
    assert process.stdout is not None
    child = int(process.stdout.readline())
    process.send_signal(number)
    assert process.wait(timeout=30) == status
    for _ in range(100):
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return
        with open(f"/proc/{child}/stat") as file:
            if file.read().rpartition(")")[2].split()[0] == "Z":
                return
        time.sleep(0.05)
    raise AssertionError("the child still runs")
