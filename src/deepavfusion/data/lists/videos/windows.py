"""How long videos are cut into windows."""

from __future__ import annotations


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
