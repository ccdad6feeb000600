"""Which checkpoint a run resumes from."""

from __future__ import annotations

from pathlib import Path

from deepavfusion.runs.directory import CHECKPOINTS, LAST, checkpoints_of
from deepavfusion.utils.console import say_once
from deepavfusion.utils.errors import UserError
from deepavfusion.weights.file import read_file


def choose_checkpoint(run_dir: Path, asked: str | None) -> tuple[str | None, int | None]:
    """The newest readable checkpoint of an interrupted run, else the one asked for.

    A damaged one is reported and the one before it is taken.

    Args:
        run_dir: of this run.
        asked: a file, or "last", which means the run's own.

    Returns:
        Checkpoint and its step; (None, 0) where a run that has logged curves restarts, (None, None) for a new run.

    Raises:
        UserError: what was asked for does not exist, or all checkpoints are damaged.
    """
    found, damaged = _candidates(run_dir, asked), list[str]()
    for path in found:
        try:
            content = read_file(path)
        except UserError as error:
            damaged.append(str(error))
            continue
        for sentence in damaged:
            say_once(f"{sentence} Resuming from the one before it.", "yellow")
        # Weights without a run have no step; check_resumable explains that.
        return str(path), content.get("global_step") if isinstance(content, dict) else None
    if damaged:
        fix = "" if asked else f" There is no other: give another run.name, or delete {found[0].parent} to start again."
        raise UserError(damaged[0] + fix)
    return None, 0 if any(run_dir.glob("tensorboard/*")) else None


def _candidates(run_dir: Path, asked: str | None) -> list[Path]:
    """Checkpoints to resume from, in order of preference."""
    own = checkpoints_of(run_dir)
    if own or asked is None:
        return own
    if asked == "last":
        raise UserError(
            f"ckpt_path=last, but {run_dir / CHECKPOINTS / LAST} does not exist: name the run with run.name=…, or "
            "give a file."
        )
    if not Path(asked).is_file():
        raise UserError(f"ckpt_path={asked} does not exist: expected a .ckpt file written by a run of this task.")
    return [Path(asked)]
