"""The results of a benchmark as CSV, table and figure."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich import get_console
from rich.table import Table

from deepavfusion.figures.style import new_figure, save_figure, styled
from deepavfusion.runs.provenance import code_state, cpu_name, short, version_of
from deepavfusion.utils import files
from deepavfusion.utils.console import cell
from deepavfusion.utils.launch.cores import cores

Row = dict[str, Any]
LIBRARIES = ("torch", "av", "decord", "litdata", "pillow")


@dataclass
class BenchmarkReport:
    """The results of a benchmark."""

    rows: list[Row]  # all have the same columns
    title: str  # of the table
    draw: Callable[[Path], None]  # writes the figure (PNG)
    summary: list[str] = field(default_factory=list)  # lines to print below the table
    shown: Sequence[str] = ()  # columns of the table; empty: all


def environment(repository: Path | None) -> Row:
    """Machine, versions and commit, as columns; `repository`: see `code_state`."""
    code = code_state(repository)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    versions = {"python": platform.python_version(), **{name: version_of(name) for name in LIBRARIES}}
    commit = f"{short(str(code['commit']))}{'-dirty' * (code['dirty'] is True)}"
    return {"machine": cpu_name(), "cores": cores(), "gpu": gpu, **versions, "commit": commit}


def write_csv(rows: list[Row], path: Path) -> None:
    """One line per row, which all have the same columns."""
    lines = ([f"{value:.6g}" if isinstance(value, float) else value for value in row.values()] for row in rows)
    files.write_csv(path, [list(rows[0]), *lines])


def show(rows: list[Row], title: str) -> None:
    """Print a table, with settings that all rows share in its title; a single row as one line per column."""
    if len(rows) == 1:
        table = Table(title=title, title_justify="left", show_header=False)
        for name, value in rows[0].items():
            table.add_row(name, cell(_cell(value)))
        get_console().print(table)
        return
    values = {name: [row[name] for row in rows] for name in rows[0]}
    numbers = [name for name in values if any(isinstance(value, float) for value in values[name])]
    shared = [name for name in values if name not in numbers and len(set(values[name])) == 1]
    title = " · ".join([title, *(f"{name} {values[name][0]}" for name in shared if values[name][0] is not None)])
    table = Table(title=title, title_justify="left")
    for name in values:
        if name not in shared:
            right = name in numbers or any(type(value) is int for value in values[name])
            table.add_column(name.replace("_", "\n"), justify="right" if right else "left", no_wrap=right)
    for row in rows:
        table.add_row(*(cell(_cell(value).replace("_", " ")) for name, value in row.items() if name not in shared))
    get_console().print(table)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.2f}" if abs(value) >= 1 or value == 0 else f"{value:.3g}"
    return "" if value is None else f"{value:,}" if type(value) is int else str(value)


@styled
def stacked_bars(rows: list[Row], names: list[str], parts: Sequence[str], unit: str, path: Path) -> None:
    """One bar per row, stacked from its parts; those that are 0 everywhere are not in the legend."""
    figure = new_figure(7, 0.4 * len(rows) + 1.5, layout="constrained")
    axes = figure.subplots()
    left = [0.0] * len(rows)
    shown = [part for part in parts if any(row[part] for row in rows)]
    for part in shown:
        widths = [row[part] for row in rows]
        bars = axes.barh(names, widths, left=left, label=part.removesuffix("_ms").replace("_", " "))
        left = [begin + width for begin, width in zip(left, widths, strict=True)]
    axes.bar_label(bars, [f"{total:,.1f}" for total in left], padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set_xlabel(unit)
    axes.legend(ncols=len(shown), loc="lower center", bbox_to_anchor=(0.5, 1))
    save_figure(figure, path)
