"""Complete the overrides of a command before Hydra composes, so that `--cfg job` prints what runs."""

from __future__ import annotations

from deepavfusion.config.overrides import check_choices, merged, recorded_overrides, renamed, value_of, with_scale
from deepavfusion.runs.directory import read_overrides
from deepavfusion.utils.errors import UserError
from deepavfusion.weights.weights import read_record


def training_overrides(given: list[str]) -> tuple[list[str], str | None]:
    """Those of src/train.py: with `resume`, on top of the overrides of the unfinished run.

    Returns:
        All overrides, and why the demo was chosen, if it was. Applied to its own result, as the processes of a
        distributed run do, it changes nothing.
    """
    check_choices(given)
    resume = value_of(given, "resume")
    return with_scale("train", merged(renamed(read_overrides(str(resume))), given) if resume else merged(given))


def evaluation_overrides(given: list[str]) -> tuple[list[str], str | None]:
    """Those of src/eval.py, on top of the overrides that the checkpoint records; see `training_overrides`."""
    check_choices(given)
    path = value_of(given, "ckpt_path")
    if path is None:
        raise UserError(
            "ckpt_path is missing: expected the checkpoint to evaluate, e.g. "
            "ckpt_path=logs/classify/latest/checkpoints/last.ckpt, or best.ckpt under logs/segment."
        )
    recorded = recorded_overrides(read_record(str(path)), given, str(path))
    if not recorded and value_of(given, "experiment") is None:
        raise UserError(f"{path} does not record its run: add experiment=<name>, as for that run.")
    return with_scale("eval", merged(recorded, given))
