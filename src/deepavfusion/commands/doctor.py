"""Is this machine fit for a run? `python src/doctor.py`. Keys: configs/doctor.yaml."""

from __future__ import annotations

import os
import sys
import tempfile
from functools import partial
from pathlib import Path

from deepavfusion.utils.program import CLONE, starting

try:
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import DictConfig
    from rich import get_console
    from rich.live import Live
except ImportError as error:
    fix = "run make doctor; if you did, delete .venv first" if CLONE else "pip install it in a new environment"
    sys.exit(f"{sys.executable} cannot import {error.name} ({error}): {fix}.")

from deepavfusion.cli.entry import entry, run
from deepavfusion.config.compose import choices, compose
from deepavfusion.doctor import machine, software
from deepavfusion.doctor.examine import Check, Found, as_table, examine
from deepavfusion.doctor.smoke import smoke_train
from deepavfusion.utils.errors import UserError
from deepavfusion.utils.launch.cores import decoding_workers
from deepavfusion.utils.launch.launcher import COUNTS, VARIABLES, launch
from deepavfusion.utils.processes import check_folder

STARTED_WITH = dict(os.environ)
MISSED: list[UserError] = []  # what other commands would not start without
# Torch may be what is broken: only the processes of the checks import it.


def checks(cfg: DictConfig, chosen: str, overrides: list[str]) -> dict[str, Check]:
    """Name -> check, in the order of the table; `chosen` is the data config in `cfg`."""
    logs = Path(cfg.paths.log_dir)
    places = {"paths.log_dir=<folder>": logs, "TMPDIR": Path(os.environ.get("TMPDIR") or "/tmp")}
    if not os.path.isdir(cfg.data.root):  # the demo will be generated
        places["paths.data_dir=<folder>"] = Path(cfg.paths.data_dir)
    waveform = round(16_000 * cfg.data.audio_seconds) * 4  # bytes
    batch = cfg.data.batch_size * (3 * cfg.data.image_size**2 + waveform)
    workers = decoding_workers() if cfg.data.num_workers is None else cfg.data.num_workers
    found: dict[str, Check] = {
        "code": partial(software.code, CLONE),
        "packages": partial(software.packages, CLONE),
        "imports": software.imports,
        "cores and memory": machine.cores_and_memory,
        "GPUs": software.gpus,
        "decoders": software.decoders,
        "writing": partial(machine.writing, places),
        "log disk": partial(machine.log_disk, logs, cfg.free_gb, cfg.write_mb, cfg.least_mb_per_s),
        "shared memory": partial(machine.shared_memory, batch, workers),
        "temporary files": partial(machine.temporary_files, places["TMPDIR"]),
        "open files": machine.open_files,
        "user": machine.user,
        "variables": partial(machine.variables, STARTED_WITH),
        "current folder": partial(machine.current_folder, MISSED),
    }
    shared = [value for value in overrides if not value.lstrip("+~").startswith(("data=", "data.", "data/"))]
    for name in choices("data"):
        mine = name == chosen
        data = cfg.data if mine else compose("doctor", [*shared, f"data={name}"]).data
        if mine or os.path.exists(data.root):
            given = mine and any(value.startswith("data.root=") for value in overrides)
            found[f"data={name}"] = partial(machine.dataset, data, given, cfg.least_mb_per_s)
    if cfg.smoke_train:
        found["smoke train"] = partial(smoke_train, starting("train"), 0.8 * cfg.time_limit)
    return found


def settle() -> None:
    """Let this command start wherever it is given; its checks report what others would stop at."""
    if launch().by not in VARIABLES or launch().processes == 1:
        for name in COUNTS:
            os.environ.pop(name, None)
    try:
        check_folder()
    except UserError as error:
        MISSED.append(error)
        os.chdir(CLONE or tempfile.gettempdir())


@entry("doctor")
def main(cfg: DictConfig) -> None:
    hydra_config = HydraConfig.get()
    todo = checks(cfg, hydra_config.runtime.choices["data"], list(hydra_config.overrides.task))
    console, found = get_console(), list[Found]()
    with Live(console=console, auto_refresh=False, transient=True) as live:  # no thread, since checks are forked
        for name, check in todo.items():
            live.update(as_table(found, running=name), refresh=console.is_terminal)
            found.append(examine(name, check, cfg.time_limit))
    console.print(as_table(found))
    wrong = [each.name for each in found if not each.ok]
    console.print(f"to fix: {', '.join(wrong)}" if wrong else f"all {len(found)} checks are ok", soft_wrap=True)
    if wrong:
        sys.exit(1)


def start() -> None:
    """What the shell calls."""
    settle()
    run(main)
