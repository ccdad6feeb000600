"""Writes packed data (packed.py): each clip is decoded once, in a process of its own, and never again in training.

The list alone decides what goes into which chunk. Each chunk is stored whole, and a record after it, so a pack that was
killed resumes with the missing chunks, and the bytes do not depend on interruptions, workers, or where they are stored.
"""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from litdata.streaming.writer import BinaryWriter

from deepavfusion.data.lists.clip_list import ClipList
from deepavfusion.data.storage.remote import Unreachable
from deepavfusion.data.storage.settings import StorageSettings
from deepavfusion.data.stores.destination import Destination, destination
from deepavfusion.data.stores.item import make_item
from deepavfusion.data.stores.packed import CLIPS, FORMAT, INDEX, MANIFEST, Item
from deepavfusion.data.stores.packed_list import check_index, to_json
from deepavfusion.data.stores.raw import RawStore
from deepavfusion.types import Clip
from deepavfusion.utils.console import progress_bar, say
from deepavfusion.utils.errors import DecodeError, TemporaryError, UserError
from deepavfusion.utils.pool import Lost, call_apart

PLAN, PARTS = ".pack.json", ".parts"
TRIES = 2  # of a clip that crashes its process or takes too long
AT_ONCE = 16  # records that are read
MAX_LINES = 20  # in the terminal, on clips that are left out


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
Record = dict[str, Any]  # of a complete chunk


@dataclass(frozen=True)
class Part:
    """One chunk to write: its number and its clips."""

    split: str
    number: int
    clips: list[Clip]

    @property
    def file(self) -> str:
        return f"chunk-{self.number:05d}.bin"

    @property
    def path(self) -> str:
        return f"{self.split}/{self.file}"

    @property
    def record(self) -> str:
        return f"{self.split}/{PARTS}/{self.number:05d}.json"


def pack(
    lists: dict[str, ClipList],
    output: str | Path,
    name: str,
    settings: PackSettings,
    workers: int,
    reader: dict[str, Any] | None = None,
    time_limit: float = 30.0,
    storage: StorageSettings | None = None,
) -> dict[str, dict[str, int]]:
    """Write the splits of a dataset, or resume a pack that was interrupted.

    Args:
        lists: split -> list, of the files as published.
        output: folder or address; new, or of an interrupted or complete pack of the same lists and settings.
        name: of the dataset, e.g. "vggsound".
        settings: of the pack.
        workers: processes; the result does not depend on it.
        reader: the arguments of the list's reader that choose clips, recorded in the manifest.
        time_limit: seconds that a clip may take. One that takes longer, or crashes its process, twice is left out.
        storage: how an address is reached.

    Returns:
        split -> how many clips are listed, packed, missing, excluded (bad by `command=verify`, or met now).

    Raises:
        UserError: a folder with other content, or worker processes that end again and again.
    """
    with destination(output, storage or StorageSettings()) as place:
        _claim(place, lists, name, settings)
        parts = [part for clips in lists.values() for part in _parts(clips, settings)]
        records = _written(place, parts)
        todo = [part for part in parts if part.record not in records]
        with progress_bar() as bar:
            task = bar.add_task("packing", total=sum(len(part.clips) for part in todo))
            for done in _run(todo, place, settings, workers, time_limit, records):
                bar.advance(task, done)
            place.finish()
        if lost := [part for part in parts if not _is_stored(place, part, records[part.record])]:
            raise TemporaryError(
                f"{place} lost chunks while the others were packed, {len(lost)} of {len(parts)}, such as "
                f"{lost[0].path}: see what removes or replaces them, then give the same command again."
            )
        splits = {
            split: _finish(place, clips, [(part, records[part.record]) for part in parts if part.split == split])
            for split, clips in lists.items()
        }
        about = {"format": FORMAT, "name": name, "reader": reader or {}, "settings": asdict(settings), "splits": splits}
        place.write(MANIFEST, json.dumps(about, indent=1) + "\n")
    return {split: found["counts"] for split, found in splits.items()}


def _claim(place: Destination, lists: dict[str, ClipList], name: str, settings: PackSettings) -> None:
    """Take a new place, or check that it holds a pack of the same lists with the same settings."""
    hashes = {split: _list_hash(clips) for split, clips in lists.items()}
    plan = {"format": FORMAT, "name": name, "settings": asdict(settings), "lists": hashes}
    before = place.record(PLAN)
    if before is None and not place.is_free():
        raise UserError(f"{place} exists and holds no packed data; nothing was written: choose another output.")
    if before is None and not place.claim(PLAN, json.dumps(plan, indent=1) + "\n"):
        before = place.record(PLAN)  # of another machine, which was faster
    if before is not None:
        if differs := [key for key in plan if before.get(key) != plan[key]]:
            raise UserError(
                f"{place} holds packed data with another {' and '.join(differs)}: choose another output, or remove it."
            )
        place.check([f"{split}/{folder}".rstrip("/") for split in lists for folder in ("", PARTS)])
    place.hold(PLAN, plan)


def _list_hash(clips: ClipList) -> str:
    """A hash of everything that decides the content: ids, classes, missing and excluded clips."""
    content = to_json(clips, clips.clips, clips.excluded)
    return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _parts(clips: ClipList, settings: PackSettings) -> Iterator[Part]:
    """The clips in an order that mixes classes in every chunk and follows from the ids alone."""
    order = sorted(clips.clips, key=lambda clip: (zlib.crc32(clip.id.encode()), clip.id))
    for number, begin in enumerate(range(0, len(order), settings.clips_per_chunk)):
        yield Part(clips.split, number, order[begin : begin + settings.clips_per_chunk])


def _run(
    parts: Sequence[Part],
    place: Destination,
    settings: PackSettings,
    workers: int,
    time_limit: float,
    records: dict[str, Record],
) -> Iterator[int]:
    """Write the chunks and add their records; yields the numbers of clips done."""
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
                say(f"… more clips are left out, see excluded in {place}/<split>/{CLIPS}", "yellow")
        found[n][clip.id] = result
        if len(found[n]) == len(parts[n].clips):
            records[parts[n].record] = write_part(parts[n], found[n], place)
            found[n] = {}
        yield 1


def _read(job: tuple[int, Clip], settings: PackSettings) -> Packed:
    """The content of a clip, in a worker process."""
    _, clip = job
    try:
        with RawStore().open(clip) as opened:
            return make_item(clip, opened, settings.short_side, settings.quality)
    except DecodeError as error:
        return Left(error.reason, error.detail)


def write_part(part: Part, found: dict[str, Packed], place: Destination) -> Record:
    """Write one chunk and, last, the record that says it is complete."""
    scratch = place.scratch(part.path)
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
    record: Record = {"packed": packed, "bad": bad, "file": part.file, "bytes": 0, "sha256": ""}
    chunk = None
    if packed:
        (written,) = writer.done()
        chunk = Path(written)
        (index,) = scratch.glob(f"*{INDEX}")
        record["litdata"] = json.loads(index.read_text())
        content = chunk.read_bytes()
        record |= {"bytes": len(content), "sha256": sha256(content).hexdigest()}
    place.store(chunk, part.path, part.record, record)
    shutil.rmtree(scratch)
    return record


def _written(place: Destination, parts: Sequence[Part]) -> dict[str, Record]:
    """Name -> record of the chunks that are complete; one that is not, or is of other clips, is written again."""

    def look(part: Part) -> Record | None:
        try:
            record = place.record(part.record)
            return record if record and _is_stored(place, part, record) and _is_of(record, part) else None
        except Unreachable:
            raise
        except (OSError, UserError, ValueError, KeyError, TypeError, AttributeError):
            return None

    with ThreadPoolExecutor(AT_ONCE) as threads:  # a storage takes a while to answer, and answers many
        try:
            found = zip(parts, threads.map(look, parts), strict=True)
            return {part.record: record for part, record in found if record is not None}
        except BaseException:
            place.give_up()
            threads.shutdown(wait=False, cancel_futures=True)
            raise


def _is_stored(place: Destination, part: Part, record: Record) -> bool:
    return (place.size(part.path) if record["packed"] else 0) == record["bytes"]


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


def _finish(place: Destination, clips: ClipList, parts: Sequence[tuple[Part, Record]]) -> dict[str, Any]:
    """Write the lists of a split; returns its entry in the manifest."""
    by_id = {clip.id: clip for clip in clips.clips}
    packed: list[Clip] = []
    excluded = list(clips.excluded)
    chunks, index = [], []
    config = None
    for part, record in parts:
        packed += [by_id[identifier] for identifier in record["packed"]]
        excluded += [(by_id[identifier], why) for identifier, why in record["bad"]]
        if record["packed"]:
            (info,) = record["litdata"]["chunks"]
            index.append({**info, "filename": part.file})
            config = config or record["litdata"]["config"]
            sums = {key: record[key] for key in ("bytes", "sha256")}
            chunks.append({"file": part.file, "items": len(record["packed"]), **sums})
    place.write(f"{clips.split}/{INDEX}", json.dumps({"chunks": index, "config": config}, sort_keys=True))
    place.write(f"{clips.split}/{CLIPS}", json.dumps(to_json(clips, packed, excluded)))
    counts = {"listed": clips.listed, "packed": len(packed), "missing": len(clips.missing), "excluded": len(excluded)}
    return {"counts": counts, "list_sha256": _list_hash(clips), "chunks": chunks}
