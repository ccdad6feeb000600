"""Where a run's numbers come from: `provenance.json`, and the hash of what it reads."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from deepavfusion.data.lists.clip_list import ClipList
from deepavfusion.runs import fingerprint as module
from deepavfusion.runs.fingerprint import DataHash, coverage_of, dataset_hash
from deepavfusion.runs.provenance import PROVENANCE, code_state, complete, record_provenance
from deepavfusion.types import Clip

DATA = {"dataset_hash": "a" * 64, "coverage": {"train": {"split": "train", "listed": 3, "present": 2}}}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """One with a commit."""
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "code.py").write_text("1\n")
    git(folder, "init", "-q")
    commit(folder)
    return folder


def git(folder: Path, *words: str) -> str:
    who = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false"]
    return subprocess.run(
        ["git", "-C", folder, *who, *words], check=True, capture_output=True, text=True
    ).stdout.strip()


def commit(folder: Path) -> str:
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "x")
    return git(folder, "rev-parse", "HEAD")


def starts(run_dir: Path) -> list[dict]:
    return json.loads((run_dir / PROVENANCE).read_text())["starts"]


# ---- provenance.json


def test_a_start_tells_code_versions_command_machine_and_data(repository: Path, tmp_path: Path) -> None:
    weights = [{"checkpoint": "a/last.ckpt", "steps": 3}]
    assert record_provenance(tmp_path, 7, DATA, repository, weights) == []
    (start,) = starts(tmp_path)
    assert start["commit"] == git(repository, "rev-parse", "HEAD")
    assert start["dirty"] is False
    assert (start["seed"], start["data"], start["weights"]) == (7, DATA, weights)
    assert start["command"] == shlex.join(sys.orig_argv)
    assert start["versions"]["torch"].startswith("2.")
    assert "unknown" not in start["versions"].values()
    assert start["machine"]["cores"] == len(os.sched_getaffinity(0))
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [PROVENANCE]


def test_what_goes_on_with_other_code_or_data_says_so_and_keeps_the_former_starts(
    repository: Path, tmp_path: Path
) -> None:
    first = git(repository, "rev-parse", "HEAD")
    assert record_provenance(tmp_path, 0, DATA, repository) == []
    assert record_provenance(tmp_path, 0, DATA, repository) == []
    (repository / "code.py").write_text("2\n")
    assert code_state(repository) == {"commit": first, "dirty": True}
    second = commit(repository)
    (said,) = record_provenance(tmp_path, 0, DATA, repository)
    assert f"commit {second[:8]}, was {first[:8]}" in said
    assert "dataset_hash" not in said
    (said,) = record_provenance(tmp_path, 0, DATA | {"dataset_hash": "b" * 64}, repository)
    assert "dataset_hash bbbbbbbb, was aaaaaaaa" in said  # than it began with, and still the other commit
    assert second[:8] in said
    assert str(tmp_path / PROVENANCE) in said
    found = starts(tmp_path)
    assert [start["commit"] for start in found] == [first, first, second, second]
    assert [start["data"]["dataset_hash"][0] for start in found] == ["a", "a", "a", "b"]


def test_new_files_count_as_changes_and_a_hook_of_another_repository_does_not(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (repository / "more.py").touch()
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    state = code_state(repository)
    assert len(str(state["commit"])) == 40
    assert state["dirty"] is True


def test_without_git_or_repository_the_commit_is_unknown_and_nothing_is_compared(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record_provenance(tmp_path, 0, DATA, repository)
    outside = tmp_path / "outside"
    outside.mkdir()
    unknown = {"commit": "unknown", "dirty": "unknown"}
    assert code_state(outside) == unknown
    monkeypatch.setenv("PATH", str(outside))
    assert code_state(repository) == unknown
    assert record_provenance(tmp_path, 0, DATA, repository) == []
    assert [start["commit"] == "unknown" for start in starts(tmp_path)] == [False, True]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"starts": [{"commit": 1}]}', '{"starts": 3}'])
def test_a_damaged_file_is_kept_aside_and_named(repository: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / PROVENANCE).write_text(text)
    (said,) = record_provenance(tmp_path, 0, DATA, repository)
    assert str(tmp_path / PROVENANCE) in said
    assert (tmp_path / "provenance.damaged").read_text() == text
    assert len(starts(tmp_path)) == 1


def test_a_write_that_fails_leaves_the_former_file(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record_provenance(tmp_path, 0, DATA, repository)
    before = (tmp_path / PROVENANCE).read_text()
    with pytest.raises(TypeError):
        record_provenance(tmp_path, 0, DATA | {"coverage": object()}, repository)
    full = tmp_path / f"{PROVENANCE}.partial"
    full.mkdir()  # nothing can be written there
    with pytest.raises(IsADirectoryError):
        record_provenance(tmp_path, 0, DATA, repository)
    assert (tmp_path / PROVENANCE).read_text() == before


# ---- the hash of the data


def lists(root: Path) -> dict[str, ClipList]:
    """Two roles; three clips on disk, one excluded, one missing."""
    root.mkdir(exist_ok=True)
    for n, name in enumerate("abcd"):
        (root / f"{name}.mp4").write_bytes(b"x" * (n + 1))
    clips = {name: Clip(name, str(root / f"{name}.mp4"), n % 2, f"v{name}") for n, name in enumerate("abcde")}
    train = ClipList(
        "train", [clips["a"], clips["b"]], ["drum", "flute"], [clips["e"]], excluded=[(clips["d"], "no_audio")]
    )
    return {"train": train, "test": ClipList("test", [clips["c"]], ["drum", "flute"])}


def test_the_hash_is_that_of_what_is_read_not_of_where_it_lies_or_in_which_order(tmp_path: Path) -> None:
    found = lists(tmp_path / "here")
    backwards = {
        role: replace(clips, clips=clips.clips[::-1], notes=["x"]) for role, clips in reversed(list(found.items()))
    }
    assert len(dataset_hash(found)) == 64
    assert dataset_hash(lists(tmp_path / "there")) == dataset_hash(backwards) == dataset_hash(found)
    os.utime(tmp_path / "here" / "a.mp4", (0, 0))
    assert dataset_hash(found) == dataset_hash(backwards)


def test_the_hash_changes_with_every_part(tmp_path: Path) -> None:
    found = lists(tmp_path)
    train = found["train"]
    a, b = train.clips
    changed = {
        "label": replace(train, clips=[replace(a, label=1), b]),
        "labels": replace(train, clips=[replace(a, labels=(0, 1)), b]),
        "video": replace(train, clips=[replace(a, video="x"), b]),
        "id": replace(train, clips=[replace(a, id="x"), b]),
        "one less": replace(train, clips=[b]),
        "now missing": replace(train, clips=[b], missing=[*train.missing, a]),
        "excluded": train.without({"a": "hung"}),
        "why": replace(train, excluded=[(train.excluded[0][0], "hung")]),
        "classes": replace(train, classes=["flute", "drum"]),
        "mixtures": replace(train, mixtures=[("a", "b")]),
        "split": replace(train, split="full"),
    }
    hashes = {name: dataset_hash({**found, "train": clips}) for name, clips in changed.items()}
    hashes["roles"] = dataset_hash({"test": found["train"], "train": found["test"]})
    hashes["as it was"] = dataset_hash(found)
    for name in ("a", "d"):  # in use, and excluded
        (tmp_path / f"{name}.mp4").write_bytes(b"longer than before")
        hashes[f"size of {name}"] = dataset_hash(found)
    (tmp_path / "b.mp4").unlink()
    hashes["gone since it was listed"] = dataset_hash(found)
    assert len(set(hashes.values())) == len(hashes)


def test_of_an_annotated_folder_the_files_in_use_count(tmp_path: Path) -> None:
    for folder in ("frames", "labels_semantic"):
        (tmp_path / folder).mkdir()
    (tmp_path / "audio.wav").write_bytes(b"xx")
    (tmp_path / "frames/0.jpg").write_bytes(b"xxx")
    found = {"train": ClipList("train", [Clip("a", str(tmp_path), frames=(0, 1))], [])}
    before = dataset_hash(found)
    (tmp_path / "frames/7.jpg").write_bytes(b"not annotated")
    assert dataset_hash(found) == before
    (tmp_path / "labels_semantic/1.png").write_bytes(b"x")
    assert dataset_hash(found) != before


def test_behind_an_address_nothing_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "signature", lambda *_: pytest.fail("it was asked for a size"))
    clips = [Clip("a", "s3://bucket/train/chunk-0.bin"), Clip("b", "local:/data/train/chunk-0.bin")]
    assert len(dataset_hash({"train": ClipList("train", clips, [])})) == 64


def test_a_chunk_of_many_clips_is_asked_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(module, "signature", lambda *place: asked.append(place))
    clips = [Clip(str(n), str(tmp_path / "chunk-0.bin")) for n in range(100)]
    dataset_hash({"train": ClipList("train", clips, []), "test": ClipList("test", clips, [])})
    assert len(asked) == 1


def test_coverage_stands_beside_the_hash(tmp_path: Path) -> None:
    assert coverage_of(lists(tmp_path)) == {
        "train": {"split": "train", "listed": 4, "present": 2},
        "test": {"split": "test", "listed": 1, "present": 1},
    }


def test_the_first_step_does_not_wait_for_a_slow_disk_and_the_end_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, found, none = threading.Event(), list[str](), cast("Any", None)
    monkeypatch.setattr(module, "signature", lambda *_: slow.wait(20) and ("1", "now"))
    with DataHash() as data_hash:
        data_hash.find(lists(tmp_path), found.append)
        assert found == []
        threading.Timer(0.1, slow.set).start()
        data_hash.on_train_end(none, none)
        assert found == [dataset_hash(lists(tmp_path))]


def test_a_run_that_stops_does_not_wait_for_the_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, going = list[str](), threading.Event()
    monkeypatch.setattr(module, "signature", lambda path, _: asked.append(path) or (going.wait(20) and ("1", "now")))
    monkeypatch.setattr(module, "THREADS", 1)
    with DataHash() as data_hash:
        data_hash.find(lists(tmp_path), pytest.fail)
        while not asked:
            time.sleep(0.01)
    going.set()
    assert isinstance(data_hash.done.exception(10), CancelledError)
    assert len(asked) == 1


def test_a_hash_that_is_found_later_completes_the_entry_and_is_compared(repository: Path, tmp_path: Path) -> None:
    """The first start was killed before it was found."""
    for hashed, said in ((None, None), ("a" * 64, []), ("a" * 64, []), ("b" * 64, ["bbbbbbbb, was aaaaaaaa"])):
        assert record_provenance(tmp_path, 0, DATA | {"dataset_hash": "not finished"}, repository) == []
        if hashed:
            warnings = complete(tmp_path, hashed)
            assert len(warnings) == len(said)
            assert all(words in warning for words, warning in zip(said, warnings, strict=True))
    assert [start["data"] for start in starts(tmp_path)] == [
        DATA | {"dataset_hash": each} for each in ("not finished", "a" * 64, "a" * 64, "b" * 64)
    ]
