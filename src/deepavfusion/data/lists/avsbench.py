"""AVSBench's layout on disk: one table, the names of the classes, and a folder for each clip.

metadata.csv      header `vid,uid,s_min,s_sec,a_obj,split,label`; a_obj: the sounding objects, joined by "_"; split:
                  train|val|test; label: v1s (S4), v1m (MS3) or v2, which only AVSS uses
label2idx.json    {name: index}, "background" first; 71 names
<label>/<uid>/audio.wav, frames/<n>.jpg, labels_semantic/<n>.png    picture and mask n lie at n + 0.5 s

The value of a pixel of a mask, plus the key `label_offset` of whoever reads it, is a class index.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from deepavfusion.data.lists.clip_list import ClipList, Folders, check_root
from deepavfusion.data.lists.on_disk import fill_in, parted, unique
from deepavfusion.data.lists.text import check_choice, check_name, check_split, count, read_json, read_table, suggestion
from deepavfusion.types import Clip
from deepavfusion.utils.errors import UserError

COLUMNS = "vid,uid,s_min,s_sec,a_obj,split,label"
SPLITS = ("train", "val", "test")
LABELS_OF_SUBSET = {"s4": ("v1s",), "ms3": ("v1m",), "avss": ("v1s", "v1m", "v2")}
MASKS_OF_LABEL = {"v1s": 5, "v1m": 5, "v2": 10}  # of a clip; v1s in training 1
MOST_PARTS = 500  # of an a_obj; the time to read one grows with their square
NAMES = "{name: index} with the indices 0, 1, 2, …"


@dataclass(frozen=True)
class _Row:
    id: str
    video: str
    path: str
    label: str
    split: str
    sources: tuple[int, ...]  # as written


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
        root: the folder that holds the table, the names and the clips.
        split: "train", "val" or "test".
        subset: "s4", "ms3" or "avss".
        clip_pattern: path of a clip's folder under the root; `str.format` fields uid, label and vid.
        train_frames: "first" trains on picture 0 alone, "all" on each that has a mask; other splits use them all.
        metadata, label2idx: paths of the table and of the names under the root.

    Returns:
        The split. Clip: id `<label>_<uid>`, path of the folder, `labels` the sorted class indices of its sounding
        objects, `label` the one written first, `frames` the seconds whose picture and mask are on disk (of a
        missing clip, those that are published). `classes` are the names by index; where label2idx begins with 1
        instead of 0, class 0 is its 1. A clip without sound, without pictures or without masks is missing, and
        a note counts it.

    Raises:
        UserError: no root, table or names, a malformed line, an object that has no name, or no clip on disk.
    """
    check_split("AVSBench", split, SPLITS)
    check_choice("subset of AVSBench", subset, LABELS_OF_SUBSET, "data.index.subset")
    check_choice("choice of pictures", train_frames, ("first", "all"), "data.index.train_frames")
    base = check_root(root)
    classes, notes = _classes(base, label2idx)
    lines = _rows(base, metadata, LABELS_OF_SUBSET[subset], clip_pattern, classes)
    rows, repeated = unique(lines, metadata, "sources or splits")
    notes += repeated
    folders = Folders(base)
    notes += _strangers(folders, rows, metadata)
    first_only = split == "train" and train_frames == "first"
    remarks: dict[str, list[str]] = {}
    lost: list[int] = []

    def clips() -> Iterator[tuple[Clip, bool]]:
        for row in rows:
            if row.split == split:
                # S4 publishes the first mask only of the clips to train on.
                one = first_only or (row.label, split) == ("v1s", "train")
                expected = 1 if one else MASKS_OF_LABEL[row.label]
                frames, remark = _frames(folders, row, first_only, expected)
                if remark:
                    remarks.setdefault(remark, []).append(row.path)
                lost.append(max(expected - len(frames), 0) if frames else 0)
                labels = tuple(sorted(set(row.sources)))
                listed = frames or tuple(range(expected))  # of a missing clip, those that it should have
                clip = Clip(row.id, f"{base}/{row.path}", row.sources[0], row.video, labels, listed)
                yield clip, bool(frames)

    there, missing = parted(base, split, clips(), folders)
    notes += [
        f"{count(len(paths), 'clip has', 'clips have')} {remark} in the {split} split, e.g. {paths[0]}."
        for remark, paths in sorted(remarks.items())
    ]
    multi_label = any(len(set(row.sources)) > 1 for row in rows)
    return ClipList(split, there, classes, missing=missing, notes=notes, multi_label=multi_label, lost_frames=sum(lost))


def names_in(joined: str, names: Sequence[str]) -> tuple[str, ...] | None:
    """The names in a text that joins them by "_", though names may hold "_" themselves.

    The fewest names that spell it, so the longest ones; None when there are none, or several ways with as few.
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
        ways.append(
            [way for way in all_ways if len(way) == fewest][:2]
        )  # two are enough to know it is not the only one
    return ways[-1][0] if len(ways[-1]) == 1 else None


def _classes(root: Path, label2idx: str) -> tuple[list[str], list[str]]:
    """Names by class index, and what to say about them."""
    index = read_json(root, label2idx, NAMES, "data.index.label2idx")
    numbers = [n for n in index.values() if type(n) is int] if isinstance(index, dict) else []
    begin = min(numbers, default=0)
    if not numbers or begin not in (0, 1) or sorted(numbers) != list(range(begin, begin + len(index))):
        raise UserError(
            f"{root / label2idx} does not number its names one by one; expected {NAMES}: put the published file there."
        )
    classes = sorted(index, key=lambda name: index[name])
    note = f"{label2idx} begins with 1, '{classes[0]}'; class indices here begin with 0 and are one less."
    return classes, [note] if begin else []


def _rows(
    root: Path, metadata: str, labels: Sequence[str], pattern: str, classes: list[str]
) -> Iterator[tuple[int, _Row]]:
    """Line number and row of each line with one of the labels."""
    index = {name: n for n, name in enumerate(classes)}
    for line, row in read_table(root, metadata, COLUMNS, "data.index.metadata"):
        where = f"{root / metadata}, line {line}"
        if row["split"] not in SPLITS or row["label"] not in MASKS_OF_LABEL:
            raise UserError(
                f"{where}, has split {row['split']!r} and label {row['label']!r}; expected {'|'.join(SPLITS)} and "
                f"{'|'.join(MASKS_OF_LABEL)}: mend the line."
            )
        if row["label"] not in labels:
            continue
        heard = names_in(row["a_obj"], classes)
        if not heard:
            unknown = next((part for part in row["a_obj"].split("_") if part not in index), row["a_obj"])
            raise UserError(
                f"{where}, has the a_obj {row['a_obj']!r}; expected names of data.index.label2idx, joined by '_', in "
                f"one way only: mend the line{suggestion(unknown, classes) or '.'}"
            )
        uid = check_name(row["uid"], "uid", where)
        path = fill_in(pattern, {"uid": uid, "label": row["label"], "vid": check_name(row["vid"], "vid", where)})
        labels_of = tuple(index[name] for name in heard)
        yield line, _Row(f"{row['label']}_{uid}", row["vid"], path, row["label"], row["split"], labels_of)


def _frames(folders: Folders, row: _Row, first_only: bool, expected: int) -> tuple[tuple[int, ...], str]:
    """Seconds with picture and mask, none if the clip counts as missing; and what its folder lacks, if it exists."""
    pictures = _numbers(folders.files(f"{row.path}/frames"), ".jpg")
    masks = _numbers(folders.files(f"{row.path}/labels_semantic"), ".png")
    if "audio.wav" not in folders.files(row.path):
        return (), "no audio.wav (taken as missing)" if folders.files(row.path) or pictures or masks else ""
    frames = tuple(sorted(pictures & masks & ({0} if first_only else masks)))
    if not pictures or not masks:
        return (), f"no {'masks in labels_semantic' if pictures else 'pictures in frames'} (taken as missing)"
    if not frames:
        return (), "no mask of a picture in use (taken as missing)"
    return frames, "" if len(frames) >= expected else "fewer pictures with masks than published (5, in v2 10)"


def _numbers(files: frozenset[str], suffix: str) -> set[int]:
    stems = [name.removesuffix(suffix) for name in files if name.endswith(suffix)]
    return {int(stem) for stem in stems if stem.isascii() and stem.isdigit() and str(int(stem)) == stem}


def _strangers(folders: Folders, rows: list[_Row], metadata: str) -> list[str]:
    """A note on the folders beside the listed ones."""
    listed = {row.path for row in rows}
    parents = sorted({path.rpartition("/")[0] for path in listed} - {""})
    strange = [f"{parent}/{name}" for parent in parents for name in folders.folders(parent)]
    strange = [path for path in strange if path not in listed]
    if not strange:
        return []
    return [f"{count(len(strange), 'folder on disk is', 'folders on disk are')} not in {metadata}, e.g. {strange[0]}."]
