"""Rules for config values: what is allowed, as a test and in words."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Rule:
    """What a value has to be, in words that follow "expected" and as a test; `a | b` allows either.

    Args:
        choices: the values that are listed one by one.
        literal: whether any text is meant as it stands, such as a path: nothing in it is a list or a number.
    """

    expected: str
    holds: Callable[[Any], bool]
    choices: tuple[Any, ...] = ()
    literal: bool = False

    def __or__(self, other: Rule) -> Rule:
        return Rule(
            f"{self.expected} or {other.expected}",
            lambda v: self.holds(v) or other.holds(v),
            self.choices + other.choices,
            all(rule.literal or rule.choices == (None,) for rule in (self, other)),
        )


def whole(least: int, most: int) -> Rule:
    return Rule(f"a whole number from {least} to {most}", lambda v: type(v) is int and least <= v <= most)


def number(least: float, most: float, ends: str = "[]") -> Rule:
    """A range that includes its limits where `ends` has square brackets, e.g. "(]"."""

    def holds(v: Any) -> bool:
        inside = type(v) in (int, float) and least <= v <= most  # never so for nan
        return inside and (v != least or ends[0] == "[") and (v != most or ends[1] == "]")

    low, high = "of at least" if ends[0] == "[" else "above", "at most" if ends[1] == "]" else "below"
    return Rule(f"a number {low} {least:g} and {high} {most:g}", holds)


def one_of(*choices: Any) -> Rule:
    words = ["null" if c is None else str(c).lower() if isinstance(c, bool) else str(c) for c in choices]
    return Rule(" or ".join(words), lambda v: any(type(v) is type(c) and v == c for c in choices), choices)


def list_of(rule: Rule, count: int | None = None) -> Rule:
    """A list of `count` values; None: of any length, also empty."""
    words = f"a list, each item {rule.expected}" if count is None else f"a list of {count}, each item {rule.expected}"
    return Rule(words, lambda v: isinstance(v, list) and count in (None, len(v)) and all(map(rule.holds, v)))


def some_of(rule: Rule) -> Rule:
    """A list of at least one value."""
    return Rule(f"a list of at least one, each {rule.expected}", lambda v: v != [] and list_of(rule).holds(v))


def is_text(value: Any) -> bool:
    if not isinstance(value, str) or "\0" in value:
        return False
    try:
        os.fsencode(value)  # a name of a file need not be UTF-8
    except UnicodeEncodeError:
        return False
    return True


def is_utf8(text: str) -> bool:
    return text.encode(errors="replace").decode() == text


SPDX = Rule(
    "an SPDX identifier in lower case such as cc-by-4.0",
    lambda v: isinstance(v, str) and bool(re.fullmatch(r"[a-z0-9][a-z0-9.+-]{1,58}", v)),
)
