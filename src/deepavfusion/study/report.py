"""The report of a study: report.md, results.csv, summary.csv, pairs.csv and plots."""

from __future__ import annotations

import itertools
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

from deepavfusion.figures.style import save_figure
from deepavfusion.runs.lock import InUseError, locked
from deepavfusion.runs.provenance import provenance
from deepavfusion.study.cost import sizes
from deepavfusion.study.definition import Cell
from deepavfusion.study.findings import (
    LEAST,
    Finding,
    Pair,
    findings_of,
    lower_is_better,
    measured_of,
    pairs_of,
    write_pairs,
    write_summary,
)
from deepavfusion.study.plan import Plan
from deepavfusion.study.plots import draw_axis, draw_trade
from deepavfusion.study.results import Row, rows_of, values_of, write_results
from deepavfusion.study.statistics import Interval, deviation
from deepavfusion.utils.console import say
from deepavfusion.utils.files import link, write_whole
from deepavfusion.utils.program import CLONE

LOOK_EVERY = 0.5  # s
Sizes = Mapping[str, tuple[float, float]]


def report(plan: Plan) -> None:
    """Write the report of what is finished, and point `latest` to it."""
    found = provenance(CLONE)
    about = {
        "command": f"`{found['command']}`",
        "scale": f"{plan.scale}{', quick' if plan.quick else ''}",
        "date": found["date"],
    }
    known, latest = sizes(plan), plan.folder / "latest"
    with _alone(plan.reports):
        write_report(plan, rows_of(plan, plan.failures), known, about, plan.reports)
        shown = latest if link(latest, os.path.relpath(plan.reports, plan.folder)) else plan.reports
    say(f"report: {shown / 'report.md'}")


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait for other jobs that write a report: so the last one has seen all that they did."""
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(locked(folder))
                break
            except InUseError:
                time.sleep(LOOK_EVERY)
        yield


def write_report(plan: Plan, rows: Sequence[Row], sizes: Sizes, about: Mapping[str, str], folder: Path) -> None:
    """Write the report of what is finished into a folder.

    Args:
        sizes: see `cost.sizes`.
        about: what the report says of itself, such as the command.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_results(plan, rows, sizes, folder / "results.csv")
    machines = sorted(set().union(*(row.machines for row in rows)))
    lines = [f"# Study: {plan.name}", "", plan.question, ""]
    lines += _table(("", ""), [*about.items(), ("machine", "; ".join(machines) or "–")])
    lines += ["", *_state(plan, rows), "", "## Results", "", _legend(plan), "", *_results(plan, rows)]
    measured = measured_of(plan, rows)
    findings = findings_of(plan, measured)
    write_summary(plan, findings, folder / "summary.csv")
    if len(plan.cells) > 1:
        pairs = pairs_of(plan, measured)
        write_pairs(pairs, folder / "pairs.csv")
        for (stage, metric), found in itertools.groupby(findings, key=lambda each: (each.stage, each.metric)):
            lines += ["", f"### {stage}: `{metric}`", "", *_details(list(found), len(plan.seeds))]
        compared = sum(each.comparison is not None and each.comparison.tells for each in findings)
        lines += ["", _explained(plan, compared), *_pairs(plan, pairs)]
    lines += ["", "## Cost", "", *_costs(plan, rows, sizes)]
    if len(plan.cells) > 1:
        pictures = _draw(plan, rows, sizes, folder)
        for path in set(folder.glob("*.png")) - {folder / name for name, _ in pictures}:
            path.unlink()  # of other metrics that were reported before
        lines += ["", "## Plots", ""] + [f"![{title}]({name})" for name, title in pictures]
    missing = [(f"{row.cell.name}, seed {row.seed}", stage, why) for row in rows for stage, why in row.missing.items()]
    if missing:
        lines += ["", "## Not run", "", *_table(("cell", "stage", "why"), missing)]
    write_whole(folder / "report.md", "\n".join(lines) + "\n")


def _state(plan: Plan, rows: Sequence[Row]) -> list[str]:
    done, commits = sum(run.finished for run in plan.runs), sorted(set().union(*(row.commits for row in rows)))
    cells = f" of {len(plan.cells)} cells" if len(plan.cells) > 1 else ""
    by = f", made by commit {commits[0]}" if len(commits) == 1 else ""
    lines = [f"{done} of {len(plan.runs)} runs{cells} are finished, with {_list(plan.seeds)}{by}."]
    if len(commits) > 1:
        lines.append(f"They were made by different commits ({', '.join(commits)}), which may explain differences.")
    if len(gpus := sorted(set().union(*(row.gpus for row in rows)))) > 1:
        lines.append(
            f"Runs had {' or '.join(map(str, gpus))} GPUs: their batches differ, which may explain differences."
        )
    if len(plan.seeds) < LEAST:
        lines.append(f"Fewer than {LEAST} seeds cannot tell a difference from chance.")
    return lines


def _legend(plan: Plan) -> str:
    return f"Mean ± standard deviation over {_list(plan.seeds)}, or as many of them as are named; a dash: no value."


def _explained(plan: Plan, compared: int) -> str:
    return (
        f"Differences are from the baseline ({plan.baseline_name}), of pairs of runs with the same seed. Intervals "
        "are of 95 %. The one over seeds (Student's t) says what other seeds would give on these test clips, and "
        "decides: a difference counts as supported if it excludes 0. The one over seeds and clips (bootstrap) allows "
        "for other test clips, too, but takes the spread of few seeds as it is, so that it is too narrow; a dash: the "
        f"metric is no mean over clips. Of {compared} such comparisons, {0.05 * compared:.1f} would be expected to "
        "count as supported by chance alone."
    )


def _pairs(plan: Plan, pairs: Sequence[Pair]) -> list[str]:
    """Differences between cells that are no baseline, of those that the seeds support."""
    others = [each for each in pairs if each.comparison.tells and plan.baseline_of(each.cells[0]) not in each.cells]
    if not others:
        return []
    found = [each for each in others if each.comparison.supported]
    lines = [
        [
            *(each.stage, f"`{each.metric}`", *(cell.name for cell in each.cells)),
            *(f"{each.comparison.seeds.mean:+.3f}", _interval(each.comparison.seeds), _p(each.comparison.p)),
        ]
        for each in found
    ]
    but = f", but not on {' or '.join(plan.incomparable)}" if plan.incomparable else ""
    said = (
        f"`pairs.csv` compares every two cells that differ on one axis{but}. Of its {len(others)} comparisons without "
        f"a baseline, the seeds support {len(found)}; chance alone would be expected to give {0.05 * len(others):.1f}"
    )
    head = ["stage", "metric", "cell", "compared with", "difference", "95 %, seeds", "p"]
    return ["", f"{said}{':' if lines else '.'}", *(["", *_table(head, lines)] if lines else [])]


def _results(plan: Plan, rows: Sequence[Row]) -> list[str]:
    """A line for each cell and a column for each metric; of one cell, a line for each metric."""
    keys = {f"{stage.name}: `{metric}`": (stage.name, metric) for stage in plan.stages for metric in stage.metrics}
    of = {
        cell.name: [
            spread(np.array(list(values_of(rows, cell, key).values())), len(plan.seeds)) for key in keys.values()
        ]
        for cell in plan.cells
    }
    if len(of) == 1:
        (values,) = of.values()
        return _table(["", "mean ± deviation"], list(zip(keys, values, strict=True)))
    return _table(["", *keys], [[name, *values] for name, values in of.items()])


def spread(values: np.ndarray, seeds: int) -> str:
    """Mean ± standard deviation, to three digits after the point; of how many seeds, if some are missing."""
    if not len(values):
        return "–"
    of = f" ({len(values)} of {seeds} seeds)" if len(values) < seeds else ""
    return f"{values.mean():.3f} ± {f'{deviation(values):.3f}' if len(values) > 1 else '–'}{of}"


def _details(findings: Sequence[Finding], seeds: int) -> list[str]:
    """A line for each cell: its mean with intervals, and its difference from the baseline."""
    both = "95 %, seeds and clips"
    lines = []
    for each in findings:
        line = [each.cell.name, spread(each.values, seeds), _interval(each.clips, "")]
        if found := each.comparison:
            line += [f"{found.seeds.mean:+.3f}", _interval(found.seeds), _interval(found.clips)]
            line += [_p(found.p), each.verdict]
        else:
            line += ["", "", "", "", each.verdict]
        lines.append(line)
    return _table(["", "mean ± deviation", both, "difference", "95 %, seeds", both, "p", ""], lines)


def _p(value: float) -> str:
    return "–" if math.isnan(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _costs(plan: Plan, rows: Sequence[Row], sizes: Sizes) -> list[str]:
    lines, seconds = [], _seconds(plan, rows)
    for cell in plan.cells:
        mine = [row for row in rows if row.cell == cell]
        memory = [cost["peak_memory_gb"] for row in mine for cost in row.costs.values() if "peak_memory_gb" in cost]
        parameters, gflop = sizes[cell.name]
        taken = f"{seconds[cell.name]:.0f}" if cell.name in seconds else "–"
        lines.append([cell.name, f"{parameters:.2f}", f"{gflop:.3f}", taken, f"{max(memory):.2f}" if memory else "–"])
    head = ["", "encoder: parameters, M", "encoder: GFLOP a clip", "seconds, all stages", "peak memory, GB"]
    partly = any(row.partly for row in rows)
    note = ["", "Some runs were killed, and their seconds are of the other starts only."] if partly else []
    return [
        *_table(head, lines),
        *(
            "",
            "GFLOP: of a clip as the first stage reads it. Seconds: mean over seeds, with everything that a run does.",
        ),
        *note,
        *("", *_steps(plan, rows)),
    ]


def _steps(plan: Plan, rows: Sequence[Row]) -> list[str]:
    """Whether cells that are compared took the same number of steps, with each seed; a table of the stages where they
    did not."""
    lines, differ = [], dict[str, list[str]]()
    same = " and ".join(["seed", *plan.incomparable])
    for stage in plan.stages:
        found = [(row, int(row.costs[stage.name]["steps"])) for row in rows if "steps" in row.costs.get(stage.name, {})]
        every = {steps for _, steps in found}
        seen = {(row.seed, _alike(plan, row.cell), steps) for row, steps in found}
        if len(seen) > len({each[:2] for each in seen}):
            lines.append(f"- {stage.name}: {_range(every)} optimizer steps; they **differ** between cells.")
            differ[stage.name] = [_range({n for row, n in found if row.cell == cell}) for cell in plan.cells]
        elif found:
            having = " that has it" if len({row.cell.name for row, _ in found}) < len(plan.cells) else ""
            where = f"{having} and the same {same}" if having else f" with the same {same}"
            lines.append(
                f"- {stage.name}: {_range(every)} optimizer steps, the same in every cell"
                f"{where if len(every) > 1 else having}."
            )
    if differ:
        cells = [[cell.name, *steps] for cell, *steps in zip(plan.cells, *differ.values(), strict=True)]
        lines += ["", *_table(["optimizer steps", *differ], cells)]
    if any(run.midway for run in plan.runs):
        lines += ["", "What starts from the middle of a run is charged all of it, seconds and steps."]
    return lines


def _range(numbers: set[int]) -> str:
    return " to ".join(map(str, sorted({min(numbers), max(numbers)}))) if numbers else "–"


def _seconds(plan: Plan, rows: Sequence[Row]) -> dict[str, float]:
    """Name of a cell -> seconds of all its stages, mean over the seeds that are complete."""
    found = {}
    for cell in plan.cells:
        if each := [row.seconds for row in rows if row.cell == cell and row.seconds is not None]:
            found[cell.name] = float(np.mean(each))
    return found


def _draw(plan: Plan, rows: Sequence[Row], sizes: Sizes, folder: Path) -> list[tuple[str, str]]:
    """Draw the plots; their file names and titles."""
    found, seconds = [], _seconds(plan, rows)
    for stage in plan.stages:
        for metric in stage.metrics:
            values = {cell.name: list(values_of(rows, cell, (stage.name, metric)).values()) for cell in plan.cells}
            values = {name: each for name, each in values.items() if each}
            if not values:
                continue
            stem, title = f"{stage.name}_{metric.rpartition('/')[2]}", f"{stage.name}: {metric}"
            if sum(name.rpartition("/")[2] == metric.rpartition("/")[2] for name in stage.metrics) > 1:
                stem = f"{stage.name}_{metric.replace('/', '_')}"
            for number, axis in enumerate(plan.axes, 1):
                if axis in plan.incomparable:
                    continue
                name = f"{stem}.png" if len(plan.axes) == 1 else f"{stem}_{number}.png"
                lines = _lines(plan, axis, values)
                save_figure(draw_axis(lines, list(plan.axes[axis]), metric, f"{stage.name}, by {axis}"), folder / name)
                found.append((name, f"{title}, by {axis}"))
            for number, (alike, group) in enumerate(_comparable(plan, values).items(), 1):
                if not group:
                    continue
                ending, of = (f"_cost_{number}", f", {alike}") if alike else ("_cost", "")
                costs = {
                    "GFLOP of the encoder for a clip": {name: sizes[name][1] for name in group},
                    "seconds, all stages": {name: each for name, each in seconds.items() if name in group},
                }
                known = {kind: cost for kind, cost in costs.items() if cost}
                save_figure(draw_trade(group, known, metric, lower_is_better(metric)), folder / f"{stem}{ending}.png")
                found.append((f"{stem}{ending}.png", f"{title}, and cost{of}"))
    return found


def _comparable(plan: Plan, values: Mapping[str, list[float]]) -> dict[str, dict[str, list[float]]]:
    """The cells with values, by `_alike`: all that there is, so that its place does not depend on what is finished."""
    groups: dict[str, dict[str, list[float]]] = {_alike(plan, cell): {} for cell in plan.cells}
    for cell in plan.cells:
        if cell.name in values:
            groups[_alike(plan, cell)][cell.name] = values[cell.name]
    return groups


def _alike(plan: Plan, cell: Cell) -> str:
    """What cells that are compared have in common: their labels on the axes whose values cannot be compared."""
    return ", ".join(cell.labels[axis] for axis in plan.incomparable)


def _lines(plan: Plan, axis: str, values: Mapping[str, Sequence[float]]) -> dict[str, dict[str, Sequence[float]]]:
    """What the cells have on the other axes -> label on this one -> values. Where one axis varies at a time, only the
    cells of this one."""
    lines: dict[str, dict[str, Sequence[float]]] = {}
    for cell in plan.cells:
        others = {each: label for each, label in cell.labels.items() if each != axis}
        away = any(plan.baseline.labels[each] != label for each, label in others.items())
        if cell.name not in values or (plan.vary == "one" and away):
            continue
        name = "" if plan.vary == "one" else ", ".join(others.values())
        lines.setdefault(name, {})[cell.labels[axis]] = values[cell.name]
    return lines


def _interval(found: Interval | None, sign: str = "+") -> str:
    return "–" if found is None or math.isnan(found.low) else f"[{found.low:{sign}.3f}, {found.high:{sign}.3f}]"


def _list(seeds: Sequence[int]) -> str:
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"


def _table(head: Sequence[str], lines: Sequence[Sequence[object]]) -> list[str]:
    """A table of Markdown."""
    rows = [head, ["---"] * len(head), *lines]
    return ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in rows]
