"""What a run starts from: `{pretrain}` in its overrides is the last checkpoint of the stage of that name, of the same
cell and seed, and `{pretrain@0.5}` the one nearest to half of its steps.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from deepavfusion.config.overrides import quoted, split_override
from deepavfusion.runs.directory import CHECKPOINTS, LAST, STEPS_PATTERN, saved_after
from deepavfusion.utils.errors import UserError
from deepavfusion.utils.files import link, whole

PLACEHOLDER = re.compile(r"\{(\w+)(?:@([^{}]*))?\}")
FARTHEST = 0.1  # of all steps: a checkpoint that is farther from a share than this is not taken for it


def named(texts: Iterable[str]) -> list[tuple[str, float | None]]:
    """The stages that placeholders name, and the shares of their steps; None: the last checkpoint.

    Raises:
        UserError: what is behind @ is no share.
    """
    return [(found[1], _share(found)) for text in texts for found in PLACEHOLDER.finditer(text)]


def _share(found: re.Match[str]) -> float | None:
    if found[2] is None:
        return None
    if not re.fullmatch(r"0?\.\d*[1-9]\d*", found[2]):
        raise UserError(
            f"{found[0]} is no checkpoint of a stage, expected {{{found[1]}}}, its last one, or a share of its steps "
            f"between 0 and 1, such as {{{found[1]}@0.5}}."
        )
    return float(found[2])


def checkpoint(directory: Path, share: float | None = None) -> Path:
    """Of a run; where there is a share, a link that `place` makes once it is trained."""
    return directory / CHECKPOINTS / (LAST if share is None else f"at_{share:g}.ckpt")


def filled(override: str, directories: Mapping[str, Path]) -> str:
    """An override with the checkpoints of runs in place of the names of their stages.

    Args:
        directories: stage -> directory of its run.
    """
    if not PLACEHOLDER.search(override):
        return override
    sign, key, value = split_override(override)
    value = PLACEHOLDER.sub(lambda found: str(checkpoint(directories[found[1]], _share(found))), value)
    return f"{sign}{key}={quoted(value)}"


def place(directory: Path, share: float) -> None:
    """Point `checkpoint` to that of a finished run which is nearest to a share of its steps.

    Raises:
        UserError: there is none near it.
    """
    steps = {path: saved_after(path) for path in sorted((directory / CHECKPOINTS).glob(STEPS_PATTERN))}
    total = max(steps.values(), default=0)
    nearest = min(steps, key=lambda path: abs(steps[path] - share * total), default=None)
    if nearest is None or abs(steps[nearest] - share * total) > FARTHEST * total:
        there = f"only those after {', '.join(map(str, steps.values()))}" if steps else "none at all"
        raise UserError(
            f"{directory.name} has no checkpoint near {share:.0%} of its steps, {there}: train it for more epochs, set "
            f"callbacks.checkpoints.every_n_train_steps in its stage, or remove {directory} to train it anew."
        )
    path = checkpoint(directory, share)
    if path.is_symlink() and path.readlink() == Path(nearest.name):
        return
    if not link(path, nearest.name):
        with whole(path) as partial:
            shutil.copyfile(nearest, partial)
