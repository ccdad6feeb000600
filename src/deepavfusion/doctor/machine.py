"""Checks of the machine (cores, memory, disks, limits, environment variables) and of the data on it."""

from __future__ import annotations

import errno
import getpass
import os
import pwd
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from omegaconf import DictConfig

from deepavfusion.config.compose import instantiate
from deepavfusion.utils.addresses import is_remote
from deepavfusion.utils.errors import UserError
from deepavfusion.utils.files import link, write_whole
from deepavfusion.utils.launch.cores import cores
from deepavfusion.utils.launch.launcher import BY_HAND, VARIABLES, launch
from deepavfusion.utils.processes import MAX_FOLDER, check_counts

GB, GIB = 10**9, 2**30
BLOCK = 8 * 2**20  # bytes
MIN_MEMORY = 2 * GIB  # bytes: a demo run with its workers
PREFETCHED = 2  # batches that a DataLoader worker holds in shared memory
MIN_FILES = 1024
CLIPS = 32  # read to measure the speed


def cores_and_memory(group: Path = Path("/sys/fs/cgroup")) -> str:
    """Cores that this process may use, and free memory within the limit of a container."""
    free, known = _memory()
    limit = group / "memory.max"
    if limit.is_file() and (most := limit.read_text().strip()) != "max":
        free = min(free, int(most) - int((group / "memory.current").read_text()))
    if free < MIN_MEMORY:
        what = "are free" if known else "are all there is"
        raise UserError(
            f"{free / GIB:.1f} GiB of memory {what}, a demo run needs {MIN_MEMORY / GIB:.0f}: end other programs, "
            "or raise the limit of the container (docker run --memory)."
        )
    return f"{cores()} of {os.cpu_count()} cores, {free / GIB:.1f} GiB of memory{' free' if known else ''}"


def _memory() -> tuple[int, bool]:
    """Bytes of memory that are free; where that is not known, of all."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.is_file():  # Linux has it
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), False
    lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024, True


# ---- disks


def existing(folder: Path) -> Path:
    """The folder, or the nearest parent that exists."""
    return next(path for path in (folder, *folder.parents) if path.exists())


def writing(places: Mapping[str, Path]) -> str:
    """Each folder (setting -> folder), or its nearest existing parent, is writable."""
    wrong = []
    for how, folder in places.items():
        try:
            with tempfile.NamedTemporaryFile(dir=existing(folder), buffering=0) as file:
                file.write(b"doctor")
        except OSError as error:
            wrong.append(f"{folder} cannot be written to ({error.strerror}): set {how}, or fix its permissions")
    if wrong:
        raise UserError(f"{'; '.join(wrong)}.")
    return ", ".join(map(str, places.values()))


def log_disk(folder: Path, min_gb: float, megabytes: int, min_speed: float) -> str:
    """The log disk has `min_gb` GB free, and writes and reads `megabytes` MB at `min_speed` MB/s or more."""
    free = shutil.disk_usage(existing(folder)).free / GB
    if free < min_gb:
        raise UserError(
            f"{folder} has {free:.1f} GB free, the published recipe needs {min_gb:.0f}: make room, set "
            "paths.log_dir=<folder on another disk>, or lower the requirement (free_gb=1 is enough for the demo)."
        )
    block = os.urandom(BLOCK)
    blocks = max(1, round(megabytes * 1e6 / BLOCK))
    try:
        with tempfile.NamedTemporaryFile(dir=existing(folder), prefix=".doctor_") as file:
            begin = time.perf_counter()
            for _ in range(blocks):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
            written = blocks * BLOCK / 1e6 / (time.perf_counter() - begin)
            read = read_rate([Path(file.name)])
    except OSError as error:
        raise UserError(f"{folder} cannot be written to ({error.strerror}): set paths.log_dir=<folder>.") from None
    if min(written, read) < min_speed:
        raise UserError(
            f"{folder} writes {written:.0f} and reads {read:.0f} MB/s, expected {min_speed:g} or more: a checkpoint "
            "would take minutes; set paths.log_dir=<folder on a faster disk>."
        )
    return f"{folder}: {free:.0f} GB free, writes {written:.0f} MB/s, reads {read:.0f} MB/s{_abilities(folder)}"


def _abilities(folder: Path) -> str:
    """Checks that files can be replaced and created exclusively, as checkpoints and the lock of a run need; remarks."""
    with tempfile.TemporaryDirectory(dir=existing(folder), prefix=".doctor_") as place:
        old, new = Path(place, "old"), Path(place, "new")
        try:
            write_whole(old, "1", durable=True)
            write_whole(old, "2", durable=True)
            os.close(os.open(new, os.O_CREAT | os.O_EXCL))
            with suppress(FileExistsError):
                os.close(os.open(new, os.O_CREAT | os.O_EXCL))
                raise OSError(errno.EOPNOTSUPP, "a file was created exclusively twice")
        except OSError as error:
            raise UserError(
                f"{folder}: files cannot be replaced or locked there ({error.strerror}): set paths.log_dir=<folder on "
                "another disk>."
            ) from None
        return "" if link(Path(place, "link"), "old") else "; no links there: last.ckpt is a copy, latest is not made"


def read_rate(files: Iterable[Path]) -> float:
    """MB/s at which files are read from disk, not from the page cache."""
    size, seconds = 0, 1e-9
    for path in files:
        with open(path, "rb", buffering=0) as file:
            if hasattr(os, "posix_fadvise"):  # not on Macs, where the page cache makes it look faster
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            begin = time.perf_counter()
            while block := file.read(BLOCK):
                size += len(block)
            seconds += time.perf_counter() - begin
    return size / 1e6 / seconds


# ---- limits and environment variables


def shared_memory(batch_bytes: int, workers: int, folder: Path = Path("/dev/shm")) -> str:
    """The batches that workers prefetch fit into shared memory."""
    if not folder.is_dir() and sys.platform != "linux":
        return f"{sys.platform} sets no limit of its own"
    free, needed = shutil.disk_usage(folder).free, batch_bytes * workers * PREFETCHED
    if free < needed:
        raise UserError(
            f"{folder} has {free / 1e6:.0f} MB free, {workers} workers need {needed / 1e6:.0f}: free some "
            "space, start a container with --ipc=host or --shm-size=8g, or lower data.num_workers."
        )
    return f"{folder}: {free / GB:.1f} GB free, workers need {needed / GB:.2f}"


def temporary_files(folder: Path, min_gb: float = 1.0) -> str:
    """The folder of temporary files has room; for sockets, a long name of it is avoided."""
    free = shutil.disk_usage(existing(folder)).free / GB
    if free < min_gb:
        raise UserError(f"{folder} has {free:.1f} GB free, expected {min_gb:g}: make room, or set TMPDIR=<folder>.")
    if len(os.fsencode(folder / "pymp-12345678")) > MAX_FOLDER:
        try:
            tempfile.TemporaryFile(dir="/tmp").close()
        except OSError as error:
            raise UserError(
                f"the name of {folder} is too long for sockets, and /tmp cannot be written to ({error.strerror}), so "
                "that batches come through slow pipes: set TMPDIR=<folder with a short name>."
            ) from None
    return f"{folder}: {free:.0f} GB free"


def open_files() -> str:
    """How many files a process may have open; a run raises the limit as far as the system allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < MIN_FILES:
        raise UserError(
            f"a process may open {hard} files at a time, a run with workers needs {MIN_FILES}: have the system limit "
            "raised (ulimit -Hn shows it); batches come through slow pipes otherwise."
        )
    return "no limit" if hard == resource.RLIM_INFINITY else f"{hard} at a time"


def user() -> str:
    """Who runs; an id without a name is given one, see `utils.processes.name_user`."""
    try:
        return f"{pwd.getpwuid(os.getuid()).pw_name}, home {Path.home()}"
    except KeyError:
        return f"id {os.getuid()} without a name: {getpass.getuser()} is used, home {Path.home()}"


def variables(environment: Mapping[str, str]) -> str:
    """No variable makes a run wait for other processes or write nothing, or is a number of a launcher and is none."""
    check_counts(environment)
    found = launch(environment)
    if found.processes > 1:
        names = [name for name in (*VARIABLES.get(found.by, ())[:1], *BY_HAND) if environment.get(name)]
        shown = ", ".join(f"{name}={environment[name]}" for name in names)
        raise UserError(
            f"{shown}: {found.processes} processes were started by a launcher; without one a run waits forever or "
            f"writes nothing: start it with srun or torchrun, or type unset {' '.join(names)}."
        )
    return "none that changes how a run starts"


def current_folder(missed: Sequence[UserError]) -> str:
    """The folder that the command was given in exists; `missed`: why it does not."""
    for error in missed:
        raise error
    return os.getcwd()


# ---- data


def dataset(config: DictConfig, given: bool, min_speed: float) -> str:
    """How much of a data config's dataset exists, and that it is read at `min_speed` MB/s or more.

    `given`: the user set its root, a folder or an address; a default root may be absent.
    """
    root = config.root
    if is_remote(root):
        from deepavfusion.doctor.storage import remote_dataset  # takes torch, which may be what is broken

        return remote_dataset(instantiate(config), min_speed)
    if not Path(root).is_dir():
        if config.name == "folder" and given:
            raise UserError(f"data.root={root} is not a folder: give one that has videos in it, or below it.")
        if given or Path(root).exists():
            raise UserError(
                f"data.root={root} is not a folder; expected the folder of a dataset: set data.root to it, or leave "
                "data.root out to run on generated demo data."
            )
        return f"{root} does not exist: runs use the demo"
    counts, files = [], []
    for split in dict.fromkeys(config[key] for key in ("train_split", "val_split", "eval_split")):
        if split != "holdout":
            clips = instantiate(config).read(split)[0]
            counts.append(f"{split} {len(clips.clips)} of {clips.listed} clips")
            files += [clip.path for clip in clips.clips]
    summary = f"{root}: {', '.join(counts)}"
    if not files:
        return summary
    chosen = map(Path, sorted(set(files[:: max(1, len(files) // CLIPS)]))[:CLIPS])
    every = (path for clip in chosen for path in (clip.rglob("*") if clip.is_dir() else [clip]))
    speed = read_rate(path for path in every if path.is_file())
    if speed < min_speed:
        raise UserError(
            f"{root} is read at {speed:.1f} MB/s, expected {min_speed:g} or more: put the data on a local disk or pack "
            "it (python src/prepare.py command=pack) and set data.root."
        )
    return f"{summary}; reads {speed:.0f} MB/s"
