"""What is known of a checkpoint's training and results: from its record, and from the directory of its run.

All of it may come from anyone: only values of the expected kind are taken, and what is not there is not known.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deepavfusion.callbacks.terminal.results import chances_of
from deepavfusion.runs.directory import BEST, CHECKPOINTS, LAST, METRICS, PROVENANCE
from deepavfusion.sharing.folder import Shared
from deepavfusion.utils.reading import RECORD, read_json
from deepavfusion.weights.guard import COMMIT
from deepavfusion.weights.hub import Address, address_of

METRIC = re.compile(r"\w[\w./-]{0,99}", re.ASCII)
VERSION = re.compile(r"[\w.+-]{1,40}", re.ASCII)
SHOWN = ("deepavfusion", "torch", "torchaudio", "lightning")  # versions
SPLITS = ("train", "val", "test")
LONGEST = 200  # characters of a text


@dataclass
class Facts:
    """See above.

    Args:
        metrics: name -> value, of this checkpoint; empty: not recorded.
        headline: name -> label of the main ones.
        chance: beginning of a name -> its value by chance.
        coverage: split of the run -> the dataset's name of it, clips that are there, clips that are listed.
        seed, commit: None: not recorded.
        dirty: whether the code was changed since that commit.
        versions: of libraries.
        hardware: CPU and GPUs.
        started_from: origins of start weights, without paths.
        scratch: whether there were none.
        base: addresses of start weights on the Hub.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    headline: dict[str, str] = field(default_factory=dict)
    chance: dict[str, float] = field(default_factory=dict)
    coverage: dict[str, tuple[str, int, int]] = field(default_factory=dict)
    seed: int | None = None
    commit: str | None = None
    dirty: bool = False
    versions: dict[str, str] = field(default_factory=dict)
    hardware: list[str] = field(default_factory=list)
    started_from: list[str] = field(default_factory=list)
    scratch: bool = False
    base: list[Address] = field(default_factory=list)


def facts_of(shared: Shared) -> Facts:
    """What is known of a checkpoint.

    Raises:
        UserError: a record in the directory of its run cannot be read.
    """
    record, facts = shared.record, Facts()
    summary = _inside(record, "config", "callbacks", "run_summary", "headline")
    if isinstance(summary, dict):
        named = [(name, label) for name, label in summary.items() if isinstance(label, str)]
        facts.headline = {name: label[:LONGEST] for name, label in named[:50] if _is_name(name)}
    model, classes = record.get("model", {}), record.get("classes")
    facts.chance = chances_of(len(classes) if isinstance(classes, list) else 0, model.get("multi_label") is True)
    path = Path(shared.source)
    if address_of(shared.source) is None and path.parent.name == CHECKPOINTS and path.suffix == ".ckpt":
        _add_provenance(facts, path.parent.parent / PROVENANCE)
        facts.metrics = _metrics_of(path)
        if "test/map_chance" in facts.metrics:
            facts.chance["map"] = facts.metrics["test/map_chance"]
    return facts


def _metrics_of(path: Path) -> dict[str, float]:
    """Those in `metrics.json` of a finished run that are about this checkpoint.

    A run tests the best weights by validation, if it keeps them, and those of the last step otherwise; its other
    metrics are those of the last step.
    """
    file = path.parent.parent / METRICS
    if not file.is_file():
        return {}
    found = read_json(file, RECORD, "the metrics of a run")
    items = found.items() if isinstance(found, dict) else ()
    metrics = {name: float(value) for name, value in items if _is_name(name) and _is_finite(value)}
    best, last = path.with_name(BEST), path.with_name(LAST)
    if path.name == BEST:
        return {name: value for name, value in metrics.items() if name.startswith(("test/", "data/"))}
    if not last.exists() or last.resolve() != path.resolve():
        return {}
    if best.exists():
        return {name: value for name, value in metrics.items() if not name.startswith(("test/", "data/"))}
    return metrics


def _add_provenance(facts: Facts, path: Path) -> None:
    if not path.is_file():
        return
    found = read_json(path, RECORD, "the provenance of a run")
    starts = found.get("starts") if isinstance(found, dict) else None
    starts = [each for each in starts if isinstance(each, dict)] if isinstance(starts, list) else []
    if not starts:
        return
    first, last = starts[0], starts[-1]
    commits = {each.get("commit") for each in starts if isinstance(each.get("commit"), str)}
    if len(commits) == 1 and COMMIT.fullmatch(commit := commits.pop()):
        facts.commit, facts.dirty = commit, any(each.get("dirty") is not False for each in starts)
    facts.seed = seed if type(seed := first.get("seed")) is int and 0 <= seed < 2**63 else None
    versions = last.get("versions")
    if isinstance(versions, dict):
        known = {name: versions.get(name) for name in SHOWN}
        facts.versions = {n: v for n, v in known.items() if isinstance(v, str) and VERSION.fullmatch(v)}
    cpu, gpus = _inside(last, "machine", "cpu"), _inside(last, "machine", "gpus")
    hardware = [cpu, *(gpus[:16] if isinstance(gpus, list) else [])]
    facts.hardware = [each[:LONGEST] for each in hardware if isinstance(each, str) and "/" not in each]
    for split in SPLITS:
        each = _inside(last, "data", "coverage", split)
        if isinstance(each, dict) and all(_is_count(each.get(key)) for key in ("present", "listed")):
            name = each.get("split")
            name = name[:LONGEST] if isinstance(name, str) and "/" not in name else split
            facts.coverage[split] = name, each["present"], each["listed"]
    weights = first.get("weights")
    facts.scratch = weights == []
    for each in weights[:4] if isinstance(weights, list) else []:
        _add_start(facts, each)


def _add_start(facts: Facts, start: Any) -> None:
    """An origin, see `weights.origin.Origin.described`."""
    if not isinstance(start, dict):
        return
    texts = [start.get(key) for key in ("task", "data")]
    task, data = (each[:LONGEST] if isinstance(each, str) and "/" not in each else None for each in texts)
    demo = " (generated demo clips)" if start.get("demo") is True else ""
    steps = f", {start['steps']} steps" if _is_count(start.get("steps")) else ""
    words = " on ".join(filter(None, (task and f"a network of the task {task}", data and f"{data}{demo}")))
    checkpoint = start.get("checkpoint")
    address = _address(checkpoint) if isinstance(checkpoint, str) else None
    if address:
        facts.base.append(address)
    where = f" ({address})" if address else ""
    facts.started_from.append(f"{words or 'weights without a record'}{steps}{where}")


def _address(text: str) -> Address | None:
    try:
        address = address_of(text)
    except Exception:
        return None
    return address if address and address.pinned else None


def _inside(value: Any, *names: str) -> Any:
    for name in names:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _is_name(name: object) -> bool:
    return isinstance(name, str) and bool(METRIC.fullmatch(name))


def _is_finite(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 10**12
