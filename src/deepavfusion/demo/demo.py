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
import shutil
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console

from deepavfusion.demo.plans import COUNTS, FULL, PLANS, SETS, STAGE, Counts, Job, rng_of
from deepavfusion.demo.scenes import Scene
from deepavfusion.demo.sounds import OWN_REGISTER, REGISTER, SAMPLE_RATE, melody, mix, perform
from deepavfusion.media.encode import write_mp4, write_wav
from deepavfusion.utils.console import track
from deepavfusion.utils.errors import UserError
from deepavfusion.utils.names import printable
from deepavfusion.utils.processes import die_with_parent

VERSION = 3  # increase it whenever the same seed gives other files
FPS = 10.0


# ---- for the callers


def ensure(
    root: str | Path,
    sets: Sequence[str] = SETS,
    seed: int = 0,
    workers: int | None = None,
    counts: Counts = FULL,
    force: bool = False,
) -> list[Path]:
    """Generate the sets that are missing, incomplete or of another version or seed, or all; returns their folders.

    Only one process works at a time; others wait and then find the work done.

    Raises:
        UserError: an unknown set, or a folder of that name that this function has not written.
    """
    root = Path(root)
    for name in sets:
        if name not in PLANS:
            raise UserError(f"There is no demo set {name!r}; sets may name {', '.join(PLANS)}.")
        folder = root / name
        if folder.exists() and not (folder / "manifest.json").is_file():
            raise UserError(
                f"{folder} exists but holds no generated demo data (no manifest.json); nothing was written: "
                "move it away or choose another root."
            )
    root.mkdir(parents=True, exist_ok=True)
    with open(root / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # the kernel releases it when this process ends, however it ends
        stale = [name for name in sets if force or not is_complete(root, name, seed, counts)]
        if stale:
            text = f"Generating demo data in {root}: {', '.join(stale)}"
            Console(stderr=True).print(printable(text), soft_wrap=True, highlight=False, markup=False)
            _generate(root, stale, seed, workers or os.cpu_count() or 1, counts)
    return [root / name for name in sets]


def is_complete(root: str | Path, name: str, seed: int = 0, counts: Counts = FULL) -> bool:
    """Whether a set is there, of this version, seed and size, with no file lost."""
    manifest = Path(root) / name / "manifest.json"
    if not manifest.is_file():
        return False
    found = {"counts": {}, **json.loads(manifest.read_text())}
    found["counts"] = {key: found["counts"].get(key) for key in COUNTS[name]}  # older manifests hold those of all sets
    return found == {**_manifest(name, seed, counts), "files": _count_files(manifest.parent)}


# ---- how a set is generated


def _manifest(name: str, seed: int, counts: Counts) -> dict[str, object]:
    return {"version": VERSION, "seed": seed, "counts": {key: getattr(counts, key) for key in COUNTS[name]}}


def _count_files(folder: Path) -> int:
    """What the set is made of; a report of `command=verify` may lie beside it."""
    return sum(not name.startswith("verify") for _, _, names in os.walk(folder) for name in names)


def _generate(root: Path, sets: Sequence[str], seed: int, workers: int, counts: Counts) -> None:
    # Spawned processes share nothing with this one, nor its lock.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=die_with_parent) if workers > 1 else nullcontext() as pool:
        for name in sets:
            unfinished, old = root / f".{name}.partial", root / f".{name}.old"
            for leftover in (unfinished, old):
                shutil.rmtree(leftover, ignore_errors=True)
            jobs, texts = PLANS[name](seed, counts)
            for path in (*(job.path for job in jobs), *texts):
                (unfinished / path).parent.mkdir(parents=True, exist_ok=True)
            for file, content in texts.items():
                (unfinished / file).write_text(content)
            write = partial(render, folder=unfinished, seed=seed)
            done = pool.map(write, jobs, chunksize=4) if pool else map(write, jobs)
            for _ in track(done, f"making {name}", len(jobs)):
                pass
            manifest = {**_manifest(name, seed, counts), "files": _count_files(unfinished) + 1}
            (unfinished / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
            if (root / name).exists():
                os.rename(root / name, old)
            os.rename(unfinished, root / name)
            shutil.rmtree(old, ignore_errors=True)


def render(job: Job, folder: Path, seed: int) -> None:
    """Write the files of one clip below `folder`."""
    rng = rng_of(seed, job.key)
    registers = [OWN_REGISTER[name] if job.stage else REGISTER for name in job.sounding]
    tunes = [melody(rng, job.seconds, register) for register in registers]
    parts = [perform(name, tune, rng, job.seconds) for name, tune in zip(job.sounding, tunes, strict=True)]
    waveform = mix(parts, rng)
    onsets = [[note.start for note in tune] for tune in tunes]
    scene = Scene(rng, [*job.sounding, *job.silent], onsets, job.stage)
    target = folder / job.path
    if not job.masks:
        frames = (scene.frame(n / FPS) for n in range(round(job.seconds * FPS)))
        write_mp4(target, frames, FPS, waveform, SAMPLE_RATE)
        return
    for part in ("frames", "labels_semantic"):
        (target / part).mkdir(parents=True)
    write_wav(target / "audio.wav", waveform, SAMPLE_RATE)
    for n in range(round(job.seconds)):
        Image.fromarray(scene.frame(n + 0.5)).save(target / "frames" / f"{n}.jpg", quality=90)
        if n < job.masks:
            labels = np.zeros((scene.height, scene.width), np.uint8)
            for name, mask in zip(job.sounding, scene.masks(n + 0.5), strict=True):
                labels[mask] = STAGE.index(name) + 1
            Image.fromarray(labels).save(target / "labels_semantic" / f"{n}.png")
