"""What the runs of a study found: a row a cell and seed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deepavfusion.runs.directory import METRICS, PROVENANCE
from deepavfusion.runs.provenance import short
from deepavfusion.study.definition import Cell, Chain, Run
from deepavfusion.study.plan import Plan
from deepavfusion.study.work import costs_of, failure_of
from deepavfusion.utils.errors import UserError
from deepavfusion.utils.files import write_csv
from deepavfusion.utils.reading import RECORD, read_json


@dataclass
class Row:
    """A cell with a seed.

    Args:
        values: (stage, metric) -> value of what is reported.
        costs: stage -> seconds, peak_memory_gb, parts and steps, see `work.costs_of`.
        commits: of the code of its runs.
        machines: that its runs were on.
        gpus: numbers of GPUs that its runs had.
        partly: whether seconds and memory are those of some starts of its runs only, since others were killed.
        missing: stage -> why there is no result.
    """

    cell: Cell
    seed: int
    values: dict[tuple[str, str], float] = field(default_factory=dict)
    costs: dict[str, dict[str, float]] = field(default_factory=dict)
    commits: set[str] = field(default_factory=set)
    machines: set[str] = field(default_factory=set)
    gpus: set[int] = field(default_factory=set)
    partly: bool = False
    missing: dict[str, str] = field(default_factory=dict)

    @property
    def seconds(self) -> float | None:
        """Of all stages; None: those of one are not known."""
        known = [cost["seconds"] for cost in self.costs.values() if "seconds" in cost]
        return sum(known) if known and len(known) == len(self.costs) and not self.missing else None


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
        for name, gpus in machines_of(run):
            row.machines.add(name)
            row.gpus.add(gpus)
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


def machines_of(run: Run) -> list[tuple[str, int]]:
    """CPU, cores and GPUs of each start of a run, in words, and the number of its GPUs."""
    found = []
    for machine in [start.get("machine") for start in starts_of(run)]:
        match machine:
            case {"cpu": str(cpu), "cores": int(cores), "gpus": list(gpus)}:
                names = [f"{count} × {name}" for name, count in Counter(map(str, gpus)).items()]
                found.append((", ".join([cpu, f"{cores} core{'s' * (cores != 1)} a run", *names]), len(gpus)))
    return found


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
        memory = [each["peak_memory_gb"] for each in row.costs.values() if "peak_memory_gb" in each]
        lines.append(
            [
                *(row.cell.labels[axis] for axis in plan.axes),
                row.seed,
                *(as_text(row.values.get(key)) for key in keys),
                *map(as_text, costs.get(row.cell.name, (None, None))),
                as_text(row.seconds),
                as_text(max(memory) if memory else None),
                *map(as_text, seconds),
                *(as_text(row.costs.get(name, {}).get("steps")) for name in names),
                " ".join(sorted(row.commits)),
                "; ".join(f"{stage}: {why}" for stage, why in row.missing.items()),
            ]
        )
    write_csv(path, lines, end="\n")


def as_text(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.6g}"
