"""Disks, limits and variables of the machine, and the data on it."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from deepavfusion.utils.addresses import is_remote
from deepavfusion.utils.errors import UserError
from deepavfusion.utils.run_dir import RUN_DIR_VARIABLE

GB = 10**9
BLOCK = 8 * 2**20  # bytes
PARAMETER = 12  # bytes in a checkpoint: weight and AdamW's two moments, 32 bits each
BESIDES = 10**9  # bytes: TensorBoard's files and demo data
PREFETCHED = 2  # batches that a DataLoader's worker holds in shared memory
LEAST_FILES = 1024
CLIPS = 32  # read to measure
AHEAD = 60  # s that the clock may lag behind a file
FROM_OUTSIDE = ("WORLD_SIZE", "SLURM_NTASKS")  # processes that somebody else starts
STARTS = (*FROM_OUTSIDE, "RANK", "LOCAL_RANK", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "SLURM_JOB_ID", RUN_DIR_VARIABLE)
CHANGES = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "PYTHONHASHSEED", "TORCH_COMPILE_DISABLE")


# ---- disks


def existing(folder: Path) -> Path:
    """The folder, or the nearest above it that is there."""
    return next(path for path in (folder, *folder.parents) if path.exists())


def writing(places: Mapping[str, Path]) -> str:
    """Files can be written in each folder, or in what it would be made in.

    Args:
        places: how to choose another folder -> the folder.
    """
    wrong = []
    for how, folder in places.items():
        try:
            with tempfile.NamedTemporaryFile(dir=existing(folder)) as file:
                file.write(b"doctor")
                file.flush()
        except OSError as error:
            wrong.append(f"{folder} cannot be written to ({error.strerror}): set {how}, or mend its permissions")
    if wrong:
        raise UserError(f"{'; '.join(wrong)}.")
    return ", ".join(map(str, places.values()))


def disk_space(folder: Path, parameters: float, checkpoints: int) -> str:
    """The log folder's disk has room for the checkpoints of a run and what lies beside them."""
    free = shutil.disk_usage(existing(folder)).free
    needed = int(checkpoints * PARAMETER * parameters) + BESIDES
    if free < needed:
        raise UserError(
            f"{folder} has {free / GB:.1f} GB free, the published recipe needs {needed / GB:.1f} ({checkpoints} checkpoints "
            f"of {parameters / 1e6:.0f} M parameters): make room, or set paths.log_dir=<folder on another disk>."
        )
    return f"{folder}: {free / GB:.1f} GB free, the published recipe needs {needed / GB:.1f}"


def disk_speed(folder: Path, megabytes: int, least: float) -> str:
    """Write a file, wait until it is on the disk, and read it past the cache."""
    block = os.urandom(BLOCK)
    blocks = max(1, round(megabytes * 1e6 / BLOCK))
    with tempfile.NamedTemporaryFile(dir=existing(folder), prefix=".doctor_") as file:
        begin = time.perf_counter()
        for _ in range(blocks):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        written = blocks * BLOCK / 1e6 / (time.perf_counter() - begin)
        size, seconds = read_cold(Path(file.name))
    read = size / 1e6 / max(seconds, 1e-9)
    for what, speed in (("writes", written), ("reads", read)):
        if speed < least:
            raise UserError(
                f"{folder} {what} {speed:.1f} MB/s, expected {least:g} or more: a checkpoint would take minutes; set "
                "paths.log_dir=<folder on a faster disk>."
            )
    return f"{folder}: writes {written:.0f} MB/s, reads {read:.0f} MB/s"


def read_cold(path: Path) -> tuple[int, float]:
    """Bytes of a file and the seconds to read it from the disk."""
    size = 0
    with open(path, "rb", buffering=0) as file:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        begin = time.perf_counter()
        while block := file.read(BLOCK):
            size += len(block)
        return size, time.perf_counter() - begin


# ---- limits


def shared_memory(batch_bytes: int, workers: int, folder: Path = Path("/dev/shm")) -> str:
    """The batches on their way from decoding processes fit."""
    if not folder.is_dir():
        return f"{folder} does not exist here; batches take another way"
    free, needed = shutil.disk_usage(folder).free, batch_bytes * workers * PREFETCHED
    if free < needed:
        raise UserError(
            f"{folder} has {free / 1e6:.0f} MB free, {workers} decoding processes need {needed / 1e6:.0f}: in a container "
            "start with --ipc=host or --shm-size=8g, else set data.num_workers or data.batch_size lower."
        )
    return f"{folder}: {free / GB:.1f} GB free, {workers} decoding processes need {needed / GB:.2f}"


def open_files() -> str:
    """How many files a process may hold open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    if soft != unlimited and soft < LEAST_FILES:
        raise UserError(
            f"a process may open {soft} files, decoding processes share theirs and need {LEAST_FILES}: type "
            f"ulimit -n {4096 if hard == unlimited else max(min(hard, 4096), soft)} in this shell, and have the limit of "
            "the system raised if that is less."
        )
    return "no limit" if soft == unlimited else f"{soft} at a time"


def clock(repository: Path) -> str:
    """Now is not before the newest commit and file: runs are named after the time."""
    newest = max(
        (path.stat().st_mtime for part in ("src", "configs") for path in (repository / part).rglob("*.[py]*")), default=0.0
    )
    try:
        command = ["git", "-C", str(repository), "log", "-1", "--format=%ct"]
        newest = max(newest, float(subprocess.run(command, capture_output=True, text=True, timeout=10).stdout))
    except (OSError, ValueError, subprocess.SubprocessError):
        pass  # no git, or no repository
    now = time.time()
    if now + AHEAD < newest:
        raise UserError(
            f"the clock says {_moment(now)}, but the newest file or commit here is of {_moment(newest)}: set it "
            "(timedatectl set-ntp true), or runs are named after a wrong time."
        )
    return _moment(now)


def _moment(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds).astimezone():%Y-%m-%d %H:%M %Z}"


# ---- what changes how a run starts


def variables(environment: Mapping[str, str]) -> str:
    """None makes a run wait for other processes, or write into another run's directory."""
    for name in FROM_OUTSIDE:
        value = environment.get(name) or "1"
        if value != "1":
            raise UserError(
                f"{name}={value} says that others start the processes, and a run would wait for them: start it with "
                f"srun or torchrun and run.name=<name>, or type unset {name}."
            )
    if environment.get("LOCAL_RANK") not in (None, "", "0"):
        raise UserError(
            f"LOCAL_RANK={environment['LOCAL_RANK']} says that this is not the first process, which would write "
            "nothing: type unset LOCAL_RANK."
        )
    said = [f"{name}={environment[name]}" for name in (*STARTS, *CHANGES) if name in environment]
    return ", ".join(said) or "none that changes how a run starts"


def port(number: int) -> str:
    """Whether TensorBoard's port on this machine is free; both are well."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", number))
        except OSError as error:
            return f"{number} is in use ({error.strerror}); for a second one: make tensorboard ARGS='--port {number + 1}'"
    return f"{number} is free"


# ---- data


def data_root(root: str, given: bool, splits: Sequence[str], read: Callable[[str], Any], least: float) -> str:
    """What of a dataset is on disk, and how fast it is read.

    Args:
        root: of the dataset, a folder or an address.
        given: whether it was asked for; a default one may be absent.
        splits: names.
        read: split -> its `ClipList`; a wrong layout is a `UserError` of the reader.
        least: MB/s.
    """
    path = Path(root)
    if not is_remote(root) and not path.is_dir():
        if given or path.exists():
            state = "is a file" if path.exists() else "does not exist"
            raise UserError(
                f"data.root={root} {state}; expected a folder of the dataset: give its folder, or leave data.root out to "
                "run on generated demo data."
            )
        return f"{root} is absent: runs use the demo"
    counts, files = [], []
    for split in splits:
        clips = read(split)
        counts.append(f"{split} {len(clips.clips)} of {clips.listed} clips")
        files += [clip.path for clip in clips.clips]
    said = f"{root}: {', '.join(counts)}"
    return said if is_remote(root) or not files else f"{said}; {_read_rate(path, files, least)}"


def _read_rate(root: Path, files: list[str], least: float) -> str:
    chosen = sorted(set(files[:: max(1, len(files) // CLIPS)]))[:CLIPS]
    size, seconds = 0, 0.0
    for name in chosen:
        clip = Path(name)
        for file in [path for path in clip.rglob("*") if path.is_file()] if clip.is_dir() else [clip]:
            more, took = read_cold(file)
            size, seconds = size + more, seconds + took
    speed = size / 1e6 / max(seconds, 1e-9)
    if speed < least:
        raise UserError(
            f"{root} is read at {speed:.1f} MB/s, expected {least:g} or more: put the data on a local disk, or pack it "
            "(python src/prepare.py command=pack) and set data.root."
        )
    free = shutil.disk_usage(root).free
    return f"reads {speed:.0f} MB/s, {len(chosen) / max(seconds, 1e-9):.0f} files/s; {free / GB:.1f} GB free"
