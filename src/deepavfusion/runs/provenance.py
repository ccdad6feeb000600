"""Where results come from: code, versions, command and machine, recorded in the run directory."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from deepavfusion.runs.directory import PROVENANCE
from deepavfusion.utils.errors import UserError
from deepavfusion.utils.files import write_whole
from deepavfusion.utils.launch.cores import cores
from deepavfusion.utils.program import CLONE, typed
from deepavfusion.utils.reading import RECORD, read_json

UNKNOWN, NOT_FINISHED = "unknown", "not finished"
LIBRARIES = (
    *("torch", "torchvision", "torchaudio", "lightning", "timm", "torchmetrics", "numpy"),
    *("hydra-core", "av", "decord", "litdata", "pillow"),
)
GIT_SECONDS = 10


def record_provenance(
    run_dir: Path,
    seed: int | None,
    data: Mapping[str, Any],
    repository: Path | None = CLONE,
    weights: Sequence[Mapping[str, Any]] = (),
    changed: Sequence[str] = (),
) -> list[str]:
    """Add an entry for this start of a run to its `provenance.json`; to be called once, on the first process.

    Args:
        run_dir: of the run; entries of earlier starts are kept.
        seed: of the run.
        data: `dataset_hash`, which `complete` may replace later, and `coverage`, see runs/fingerprint.py.
        repository: see `code_state`.
        weights: origins of the checkpoints that weights were loaded from, see `weights.origin.Origin.described`.
        changed: values of the config that are others than before the run was resumed, a line each.

    Returns:
        Warnings to print, such as that the run is resumed with other code or data than it started with.
    """
    path, warnings = run_dir / PROVENANCE, []
    try:
        starts = _read(path)
    except (UserError, ValueError, KeyError, TypeError, RecursionError):  # not a reason to stop a run
        starts = []
        aside = path.replace(path.with_suffix(".damaged"))
        warnings.append(f"{path} could not be read: it was renamed {aside.name}, and a new one starts here")
    start = provenance(repository, seed) | {"data": dict(data), "weights": [dict(each) for each in weights]}
    starts.append(start | ({"changed": list(changed)} if changed else {}))
    write_whole(path, json.dumps({"starts": starts}, indent=2) + "\n")
    return warnings + _differences(starts, path, ("commit", "dataset_hash"))


def complete(run_dir: Path, dataset_hash: str) -> list[str]:
    """Write the hash of the data into the entry of this start, if it was not known before.

    Returns:
        Warnings to print, see `record_provenance`.
    """
    path = run_dir / PROVENANCE
    starts = _read(path)
    starts[-1]["data"]["dataset_hash"] = dataset_hash
    write_whole(path, json.dumps({"starts": starts}, indent=2) + "\n")
    return _differences(starts, path, ("dataset_hash",))


def _differences(starts: Sequence[Mapping[str, Any]], path: Path, names: Sequence[str]) -> list[str]:
    """A sentence on what is different from when the run began; where that is not known, from its next start."""
    other = []
    for name in names:
        known = [each for start in starts if (each := {**start, **start["data"]}[name]) not in (UNKNOWN, NOT_FINISHED)]
        now = {**starts[-1], **starts[-1]["data"]}[name]
        if now in known and now != known[0]:
            other.append(f"{name} {short(now, 8)}, was {short(known[0], 8)}")
    if not other:
        return []
    return [f"this run is resumed with other code or data than it started with ({'; '.join(other)}): see {path}"]


def _read(path: Path) -> list[dict[str, Any]]:
    """The earlier starts."""
    starts = read_json(path, RECORD, "the provenance of a run")["starts"] if path.exists() else []
    if not all(
        isinstance(value, str) for start in starts for value in (start["commit"], start["data"]["dataset_hash"])
    ):
        raise TypeError("a commit or dataset_hash is not text")
    return list(starts)


def provenance(repository: Path | None, seed: int | None = None) -> dict[str, Any]:
    """What is needed to reproduce a run, ready for JSON.

    Returns:
        `date` (UTC), `command`, `seed`, `commit` and `dirty` (see `code_state`), `versions` of project, Python,
        libraries and CUDA, and `machine`; "unknown" where that is so.
    """
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(typed()),
        "seed": seed,
        **code_state(repository),
        "versions": versions(),
        "machine": machine(),
    }


def code_state(repository: Path | None) -> dict[str, str | bool]:
    """`commit`, 40 hex digits, and `dirty`, whether files differ from it, untracked ones included.

    Args:
        repository: folder of the code; "unknown" both, if there is no git, or it is no repository. None: the code was
            installed, and `commit` is "version 0.1.0", or the commit, if it was installed from one.
    """
    if repository is None:  # which may lie in a repository of the user's
        return {"commit": _installed_commit() or f"version {version_of('deepavfusion')}", "dirty": False}
    try:
        return {
            "commit": _git(repository, "rev-parse", "HEAD"),
            "dirty": bool(_git(repository, "status", "--porcelain")),
        }
    except (OSError, subprocess.SubprocessError):
        return {"commit": UNKNOWN, "dirty": UNKNOWN}


def _installed_commit() -> str | None:
    """The commit that was installed by `pip install git+https://…`."""
    try:
        text = metadata.distribution("deepavfusion").read_text("direct_url.json")
        found = json.loads(text or "{}")["vcs_info"]["commit_id"]
    except (metadata.PackageNotFoundError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, str) else None


def short(commit: str, digits: int = 7) -> str:
    """A commit as git shows it; a version as it is."""
    return commit if commit.startswith("version ") else commit[:digits]


def _git(repository: Path, *words: str) -> str:
    # Without the variables of a git hook, which name another repository, and without waiting for locks.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    done = subprocess.run(
        ["git", "-C", str(repository), *words],
        env={**environment, "GIT_OPTIONAL_LOCKS": "0"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=GIT_SECONDS,
        check=True,
    )
    return done.stdout.strip()


def versions() -> dict[str, str]:
    """Of the project, Python, the libraries that results may depend on, and CUDA."""
    import torch  # here, as entry points without torch import this module

    found = {"deepavfusion": version_of("deepavfusion"), "python": platform.python_version()}
    found |= {name: version_of(name) for name in LIBRARIES}
    return found | {"torch_build": torch.__version__, "cuda": torch.version.cuda or "none"}


def version_of(name: str) -> str:
    """Of an installed package; "unknown" if it is not."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return UNKNOWN


def machine() -> dict[str, Any]:
    """CPU, cores this process may use, GPUs and operating system; no host name."""
    import torch

    gpus = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    return {"cpu": cpu_name(), "cores": cores(), "gpus": gpus, "system": system}


def cpu_name() -> str:
    """As the operating system names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
