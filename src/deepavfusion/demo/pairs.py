"""The set `pairs`: only the pairing of a detail of the picture with a detail of the sound decides.

A clip shows two guitars, one above the other, that differ only in the colour of their bodies: one is red, one is blue.
One of them is heard, the red one in a low register, the blue one in a high one. The label says which: upper, lower.
Nothing moves.

Clips come in fours, from two pictures, one with each colour above, and two tunes, one in each register: each picture
with each tune. So whatever looks at pictures alone or listens alone is right about half of the test clips, exactly. Of
some fours training lacks clips (`TRAINED`). The classes lie above each other, not side by side, since training mirrors
images.

annotations/vggsound.csv, clips/<upper, lower>/*.mp4   VGGSound
clips.csv                                              what is seen and heard in each clip
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, islice, repeat
from pathlib import Path

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from deepavfusion.demo.clips import FPS
from deepavfusion.demo.drawings import DRAWINGS, USUAL, Colour, Pen
from deepavfusion.demo.plans import Counts, Job, Texts, csv_text, origin, rng_of
from deepavfusion.demo.scenes import backdrop
from deepavfusion.demo.sounds import SAMPLE_RATE, Signal, melody, mix, perform
from deepavfusion.media.encode import write_mp4

# How hard it is to tell the details apart; change OWN_VERSIONS in demo.py with them.
DETAILS: dict[str, tuple[Colour, tuple[float, float]]] = {  # colour, and the lowest notes of a tune, MIDI numbers
    "red": ((225, 30, 40), (37.0, 40.0)),
    "blue": ((40, 70, 235), (82.0, 85.0)),
}
LENGTH = (0.78, 0.84)  # of a guitar, of the frame's height
PLACES = (0.29, 0.71)  # heights of the upper and the lower guitar, of the frame's
SHIFT, ANGLE = 0.02, 5.0  # ± of the frame's height, ± degrees
SIZES = ((320, 240), (312, 232), (288, 216))  # pixels
SECONDS = 3.2
# How many clips of a four training has, in turn. If it had all, no gradient would lead from chance to either detail:
# networks stayed there for a thousand steps. As it is, a detail alone can get 5/8 of the train clips right.
TRAINED = (4, 3, 1)
SIDES = ("upper", "lower")


@dataclass(frozen=True)
class Pair(Job):
    """A clip: the details of the upper and the lower guitar and of the tune, and what decides the rest of each."""

    seen: tuple[str, str] = ("", "")
    heard: str = ""
    picture: str = ""
    tune: str = ""


def plan_pairs(seed: int, counts: Counts) -> tuple[list[Job], Texts]:
    """The clips and lists above."""
    jobs: list[Job] = []
    rows: list[tuple[str, int, str, str]] = []
    table: list[tuple[str, ...]] = [("path", "label", "split", "upper", "lower", "heard", "picture", "tune")]
    for split in ("train", "test"):
        for n in range(getattr(counts, f"pairs_{split}")):
            for details in combinations(DETAILS, 2):
                four = f"pairs/{split}/{'-'.join(details)}/{n}"
                clips = TRAINED[n % len(TRAINED)] if split == "train" else 4
                for seen, heard in islice(_four(details), clips):
                    label = SIDES[seen.index(heard)]
                    key = f"{four}/{seen[0]}/{heard}"
                    _, clip, start = origin(seed, key)
                    path = f"clips/{label}/{clip}_{start:06d}_{start + 10:06d}.mp4"
                    picture, tune = f"{four}/picture/{seen[0]}", f"{four}/tune/{heard}"
                    jobs.append(
                        Pair(path, key, ("guitar",), ("guitar",), SECONDS, 0, False, seen, heard, picture, tune)
                    )
                    rows.append((clip, start, label, split))
                    table.append((path, label, split, *seen, heard, picture, tune))
    return jobs, {"annotations/vggsound.csv": csv_text(sorted(rows)), "clips.csv": csv_text(table)}


def _four(details: tuple[str, str]) -> Iterator[tuple[tuple[str, str], str]]:
    """What is seen, from top to bottom, and heard."""
    for seen in (details, details[::-1]):
        for heard in details:
            yield seen, heard


# ---- the clips


def render(job: Job, folder: Path, seed: int) -> None:
    """Write the file of one job below `folder`."""
    assert isinstance(job, Pair)
    frame = draw(rng_of(seed, job.picture), job.seen)
    write_mp4(
        folder / job.path,
        repeat(frame, round(SECONDS * FPS)),
        FPS,
        play(rng_of(seed, job.tune), job.heard),
        SAMPLE_RATE,
    )


def draw(rng: Generator, seen: tuple[str, str]) -> NDArray[np.uint8]:
    """Two guitars, equal but for their bodies' colours; uint8 [H, W, 3]."""
    width, height = SIZES[int(rng.integers(len(SIZES)))]
    image = backdrop(True, rng, width, height)
    pen, form = Pen("guitar", rng, USUAL), int(rng.integers(2**31))
    mirrored = rng.random() < 0.5
    for detail, place in zip(seen, PLACES, strict=True):
        guitar = _guitar(pen, DETAILS[detail][0], form)
        side = round(height * rng.uniform(*LENGTH))
        guitar = guitar.resize((side, side), Image.Resampling.LANCZOS)
        guitar = guitar.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else guitar
        guitar = guitar.rotate(rng.uniform(-ANGLE, ANGLE), Image.Resampling.BICUBIC, expand=True)
        x, y = width / 2 + height * rng.uniform(-SHIFT, SHIFT), height * (place + rng.uniform(-SHIFT, SHIFT))
        image.paste(guitar, (round(x - guitar.width / 2), round(y - guitar.height / 2)), guitar)
    return np.array(image)


def _guitar(pen: Pen, body: Colour, form: int) -> Image.Image:
    """In the other colours of the pen; the same form looks the same."""
    pen.image = Image.new("RGBA", pen.image.size)
    pen.draw, pen.body = ImageDraw.Draw(pen.image), body
    DRAWINGS["guitar"](pen, np.random.default_rng(form))
    return pen.image


def play(rng: Generator, heard: str) -> Signal:
    """A tune of a guitar in the register of a detail; [T] in [−1, 1]."""
    tune = melody(rng, SECONDS, DETAILS[heard][1])
    return mix([perform("guitar", tune, rng, SECONDS)], rng)
