"""The demo set `pairs`: neither picture nor sound tells the label; the runs that read the set make it."""

from __future__ import annotations

import csv
import hashlib
import io
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from deepavfusion.config.overrides import with_scale
from deepavfusion.data.lists.vggsound import vggsound
from deepavfusion.demo import demo, pairs
from deepavfusion.demo.plans import NOT_OURS, OPTIONAL
from deepavfusion.runs import build
from deepavfusion.utils.errors import UserError
from helpers.runs import compose

RED, BLUE = "red", "blue"


def table(counts: demo.Counts = demo.FULL) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(pairs.plan_pairs(0, counts)[1]["clips.csv"])))


def frames_of(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def test_neither_details_nor_pictures_nor_tunes_tell_the_label_of_a_test_clip() -> None:
    rows = table()
    assert Counter(row["split"] for row in rows) == {"train": 384, "test": 192}
    assert all(row["heard"] == row[row["label"]] and row["upper"] != row["lower"] for row in rows)
    test = [row for row in rows if row["split"] == "test"]
    cells = Counter((row["upper"], row["lower"], row["heard"]) for row in test)
    assert len(cells) == 4
    assert len(set(cells.values())) == 1
    for key in ("picture", "tune"):  # each with both labels: whoever knows one only is right in half of the clips
        labels = Counter((row[key], row["label"]) for row in test)
        assert set(labels.values()) == {1}
        assert {name for name, _ in labels} == {row[key] for row in test}
        assert len(labels) == 2 * len({name for name, _ in labels})
    for key in ("path", "picture", "tune"):
        assert not {row[key] for row in test} & {row[key] for row in rows if row["split"] == "train"}


def test_in_training_a_detail_alone_tells_little_more_than_chance() -> None:
    """What is learned of one alone is of no use in the test."""
    rows = [row for row in table() if row["split"] == "train"]
    assert len({(row["upper"], row["heard"]) for row in rows}) == 4
    for key in ([], ["upper"], ["heard"]):
        labels: dict[tuple[str, ...], Counter[str]] = {}
        for row in rows:
            labels.setdefault(tuple(row[each] for each in key), Counter())[row["label"]] += 1
        best = sum(max(counts.values()) for counts in labels.values()) / len(rows)
        assert best == (5 / 8 if key else 1 / 2)


def test_the_two_guitars_differ_in_their_bodies_colours_alone() -> None:
    first, second = (pairs.draw(np.random.default_rng(1), seen).astype(int) for seen in ((RED, BLUE), (BLUE, RED)))
    height = len(first)
    differs = np.abs(first - second).max(axis=2) > 0
    assert 0.02 < differs.mean() < 0.15
    for half, (there, here) in zip((slice(None, height // 2), slice(height // 2, None)), ((0, 2), (2, 0)), strict=True):
        body = first[half][differs[half]].mean(axis=0)
        assert body[there] > 2 * body[here]
    np.testing.assert_array_equal(first, pairs.draw(np.random.default_rng(1), (RED, BLUE)))


def test_each_detail_has_a_register_of_its_own() -> None:
    def centre(heard: str, seed: int) -> float:
        """The frequency below which half of the energy lies, Hz."""
        energy = np.abs(np.fft.rfft(pairs.play(np.random.default_rng(seed), heard))) ** 2
        return float(np.searchsorted(energy.cumsum(), energy.sum() / 2) / pairs.SECONDS)

    found = [[centre(heard, seed) for seed in range(3)] for heard in pairs.DETAILS]
    assert all(max(lower) < min(higher) for lower, higher in pairwise(found))
    lowest = [register for _, register in pairs.DETAILS.values()]
    assert all(low < high for (_, low), (high, _) in pairwise(lowest))


def test_the_set_is_read_as_vggsound_and_follows_from_the_seed(tmp_path: Path) -> None:
    counts = demo.Counts(pairs_train=1, pairs_test=0)
    (root,) = demo.ensure(tmp_path, ["pairs"], workers=1, counts=counts)
    found = vggsound(root, "train")
    assert found.classes == ["lower", "upper"]
    assert (len(found.clips), found.listed) == (4, 4)
    rows = {row["path"]: row for row in table(counts)}
    pictures: dict[str, list[bytes]] = {}
    for clip in found.clips:
        row = rows[str(Path(clip.path).relative_to(root))]
        assert found.classes[clip.label] == row["label"]
        frames = frames_of(Path(clip.path))
        assert len(frames) == 32
        assert all(np.abs(frame.astype(int) - frames[0]).mean() < 2 for frame in frames)  # nothing moves
        pictures.setdefault(row["picture"], []).append(hashlib.sha256(np.array(frames).tobytes()).digest())
    assert [len(set(shown)) for shown in pictures.values()] == [1, 1]  # with either tune, to the pixel
    (again,) = demo.ensure(tmp_path / "again", ["pairs"], workers=1, counts=counts)
    for path in rows:
        assert (again / path).read_bytes() == (root / path).read_bytes()


def test_the_set_is_made_if_it_is_named() -> None:
    assert "pairs" in OPTIONAL
    assert "pairs" not in (*demo.SETS, *NOT_OURS)


@pytest.mark.parametrize("below", ["", "packed/"])
def test_a_run_makes_the_set_of_the_folder_that_it_reads(
    below: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the name of its data."""
    made: list[tuple[Any, ...]] = []
    monkeypatch.setattr(build, "make_demo_data", lambda *given: made.append(given))
    monkeypatch.setattr(build, "pack_demo_data", lambda *given: made.append(given))
    demos = tmp_path / "demo"
    cfg = compose(
        "experiment=vggsound_finetune", "scale=demo", f"paths.data_dir={tmp_path}", f"data.root={demos}/{below}pairs"
    )
    with pytest.raises(UserError):  # there is nothing to read
        build.build(cfg, [])
    packed = [(demos / "pairs", demos / "packed/pairs", "vggsound")] if below else []
    assert made == [(demos, "pairs"), *packed]


def test_what_else_lies_there_is_read_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[list[str]] = []

    def popen(words: list[str], **_: Any) -> Any:
        made.append(words)
        raise AssertionError(words)

    monkeypatch.setattr(build.subprocess, "Popen", popen)
    demos = tmp_path / "demo"
    for name in ("mine", "stamps"):  # of the stamps there is no telling with which seed they were asked for
        (demos / name).mkdir(parents=True)
        cfg = compose(
            "experiment=vggsound_finetune", "scale=demo", f"paths.data_dir={tmp_path}", f"data.root={demos}/{name}"
        )
        with pytest.raises(UserError, match=r"vggsound\.csv"):
            build.build(cfg, [])
    assert made == []
    with pytest.raises(UserError, match=r"no generated demo of data.name=nothing, only of .*pairs"):
        build.make_demo_data(demos, "nothing")


def test_a_root_in_the_demo_data_need_not_exist(tmp_path: Path) -> None:
    given = ["experiment=vggsound_finetune", f"paths.data_dir={tmp_path}"]
    for root in (f"{tmp_path}/demo/pairs", f"{tmp_path}/demo/packed/pairs"):
        assert with_scale("train", [*given, "scale=demo", f"data.root={root}"])[1] is None
    with pytest.raises(UserError, match="is not a folder"):
        with_scale("train", [*given, "scale=demo", f"data.root={tmp_path}/other/pairs"])
