"""The runs of one chain, in one process."""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from deepavfusion.cli.complete import training_overrides
from deepavfusion.config.check import check_ranges
from deepavfusion.config.compose import compose
from deepavfusion.runs.directory import OVERRIDES, FinishedError, several_runs
from deepavfusion.runs.lock import InUseError
from deepavfusion.runs.signals import StopRequested
from deepavfusion.study.plan import Chain, Run
from deepavfusion.study.starts import place
from deepavfusion.utils.console import say
from deepavfusion.utils.errors import UserError
from deepavfusion.utils.files import write_whole
from deepavfusion.utils.program import calling

COST = "cost.json"  # in the directory of a run
LOOK_EVERY = 2.0  # s
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")  # of Linux
PEAK = "5"  # forget the highest use of memory so far: proc(5)


def work(chain: Chain, failures: Path) -> None:
    """Train what is left of a chain. A run that fails is noted, and those that do not start from it go on.

    Args:
        failures: folder of the notes, see `failure_of`.

    Raises:
        StopRequested: this process was asked to stop; the same chain continues.
    """
    with several_runs():
        for run in chain.runs:
            while not run.finished and failure_of(run, failures) is None:
                if lacking := next((each for each in run.starts if not each.finished), None):
                    note_failure(run, failures, f"not run, since {lacking.name}, which it starts from, failed")
                    break
                try:
                    for directory, share in run.midway:
                        place(directory, share)
                    with _measured(run.directory):
                        _train(run)
                except InUseError:  # another chain, which shares it
                    time.sleep(LOOK_EVERY)
                except FinishedError:  # by another chain, just now
                    break
                except (StopRequested, KeyboardInterrupt):
                    raise
                except UserError as error:
                    note_failure(run, failures, str(error))
                except Exception as error:  # the other runs go on
                    traceback.print_exc()
                    words = " ".join(f"{type(error).__name__}: {error}".split())
                    note_failure(run, failures, f"an error of the program: {words[:300]}")


def _train(run: Run) -> None:
    from deepavfusion.runs.training import train  # takes seconds

    overrides, _ = training_overrides(list(run.overrides))
    words = sys.argv
    sys.argv = [*calling("train"), *overrides]  # what other processes of this run are started with
    try:
        cfg = compose("train", overrides)
        check_ranges(cfg)
        train(cfg, overrides)
    finally:
        sys.argv = words


# ---- failures


def failure_of(run: Run, failures: Path) -> str | None:
    """Why a run failed, in a sentence; None: it has not."""
    try:
        return (failures / f"{run.name}.txt").read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None


def forget(chain: Chain, failures: Path) -> None:
    """Let the runs of a chain that failed be tried again."""
    for run in chain.runs:
        (failures / f"{run.name}.txt").unlink(missing_ok=True)


def note_failure(run: Run, failures: Path, sentence: str) -> None:
    say(f"{run.name}: {sentence}", "red")
    failures.mkdir(parents=True, exist_ok=True)
    write_whole(failures / f"{run.name}.txt", f"{sentence}\n")


# ---- costs


@contextmanager
def _measured(directory: Path) -> Iterator[None]:
    """Write seconds and peak memory of the block to the directory of a run; those of all its parts, if it resumes."""
    import torch

    before = costs_of(directory)
    begin, gpu = time.monotonic(), torch.cuda.is_available()
    with suppress(OSError):
        CLEAR.write_text(PEAK)
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    known = True
    try:
        yield
    except (InUseError, FinishedError):  # the costs are another chain's
        known = False
        raise
    finally:
        seconds = time.monotonic() - begin
        memory = torch.cuda.max_memory_allocated() / 1e9 if gpu else _peak_gb()
        if known and (directory / OVERRIDES).exists():  # without, it is no run's yet
            found = {
                "seconds": round(before.get("seconds", 0.0) + seconds, 2),
                "peak_memory_gb": round(max(before.get("peak_memory_gb", 0.0), memory), 3),
                "parts": int(before.get("parts", 0)) + 1,
            }
            write_whole(directory / COST, json.dumps(found) + "\n")


def costs_of(directory: Path) -> dict[str, float]:
    """What `work` measured of a run; empty if that is not known."""
    try:
        found: Any = json.loads((directory / COST).read_text())
    except (OSError, ValueError):
        return {}
    return {key: float(value) for key, value in found.items() if isinstance(value, int | float)}


def _peak_gb() -> float:
    """Highest use of memory by this process, GB; 0 where the system does not say."""
    try:
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        return 0.0
    return int(line.split()[1]) * 1024 / 1e9
