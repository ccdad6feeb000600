"""What a study runs: its cells, the stages of each, and the ordinary runs that they are."""

from __future__ import annotations

import copy
import re
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from math import ceil
from pathlib import Path
from typing import Any

import yaml
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from deepavfusion.cli.entry import one_sentence
from deepavfusion.config.check import check_ranges
from deepavfusion.config.compose import CONFIG_DIR, compose, root_folder
from deepavfusion.config.overrides import literal, merged, quoted, written
from deepavfusion.study.definition import (
    OF_NO_RESULT,
    Cell,
    Chain,
    Run,
    Stage,
    axes_of,
    baseline_cell,
    cells_of,
    check_data,
    check_incomparable,
    check_metrics,
    check_own,
    check_weights,
    digest_of,
    seeds_of,
    stages_of,
)
from deepavfusion.study.starts import PLACEHOLDER, filled, named
from deepavfusion.utils.errors import UserError

QUICK = 0.4  # of the epochs
LONGEST = 40  # characters of a name that the values of the axes take


@dataclass(frozen=True)
class Composed:
    """The config of a stage of a cell, without a seed.

    Args:
        overrides: it is composed from; placeholders are left in them.
        starts: the stages whose checkpoints it takes.
        digest: tells runs that find something else apart: of the config and of what it starts from.
        part: of the name of its runs.
    """

    cfg: DictConfig
    overrides: list[str]
    starts: tuple[str, ...]
    digest: str
    part: str


class Plan:
    """See the module.

    Args:
        study: the section of the config, see configs/study/_study.yaml.
        log_dir: the folder of all logs.
        data_dir: the folder of the datasets; None: the default one.

    Raises:
        UserError: the section does not describe a study, or names what does not exist.
    """

    def __init__(self, study: DictConfig, log_dir: str | Path, data_dir: str | None = None) -> None:
        plain: Any = OmegaConf.to_container(study, resolve=True)
        self.name: str = plain["name"]
        self.question: str = plain["question"]
        self.scale: str = plain["scale"]
        self.quick: bool = plain["quick"]
        self.overrides: list[str] = literal(plain["overrides"])
        check_own("study.overrides", self.overrides)
        self.data_dir = data_dir
        self.folder = Path(log_dir) / "study" / self.name
        self.seeds = seeds_of(plain["seeds"])
        self.stages = [
            each for each in stages_of(plain["stages"], plain["stage_overrides"]) if each.quick or not self.quick
        ]
        self.axes = axes_of(plain["axes"])
        self.vary: str = plain["vary"]
        self.cells = cells_of(self.axes, plain["baseline"], self.vary)
        if twice := [name for name, count in Counter(cell.name for cell in self.cells).items() if count > 1]:
            raise UserError(f"study.axes makes several cells called {twice[0]}: give them labels that differ.")
        self.baseline = baseline_cell(self.cells, self.axes, plain["baseline"])
        self.incomparable: list[str] = list(dict.fromkeys(plain["incomparable"]))
        check_incomparable(self.incomparable, self.axes)
        held = self.axes if self.vary == "one" or not plain["baseline"] else plain["baseline"]
        self._held = {axis: self.baseline.labels[axis] for axis in held if axis not in self.incomparable}
        self._composed: dict[tuple[str, ...], Composed] = {}
        self._bases: dict[str, DictConfig] = {}
        for axis in self.axes:
            if not any(self._applies(axis, stage) for stage in self.stages):
                raise UserError(f"study.axes names {axis}, expected a key, or keys, that one of its stages has.")

    @cached_property
    def chains(self) -> list[Chain]:
        return [self.chain(number) for number in range(self.count)]

    @property
    def count(self) -> int:
        """Number of chains."""
        return len(self.cells) * len(self.seeds)

    def chain(self, number: int) -> Chain:
        """A chain alone. Seeds vary fastest, so that chains that are run at a time seldom wait for a run they share."""
        cell, seed = divmod(number, len(self.seeds))
        return self._chain(self.cells[cell], self.seeds[seed])

    @cached_property
    def runs(self) -> list[Run]:
        """All runs, each once."""
        return list({run.name: run for chain in self.chains for run in chain.runs}.values())

    @cached_property
    def digest(self) -> str:
        """Tells this plan from others of the same study: with more seeds, at another scale."""
        return digest_of(sorted(run.name for run in self.runs))

    @property
    def reports(self) -> Path:
        """The folder of the report."""
        quick = "_quick" if self.quick else ""
        seeds = f"{len(self.seeds)}_seed{'s' * (len(self.seeds) != 1)}"
        return self.folder / "reports" / f"{self.scale}{quick}_{seeds}_{self.digest}"

    @property
    def failures(self) -> Path:
        """The folder that says why runs failed, see `work.failure_of`."""
        return self.folder / "failed"

    def baseline_of(self, cell: Cell) -> Cell:
        """What a cell is compared with: on the axes that the study's `baseline` does not name, and on those that are
        incomparable, it is as the cell is; maybe the cell itself."""
        labels = {**cell.labels, **self._held}
        return next(each for each in self.cells if each.labels == labels)

    @property
    def baseline_name(self) -> str:
        """Of the cells that others are compared with."""
        same = " and ".join(axis for axis in self.axes if axis not in self._held)
        if not same:
            return self.baseline.name
        if not self._held:
            return f"none: no two cells have the same {same}"
        return f"{', '.join(self.baseline.labels[axis] for axis in self._held)}, at the same {same}"

    def composed(self, stage: Stage, cell: Cell) -> Composed:
        """The config of a stage of a cell.

        Raises:
            UserError: it cannot be composed, or has values that are not allowed.
        """
        key = stage.name, *cell.labels.values()
        if key not in self._composed:
            self._composed[key] = self._compose(stage, cell)
        return self._composed[key]

    def stages_of(self, cell: Cell) -> list[Stage]:
        """Those that are reported for a cell, and those that they start from."""
        needed = {stage.name for stage in self.stages if stage.metrics}
        for stage in reversed(self.stages):
            if stage.name in needed:
                needed.update(self.composed(stage, cell).starts)
        return [stage for stage in self.stages if stage.name in needed]

    def _compose(self, stage: Stage, cell: Cell) -> Composed:
        mine = self._own(stage)
        axes = [axis for axis in self.axes if self._applies(axis, stage)]
        mine += [_override(*each) for axis in axes for each in self._values(axis, stage, cell).items()]
        starts = tuple(dict.fromkeys(name for name, _ in named(mine)))
        before = [each.name for each in self.stages[: self.stages.index(stage)]]
        for name in starts:
            if name not in before:
                raise UserError(
                    f"stage {stage.name} of study {self.name} starts from {{{name}}}, expected a stage before it: "
                    f"{', '.join(before) or 'there is none'}."
                )
        cfg = self._changed(stage, cell, axes, mine)
        for key, value in _shorter(cfg).items() if self.quick else ():
            OmegaConf.update(cfg, key, value)
            mine.append(f"{key}={value:g}")
        try:
            check_ranges(cfg)
        except UserError as error:
            raise UserError(f"stage {stage.name} of cell {cell.name}: {error}") from None
        check_metrics(stage, cfg)
        check_data(stage, cfg)
        check_weights(stage, cfg, mine)
        of = {each.name: self.composed(each, cell) for each in self.stages if each.name in starts}
        kept = {key: value for key, value in cfg.items() if key not in OF_NO_RESULT}
        text = yaml.safe_dump([OmegaConf.to_container(OmegaConf.create(kept)), *(o for o in mine if "{" in o)])
        digest = digest_of([text, *self._elsewhere(), *(each.digest for each in of.values())])
        shown = [cell.labels[axis] for axis in self.axes if axis in axes or self._inherits(axis, stage, cell)]
        return Composed(cfg, mine, starts, digest, "_".join([stage.name, *([_part(shown)] if shown else [])]))

    def _elsewhere(self) -> list[str]:
        """The folder of the datasets, if it is not that of the project, which may be moved."""
        data = Path(self.data_dir or root_folder() / "data").resolve()
        return [] if data == (root_folder() / "data").resolve() else [str(data)]

    def _own(self, stage: Stage) -> list[str]:
        """Overrides of a stage, whatever the cell."""
        given = [each if PLACEHOLDER.search(each) else literal([each])[0] for each in stage.overrides]
        return [*self._first(stage), *self.overrides, *given]

    def _first(self, stage: Stage) -> list[str]:
        data = [f"paths.data_dir={quoted(self.data_dir)}"] if self.data_dir else []
        texts = [*self.overrides, *(text for each in self.stages for text in each.overrides), str(self.axes)]
        shares = sorted({share for name, share in named(texts) if name == stage.name and share is not None})
        kept = [f"callbacks.checkpoints.milestones={shares}"] if shares else []
        return [f"experiment={stage.experiment}", f"scale={self.scale}", *data, *kept]

    def _changed(self, stage: Stage, cell: Cell, axes: Sequence[str], overrides: Sequence[str]) -> DictConfig:
        """The config of a stage of a cell; composing it takes long, so that of the stage is changed, where that can be.

        Args:
            axes: that the stage follows.
            overrides: all of them.
        """
        values = {key: value for axis in axes for key, value in self._values(axis, stage, cell).items()}
        if any(map(_is_group, values)):
            return copy.deepcopy(self._train_config(stage, overrides))
        cfg: DictConfig = copy.deepcopy(self._base(stage))
        for key, value in values.items():
            if not PLACEHOLDER.search(str(value)):
                OmegaConf.update(cfg, key, value, merge=True)
        return cfg

    def _base(self, stage: Stage) -> DictConfig:
        """The config of a stage, whatever the cell."""
        if stage.name not in self._bases:
            self._bases[stage.name] = self._train_config(stage, self._own(stage))
        return self._bases[stage.name]

    def _train_config(self, stage: Stage, overrides: Sequence[str]) -> DictConfig:
        """Of a run with these overrides, but for those with placeholders."""
        try:
            return _composed(tuple(merged([each for each in overrides if not PLACEHOLDER.search(each)])))
        except (HydraException, OmegaConfBaseException) as error:
            sentence = one_sentence(error)
            raise UserError(f"stage {stage.name} of study {self.name} cannot be composed: {sentence}") from None

    def _applies(self, axis: str, stage: Stage) -> bool:
        """Whether a stage has the keys of an axis; one whose values name stages is for those after them."""
        starts = {name for name, _ in named([str(value) for value in self.axes[axis].values()])}
        order = [each.name for each in self.stages]
        if axis in stage.without:
            return False
        last = max((order.index(name) for name in starts if name in order), default=-1)
        if starts and order.index(stage.name) <= last:
            return False
        return any(self._has(stage, key) for value in self.axes[axis].values() for key in value)

    def _has(self, stage: Stage, key: str) -> bool:
        return _is_group(key) or OmegaConf.select(self._base(stage), key, default="") != ""

    def _values(self, axis: str, stage: Stage, cell: Cell) -> dict[str, Any]:
        """The keys of an axis that a stage has, with their values for a cell."""
        return {key: value for key, value in cell.values[axis].items() if self._has(stage, key)}

    def _inherits(self, axis: str, stage: Stage, cell: Cell) -> bool:
        """Whether a stage that this one starts from depends on an axis."""
        mine = [*stage.overrides, *(str(cell.values[each]) for each in self.axes if self._applies(each, stage))]
        names = {name for name, _ in named(mine)}
        starts = [each for each in self.stages if each.name in names]
        return any(self._applies(axis, each) or self._inherits(axis, each, cell) for each in starts)

    def _chain(self, cell: Cell, seed: int) -> Chain:
        runs: dict[str, Run] = {}
        for stage in self.stages_of(cell):
            found = self.composed(stage, cell)
            name = f"{found.part}_s{seed}_{found.digest}"
            starts = tuple(runs[each] for each in found.starts)
            directories = {each.stage.name: each.directory for each in starts}
            midway = dict.fromkeys((directories[each], share) for each, share in named(found.overrides) if share)
            overrides = [filled(override, directories) for override in found.overrides]
            overrides += [f"seed={seed}", f"run.name={name}", "run.latest=false"]
            overrides += [f"paths.log_dir={quoted(str(self.folder))}"]
            directory = self.folder / found.cfg.task / "runs" / name
            runs[stage.name] = Run(name, stage, seed, directory, tuple(overrides), starts, tuple(midway))
        return Chain(cell, seed, tuple(runs.values()))


@cache
def _composed(overrides: tuple[str, ...]) -> DictConfig:
    """The config of a run, which is not to be changed: composing it takes long."""
    return compose("train", overrides)


def _override(key: str, value: Any) -> str:
    plain = isinstance(value, str) and (PLACEHOLDER.search(value) or _is_group(key))
    return f"{key}={value if plain else written(value)}"


def _shorter(cfg: DictConfig) -> dict[str, float]:
    """Key -> value for a share of the epochs, or steps, at least one."""
    found: dict[str, float] = {}
    for key in ("max_epochs", "max_steps"):
        if (cfg.trainer[key] or -1) > 0:
            found[f"trainer.{key}"] = max(1, ceil(QUICK * cfg.trainer[key]))
    if epochs := found.get("trainer.max_epochs"):
        found["trainer.check_val_every_n_epoch"] = epochs
    if warmup := OmegaConf.select(cfg, "model.warmup_epochs"):
        found["model.warmup_epochs"] = QUICK * warmup
    return found


def _is_group(key: str) -> bool:
    return Path(CONFIG_DIR, key).is_dir()


def _part(labels: Sequence[str]) -> str:
    """Labels as a part of a name; what is left out of a long one is told apart by a number."""
    whole = "_".join(labels)
    plain = re.sub(r"[^\w.+=-]+", "-", whole).strip("-")
    return plain if len(plain) <= LONGEST else f"{plain[: LONGEST - 9]}-{zlib.crc32(whole.encode()):08x}"
