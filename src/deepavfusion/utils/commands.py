"""Commands to copy: as this one was called, and paths from the current folder."""

from __future__ import annotations

import shlex

from deepavfusion.utils.console import from_here
from deepavfusion.utils.program import REPOSITORY, beside_python, by_program, program, python

PROGRAMS = ("tensorboard", "wandb", "mlflow")  # installed beside Python


def command(template: str, lists: dict[str, list[str]] | None = None, **values: object) -> str:
    """A command line for the shell.

    Args:
        template: words with blanks between them; the first is a script beside train.py, or a program of `PROGRAMS`.
        lists: name -> the words that replace the word `{name}`.
        values: name -> what replaces `{name}` within a word.
    """
    first, *rest = template.split()
    if first in PROGRAMS:
        words = [beside_python(first)]
    elif by_program():
        words = [*program(), first.removesuffix(".py")]
    else:
        words = [python(), from_here(str(REPOSITORY / "src" / first))]
    for word in rest:
        several = (lists or {}).get(word.strip("{}")) if word.startswith("{") else None
        words += [word.format(**values)] if several is None else several
    return shlex.join(from_here(word) for word in words)
