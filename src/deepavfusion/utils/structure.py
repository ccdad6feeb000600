"""Compares plain data of a file with an example of what it should be: keys, types, shapes, ranges."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

MOST = 10**15  # of a whole number: steps, clips, batches


@dataclass(frozen=True)
class ListOf:
    """A list of any length, of values like this one."""

    like: Any


@dataclass(frozen=True)
class DictOf:
    """A dict with any names, of values like this one."""

    like: Any


@dataclass(frozen=True)
class Among:
    """A dict that has these values, and may have others, which are not checked."""

    likes: dict[Any, Any]


@dataclass(frozen=True)
class Maybe:
    """A value of a dict that may be missing."""

    like: Any


@dataclass(frozen=True)
class OneOf:
    """One of these numbers, texts, switches, or None."""

    values: tuple[Any, ...]


def misfit(found: Any, like: Any, name: str) -> str | None:
    """The first place where data differs from an example: "<name> is <this>, expected <that>"; None: nowhere.

    Args:
        found: the data, of plain values and tensors.
        like: an example: a dict has its keys; a list or tuple its length; a tensor its shape; a whole number is not
            negative, nor is a tensor of one number, such as a count of steps, unless the example is on the meta device
            and so has no value; a fraction is finite, unless the example is not; others have its type. The classes
            above stand for more than one value.
    """
    for place, value, example in _pairs(found, like, name):
        if wrong := _wrong(value, example):
            return f"{place} {wrong}"
    return None


def _pairs(found: Any, like: Any, name: str) -> Iterator[tuple[str, Any, Any]]:
    """Every value with its example; containers before what is in them."""
    like = like.like if isinstance(like, Maybe) else like
    yield name, found, like
    likes = like.likes if isinstance(like, Among) else like
    if isinstance(like, DictOf):
        inside = [(f".{key}", value, like.like) for key, value in found.items()]
    elif isinstance(likes, dict):
        inside = [(f".{key}", found[key], likes[key]) for key in likes if key in found]
    elif isinstance(like, ListOf):
        inside = [(f"[{n}]", value, like.like) for n, value in enumerate(found)]
    elif isinstance(like, (list, tuple)):
        inside = [(f"[{n}]", *pair) for n, pair in enumerate(zip(found, like, strict=True))]
    else:
        return
    for place, value, example in inside:
        yield from _pairs(value, example, f"{name}{place}".removeprefix("."))


def _wrong(value: Any, like: Any) -> str | None:
    likes = like.likes if isinstance(like, Among) else like
    if isinstance(likes, dict) and isinstance(value, dict):
        lacking = [key for key, example in likes.items() if key not in value and not isinstance(example, Maybe)]
        surplus = [] if isinstance(like, Among) else [key for key in value if key not in likes]
        if lacking or surplus:
            return f"has no {_shown(lacking[0])}" if lacking else f"has {_shown(surplus[0])}, which is unknown"
        return None
    expected = _expected(value, like)
    return expected and f"is {_shown(value)}, expected {expected}"


def _expected(value: Any, like: Any) -> str | None:
    """What the value should have been; None: it is."""
    number = type(value) in (int, float)
    if isinstance(like, OneOf):
        right = any(type(value) is type(choice) and value == choice for choice in like.values)
        words = " or ".join(map(_shown, like.values))
    elif isinstance(like, (DictOf, Among, dict)):
        right, words = isinstance(value, dict) and all(isinstance(key, str) for key in value), "a dict with names"
    elif isinstance(like, ListOf):
        right, words = isinstance(value, (list, tuple)), "a list"
    elif isinstance(like, (list, tuple)):
        right, words = isinstance(value, (list, tuple)) and len(value) == len(like), f"a list of {len(like)}"
    elif isinstance(like, Tensor):
        right, words = _fits(value, like), f"{like.dtype} of the shape {list(like.shape)}, finite"
    elif isinstance(like, bool):
        right, words = isinstance(value, bool), "true or false"
    elif isinstance(like, int):
        right, words = type(value) is int and 0 <= value <= MOST, "a whole number from 0"
    elif isinstance(like, float):
        right, words = number and (math.isfinite(value) or not math.isfinite(like)), "a finite number"
    else:
        right, words = type(value) is type(like), "nothing" if like is None else f"a {type(like).__name__}"
    return None if right else words


def _fits(value: Any, like: Tensor) -> bool:
    if not isinstance(value, Tensor) or value.shape != like.shape:
        return False
    if not like.is_floating_point() or not value.is_floating_point():
        return value.dtype == like.dtype
    if not like.is_meta and not torch.isfinite(like).all():
        return True
    return bool(torch.isfinite(value).all()) and (like.ndim > 0 or like.is_meta or value.item() >= 0)


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        finite = not value.is_floating_point() or bool(torch.isfinite(value).all())
        return f"{value.dtype} of the shape {list(value.shape)}{'' if finite else ', not finite'}"
    if isinstance(value, (dict, list, tuple)):
        return f"a {type(value).__name__} of {len(value)}"
    return repr(value)[:60]
