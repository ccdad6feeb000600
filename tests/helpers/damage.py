"""What the workers of the tests of untrusted files call: each file is opened in a process that may crash, with a bound
on its memory, and the answer says what came out."""

from __future__ import annotations

import resource
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from pathlib import Path
from time import process_time
from typing import NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor

from deepavfusion.data.lists.clip_list import ClipList
from deepavfusion.data.samples import SampleSpec, WindowDataset
from deepavfusion.data.stores.raw import RawStore
from deepavfusion.models.deepavfusion import DeepAVFusion
from deepavfusion.models.mae import MaskedAutoencoder
from deepavfusion.models.vit import ViT
from deepavfusion.types import Clip, Problem
from deepavfusion.utils.errors import UserError
from deepavfusion.utils.pool import PRELOAD, Lost, call_apart
from deepavfusion.weights.file import read_file
from deepavfusion.weights.weights import check_network, read_record, read_weights

PRELOAD += ["deepavfusion.weights.weights", "deepavfusion.data.samples"]  # if no other test has started the server yet
ROOM = 2 << 30  # bytes of addresses that a worker may take on top of its libraries
PATIENCE = 20.0  # s for one file


class Answer(NamedTuple):
    """What one file gave.

    Args:
        word: "read", or the reason it was refused for.
        detail: what was read, as a checksum; or the message.
        seconds: of the processor that it took.
        peak_mb: most memory that the worker ever held.
    """

    word: str
    detail: str
    seconds: float
    peak_mb: float


def ask(function: Callable[[str], tuple[str, str]], paths: Iterable[Path], workers: int = 1) -> dict[str, Answer]:
    """The answer for every file, by its path; what crashes, hangs or raises anything else is an answer as well."""
    found = {}
    with patch("deepavfusion.utils.pool.CALLS", 500):  # a worker has its memory counted over many files
        for path, answer in call_apart(partial(_bounded, function), map(str, paths), workers, PATIENCE):
            lost = isinstance(answer, Lost)
            found[path] = Answer("hung" if answer.hung else "lost", answer.detail, 0, 0) if lost else answer
    return found


def summary(found: dict[str, Answer]) -> str:
    """Counts by word, the slowest file, and the most memory."""
    slowest, peak = max(a.seconds for a in found.values()), max(a.peak_mb for a in found.values())
    return f"{len(found)} files {dict(Counter(a.word for a in found.values()))} {slowest:.2f} s {peak:.0f} MB"


def _bounded(function: Callable[[str], tuple[str, str]], path: str) -> Answer:
    if resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY:
        torch.set_num_threads(1)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + ROOM,) * 2)
    begin = process_time()  # other processes may take the cores
    word, detail = function(path)
    return Answer(word, detail, process_time() - begin, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


# ---------------------------------------------------------------- checkpoints


@cache
def small_network() -> MaskedAutoencoder:
    torch.manual_seed(0)
    sizes = {"embed_dim": 8, "depth": 1, "num_heads": 2}
    image, audio = ViT((32, 32), in_chans=3, **sizes), ViT((16, 32), in_chans=1, **sizes)
    return MaskedAutoencoder(DeepAVFusion(image, audio, num_fusion_tokens=(2, 1, 1), fusion_num_heads=2), 8, 1, 2)


def checksum(tensors: dict[str, Tensor]) -> str:
    """Of names, shapes and values."""
    values = b"".join(tensor.contiguous().numpy().tobytes() for _, tensor in sorted(tensors.items()))
    shapes = zlib.crc32(repr([(name, list(tensor.shape)) for name, tensor in sorted(tensors.items())]).encode())
    return f"{shapes} {zlib.crc32(values)}"


def resume_from(path: str) -> None:
    check_network(small_network(), path, read_file(Path(path)))


def open_checkpoint(path: str) -> tuple[str, str]:
    """Through every door that a checkpoint comes in by: they agree."""
    try:
        weights = read_weights(path)
        record = read_record(path)
    except UserError as error:
        for door in (read_weights, resume_from):
            try:
                door(path)
            except UserError:
                continue
            raise AssertionError("a file was refused and then read") from error
        return "refused", str(error)
    if path.endswith(".ckpt"):
        try:
            resume_from(path)
        except UserError as error:
            return "refused", str(error)
    return "read", f"{weights.kind} {checksum(weights.tensors)} {record}"


# ---------------------------------------------------------------- media


def open_clip(path: str) -> tuple[str, str]:
    """What training does with a clip: header, a frame, a window of audio; twice, once with a random window."""
    for train in (False, True):
        dataset = WindowDataset(ClipList("train", [Clip("a", path, 0)], ["x"]), RawStore(), SampleSpec(32, train=train))
        group = dataset[0, 0]
        if isinstance(group, Problem):
            assert group.path == path, group
            return group.reason, group.detail
        (sample,) = group
        assert sample.image.shape == (3, 32, 32)
        assert sample.waveform.shape == (48_000,)
        assert sample.waveform.abs().max() <= 1
    return "read", ""


def boxes(data: bytes, begin: int = 0, end: int | None = None) -> Iterator[tuple[int, int, bytes]]:
    """Begin, end and kind of each box of an mp4 file, those inside others, too."""
    end = len(data) if end is None else end
    while begin + 8 <= end:
        size, kind = int.from_bytes(data[begin : begin + 4], "big"), data[begin + 4 : begin + 8]
        yield begin, begin + size, kind
        if kind in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"dinf"):
            yield from boxes(data, begin + 8, begin + size)
        begin += size
