"""The directory of a run, logs/<task>/runs/<name>, and logs/<task>/latest, which points to the newest."""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from pathlib import Path

import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from deepavfusion.runs.lock import locked
from deepavfusion.runs.signing import is_signed, signed
from deepavfusion.utils.console import say
from deepavfusion.utils.errors import SaidByFirst, UserError
from deepavfusion.utils.files import link, write_whole
from deepavfusion.utils.launch.launcher import VARIABLES, Launch, began_at, launch, launcher_process
from deepavfusion.utils.launch.signals import finish, on_leaving
from deepavfusion.utils.reading import plain_yaml, read_text

RUN_DIR_VARIABLE = "DEEPAVFUSION_RUN_DIR"  # environment variable: tells the other processes on this machine
CHECKPOINTS = "checkpoints"
LAST = "last.ckpt"  # links to the newest complete checkpoint of a step
STEPS = "step_{:08d}.ckpt"
STEPS_PATTERN = "step_*.ckpt"
BEST = "best.ckpt"  # best weights by validation, for tasks that keep them
OVERRIDES = "overrides.yaml"
CONFIG = "config.yaml"
METRICS = "metrics.json"
PROVENANCE = "provenance.json"
BEFORE_RECORD = re.compile(rf"\.running.*|{OVERRIDES}\.partial|tensorboard")  # what a start writes before its record
MADE_HERE = "# made here: "  # begins the last line of overrides.yaml
MOST_BYTES = 2**18  # of overrides.yaml


class FinishedError(UserError):
    """A run that has ended."""

    def __init__(self, run_dir: Path) -> None:
        last = run_dir / CHECKPOINTS / LAST  # an evaluation has none
        weights = f", or start from its weights with model.pretrained={last}" if last.exists() else ""
        super().__init__(f"run {run_dir} is finished ({METRICS} is there): choose another run.name{weights}.")
        self.run_dir = run_dir


def saved_after(path: Path) -> int:
    """Optimizer steps that a checkpoint of `STEPS` was saved after; 0: of another name."""
    digits = path.stem.rpartition("_")[2]
    return int(digits) if digits.isdecimal() else 0


def choose_run_dir(
    log_dir: str | Path, task: str, name: str | None = None, resume: str | None = None, kind: str = "runs"
) -> Path:
    """The directory of this run, created if it is new.

    Args:
        log_dir: the folder of all logs.
        task: its subfolder.
        name: of the run; None: the time, or what processes of a launcher have in common. An unfinished run of that
            name is resumed.
        resume: directory of an unfinished run to resume.
        kind: "runs", or "evals" for evaluations of a checkpoint.

    Raises:
        UserError: there is a finished run of that name, or nothing to resume.
    """
    found = launch()
    if found.local_rank and found.by not in VARIABLES and RUN_DIR_VARIABLE in os.environ:
        return Path(os.environ[RUN_DIR_VARIABLE])
    if resume:
        run_dir = Path(resume).resolve()
        if not checkpoints_of(run_dir):
            raise UserError(
                f"resume={resume} has no {CHECKPOINTS}/{LAST}: expected the directory of an unfinished run, such as "
                f"{Path(log_dir) / task}/runs/<name>."
            )
    else:
        if name is None and found.processes > 1:
            name = _name_of(found) + _number_of_job()
        run_dir = _named(Path(log_dir) / task / kind, name)
        if found.rank == 0:
            on_leaving(lambda: remove_if_empty(run_dir))
    _check_others(run_dir)
    check_unfinished(run_dir)
    os.environ[RUN_DIR_VARIABLE] = str(run_dir)
    return run_dir


@contextmanager
def held(run_dir: Path) -> Iterator[None]:
    """Hold the lock of a run directory; the directory is removed again if the run is refused before it wrote anything.

    Raises:
        UserError: the run is finished, or another start of it holds the lock.
    """
    try:
        with locked(run_dir):
            if not others_follow():
                on_leaving(lambda: finish(0) if (run_dir / METRICS).exists() else None)
            check_unfinished(run_dir)
            yield
    except UserError:
        remove_if_empty(run_dir)
        raise


def check_unfinished(run_dir: Path) -> None:
    """Raise a `FinishedError` if the run has ended."""
    if (run_dir / METRICS).exists():
        raise FinishedError(run_dir)


def _check_others(run_dir: Path) -> None:
    """Raise a `UserError` if a run in this directory would write over what no run of this user has written.

    That is a folder of something else, or a run directory of others with a link that leads out of it.
    """
    place = run_dir.resolve()
    found, ours = read_overrides(run_dir)
    if ours:
        return
    strangers = [name for name in sorted(os.listdir(run_dir)) if not BEFORE_RECORD.fullmatch(name)]
    if strangers and not ((run_dir / OVERRIDES).exists() and isinstance(found, list)) and not checkpoints_of(run_dir):
        raise UserError(
            f"{run_dir} has a {strangers[0]}, but no {OVERRIDES} of a run, so it is not the directory of one, and is "
            "left as it is: choose another run.name."
        )
    for folder, folders, files in os.walk(place):
        for path in (Path(folder, name) for name in (*folders, *files)):
            if path.is_symlink() and not path.resolve().is_relative_to(place):
                raise UserError(
                    f"{path} leads to {path.resolve()}, outside of this run directory, which no run of yours wrote "
                    "here; nothing was run: replace the link by what it leads to."
                )


def _name_of(found: Launch) -> str:
    """What the processes of a launcher have in common without having met: the SLURM job and step, which stay the same
    when it is requeued; on one machine, when their launcher was started.

    Raises:
        UserError: nothing.
    """
    if found.by == "srun" and (job := os.environ.get("SLURM_ARRAY_JOB_ID", os.environ.get("SLURM_JOB_ID"))):
        task, step = os.environ.get("SLURM_ARRAY_TASK_ID"), os.environ.get("SLURM_STEP_ID", "0")
        return f"slurm_{job}" + (f"_{task}" if task else "") + (f".{step}" if step != "0" else "")
    began = began_at(pid) if (pid := launcher_process(found)) and found.by in VARIABLES else None
    if found.nodes == 1 and began is not None:
        return f"{datetime.fromtimestamp(began):%Y-%m-%d_%H-%M-%S}_{pid}"
    raise SaidByFirst(
        f"{found.processes} processes were started by {found.by if found.by in VARIABLES else 'a launcher'} and need "
        "one common directory: add run.name=<name>."
    )


def in_sweep() -> bool:
    """Whether this is a job of several (-m)."""
    return HydraConfig.initialized() and HydraConfig.get().mode is RunMode.MULTIRUN


_more_follow: ContextVar[bool] = ContextVar("more_follow", default=False)


@contextmanager
def several_runs() -> Iterator[None]:
    """Runs in the block are not the end of their process, as those of a sweep are not."""
    token = _more_follow.set(True)
    try:
        yield
    finally:
        _more_follow.reset(token)


def others_follow() -> bool:
    """Whether this process may have another run after this one."""
    return in_sweep() or _more_follow.get()


def _number_of_job() -> str:
    """What tells the runs of a sweep from each other, which are started by the same launcher."""
    return f"_{HydraConfig.get().job.num}" if in_sweep() else ""


def _named(runs: Path, name: str | None) -> Path:
    if name is not None:
        (runs / name).mkdir(parents=True, exist_ok=True)
        return runs / name
    time = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    for suffix in ("", *(f"_{i}" for i in range(2, 1000))):
        try:
            (runs / (time + suffix)).mkdir(parents=True)
        except FileExistsError:
            continue
        return runs / (time + suffix)
    raise UserError(f"{runs} has a thousand runs of {time}: set run.name.")


def checkpoints_of(run_dir: Path) -> list[Path]:
    """The checkpoints a run can resume from, in order of preference: the one `last` points to, then earlier ones."""
    folder = run_dir / CHECKPOINTS
    steps = sorted(folder.glob(STEPS_PATTERN), reverse=True)
    last = folder / LAST
    if not last.is_symlink():  # not created by us, or missing
        return [*([last] if last.is_file() else []), *steps]
    target = folder / os.readlink(last)
    # A newer one was written, but perhaps not everything that belongs to it.
    order = [target, *(step for step in steps if step < target), *(step for step in steps if step > target)]
    return [path for path in order if path.is_file()]


def remove_if_empty(run_dir: Path) -> None:
    """Remove the directory of a run that never started."""
    if run_dir.is_dir() and not any(run_dir.iterdir()):
        run_dir.rmdir()


def write_record(run_dir: Path, config: str, overrides: list[str]) -> None:
    """Write the composed config and its overrides to the run directory, with a code that says they are ours."""
    codes = " ".join(filter(None, (signed(overrides, place) for place in _places(run_dir))))
    write_whole(run_dir / OVERRIDES, yaml.safe_dump(overrides) + (f"{MADE_HERE}{codes}\n" if codes else ""))
    write_whole(run_dir / CONFIG, config)


def read_overrides(run_dir: str | Path) -> tuple[object, bool]:
    """The overrides a run was started with, and whether this user's run wrote them in this place.

    They are not checked; an empty list if the run left no record.

    Raises:
        UserError: the file is larger than any record, or cannot be read.
    """
    path = Path(run_dir) / OVERRIDES
    if not path.exists():
        return [], False
    text = read_text(path, MOST_BYTES, "the overrides of a run, as train.py writes them")
    try:
        found = plain_yaml(text) or []
    except ValueError as error:
        raise UserError(
            f"{path} cannot be read as YAML ({textwrap.shorten(str(error), 100)}): expected a list of overrides, as "
            "train.py writes it; give them with the command and remove the file."
        ) from None
    codes = text.rpartition(MADE_HERE)[2].split()[:2] if MADE_HERE in text else []
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        return found, False
    return found, any(is_signed(code, found, place) for code in codes for place in _places(Path(run_dir)))


def _places(run_dir: Path) -> tuple[str, str]:
    """What tells a directory from a copy of it: its path, and its number on the disk, which it keeps when moved."""
    return str(run_dir.resolve()), f"inode {run_dir.stat().st_ino}"


def link_latest(run_dir: Path) -> None:
    """Point logs/<task>/latest to this run."""
    latest = run_dir.parent.parent / "latest"
    if os.path.lexists(latest) and not latest.is_symlink():
        say(f"{latest} is no link, and is left as it is: name this run by its path, {run_dir}", "yellow")
    elif not link(latest, os.path.relpath(run_dir, latest.parent)):
        say(f"{latest} cannot be made, since its disk has no links: name this run by its path, {run_dir}", "yellow")
