"""Small packed data, made without a decoder."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deepavfusion.data.lists.clip_list import ClipList
from deepavfusion.data.stores import pack
from deepavfusion.data.stores.packed import Item
from deepavfusion.types import Clip


def small_pack(root: Path, per_chunk: int = 4, **counts: int) -> Path:
    """So many clips of each split, of two classes, 130 kB each: six frames of 32 × 32, and 4 s of noise."""
    lists = {
        split: ClipList(split, [Clip(f"{split}{n:04d}", "", n % 2) for n in range(count)], ["a", "b"])
        for split, count in counts.items()
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pack, "call_apart", lambda read, jobs, *_: ((job, item(job[1])) for job in jobs))
        pack.pack(lists, root, "vggsound", pack.PackSettings(clips_per_chunk=per_chunk), 1)
    return root


def item(clip: Clip) -> Item:
    random = np.random.default_rng(list(clip.id.encode()))
    file = io.BytesIO()
    spans = []
    for _ in range(6):
        begin = file.tell()
        Image.fromarray(random.integers(0, 256, (32, 32, 3), np.uint8)).save(file, "JPEG")
        spans += [begin, file.tell()]
    return {
        "id": clip.id.encode(),
        "jpegs": file.getvalue(),
        "masks": b"",
        "sound": random.integers(-9999, 9999, 64_000, np.int16).tobytes(),
        "times": np.arange(6) * 0.5,
        "spans": np.array(spans),
        "mask_seconds": np.array([], np.int64),
        "mask_spans": np.array([], np.int64),
        "labels": np.array([clip.label]),
        "shape": np.array([32, 32]),
        "ends": np.array([4.0, 3.0]),
    }
