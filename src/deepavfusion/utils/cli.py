"""What the entry points share: a user's mistake ends in one sentence and exit status 2."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

from rich.console import Console

from deepavfusion.utils.errors import UserError


def run_and_report(main: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate the function below `@hydra.main`: a `UserError` is printed in red and exits with status 2.

    Hydra would otherwise print its own traceback and exit with 1. Every other exception passes.
    """

    @functools.wraps(main)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return main(*args, **kwargs)
        except UserError as error:
            Console(stderr=True, soft_wrap=True).print(str(error), style="bold red", markup=False, highlight=False)
            sys.exit(2)

    return wrapped
