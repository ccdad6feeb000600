"""The loggers of a run: made from its config, and ended with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning import Trainer
from lightning.pytorch.loggers import Logger

from deepavfusion.config.compose import instantiate
from deepavfusion.loggers.csv import CsvLogger
from deepavfusion.loggers.service import Service
from deepavfusion.runs.signals import StopRequested
from deepavfusion.utils.commands import command
from deepavfusion.utils.errors import TemporaryError
from deepavfusion.utils.launch.signals import on_leaving


def make(configured: Mapping[str, Any], resume_step: int | None) -> list[Logger]:
    """The loggers of a config.

    Args:
        configured: name -> config.
        resume_step: what was logged for this step and later ones is replaced; None: nothing was.
    """
    purge = {"purge_step": resume_step}
    return [instantiate(logger, **(purge if "purge_step" in logger else {})) for logger in configured.values()]


@contextmanager
def ended(trainer: Trainer) -> Iterator[None]:
    """End what the loggers of a trainer began, whichever way the block ends."""

    def close(status: str) -> None:
        open_ones = [logger for logger in trainer.loggers if isinstance(logger, (Service, CsvLogger))]
        if open_ones:  # all at once: after a signal there is little time, and each may be slow
            with ThreadPoolExecutor(len(open_ones)) as threads:
                list(threads.map(lambda logger: logger.close(status), open_ones))

    on_leaving(lambda: close("stopped"))
    try:
        yield
    except BaseException as error:
        close("stopped" if isinstance(error, (StopRequested, TemporaryError, KeyboardInterrupt)) else "failed")
        raise
    close("stopped" if trainer.interrupted else "finished")


def watching(loggers: Sequence[Logger], run_dir: Path) -> list[str]:
    """The commands that show what is logged."""
    templates = (getattr(logger, "watch", None) for logger in loggers)
    return [command(each, run_dir=str(run_dir), absolute=str(run_dir.resolve())) for each in templates if each]
