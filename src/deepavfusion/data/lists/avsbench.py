"""AVSBench on disk: one table, the names of the classes, and a folder for each clip.

metadata.csv      header `vid,uid,s_min,s_sec,a_obj,split,label`; a_obj: the sounding objects, joined by "_"; split:
                  train|val|test; label: v1s (S4), v1m (MS3) or v2, which only AVSS uses
label2idx.json    {name: index}, "background" first; 71 names
<label>/<uid>/audio.wav, frames/<n>.jpg, labels_semantic/<n>.png    image and mask n are of time n + 0.5 s

The value of a mask's pixel plus `data.samples.label_offset` is a class index.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepavfusion.data.lists.clip_list import ClipList, Folders
from deepavfusion.data.lists.on_disk import ListedClip, fill_in, list_clips, unique
from deepavfusion.data.lists.text import check_choice, check_name, count, read_object, read_table, suggestion
from deepavfusion.types import Clip
from deepavfusion.utils.errors import UserError

COLUMNS = "vid,uid,s_min,s_sec,a_obj,split,label"
SPLITS = ("train", "val", "test")
LABELS_OF_SUBSET = {"s4": ("v1s",), "ms3": ("v1m",), "avss": ("v1s", "v1m", "v2")}
MASKS_OF_LABEL = {"v1s": 5, "v1m": 5, "v2": 10}  # of a clip; v1s in training 1
MOST_PARTS = 500  # of an a_obj; the time to parse one grows with their square
NAMES = "{name: index} with the indices 0, 1, 2, …"


@dataclass(frozen=True, slots=True)
class _Listed(ListedClip):
    sources: tuple[int, ...] = ()  # class indices, as written; `label` is the table's


def avsbench(
    root: str | Path,
    split: str,
    subset: str,
    clip_pattern: str = "{label}/{uid}",
    train_frames: str = "all",
    metadata: str = "metadata.csv",
    label2idx: str = "label2idx.json",
) -> ClipList:
    """Read one split of a subset of AVSBench.

    Args:
        root: the data folder; the other paths are below it.
        split: "train", "val" or "test".
        subset: "s4", "ms3" or "avss".
        clip_pattern: of a clip's folder; `str.format` fields uid, label and vid.
        train_frames: "first" trains on frame 0 only, "all" on each with a mask; other splits use them all.

    Returns:
        The split. Clip: id `<label>_<uid>`, path of the folder, `labels` the sorted class indices of its sounding
        objects, `label` the one written first, `frames` the seconds whose image and mask are on disk (of a missing
        clip, the published ones). `classes` are the names by index; if label2idx begins with 1, indices are one
        less. A clip without audio, images or masks counts as missing, and a note says so.

    Raises:
        UserError: no root, table or names, a malformed line, an object that has no name, or no clip on disk.
    """
    check_choice("split of AVSBench", split, SPLITS)
    check_choice("subset of AVSBench", subset, LABELS_OF_SUBSET, "data.index.subset")
    check_choice("choice of frames", train_frames, ("first", "all"), "data.index.train_frames")
    folders = Folders(root)
    classes, notes = _classes(folders.root, label2idx)
    lines = _rows(folders.root, metadata, LABELS_OF_SUBSET[subset], clip_pattern, classes)
    rows, repeated = unique(lines, metadata, "sources or splits", folders, youtube=False)
    notes += repeated
    if beside := folders.beside({row.path for row in rows if "/" in row.path}):
        what = count(len(beside), "folder on disk is", "folders on disk are")
        notes.append(f"{what} not in {metadata}, e.g. {beside[0]}.")
    first_only = split == "train" and train_frames == "first"
    clips: list[Clip] = []
    lost: dict[str, int] = {}  # annotated frames that a clip on disk lacks
    remarks: dict[str, list[str]] = {}
    for row in rows:
        if row.split != split:
            continue
        # S4 publishes only the first mask of the clips to train on.
        expected = 1 if first_only or (row.label, split) == ("v1s", "train") else MASKS_OF_LABEL[row.label]
        frames, remark = _frames(folders, row, first_only, expected)
        if frames:
            lost[row.id] = max(expected - len(frames), 0)
        if remark:
            remarks.setdefault(remark, []).append(row.path)
        labels, wanted = tuple(sorted(set(row.sources))), frames or tuple(range(expected))
        clips.append(Clip(row.id, f"{folders.root}/{row.path}", row.sources[0], row.video, labels, wanted))
    notes += [
        f"{count(len(paths), 'clip has', 'clips have')} {remark} in the {split} split, e.g. {paths[0]}."
        for remark, paths in sorted(remarks.items())
    ]
    more: dict[str, Any] = {
        "multi_label": any(len(set(row.sources)) > 1 for row in rows),
        "lost_frames": sum(lost.values()),
    }
    return list_clips(folders, split, clips, classes, notes, lambda clip: clip.id in lost, **more)


def names_in(joined: str, names: Sequence[str]) -> tuple[str, ...] | None:
    """Split a text into the names that "_" joins, though names may contain "_" themselves.

    The split into the fewest names; None if there is none, or more than one.
    """
    parts = joined.split("_")
    known = set(names)
    if len(parts) > MOST_PARTS:
        return None
    ways: list[list[tuple[str, ...]]] = [[()]]  # ways to spell the first n parts with the fewest names
    for end in range(1, len(parts) + 1):
        all_ways = [
            (*way, name) for begin in range(end) for way in ways[begin] if (name := "_".join(parts[begin:end])) in known
        ]
        fewest = min(map(len, all_ways), default=0)
        ways.append([way for way in all_ways if len(way) == fewest][:2])  # two show that it is ambiguous
    return ways[-1][0] if len(ways[-1]) == 1 else None


def _classes(root: Path, label2idx: str) -> tuple[list[str], list[str]]:
    """Names by class index, and notes about them."""
    index = read_object(root, label2idx, NAMES, "data.index.label2idx")
    numbers = [n for n in index.values() if type(n) is int] if isinstance(index, dict) else []
    begin = min(numbers, default=0)
    if not numbers or begin not in (0, 1) or sorted(numbers) != list(range(begin, begin + len(index))):
        raise UserError(
            f"{root / label2idx} does not number its names one by one; expected {NAMES}: put the published file there."
        )
    classes = sorted(index, key=lambda name: index[name])
    note = f"{label2idx} begins with 1, '{classes[0]}'; class indices begin with 0 and are one less."
    return classes, [note] if begin else []


def _rows(
    root: Path, metadata: str, labels: Sequence[str], pattern: str, classes: list[str]
) -> Iterator[tuple[int, _Listed]]:
    """Line number and content of each line with one of the labels."""
    index = {name: n for n, name in enumerate(classes)}
    for line, row in read_table(root, metadata, COLUMNS, "data.index.metadata"):
        where = f"{root / metadata}, line {line}"
        if row["split"] not in SPLITS or row["label"] not in MASKS_OF_LABEL:
            raise UserError(
                f"{where}, has split {row['split']!r} and label {row['label']!r}; expected {'|'.join(SPLITS)} and "
                f"{'|'.join(MASKS_OF_LABEL)}: fix the line."
            )
        if row["label"] not in labels:
            continue
        heard = names_in(row["a_obj"], classes)
        if not heard:
            unknown = next((part for part in row["a_obj"].split("_") if part not in index), row["a_obj"])
            raise UserError(
                f"{where}, has the a_obj {row['a_obj']!r}; expected names of data.index.label2idx, joined by '_', in "
                f"one way only: fix the line{suggestion(unknown, classes) or '.'}"
            )
        uid = check_name(row["uid"], "uid", where)
        path = fill_in(pattern, uid=uid, label=row["label"], vid=check_name(row["vid"], "vid", where))
        labels_of = tuple(index[name] for name in heard)
        yield line, _Listed(f"{row['label']}_{uid}", row["vid"], row["label"], path, row["split"], labels_of)


def _frames(folders: Folders, row: _Listed, first_only: bool, expected: int) -> tuple[tuple[int, ...], str]:
    """Seconds with image and mask, none if the clip counts as missing; and what its folder lacks, if it exists."""
    images = _numbers(folders.files(f"{row.path}/frames"), ".jpg")
    masks = _numbers(folders.files(f"{row.path}/labels_semantic"), ".png")
    if "audio.wav" not in folders.files(row.path):
        return (), "no audio.wav (counted as missing)" if folders.files(row.path) or images or masks else ""
    if not images or not masks:
        return (), f"no {'masks in labels_semantic' if images else 'images in frames'} (counted as missing)"
    frames = tuple(sorted(images & masks & ({0} if first_only else masks)))
    if not frames:
        return (), "no mask of an image in use (counted as missing)"
    return frames, "" if len(frames) >= expected else "fewer images with masks than published (5, in v2 10)"


def _numbers(files: frozenset[str], suffix: str) -> set[int]:
    stems = [name.removesuffix(suffix) for name in files if name.endswith(suffix)]
    return {int(stem) for stem in stems if stem.isascii() and stem.isdigit() and str(int(stem)) == stem}
