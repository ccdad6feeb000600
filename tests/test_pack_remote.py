"""Packing into object storage: the same objects as a folder's files, whatever happens on the way."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deepavfusion.data.lists.clip_list import ClipList
from deepavfusion.data.storage import faults
from deepavfusion.data.storage.settings import StorageSettings
from deepavfusion.data.stores import destination
from deepavfusion.data.stores.pack import PackSettings, pack
from deepavfusion.media.encode import write_mp4
from deepavfusion.types import Clip
from deepavfusion.utils.errors import TemporaryError, UserError
from helpers.storage import Service, stored

ROOT = "s3://data/packed"
SMALL = PackSettings(clips_per_chunk=2)
Lists = dict[str, ClipList]


@pytest.fixture(scope="module", autouse=True)
def one_process() -> Iterator[None]:
    """Clips are read here: how worker processes end is tested elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "deepavfusion.data.stores.pack.call_apart", lambda read, jobs, *_: ((job, read(job)) for job in jobs)
        )
        yield


@pytest.fixture(scope="module")
def lists(tmp_path_factory: pytest.TempPathFactory) -> Lists:
    """Five clips to train on, in three chunks, of which one holds nothing; two to test on."""
    folder, random = tmp_path_factory.mktemp("clips"), np.random.default_rng(0)
    for name in "abcdefg":
        frames = random.integers(0, 256, (10, 32, 32, 3), dtype=np.uint8)
        write_mp4(folder / f"{name}.mp4", frames, 10, 0.5 * np.sin(np.arange(16_000) / 3))
    clips = [Clip(name, str(folder / f"{name}.mp4"), 0) for name in "abcdefg"]
    (folder / "e.mp4").write_bytes(b"damaged")
    return {"train": ClipList("train", clips[:5], ["x"]), "test": ClipList("test", clips[5:], ["x"])}


@pytest.fixture(scope="module")
def local(lists: Lists, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    root = tmp_path_factory.mktemp("packed") / "x"
    pack(lists, root, "x", SMALL, workers=1)
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture
def bucket(s3: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Service:
    s3.client.create_bucket(Bucket="data")
    monkeypatch.setattr(faults, "PAUSES", (0.02, 0.05))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return s3


def packed(lists: Lists, settings: PackSettings = SMALL, patience: float = 5.0) -> None:
    pack(lists, ROOT, "x", settings, workers=1, storage=StorageSettings(patience_seconds=patience))


def chunks(service: Service) -> list[str]:
    return [request for request in service.asked if request.startswith("PUT") and "chunk-" in request]


def test_who_may_not_write_is_told_at_once(bucket: Service, lists: Lists) -> None:
    bucket.fault = lambda method, path: (403, "AccessDenied") if method == "PUT" else None
    with pytest.raises(UserError, match=r"refuses .*AccessDenied.*also to write") as error:
        packed(lists)
    assert error.value.status == 2


def test_chunks_that_are_removed_meanwhile(bucket: Service, lists: Lists, local: dict[str, bytes]) -> None:
    """A pack that lacks some is not called complete; the same command packs them."""

    def remove(method: str, path: str) -> None:
        if method == "PUT" and "test/chunk-" in path:
            bucket.client.delete_object(Bucket="data", Key="packed/train/chunk-00000.bin")

    bucket.fault = remove
    with pytest.raises(TemporaryError, match=r"lost chunks .*, 1 of 4, such as train/chunk-00000\.bin"):
        packed(lists)
    assert "packed.json" not in stored(bucket, "data", "packed")
    bucket.reset()
    packed(lists)
    assert stored(bucket, "data", "packed") == local
    assert len(chunks(bucket)) == 1


def test_the_objects_are_the_files_of_a_folder(bucket: Service, lists: Lists, local: dict[str, bytes], tmp_path: Path):
    left = [(503, "SlowDown"), "drop"] * 3
    bucket.fault = lambda method, path: left.pop() if left and method == "PUT" else None
    packed(lists)
    assert stored(bucket, "data", "packed") == local
    assert [request for request in bucket.asked if request.startswith("PUT")][-1].endswith("packed.json")
    bucket.asked.clear()
    packed(lists)  # complete already
    assert chunks(bucket) == []
    bucket.client.delete_object(Bucket="data", Key="packed/test/chunk-00000.bin")  # as verifying asks for
    packed(lists)
    assert stored(bucket, "data", "packed") == local
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".lock"]


@pytest.mark.parametrize("stop", [1, 3, 8, 13])
def test_an_interrupted_pack_is_continued(bucket: Service, lists: Lists, local: dict[str, bytes], stop: int) -> None:
    """Wherever it stops, and chunks that are complete are not uploaded again."""
    left = [None] * stop

    def down(method: str, path: str) -> object:
        if method == "PUT" and left:
            left.pop()
        return None if left else (503, "SlowDown")

    bucket.fault = down
    with pytest.raises(UserError, match="has not answered"):
        packed(lists, patience=0.01)
    bucket.fault = lambda method, path: None
    there = stored(bucket, "data", "packed")
    assert "packed.json" not in there
    complete = [name for name in there if ".parts" in name]
    bucket.asked.clear()
    packed(lists)
    assert stored(bucket, "data", "packed") == local
    assert len(chunks(bucket)) <= 4 - len(complete) + (".parts/00001.json" in str(complete))


def test_ctrl_c_does_not_wait_for_a_storage_that_is_down(bucket: Service, lists: Lists, monkeypatch: Any) -> None:
    """While it looks for what an earlier command uploaded."""
    packed(lists)
    bucket.client.delete_object(Bucket="data", Key="packed/packed.json")
    bucket.fault = lambda method, path: (503, "SlowDown") if ".parts" in path else None
    monkeypatch.setattr(faults, "PAUSES", (0.2,))

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    former = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 1.0)
        with pytest.raises(KeyboardInterrupt):
            packed(lists, patience=600.0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
    until_ended = time.monotonic() + 10
    while any("ThreadPool" in thread.name for thread in threading.enumerate()):
        assert time.monotonic() < until_ended
        time.sleep(0.05)


def test_a_place_of_something_else_is_left_alone(bucket: Service, lists: Lists) -> None:
    bucket.client.put_object(Bucket="data", Key="packed/thesis.tex", Body=b"")
    with pytest.raises(UserError, match="s3://data/packed exists and holds no packed data"):
        packed(lists)
    bucket.client.delete_object(Bucket="data", Key="packed/thesis.tex")
    bucket.client.put_object(Bucket="data", Key="packed2/other", Body=b"")  # beside it
    packed(lists)
    before = stored(bucket, "data")
    with pytest.raises(UserError, match="s3://data/packed holds packed data with another settings"):
        packed(lists, PackSettings(quality=50))
    with pytest.raises(UserError, match="another lists"):
        packed({"train": lists["train"], "test": ClipList("test", [], ["x"])})
    assert stored(bucket, "data") == before


def test_another_machine_packs_into_the_same_place(bucket: Service, lists: Lists, local: dict[str, bytes]) -> None:
    """The same clips and settings: harmless. Others: the one whose plan is not there stops before its next chunk."""
    plan = local[".pack.json"]

    def faster(method: str, path: str) -> object:
        if method == "PUT":
            bucket.fault = lambda method, path: None
            bucket.client.put_object(Bucket="data", Key="packed/.pack.json", Body=plan)
        return None

    bucket.fault = faster
    packed(lists)
    assert stored(bucket, "data", "packed") == local

    for name in local:
        bucket.client.delete_object(Bucket="data", Key=f"packed/{name}")
    plan = plan.replace(b'"quality": 90', b'"quality": 50')
    bucket.fault = faster
    with pytest.raises(UserError, match="another settings"):
        packed(lists)
    assert list(stored(bucket, "data", "packed")) == [".pack.json"]


def test_few_chunks_are_on_this_disk(
    bucket: Service, lists: Lists, local: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However slow the storage is; what a killed pack left is removed."""
    monkeypatch.setattr(destination, "WAITING", 1)
    most = 0

    def slow(method: str, path: str) -> object:
        nonlocal most
        files = [file for file in tmp_path.rglob("*") if file.is_file() and file.suffix != ".lock"]
        most = max(most, len(files))
        return 0.03 if "chunk-" in path else None

    with destination.destination(ROOT, StorageSettings()) as place:
        (place.scratch("train/chunk-00000.bin")).mkdir()
        (folder,) = tmp_path.rglob("pack-*/")
        with pytest.raises(UserError, match=r"another process on this machine is packing into s3://data/packed"):
            packed(lists)
    (folder / "left").mkdir(parents=True)
    (folder / "left" / "chunk").touch()
    bucket.fault = slow
    packed({"train": lists["train"], "test": lists["test"]}, PackSettings(clips_per_chunk=1))
    assert 1 <= most <= 4  # being uploaded, waiting, being written with its index
    assert not folder.exists()


def test_places_that_cannot_be_written_to(
    s3: Service, lists: Lists, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for root in ("gs://bucket/folder", "hf://datasets/user/name/folder"):
        with pytest.raises(UserError, match=f"{root} can be read, but not written to"):
            pack(lists, root, "x", SMALL, workers=1)
    began = time.monotonic()
    with pytest.raises(UserError, match="NoSuchBucket"):
        packed(lists)
    assert time.monotonic() - began < 5
