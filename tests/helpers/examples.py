"""Many drawn values for one test, without what Hypothesis keeps on disk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from hypothesis import HealthCheck, given, settings

SEEN: Counter[str] = Counter()  # what the readers did, for each test anew


def examples(test: Callable[..., None], count: int, *strategies: object) -> None:
    """Call `test` with many values drawn from the strategies, the same ones every time."""
    quiet = settings(
        max_examples=count, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    SEEN.clear()
    quiet(given(*strategies)(test))()  # type: ignore[arg-type]
    assert not SEEN or min(SEEN["read"], SEEN["refused"]) >= count // 20, SEEN  # of each kind enough
