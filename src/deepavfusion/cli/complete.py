"""Complete the overrides of a command before Hydra composes, so that `--cfg job` prints what runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deepavfusion.config.compose import choices, compose
from deepavfusion.config.overrides import OF_ONE_RUN, merged, quoted, split_override, value_of, with_scale
from deepavfusion.config.records import accepted
from deepavfusion.runs.directory import CHECKPOINTS, LAST, OVERRIDES, read_overrides
from deepavfusion.runs.signing import is_signed
from deepavfusion.utils.console import rank_zero
from deepavfusion.utils.errors import UserError
from deepavfusion.weights.hub import address_of, missing, pinned

SOURCES = ("ckpt_path", "model.pretrained", "model.image_weights", "model.audio_weights")


def recorded(script: str, given: list[str]) -> list[str] | None:
    """The overrides that a command continues, as far as they are known without opening a checkpoint.

    None: its checkpoint records them.
    """
    if script == "train" and (resume := value_of(given, "resume")):
        run_dir, name = Path(str(resume)), value_of(given, "run.name")
        # The other processes of a run are given what is completed here, with the name of a directory that was moved.
        if name is not None and name != run_dir.resolve().name and rank_zero():
            raise UserError(
                f"resume={resume} continues the run in its directory, and run.name={name} names another: omit "
                f"run.name, or continue in a new one with ckpt_path={run_dir / CHECKPOINTS / LAST}."
            )
        return _of_run_dir(run_dir, given)
    if script == "eval" and (path := value_of(given, "ckpt_path")):
        run_dir = Path(str(path)).resolve().parent.parent
        try:
            return _of_run_dir(run_dir, given) if (run_dir / OVERRIDES).is_file() else None
        except UserError:  # the checkpoint has its own record
            return None
    return []


def _of_run_dir(run_dir: Path, given: list[str]) -> list[str]:
    found, own = read_overrides(run_dir)
    return accepted(found, given, f"{run_dir / OVERRIDES}", own, name=run_dir.resolve().name)


def training_overrides(given: list[str]) -> tuple[list[str], str | None]:
    """Those of src/train.py: with `resume`, on top of the overrides of the unfinished run.

    Returns:
        All overrides, and why the demo was chosen, if it was. Applied to its own result, as the processes of a
        distributed run do, it changes nothing.
    """
    return with_scale("train", pinned_sources(merged(recorded("train", given) or [], given)))


def pinned_sources(overrides: list[str]) -> list[str]:
    """The overrides in which addresses on the Hub name the commit that they are at, for this run and its records."""
    found = []
    for override in overrides:
        sign, key, _ = split_override(override)
        value = value_of([override], key) if key in SOURCES and sign != "~" else None
        if isinstance(value, str) and (address := address_of(value)) and not address.pinned:
            override = f"{sign}{key}={quoted(str(pinned(address)))}"
        found.append(override)
    return found


def evaluation_overrides(given: list[str]) -> tuple[list[str], str | None]:
    """Those of src/eval.py, on top of the overrides that the checkpoint records; see `training_overrides`."""
    path = value_of(given, "ckpt_path")
    if path is None:
        raise UserError(
            "ckpt_path is missing: expected the checkpoint to evaluate, e.g. "
            "ckpt_path=logs/classify/latest/checkpoints/last.ckpt, or best.ckpt under logs/segment."
        )
    if wrong := missing(str(path)):
        raise UserError(f"checkpoint {path} {wrong}: expected one of train.py, <run>/checkpoints/last.ckpt.")
    given = pinned_sources(given)
    path = value_of(given, "ckpt_path")
    from deepavfusion.weights.weights import read_record  # takes torch, without which mistakes are reported sooner

    record = read_record(str(path))
    overrides: Any = record.get("overrides", [])
    own = isinstance(overrides, list) and is_signed(record.get("made_here"), overrides)
    if isinstance(overrides, list):
        overrides = [each for each in overrides if not str(each).startswith(OF_ONE_RUN)]
    found = accepted(overrides, given, f"checkpoint {path}", own)
    if not found and value_of(given, "experiment") is None:
        raise UserError(f"{path} does not record its run: add experiment=<name>, as for that run.")
    return with_scale("eval", merged(found, _network_of(found, given, record.get("task")), given))


def _network_of(found: list[str], given: list[str], task: Any) -> list[str]:
    """The kind of model that a checkpoint was trained as, where another experiment of its task is given with it.

    So one experiment evaluates what was fine-tuned and what was probed.
    """
    asked = value_of(given, "experiment")
    if not found or asked not in choices("experiment") or value_of(found, "experiment") == asked:
        return []
    if value_of(given, "model") is not None or compose("train", [f"experiment={asked}"]).task != task:
        return []
    return [f"model={compose('train', found, return_hydra_config=True).hydra.runtime.choices.model}"]
