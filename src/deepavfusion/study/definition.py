"""What a study asks: the cells that its axes make, the stages that each of them goes through, and the runs of both."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from deepavfusion.config.compose import choices
from deepavfusion.config.overrides import in_demo_data, split_override
from deepavfusion.runs.directory import METRICS
from deepavfusion.study.starts import PLACEHOLDER, checkpoint
from deepavfusion.utils.addresses import is_remote
from deepavfusion.utils.errors import UserError

OF_THE_STUDY = ("experiment", "scale", "seed", "run", "resume", "paths")  # what a study sets in each of its runs
OF_NO_RESULT = ("run", "paths", "logger", "seed", "resume", "debug")  # sections that do not change what a run finds

Axes = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""Axis -> label -> key -> value."""


@dataclass(frozen=True)
class Cell:
    """One combination of the axes' values.

    Args:
        labels: axis -> what the value is called.
        values: axis -> the keys that it sets, and their values.
    """

    labels: Mapping[str, str]
    values: Mapping[str, Mapping[str, Any]]

    @property
    def name(self) -> str:
        return ", ".join(self.labels.values()) or "all"


@dataclass(frozen=True)
class Stage:
    """A run of each cell.

    Args:
        experiment: of configs/experiment.
        overrides: for it, with placeholders, see `starts`.
        metrics: those of its metrics.json that are reported.
        without: axes that it does not follow, though it has their keys.
        quick: whether the quick form of the study has it.
    """

    name: str
    experiment: str
    overrides: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    quick: bool = True


@dataclass(frozen=True)
class Run:
    """An ordinary run, as train.py makes it.

    Args:
        directory: of the run.
        overrides: that it is composed from.
        starts: the runs whose checkpoints it takes.
        midway: directory of a run -> the share of its steps after which it takes its checkpoint.
    """

    name: str
    stage: Stage
    seed: int
    directory: Path
    overrides: tuple[str, ...]
    starts: tuple[Run, ...] = field(repr=False)
    midway: tuple[tuple[Path, float], ...] = ()

    @property
    def last(self) -> Path:
        return checkpoint(self.directory)

    @property
    def finished(self) -> bool:
        return (self.directory / METRICS).exists()


@dataclass(frozen=True)
class Chain:
    """The runs of a cell with a seed, in their order; cells that agree in a stage share its run."""

    cell: Cell
    seed: int
    runs: tuple[Run, ...]

    @property
    def name(self) -> str:
        return f"{self.cell.name} · seed {self.seed}"

    @property
    def digest(self) -> str:
        return digest_of(run.name for run in self.runs)


def digest_of(texts: Iterable[str]) -> str:
    return sha256("\n".join(texts).encode()).hexdigest()[:8]


def check_own(where: str, overrides: Iterable[str]) -> None:
    """Raise a `UserError` if overrides set what the study sets."""
    for override in overrides:
        if split_override(override)[1].partition(".")[0] in OF_THE_STUDY:
            raise UserError(
                f"{where} has {override}, which the study sets for each run: leave it out; there are study.seeds, "
                "study.scale, the experiments of the stages, and paths.data_dir=<folder> in the command."
            )


def seeds_of(found: Any) -> list[int]:
    """A number of seeds, which are 1, 2, …, or the seeds."""
    return list(range(1, found + 1)) if isinstance(found, int) else list(dict.fromkeys(found))


def stages_of(found: Mapping[str, Any], more: Sequence[str]) -> list[Stage]:
    """The stages of a study.

    Args:
        more: overrides that are added to those of a stage, `<stage>: <override>` each.
    """
    added: dict[str, tuple[str, ...]] = {}
    for each in more:
        name, _, override = map(str.strip, each.partition(":"))
        if name not in found or not override:
            expected = f"<stage>: <override>, of the stages {', '.join(found)}"
            raise UserError(f"study.stage_overrides has {each!r}, expected {expected}.")
        added[name] = (*added.get(name, ()), override)
    stages = [_stage(f"study.stages.{name}", name, stage, added.get(name, ())) for name, stage in found.items()]
    if not any(stage.metrics for stage in stages):
        raise UserError("study.stages names no metrics, expected some of a stage, such as metrics: [test/top1].")
    return stages


def _stage(key: str, name: str, found: Mapping[str, Any], more: tuple[str, ...]) -> Stage:
    if not re.fullmatch(r"\w{1,24}", name):
        raise UserError(f"{key}: runs cannot have such a name, expected up to 24 letters, digits and underscores.")
    lists = ("overrides", "metrics", "without")
    if unknown := set(found) - {"experiment", "quick", *lists}:
        raise UserError(f"{key} has the key {min(unknown)}, expected experiment, {', '.join(lists)} or quick.")
    experiment, quick = found.get("experiment"), found.get("quick", True)
    if experiment not in choices("experiment"):
        raise UserError(f"{key} is of experiment={experiment}, expected one of those of train.py --help.")
    if not isinstance(quick, bool):
        raise UserError(f"{key}.quick is {quick}, expected true or false.")
    overrides, metrics, without = (_texts(f"{key}.{each}", found.get(each)) for each in lists)
    check_own(f"{key}.overrides", (*overrides, *more))
    return Stage(name, str(experiment), (*overrides, *more), metrics, without, quick)


def _texts(key: str, found: Any) -> tuple[str, ...]:
    texts = [found] if isinstance(found, str) else found or []
    if not (isinstance(texts, list) and all(isinstance(each, str) for each in texts)):
        raise UserError(f"{key} is {found}, expected a list of texts; in quotes, where they have braces or colons.")
    return tuple(texts)


def axes_of(found: Mapping[str, Any]) -> Axes:
    """The axes of a study. An axis is a key, unless its values say which keys they set."""
    axes: dict[str, dict[str, dict[str, Any]]] = {}
    for key, values in found.items():
        several = values if isinstance(values, list) else []
        labelled = values if isinstance(values, dict) else {_label(value): value for value in several}
        if not labelled:
            raise UserError(f"study.axes.{key} is {values}, expected a list of values, or label: value.")
        axes[key] = {
            str(label): value if isinstance(value, dict) else {key: value} for label, value in labelled.items()
        }
        for each in itertools.chain.from_iterable(axes[key].values()):
            if each.partition(".")[0] in (*OF_THE_STUDY, *OF_NO_RESULT):
                raise UserError(
                    f"study.axes.{key} sets {each}, expected a key that changes what a run finds, and none that the "
                    "study sets itself (experiment, scale, seed, run, resume, paths)."
                )
    return axes


def cells_of(axes: Axes, baseline: Mapping[str, str], vary: str) -> list[Cell]:
    """All combinations; vary=one: the baseline, and what differs from it in one axis."""
    labels = [
        dict(zip(axes, each, strict=True)) for each in itertools.product(*(list(values) for values in axes.values()))
    ]
    if vary == "one":
        base = {axis: str(baseline.get(axis, next(iter(values)))) for axis, values in axes.items()}
        labels = [each for each in labels if sum(each[axis] != base[axis] for axis in axes) <= 1]
    return [Cell(each, {axis: axes[axis][label] for axis, label in each.items()}) for each in labels]


def baseline_cell(cells: Sequence[Cell], axes: Axes, given: Mapping[str, str]) -> Cell:
    """The cell that others are compared with.

    Raises:
        UserError: there is none.
    """
    for axis, label in given.items():
        if axis not in axes or str(label) not in axes[axis]:
            known = ", ".join(axes.get(axis, axes))
            raise UserError(f"study.baseline has {axis}: {label}, expected one of {known}.")
    found = [cell for cell in cells if all(cell.labels[axis] == str(label) for axis, label in given.items())]
    return found[0]


def check_incomparable(incomparable: Iterable[str], axes: Axes) -> None:
    """Raise a `UserError` if these are no axes."""
    for axis in incomparable:
        if axis not in axes:
            known = f"some of the axes {', '.join(axes)}" if axes else "none: the study has no axes"
            raise UserError(f"study.incomparable has {axis}, expected {known}.")


def _label(value: Any) -> str:
    return "[" + ", ".join(map(str, value)) + "]" if isinstance(value, list) else str(value)


def check_metrics(stage: Stage, cfg: DictConfig) -> None:
    """Raise a `UserError` if a metric is none of the main ones of a run, nor one of their kinds."""
    main = list(OmegaConf.select(cfg, "callbacks.run_summary.headline") or [])
    for name in stage.metrics:
        if not any(name == each or name.startswith(f"{each}_") for each in main):
            raise UserError(
                f"study.stages.{stage.name}.metrics has {name}, expected one of {', '.join(main)}, or such a name with "
                "an ending."
            )


def check_weights(stage: Stage, cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Raise a `UserError` if a stage starts from a file that is not there, unless a stage before it makes it."""
    made = {split_override(each)[1] for each in overrides if PLACEHOLDER.search(each)}
    for key in ("model.pretrained", "model.image_weights", "model.audio_weights"):
        value = OmegaConf.select(cfg, key)
        if key in made or value is None or is_remote(value):
            continue
        if value == "auto":  # the newest pre-training, which is none of the study's
            raise UserError(
                f"stage {stage.name} has {key}=auto, expected in its overrides a stage before it, such as "
                f"{key}={{pretrain}}, a checkpoint, or null (from scratch)."
            )
        if not Path(value).exists():
            raise UserError(f"stage {stage.name} has {key}={value}, which does not exist: expected a checkpoint.")


def check_data(stage: Stage, cfg: DictConfig) -> None:
    """Raise a `UserError` if the data of a stage is not there, unless it is a demo's, which is generated."""
    root = cfg.data.root
    if not (in_demo_data(root, cfg.paths.data_dir) or is_remote(root) or Path(root).is_dir()):
        raise UserError(
            f"stage {stage.name} reads {cfg.data.name} from {root}, which does not exist: put the data "
            f"there (make datasets says how), give 'study.stage_overrides=[\"{stage.name}: data.root=<folder>\"]', or "
            "use study.scale=study."
        )
