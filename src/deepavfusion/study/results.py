"""What the runs of a study found: a row a cell and seed, scores of single clips, and what both say of the cells."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from deepavfusion.runs.directory import METRICS, PROVENANCE
from deepavfusion.runs.provenance import short
from deepavfusion.study.definition import Cell, Chain, Run, Stage
from deepavfusion.study.plan import Plan
from deepavfusion.study.statistics import Interval, Values, deviation, over_clips_and_seeds, over_seeds, p_value
from deepavfusion.study.work import costs_of, failure_of
from deepavfusion.utils.errors import UserError
from deepavfusion.utils.files import write_csv
from deepavfusion.utils.reading import RECORD, read_json

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


@dataclass
class Row:
    """A cell with a seed.

    Args:
        values: (stage, metric) -> value of what is reported.
        costs: stage -> seconds, peak_memory_gb, parts and steps, see `work.costs_of`.
        commits: of the code of its runs.
        partly: whether seconds and memory are those of some starts of its runs only, since others were killed.
        missing: stage -> why there is no result.
    """

    cell: Cell
    seed: int
    values: dict[tuple[str, str], float] = field(default_factory=dict)
    costs: dict[str, dict[str, float]] = field(default_factory=dict)
    commits: set[str] = field(default_factory=set)
    partly: bool = False
    missing: dict[str, str] = field(default_factory=dict)


def rows_of(plan: Plan, failures: Path) -> list[Row]:
    """A row for each chain of the plan, finished or not."""
    return [_row(plan, chain, failures) for chain in plan.chains]


def _row(plan: Plan, chain: Chain, failures: Path) -> Row:
    row = Row(chain.cell, chain.seed)
    for run in chain.runs:
        stage = run.stage.name
        if not run.finished:
            row.missing[stage] = failure_of(run, failures) or "not run yet"
            continue
        try:
            metrics = metrics_of(run)
        except UserError as error:
            row.missing[stage] = f"{error} Remove {run.directory} to train it again."
            continue
        row.costs[stage] = costs_of(run.directory)
        row.partly |= row.costs[stage].get("parts", 0) != max(1, len(starts_of(run)))
        row.commits |= commits_of(run)
        for name in run.stage.metrics:
            if math.isfinite(metrics.get(name, 0.0)) and name in metrics:
                row.values[stage, name] = metrics[name]
            else:
                row.missing[stage] = f"its {METRICS} has {metrics.get(name, 'no value')} for {name}"
    return row


def metrics_of(run: Run) -> dict[str, float]:
    found: Any = read_json(run.directory / METRICS, RECORD, "the metrics of a run")
    if not isinstance(found, dict):
        raise UserError(f"{run.directory / METRICS} is no table of names and values: expected the metrics of a run.")
    return {str(name): float(value) for name, value in found.items() if isinstance(value, int | float)}


def commits_of(run: Run) -> set[str]:
    """Of the code that a run was started with; a star behind one: with changes."""
    starts = starts_of(run)
    return {
        f"{short(str(start['commit']))}{'*' * (start.get('dirty') is True)}" for start in starts if "commit" in start
    }


def starts_of(run: Run) -> list[dict[str, Any]]:
    """What is recorded of each start of a run."""
    try:
        found = read_json(run.directory / PROVENANCE, RECORD, "the provenance of a run")["starts"]
        return [start for start in found if isinstance(start, dict)]
    except (UserError, KeyError, TypeError):
        return []


def values_of(rows: Sequence[Row], cell: Cell, key: tuple[str, str]) -> dict[int, float]:
    """Seed -> value of a metric of a stage, where there is one."""
    return {row.seed: row.values[key] for row in rows if row.cell == cell and key in row.values}


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
    except (KeyError, ValueError):
        return None
    kept = {clip: value for clip, value in found.items() if math.isfinite(value)}
    whole = len(found) == len(lines) and kept and abs(np.mean(list(kept.values())) - metrics_of(run)[metric]) < SAME
    return kept if whole else None


def _name(line: Line) -> str:
    """What tells a line from the others of its file, in any run on the same data."""
    return "|".join(line[column] for column in ("item", "mixture", "source", "id", "second") if column in line)


def score_tables(plan: Plan, stage: Stage, metric: str) -> dict[str, dict[int, dict[str, float]]]:
    """Name of a cell -> seed -> clip -> score, of the runs that have scores."""
    found: dict[str, dict[int, dict[str, float]]] = {cell.name: {} for cell in plan.cells}
    for chain in plan.chains:
        run = next((run for run in chain.runs if run.stage == stage), None)
        if run is not None and (scores := scores_of(run, metric)) is not None:
            found[chain.cell.name][chain.seed] = scores
    return found


def together(seeds: Sequence[int], *tables: Mapping[int, Mapping[str, float]]) -> list[Values] | None:
    """Tables as arrays [S, N], of the clips that all of them have; None: a seed has no scores, or there are none."""
    if not seeds or any(seed not in table for table in tables for seed in seeds):
        return None
    clips = sorted(set.intersection(*(set(table[seed]) for table in tables for seed in seeds)))
    return [np.array([[table[seed][clip] for clip in clips] for seed in seeds]) for table in tables] if clips else None


@dataclass(frozen=True)
class Comparison:
    """A cell against its baseline, by pairs of runs with the same seed.

    Args:
        seeds: interval of the mean difference over seeds.
        clips: over seeds and clips; None where the metric is no mean over clips.
        p: of the paired t test.
        pairs: number of seeds.
    """

    seeds: Interval
    clips: Interval | None
    p: float
    pairs: int

    def in_words(self, metric: str) -> str:
        if self.pairs < LEAST:
            return f"fewer than {LEAST} seeds say nothing"
        known = self.seeds.low < self.seeds.high or self.clips is None or self.clips.excludes_zero
        if not (self.seeds.excludes_zero and known):
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
        comparison: with that; None: there is none.
    """

    stage: str
    metric: str
    cell: Cell
    values: Values
    clips: Interval | None
    baseline: Cell
    comparison: Comparison | None

    @property
    def verdict(self) -> str:
        """In words."""
        if self.comparison is not None:
            return self.comparison.in_words(self.metric)
        return "baseline" if self.cell == self.baseline else ""


def lower_is_better(metric: str) -> bool:
    return any(part in metric for part in LOWER_IS_BETTER)


def findings_of(plan: Plan, rows: Sequence[Row]) -> list[Finding]:
    """A finding for each cell and metric, metric by metric."""
    found = []
    for stage in plan.stages:
        for metric in stage.metrics:
            values = {cell.name: values_of(rows, cell, (stage.name, metric)) for cell in plan.cells}
            tables = score_tables(plan, stage, metric)
            for cell in plan.cells:
                mine, base = cell.name, plan.baseline_of(cell)
                scores = together(sorted(values[mine]), tables[mine])
                clips = over_clips_and_seeds(scores[0]) if scores else None
                comparison = None
                if cell != base:
                    comparison = _compare(values[mine], values[base.name], tables[mine], tables[base.name])
                of = np.array(list(values[mine].values()))
                found.append(Finding(stage.name, metric, cell, of, clips, base, comparison))
    return found


def _compare(
    mine: Mapping[int, float],
    base: Mapping[int, float],
    scores: Mapping[int, Mapping[str, float]],
    others: Mapping[int, Mapping[str, float]],
) -> Comparison | None:
    """A cell against its baseline, with the seeds that both have; None: there are none.

    Args:
        mine, base: seed -> value.
        scores, others: seed -> clip -> score, of both.
    """
    seeds = sorted(set(mine) & set(base))
    if not seeds:
        return None
    differences = np.array([mine[seed] - base[seed] for seed in seeds])
    found = together(seeds, scores, others)
    clips = over_clips_and_seeds(found[0] - found[1]) if found else None
    return Comparison(over_seeds(differences), clips, p_value(differences), len(seeds))


def write_results(plan: Plan, rows: Sequence[Row], costs: Mapping[str, tuple[float, float]], path: Path) -> None:
    """A line for each row: its place on the axes, seed, metrics, costs, commit, and what is missing.

    Args:
        costs: name of a cell -> millions of parameters of its encoder, and GFLOP of a clip.
    """
    keys = [(stage.name, metric) for stage in plan.stages for metric in stage.metrics]
    names = [stage.name for stage in plan.stages]
    head: list[object] = [*plan.axes, "seed", *(f"{stage} {metric}" for stage, metric in keys), "encoder_parameters_m"]
    head += ["encoder_gflop", "seconds", "peak_memory_gb", *(f"{name} seconds" for name in names)]
    head += [*(f"{name} steps" for name in names), "commit", "missing"]
    lines: list[list[object]] = [head]
    for row in rows:
        seconds = [row.costs.get(name, {}).get("seconds") for name in names]
        known = [each for each in seconds if each is not None]
        memory = [each["peak_memory_gb"] for each in row.costs.values() if "peak_memory_gb" in each]
        lines.append(
            [
                *(row.cell.labels[axis] for axis in plan.axes),
                row.seed,
                *(_cell(row.values.get(key)) for key in keys),
                *map(_cell, costs.get(row.cell.name, (None, None))),
                _cell(sum(known) if known else None),
                _cell(max(memory) if memory else None),
                *map(_cell, seconds),
                *(_cell(row.costs.get(name, {}).get("steps")) for name in names),
                " ".join(sorted(row.commits)),
                "; ".join(f"{stage}: {why}" for stage, why in row.missing.items()),
            ]
        )
    write_csv(path, lines, end="\n")


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
                *(_cell(float(each.values.mean()) if count else None), _cell(deviation(each.values))),
                *_ends(each.clips),
                each.baseline.name,
                *((_cell(found.seeds.mean), *_ends(found.seeds), *_ends(found.clips)) if found else [""] * 5),
                _cell(found.p) if found else "",
                each.verdict,
            ]
        )
    write_csv(path, lines, end="\n")


def _ends(found: Interval | None) -> list[str]:
    return [_cell(found.low), _cell(found.high)] if found else ["", ""]


def _cell(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.6g}"
