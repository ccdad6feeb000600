"""Small packed data, made without a decoder."""

from __future__ import annotations

import io
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image

from deepavfusion.data.lists.clip_list import ClipList
from deepavfusion.data.stores.pack import PackSettings, _finish, _parts, write_part
from deepavfusion.data.stores.packed import FORMAT, MANIFEST, Item
from deepavfusion.types import Clip
from deepavfusion.utils.files import write_whole


def small_pack(root: Path, per_chunk: int = 4, **counts: int) -> Path:
    """So many clips of each split, of two classes, 130 kB each: six frames of 32 × 32, and 4 s of noise."""
    settings, splits = PackSettings(clips_per_chunk=per_chunk), {}
    root.mkdir(parents=True)
    for split, count in counts.items():
        clips = ClipList(split, [Clip(f"{split}{n:04d}", "", n % 2) for n in range(count)], ["a", "b"])
        parts = list(_parts(clips, settings))
        (root / split).mkdir()
        for part in parts:
            write_part(part, {clip.id: item(clip) for clip in part.clips}, root)
        splits[split] = _finish(root, clips, parts)
    manifest = {"format": FORMAT, "name": "vggsound", "reader": {}, "settings": asdict(settings), "splits": splits}
    write_whole(root / MANIFEST, json.dumps(manifest))
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
