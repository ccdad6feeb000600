"""The generated demo data: small sets in the official layouts of VGGSound, VGGSound-Music, MUSIC, AVSBench, AudioSet.

Drawn instruments (demo_drawings.py, demo_pictures.py) play random tunes (demo_sounds.py), so any experiment runs
offline. Who sounds moves at its note starts. In about half of the clips of VGGSound a silent instrument of another
class is in the picture too, so neither picture nor sound tells everything. AudioSet is like it, but one, two or three
instruments sound together, and the labels name them all. The other sets have four of the eight instruments on a grey
stage, each in its own register and colours: a tiny network has a thousand steps to learn to see, to hear and to connect
the two. MUSIC and VGGSound-Music show who plays and no one else; every picture of AVSBench S4 and some of MS3 show a
silent instrument, too. The files follow from the seed alone.
"""

from __future__ import annotations

import csv
import fcntl
import io
import json
import multiprocessing
import os
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.random import Generator
from PIL import Image
from rich.console import Console
from rich.progress import track

from deepavfusion.data.demo_pictures import SIZE, Scene
from deepavfusion.data.demo_sounds import OWN_REGISTER, REGISTER, SAMPLE_RATE, melody, mix, perform
from deepavfusion.data.encode import write_mp4, write_wav
from deepavfusion.utils.errors import UserError
from deepavfusion.utils.processes import die_with_parent

VERSION = 3  # raise it whenever the same seed gives other files
SILENT_SHARE = 0.5  # of the clips of VGGSound, and of AudioSet's with room for it, also show a silent instrument
SOUNDING = (2, 1, 3, 1, 2, 1, 2, 1)  # how many sound together in AudioSet, by turns of eight clips
FPS = 10.0
SECONDS = {"vggsound": 4.0, "vggsound_music": 3.2, "solo": 3.2, "duet": 6.0, "avsbench": 5.0, "audioset": 4.0}
ID_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"

# our name -> VGGSound's label, MUSIC's instrument
CLASSES = {
    "accordion": ("playing accordion", "accordion"),
    "banjo": ("playing banjo", "banjo"),
    "drum": ("playing drum kit", "drum"),
    "flute": ("playing flute", "flute"),
    "guitar": ("playing acoustic guitar", "acoustic_guitar"),
    "piano": ("playing piano", "piano"),
    "trumpet": ("playing trumpet", "trumpet"),
    "violin": ("playing violin, fiddle", "violin"),
}
NAMES = list(CLASSES)
STAGE = list(OWN_REGISTER)  # the instruments of all sets but VGGSound and AudioSet

# our name -> AudioSet's mid, display name
AUDIOSET = {
    "accordion": ("/m/0mkg", "Accordion"),
    "banjo": ("/m/018j2", "Banjo"),
    "drum": ("/m/02hnl", "Drum kit"),
    "flute": ("/m/0l14j_", "Flute"),
    "guitar": ("/m/042v_gx", "Acoustic guitar"),
    "piano": ("/m/05r5c", "Piano"),
    "trumpet": ("/m/07gql", "Trumpet"),
    "violin": ("/m/07y_7", "Violin, fiddle"),
}


@dataclass(frozen=True)
class Counts:
    """How many clips: of each class for VGGSound, VGGSound-Music and the solos, altogether for the rest."""

    vggsound_train: int = 48
    vggsound_test: int = 32
    vggsound_music_train: int = 56
    vggsound_music_test: int = 12
    solos: int = 64
    duets: int = 24
    s4_train: int = 400
    s4_val: int = 32
    s4_test: int = 64
    ms3_train: int = 128
    ms3_val: int = 16
    ms3_test: int = 32
    audioset_balanced: int = 384
    audioset_unbalanced: int = 192
    audioset_eval: int = 160


FULL = Counts()

# set -> the counts that concern it
COUNTS = {
    "vggsound": ("vggsound_train", "vggsound_test"),
    "vggsound_music": ("vggsound_music_train", "vggsound_music_test"),
    "music": ("solos", "duets"),
    "avsbench": ("s4_train", "s4_val", "s4_test", "ms3_train", "ms3_val", "ms3_test"),
    "audioset": ("audioset_balanced", "audioset_unbalanced", "audioset_eval"),
}
SETS = tuple(COUNTS)


@dataclass(frozen=True)
class Job:
    """One clip to render.

    Args:
        kind: "mp4" writes `path`; "avs" writes a folder of five pictures, masks and a WAV file.
        path: relative to the set's folder.
        key: with the seed, decides everything about the clip.
        sounding, silent: names of the instruments.
        seconds: length.
        masks: how many of the five pictures get a mask.
        stage: instruments play in their own register, in their usual colours and before something grey.
    """

    kind: str
    path: str
    key: str
    sounding: tuple[str, ...]
    silent: tuple[str, ...]
    seconds: float
    masks: int = 0
    stage: bool = False


Texts = dict[str, str]  # file name -> content: the lists and annotations of a set
Plan = Callable[[int, Counts], tuple[list[Job], Texts]]


# ---- for the callers


def ensure(
    root: str | Path,
    sets: Sequence[str] = SETS,
    seed: int = 0,
    workers: int | None = None,
    force: bool = False,
    counts: Counts = FULL,
) -> list[Path]:
    """Generate the sets that are missing, incomplete or of another version or seed; returns their folders.

    Only one process works at a time; others wait and then find the work done.

    Raises:
        UserError: an unknown set, or a folder of that name that this function has not written.
    """
    console = Console(stderr=True)
    with _lock(_checked(root, sets)):
        stale = [name for name in sets if force or not is_complete(root, name, seed, counts)]
        if stale:
            console.print(f"Generating demo data in {root}: {', '.join(stale)}", soft_wrap=True, highlight=False)
            _generate(Path(root), stale, seed, workers, counts)
    return [Path(root) / name for name in sets]


def generate(
    root: str | Path,
    sets: Sequence[str] = SETS,
    seed: int = 0,
    workers: int | None = None,
    counts: Counts = FULL,
) -> list[Path]:
    """Like `ensure`, but writes every set anew."""
    return ensure(root, sets, seed, workers, True, counts)


def is_complete(root: str | Path, name: str, seed: int = 0, counts: Counts = FULL) -> bool:
    """Whether a set is there, of this version, seed and size, with no file lost."""
    manifest = Path(root) / name / "manifest.json"
    if not manifest.is_file():
        return False
    found, expected = json.loads(manifest.read_text()), _manifest(name, seed, counts)
    known = found.get("counts", {})
    found["counts"] = {key: known.get(key) for key in COUNTS[name]}  # older manifests hold those of every set
    return found == {**expected, "files": _count_files(manifest.parent)}


# ---- how a set comes to be


def _checked(root: str | Path, sets: Iterable[str]) -> Path:
    for name in sets:
        if name not in PLANS:
            raise UserError(f"There is no demo set {name!r}; sets may name {', '.join(PLANS)}.")
        folder = Path(root) / name
        if folder.exists() and not (folder / "manifest.json").is_file():
            raise UserError(
                f"{folder} exists but holds no generated demo data (no manifest.json) and is left as it is; "
                "move it away or choose another root."
            )
    return Path(root)


def _manifest(name: str, seed: int, counts: Counts) -> dict[str, object]:
    return {"version": VERSION, "seed": seed, "counts": {key: getattr(counts, key) for key in COUNTS[name]}}


def _count_files(folder: Path) -> int:
    """What the set is made of; a report of `command=verify` may lie beside it."""
    return sum(not name.startswith("verify") for _, _, names in os.walk(folder) for name in names)


@contextmanager
def _lock(root: Path) -> Iterator[None]:
    """Held by one process at a time; the kernel releases it when that process ends, however it ends."""
    root.mkdir(parents=True, exist_ok=True)
    with open(root / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _generate(root: Path, sets: Sequence[str], seed: int, workers: int | None, counts: Counts) -> None:
    workers = workers or os.cpu_count() or 1
    with _mapper(workers) as run:
        for name in sets:
            unfinished, old = root / f".{name}.partial", root / f".{name}.old"
            for leftover in (unfinished, old):
                shutil.rmtree(leftover, ignore_errors=True)
            jobs, texts = PLANS[name](seed, counts)
            for path in {(unfinished / job.path).parent for job in jobs} | {
                (unfinished / file).parent for file in texts
            }:
                path.mkdir(parents=True, exist_ok=True)
            for file, content in texts.items():
                (unfinished / file).write_text(content)
            done = run(jobs, unfinished, seed)
            for _ in track(done, description=f"{name:9}", total=len(jobs), console=Console(stderr=True)):
                pass
            manifest = {**_manifest(name, seed, counts), "files": _count_files(unfinished) + 1}
            (unfinished / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
            if (root / name).exists():
                os.rename(root / name, old)
            os.rename(unfinished, root / name)
            shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _mapper(workers: int) -> Iterator[Callable[[list[Job], Path, int], Iterable[object]]]:
    """A map over jobs; with several workers in processes that share nothing with this one, nor its lock."""
    if workers == 1:
        yield lambda jobs, folder, seed: map(partial(render, folder=folder, seed=seed), jobs)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=die_with_parent) as pool:
        yield lambda jobs, folder, seed: pool.map(partial(render, folder=folder, seed=seed), jobs, chunksize=4)


def render(job: Job, folder: Path, seed: int) -> None:
    """Write the files of one clip below `folder`."""
    rng = _rng(seed, job.key)
    registers = [OWN_REGISTER[name] if job.stage else REGISTER for name in job.sounding]
    tunes = [melody(rng, job.seconds, register) for register in registers]
    parts = [perform(name, tune, rng, job.seconds) for name, tune in zip(job.sounding, tunes, strict=True)]
    waveform = mix(parts, rng)
    onsets = [[note.start for note in tune] for tune in tunes]
    scene = Scene(rng, [*job.sounding, *job.silent], onsets, job.stage)
    target = folder / job.path
    if job.kind == "mp4":
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


def _rng(seed: int, key: str) -> Generator:
    return np.random.default_rng([seed, zlib.crc32(key.encode())])


# ---- the layouts


def _plan_vggsound(seed: int, counts: Counts) -> tuple[list[Job], Texts]:
    """annotations/vggsound.csv; clips/<label>/<id>_<start>_<end>.mp4."""
    jobs, rows = [], []
    for split, count in (("train", counts.vggsound_train), ("test", counts.vggsound_test)):
        for name, (label, _) in CLASSES.items():
            for n in range(count):
                key = f"vggsound/{split}/{name}/{n}"
                rng = _rng(seed, f"{key}/plan")
                clip, start = _youtube_id(rng, dash=n % 16 == 0), int(rng.integers(290))
                folder = label.translate(str.maketrans(" (),", "____"))
                path = f"clips/{folder}/{clip}_{start:06d}_{start + 10:06d}.mp4"
                jobs.append(Job("mp4", path, key, (name,), _silent(rng, [name]), SECONDS["vggsound"]))
                rows.append((clip, start, label, split))
    return jobs, {"annotations/vggsound.csv": _csv(sorted(rows))}


def _plan_vggsound_music(seed: int, counts: Counts) -> tuple[list[Job], Texts]:
    """annotations/vggmusic_{train.txt,eval_ss.csv}; clips/playing_<instrument>/<id>_<start>_<end>.mp4.

    Every test clip is the first of one pair; one pair in eight is of one class.
    """
    jobs: list[Job] = []
    train: list[tuple[str, str]] = []
    test: list[tuple[str, str]] = []
    for split, count in (("train", counts.vggsound_music_train), ("test", counts.vggsound_music_test)):
        for name in STAGE:
            label, _ = CLASSES[name]
            folder = label.translate(str.maketrans(" (),", "____"))
            for n in range(count):
                key = f"vggsound_music/{split}/{name}/{n}"
                rng = _rng(seed, f"{key}/plan")
                clip, start = _youtube_id(rng), int(rng.integers(290))
                path = f"clips/{folder}/{clip}_{start:06d}_{start + 10:06d}.mp4"
                jobs.append(Job("mp4", path, key, (name,), (), SECONDS["vggsound_music"], stage=True))
                names = label.removeprefix("playing ").translate(str.maketrans(" ", "_"))
                (train if split == "train" else test).append((f"{clip}_{start:06d}", names))
    lines = [
        f"{clip},{name.split(',')[0]}\n" for clip, name in sorted(train)
    ]  # violin, but violin,_fiddle in the pairs
    order = _rng(seed, "vggsound_music/pairs").permutation(len(test))
    rows = [("source_1", "source_2", "class_1", "class_2", "sep_type")]
    for n in order:
        (first, one), (second, two) = test[n], test[(n + (1 if n % 8 == 0 else counts.vggsound_music_test)) % len(test)]
        rows.append((first, second, one, two, "Hard" if one == two else "Easy"))
    return jobs, {"annotations/vggmusic_train.txt": "".join(lines), "annotations/vggmusic_eval_ss.csv": _csv(rows)}


def _plan_music(seed: int, counts: Counts) -> tuple[list[Job], Texts]:
    """Three JSON lists; clips/<instrument>/<id>.mp4, where a duet's instrument is "a b"."""
    jobs: list[Job] = []
    solos: dict[str, list[str]] = {}
    duets: dict[str, list[str]] = {}

    def add(videos: dict[str, list[str]], names: tuple[str, ...], key: str, seconds: float) -> None:
        rng = _rng(seed, f"{key}/plan")
        clip, folder = _youtube_id(rng), " ".join(CLASSES[name][1] for name in names)
        jobs.append(Job("mp4", f"clips/{folder}/{clip}.mp4", key, names, (), seconds, stage=True))
        videos.setdefault(folder, []).append(clip)

    for name in STAGE:
        for n in range(counts.solos):
            add(solos, (name,), f"music/solo/{name}/{n}", SECONDS["solo"])
    for n in range(counts.duets):
        first, second = sorted(_choose(_rng(seed, f"music/duet/{n}/pair"), 2, STAGE))
        add(duets, (first, second), f"music/duet/{n}", SECONDS["duet"])
    lists = {"MUSIC_solo_videos": solos, "MUSIC_duet_videos": duets, "MUSIC21_solo_videos": solos}
    return jobs, {f"{name}.json": json.dumps({"videos": videos}) + "\n" for name, videos in lists.items()}


def _plan_avsbench(seed: int, counts: Counts) -> tuple[list[Job], Texts]:
    """metadata.csv, label2idx.json; <v1s: S4, v1m: MS3>/<uid>/{audio.wav, frames, labels_semantic}."""
    jobs, rows = [], [("vid", "uid", "s_min", "s_sec", "a_obj", "split", "label")]
    sizes = {
        "v1s": {"train": counts.s4_train, "val": counts.s4_val, "test": counts.s4_test},
        "v1m": {"train": counts.ms3_train, "val": counts.ms3_val, "test": counts.ms3_test},
    }
    for label, splits in sizes.items():
        for split, count in splits.items():
            for n in range(count):
                key = f"avsbench/{label}/{split}/{n}"
                rng = _rng(seed, f"{key}/plan")
                video, start = _youtube_id(rng), int(rng.integers(290))
                uid = f"{video}_{start * 1000}_{start * 1000 + 5000}"
                if label == "v1s":
                    sounding: tuple[str, ...] = (STAGE[n % len(STAGE)],)
                    silent = _choose(rng, 1, [name for name in STAGE if name not in sounding])
                else:
                    drawn = _choose(rng, int(rng.integers(2, 4)), STAGE)
                    heard = int(rng.integers(1, 3))
                    sounding, silent = drawn[:heard], drawn[heard:]
                masks = 1 if (label, split) == ("v1s", "train") else 5
                path = f"{label}/{uid}"
                jobs.append(Job("avs", path, key, sounding, silent, SECONDS["avsbench"], masks, stage=True))
                minute, second = str(start // 60), str(start % 60)
                rows.append((video, uid, minute, second, "_".join(sounding), split, label))
    index = {"background": 0, **{name: n + 1 for n, name in enumerate(STAGE)}}
    return jobs, {"metadata.csv": _csv(rows), "label2idx.json": json.dumps(index, indent=1) + "\n"}


def _plan_audioset(seed: int, counts: Counts) -> tuple[list[Job], Texts]:
    """class_labels_indices.csv, three lists *_segments.csv; clips/<id[:2]>/<id>_<start>_<end>.mp4."""
    jobs: list[Job] = []
    classes = [f'{n},{mid},"{name}"\n' for n, (mid, name) in enumerate(AUDIOSET.values())]
    texts = {"annotations/class_labels_indices.csv": "".join(["index,mid,display_name\n", *classes])}
    sizes = {
        "balanced_train": counts.audioset_balanced,
        "unbalanced_train": counts.audioset_unbalanced,
        "eval": counts.audioset_eval,
    }
    for split, count in sizes.items():
        lines, labels = [], []
        for n in range(count):
            key = f"audioset/{split}/{n}"
            rng = _rng(seed, f"{key}/plan")
            video, start = _youtube_id(rng, dash=n % 15 == 0), int(rng.integers(290))
            sounding = _sounding(seed, split, n)
            silent = _silent(rng, sounding) if len(sounding) < max(SIZE) else ()
            path = f"clips/{video[:2]}/{video}_{start:06d}_{start + 10:06d}.mp4"
            jobs.append(Job("mp4", path, key, sounding, silent, SECONDS["audioset"]))
            mids = sorted(AUDIOSET[name][0] for name in sounding)
            lines.append(f'{video}, {start:.3f}, {start + 10:.3f}, "{",".join(mids)}"\n')
            labels += mids
        texts[f"annotations/{split}_segments.csv"] = "".join(
            [
                f"# Segments csv of generated clips, seed {seed}\n",
                f"# num_ytids={count}, num_segs={count}, num_unique_labels={len(set(labels))}, "
                f"num_positive_labels={len(labels)}\n",
                "# YTID, start_seconds, end_seconds, positive_labels\n",
                *sorted(lines),
            ]
        )
    return jobs, texts


def _sounding(seed: int, split: str, n: int) -> tuple[str, ...]:
    """Who sounds in the n-th clip of AudioSet: in each turn of eight clips every instrument equally often."""
    turn, first = divmod(n, len(NAMES))
    steps = _rng(seed, f"audioset/{split}/turn/{turn}").permutation(np.arange(1, len(NAMES)))
    others = steps[: SOUNDING[turn % len(SOUNDING)] - 1]
    return tuple(NAMES[(first + step) % len(NAMES)] for step in (0, *others))


PLANS: dict[str, Plan] = {
    "vggsound": _plan_vggsound,
    "vggsound_music": _plan_vggsound_music,
    "music": _plan_music,
    "avsbench": _plan_avsbench,
    "audioset": _plan_audioset,
}


def _choose(rng: Generator, count: int, names: Sequence[str]) -> tuple[str, ...]:
    return tuple(names[n] for n in rng.choice(len(names), count, replace=False))


def _silent(rng: Generator, sounding: Sequence[str]) -> tuple[str, ...]:
    """In `SILENT_SHARE` of the calls one instrument that does not sound."""
    if rng.random() >= SILENT_SHARE:
        return ()
    return (str(rng.choice([name for name in NAMES if name not in sounding])),)


def _youtube_id(rng: Generator, dash: bool = False) -> str:
    """Eleven characters; `dash` puts a "-" first, which takes care of naive command lines and parsers."""
    letters = [ID_LETTERS[n] for n in rng.integers(len(ID_LETTERS), size=11)]
    return "".join(["-", *letters[1:]] if dash else letters)


def _csv(rows: Sequence[Sequence[object]]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue()
