"""VGGSound-Music on disk: the clips of VGGSound that show an instrument, with their own two lists.

annotations/vggmusic_train.txt      lines `<id>_<start:06d>,<instrument>`
annotations/vggmusic_eval_ss.csv    header, then `source_1,source_2,class_1,class_2,sep_type`: pairs to mix in tests
clips/playing_<instrument>/<id>_<start:06d>_<start+10:06d>.mp4    the folders of VGGSound

The folders of two instruments have longer names, playing_violin__fiddle and playing_steel_guitar__slide_guitar; the
train list writes `violin` and `steel_guitar`, the test list `"violin,_fiddle"` and `"steel_guitar,_slide_guitar"`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from deepavfusion.data.lists.clip_list import ClipList, Folders
from deepavfusion.data.lists.on_disk import ListedClip, clips_of, list_clips, unique, unlisted_files
from deepavfusion.data.lists.text import check_choice, check_name, count, malformed, read_rows, read_table, suggestion
from deepavfusion.data.lists.vggsound import folder_name, ten_seconds
from deepavfusion.utils.errors import UserError

TRAIN_COLUMNS = "<id>_<start>,<instrument>"
TEST_COLUMNS = "source_1,source_2,class_1,class_2,sep_type"
LONG_NAMES = {"violin": "violin__fiddle", "steel_guitar": "steel_guitar__slide_guitar"}
SHORT_NAMES = {long: short for short, long in LONG_NAMES.items()}
CLIP_ID = re.compile(r"(?P<video>.+)_(?P<start>[0-9]{1,9})")


def vggsound_music(
    root: str | Path,
    split: str,
    clip_pattern: str = "clips/{folder}/{id}_{start:06d}_{end:06d}.mp4",
    split_dir: str = "annotations",
    train_list: str = "vggmusic_train.txt",
    test_list: str = "vggmusic_eval_ss.csv",
) -> ClipList:
    """Read one split of VGGSound-Music. Both lists are always read, for their classes.

    Args:
        root: the data folder; the other paths are below it.
        split: "train" or "test".
        clip_pattern: `str.format` fields id, start, end, label (the class), and folder ("playing_violin__fiddle").
        split_dir: folder of the two lists.

    Returns:
        The split; `classes` are the sorted instruments of *both* lists, spelt as in the train list; a class that only
        one list names is kept and noted. The test split has each clip once, and `mixtures` all pairs of the list in its
        order, including pairs of one class and pairs with missing clips.

    Raises:
        UserError: no root, no list, a malformed line, or none of the split's clips on disk.
    """
    check_choice("split of VGGSound-Music", split, ("train", "test"))
    folders = Folders(root)
    base = folders.root
    train_file, test_file = f"{split_dir}/{train_list}", f"{split_dir}/{test_list}"
    train, notes = unique(_train_rows(base, train_file, clip_pattern), train_file, "instruments", folders)
    pairs = list(_pairs(base, test_file, clip_pattern))
    uses: dict[ListedClip, int] = {}  # line of the first pair that uses it
    for line, *rows in pairs:
        for row in rows:
            uses.setdefault(row, line)
    test, at_odds = unique(((line, row) for row, line in uses.items()), test_file, "classes", folders)
    notes += at_odds[-1:]  # only a clip with two classes is repeated here
    mixtures: list[tuple[str, ...]] = [(first.id, second.id) for _, first, second in pairs]
    notes += _at_odds(train, train_file, test, test_file, mixtures)
    classes = sorted({row.label for row in train} | {row.label for row in test})
    listed = [row.path for row in dict.fromkeys(train + test)]
    names = [_folder(name) for name in classes]
    notes += unlisted_files(folders, listed, clip_pattern, f"{train_file} or {test_file}", names)
    chosen = train if split == "train" else test
    clips = clips_of(chosen, base, classes)
    return list_clips(folders, split, clips, classes, notes, mixtures=mixtures if split == "test" else [])


def instrument(name: str) -> str:
    """The class of a name as either list spells it: "violin,_fiddle" -> "violin"."""
    return SHORT_NAMES.get(folder_name(name), folder_name(name))


def _folder(label: str) -> str:
    return f"playing_{LONG_NAMES.get(label, label)}"


def _row(clip: str, name: str, pattern: str, where: str, columns: str) -> ListedClip:
    match = CLIP_ID.fullmatch(clip)
    if not match:
        raise UserError(
            f"{where}, names the clip {clip!r}; expected `{columns}` with clips <id>_<start>: fix the line."
        )
    video, start = check_name(match["video"], "id", where), int(match["start"])
    label = instrument(check_name(name, "instrument", where))
    return ten_seconds(pattern, video, start, label, _folder(label))


def _train_rows(root: Path, annotations: str, pattern: str) -> Iterator[tuple[int, ListedClip]]:
    for line, cells in read_rows(root, annotations, TRAIN_COLUMNS, "data.index.split_dir or data.index.train_list"):
        where = f"{root / annotations}, line {line}"
        if len(cells) != 2:
            raise malformed(where, cells, f"`{TRAIN_COLUMNS}`")
        yield line, _row(cells[0], cells[1], pattern, where, TRAIN_COLUMNS)


def _pairs(root: Path, annotations: str, pattern: str) -> Iterator[tuple[int, ListedClip, ListedClip]]:
    for line, pair in read_table(root, annotations, TEST_COLUMNS, "data.index.split_dir or data.index.test_list"):
        where = f"{root / annotations}, line {line}"
        if pair["source_1"] == pair["source_2"]:
            raise UserError(f"{where}, mixes {pair['source_1']} with itself; expected two clips: fix the line.")
        first, second = (_row(pair[f"source_{n}"], pair[f"class_{n}"], pattern, where, TEST_COLUMNS) for n in (1, 2))
        yield line, first, second


def _at_odds(
    train: list[ListedClip], train_file: str, test: list[ListedClip], test_file: str, mixtures: list[tuple[str, ...]]
) -> list[str]:
    """Notes on repeated pairs, clips in both lists, and classes in only one."""
    notes = []
    if repeated := len(mixtures) - len(set(mixtures)):
        notes.append(f"{test_file} lists {count(repeated, 'pair')} more than once; all are kept.")
    if both := sorted({row.id for row in train} & {row.id for row in test}):
        notes.append(
            f"{count(len(both), 'clip is', 'clips are')} in both lists, e.g. {both[0]}; both are kept as they are."
        )
    for rows, file, others, other_file in ((train, train_file, test, test_file), (test, test_file, train, train_file)):
        known = {row.label for row in others}
        if alone := sorted({row.label for row in rows} - known):
            notes.append(
                f"{file} has {count(len(alone), 'class', 'classes')} that {other_file} lacks, e.g. '{alone[0]}'"
                f"{suggestion(alone[0], known) or '.'}"
            )
    return notes
