"""One line for the person at the terminal."""

from __future__ import annotations

from lightning.pytorch.utilities import rank_zero_only
from rich import get_console


def say(text: str, style: str | None = None) -> None:
    """Print a line as it is; long ones are not broken, brackets are no markup."""
    get_console().print(text, style=style, markup=False, highlight=False, soft_wrap=True)


@rank_zero_only
def say_once(text: str, style: str | None = None) -> None:
    """The same, on the first process only."""
    say(text, style)
