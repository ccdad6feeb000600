"""The generated demo data: small sets in the official layouts of VGGSound, VGGSound-Music, MUSIC, AVSBench, AudioSet.

Drawn instruments (drawings.py, scenes.py) play random tunes (sounds.py), so that every experiment runs offline. A
sounding instrument moves when a note starts. Half of the VGGSound clips also show a silent instrument of another class,
so neither video nor audio alone suffices. In AudioSet one to three instruments sound together, and the labels name them
all. The other sets use four of the eight instruments on a grey stage, each in its own register and colours, because a
tiny network has only a thousand steps to learn. All frames of AVSBench S4 and some of MS3 also show a silent one. The
files depend on the seed alone.
"""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from deepavfusion.demo import pairs, plans, stamps
from deepavfusion.demo.clips import write_clip
from deepavfusion.demo.plans import COUNTS, FULL, SETS, STAGE, Counts, Job, rng_of
from deepavfusion.demo.scenes import Scene
from deepavfusion.demo.sounds import OWN_REGISTER, REGISTER, melody, mix, perform
from deepavfusion.utils.console import track
from deepavfusion.utils.errors import UserError
from deepavfusion.utils.files import regular_file, write_whole
from deepavfusion.utils.launch.workers import die_with_parent, worker_context
from deepavfusion.utils.names import printable
from deepavfusion.utils.reading import RECORD, read_json

VERSION = 3  # increase it whenever the same seed gives other files
OWN_VERSIONS = {"stamps": 1}  # added to it: of sets that changed while the others did not
PLANS = {**plans.PLANS, "pairs": pairs.plan_pairs, "stamps": stamps.plan_stamps}
MANIFEST, UNFINISHED, OLD = "manifest.json", ".{}.partial", ".{}.old"
MOST_FILES = 10**6  # of a manifest
REPORTS = ("verify.csv", "verify_classes.csv", "verify.csv.partial.jsonl", ".deepavfusion_durations.csv")


# ---- for the callers


def ensure(
    root: str | Path,
    sets: Sequence[str] = SETS,
    seed: int = 0,
    workers: int | None = None,
    counts: Counts = FULL,
    force: bool = False,
    package: str | None = None,
) -> list[Path]:
    """Generate the sets that are missing, incomplete or of another version or seed, or all; returns their folders.

    Only one process works at a time; others wait and then find the work done.

    Args:
        package: for the set stamps, where its Debian package was unpacked; None: where it is installed.

    Raises:
        UserError: an unknown set, a folder of that name that this function has not written, or, if stamps has to be
            generated, no package or one with a file that cannot be used.
    """
    root = Path(root)
    for name in sets:
        if name not in PLANS:
            raise UserError(f"There is no demo set {name!r}; sets may name {', '.join(PLANS)}.")
    root.mkdir(parents=True, exist_ok=True)
    with suppress(FileNotFoundError):
        regular_file(root / ".lock")  # a named pipe would be waited for
    with open(root / ".lock", "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # the kernel releases it when this process ends, however it ends
        stale = [name for name in sets if force or not is_complete(root, name, seed, counts)]
        for name in stale:
            for folder in ("{}", UNFINISHED, OLD):
                _check_ours(root / folder.format(name), name)
        if stale:
            renders: dict[str, Callable[..., None]] = dict.fromkeys(stale, render)
            if "pairs" in stale:
                renders["pairs"] = pairs.render
            if "stamps" in stale:
                renders["stamps"] = partial(stamps.render, stamps=_checked_package(package))
            text = f"Generating demo data in {root}: {', '.join(stale)}"
            Console(stderr=True).print(printable(text), soft_wrap=True, highlight=False, markup=False)
            _generate(root, renders, seed, workers or os.cpu_count() or 1, counts)
    return [root / name for name in sets]


def is_complete(root: str | Path, name: str, seed: int = 0, counts: Counts = FULL) -> bool:
    """Whether a set is there, of this version, seed and size, with no file lost."""
    folder = Path(root) / name
    found, expected = _read_manifest(folder, name), _manifest(name, seed, counts)
    if found is None:
        return False
    kept = {key: found["counts"].get(key) for key in COUNTS[name]}  # older manifests hold those of all sets
    return {**found, "counts": kept} == expected and set(expected["files"]) <= set(_files_in(folder))


# ---- how a set is generated


def _version(name: str) -> int:
    return VERSION + OWN_VERSIONS.get(name, 0)


def _manifest(name: str, seed: int, counts: Counts) -> dict[str, Any]:
    """What manifest.json says: it names every file, so that nothing else is ever removed."""
    jobs, texts = PLANS[name](seed, counts)
    files = [*(file for job in jobs for file in job.files), *texts, MANIFEST]
    numbers = {key: getattr(counts, key) for key in COUNTS[name]}
    return {"version": _version(name), "seed": seed, "counts": numbers, "files": sorted(files)}


def _read_manifest(folder: Path, name: str) -> dict[str, Any] | None:
    """The manifest of a folder that `_generate` wrote; None if there is none, or another."""
    try:
        found = read_json(folder / MANIFEST, RECORD, "the manifest of generated demo data")
        files, numbers = found["files"], found["counts"]
        count = files if type(files) is int else len(files)  # earlier manifests count them
        whole = all(type(n) is int and n >= 0 for n in (count, found["version"], found["seed"], *numbers.values()))
        if set(found) != {"version", "seed", "counts", "files"} or not whole or sum(numbers.values()) > count:
            return None
        if type(files) is int or found["version"] == _version(name):
            counts = Counts(**{key: numbers[key] for key in numbers if key in vars(FULL) and count < MOST_FILES})
            planned = _manifest(name, found["seed"], counts)["files"] if found["version"] == _version(name) else []
            if files not in (planned, len(planned)):
                return None
            found["files"] = planned
        return found if MANIFEST in found["files"] else None
    except (UserError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _files_in(folder: Path) -> Iterator[str]:
    """Files, and links, below a folder; what `command=verify` and data=folder write may lie beside the set's own."""
    for place, folders, names in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(place, name))]
        for path in (os.path.join(place, name) for name in (*names, *links)):
            if (below := os.path.relpath(path, folder)) not in REPORTS:
                yield below


def _check_ours(folder: Path, name: str) -> None:
    """Raise a `UserError` if a folder that would be replaced holds a file that this module has not written."""
    if not folder.is_symlink() and set(_files_in(folder)) <= {f"{MANIFEST}.partial"}:  # not there, or just begun
        return
    manifest = _read_manifest(folder, name)
    if manifest is None or folder.is_symlink():
        raise UserError(
            f"{folder} exists but holds no generated demo data (no {MANIFEST} that names its files); nothing was "
            "written: move it away or choose another root."
        )
    if strangers := sorted(set(_files_in(folder)) - set(manifest["files"])):
        raise UserError(
            f"{folder} holds {strangers[0]}, which is no part of the generated demo data; nothing was written: move it "
            "away or choose another root."
        )


def _remove(folder: Path, name: str) -> None:
    """Remove what the manifest of a folder names; itself last, in case this is killed."""
    manifest = _read_manifest(folder, name)
    if manifest:
        named = set(manifest["files"])
        for file in sorted(named.intersection(_files_in(folder)), key=lambda file: file == MANIFEST):
            (folder / file).unlink()
    for place, _, _ in os.walk(folder, topdown=False):
        with suppress(OSError):  # someone has put something there meanwhile
            os.rmdir(place)


def _generate(root: Path, renders: Mapping[str, Callable[..., None]], seed: int, workers: int, counts: Counts) -> None:
    # Spawned processes share nothing with this one, nor its lock.
    context = worker_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=die_with_parent) if workers > 1 else nullcontext() as pool:
        try:
            for name, write in renders.items():
                _generate_set(root, name, seed, counts, pool, write)
        except BaseException:
            for worker in multiprocessing.active_children():  # or the pool finishes what it has been given
                worker.kill()
            raise


def _checked_package(package: str | None) -> Path:
    """The folder of the stamps, all of which can be read: said before anything is written."""
    from deepavfusion.demo.package import (
        licence,
        read_package,
        stamps_of,
    )  # takes torch, which the other sets do without

    folder = stamps_of(package)
    licence(folder)
    read_package(folder)
    return folder


def _generate_set(
    root: Path,
    name: str,
    seed: int,
    counts: Counts,
    pool: ProcessPoolExecutor | None,
    write: Callable[..., None],
) -> None:
    unfinished, old = root / UNFINISHED.format(name), root / OLD.format(name)
    for leftover in (unfinished, old):
        _remove(leftover, name)
    jobs, texts = PLANS[name](seed, counts)
    unfinished.mkdir(exist_ok=True)
    write_whole(unfinished / MANIFEST, json.dumps(_manifest(name, seed, counts), indent=1) + "\n")
    for path in (*(job.path for job in jobs), *texts):
        (unfinished / path).parent.mkdir(parents=True, exist_ok=True)
    for file, content in texts.items():
        (unfinished / file).write_text(content)
    into = partial(write, folder=unfinished, seed=seed)
    # Not pool.map, which cancels what is left: a pool whose workers are killed then shows an error of its own.
    futures = [pool.submit(into, job) for job in jobs] if pool else None
    done = (future.result() for future in futures) if futures else map(into, jobs)
    for _ in track(done, f"making {name}", len(jobs)):
        pass
    if (root / name).exists():
        for report in REPORTS:  # of the files that were there; verify sees that they changed
            with suppress(FileNotFoundError):
                os.rename(root / name / report, unfinished / report)
        os.rename(root / name, old)
    os.rename(unfinished, root / name)
    _remove(old, name)


def render(job: Job, folder: Path, seed: int) -> None:
    """Write the files of one clip below `folder`."""
    rng = rng_of(seed, job.key)
    registers = [OWN_REGISTER[name] if job.stage else REGISTER for name in job.sounding]
    tunes = [melody(rng, job.seconds, register) for register in registers]
    parts = [perform(name, tune, rng, job.seconds) for name, tune in zip(job.sounding, tunes, strict=True)]
    waveform = mix(parts, rng)
    onsets = [[note.start for note in tune] for tune in tunes]
    scene = Scene(rng, [*job.sounding, *job.silent], onsets, job.stage)
    values = [STAGE.index(name) + 1 for name in job.sounding] if job.masks else []
    write_clip(job, folder, scene, waveform, values)
