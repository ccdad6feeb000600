"""A hash and counts of the data of a run, which change whenever a list, a label or a file does."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from hashlib import sha256
from typing import Any

from lightning import Callback, LightningModule, Trainer

from deepavfusion.data.lists.clip_list import ClipList
from deepavfusion.data.lists.verified import signature
from deepavfusion.types import Clip
from deepavfusion.utils.addresses import is_remote

THREADS = 16  # for file sizes: network disks answer slowly

Place = tuple[str, tuple[int, ...]]  # path and annotated seconds, which determine the files of a clip


class DataHash(Callback):
    """`dataset_hash` of a run, found by a thread beside its first steps, as it asks for the size of every file.

    It is waited for before the results of the training or test are written. After a `with` block with it, the process
    may end, whether it is found or not.
    """

    def __init__(self) -> None:
        self.cancelled = threading.Event()
        self.done: Future[None] | None = None

    def find(self, lists: Mapping[str, ClipList], then: Callable[[str], None]) -> None:
        """Begin to find it, and call `then` with it in the thread."""
        thread = ThreadPoolExecutor(1, "data hash")
        self.done = thread.submit(lambda: then(dataset_hash(lists, self.cancelled.is_set)))
        thread.shutdown(wait=False)

    def wait(self) -> None:
        """Raises what went wrong in the thread."""
        if self.done is not None:
            self.done.result()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.wait()

    on_test_end = on_train_end

    def __enter__(self) -> DataHash:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancelled.set()


def coverage_of(lists: Mapping[str, ClipList]) -> dict[str, Any]:
    """How many clips of each role's split are listed and present. JSON types only."""
    return {
        role: {"split": clips.split, "listed": clips.listed, "present": len(clips.clips)}
        for role, clips in lists.items()
    }


def dataset_hash(lists: Mapping[str, ClipList], cancelled: Callable[[], bool] = lambda: False) -> str:
    """SHA-256 over what each split lists and the sizes of the clips on disk; their content is not read.

    Independent of where the files are and of the order of a list. The size of a packed clip is that of its chunk;
    remote clips have none.

    Args:
        lists: by role, as in `ClipDataModule.lists`.
        cancelled: whether to give up, by a `CancelledError`.

    Returns:
        64 hex digits, over: roles, names of splits and classes, the fixed mixtures, and of each clip id, video, label,
        labels, frames, whether it is present, missing or excluded and why, and bytes (of an annotated folder, of the
        files in use).
    """
    sizes = _sizes(
        (clip for clips in lists.values() for clip in (*clips.clips, *(clip for clip, _ in clips.excluded))), cancelled
    )
    digest = sha256()
    for role, clips in sorted(lists.items()):
        head = [role, clips.split, clips.classes, clips.multi_label, sorted(clips.mixtures)]
        digest.update(json.dumps(head).encode())
        for clip, state in sorted(_rows(clips), key=lambda row: (row[0].id, row[1])):
            size = None if state == "missing" else sizes.get((clip.path, clip.frames))
            line = [clip.id, clip.video, clip.label, clip.labels, clip.frames, state, size]
            digest.update(json.dumps(line).encode())
    return digest.hexdigest()


def _rows(clips: ClipList) -> Iterator[tuple[Clip, str]]:
    yield from ((clip, "") for clip in clips.clips)
    yield from ((clip, "missing") for clip in clips.missing)
    yield from clips.excluded


def _sizes(clips: Iterable[Clip], cancelled: Callable[[], bool]) -> dict[Place, str | None]:
    """Bytes as text, None if there is no file."""
    places: list[Place] = list({(clip.path, clip.frames): None for clip in clips if not is_remote(clip.path)})

    def ask(some: list[Place]) -> list[tuple[str, str] | None]:
        found = []
        for place in some:
            if cancelled():
                raise CancelledError
            found.append(signature(*place))
        return found

    parts = [places[n::THREADS] for n in range(THREADS)]  # one future per place would be slow for two million
    with ThreadPoolExecutor(THREADS) as pool:
        answers = list(pool.map(ask, parts))
    return {
        place: found[0] if found else None
        for some, answer in zip(parts, answers, strict=True)
        for place, found in zip(some, answer, strict=True)
    }
