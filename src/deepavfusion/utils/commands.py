"""Commands to copy: with the interpreter of this process, and paths from the current folder."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from deepavfusion.utils.console import from_here

SCRIPTS = Path(__file__).resolve().parents[2]


def command(template: str, lists: dict[str, list[str]] | None = None, **values: object) -> str:
    """A command line for the shell.

    Args:
        template: words with blanks between them; the first is a script beside train.py, or `tensorboard`.
        lists: name -> the words that replace the word `{name}`.
        values: name -> what replaces `{name}` within a word.
    """
    program, *rest = template.split()
    words = [_tensorboard()] if program == "tensorboard" else [_python(), from_here(str(SCRIPTS / program))]
    for word in rest:
        several = (lists or {}).get(word.strip("{}")) if word.startswith("{") else None
        words += [word.format(**values)] if several is None else several
    return shlex.join(from_here(word) for word in words)


def _python() -> str:
    """As it was called: `python`, or `.venv/bin/python` by make."""
    called = sys.orig_argv[0]
    return called if Path(called).name.startswith("python") else sys.executable


def _tensorboard() -> str:
    python = Path(_python())
    return "tensorboard" if python.name == str(python) else str(python.with_name("tensorboard"))
