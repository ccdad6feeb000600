"""Training from object storage through a cache: what heals gives the numbers of the local run, what does not is named.

The storage is moto on 127.0.0.1, with faults that a test injects.
"""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import re
import resource
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from deepavfusion.cli.entry import reported
from deepavfusion.config.continued import verdict
from deepavfusion.config.ranges import RULES
from deepavfusion.data import datamodule
from deepavfusion.data.datamodule import ClipDataModule
from deepavfusion.data.lists.vggsound import vggsound
from deepavfusion.data.storage import cache as cache_module
from deepavfusion.data.storage import faults, room, s3
from deepavfusion.data.storage.cache import Altered, Object
from deepavfusion.data.storage.settings import StorageSettings
from deepavfusion.data.stores.packed_list import packed_list
from deepavfusion.types import Batch
from deepavfusion.utils.addresses import bytes_of
from deepavfusion.utils.errors import DecodeError, TemporaryError, UserError
from helpers.packs import small_pack
from helpers.storage import Fault, Service, put_folder

ROOT = "s3://data/packed"
CHUNKS = 6  # of the train split
FORK = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "PAUSES", (0.02, 0.05))
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.3,))


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 clips for training in six chunks, eight for testing in two."""
    return small_pack(tmp_path_factory.mktemp("pack") / "vggsound", train=4 * CHUNKS, test=8)


@pytest.fixture
def stored(s3: Service, packed: Path) -> Service:
    put_folder(s3, packed, "data", "packed")
    s3.asked.clear()
    return s3


def data(root: Path | str, cache: Path | None = None, patience: float = 5.0, **options: Any) -> ClipDataModule:
    options = {"batch_size": 4, "image_size": 32, "num_workers": 0, **options}
    storage = StorageSettings(patience_seconds=patience)
    module = ClipDataModule(vggsound, str(root), "vggsound", cache_dir=cache and str(cache), storage=storage, **options)
    module.setup()
    return module


def epoch(module: ClipDataModule, number: int = 0) -> list[Batch]:
    loader = module.train_dataloader()
    loader.sampler.set_epoch(number)
    return list(loader)


def same(one: list[Batch], other: list[Batch]) -> bool:
    return all(
        a.id == b.id and torch.equal(a.image, b.image) and torch.equal(a.waveform, b.waveform)
        for a, b in zip(one, other, strict=True)
    )


def problems(batches: list[Batch]) -> dict[str, str]:
    return {problem.id: problem.reason for batch in batches for problem in batch.problems}


def gets(service: Service) -> Counter[str]:
    """How often each chunk was asked for."""
    return Counter(path.rpartition("/")[2] for path in service.asked if path.startswith("GET") and "chunk" in path)


def files(folder: Path) -> dict[str, Path]:
    return {path.name: path for path in folder.rglob("chunk-*.bin")}


def on_chunks(fault: object, times: float = 1e9, name: str = "chunk", seconds: float = 1e9) -> Fault:
    """A fault of so many requests for chunks, within so many seconds of the first."""
    begun: list[float] = []

    def of(method: str, path: str) -> object:
        if name not in path:
            return None
        begun.append(time.monotonic())
        return fault if len(begun) <= times and begun[-1] - begun[0] < seconds else None

    return of


def in_processes(count: int, work: Callable[[int], None]) -> None:
    """Forked ones, which begin at the same time."""
    start = FORK.Barrier(count)

    def child(number: int) -> None:
        start.wait(20)
        work(number)

    processes = [FORK.Process(target=child, args=(number,)) for number in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * count


# ---------------------------------------------------------------- what heals


def test_reads_what_a_folder_has(stored: Service, packed: Path, tmp_path: Path) -> None:
    local, remote = data(packed), data(ROOT, tmp_path)
    assert same(epoch(remote), epoch(local))
    assert set(gets(stored).values()) == {1}
    assert same(epoch(remote, 1), epoch(local, 1))
    again = data(ROOT, tmp_path, num_workers=2)
    assert same(epoch(again, 2), epoch(local, 2))
    assert gets(stored).total() == CHUNKS
    (test, *_) = again.test_dataloader()
    assert same(list(test), list(local.test_dataloader()[0]))


@pytest.mark.parametrize(
    "fault", ["cut", "drop", (500, "InternalError"), (503, "SlowDown"), (403, "ExpiredToken"), 0.1], ids=str
)
def test_what_heals_gives_the_numbers_of_a_folder(stored: Service, packed: Path, tmp_path: Path, fault: object) -> None:
    """No clip is left out, and each chunk is kept as it is."""
    expected, remote = epoch(data(packed)), data(ROOT, tmp_path)
    stored.fault = on_chunks(fault, times=5)
    found = epoch(remote)
    assert same(found, expected)
    assert not problems(found)
    assert {name: path.read_bytes() for name, path in files(tmp_path).items()} == {
        path.name: path.read_bytes() for path in (packed / "train").glob("chunk*")
    }
    assert not list(tmp_path.rglob("*.partial"))


def test_an_outage_is_blamed_on_no_clip(stored: Service, packed: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """It takes longer than a clip may hang, and decoding processes wait for the storage and for each other."""
    assert data(ROOT, tmp_path, hang_seconds=0.5).train_dataloader().hang_seconds > s3.CONNECT_SECONDS + s3.READ_SECONDS
    monkeypatch.setattr(datamodule, "ANSWER_SECONDS", 1.5)
    module = data(ROOT, tmp_path, num_workers=2, hang_seconds=0.5)
    stored.fault = on_chunks((403, "ExpiredToken"), seconds=2.5)
    found = epoch(module)
    assert gets(stored).total() > CHUNKS
    assert not problems(found)
    assert same(found, epoch(data(packed)))


def test_down_at_the_start(stored: Service, packed: Path, tmp_path: Path) -> None:
    stored.stop()
    threading.Timer(0.3, stored.start).start()
    assert same(epoch(data(ROOT, tmp_path)), epoch(data(packed)))
    stored.fault = lambda method, path: (503, "SlowDown")
    with pytest.raises(TemporaryError, match=r"storage s3://data/packed has not answered for 0.2 s \(503") as error:
        data(ROOT, tmp_path, patience=0.2)
    assert error.value.status == 75


# ---------------------------------------------------------------- what does not


def test_a_missing_chunk_costs_its_own_clips(
    stored: Service, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Named as missing; asked again in the next epoch."""
    monkeypatch.setattr(cache_module, "REFUSED", 0.2)
    module = data(ROOT, tmp_path, num_workers=2)
    gone = [clip.id for clip in module.lists["train"].clips if clip.path.endswith("chunk-00002.bin")]
    key = "packed/train/chunk-00002.bin"
    stored.client.delete_object(Bucket="data", Key=key)
    found, expected = epoch(module), epoch(data(packed))
    assert problems(found) == dict.fromkeys(gone, "missing")
    assert [batch.id for batch in found] == [[i for i in batch.id if i not in gone] for batch in expected]
    for batch in found:
        assert module.on_before_batch_transfer(batch, 0) is batch  # no folder is gone
    stored.client.upload_file(str(packed / "train" / "chunk-00002.bin"), "data", key)
    time.sleep(0.2)
    assert same(epoch(module, 1), epoch(data(packed), 1))


@pytest.mark.parametrize("size", ["same", "longer", "shorter"])
def test_an_object_that_was_replaced_is_named(stored: Service, packed: Path, tmp_path: Path, size: str) -> None:
    module, name = data(ROOT, tmp_path), "chunk-00002.bin"
    other = bytearray((packed / "train" / name).read_bytes())
    other[5000] ^= 1
    content = bytes(other) + b"x" if size == "longer" else bytes(other)[: len(other) - (size == "shorter")]
    stored.client.put_object(Bucket="data", Key=f"packed/train/{name}", Body=content)
    stored.asked.clear()
    found = epoch(module)
    assert set(problems(found).values()) == {"undecodable"}
    assert len(problems(found)) == 4
    details = {problem.detail for batch in found for problem in batch.problems}
    assert len(details) == 1
    assert "has other bytes than" in details.pop()
    assert gets(stored)[name] == 3  # and not for each of its clips
    assert name not in files(tmp_path)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_outage_for_long_ends_the_epoch_between_two_steps(
    stored: Service, packed: Path, tmp_path: Path, workers: int
) -> None:
    """In one sentence, without the traceback of a decoding process; what was given is complete steps."""
    module = data(ROOT, tmp_path, patience=0.5, num_workers=workers, batch_size=2)
    loader = module.train_dataloader()
    loader.together = 3
    broken = module.lists["train"].clips[5].path.rpartition("/")[2]
    stored.fault = on_chunks((503, "SlowDown"), name=broken)
    begin, found = time.monotonic(), []
    with pytest.raises(TemporaryError) as error:
        found.extend(loader)
    assert str(error.value).startswith("storage s3://data/packed has not answered for 0.5 s (503 SlowDown:")
    assert "Traceback" not in str(error.value)
    assert error.value.between_steps
    assert time.monotonic() - begin < 5
    assert len(found) == loader.batches_done
    assert len(found) % 3 == 0
    assert same(found, list(data(packed, batch_size=2).train_dataloader())[: len(found)])
    stored.fault = lambda method, path: None
    assert same(list(loader), list(data(packed, batch_size=2).train_dataloader()))  # it can be read again


# ---------------------------------------------------------------- one cache, several processes


@pytest.mark.parametrize("rounds", [3, pytest.param(20, marks=pytest.mark.full)])
def test_processes_that_start_at_once_on_a_cold_cache(s3: Service, tmp_path: Path, rounds: int) -> None:
    """Each chunk is fetched once a machine."""
    pack = small_pack(tmp_path / "pack", per_chunk=1, train=2, test=1)
    put_folder(s3, pack, "data", "packed")
    for number in range(rounds):
        s3.asked.clear()
        folder = tmp_path / f"cache{number}"

        def work(_: int, folder: Path = folder) -> None:
            assert [batch.id for batch in epoch(data(ROOT, folder))] == [batch.id for batch in epoch(data(pack))]

        in_processes(4, work)
        assert gets(s3).total() == 2
        assert len(files(folder)) == 2


@pytest.mark.parametrize("code", [errno.ENOLCK, pytest.param(None, marks=pytest.mark.full)])
def test_machines_that_share_a_folder_without_locks(
    stored: Service, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int | None
) -> None:
    """The disk has none, or each machine its own: work is done twice rather than not at all."""

    def flock(*_: object) -> None:
        if code:
            raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    stored.fault = on_chunks(0.05)
    expected = epoch(data(packed))
    in_processes(3, lambda _: None if same(epoch(data(ROOT, tmp_path)), expected) else os._exit(1))
    assert CHUNKS <= gets(stored).total() <= 3 * CHUNKS
    assert len(files(tmp_path)) == CHUNKS
    assert not list(tmp_path.rglob("*.partial"))


def test_a_process_that_hangs_with_a_lock_is_not_waited_for(stored: Service, packed: Path, tmp_path: Path) -> None:
    module = data(ROOT, tmp_path, patience=0.3)
    (folder,) = [module.stores["train"].cache.folder]
    (folder / "train").mkdir(parents=True)
    with open(folder / "train" / "chunk-00000.bin.lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        stored.fault = on_chunks((503, "SlowDown"), times=1)  # its patience begins when it asks
        assert same(epoch(module), epoch(data(packed)))


def test_what_cannot_be_fetched_leaves_no_file_open(stored: Service, tmp_path: Path) -> None:
    cache = data(ROOT, tmp_path).stores["train"].cache
    damaged = Object("train/chunk-00000.bin", 5, "0" * 64)
    path = cache.folder / damaged.name
    path.parent.mkdir(parents=True)
    for _ in range(4):
        path.write_bytes(b"other")
        with pytest.raises(Altered):
            cache.open(damaged)
        path.unlink(missing_ok=True)
        cache._refused.clear()
        path.mkdir()  # what cannot be read, or replaced
        with pytest.raises((Altered, UserError)):
            cache.open(damaged)
        cache._refused.clear()
        path.rmdir()
    assert not [file for file in Path("/proc/self/fd").iterdir() if os.path.realpath(file).startswith(str(tmp_path))]


def test_damaged_files_of_the_cache_are_fetched_again(stored: Service, packed: Path, tmp_path: Path) -> None:
    """Six kinds of damage, and what follows is kept."""
    expected = epoch(data(packed))
    epoch(data(ROOT, tmp_path))
    stored.asked.clear()
    for n, path in enumerate(sorted(files(tmp_path).values())):
        content, status = path.read_bytes(), path.stat()
        changed = content[:300] + bytes([content[300] ^ 1]) + content[301:]
        path.write_bytes([content[:-100], b"", content + b"x", changed, bytes(len(content)), b"gone"][n])
        if n == 4:  # without a trace, as of a disk that errs, or a machine that lost its power
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        elif n == 5:
            path.unlink()
    found = epoch(data(ROOT, tmp_path))
    assert same(found, expected)
    assert not problems(found)
    assert sorted(gets(stored).values()) == [1] * CHUNKS
    assert same(epoch(data(ROOT, tmp_path)), expected)
    assert gets(stored).total() == CHUNKS


def test_data_that_was_packed_anew_is_fetched_anew(s3: Service, tmp_path: Path) -> None:
    for name, count in (("one", 4), ("other", 6)):
        pack = small_pack(tmp_path / name, per_chunk=2, train=count, test=1)
        put_folder(s3, pack, "data", "packed")
        assert same(epoch(data(ROOT, tmp_path / "cache", batch_size=2)), epoch(data(pack, batch_size=2)))


def test_what_a_killed_process_left_is_removed(stored: Service, tmp_path: Path) -> None:
    module = data(ROOT, tmp_path)
    folder = module.stores["train"].cache.folder / "train"
    folder.mkdir(parents=True)
    left, busy = folder / "chunk-00000.bin.1.partial", folder / "chunk-00001.bin.2.partial"
    for path in (left, busy):
        path.write_bytes(b"x" * 1000)
    os.utime(left, (0, time.time() - 2 * room.DEAD))
    epoch(module)
    assert [path.name for path in folder.glob("*.partial")] == [busy.name]


def test_one_address_of_two_services_has_two_folders(stored: Service, tmp_path: Path) -> None:
    first = data(ROOT, tmp_path).stores["train"].cache.folder
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", stored.url.replace("127.0.0.1", "localhost"))
        assert data(ROOT, tmp_path).stores["train"].cache.folder != first


# ---------------------------------------------------------------- room


def used(folder: Path) -> int:
    found = 0
    for path in folder.rglob("*"):
        try:
            found += 512 * path.stat().st_blocks if path.is_file() else 0
        except FileNotFoundError:
            continue
    return found


def test_the_cache_takes_no_more_than_it_may(stored: Service, packed: Path, tmp_path: Path) -> None:
    """Four processes that read in different orders, with room for three of six chunks, which take a while to come."""
    largest = max(path.stat().st_size for path in (packed / "train").glob("chunk*"))
    limit, over, most = 3 * (largest + 4096), FORK.Event(), FORK.Value("q", 0)

    def sample() -> None:
        while not over.wait(0.002):
            for lock in tmp_path.glob(f"*/{room.LOCK}"):  # nothing is removed or begun meanwhile
                with lock.open() as held:
                    fcntl.flock(held, fcntl.LOCK_EX)
                    most.value = max(most.value, used(tmp_path))

    sampler = FORK.Process(target=sample)
    sampler.start()
    stored.fault = on_chunks(0.02)
    expected = [epoch(data(packed), number) for number in range(4)]

    def work(number: int) -> None:
        module = data(ROOT, tmp_path, cache_size=limit, num_workers=0)
        for each in (number, (number + 1) % 4):
            assert same(epoch(module, each), expected[each])

    in_processes(4, work)
    over.set()
    sampler.join()
    assert 2 * largest < most.value <= limit
    assert gets(stored).total() > CHUNKS


def test_a_file_gets_its_name_while_nobody_lists(tmp_path: Path) -> None:
    """Or whoever lists would miss it, and take its room once more."""
    partial, path = tmp_path / f"a{room.PARTIAL}", tmp_path / "a"
    partial.write_bytes(b"a")
    renamed = threading.Thread(target=room.Room(tmp_path, 10**6, 5.0).rename, args=(partial, path))
    with room.locked(tmp_path / room.LOCK, 5.0):
        renamed.start()
        renamed.join(0.1)
        assert sorted(os.listdir(tmp_path)) == [room.LOCK, partial.name]
    renamed.join()
    assert sorted(os.listdir(tmp_path)) == [room.LOCK, path.name]


def test_what_was_used_least_recently_is_removed(stored: Service, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(cache_module, "USED", 0.0)
    module = data(ROOT, tmp_path, cache_size="2MB")
    store = module.stores["train"]
    first: dict[str, Any] = {}
    for clip in module.lists["train"].clips:
        first.setdefault(clip.path, clip)
    names = sorted(first)

    def use(*numbers: int) -> None:
        for number in numbers:
            with store.open(first[names[number]]):
                time.sleep(0.01)

    use(0, 1, 2, 0, 3)
    assert sorted(files(tmp_path)) == [f"chunk-{n:05d}.bin" for n in (0, 2, 3)]
    use(2, 4)
    assert sorted(files(tmp_path)) == [f"chunk-{n:05d}.bin" for n in (2, 3, 4)]


def test_a_large_cache_is_not_listed_for_each_file(
    stored: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is taken stands in the lock, except where locks do not hold, and from what others left is listed."""
    listed: list[object] = []
    make = room.Room._make
    monkeypatch.setattr(room.Room, "_make", lambda *values: listed.append(values) or make(*values))
    epoch(data(ROOT, tmp_path / "one", cache_size="100MB"))
    assert len(listed) == 1
    (lock,) = (tmp_path / "one").glob(f"*/{room.LOCK}")
    assert used(tmp_path / "one") - 4096 <= int(lock.read_text()) < used(tmp_path / "one") + CHUNKS * 4096
    monkeypatch.setattr(room, "LIST_EVERY", 0.0)
    epoch(data(ROOT, tmp_path / "two", cache_size="100MB"))
    assert len(listed) == 1 + CHUNKS
    monkeypatch.setattr(room, "LIST_EVERY", 60.0)
    monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOLCK, "none")))
    epoch(data(ROOT, tmp_path / "three", cache_size="100MB"))
    assert len(listed) == 1 + 2 * CHUNKS


def test_balanced_classes_need_room_for_all_chunks(stored: Service, tmp_path: Path, capsys: Any) -> None:
    for size, said in (("1.9MB", True), (None, False)):
        data(ROOT, tmp_path, cache_size=size, class_balanced=True).train_dataloader()
        assert ("draws from 6 chunks in any order, of which data.cache_size holds 3" in capsys.readouterr().out) == said


def test_a_cache_that_is_too_small_is_named(stored: Service, tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(UserError, match=r"data\.cache_size is 600000, expected at least \d+, two chunks of s3://data"):
        data(ROOT, tmp_path, cache_size="600kB")
    data(ROOT, tmp_path, cache_size="1.2MB").train_dataloader()
    assert "data.cache_size holds 2 of the 8 chunks that are read at a time" in capsys.readouterr().out
    module = data(ROOT, tmp_path, cache_size="1.2MB")
    (tmp_path / "other").write_bytes(b"")
    folder = module.stores["train"].cache.folder
    folder.mkdir(parents=True)
    (folder / ".other").write_bytes(b"x" * 10**6)
    with pytest.raises(UserError, match=r"may take 1200000 bytes \(data\.cache_size\), of which \d+ are left for"):
        epoch(module)


def test_a_full_disk_is_named(stored: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When room is taken, or by a limit of this process; with decoding processes, too."""
    words = r"could not be kept in its cache .*\(.*\): free space there.*data\.cache_dir=<folder>.*data\.cache_size"

    def limited(report: Any) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            epoch(data(ROOT, tmp_path))
        except UserError as error:
            report.send(str(error))

    here, there = FORK.Pipe()
    process = FORK.Process(target=limited, args=(there,))
    process.start()
    assert here.poll(20)
    said = here.recv()
    assert re.search(words, said)
    assert "(File too large)" in said
    process.join()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    for workers in (0, 2):
        with pytest.raises(UserError, match=words) as error:
            epoch(data(ROOT, tmp_path / str(workers), num_workers=workers))
        assert "Traceback" not in str(error.value)
        assert not files(tmp_path)
    assert not list((tmp_path / "0").rglob("*.partial"))  # of processes that are ended, one may be left for a minute


@pytest.mark.parametrize("wrong", ["file", "right"])
def test_a_cache_that_cannot_be_used_is_no_clips_fault(
    stored: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    place = tmp_path / "cache"
    if wrong == "file":
        place.touch()
    else:  # root may write anywhere

        def refuse(*_: object, **__: object) -> None:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "cache")

        monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(UserError, match=r"could not be kept in its cache .*: choose another place \(data\.cache_dir"):
        epoch(data(ROOT, place))


# ---------------------------------------------------------------- chunks


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (0, 0),  # how many items there are
        (0, 2**32 - 1),
        (1, 0),  # where the first begins
        (1, 2**32 - 1),
        (2, 0),  # where it ends
        (2, 2**32 - 1),
        ("size", 2**32 - 1),  # of its first part
        ("size", 0),
    ],
)
def test_a_chunk_with_wrong_numbers_is_undecodable(packed: Path, tmp_path: Path, place: Any, value: int) -> None:
    shutil.copytree(packed, tmp_path / "p")
    path = tmp_path / "p" / "train" / "chunk-00000.bin"
    content = bytearray(path.read_bytes())
    numbers = np.frombuffer(content, np.uint32, 6)
    at = int(numbers[1]) if place == "size" else 4 * place
    content[at : at + 4] = np.uint32(value).tobytes()
    path.write_bytes(content)
    clips, store = packed_list(str(tmp_path / "p"), "train", "vggsound")
    (first,) = [clip for clip in clips.clips if store.places[clip.id] == 0]
    with pytest.raises(DecodeError) as error, store.open(first):
        pass
    assert (error.value.reason, error.value.path) == ("undecodable", str(path))


def test_a_chunk_that_is_cut_while_it_is_read_is_undecodable(packed: Path, tmp_path: Path) -> None:
    """As by a copy over it; mapped into memory, it would end the process."""
    shutil.copytree(packed, tmp_path / "p")
    clips, store = packed_list(str(tmp_path / "p"), "train", "vggsound")
    with store.open(clips.clips[0]) as opened:
        os.truncate(clips.clips[0].path, 100)
        with pytest.raises(DecodeError, match="it ends after"):
            opened.audio(0.0, 1.0)
    os.unlink(clips.clips[0].path)
    with pytest.raises(DecodeError) as error, store.open(clips.clips[0]):
        pass
    assert error.value.reason == "missing"
    os.mkfifo(clips.clips[0].path)
    with pytest.raises(DecodeError, match="no regular file"), store.open(clips.clips[0]):
        pass


def test_a_machine_that_may_open_no_more_files_is_no_clips_fault(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips, store = packed_list(str(packed), "train", "vggsound")

    def exhausted(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), "file")

    monkeypatch.setattr(os, "open", exhausted)
    with pytest.raises(OSError, match="Too many open files"), store.open(clips.clips[0]):
        pass


# ---------------------------------------------------------------- config


@pytest.mark.parametrize(
    ("text", "size"),
    [
        *(
            ("100GB", 10**11),
            ("1.5 TB", 1_500_000_000_000),
            ("512MiB", 2**29),
            ("7", 7),
            ("20k", 20_000),
            ("3G", 3 * 10**9),
        ),
        *(
            ("", None),
            ("GB", None),
            ("0GB", None),
            ("-1GB", None),
            ("1e9", None),
            ("100 GB free", None),
            ("1,5GB", None),
        ),
    ],
)
def test_sizes(text: str, size: int | None) -> None:
    assert bytes_of(text) == size
    assert RULES["data.cache_size"].holds(text) == (size is not None)


def test_a_run_that_continues_may_read_from_elsewhere() -> None:
    keys = ("endpoint_url", "region", "anonymous", "ca_bundle", "patience_seconds")
    for key in ("cache_size", "cache_dir", "root", *(f"storage.{key}" for key in keys)):
        assert verdict(f"data.{key}")[0] == "applied"


def test_the_status_of_what_the_same_command_continues(capsys: pytest.CaptureFixture[str]) -> None:
    for error, status in ((TemporaryError("storage is out of reach"), 75), (UserError("storage refuses"), 2)):
        with pytest.raises(SystemExit) as end, reported({}):
            raise error
        assert end.value.code == status
        assert capsys.readouterr().err.strip() == str(error)
