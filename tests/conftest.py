"""Fixtures for every test."""

from __future__ import annotations

import os
from pathlib import Path

# Tests run side by side, and threads that share a core only wait for each other: each process has cores of its own, and
# so have the processes it starts. Before torch counts them.
if "PYTEST_XDIST_WORKER" in os.environ and hasattr(os, "sched_setaffinity"):
    cores = sorted(os.sched_getaffinity(0))
    number, count = (
        int(os.environ["PYTEST_XDIST_WORKER"].removeprefix("gw")),
        int(os.environ["PYTEST_XDIST_WORKER_COUNT"]),
    )
    os.sched_setaffinity(0, cores[number::count] or cores)

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Training sets the number of threads for its process; the next test begins with one again."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_clips() -> Path:
    """A folder of real clips beside the repository, where there is one; they are never committed."""
    folder = Path(__file__).resolve().parents[1] / ".." / "shared" / "clips"
    if not folder.is_dir():
        pytest.skip("no real clips beside the repository")
    return folder
