"""The set `stamps`: real photographs and real recordings, put together to clips with known masks.

A cut-out photograph of an animal stands before an enlarged part of another photograph, out of focus and pale; parts of
its recording are played, and it jumps when one begins. Half of the clips also show a thing that does not sound.
kinds.py says what train and test clips are made of. One folder serves several readers:

annotations/vggsound.csv, clips/<kind>/*.mp4   VGGSound. Test clips show the animals of training, before other
                                               backgrounds, and play other parts of their recordings
annotations/other_animals.csv                  the same, but its test clips show other animals of each kind
annotations/four_kinds.csv                     the clips of vggsound.csv of four kinds
videos.csv                                     a folder of videos, with the splits train, test and other
metadata.csv, label2idx.json, v1s/<uid>/       AVSBench S4. Splits as in vggsound.csv; frames also show a silent animal
LICENCE.txt, sources.csv, clips.csv            what it is made from
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageEnhance, ImageFilter

from deepavfusion.demo.clips import write_clip
from deepavfusion.demo.kinds import BACKDROPS, FOUR, KINDS, THINGS, Part
from deepavfusion.demo.plans import SECONDS, SILENT_SHARE, Counts, Job, Texts, choose, csv_text, origin, rng_of
from deepavfusion.demo.scenes import Scene
from deepavfusion.demo.sounds import SAMPLE_RATE, Signal, colour, mix

# How hard it is to recognise a kind; change OWN_VERSIONS in demo.py with them.
SPEED = 2.0  # ± semitones by which a part is played faster or slower
LONGEST = 1.0  # s of a part that is played at once
PAUSE = (0.1, 0.6)  # s between parts
FADE = 0.008  # s
CROP = (0.25, 0.8)  # of the photograph's shorter side: what is enlarged to a background
BLUR = 8.0  # pixels, standard deviation: how far a background is out of focus
SATURATION, CONTRAST = 0.4, 0.6  # of a background, as shares of the photograph's
OPAQUE = 250

SPLITS = ("train", "test", "other")
CREDITS = ("LICENCE.txt", "sources.csv")


@dataclass(frozen=True)
class Stamps(Job):
    """A clip: the photographs it shows, the sounding one first, its background, and what is played."""

    pictures: tuple[str, ...] = ()
    background: str = ""
    parts: tuple[Part, ...] = ()


@dataclass(frozen=True)
class Credits(Job):
    """The files that name licence and sources."""

    @property
    def files(self) -> list[str]:
        return list(CREDITS)


def plan_stamps(seed: int, counts: Counts) -> tuple[list[Job], Texts]:
    """The clips and lists above."""
    jobs: list[Job] = [Credits(CREDITS[0], "stamps/credits", (), (), 0.0)]
    rows: dict[str, list[tuple[str, int, str, str]]] = {split: [] for split in SPLITS}
    table: list[tuple[str, ...]] = [("path", "label", "split", "picture", "recordings", "background", "also seen")]
    for split in SPLITS:
        for kind in KINDS:
            for n in range(getattr(counts, f"stamps_{split}")):
                key = f"stamps/{split}/{kind}/{n}"
                rng, clip, start = origin(seed, key)
                path = f"clips/{kind}/{clip}_{start:06d}_{start + 10:06d}.mp4"
                things = choose(rng, 1, THINGS[split == "train"]) if rng.random() < SILENT_SHARE else ()
                job = _job(path, key, kind, things, rng, split)
                jobs.append(job)
                table.append(_row(job, split))
                rows[split].append((clip, start, kind, "train" if split == "train" else "test"))
    lists = {"vggsound": [*rows["train"], *rows["test"]], "other_animals": [*rows["train"], *rows["other"]]}
    lists["four_kinds"] = [row for row in lists["vggsound"] if row[2] in FOUR]
    texts = {f"annotations/{name}.csv": csv_text(sorted(lines)) for name, lines in lists.items()}
    texts["videos.csv"] = csv_text([row[:3] for row in table])
    masked, more = _plan_masks(seed, counts)
    table += [_row(job, job.key.split("/")[2]) for job in masked]
    return [*jobs, *masked], {**texts, **more, "clips.csv": csv_text(table)}


def _plan_masks(seed: int, counts: Counts) -> tuple[list[Stamps], Texts]:
    jobs, rows = [], [("vid", "uid", "s_min", "s_sec", "a_obj", "split", "label")]
    for split in ("train", "val", "test"):
        for kind in KINDS:
            for n in range(getattr(counts, f"stamps_s4_{split}")):
                key = f"stamps/s4/{split}/{kind}/{n}"
                rng, video, start = origin(seed, key)
                uid = f"{video}_{start * 1000}_{start * 1000 + 5000}"
                (silent,) = choose(rng, 1, [name for name in KINDS if name != kind])
                (picture,) = choose(rng, 1, KINDS[silent].pictures)
                jobs.append(_job(f"v1s/{uid}", key, kind, (picture,), rng, split, 1 if split == "train" else 5))
                rows.append((video, uid, str(start // 60), str(start % 60), kind, split, "v1s"))
    index = {"background": 0, **{name: n + 1 for n, name in enumerate(KINDS)}}
    return jobs, {"metadata.csv": csv_text(rows), "label2idx.json": json.dumps(index, indent=1) + "\n"}


def _job(path: str, key: str, kind: str, seen: Sequence[str], rng: Generator, split: str, masks: int = 0) -> Stamps:
    """`seen`: further photographs; a val clip is made like a test clip."""
    (picture,) = choose(rng, 1, KINDS[kind].shown(split))
    (background,) = choose(rng, 1, BACKDROPS[split == "train"])
    parts = KINDS[kind].heard("test" if split == "val" else split)
    seconds = SECONDS["avsbench" if masks else "vggsound"]
    return Stamps(path, key, (kind,), (), seconds, masks, False, (picture, *seen), background, parts)


def _row(job: Stamps, split: str) -> tuple[str, ...]:
    recordings = ";".join(f"{path} {start}-{end}" for path, start, end in job.parts)
    return (job.path, *job.sounding, split, job.pictures[0], recordings, job.background, *(job.pictures[1:] or ("",)))


# ---- from the package's files to a clip


def render(job: Job, folder: Path, seed: int, stamps: Path) -> None:
    """Write the files of one job below `folder`, with the files of the package's folder `stamps`."""
    from deepavfusion.demo import package  # takes torch, which reading plans does without

    if isinstance(job, Credits):
        (folder / CREDITS[0]).write_text(package.licence(stamps), encoding="utf-8")
        with open(folder / CREDITS[1], "w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows(package.sources(stamps))
        return
    assert isinstance(job, Stamps)
    read = package.read_package(stamps)
    rng = rng_of(seed, job.key)
    sound, onsets = calls([read.sounds[part] for part in job.parts], rng, job.seconds)
    waveform = mix([sound], rng)

    def draw(name: str, _: Generator) -> Image.Image:
        return read.pictures[name]

    paint = partial(background, read.pictures[job.background])
    scene = Scene(rng, list(job.pictures), [onsets], draw=draw, paint=paint, even=True)
    write_clip(job, folder, scene, waveform, [list(KINDS).index(kind) + 1 for kind in job.sounding])


def calls(parts: Sequence[Signal], rng: Generator, seconds: float) -> tuple[Signal, list[float]]:
    """Parts of recordings after each other, each at its own speed; [T], unit root mean square, and their starts, s."""
    out = np.zeros(round(seconds * SAMPLE_RATE), np.float32)
    starts, time = [], float(rng.uniform(0.0, 0.3))
    while time < seconds - 0.15:
        part = parts[int(rng.integers(len(parts)))]
        length = min(len(part), round(rng.uniform(LONGEST / 2, LONGEST) * SAMPLE_RATE))
        begin = int(rng.integers(len(part) - length + 1))
        sound = _played(part[begin : begin + length], 2.0 ** (rng.uniform(-SPEED, SPEED) / 12))
        first = round(time * SAMPLE_RATE)
        sound = sound[: len(out) - first]
        out[first : first + len(sound)] += np.float32(rng.uniform(0.5, 1.0)) * sound
        starts.append(time)
        time += len(sound) / SAMPLE_RATE + rng.uniform(*PAUSE)
    out = colour(out, rng)
    return out / np.sqrt(np.mean(np.square(out))), starts


def _played(sound: Signal, speed: float) -> Signal:
    """A sound [T] at another speed, its ends faded."""
    length = max(2, round(len(sound) / speed))
    played = np.fft.irfft(np.fft.rfft(sound)[: length // 2 + 1], length) * (length / len(sound))
    ramp = np.minimum(np.arange(length), np.arange(length)[::-1]) / (FADE * SAMPLE_RATE)
    return (played * np.minimum(ramp, 1.0)).astype(np.float32)


def background(image: Image.Image, rng: Generator, width: int, height: int) -> Image.Image:
    """A part of a photograph without transparent pixels, as large as chance finds one: enlarged, blurred, pale; RGB."""
    opaque = np.asarray(image.getchannel("A")) >= OPAQUE
    filled = np.pad(opaque.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    largest = min(image.width / width, image.height / height)
    for share in np.linspace(rng.uniform(*CROP), 0.02, 60):
        w, h = (max(1, round(side * largest * share)) for side in (width, height))
        x, y = int(rng.integers(image.width - w + 1)), int(rng.integers(image.height - h + 1))
        inside = filled[y + h, x + w] - filled[y, x + w] - filled[y + h, x] + filled[y, x]
        if inside == w * h:
            break
    part = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC, (x, y, x + w, y + h))
    part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else part
    part = ImageEnhance.Color(part.filter(ImageFilter.GaussianBlur(BLUR))).enhance(SATURATION)
    return Image.blend(Image.new("RGB", part.size, (128, 128, 128)), part, CONTRAST)
