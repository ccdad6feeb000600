"""The list of a retrieval test: which clips of a split are compared with each other.

A JSON file, perhaps compressed (.json.gz), as CAV-MAE published it: {"data": [{"video_id": "<id>_<start:06d>", …}, …]}.
Its other values are paths of its authors, and classes ("labels": "vgg_<n>"), which the dataset knows.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from deepavfusion.data.lists.clip_list import ClipList
from deepavfusion.data.lists.text import count
from deepavfusion.types import Clip
from deepavfusion.utils.console import say_once
from deepavfusion.utils.errors import UserError
from deepavfusion.utils.files import no_file
from deepavfusion.utils.reading import RECORD, read_json

KEY, SPLIT = "retrieval_list", "test"
EXPECTED = 'a list of clips, {"data": [{"video_id": "<id>_<start>"}, …]}'
FIX = f"give data.index.{KEY}=<file>, see docs/datasets.md, or null for all clips of the {SPLIT} split"


def for_reader(index: Callable[..., ClipList]) -> Callable[..., ClipList]:
    """A reader with its arguments, without a retrieval list where it takes none: only VGGSound has one, and the
    experiment names it whatever the data is."""
    given: dict[str, Any] = getattr(index, "keywords", {})
    if not isinstance(index, partial) or KEY not in given or KEY in inspect.signature(index.func).parameters:
        return index
    if given[KEY] is not None:
        say_once(f"data.index.{KEY} is of VGGSound's clips: here, all of the split are compared", "yellow")
    return partial(index.func, *index.args, **{key: value for key, value in given.items() if key != KEY})


def named_clips(clips: ClipList, path: str | None) -> ClipList:
    """The clips of the test split that a retrieval list names, some of them missing perhaps; other splits as they are.

    Args:
        clips: a split.
        path: of the list; None: there is none.

    Raises:
        UserError: no such file, or not such a list; or it names a clip that the split does not list.
    """
    if path is None or clips.split != SPLIT:
        return clips
    ids = _read(Path(path))
    listed = {clip.id for clip in (*clips.clips, *clips.missing, *(clip for clip, _ in clips.excluded))}
    if unknown := sorted(ids - listed):
        raise UserError(
            f"{path} names {count(len(unknown), 'clip')} that the {SPLIT} split does not list (e.g. "
            f"{unknown[0]!a:.80}), expected some of its {len(listed)}: {FIX}."
        )

    def named(clip: Clip) -> bool:
        return clip.id in ids

    return replace(
        clips,
        clips=list(filter(named, clips.clips)),
        missing=list(filter(named, clips.missing)),
        excluded=[(clip, why) for clip, why in clips.excluded if named(clip)],
        notes=[*clips.notes, f"{len(ids)} of its {len(listed)} clips are evaluated, those of {path}."],
    )


def _read(path: Path) -> set[str]:
    if wrong := no_file(path):
        raise UserError(f"the list {path} {wrong}; expected {EXPECTED}: {FIX}.")
    found = read_json(path, RECORD, EXPECTED)
    rows = found.get("data") if isinstance(found, dict) else None
    if not isinstance(rows, list) or not rows:
        raise UserError(f"{path} has no clips; expected {EXPECTED}: {FIX}.")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or not isinstance(row.get("video_id"), str):
            raise UserError(f"{path}: entry {number} is {row!r:.80}; expected {EXPECTED}: {FIX}.")
    return {row["video_id"] for row in rows}
