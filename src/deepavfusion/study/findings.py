"""What the rows and the scores of single clips say of the cells: intervals, and differences from others."""

from __future__ import annotations

import csv
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deepavfusion.study.definition import Cell, Run, Stage
from deepavfusion.study.plan import Plan
from deepavfusion.study.results import Row, as_text, metrics_of, values_of
from deepavfusion.study.statistics import Interval, Values, deviation, over_clips_and_seeds, over_seeds, p_value
from deepavfusion.utils.errors import UserError
from deepavfusion.utils.files import write_csv

LOWER_IS_BETTER = ("loss", "rank", "fad")  # parts of names of such metrics
LEAST = 3  # seeds that can support a difference
SAME = 1e-3  # largest difference of the mean of single scores from the metric that they are thought to be those of
Line = Mapping[str, str]


def _right(column: str) -> Callable[[Line], float]:
    return lambda line: float(line[column] == line["classes"])


def _value(column: str) -> Callable[[Line], float]:
    return lambda line: float(line[column])


# Metrics that are means over clips: the file with a line for each, and the score of a line.
SCORES: dict[str, tuple[str, Callable[[Line], float]]] = {
    **{
        f"test/top1{head}{dense}": ("classification_test.csv", _right(f"predicted{head}{dense}"))
        for head in ("", "_image", "_audio", "_fusion")
        for dense in ("", "_dense")
    },
    **{f"test/{name}": ("separation_test.csv", _value(name)) for name in ("sdr", "sir", "sar", "si_sdr")},
    "test/miou_fg": ("segmentation_test.csv", _value("iou")),
    "test/miou": ("segmentation_test.csv", _value("miou")),
}


def scores_of(run: Run, metric: str) -> dict[str, float] | None:
    """Clip -> score, where a metric is the mean of such scores and the run has them; None: it does not.

    NaN scores are those that the metric leaves out.
    """
    if metric not in SCORES or not run.finished:
        return None
    name, score = SCORES[metric]
    path = run.directory / name
    if not path.exists():
        return None
    try:
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            lines = list(csv.DictReader(file))
        found = {_name(line): score(line) for line in lines}
        mean = metrics_of(run)[metric]
    except (KeyError, ValueError, OSError, UserError):  # the row of this run says what is wrong with it
        return None
    kept = {clip: value for clip, value in found.items() if math.isfinite(value)}
    whole = len(found) == len(lines) and kept and abs(np.mean(list(kept.values())) - mean) < SAME
    return kept if whole else None


def _name(line: Line) -> str:
    """What tells a line from the others of its file, in any run on the same data."""
    return "|".join(line[column] for column in ("item", "mixture", "source", "id", "second") if column in line)


def together(seeds: Sequence[int], *tables: Mapping[int, Mapping[str, float]]) -> list[Values] | None:
    """Tables as arrays [S, N], of the clips that all of them have; None: a seed has no scores, or there are none."""
    if not seeds or any(seed not in table for table in tables for seed in seeds):
        return None
    clips = sorted(set.intersection(*(set(table[seed]) for table in tables for seed in seeds)))
    return [np.array([[table[seed][clip] for clip in clips] for seed in seeds]) for table in tables] if clips else None


@dataclass(frozen=True)
class Measured:
    """A metric of a stage, as it was measured.

    Args:
        values: name of a cell -> seed -> value.
        scores: name of a cell -> seed -> clip -> score, of the runs that have scores.
    """

    stage: Stage
    metric: str
    values: Mapping[str, Mapping[int, float]]
    scores: Mapping[str, Mapping[int, Mapping[str, float]]]


def measured_of(plan: Plan, rows: Sequence[Row]) -> list[Measured]:
    """All metrics that are reported."""
    return [
        Measured(
            stage,
            metric,
            {cell.name: values_of(rows, cell, (stage.name, metric)) for cell in plan.cells},
            _scores(plan, stage, metric),
        )
        for stage in plan.stages
        for metric in stage.metrics
    ]


def _scores(plan: Plan, stage: Stage, metric: str) -> dict[str, dict[int, dict[str, float]]]:
    found: dict[str, dict[int, dict[str, float]]] = {cell.name: {} for cell in plan.cells}
    for chain in plan.chains:
        run = next((run for run in chain.runs if run.stage == stage), None)
        if run is not None and (scores := scores_of(run, metric)) is not None:
            found[chain.cell.name][chain.seed] = scores
    return found


@dataclass(frozen=True)
class Comparison:
    """A cell against another, by pairs of runs with the same seed.

    Args:
        seeds: interval of the mean difference over seeds.
        clips: over seeds and clips; None where the metric is no mean over clips, or that was not asked.
        p: of the paired t test.
        pairs: number of seeds.
        same: whether the cells share the runs, since no axis changes them.
    """

    seeds: Interval
    clips: Interval | None
    p: float
    pairs: int
    same: bool = False

    @property
    def tells(self) -> bool:
        """Whether it could show a difference."""
        return self.pairs >= LEAST and not self.same

    @property
    def supported(self) -> bool:
        if self.seeds.has_width:
            return self.tells and self.seeds.excludes_zero
        # The same difference with every seed, as of few clips: it takes other clips to tell.
        return self.tells and self.clips is not None and self.clips.excludes_zero

    def in_words(self, metric: str) -> str:
        if self.same:
            return "no difference: the same runs"
        if self.pairs < LEAST:
            return f"fewer than {LEAST} seeds say nothing"
        if not self.supported:
            return "no difference that the seeds support"
        better = (self.seeds.mean > 0) != lower_is_better(metric)
        return f"{'better' if better else 'worse'}, supported by {self.pairs} seeds"


@dataclass(frozen=True)
class Finding:
    """What is known of a metric of a cell.

    Args:
        values: [S], one a seed.
        clips: interval of their mean over seeds and clips; None where the metric is no mean over clips.
        baseline: the cell it is compared with, maybe itself.
        is_baseline: whether others are compared with it.
        comparison: with that; None: there is none.
    """

    stage: str
    metric: str
    cell: Cell
    values: Values
    clips: Interval | None
    baseline: Cell
    is_baseline: bool
    comparison: Comparison | None

    @property
    def verdict(self) -> str:
        """In words."""
        if self.comparison is not None:
            return self.comparison.in_words(self.metric)
        return "baseline" if self.is_baseline else ""


def lower_is_better(metric: str) -> bool:
    return any(part in metric for part in LOWER_IS_BETTER)


def findings_of(plan: Plan, measured: Sequence[Measured]) -> list[Finding]:
    """A finding for each cell and metric, metric by metric."""
    found = []
    bases = {plan.baseline_of(cell).name for cell in plan.cells if plan.baseline_of(cell) != cell}
    for each in measured:
        for cell in plan.cells:
            base, values = plan.baseline_of(cell), each.values[cell.name]
            scores = together(sorted(values), each.scores[cell.name])
            clips = over_clips_and_seeds(scores[0]) if scores else None
            comparison = _compare(plan, each, cell, base, clips=True) if cell != base else None
            of = np.array(list(values.values()))
            known = each.stage.name, each.metric, cell, of, clips
            found.append(Finding(*known, base, cell.name in bases, comparison))
    return found


@dataclass(frozen=True)
class Pair:
    """Two cells that differ on one axis, see `pairs_of`; `comparison` is that of the first against the second."""

    stage: str
    metric: str
    cells: tuple[Cell, Cell]
    comparison: Comparison


def pairs_of(plan: Plan, measured: Sequence[Measured]) -> list[Pair]:
    """All pairs of cells that differ on one axis, whose values can be compared, metric by metric; over seeds alone."""
    found = []
    for each in measured:
        for other, cell in itertools.combinations(plan.cells, 2):
            differ = [axis for axis, label in other.labels.items() if cell.labels[axis] != label]
            if len(differ) == 1 and differ[0] not in plan.incomparable:
                comparison = _compare(plan, each, cell, other)
                found += [Pair(each.stage.name, each.metric, (cell, other), comparison)] if comparison else []
    return found


def _compare(plan: Plan, measured: Measured, cell: Cell, other: Cell, clips: bool = False) -> Comparison | None:
    """A cell against another, with the seeds that both have; None: there are none."""
    mine, base = measured.values[cell.name], measured.values[other.name]
    seeds = sorted(set(mine) & set(base))
    if not seeds:
        return None
    differences = np.array([mine[seed] - base[seed] for seed in seeds])
    found = together(seeds, measured.scores[cell.name], measured.scores[other.name]) if clips else None
    of_clips = over_clips_and_seeds(found[0] - found[1]) if found else None
    same = plan.composed(measured.stage, cell).digest == plan.composed(measured.stage, other).digest
    return Comparison(over_seeds(differences), of_clips, p_value(differences), len(seeds), same)


def write_summary(plan: Plan, findings: Sequence[Finding], path: Path) -> None:
    """A line for each metric of each cell: mean, deviation, difference from the baseline, intervals, verdict."""
    head: list[object] = [
        "stage",
        "metric",
        *plan.axes,
        "seeds",
        "mean",
        "deviation",
        "low_seeds_and_clips",
        "high_seeds_and_clips",
    ]
    head += ["baseline", "difference", "low_seeds", "high_seeds"]
    head += ["difference_low_seeds_and_clips", "difference_high_seeds_and_clips", "p", "verdict"]
    lines = [head]
    for each in findings:
        found, count = each.comparison, len(each.values)
        lines.append(
            [
                *(each.stage, each.metric, *(each.cell.labels[axis] for axis in plan.axes), count),
                *(as_text(float(each.values.mean()) if count else None), as_text(deviation(each.values))),
                *_ends(each.clips),
                each.baseline.name,
                *((as_text(found.seeds.mean), *_ends(found.seeds), *_ends(found.clips)) if found else [""] * 5),
                as_text(found.p) if found else "",
                each.verdict,
            ]
        )
    write_csv(path, lines, end="\n")


def write_pairs(pairs: Sequence[Pair], path: Path) -> None:
    """A line for each metric of each pair."""
    lines: list[list[object]] = [
        ["stage", "metric", "cell", "other", "seeds", "difference", "low_seeds", "high_seeds", "p", "verdict"]
    ]
    for each in pairs:
        found, (cell, other) = each.comparison, each.cells
        line: list[object] = [each.stage, each.metric, cell.name, other.name, found.pairs, as_text(found.seeds.mean)]
        lines.append([*line, *_ends(found.seeds), as_text(found.p), found.in_words(each.metric)])
    write_csv(path, lines, end="\n")


def _ends(found: Interval | None) -> list[str]:
    return [as_text(found.low), as_text(found.high)] if found else ["", ""]
