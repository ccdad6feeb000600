"""Fixtures for every test."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tests run side by side; more threads than cores only wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_clips() -> Path:
    """A folder of real clips beside the repository, where there is one; they are never committed."""
    folder = Path(__file__).resolve().parents[1] / ".." / "shared" / "clips"
    if not folder.is_dir():
        pytest.skip("no real clips beside the repository")
    return folder
