"""Writes packed data (packed.py): each clip is decoded once, in a process of its own, and never again in training.

The list alone decides what goes into which chunk. Each chunk is written under another name, synced, and renamed, so a
pack that was killed resumes with the missing chunks, and the bytes do not depend on interruptions or workers.
"""

from __future__ import annotations

import io
import json
import shutil
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import sha256
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from litdata.streaming.writer import BinaryWriter
from PIL import Image

from deepavfusion.data.lists.clip_list import ClipList
from deepavfusion.data.stores.packed import CLIPS, FORMAT, INDEX, INT16, MANIFEST, Item
from deepavfusion.data.stores.packed_list import check_index, to_json
from deepavfusion.data.stores.raw import RawStore
from deepavfusion.data.stores.store import OpenClip
from deepavfusion.transforms.audio import SAMPLE_RATE
from deepavfusion.types import Clip
from deepavfusion.utils.console import progress_bar, say
from deepavfusion.utils.errors import DecodeError, UserError
from deepavfusion.utils.files import regular_file, sync, write_whole
from deepavfusion.utils.pool import Lost, call_apart
from deepavfusion.utils.reading import RECORD, read_json

PLAN, PARTS = ".pack.json", ".parts"
TRIES = 2  # of a clip that crashes its process or takes too long
MAX_LINES = 20  # in the terminal, on clips that are left out
AUDIO_AT_ONCE = 3600  # s of audio in memory, likewise
FRAMES_AT_ONCE = 64  # frames in memory while packing a long video


@dataclass(frozen=True)
class PackSettings:
    """How clips are packed.

    Args:
        short_side: of the frames, pixels; smaller ones are not enlarged.
        quality: of the JPEGs, 1…95, without chroma subsampling.
        clips_per_chunk: about 1.3 MB each for clips of 10 s.
    """

    short_side: int = 256
    quality: int = 90
    clips_per_chunk: int = 64


class Left(NamedTuple):
    """Why a clip is left out: a status of the verify report, and a clause."""

    reason: str
    detail: str


Packed = Item | Left


@dataclass(frozen=True)
class Part:
    """One chunk to write: its number and its clips."""

    split: str
    number: int
    clips: list[Clip]

    @property
    def file(self) -> str:
        return f"chunk-{self.number:05d}.bin"


def pack(
    lists: dict[str, ClipList],
    output: Path,
    name: str,
    settings: PackSettings,
    workers: int,
    reader: dict[str, Any] | None = None,
    time_limit: float = 30.0,
) -> dict[str, dict[str, int]]:
    """Write the splits of a dataset, or resume a pack that was interrupted.

    Args:
        lists: split -> list, of the files as published.
        output: folder; new, or of an interrupted or complete pack of the same lists and settings.
        name: of the dataset, e.g. "vggsound".
        settings: of the pack.
        workers: processes; the result does not depend on it.
        reader: the arguments of the list's reader that choose clips, recorded in the manifest.
        time_limit: seconds that a clip may take. One that takes longer, or crashes its process, twice is left out.

    Returns:
        split -> how many clips are listed, packed, missing, excluded (bad by `command=verify`, or met now).

    Raises:
        UserError: a folder with other content, or worker processes that end again and again.
    """
    _claim(output, lists, name, settings)
    parts = [part for clips in lists.values() for part in _parts(clips, settings)]
    todo = [part for part in parts if _written(output, part) is None]
    with progress_bar() as bar:
        task = bar.add_task("packing", total=sum(len(part.clips) for part in todo))
        for done in _run(todo, output, settings, workers, time_limit):
            bar.advance(task, done)
    splits = {split: _finish(output, clips, [p for p in parts if p.split == split]) for split, clips in lists.items()}
    manifest = {"format": FORMAT, "name": name, "reader": reader or {}, "settings": asdict(settings), "splits": splits}
    write_whole(output / MANIFEST, json.dumps(manifest, indent=1) + "\n", durable=True)
    return {split: found["counts"] for split, found in splits.items()}


def _claim(output: Path, lists: dict[str, ClipList], name: str, settings: PackSettings) -> None:
    """Make the folder, or check that it holds a pack of the same lists with the same settings."""
    hashes = {split: _list_hash(clips) for split, clips in lists.items()}
    plan = {"format": FORMAT, "name": name, "settings": asdict(settings), "lists": hashes}
    path = output / PLAN
    if path.is_file():
        before = _read_record(path)
        if differs := [key for key in plan if before.get(key) != plan[key]]:
            raise UserError(
                f"{output} holds packed data with another {' and '.join(differs)}: choose another output, or remove it."
            )
        for folder in (output / split / part for split in lists for part in ("", PARTS)):
            if folder.is_symlink():
                raise UserError(
                    f"{folder} is a link, and no folder that packing made; nothing was written: choose another output."
                )
    elif output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output} exists and holds no packed data; nothing was written: choose another output.")
    else:
        output.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(plan, indent=1) + "\n", durable=True)


def _list_hash(clips: ClipList) -> str:
    """A hash of everything that decides the content: ids, classes, missing and excluded clips."""
    content = to_json(clips, clips.clips, clips.excluded)
    return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _parts(clips: ClipList, settings: PackSettings) -> Iterator[Part]:
    """The clips in an order that mixes classes in every chunk and follows from the ids alone."""
    order = sorted(clips.clips, key=lambda clip: (zlib.crc32(clip.id.encode()), clip.id))
    for number, begin in enumerate(range(0, len(order), settings.clips_per_chunk)):
        yield Part(clips.split, number, order[begin : begin + settings.clips_per_chunk])


def _run(parts: Sequence[Part], output: Path, settings: PackSettings, workers: int, time_limit: float) -> Iterator[int]:
    """Write the chunks; yields the numbers of clips done."""
    jobs = ((n, clip) for n, part in enumerate(parts) for clip in part.clips)
    found: list[dict[str, Packed]] = [{} for _ in parts]  # of chunks that are not complete
    named = 0
    for (n, clip), result in call_apart(partial(_read, settings=settings), jobs, workers, time_limit, TRIES):
        if isinstance(result, Lost):
            times = "" if result.why == "raised" else f", {TRIES} times"
            result = Left("hung" if result.hung else "undecodable", f"{result.detail}{times}")
        if isinstance(result, Left):
            named += 1
            if named <= MAX_LINES:
                say(f"clip {clip.id} ({clip.path}) is left out, {result.reason}: {result.detail}", "yellow")
            elif named == MAX_LINES + 1:
                say(f"… more clips are left out, see excluded in {output}/<split>/{CLIPS}", "yellow")
        found[n][clip.id] = result
        if len(found[n]) == len(parts[n].clips):
            write_part(parts[n], found[n], output)
            found[n] = {}
        yield 1


def _read(job: tuple[int, Clip], settings: PackSettings) -> Packed:
    """The content of a clip, in a worker process."""
    _, clip = job
    try:
        with RawStore().open(clip) as opened:
            return make_item(clip, opened, settings)
    except DecodeError as error:
        return Left(error.reason, error.detail)


def write_part(part: Part, found: dict[str, Packed], output: Path) -> None:
    """Write one chunk and, last, the record that says it is complete."""
    folder = output / part.split
    scratch = folder / f".{part.file}.partial"
    shutil.rmtree(scratch, ignore_errors=True)
    writer = BinaryWriter(str(scratch), chunk_size=len(part.clips) + 1)
    packed: list[str] = []
    bad: list[tuple[str, str]] = []
    for clip in part.clips:
        item = found[clip.id]
        if isinstance(item, Left):
            bad.append((clip.id, item.reason))
            continue
        writer[len(packed)] = item
        packed.append(clip.id)
    record: dict[str, Any] = {"packed": packed, "bad": bad, "file": part.file, "bytes": 0, "sha256": ""}
    if packed:
        (written,) = writer.done()
        (index,) = scratch.glob(f"*{INDEX}")
        record["litdata"] = json.loads(index.read_text())
        content = Path(written).read_bytes()
        record |= {"bytes": len(content), "sha256": sha256(content).hexdigest()}
        sync(Path(written))
        Path(written).replace(folder / part.file)
    (folder / PARTS).mkdir(exist_ok=True)
    write_whole(folder / PARTS / f"{part.number:05d}.json", json.dumps(record), durable=True)
    shutil.rmtree(scratch)


def make_item(clip: Clip, opened: OpenClip, settings: PackSettings) -> Item:
    """All of a clip: frames on the grid, the whole audio, masks."""
    times = opened.frame_times()
    jpegs, spans, shape = io.BytesIO(), [], (0, 0)
    last: tuple[bytes, tuple[int, int]] | None = None  # pixels of the previous frame, and its span
    step = min(FRAMES_AT_ONCE, opened.frames_at_once)
    for begin in range(0, len(times), step):
        for frame in opened.frames(times[begin : begin + step]):
            shape, pixels = (frame.height, frame.width), frame.pixels.tobytes()
            if last is None or last[0] != pixels:  # a still is stored once
                start = jpegs.tell()
                _shrunk(frame.pixels, settings.short_side).save(jpegs, "JPEG", quality=settings.quality, subsampling=0)
                last = pixels, (start, jpegs.tell())
            spans.append(last[1])
    sound = _sound(opened)
    if not sound:
        raise DecodeError(clip.path, "too_short", "the audio stream holds no sample", "audio")
    masks, mask_spans = io.BytesIO(), []
    for second in clip.frames:
        start = masks.tell()
        opened.mask(second).save(masks, "PNG")
        mask_spans.append((start, masks.tell()))
    return {
        "id": clip.id.encode(),
        "jpegs": jpegs.getvalue(),
        "masks": masks.getvalue(),
        "sound": sound,
        "times": np.array(times, np.float64),
        "spans": np.array(spans, np.int64).reshape(-1),
        "mask_seconds": np.array(clip.frames, np.int64),
        "mask_spans": np.array(mask_spans, np.int64).reshape(-1),
        "labels": np.array(clip.classes or (-1,), np.int64),
        "shape": np.array(shape, np.int64),
        "ends": np.array([opened.audio_end, opened.video_end], np.float64),
    }


def _sound(opened: OpenClip) -> bytes:
    """All of a clip's audio, int16; of a long one, an hour is in memory as float32."""
    parts: list[bytes] = []
    end = opened.audio_end + 1.0  # headers may end too early
    for begin in range(0, ceil(end), AUDIO_AT_ONCE):
        wanted = min(float(AUDIO_AT_ONCE), end - begin)
        waveform = opened.audio(float(begin), wanted).numpy()
        parts.append(np.round(waveform * INT16).astype(np.int16).tobytes())
        if len(waveform) < round(wanted * SAMPLE_RATE):
            break
    return b"".join(parts)


def _shrunk(image: Image.Image, short_side: int) -> Image.Image:
    factor = short_side / min(image.size)
    if factor >= 1:
        return image
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image.resize(size, Image.Resampling.BICUBIC)


def _written(output: Path, part: Part) -> dict[str, Any] | None:
    """The record of a complete chunk; None if there is none, or not of this chunk: it is written again."""
    path, chunk = output / part.split / PARTS / f"{part.number:05d}.json", output / part.split / part.file
    try:
        record = _read_record(path)
        there = regular_file(chunk).st_size if record["packed"] else 0
        return record if there == record["bytes"] and _is_of(record, part) else None
    except (OSError, UserError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _is_of(record: dict[str, Any], part: Part) -> bool:
    """Whether a record names the clips of this chunk, each once, and describes the chunk as `write_part` does."""
    packed, bad = record["packed"], dict(record["bad"])
    fits = record["file"] == part.file and all(isinstance(why, str) for why in bad.values())
    if not fits or [clip.id for clip in part.clips if clip.id not in bad] != packed or len(bad) != len(record["bad"]):
        return False
    if packed:
        (info,) = record["litdata"]["chunks"]
        index = {"chunks": [{**info, "filename": part.file}], "config": record["litdata"]["config"]}
        check_index(index, [{"items": len(packed), **{key: record[key] for key in ("file", "bytes", "sha256")}}])
    return set(bad) <= {clip.id for clip in part.clips}


def _read_record(path: Path) -> dict[str, Any]:
    """A file of an earlier start; a `UserError` if it cannot be read, or is none."""
    found = read_json(path, RECORD, "what packing wrote (else choose another output)")
    if not isinstance(found, dict):
        raise UserError(f"{path} is not written by packing: choose another output, or remove its folder.")
    return found


def _finish(output: Path, clips: ClipList, parts: Sequence[Part]) -> dict[str, Any]:
    """Write the lists of a split; returns its entry in the manifest."""
    folder = output / clips.split
    by_id = {clip.id: clip for clip in clips.clips}
    packed: list[Clip] = []
    excluded = list(clips.excluded)
    chunks, index = [], []
    config = None
    for part in parts:
        record = _written(output, part)
        assert record is not None, part
        packed += [by_id[identifier] for identifier in record["packed"]]
        excluded += [(by_id[identifier], why) for identifier, why in record["bad"]]
        if record["packed"]:
            (info,) = record["litdata"]["chunks"]
            index.append({**info, "filename": part.file})
            config = config or record["litdata"]["config"]
            sums = {key: record[key] for key in ("bytes", "sha256")}
            chunks.append({"file": part.file, "items": len(record["packed"]), **sums})
    folder.mkdir(exist_ok=True)
    write_whole(folder / INDEX, json.dumps({"chunks": index, "config": config}, sort_keys=True), durable=True)
    write_whole(folder / CLIPS, json.dumps(to_json(clips, packed, excluded)), durable=True)
    counts = {"listed": clips.listed, "packed": len(packed), "missing": len(clips.missing), "excluded": len(excluded)}
    return {"counts": counts, "list_sha256": _list_hash(clips), "chunks": chunks}
