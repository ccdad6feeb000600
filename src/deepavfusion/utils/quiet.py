"""Silence what libraries print in every run and nobody can act on; each message by its own words."""

from __future__ import annotations

import logging
import sys
import threading
import warnings

WARNINGS = (  # how they begin
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning of torch; every run
    r"The `srun` command is available on your system but is not used",
    r"The '\w+' does not have many workers which may be a bottleneck",  # data.num_workers follows the cores
    r"The number of training batches \(\d+\) is smaller than the logging interval",  # a short trial
    r"Checkpoint directory .* exists and is not empty",  # a run that resumes
    r"Be aware that when using `ckpt_path`, callbacks",  # a run that resumes names them itself, config/continued.py
    r"pkg_resources is deprecated as an API",
)
NOTICES = (  # loggers that report, at level INFO, what a run's first lines say, and advertise
    "lightning.pytorch.utilities.rank_zero",
    "lightning.fabric.utilities.rank_zero",
    "lightning_utilities.core.rank_zero",
    "lightning.pytorch.accelerators.cuda",
)


def quiet() -> None:
    """Apply both lists, unless Python was told what to do with warnings (-W, PYTHONWARNINGS)."""
    if not sys.warnoptions:
        for message in WARNINGS:
            warnings.filterwarnings("ignore", message)
    for name in NOTICES:
        logging.getLogger(name).addFilter(_is_warning)
    threading.excepthook = _report_from_thread


def _is_warning(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING


def _report_from_thread(args: threading.ExceptHookArgs) -> None:
    """Not what a thread keeps for whoever uses it next, as TensorBoard's writer does on a full disk."""
    if getattr(args.thread, "exception", None) is not args.exc_value:
        threading.__excepthook__(args)
