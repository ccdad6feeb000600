"""Which videos are for tests, and how long ones are cut into windows."""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Container, Hashable, Mapping, Sequence

Class = Hashable


def held_out_videos(
    classes_of: Mapping[str, Sequence[Class]], share: float, seed: int, usable: Container[str] | None = None
) -> set[str]:
    """A seeded share of the videos, such that each class with two or more has some on either side, where that can be.

    Each video is drawn by itself, by its key: others that come or go leave it where it is, but for a class of which
    all or none would be held out.

    Args:
        classes_of: key of a video -> its classes; without classes, none.
        share: 0…1.
        usable: keys of the videos that count where a class needs some on either side; None: all.
    """
    draws = {key: zlib.crc32(f"test/{seed}/{key}".encode(errors="surrogateescape")) for key in classes_of}
    chosen = {key for key, draw in draws.items() if draw < share * 2**32}
    members: dict[Class, list[str]] = defaultdict(list)
    for key, classes in classes_of.items():
        for each in (classes or (None,)) if usable is None or key in usable else ():
            members[each].append(key)
    if not 0 < share < 1:
        return chosen
    for _, keys in sorted(members.items(), key=lambda item: (len(item[1]), str(item[0]))):
        ordered = sorted(keys, key=lambda key: (draws[key], key))
        if len(ordered) > 1 and not chosen.intersection(ordered):
            chosen.add(ordered[0])
        elif len(ordered) > 1 and chosen.issuperset(ordered):
            chosen.remove(ordered[-1])
    return chosen


def windows(
    seconds: float, each: float, start: float = 0.0, end: float | None = None, most: int | None = None
) -> list[tuple[float, float | None]]:
    """Start and end (s) of the windows of a video, or of a part of it.

    The last one takes what is left: half a window to one and a half.

    Args:
        seconds: how long the video is.
        each: length of a window.
        start, end: of the part; None: to the end of the video.
        most: at most so many of them, evenly spread; None: all.

    Returns:
        At least one window; an end of None is that of the video.
    """
    last = seconds if end is None else min(end, seconds)
    number = max(1, int((last - start) / each + 0.5))
    begins = [start + n * each for n in range(number)]
    final = end if end is not None and end < seconds else None
    found = list(zip(begins, [*begins[1:], final], strict=True))
    if most is None or number <= most:
        return found
    return [found[int((n + 0.5) * number / most)] for n in range(most)]


def name_of(path: str, window: tuple[float, float | None]) -> str:
    """The id of a window: `a/b.mp4@10-20`, or `a/b.mp4@20-end`."""
    start, end = window
    return f"{path}@{_number(start)}-{'end' if end is None else _number(end)}"


def _number(seconds: float) -> str:
    """Without zeros at the end: 10, 2.5"""
    return f"{seconds:.3f}".rstrip("0").rstrip(".")
