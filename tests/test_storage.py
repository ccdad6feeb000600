"""Training from object storage through a cache: what heals gives the numbers of the local run, what does not is named.

The storage is moto on 127.0.0.1, with faults that a test injects.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from deepavfusion.data.datamodule import ClipDataModule
from deepavfusion.data.lists.vggsound import vggsound
from deepavfusion.data.storage import faults
from deepavfusion.data.storage.settings import StorageSettings
from deepavfusion.types import Batch
from helpers.packs import small_pack
from helpers.storage import Service, put_folder

ROOT = "s3://data/packed"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "PAUSES", (0.02, 0.05))


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 clips for training in six chunks, eight for testing in two."""
    return small_pack(tmp_path_factory.mktemp("pack") / "vggsound", train=24, test=8)


@pytest.fixture
def stored(s3: Service, packed: Path) -> Service:
    put_folder(s3, packed, "data", "packed")
    s3.asked.clear()
    return s3


def data(root: Path | str, cache: Path | None = None, patience: float = 5.0, **options: Any) -> ClipDataModule:
    options = {"batch_size": 4, "image_size": 32, "num_workers": 0, **options}
    storage = StorageSettings(patience_seconds=patience)
    module = ClipDataModule(vggsound, str(root), "vggsound", cache_dir=cache and str(cache), storage=storage, **options)
    module.setup()
    return module


def epoch(module: ClipDataModule, number: int = 0) -> list[Batch]:
    loader = module.train_dataloader()
    loader.sampler.set_epoch(number)
    return list(loader)


def same(one: list[Batch], other: list[Batch]) -> bool:
    return all(
        a.id == b.id and torch.equal(a.image, b.image) and torch.equal(a.waveform, b.waveform)
        for a, b in zip(one, other, strict=True)
    )


def gets(service: Service) -> Counter[str]:
    """How often each chunk was asked for."""
    return Counter(path.rpartition("/")[2] for path in service.asked if path.startswith("GET") and "chunk" in path)


def test_reads_what_a_folder_has(stored: Service, packed: Path, tmp_path: Path) -> None:
    local, remote = data(packed), data(ROOT, tmp_path)
    assert same(epoch(remote), epoch(local))
    assert set(gets(stored).values()) == {1}
    assert same(epoch(remote, 1), epoch(local, 1))
    assert len(gets(stored)) == sum(gets(stored).values()) == 6
    again = data(ROOT, tmp_path, num_workers=2)
    assert same(epoch(again, 2), epoch(local, 2))
    assert sum(gets(stored).values()) == 6
