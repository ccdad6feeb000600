"""The main results of a run as a table: each beside what it has to be compared with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

COMPARED = {  # suffix of the metric that a result is compared with -> title of the column
    "_before": "untrained",
    "_untrained": "untrained",
    "_chance": "chance",
    "_zero_shot": "zero\nshot",
    "_joint": "joint",
    "_mixture": "mixture",
    "_wrong_frame": "wrong\nframe",
    "_wrong_audio": "wrong\naudio",
    "_ideal": "ideal",
    "_first": "epoch 1",
    "_head": "head",
    "_frequent": "frequent\nclasses",
    "_perfect": "perfect\nlabels",
}
CHANCE = "chance"
RESULT = "result"
TITLES = [*dict.fromkeys([RESULT, "untrained", CHANCE, *COMPARED.values()])]
ROWS = 8  # with the next commands they fit a screen of 24 lines


def results_table(
    metrics: Mapping[str, float], headline: Mapping[str, str], chance: Mapping[str, float], title: str = "Results"
) -> Table:
    """At most `ROWS` rows: label, name, value, and what it is compared with, in the columns that are not empty.

    Args:
        metrics: name -> value; before training, there are only those to compare with.
        headline: name -> label, the most important first; the others are left out.
        chance: beginning of a name -> its value by chance.
    """
    shown = [name for name in headline if name in metrics or f"{name}_zero_shot" in metrics][:ROWS]
    rows = {name: row_of(name, metrics, chance) for name in shown}
    titles = [title for title in TITLES if any(title in row for row in rows.values())]
    table = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0))
    table.add_column("", no_wrap=True)
    table.add_column("metric", no_wrap=True, style="dim")
    for column in titles:
        table.add_column(column, justify="right", no_wrap=True)
    for n, (name, row) in enumerate(rows.items()):
        table.add_row(headline[name], name, *(number(row.get(title)) for title in titles), style="" if n else "bold")
    return table


def row_of(name: str, metrics: Mapping[str, float], chance: Mapping[str, float]) -> dict[str, float]:
    """Title of a column -> value, see `results_table`."""
    found = [(CHANCE, value) for start, value in chance.items() if name.partition("/")[2].startswith(start)]
    columns = {"": RESULT, **COMPARED}.items()
    return dict(found) | {title: metrics[name + suffix] for suffix, title in columns if name + suffix in metrics}


def number(value: float | None) -> str:
    """0.123, 12.3"""
    return "" if value is None else f"{value:.3f}" if abs(value) < 10 else f"{value:,.1f}"


def chances(datamodule: Any) -> dict[str, float]:
    """What guessing gives, by the beginning of a metric's name; classes are taken to be equally frequent.

    For mAP it is the share of positive labels among the test clips.
    """
    classes = len(getattr(datamodule, "classes", []))
    if not classes or not datamodule.multi_label:
        return chances_of(classes, multi_label=False)
    clips = datamodule.lists["test"].clips
    share = sum(len(clip.classes) for clip in clips) / max(1, len(clips)) / classes
    return {"map": share, **chances_of(classes, multi_label=True)}


def chances_of(classes: int, multi_label: bool) -> dict[str, float]:
    """See `chances`, of a number of classes alone."""
    if not classes:
        return {}
    if multi_label:
        return {"auc": 0.5, "dprime": 0.0}
    streams = ("fusion", "audio", "image", "combined")  # of knn/… and knn_train/…
    return dict.fromkeys((*streams, "top1"), 1 / classes) | {"top5": min(1.0, 5 / classes)}


def example_video(datamodule: Any) -> str:
    """A video that predict.py can open: a test clip; where those are folders or packed, one of demo sets nearby."""
    lists = getattr(datamodule, "lists", {})
    paths = [Path(clip.path) for clip in lists["test"].clips[:100]] if "test" in lists else []
    if paths and paths[0].suffix in ("", ".bin"):  # a chunk of packed data
        paths = sorted(Path(datamodule.root).parent.glob("*/clips/*/*.mp4"))
    videos = [path for path in paths if path.is_file() and "${" not in str(path)]  # which Hydra would look up
    plain = [path for path in videos if not set(" ,=[]{}'\"()") & set(str(path)) and "/-" not in str(path)]
    return str(next(iter(plain or videos), "clip.mp4"))
