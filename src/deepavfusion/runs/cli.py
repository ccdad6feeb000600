"""What the entry points share: a user's mistake ends in one sentence and exit status 2, a stop in 75."""

from __future__ import annotations

import errno
import functools
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from hydra.errors import HydraException, InstantiationException
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from deepavfusion.runs.signals import STOPPED, StopRequested
from deepavfusion.utils.console import rank_zero
from deepavfusion.utils.errors import UserError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def run_and_report(main: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate the function below `@hydra.main`: a `UserError` is printed in red and exits with status 2.

    A run that was asked to stop, and can go on, says so and exits with status 75 (`signals.STOPPED`). A full disk is no
    bug, either. Every other exception is one and keeps its traceback.
    """

    @functools.wraps(main)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return main(*args, **kwargs)
        except UserError as error:
            _fail(str(error))
        except StopRequested as stop:
            if rank_zero():
                Console(stderr=True, soft_wrap=True).print(str(stop), style="yellow", markup=False, highlight=False)
            # A process that Lightning started is watched by the first one, which takes another status for a failure.
            sys.exit(STOPPED if rank_zero() else 0)
        except OSError as error:
            if error.errno not in FULL:
                raise
            where = error.filename or "a file of the run"
            _fail(
                f"{where} could not be written ({error.strerror}): make room, and give the same command again, with "
                "resume=<run directory> where the run has no name; it goes on from its last checkpoint."
            )
        except HydraException as error:
            if isinstance(error, InstantiationException):
                raise
            _fail(one_sentence(error))

    return wrapped


def run(main: Callable[[], Any]) -> None:
    """Call a `@hydra.main` function; an unknown experiment, key or value is told in one sentence, too."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # hands us the exception instead of printing it
    try:
        main()
    except InstantiationException:
        raise
    except (HydraException, OmegaConfBaseException) as error:
        _fail(one_sentence(error))


def one_sentence(error: Exception) -> str:
    """Hydra's words, without the search path and on one line."""
    text = str(error).split("Config search path")[0].replace("\n\nAvailable options", "; available options")
    return " ".join(text.split())


def _fail(sentence: str) -> NoReturn:
    Console(stderr=True, soft_wrap=True).print(sentence, style="bold red", markup=False, highlight=False)
    sys.exit(2)
