"""Which values a run may change when it continues from a checkpoint: one table, and what differs.

A value is applied from the first step on, or refused. Keys not named here are as the longest part of them that is.
"""

from __future__ import annotations

import reprlib
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from deepavfusion.config.lookup import ABSENT, node_at
from deepavfusion.config.overrides import split_override
from deepavfusion.config.renamed import RENAMED, renamed_key
from deepavfusion.utils.errors import UserError

# Parts that keep what a run leaves, and their keys that say where. If one ended halfway, what it left until then would
# pass for that of the whole run.
PARTS = {
    "callbacks.checkpoints": ("dirpath",),
    "callbacks.best": ("dirpath",),
    "callbacks.data_report": ("path",),
    **dict.fromkeys(("callbacks.novelty", "callbacks.coverage"), ()),
    **dict.fromkeys(("callbacks.run_summary", "callbacks.step_guard"), ("run_dir",)),
    "logger.tensorboard": ("save_dir", "name", "version"),
    "logger.csv": ("run_dir",),
    "logger.wandb": ("run_dir", "project", "entity"),
    "logger.mlflow": ("run_dir", "tracking_uri", "experiment"),
}
REFUSED = {  # key -> why
    "task": "a checkpoint is of one task",
    "seed": "the order of clips, the splits and the masks follow from it",
    "validate_before": "only a run that starts is validated before",
    "data": "it decides what the network has been trained on, and how that is read",
    "model": "it decides what the network is and what it was trained for",
    "trainer._target_": "the checkpoint holds its state",
    **{f"{part}.{key}": "it decides what a run leaves" for part, keys in PARTS.items() for key in ("_target_", *keys)},
    "trainer.enable_checkpointing": "it decides whether a run leaves checkpoints",
    "trainer.fast_dev_run": "it trains a few batches and keeps nothing",
    "trainer.num_sanity_val_steps": "only a run that starts has such steps",
    **dict.fromkeys(
        ("callbacks.dashboard.cards", "callbacks.dashboard.metrics"), "TensorBoard takes it from the start of a run"
    ),
    **{f"logger.{name}.purge_step": "the run sets it itself" for name in ("tensorboard", "csv", "wandb", "mlflow")},
}
APPLIED = (
    # where things are, and what happens beside the training
    *("run", "resume", "ckpt_path", "paths", "callbacks", "logger", "test"),
    *("data.root", "data.verify_report", "data.cache_dir", "data.cache_size", "data.storage"),
    *("data.num_workers", "data.hang_seconds"),
    *("data.eval_split", "data.dense_windows", "data.wrong_audio", "data.gallery_clips", "data.min_coverage"),
    "data.index.retrieval_list",
    *("model.spread", "model.metric_workers"),
    # how it is computed
    *("trainer", "matmul_precision", "compile", "model.net.checkpoint_layers"),
    # the recipe of the steps to come
    *("model.blr", "model.lr", "model.weight_decay", "model.betas", "model.momentum", "model.trust_coefficient"),
    *("model.warmup_epochs", "model.layer_decay", "model.branch_rise"),
    *("model.mixup", "model.label_smoothing", "model.per_head", "model.drop_unseen"),
    *("model.weighted_loss", "model.train_images"),
    *("model.image_mask_ratio", "model.audio_mask_ratio", "model.solo_share", "data.max_gain_db"),
    *("model.net.drop_path", "model.net.image.drop_path", "model.net.audio.drop_path"),
)
BETWEEN_EPOCHS = (  # applied from the next epoch on: they decide what its batches are
    *("data.batch_size", "model.batch_size", "data.repeats", "data.class_balanced", "data.exclude"),
    *("trainer.accumulate_grad_batches", "trainer.limit_train_batches"),
)
ANYWHERE = {"experiment", "scale", "debug"}  # config groups that set keys in every section
UNRECORDED = ("run", "resume", "ckpt_path", "paths")  # they say nothing about the training
FROM_DATA = ("model.num_classes", "model.multi_label")  # null: as the data is
FILES = ("model.pretrained", "model.image_weights", "model.audio_weights")


def verdict(key: str, whole: bool = False) -> tuple[str, str]:
    """ "applied", "between epochs" or "refused", and the entry of the table that says so.

    Args:
        key: of the config.
        whole: whether a section is added or removed, which is refused where a key of it is.
    """
    if below := [entry for entry in REFUSED if whole and entry.startswith(f"{key}.")]:
        return "refused", below[0]
    lists = {"applied": APPLIED, "between epochs": BETWEEN_EPOCHS, "refused": REFUSED}
    parts = key.split(".")
    for count in range(len(parts), 0, -1):
        entry = ".".join(parts[:count])
        found = [name for name, entries in lists.items() if entry in entries]
        if found:
            (name,) = found
            return name, entry
    return "applied", key  # of the user's own, which nothing else reads


def recorded_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint records of a resolved config, to be compared when it is resumed."""
    return {name: value for name, value in config.items() if name not in UNRECORDED}


def changes(
    before: Mapping[str, Any], now: Mapping[str, Any], given: Sequence[str], recorded: Sequence[str] = ()
) -> dict[str, tuple[Any, Any]]:
    """Key -> its values then and now, where they differ.

    A key or section that one of them lacks counts only where the overrides differ in it, too: other versions of the
    code have other keys.

    Args:
        before: the config of a checkpoint, which may come from anyone: its values are compared and shown.
        now: a resolved config.
        given: its overrides.
        recorded: those of the checkpoint, under today's keys.
    """
    if not before:
        return {}
    typed = {split_override(override)[1].replace("/", ".") for override in {*given} ^ {*recorded}}
    place, found = node_at(now, "paths.run_dir"), {}
    for key, former, value in _pairs(before, now):
        one_sided = former is ABSENT or value is ABSENT or isinstance(value, Mapping)
        if key.split(".")[0] in UNRECORDED or (one_sided and not _explained(key, typed)):
            continue
        if isinstance(place, str) and isinstance(value, str) and value.startswith(place) and key not in typed:
            continue  # a run that was moved, or continues in another directory
        if not _same(key, former, value):
            found[key] = former, value
    return dict(sorted(found.items(), key=lambda item: item[0] not in typed))  # causes before what follows from them


def _explained(key: str, typed: set[str]) -> bool:
    """Whether a key may be there, or not, because of these: itself, what it is part of, what is part of it."""
    related = (f"{key}.".startswith(f"{name}.") or f"{name}.".startswith(f"{key}.") for name in typed)
    return any(related) or not typed.isdisjoint(ANYWHERE)


def _pairs(before: Mapping[str, Any], now: Mapping[str, Any], section: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Each key of a section of the present config, or of the former one, with both values; sections that only one of
    them has as a whole."""
    for name, value in now.items():
        key = f"{section}{name}"
        former = _former(before, key)
        both = isinstance(former, Mapping) and isinstance(value, Mapping)
        yield from _pairs(before, value, f"{key}.") if both else [(key, former, value)]
    formerly = node_at(before, section.rstrip(".")) if section else before
    for name in formerly if isinstance(formerly, Mapping) else ():
        key = f"{section}{name}"
        if name not in now and renamed_key(key) == key:
            yield key, formerly[name], ABSENT


def _former(before: Mapping[str, Any], key: str) -> Any:
    """The value of a key, also under the name that it had."""
    for old, new in (("", ""), *RENAMED.items()):
        if new is not None and f"{key}.".startswith(f"{new}." if new else ""):
            value = node_at(before, old + key.removeprefix(new))
            if value is not ABSENT:
                return value
    return ABSENT


def _same(key: str, former: Any, value: Any) -> bool:
    if key in FROM_DATA and value is None:
        return True  # the data decides; the network is compared with the checkpoint anyway
    if key in FILES and isinstance(former, str) and isinstance(value, str) and "auto" not in (former, value):
        return Path(former).resolve() == Path(value).resolve()
    if key.endswith("._target_") and isinstance(former, str):  # modules move
        return former.rpartition(".")[2] == str(value).rpartition(".")[2]
    strict = key.startswith(("trainer.limit_", "trainer.val_check_interval"))  # 1 is one batch, 1.0 all of them
    return _equal(former, value, strict)


def _equal(former: Any, value: Any, strict: bool) -> bool:
    """Only as far as `value` goes, which is ours."""
    if isinstance(value, (list, tuple)):
        alike = isinstance(former, (list, tuple)) and len(former) == len(value)
        return alike and all(_equal(a, b, strict) for a, b in zip(former, value, strict=True))
    if isinstance(value, Mapping):
        alike = isinstance(former, Mapping) and len(former) == len(value)
        return alike and all(name in former and _equal(former[name], value[name], strict) for name in value)
    if type(value) in (int, float) and type(former) in (int, float):
        return former == value and (not strict or type(former) is type(value))
    return type(former) is type(value) and former == value


def check_changes(found: Mapping[str, tuple[Any, Any]], checkpoint: str, batches: int) -> None:
    """Refuse what cannot be applied.

    Args:
        found: see `changes`.
        checkpoint: path of the file.
        batches: of the epoch that it lies within; 0: it was written at the end of one.

    Raises:
        UserError: names the first such key and both values, and what to give instead.
    """
    for wrong in ("refused", "between epochs") if batches else ("refused",):
        verdicts = {key: verdict(key, whole=ABSENT in values) for key, values in found.items()}
        key = next((key for key, (name, _) in verdicts.items() if name == wrong), None)
        if key is None:
            continue
        before, now = map(_shown, found[key])
        entry = verdicts[key][1]
        why = (
            f"{REFUSED[entry]}, and stays the same while a run continues"
            if wrong == "refused"
            else f"the checkpoint lies {batches} batches within an epoch, whose remaining clips would be unknown"
        )
        keep = f"keep {key}" if found[key][1] is ABSENT else f"give {key}={before}"
        keep = f"omit {key}" if found[key][0] is ABSENT else keep
        raise UserError(
            f"{key} is {now}, but was {before} when {checkpoint} was written: {why}; {keep} to continue that run, or "
            f"start one with another name from its weights (model.pretrained={checkpoint})."
        )


def described(found: Mapping[str, tuple[Any, Any]]) -> list[str]:
    """A line for each change that is applied, the derived ones of the terminal and of TensorBoard left out."""
    return [
        f"{key}: {_shown(now)} from here on, was {_shown(before)}"
        for key, (before, now) in found.items()
        if not key.startswith(("callbacks.dashboard.", "model.batch_size"))
    ]


def _shown(value: Any) -> str:
    """Of a value that may come from anyone."""
    if value is ABSENT:
        return "not set"
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, Mapping) and isinstance(target := value.get("_target_"), str):
        value = target.rpartition(".")[2]
    text = str(value) if isinstance(value, (str, int, float)) else reprlib.repr(value)
    return textwrap.shorten(text, 120, placeholder=" …") or "''"
