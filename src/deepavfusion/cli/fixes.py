"""What is answered to a wrong command line."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field

from deepavfusion.utils.errors import UserError
from deepavfusion.utils.program import called


class Hint(UserError):
    """Words of a command line that mean nothing, what was probably meant, and a line that works.

    Args:
        clauses: a problem each.
        line: the words of the command, without `python src/<script>.py`.
    """

    def __init__(self, script: str, clauses: Sequence[str], line: Sequence[str]) -> None:
        self.line = list(line)
        shown = shlex.join([*called(script), *line])
        Exception.__init__(self, f"{' '.join(clauses)} Type: {shown}")  # blanks in names stay as they are


@dataclass
class Fix:
    """What is wrong with a word, and overrides to give instead of it: none, if it is to be left out.

    Args:
        problem: a clause.
        better: these overrides.
        others: further ones that may be meant.
        why: an explanation.
        experiment: the override that brings the key.
        runs: whether several runs are meant.
    """

    problem: str
    better: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    why: str = ""
    experiment: list[str] = field(default_factory=list)
    runs: bool = False

    def __str__(self) -> str:
        others = f" (or {', '.join(self.others)})" if self.others else ""
        advice = f"choose one of {', '.join(self.others)}, or leave it out." if self.others else "leave it out."
        if self.better:
            advice = f"did you mean {shlex.join([*self.experiment, *self.better])}{others}?"
        return f"{self.problem}{f' ({self.why})' if self.why else ''}: {advice}"
