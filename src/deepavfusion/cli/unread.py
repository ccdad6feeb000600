"""Keys that not every task of predict.py, or command of prepare.py, reads: they would be ignored without a word."""

from __future__ import annotations

from collections.abc import Sequence

from deepavfusion.cli.fixes import Fix
from deepavfusion.config.overrides import split_override

TASKS = {  # of predict.py and prepare.py, which have a function for each
    ("predict", "task"): ("separate", "segment", "classify", "features", "search"),
    ("prepare", "command"): ("demo", "verify", "pack"),
}
READ_BY = {  # keys, and sections, that not every task or command reads
    ("predict", "task"): {
        "video": ("separate", "segment", "classify"),
        **dict.fromkeys(("boxes", "sources"), ("separate",)),
        "masks_per_second": ("segment",),
        "hop_seconds": ("classify",),
        "top_k": ("classify", "search"),
        **dict.fromkeys(("input", "level", "passes"), ("features",)),
        **dict.fromkeys(("index", "query", "match"), ("search",)),
        **dict.fromkeys(("windows", "num_workers", "time_limit"), ("features", "search")),
    },
    ("prepare", "command"): {
        **dict.fromkeys(("root", "sets", "package"), ("demo",)),
        **dict.fromkeys(("data", "splits", "time_limit"), ("verify", "pack")),
        **dict.fromkeys(("output", "pack"), ("pack",)),
    },
}
INSTEAD = {  # what such a key is called in other tasks
    ("video", "features"): "input",
    ("video", "search"): "query",
    ("input", "search"): "index",
    **{("input", task): "video" for task in ("separate", "segment", "classify")},
    **{(key, "demo"): "root" for key in ("output", "data.root")},
    **{("root", command): "data.root" for command in ("verify", "pack")},
}


def fix_unread(script: str, overrides: Sequence[str], meant: Sequence[str]) -> Fix | None:
    """For a key that the task, or the command, among what is `meant` does not read."""
    for (name, chooser), readers in READ_BY.items():
        given = [split_override(each)[2] for each in meant if split_override(each)[1] == chooser]
        if name != script or not given or given[-1] not in TASKS[script, chooser] or len(overrides) != 1:
            continue
        _, key, value = split_override(overrides[0])
        takes = readers.get(key.partition(".")[0], given)
        if given[-1] not in takes and value != "null":
            names = [split_override(each)[1] for each in meant]
            better = INSTEAD.get((key, given[-1]))
            problem = f"{chooser}={given[-1]} does not read {key}, which is for {chooser}={' or '.join(takes)}"
            return Fix(problem, [f"{better}={value}"] if better and better not in names else [])
    return None
