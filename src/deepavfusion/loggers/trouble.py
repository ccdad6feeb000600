"""What is said of a logger that fails: once when it begins, and once at the end. Training goes on."""

from __future__ import annotations

import os
import re

from deepavfusion.utils.addresses import scrubbed
from deepavfusion.utils.console import say

SECRET = re.compile(r"key|token|password|secret", re.IGNORECASE)  # within the name of an environment variable


class Trouble:
    """Of one logger.

    Args:
        title: of it.
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self.first = ""  # the first failure
        self.lost = 0

    def tell(self, error: BaseException | str) -> None:
        """The first failure is printed."""
        if not self.first:
            self.first = in_a_line(error)
            say(f"{self.title}: {self.first}; training goes on", "yellow")

    def lose(self, count: int = 1, error: BaseException | str = "too much waits for it") -> None:
        """So many things are not shown."""
        self.tell(error)
        self.miss(count, error)

    def miss(self, count: int, error: BaseException | str) -> None:
        """The same at the end of the run, of which `say_again` tells."""
        self.first = self.first or in_a_line(error)
        self.lost += count

    def say_again(self) -> None:
        """At the end."""
        if self.lost:
            what = "1 entry of it is" if self.lost == 1 else f"{self.lost} entries are"
            say(f"{self.title}: {what} missing, the first because of: {self.first}", "yellow")
        elif self.first:
            say(f"{self.title}: nothing is missing, though for a while: {self.first}", "dim")


def in_a_line(error: BaseException | str) -> str:
    """The words of a library, without addresses' passwords and the values of secret environment variables."""
    text = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
    return scrubbed(text, (value for name, value in os.environ.items() if SECRET.search(name)))
