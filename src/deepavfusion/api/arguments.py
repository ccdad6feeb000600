"""Checks arguments, numbers and words against the ranges of the keys of the commands, and names them as Python does."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from deepavfusion.config.ranges import RULES
from deepavfusion.config.rules import Rule
from deepavfusion.media import Recording, Source
from deepavfusion.utils.errors import ArgumentError, UserError

PYTHON = {"null": "None", "true": "True", "false": "False"}  # words of a config
WRAP = "arrays go into deepavfusion.Recording(image=…, waveform=…, sample_rate=…)"


def check_argument(name: str, value: object, rule: Rule) -> None:
    """Raise an `ArgumentError` unless a value is what a rule allows."""
    if not rule.holds(float(value) if isinstance(value, np.floating) else value):
        expected = re.sub(rf"\b({'|'.join(PYTHON)})\b", lambda word: PYTHON[word[0]], rule.expected)
        raise ArgumentError(f"{name} is {value!r:.80}, expected {expected}.")


def check_arguments(**values: Any) -> None:
    """Check arguments that are keys of predict.py, too; None is none of their values."""
    for name, value in values.items():
        given, rule = value is not None, RULES[name]
        check_argument(name, value, Rule(rule.expected.removesuffix(" or null"), rule.holds if given else _nothing))


def _nothing(_: object) -> bool:
    return False


def path_of(name: str, value: object) -> str:
    """A path or address as text; an empty one would mean the current folder."""
    text = os.fspath(value) if isinstance(value, (str, os.PathLike)) else None
    if not isinstance(text, str) or not text:
        raise ArgumentError(f"{name} is {value!r:.80}, expected text or a path.")
    return text


def is_source(source: object) -> bool:
    """Whether it is one source, and no list.

    Raises:
        ArgumentError: it is a path without a name.
    """
    if isinstance(source, (str, os.PathLike)):
        path_of("source", source)
        return True
    return isinstance(source, Recording)


def listed(sources: Any) -> list[Source]:
    """A list of sources.

    Raises:
        ArgumentError: it is none, or has something else in it.
    """
    if isinstance(sources, (np.ndarray, torch.Tensor, bytes, dict)) or not isinstance(sources, Iterable):
        raise ArgumentError(
            f"source is of type {type(sources).__name__}, expected a path, a Recording, or a list of these; {WRAP}."
        )
    given = list(sources)
    for n, each in enumerate(given):
        if not is_source(each):
            raise ArgumentError(
                f"source[{n}] is of type {type(each).__name__}, expected a path or a Recording; {WRAP}."
            )
    return given


def plain(value: Any) -> Any:
    """Lists and numbers in the place of arrays, tensors and their numbers, also inside lists."""
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    return value.tolist() if isinstance(value, (np.ndarray, np.generic, torch.Tensor)) else value


@contextmanager
def in_words_of(names: Mapping[str, str]) -> Iterator[None]:
    """Let errors of this block name arguments, where they would name the keys that hold them in a config.

    Args:
        names: key -> argument.
    """
    try:
        yield
    except UserError as error:
        keys = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
        text = re.sub(rf"(?<![\w/.-])({keys})(?!\w|\.\w|/)", lambda key: names[key[0]], str(error))
        raise type(error)(text).with_traceback(error.__traceback__) from None
