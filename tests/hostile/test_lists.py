"""Lists and overrides of any content: what a reader or Hydra makes of them holds, or is refused in one sentence."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from itertools import product
from pathlib import Path

import pytest
from hypothesis import strategies as st

from deepavfusion.data.lists.audioset import audioset
from deepavfusion.data.lists.avsbench import avsbench, names_in
from deepavfusion.data.lists.clip_list import ClipList
from deepavfusion.data.lists.music import music
from deepavfusion.data.lists.vggsound import vggsound
from deepavfusion.data.lists.vggsound_music import vggsound_music
from deepavfusion.utils.errors import UserError
from helpers.examples import SEEN, examples

HOSTILE = ["../../etc/passwd", "/etc/passwd", "..", ".", "~", "a/b", "a\\b", "..\\a", "a\0b", "", " ", "\ud800"]
HOSTILE += ["\u202e", "x" * 300, "x" * 5000, "9" * 5000, "-1", "1e308", "1e309", "nan", "inf", "1_0", "٣", '"', "'"]
HOSTILE += ["{id}", "{0}", "%s", "$(touch a)", "`a`", "é", "🎻", "\ufeff", "a\nb", "a\rb", "#", "1000000000", "_", "*"]
HOSTILE += ["a*b", "CON"]
IDS = ["abcdefghijk", "-bcdefghijk", "bbcdefghijk", "ccdefghijk_"]
LABELS = ["violin", "playing violin, fiddle", "a (b)", "/m/01", "/m/02", "background", "man", "man_dog", "piano"]
cells = st.one_of(st.sampled_from(IDS + LABELS), st.sampled_from(HOSTILE), st.text(max_size=9))
small = st.sampled_from(["0", "1", "10.000", "30", "7"])
noise = st.one_of(st.text(max_size=60), st.sampled_from(['"', '"a', "a\0b", "a,b\r", ",", "x" * 200_000, "\ufeff"]))


def quoted(cell: str) -> str:
    return '"' + cell.replace('"', '""') + '"' if any(mark in cell for mark in ',"\n\r') else cell


def table(header: str, *columns: st.SearchStrategy[str]) -> st.SearchStrategy[bytes]:
    """A CSV file: valid rows, in half of the files with rows of anything among them."""
    row = st.tuples(*columns).map(lambda row: ",".join(map(quoted, row)))
    spoilt = st.tuples(st.tuples(*columns), st.integers(0, len(columns) - 1), cells).map(
        lambda drawn: ",".join(quoted(drawn[2] if n == drawn[1] else cell) for n, cell in enumerate(drawn[0]))
    )
    wild = st.lists(cells, max_size=9).map(lambda row: ",".join(map(quoted, row)))
    rows = st.one_of(st.lists(row, min_size=1, max_size=6), st.lists(st.one_of(row, spoilt, wild, noise), max_size=6))
    written = rows.map(lambda lines: (header + "\n".join(lines)).encode("utf-8", "surrogatepass"))
    return st.one_of(written, written, written, st.binary(max_size=60))


def some(*values: str) -> st.SearchStrategy[str]:
    return st.sampled_from(values)


SEGMENTS = table("# a\n", some(*IDS), some("0", "10.000", "30"), some("40", "50.5"), some("/m/01", "/m/01,/m/02"))
ONTOLOGY = table("index,mid,display_name\n", some("0"), some("/m/01"), cells)
ontology = st.one_of(st.just(b"index,mid,display_name\n0,/m/01,Speech\n1,/m/02,Dog\n"), ONTOLOGY)
VGG = table("", some(*IDS), some("0", "30", "000007"), some("violin", "a (b)"), some("train", "train", "test"))
PAIRED = [f"{name}_000030" for name in IDS]
VGG_TRAIN = table("", some(*PAIRED), some("violin", "piano"))
PAIRS_HEADER, FIRST_CLASSES = "source_1,source_2,class_1,class_2,sep_type\n", some("violin,_fiddle", "piano")
PAIRS = table(PAIRS_HEADER, some(*PAIRED[:2]), some(*PAIRED[2:]), FIRST_CLASSES, some("piano"), cells)
OBJECTS, SPLITS, SUBSETS = some("man", "man_dog", "dog"), some("train", "val", "test"), some("v1s", "v1m", "v2")
AVS_HEADER = "vid,uid,s_min,s_sec,a_obj,split,label\n"
AVS = table(AVS_HEADER, some(*IDS), some(*IDS), small, small, OBJECTS, SPLITS, SUBSETS)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), cells),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(cells, inner, max_size=4)),
    max_leaves=9,
)
JSON_NOISE = [b"", b"{", b"[" * 100_000, b'{"a":' * 5000, b"9" * 9999, b"NaN", b'{"\\ud800": 0, "a": 1}', b"\xff\xfe{}"]
JSON_NOISE += [b'{"videos": {"a": [], "a": []}}', b'{"videos": {"\\ud800": ["abcdefghijk"]}}', b"\xef\xbb\xbf{}"]


def as_json(strategy: st.SearchStrategy[object]) -> st.SearchStrategy[bytes]:
    return st.one_of(*[strategy.map(lambda value: json.dumps(value).encode())] * 4, st.sampled_from(JSON_NOISE))


by_label = st.dictionaries(some("violin", "piano", "violin piano"), st.lists(some(*IDS), max_size=4), max_size=4)
usual = st.just({"videos": {"violin": IDS[:2], "piano": IDS[2:]}})
VIDEOS = as_json(st.one_of(values, usual, st.fixed_dictionaries({"videos": by_label})))
NAMED = st.just(b'{"background": 0, "man": 1, "dog": 2}')
NAMES = st.one_of(NAMED, NAMED, as_json(st.one_of(values, st.dictionaries(cells, st.integers(0, 3), max_size=3))))


@cache
def clips_on_disk() -> Path:
    """A data folder with a clip of every layout, which all tests of this process read."""
    clips = [f"clips/{label}/{name}.mp4" for label in ("violin", "piano") for name in IDS[:2]]
    clips += [f"clips/violin/{name}_000030_000040.mp4" for name in IDS]
    clips += [f"clips/playing_{label}/{IDS[0]}_000030_000040.mp4" for label in ("violin__fiddle", "piano")]
    clips += [f"clips/{name[:2]}/{name}_000030_000040.mp4" for name in IDS]
    folders = [f"{label}/{name}" for label in ("v1s", "v1m", "v2") for name in IDS[:3]]
    files = ["audio.wav", "frames/0.jpg", *(f"labels_semantic/{n}.png" for n in ("0", "-1", "1000000000"))]
    root = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, root)
    for path in [*clips, *(f"{folder}/{file}" for folder in folders for file in files)]:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return root


@contextmanager
def folder(files: dict[str, bytes]) -> Iterator[Path]:
    """The data folder, with these lists."""
    root = clips_on_disk()
    for path, data in files.items():
        (root / path).parent.mkdir(exist_ok=True)
        (root / path).write_bytes(data)
    try:
        yield root
    finally:
        for path in files:
            (root / path).unlink()


def check(read: Callable[[Path], ClipList], files: dict[str, bytes]) -> None:
    """The list holds together and stays in its folder, or one sentence names a file of it."""
    with folder(files) as root:
        try:
            found = read(root)
        except UserError as error:
            SEEN["refused"] += 1
            text, names = str(error), [Path(path).name for path in files]
            assert any(words in text for words in [*names, "is on disk", "name no solo"]), text
            return
        SEEN["read"] += 1
        everything = [*found.clips, *found.missing, *(clip for clip, _ in found.excluded)]
        assert found.listed == len(everything) == len({clip.id for clip in everything})
        for clips in (found.clips, found.missing):
            assert [clip.id for clip in clips] == sorted(clip.id for clip in clips)
        for clip in everything:
            assert all(0 <= label < len(found.classes) for label in (clip.label, *clip.labels))
            assert os.path.normpath(clip.path).startswith(f"{root}/"), clip
            assert os.path.realpath(clip.path).startswith(f"{os.path.realpath(root)}/"), clip
            assert all(0 <= second < 10 for second in clip.frames), clip
        assert all(os.path.exists(clip.path) for clip in found.clips)
        known = {clip.id for clip in everything}
        assert all(set(mixture) <= known for mixture in found.mixtures)


SEGMENT_LISTS = [f"annotations/{name}_segments.csv" for name in ("unbalanced_train", "balanced_train", "eval")]
ONTOLOGY_LIST, VGG_LIST = "annotations/class_labels_indices.csv", "annotations/vggsound.csv"
VGG_MUSIC_LISTS = ["annotations/vggmusic_train.txt", "annotations/vggmusic_eval_ss.csv"]
MUSIC_LISTS = ["MUSIC_solo_videos", "MUSIC_duet_videos"]
AVS_LISTS = ["metadata.csv", "label2idx.json"]
READERS: dict[str, tuple[Callable[..., ClipList], dict[str, st.SearchStrategy[bytes]], list[str]]] = {
    "vggsound": (vggsound, {VGG_LIST: VGG}, ["train", "test"]),
    "audioset": (
        audioset,
        {**dict.fromkeys(SEGMENT_LISTS, SEGMENTS), ONTOLOGY_LIST: ontology},
        ["unbalanced", "balanced", "full", "eval"],
    ),
    "music": (
        partial(music, lists=MUSIC_LISTS),
        {f"{name}.json": VIDEOS for name in MUSIC_LISTS},
        ["train", "test", "duet"],
    ),
    "vggsound_music": (
        vggsound_music,
        dict(zip(VGG_MUSIC_LISTS, (VGG_TRAIN, PAIRS), strict=True)),
        ["train", "test"],
    ),
}
for subset, frames in product(("s4", "ms3", "avss"), ("all", "first")):
    reader = partial(avsbench, subset=subset, train_frames=frames)
    READERS[f"avsbench {subset} {frames}"] = (
        reader,
        dict(zip(AVS_LISTS, (AVS, NAMES), strict=True)),
        ["train", "val", "test"],
    )


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("count", [60, pytest.param(1000, marks=pytest.mark.full)])
def test_lists(count: int, name: str) -> None:
    reader, files, splits = READERS[name]

    def one(data: dict[str, bytes], split: str) -> None:
        check(lambda root: reader(root, split), data)

    examples(one, count // 3 if "avsbench" in name else count, st.fixed_dictionaries(files), st.sampled_from(splits))


@pytest.mark.parametrize("hostile", [text for text in HOSTILE if "/" in text or "\\" in text or text in ("..", "a\0b")])
def test_no_list_leads_out(hostile: str, tmp_path: Path) -> None:
    """Each field that goes into a path, with what leads out of a folder."""
    row, avs = quoted(hostile), AVS_HEADER
    names = {"label2idx.json": '{"background": 0, "man": 1}'}
    classes = {ONTOLOGY_LIST: "index,mid,display_name\n0,/m/01,a\n"}
    train, pairs = VGG_MUSIC_LISTS[0], {VGG_MUSIC_LISTS[1]: PAIRS_HEADER}
    solos = "MUSIC_solo_videos.json"
    s4 = partial(avsbench, subset="s4")
    cases: list[tuple[Callable[..., ClipList], dict[str, str]]] = [
        (vggsound, {VGG_LIST: f"{row},0,violin,train\n"}),
        (vggsound, {VGG_LIST: f"abc,0,{row},train\n"}),
        (audioset, {SEGMENT_LISTS[0]: f"{row},0,10,/m/01\n", **classes}),
        (music, {solos: json.dumps({"videos": {hostile: IDS}})}),
        (music, {solos: json.dumps({"videos": {"a": [hostile]}})}),
        (s4, {"metadata.csv": f"{avs}a,{row},0,0,man,train,v1s\n", **names}),
        (
            partial(s4, clip_pattern="{label}/{uid}/{vid}"),
            {"metadata.csv": f"{avs}{row},a,0,0,man,train,v1s\n", **names},
        ),
        (vggsound_music, {train: f"{quoted(hostile + '_000001')},piano\n", **pairs}),
        (vggsound_music, {train: f"abc_000001,{row}\n", **pairs}),
        (partial(vggsound, annotations=hostile), {VGG_LIST: ""}),
        (partial(music, lists=[hostile]), {solos: "{}"}),
    ]
    for n, (read, files) in enumerate(cases):
        for path, text in files.items():
            (tmp_path / str(n) / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / str(n) / path).write_text(text)
        with pytest.raises(UserError):
            read(tmp_path / str(n), "unbalanced" if read is audioset else "train")


def test_a_long_name_takes_no_time() -> None:
    assert names_in("man_" * 60_000 + "man", ["man", "dog"]) is None
    assert names_in("_".join(["man"] * 9), ["man", "dog"]) == ("man",) * 9
