"""What the demo sets are made of: which clips there are, who plays in them, and the lists that name them.

demo.py renders them. Everything follows from the seed.
"""

from __future__ import annotations

import csv
import io
import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from deepavfusion.demo.scenes import SIZE
from deepavfusion.demo.sounds import OWN_REGISTER

SILENT_SHARE = 0.5  # of the clips of VGGSound, and of AudioSet's with room for it, also show a silent instrument
SOUNDING = (2, 1, 3, 1, 2, 1, 2, 1)  # how many sound together in AudioSet, by turns of eight clips
SECONDS = {"vggsound": 4.0, "vggsound_music": 3.2, "solo": 3.2, "duet": 6.0, "avsbench": 5.0, "audioset": 4.0}
ID_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"

# our name -> VGGSound's label, MUSIC's instrument, AudioSet's mid and display name
CLASSES = {
    "accordion": ("playing accordion", "accordion", "/m/0mkg", "Accordion"),
    "banjo": ("playing banjo", "banjo", "/m/018j2", "Banjo"),
    "drum": ("playing drum kit", "drum", "/m/02hnl", "Drum kit"),
    "flute": ("playing flute", "flute", "/m/0l14j_", "Flute"),
    "guitar": ("playing acoustic guitar", "acoustic_guitar", "/m/042v_gx", "Acoustic guitar"),
    "piano": ("playing piano", "piano", "/m/05r5c", "Piano"),
    "trumpet": ("playing trumpet", "trumpet", "/m/07gql", "Trumpet"),
    "violin": ("playing violin, fiddle", "violin", "/m/07y_7", "Violin, fiddle"),
}
NAMES = list(CLASSES)
STAGE = list(OWN_REGISTER)  # the instruments of all sets but VGGSound and AudioSet


@dataclass(frozen=True)
class Counts:
    """How many clips: of each class for VGGSound, VGGSound-Music, the solos and stamps, in fours for pairs,
    altogether for the rest.
    """

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
    pairs_train: int = 144
    pairs_test: int = 48
    stamps_train: int = 24
    stamps_test: int = 12
    stamps_other: int = 8
    stamps_s4_train: int = 10
    stamps_s4_val: int = 1
    stamps_s4_test: int = 3


FULL = Counts()

# set -> the counts that concern it
COUNTS = {
    "vggsound": ("vggsound_train", "vggsound_test"),
    "vggsound_music": ("vggsound_music_train", "vggsound_music_test"),
    "music": ("solos", "duets"),
    "avsbench": ("s4_train", "s4_val", "s4_test", "ms3_train", "ms3_val", "ms3_test"),
    "audioset": ("audioset_balanced", "audioset_unbalanced", "audioset_eval"),
    "pairs": ("pairs_train", "pairs_test"),
    "stamps": tuple(name for name in vars(FULL) if name.startswith("stamps_")),
}
OPTIONAL = ("pairs", "stamps")  # made if they are named, or a run reads them
NOT_OURS = ("stamps",)  # of them, those that need files that are not ours
SETS = tuple(name for name in COUNTS if name not in OPTIONAL)


@dataclass(frozen=True)
class Job:
    """One clip to render: an mp4 file, or for AVSBench a folder of five frames, their masks and a WAV file."""

    path: str  # of the file or folder, relative to the set's folder
    key: str  # with the seed, decides everything about the clip
    sounding: tuple[str, ...]  # names of the instruments
    silent: tuple[str, ...]  # names of those that are seen only
    seconds: float
    masks: int = 0  # how many frames have masks; 0: an mp4 file
    stage: bool = False  # instruments play in their own register, in their usual colours and before something grey

    @property
    def files(self) -> list[str]:
        """What is written, relative to the set's folder."""
        if not self.masks:
            return [self.path]
        frames = [f"{self.path}/frames/{n}.jpg" for n in range(round(self.seconds))]
        return [f"{self.path}/audio.wav", *frames, *(f"{self.path}/labels_semantic/{n}.png" for n in range(self.masks))]


Texts = dict[str, str]  # file name -> content: the lists and annotations of a set
Plan = Callable[[int, Counts], tuple[list[Job], Texts]]


def rng_of(seed: int, key: str) -> Generator:
    return np.random.default_rng([seed, zlib.crc32(key.encode())])


# ---- the layouts


def _plan_vggsound(seed: int, counts: Counts) -> tuple[list[Job], Texts]:
    """annotations/vggsound.csv; clips/<label>/<id>_<start>_<end>.mp4."""
    jobs, rows = _clips_by_label("vggsound", NAMES, seed, counts)
    return jobs, {"annotations/vggsound.csv": csv_text(sorted(rows))}


def _plan_vggsound_music(seed: int, counts: Counts) -> tuple[list[Job], Texts]:
    """annotations/vggmusic_{train.txt,eval_ss.csv}; clips/playing_<instrument>/<id>_<start>_<end>.mp4.

    Every test clip is the first of one pair; one pair in eight is of one class.
    """
    jobs, rows = _clips_by_label("vggsound_music", STAGE, seed, counts)
    clips: dict[str, list[tuple[str, str]]] = {"train": [], "test": []}
    for clip, start, label, split in rows:
        clips[split].append((f"{clip}_{start:06d}", label.removeprefix("playing ").replace(" ", "_")))
    test = clips["test"]
    # violin here, but violin,_fiddle in pairs
    lines = [f"{clip},{name.split(',')[0]}\n" for clip, name in sorted(clips["train"])]
    order = rng_of(seed, "vggsound_music/pairs").permutation(len(test))
    pairs = [("source_1", "source_2", "class_1", "class_2", "sep_type")]
    for n in order:
        (first, one), (second, two) = test[n], test[(n + (1 if n % 8 == 0 else counts.vggsound_music_test)) % len(test)]
        pairs.append((first, second, one, two, "Hard" if one == two else "Easy"))
    return jobs, {"annotations/vggmusic_train.txt": "".join(lines), "annotations/vggmusic_eval_ss.csv": csv_text(pairs)}


def _clips_by_label(
    dataset: str, names: Sequence[str], seed: int, counts: Counts
) -> tuple[list[Job], list[tuple[str, int, str, str]]]:
    """Jobs of the two sets cut from VGGSound, and of each clip id, start, label and split."""
    jobs, rows = [], []
    stage = names is STAGE
    for split in ("train", "test"):
        for name in names:
            label = CLASSES[name][0]
            folder = label.translate(str.maketrans(" (),", "____"))
            for n in range(getattr(counts, f"{dataset}_{split}")):
                key = f"{dataset}/{split}/{name}/{n}"
                rng, clip, start = origin(seed, key, dash=not stage and n % 16 == 0)
                path = f"clips/{folder}/{clip}_{start:06d}_{start + 10:06d}.mp4"
                silent = () if stage else _silent(rng, [name])
                jobs.append(Job(path, key, (name,), silent, SECONDS[dataset], stage=stage))
                rows.append((clip, start, label, split))
    return jobs, rows


def _plan_music(seed: int, counts: Counts) -> tuple[list[Job], Texts]:
    """Three JSON lists; clips/<instrument>/<id>.mp4, where a duet's instrument is "a b"."""
    jobs, solos, duets = list[Job](), dict[str, list[str]](), dict[str, list[str]]()

    def add(videos: dict[str, list[str]], names: tuple[str, ...], key: str, seconds: float) -> None:
        _, clip, _ = origin(seed, key)
        folder = " ".join(CLASSES[name][1] for name in names)
        jobs.append(Job(f"clips/{folder}/{clip}.mp4", key, names, (), seconds, stage=True))
        videos.setdefault(folder, []).append(clip)

    for name in STAGE:
        for n in range(counts.solos):
            add(solos, (name,), f"music/solo/{name}/{n}", SECONDS["solo"])
    for n in range(counts.duets):
        first, second = sorted(choose(rng_of(seed, f"music/duet/{n}/pair"), 2, STAGE))
        add(duets, (first, second), f"music/duet/{n}", SECONDS["duet"])
    lists = {"MUSIC_solo_videos": solos, "MUSIC_duet_videos": duets, "MUSIC21_solo_videos": solos}
    return jobs, {f"{name}.json": json.dumps({"videos": videos}) + "\n" for name, videos in lists.items()}


def _plan_avsbench(seed: int, counts: Counts) -> tuple[list[Job], Texts]:
    """metadata.csv, label2idx.json; <v1s: S4, v1m: MS3>/<uid>/{audio.wav, frames, labels_semantic}."""
    jobs, rows = [], [("vid", "uid", "s_min", "s_sec", "a_obj", "split", "label")]
    for label, subset in (("v1s", "s4"), ("v1m", "ms3")):
        for split in ("train", "val", "test"):
            for n in range(getattr(counts, f"{subset}_{split}")):
                key = f"avsbench/{label}/{split}/{n}"
                rng, video, start = origin(seed, key)
                uid = f"{video}_{start * 1000}_{start * 1000 + 5000}"
                if label == "v1s":
                    sounding: tuple[str, ...] = (STAGE[n % len(STAGE)],)
                    silent = choose(rng, 1, [name for name in STAGE if name not in sounding])
                else:
                    drawn = choose(rng, int(rng.integers(2, 4)), STAGE)
                    heard = int(rng.integers(1, 3))
                    sounding, silent = drawn[:heard], drawn[heard:]
                masks = 1 if (label, split) == ("v1s", "train") else 5
                jobs.append(Job(f"{label}/{uid}", key, sounding, silent, SECONDS["avsbench"], masks, stage=True))
                rows.append((video, uid, str(start // 60), str(start % 60), "_".join(sounding), split, label))
    index = {"background": 0, **{name: n + 1 for n, name in enumerate(STAGE)}}
    return jobs, {"metadata.csv": csv_text(rows), "label2idx.json": json.dumps(index, indent=1) + "\n"}


def _plan_audioset(seed: int, counts: Counts) -> tuple[list[Job], Texts]:
    """class_labels_indices.csv, three lists *_segments.csv; clips/<id[:2]>/<id>_<start>_<end>.mp4."""
    jobs: list[Job] = []
    classes = [f'{n},{mid},"{name}"\n' for n, (_, _, mid, name) in enumerate(CLASSES.values())]
    texts = {"annotations/class_labels_indices.csv": "".join(["index,mid,display_name\n", *classes])}
    for split in ("balanced_train", "unbalanced_train", "eval"):
        count = getattr(counts, f"audioset_{split.removesuffix('_train')}")
        lines, labels = [], []
        for n in range(count):
            key = f"audioset/{split}/{n}"
            rng, video, start = origin(seed, key, dash=n % 15 == 0)
            sounding = _sounding(seed, split, n)
            silent = _silent(rng, sounding) if len(sounding) < max(SIZE) else ()
            path = f"clips/{video[:2]}/{video}_{start:06d}_{start + 10:06d}.mp4"
            jobs.append(Job(path, key, sounding, silent, SECONDS["audioset"]))
            mids = sorted(CLASSES[name][2] for name in sounding)
            lines.append(f'{video}, {start:.3f}, {start + 10:.3f}, "{",".join(mids)}"\n')
            labels += mids
        head = (
            f"# Segments csv of generated clips, seed {seed}\n# num_ytids={count}, num_segs={count}, "
            f"num_unique_labels={len(set(labels))}, num_positive_labels={len(labels)}\n"
            "# YTID, start_seconds, end_seconds, positive_labels\n"
        )
        texts[f"annotations/{split}_segments.csv"] = head + "".join(sorted(lines))
    return jobs, texts


def _sounding(seed: int, split: str, n: int) -> tuple[str, ...]:
    """Who sounds in the n-th clip of AudioSet: in each turn of eight clips every instrument equally often."""
    turn, first = divmod(n, len(NAMES))
    steps = rng_of(seed, f"audioset/{split}/turn/{turn}").permutation(np.arange(1, len(NAMES)))
    others = steps[: SOUNDING[turn % len(SOUNDING)] - 1]
    return tuple(NAMES[(first + step) % len(NAMES)] for step in (0, *others))


PLANS: dict[str, Plan] = {
    "vggsound": _plan_vggsound,
    "vggsound_music": _plan_vggsound_music,
    "music": _plan_music,
    "avsbench": _plan_avsbench,
    "audioset": _plan_audioset,
}


def choose(rng: Generator, count: int, names: Sequence[str]) -> tuple[str, ...]:
    return tuple(names[n] for n in rng.choice(len(names), count, replace=False))


def _silent(rng: Generator, sounding: Sequence[str]) -> tuple[str, ...]:
    """In `SILENT_SHARE` of the calls one instrument that does not sound."""
    if rng.random() >= SILENT_SHARE:
        return ()
    return (str(rng.choice([name for name in NAMES if name not in sounding])),)


def origin(seed: int, key: str, dash: bool = False) -> tuple[Generator, str, int]:
    """A clip's generator, and from it a YouTube id and a start in s; `dash` begins the id with "-", to test parsers."""
    rng = rng_of(seed, f"{key}/plan")
    letters = "".join(ID_LETTERS[n] for n in rng.integers(len(ID_LETTERS), size=11))
    return rng, f"-{letters[1:]}" if dash else letters, int(rng.integers(290))


def csv_text(rows: Sequence[Sequence[object]]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue()
