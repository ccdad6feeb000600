"""Decoding processes that die, crash or hang, and folders that vanish: caused, not imagined."""

from __future__ import annotations

import multiprocessing
import os
import random
import resource
import shutil
import signal
import tempfile
import time
from contextlib import contextmanager
from multiprocessing.process import current_process
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.multiprocessing import reductions
from torch.utils.data import DataLoader, _utils
from torch.utils.data._utils import signal_handling
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from deepavfusion.data.datamodule import ClipDataModule
from deepavfusion.data.lists.vggsound import vggsound
from deepavfusion.data.loading import watch
from deepavfusion.data.samples import WindowDataset
from deepavfusion.data.stores.raw import RawStore
from deepavfusion.utils.errors import UserError
from deepavfusion.utils.launch.workers import GROUP

# s that the end of a loader, which may come in a later test, waits for each worker that hangs
_utils.MP_STATUS_CHECK_INTERVAL = 0.5


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """Torch looks every five seconds whether its workers are alive, which is too seldom for a test."""
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.3,))


class Treacherous(RawStore):
    """Does something to the process that opens a certain clip, or any ("all")."""

    def __init__(self, victim: str, what: object, once: Path | None = None) -> None:
        super().__init__()
        self.victim, self.what, self.once = victim, what, once

    @contextmanager
    def open(self, clip):
        if self.victim in (clip.id, "all") and not (self.once and self.once.exists()):
            if self.once:
                self.once.touch()
            self.what()
        with super().open(clip) as opened:
            yield opened


def loader(root: Path, source: RawStore | None = None, **more: object):
    given = {"batch_size": 4, "image_size": 32, "num_workers": 2, **more}
    module = ClipDataModule(vggsound, str(root), "vggsound", **given)
    module.setup()
    if source is not None:
        module.stores = dict.fromkeys(module.stores, source)
    return module, module.train_dataloader()


def epoch(loader) -> list:
    loader.sampler.set_epoch(0)
    return list(loader)


def same(one: list, other: list) -> bool:
    return all(
        a.id == b.id and torch.equal(a.image, b.image) and torch.equal(a.waveform, b.waveform)
        for a, b in zip(one, other, strict=True)
    )


class Drawing(WindowDataset):
    """Draws from every generator that a transform may use."""

    def read(self, item):
        group = super().read(item)
        draws = [random.random(), np.random.rand(), torch.rand(()).item()]  # noqa: NPY002
        group[0].waveform[:3] = torch.tensor(draws)
        return group


def signal_of(number: int):
    return lambda: os.kill(os.getpid(), number)


def test_the_death_of_a_worker_changes_no_sample(data_root, tmp_path, capsys):
    module, undisturbed = loader(data_root)
    expected, victim = epoch(undisturbed), module.lists["train"].clips[5].id
    # While it reads a clip: a worker that is killed from here may have delivered everything already.
    _, killed = loader(data_root, Treacherous(victim, signal_of(signal.SIGKILL), tmp_path / "once"))
    found = epoch(killed)
    assert len(expected) == 4
    assert same(found, expected)
    assert "SIGKILL while reading it; it will be tried again" in capsys.readouterr().out
    assert same(epoch(killed), expected)  # and the next epoch, too


def test_a_clip_that_crashes_the_decoder_once_is_read_again(data_root, tmp_path, capsys):
    module, undisturbed = loader(data_root)
    expected, victim = epoch(undisturbed), module.lists["train"].clips[5].id
    _, crashing = loader(data_root, Treacherous(victim, signal_of(signal.SIGSEGV), tmp_path / "once"))
    assert same(epoch(crashing), expected)
    assert f"clip {victim}" in (out := capsys.readouterr().out)
    assert "SIGSEGV while reading it; it will be tried again" in out


@pytest.mark.parametrize("number", [signal.SIGABRT, pytest.param(signal.SIGKILL, marks=pytest.mark.full)])
def test_a_clip_that_always_ends_its_process_is_left_out_by_name(data_root, number):
    """Also by SIGKILL, as the system does to a process that takes all memory."""
    module, undisturbed = loader(data_root)
    expected, clip = epoch(undisturbed), module.lists["train"].clips[5]
    _, crashing = loader(data_root, Treacherous(clip.id, signal_of(number)))
    found = epoch(crashing)
    assert [[i for i in batch.id if i != clip.id] for batch in expected] == [batch.id for batch in found]
    (problem,) = [problem for batch in found for problem in batch.problems]
    assert (problem.id, problem.path, problem.reason, problem.used) == (clip.id, clip.path, "undecodable", False)
    assert problem.detail == f"the decoding process was ended by {number.name} while reading it, 2 times"


def test_a_clip_on_which_the_decoder_hangs_is_left_out_by_name(data_root):
    module, _ = loader(data_root)
    victim = module.lists["train"].clips[2].id
    _, hanging = loader(data_root, Treacherous(victim, lambda: time.sleep(3600)), hang_seconds=2.0)
    begin = time.monotonic()
    (problem,) = [problem for batch in epoch(hanging) for problem in batch.problems]
    assert (problem.id, problem.reason) == (victim, "hung")
    assert "within 2 s" in problem.detail
    assert time.monotonic() - begin < 60


def test_workers_that_are_killed_again_and_again_end_in_a_sentence(data_root, capsys):
    _, starved = loader(data_root, Treacherous("all", signal_of(signal.SIGKILL)))
    with pytest.raises(UserError, match=r"4 times in a row by SIGKILL.*data.num_workers"):
        epoch(starved)


def test_the_death_of_a_worker_interrupts_no_other_code(data_root, monkeypatch):
    monkeypatch.setattr(signal_handling, "_SIGCHLD_handler_set", False)
    former = signal.signal(signal.SIGCHLD, handler := lambda *_: None)
    try:
        assert list(DataLoader(range(2), num_workers=1)) == [0, 1]  # a loader of torch's, with torch's handler
        assert signal.getsignal(signal.SIGCHLD) is not handler
        _, ours = loader(data_root)
        next(iter(ours))
        assert signal.getsignal(signal.SIGCHLD) is handler
    finally:
        signal.signal(signal.SIGCHLD, former)


def test_a_signal_from_outside_is_no_clips_fault(data_root, capsys):
    module, _ = loader(data_root)
    _, ended = loader(data_root, Treacherous(module.lists["train"].clips[2].id, signal_of(signal.SIGXCPU)))
    with pytest.raises(UserError, match=r"4 times in a row by SIGXCPU, probably by another program or a time limit"):
        epoch(ended)
    assert module.lists["train"].clips[2].id not in capsys.readouterr().out


def no_room(*_: object) -> None:
    raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1_2_3>: Success (0)")


def no_socket(*_: object) -> None:
    raise OSError("AF_UNIX path too long")


@pytest.mark.parametrize(
    ("where", "name", "broken", "said"),
    [
        (torch.UntypedStorage, "_share_fd_cpu_", no_room, "allocate shared memory"),
        (reductions.multiprocessing.reduction, "DupFd", no_socket, "AF_UNIX path too long"),
        (resource, "getrlimit", lambda _: (200, 4096), "200 files may be open at a time"),
    ],
)
def test_batches_that_cannot_be_shared_come_through_a_pipe(data_root, monkeypatch, capfd, where, name, broken, said):
    _, undisturbed = loader(data_root)
    expected = epoch(undisturbed)
    monkeypatch.setattr(where, name, broken)
    _, piped = loader(data_root)
    assert same(epoch(piped), expected)
    assert said in capfd.readouterr().out


def test_processes_meet_in_a_folder_with_a_short_name(data_root, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("x" * 80)))
    Path(tempfile.tempdir).mkdir()
    monkeypatch.setitem(current_process()._config, "tempdir", None)
    _, undisturbed = loader(data_root)
    epoch(undisturbed)
    assert "through pipes" not in capfd.readouterr().out


@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.full), 2])
def test_a_run_without_batches_ends_with_the_reason(data_root, tmp_path, monkeypatch, workers):
    """In collating, which is no clip's fault; without decoding processes, a thread has to end the run."""
    monkeypatch.setattr(watch, "PATIENCE", 0.5)
    monkeypatch.setattr(watch, "LOW_SHM", 1 << 60)
    report = tmp_path / "report"

    def child() -> None:
        os.dup2(os.open(report, os.O_CREAT | os.O_WRONLY), 2)
        module, stuck = loader(data_root, num_workers=workers, hang_seconds=1.0)
        stuck.collate_fn.collate = lambda _: time.sleep(3600)
        if not workers:
            source = Treacherous(module.lists["train"].clips[2].id, lambda: time.sleep(3600))
            _, stuck = loader(data_root, source, num_workers=0, hang_seconds=1.0)
        try:
            epoch(stuck)
        except UserError as error:
            report.write_text(str(error))
            os._exit(2)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(60)
    assert process.exitcode == 2
    text = report.read_text()
    assert "no batch came for 1 s (data.hang_seconds)" in text
    assert "/dev/shm has" in text
    if not workers:
        assert f"reading clip {loader(data_root)[0].lists['train'].clips[2].id} (" in text


def test_a_folder_that_vanishes_is_named_before_the_step(data_root, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(data_root, copy)
    module, here = loader(copy)
    shutil.rmtree(copy / "clips")
    batch = next(iter(here))
    with pytest.raises(UserError, match=rf"{copy}/clips/\w+ existed when the run began and is gone"):
        module.on_before_batch_transfer(batch, 0)


def test_signals_that_stop_a_run_do_not_reach_its_workers(data_root):
    _, here = loader(data_root)
    expected = epoch(here)
    here.sampler.set_epoch(0)
    batches = iter(here)
    found = [next(batches)]
    for worker in here._iterator._workers:
        for number in (*GROUP, signal.SIGCONT):
            os.kill(worker.pid, number)
    found += batches
    assert same(found, expected)


@pytest.mark.parametrize("workers", [1, 2])
def test_what_is_random_in_a_clip_depends_on_neither_workers_nor_the_process(data_root, workers):
    _, here = loader(data_root, samples=Drawing, num_workers=0)
    random.seed(5)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    expected = epoch(here)
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    assert states[:2] == after[:2]
    random.seed(6)
    _, there = loader(data_root, samples=Drawing, num_workers=workers)
    assert same(epoch(there), expected)
    draws = torch.cat([batch.waveform[:, :3] for batch in expected])
    assert len(draws.unique()) == draws.numel() == 48


def test_a_decoder_that_crashes_on_every_clip_ends_in_a_sentence(data_root, monkeypatch):
    monkeypatch.setattr("deepavfusion.data.loading.loader.CRASHES", 3)
    source = Treacherous("", signal_of(signal.SIGABRT))
    source.victim = type("Any", (), {"__eq__": lambda *_: True})()
    _, broken = loader(data_root, source)
    with pytest.raises(UserError, match=r"4 times in a row by SIGABRT, on clip after clip: make doctor"):
        epoch(broken)
