"""One number for what a run reads: it changes when a list, a label or a file does."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from hashlib import sha256

from deepavfusion.data.index import ClipList
from deepavfusion.data.verify_report import signature
from deepavfusion.types import Clip


def dataset_hash(lists: Mapping[str, ClipList]) -> str:
    """SHA-256 over what each split lists, and over the sizes of the clips on disk; their content is not read.

    It depends neither on where the files are nor on the order of a list. Of packed clips the size is that of their
    chunk.

    Args:
        lists: by role, as in `ClipDataModule.lists`.

    Returns:
        64 hex digits, over: roles, names of splits, names of classes, and of each clip id, video, label, labels, frames,
        whether it is there, missing or excluded and why, and bytes (of an annotated folder those of the files in use);
        and the fixed mixtures.
    """
    digest = sha256()
    sizes: dict[tuple[str, tuple[int, ...]], str | None] = {}  # a split may have several roles

    def size(clip: Clip) -> str | None:
        key = clip.path, clip.frames
        if key not in sizes:
            found = signature(*key)
            sizes[key] = found[0] if found else None
        return sizes[key]

    def rows(clips: ClipList) -> Iterator[tuple[Clip, str, str | None]]:
        yield from ((clip, "", size(clip)) for clip in clips.clips)
        yield from ((clip, "missing", None) for clip in clips.missing)
        yield from ((clip, why, size(clip)) for clip, why in clips.excluded)

    for role, clips in sorted(lists.items()):
        head = [role, clips.split, clips.classes, clips.multi_label, sorted(clips.mixtures)]
        digest.update(json.dumps(head).encode())
        for clip, state, length in sorted(rows(clips), key=lambda row: (row[0].id, row[1])):
            line = [clip.id, clip.video, clip.label, clip.labels, clip.frames, state, length]
            digest.update(json.dumps(line).encode())
    return digest.hexdigest()
