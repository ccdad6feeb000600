"""Which checkpoint a run resumes from, and whether it can with the config that is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning import Trainer

from deepavfusion.config.continued import changes, check_changes
from deepavfusion.config.overrides import renamed
from deepavfusion.data.datamodule import ClipDataModule
from deepavfusion.optim.resuming import Position
from deepavfusion.runs.directory import CHECKPOINTS, CONFIG, LAST, checkpoints_of
from deepavfusion.tasks.base import Task
from deepavfusion.utils.console import say_once
from deepavfusion.utils.errors import UserError
from deepavfusion.utils.files import no_file
from deepavfusion.utils.reading import plain_yaml, read_text
from deepavfusion.weights.file import read_file
from deepavfusion.weights.hub import is_folder, source_of
from deepavfusion.weights.restored import check_restorable

MAX_CONFIG = 2**18  # bytes; a run writes about 10 000


@dataclass
class Opened:
    """A checkpoint that was read once: what is checked is what Lightning restores.

    Args:
        path: of the file.
        content: of the file; None once it is handed over, so that its memory becomes free.
    """

    path: str
    content: Any

    @classmethod
    def read(cls, path: str) -> Opened:
        path = str(source_of(path))
        return cls(path, read_file(path))

    def hand_over(self, trainer: Trainer) -> str:
        """Let Lightning restore this content when it is given the path, which is returned."""
        trainer.strategy.checkpoint_io.checked = (self.path, self.content)  # type: ignore[attr-defined]
        self.content = None
        return self.path


@dataclass
class Resumed(Opened):
    """What a run resumes from.

    Args:
        step: optimizer steps done; None: it holds weights without a run, which `check` explains.
        state: its parts that say where it lies in training.
        config: that it was written with; empty: not recorded.
        overrides: of that config.
    """

    step: int | None = None
    state: dict[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    overrides: list[str] = field(default_factory=list)

    @property
    def position(self) -> Position | None:
        """None: the file does not say."""
        try:
            return Position.of(self.state)
        except (KeyError, TypeError, AttributeError):
            return None

    def changes(self, now: Mapping[str, Any], given: Sequence[str]) -> dict[str, tuple[Any, Any]]:
        """The keys of the config that have other values now, see `config.continued.changes`.

        Raises:
            UserError: one of them cannot change, or cannot change here.
        """
        found = changes(self.config, now, given, self.overrides)
        check_changes(found, self.path, self.position.batches if self.position else 0)
        return found

    def other_steps(self, trainer: Trainer, datamodule: ClipDataModule) -> str | None:
        """What there is to say where optimizer steps are of another number of items from here on."""
        then = {"batch_size": 0, "processes": 1} | self.state.get(type(datamodule).__qualname__, {})
        section = self.config.get("trainer")
        accumulated = section.get("accumulate_grad_batches") if isinstance(section, Mapping) else None
        accumulated = accumulated if type(accumulated) is int else trainer.accumulate_grad_batches
        before = then["batch_size"] * then["processes"] * accumulated
        now = datamodule.batch_size * trainer.world_size * trainer.accumulate_grad_batches
        if before in (0, now):
            return None
        return (
            f"{now} items a step from here on, was {before}: the learning rate follows, unless model.lr sets it, and "
            "the epochs that are left are trained on the rest of its curve"
        )

    def check(self, trainer: Trainer, task: Task, datamodule: ClipDataModule) -> None:
        """Whether this run can restore it, and the rest of it is one: it has not ended, and its epoch can be completed.

        Raises:
            UserError: see `check_restorable`; it is over, or the checkpoint lies within an epoch of other batches.
        """
        check_restorable(self.path, self.content, trainer, task, datamodule, training=True)
        if (position := self.position) is None:
            return
        done, whole = position.epochs, not position.batches
        if trainer.max_epochs is not None and trainer.max_epochs < done + (not whole):
            where = f"{done} epochs" if whole else f"{done} epochs and a part of the next"
            raise UserError(
                f"trainer.max_epochs is {trainer.max_epochs}, but {self.path} was written after {where}: give at least "
                f"{done + (not whole)}."
            )
        if 0 <= trainer.max_steps < position.step:
            raise UserError(
                f"trainer.max_steps is {trainer.max_steps}, but {self.path} was written after {position.step} steps: "
                "give at least as many, or -1."
            )
        then = self.state.get(type(datamodule).__qualname__, {})
        now = {"batch_size": datamodule.batch_size, "processes": trainer.world_size}
        if not whole and any(then.get(key, value) != value for key, value in now.items()):
            former = "data.batch_size={batch_size} on {processes} processes".format_map({**now, **then})
            raise UserError(
                f"{self.path} lies {position.batches} batches within an epoch of {former}, but this is "
                f"data.batch_size={datamodule.batch_size} on {trainer.world_size}, so that its remaining clips are "
                "unknown: resume with the former values (after the epoch, others are possible), or start a run with "
                "another name from its weights (model.pretrained=<checkpoint>)."
            )
        if not whole and (order := then.get("order")) is not None and order != datamodule.order:
            raise UserError(
                f"{self.path} lies {position.batches} batches within an epoch of other train clips, or of clips packed "
                f"in another way, than {datamodule.root} has now ({datamodule.lists['train'].coverage}), so that its "
                "remaining clips are unknown: resume with the former data (after the epoch, other data is possible), "
                "or start a run with another name from its weights (model.pretrained=<checkpoint>)."
            )
        if (most := datamodule.train_batches(trainer.world_size)) < position.batches:
            raise UserError(
                f"checkpoint {self.path} lies {position.batches} batches within an epoch of {most}: use another "
                "checkpoint of the run."
            )


def choose_checkpoint(run_dir: Path, asked: str | None) -> tuple[Resumed | None, int | None]:
    """The newest readable checkpoint of an interrupted run, else the one asked for.

    A damaged one is reported and the one before it is taken.

    Args:
        run_dir: of this run.
        asked: a file, or "last", which means the run's own.

    Returns:
        Checkpoint and the step after which logged curves are replaced: (None, 0) where a run that has logged curves
        restarts, (None, None) for a new run.

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
        resumed = _resumed(path, content if isinstance(content, dict) else {})
        return resumed, resumed.step
    if damaged:
        fix = "" if asked else f" There is no other: give another run.name, or delete {found[0].parent} to start again."
        raise UserError(damaged[0] + fix)
    logged = any(any(run_dir.glob(pattern)) for pattern in ("tensorboard/*", "metrics.csv", "wandb/*", "mlflow/*"))
    return None, 0 if logged else None


def _resumed(path: Path, content: Mapping[str, Any]) -> Resumed:
    state = {key: content[key] for key in ("global_step", "loops", ClipDataModule.__qualname__) if key in content}
    record = content.get("record")
    config, overrides = map(record.get, ("config", "overrides")) if isinstance(record, dict) else (None, None)
    if not isinstance(config, Mapping):  # of an earlier commit
        config = _written_config(path.parent.parent / CONFIG)
    known = renamed([each for each in overrides if isinstance(each, str)]) if isinstance(overrides, list) else []
    step = content.get("global_step")
    return Resumed(str(path), content, step if type(step) is int else None, state, config, known)


def _written_config(path: Path) -> Mapping[str, Any]:
    """As a run writes it; empty if it is not there, or is not that."""
    try:
        config = plain_yaml(read_text(path, MAX_CONFIG, "the config of a run"))
    except (UserError, ValueError):
        return {}
    return config if isinstance(config, Mapping) else {}


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
    if is_folder(asked):
        raise UserError(
            f"ckpt_path={asked} has no state of a training: expected a .ckpt file written by a run of this task, or "
            f"model.pretrained={asked} to start from its weights."
        )
    if wrong := no_file(asked):
        raise UserError(f"ckpt_path={asked} {wrong}: expected a .ckpt file written by a run of this task.")
    return [Path(asked)]
