"""The runs of one chain, in one process."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from deepavfusion.cli.complete import training_overrides
from deepavfusion.cli.entry import one_sentence
from deepavfusion.config.check import check_ranges
from deepavfusion.config.compose import compose
from deepavfusion.runs.directory import (
    CHECKPOINTS,
    METRICS,
    OVERRIDES,
    STEPS_PATTERN,
    FinishedError,
    saved_after,
    several_runs,
)
from deepavfusion.runs.lock import InUseError, is_held
from deepavfusion.runs.signals import StopRequested
from deepavfusion.study.definition import Chain, Run
from deepavfusion.study.starts import place
from deepavfusion.utils.console import say
from deepavfusion.utils.errors import UserError, explained, limited
from deepavfusion.utils.files import write_whole
from deepavfusion.utils.launch.launcher import began_at
from deepavfusion.utils.program import calling
from deepavfusion.utils.reading import RECORD, read_json

COST = "cost.json"  # in the directory of a run
LOOK_EVERY = 2.0  # s
ENDS_WITHIN = 60.0  # s from the metrics of a run to its costs
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
                if lacking := next((each for each in run.starts if not each.last.exists()), None):
                    note_failure(run, failures, _removed(lacking))
                    break
                if is_held(run.directory):  # by another chain, which shares it
                    time.sleep(LOOK_EVERY)
                    continue
                try:
                    for directory, share in run.midway:
                        place(directory, share)
                    _train(run)
                    _check_metrics(run)
                except InUseError:  # since just now
                    time.sleep(LOOK_EVERY)
                except FinishedError:  # by another chain, just now
                    break
                except (StopRequested, KeyboardInterrupt):
                    raise
                except UserError as error:
                    note_failure(run, failures, str(error))
                except Exception as error:  # the other runs go on
                    note_failure(run, failures, _sentence(error, run))


def _check_metrics(run: Run) -> None:
    """Say at once what the report is going to lack."""
    found: Any = read_json(run.directory / METRICS, RECORD, "the metrics of a run")
    if lacking := [name for name in run.stage.metrics if name not in found]:
        say(f"{run.name} has no {', '.join(lacking)}, which study.stages.{run.stage.name}.metrics names", "red")


def _sentence(error: Exception, run: Run) -> str:
    """What went wrong; an error that no one foresaw is printed with its traceback, too."""
    if isinstance(error, HydraException | OmegaConfBaseException):
        return one_sentence(error)
    said = explained(error, {}, [str(run.directory)]) if isinstance(error, OSError) else None
    if said := said or limited(error):
        return said
    traceback.print_exc()
    words = " ".join(f"{type(error).__name__}: {error}".split())
    return f"an error of the program: {words[:300]}"


def _train(run: Run) -> None:
    from deepavfusion.runs.build import ensure_demo_data  # takes seconds, as the next
    from deepavfusion.runs.training import train

    overrides, _ = training_overrides(list(run.overrides))
    words = sys.argv
    sys.argv = [*calling("train"), *overrides]  # what other processes of this run are started with
    try:
        cfg = compose("train", overrides)
        check_ranges(cfg)
        ensure_demo_data(cfg)  # whichever run comes first makes them: no cost of its cell
        with _measured(run.directory):
            train(cfg, overrides)
    finally:
        sys.argv = words


# ---- failures


def failure_of(run: Run, failures: Path) -> str | None:
    """Why a run failed, in a sentence; None: it has not."""
    path = failures / f"{run.name}.txt"
    try:
        return " ".join(path.read_text(encoding="utf-8", errors="replace").split()) or f"{path} does not say why"
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"{path} cannot be read ({error.strerror})"


def forget(chain: Chain, failures: Path) -> None:
    """Let the runs of a chain be tried again that failed before this process began."""
    began = began_at(os.getpid()) or time.time()
    for run in chain.runs:
        path = failures / f"{run.name}.txt"
        with suppress(OSError):
            if path.stat().st_mtime < began:
                path.unlink()


def note_failure(run: Run, failures: Path, sentence: str) -> None:
    say(f"{run.name}: {sentence}", "red")
    failures.mkdir(parents=True, exist_ok=True)
    write_whole(failures / f"{run.name}.txt", f"{sentence}\n")


# ---- checkpoints


def remove_checkpoints(runs: Sequence[Run]) -> None:
    """Remove those of runs that have ended, but for what unfinished ones of them start from."""
    needed = {start.name for run in runs if not run.finished for start in run.starts}
    for run in runs:
        if run.name not in needed and _has_ended(run.directory):
            shutil.rmtree(run.directory / CHECKPOINTS, ignore_errors=True)


def _has_ended(directory: Path) -> bool:
    """Whether a run is finished, and its costs are written, which are read from its checkpoints, or never will be."""
    try:
        finished = (directory / METRICS).stat().st_mtime_ns
    except OSError:
        return False
    if is_held(directory):
        return False
    with suppress(OSError):
        if (directory / COST).stat().st_mtime_ns >= finished:
            return True
    return time.time() - finished / 1e9 > ENDS_WITHIN


def _removed(run: Run) -> str:
    return (
        f"it starts from {run.name}, whose checkpoints are no longer there (study.keep_checkpoints=none): remove "
        f"{run.directory} to train it again with the same command"
    )


# ---- costs


@contextmanager
def _measured(directory: Path) -> Iterator[None]:
    """Write seconds, peak memory and optimizer steps of the block to the directory of a run; those of all its parts, if
    it resumes."""
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
            } | _steps(directory)
            write_whole(directory / COST, json.dumps(found) + "\n")


def costs_of(directory: Path) -> dict[str, float]:
    """What `work` measured of a run, as far as that is known."""
    try:
        found: Any = read_json(directory / COST, RECORD, "what a run cost")
    except UserError:
        found = {}
    known = found.items() if isinstance(found, dict) else ()
    right = {key: float(value) for key, value in known if type(value) in (int, float) and 0 <= value < math.inf}
    return {**right, **_steps(directory)}


def _steps(directory: Path) -> dict[str, float]:
    """Optimizer steps of a run, while its checkpoints are there."""
    steps = max(map(saved_after, (directory / CHECKPOINTS).glob(STEPS_PATTERN)), default=0)
    return {"steps": float(steps)} if steps else {}


def _peak_gb() -> float:
    """Highest use of memory by this process, GB; 0 where the system does not say."""
    try:
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        return 0.0
    return int(line.split()[1]) * 1024 / 1e9
