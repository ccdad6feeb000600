"""The directory of a run, logs/<task>/runs/<name>, and logs/<task>/latest, which points to the newest."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path

import yaml

from deepavfusion.utils.errors import UserError
from deepavfusion.utils.files import write_whole

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


def choose_run_dir(
    log_dir: str | Path, task: str, name: str | None = None, resume: str | None = None, kind: str = "runs"
) -> Path:
    """The directory of this run, created if it is new.

    Args:
        log_dir: the folder of all logs.
        task: its subfolder.
        name: of the run; None: the time. An unfinished run of that name is resumed.
        resume: directory of an unfinished run to resume.
        kind: "runs", or "evals" for evaluations of a checkpoint.

    Raises:
        UserError: there is a finished run of that name, or nothing to resume.
    """
    if int(os.environ.get("LOCAL_RANK", 0)) and RUN_DIR_VARIABLE in os.environ:
        return Path(os.environ[RUN_DIR_VARIABLE])
    if resume:
        run_dir = Path(resume).resolve()
        if not checkpoints_of(run_dir):
            raise UserError(
                f"resume={resume} has no {CHECKPOINTS}/{LAST}: expected the directory of an unfinished run, such as "
                f"{Path(log_dir) / task}/runs/<name>."
            )
    else:
        processes = int(os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_NTASKS") or 1)
        if processes > 1 and name is None:
            raise UserError(
                f"{processes} processes were started by a launcher and need one common directory: add run.name=<name>."
            )
        run_dir = _named(Path(log_dir) / task / kind, name)
    if (run_dir / METRICS).exists():
        weights = f", or start from its weights with model.pretrained={run_dir / CHECKPOINTS / LAST}"
        raise UserError(
            f"run {run_dir} is finished ({METRICS} is there): choose another run.name"
            f"{weights if kind == 'runs' else ''}."
        )
    os.environ[RUN_DIR_VARIABLE] = str(run_dir)
    return run_dir


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
    """Write the composed config and its overrides to the run directory."""
    write_whole(run_dir / CONFIG, config)
    write_whole(run_dir / OVERRIDES, yaml.safe_dump(overrides))


def read_overrides(run_dir: str | Path) -> list[str]:
    """The overrides a run was started with; none if it left no record."""
    path = Path(run_dir) / OVERRIDES
    return list(yaml.safe_load(path.read_text()) or []) if path.is_file() else []


def link_latest(run_dir: Path) -> None:
    """Point logs/<task>/latest to this run."""
    latest = run_dir.parent.parent / "latest"
    new = latest.with_name(f"latest.{os.getpid()}")
    new.symlink_to(os.path.relpath(run_dir, latest.parent))
    new.replace(latest)
