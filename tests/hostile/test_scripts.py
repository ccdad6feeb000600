"""Every script on every bad disk and terminal: it does its work or says in one sentence why not; never a traceback."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import shutil
import signal
import sys
from collections import namedtuple
from collections.abc import Callable, Iterator
from itertools import product
from types import SimpleNamespace

import pytest

from chaos import start_forked, wait_for
from deepavfusion.cli import entry
from deepavfusion.utils import errors, pool
from helpers.runs import PRETRAIN

SCRIPTS = {  # script -> its words; {out}: where to write; {data}, {probed}: to read
    "train": (
        *(*PRETRAIN, "trainer.max_epochs=1", "validate_before=false", "trainer.limit_train_batches=1"),
        *("~callbacks.knn", "data.gallery_clips=0", "run.latest=false", "data.root={data}", "paths.log_dir={out}"),
    ),
    "eval": ("ckpt_path={probed}", "data.root={data}", "paths.log_dir={out}", "trainer.limit_test_batches=1"),
    "predict": ("task=classify", "video={video}", "ckpt_path={probed}", "output={out}/p"),
    "prepare": ("command=pack", "data=vggsound", "data.root={data}", "output={out}/p", "workers=1", "splits=[test]"),
    "convert": ("input={probed}", "output={out}/p.safetensors"),
    "benchmark": ("benchmark.clips=1", "benchmark.seconds=4", "benchmark.rounds=1", "paths.log_dir={out}"),
    "doctor": ("smoke_train=false", "free_gb=0", "write_mb=1", "least_mb_per_s=0", "paths.log_dir={out}"),
}
CLAUSES = {"permission": "ermission denied", "folder": "ot a directory", "full": "too large"}


def without_privileges() -> None:
    """As root, permissions would not be checked: gives up its capabilities."""
    header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert ctypes.CDLL(None).capset(header, data) == 0


def full_disk() -> None:
    """Every file ends after 2 kB."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048))


def closed() -> None:
    os.close(1)
    sys.stdout = sys.__stdout__ = None


def broken_pipe() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    os.dup2(writer, 1)


def ascii_only() -> None:
    sys.stdout.reconfigure(encoding="ascii", errors="strict")


FAULTS: dict[str, Callable[[], None]] = {
    "permission": without_privileges,
    "folder": lambda: None,
    "full": full_disk,
    "bytes": lambda: None,
    "closed": closed,
    "pipe": broken_pipe,
    "ascii": ascii_only,
}


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.EACCES, "choose another place"),
        (errno.EPERM, "choose another place"),
        (errno.EROFS, "the disk is read-only"),
        (errno.ENOTDIR, "is a file"),
        (errno.EISDIR, "a file was expected"),
        (errno.ENAMETOOLONG, "shorter name"),
        (errno.ELOOP, "circle"),
        (errno.ENOENT, "unmounted"),
        (errno.EIO, "the disk or network drive fails"),
        (errno.ESTALE, "the disk or network drive fails"),
        (errno.EMFILE, "ulimit -n"),
        (errno.EOPNOTSUPP, "its disk cannot do this"),
        (errno.EDQUOT, "free some space"),
    ],
)
def test_what_the_system_refuses_has_a_path_and_a_remedy(refused, number, remedy):
    def raises() -> None:
        raise OSError(number, os.strerror(number), "/some/file")

    refused(raises, "/some/file", os.strerror(number), remedy)


def test_a_full_disk_is_named_where_a_library_names_no_file(refused, monkeypatch):
    usage = namedtuple("Usage", "total used free")
    monkeypatch.setattr(errors.shutil, "disk_usage", lambda _: usage(10, 9, 1))

    def raises() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    refused(raises, "a file could not be written", "full: ", "/dev/shm, 0 MB free")


def test_a_disk_without_room_for_a_file_names_the_file_and_the_disk(refused, monkeypatch):
    room = {"f_bavail": 10**9, "f_blocks": 10**9, "f_bfree": 10**9, "f_frsize": 4096}
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(**room, f_files=1000, f_favail=0))

    def raises() -> None:  # as of a link
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "step_1.ckpt", None, "/run/last.ckpt")

    text = refused(raises, "/run/last.ckpt could not be written", "/dev/shm, room for no further file")
    assert "step_1.ckpt" not in text
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(**room, f_files=0, f_favail=0))  # counts none
    assert errors.full_disk("/dev/shm") == ""


def test_other_errors_of_the_system_are_bugs_with_a_traceback():
    def raises() -> None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    with pytest.raises(OSError, match="Bad file descriptor"):
        entry.run(entry.run_and_report(raises))


@pytest.fixture(scope="module")
def fork_server() -> None:
    """Started before the copies of this process, each of which would import everything again."""
    pool._fork_server()


def meetings() -> Iterator[object]:
    """Of all scripts with all faults; in the short run, each script and each fault in one."""
    for (i, script), (j, fault) in product(enumerate(SCRIPTS), enumerate(FAULTS)):
        yield pytest.param(script, fault, marks=[] if i == j else pytest.mark.full)


@pytest.mark.usefixtures("fork_server")
@pytest.mark.parametrize(("script", "fault"), meetings())
def test_a_script_works_or_says_why_not(script, fault, data_root, probed, tmp_path):
    out, data = tmp_path / "out", data_root
    out.mkdir()
    if fault == "permission":
        out.chmod(0o500)
    elif fault == "folder":
        out = out / "file" / "logs"
        out.parent.touch()
    elif fault == "bytes":
        out = out / os.fsdecode(b"caf\xe9")
        data = out / "data"
        out.mkdir()
        shutil.copytree(data_root, data)
    video = next((data / "clips").rglob("*.mp4"))
    if fault == "bytes":
        video = shutil.copy(video, video.with_name(os.fsdecode(b"\xff.mp4")))
    values = {"out": out, "data": data, "probed": probed / "checkpoints/last.ckpt", "video": video}
    words = [word.format_map(values) for word in SCRIPTS[script]]
    status = wait_for(start_forked([f"src/{script}.py", *words], tmp_path, FAULTS[fault]))
    output = (tmp_path / "output.txt").read_text(errors="surrogateescape")
    assert "Traceback" not in output, output
    if fault == "bytes" and "{out}" in "".join(word for word in SCRIPTS[script] if "log_dir" in word):
        assert (status, "a path in UTF-8" in output) == (2, True), output  # TensorBoard could not write there
    elif fault in CLAUSES and script != "doctor":
        assert status == 2, output
        assert CLAUSES[fault] in output.strip().splitlines()[-1]
    elif script == "doctor":
        assert status in (0, 1, 2), output
    else:
        assert status == 0, output
