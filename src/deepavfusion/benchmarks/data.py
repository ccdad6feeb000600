"""Speed of the data path in one process: raw files against packed chunks, part by part."""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from deepavfusion.benchmarks.report import BenchmarkReport, Row, stacked_bars
from deepavfusion.data.collate import Collate
from deepavfusion.data.lists.clip_list import ClipList
from deepavfusion.data.samples import SampleSpec, WindowDataset
from deepavfusion.data.stores.pack import PackSettings, pack
from deepavfusion.data.stores.packed_list import packed_list
from deepavfusion.data.stores.raw import RawStore
from deepavfusion.data.stores.store import Store
from deepavfusion.media.encode import write_mp4
from deepavfusion.transforms.audio import LogMel
from deepavfusion.types import Clip
from deepavfusion.utils.console import track

PARTS = ("read", "frame", "audio", "crop", "mel")  # opening a file or fetching an item; decoding; the rest; log-mel


def measure(clips: int, image_size: int, rounds: int, seed: int, **film: Any) -> BenchmarkReport:
    """Make clips (`film`: see `write_clip`), pack them, and read random training windows of both, in turn.

    Returns:
        One row for each store (raw, packed) and place of the log-mel (cpu; device skips it): `data`, `mel`,
        `clips_per_second` (median of the rounds), and `<part>_ms`, the mean milliseconds a clip of each part. `read`
        is opening the file, or reading the item's numbers; `crop` is everything else: random draws, tensors, collating.
    """
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        made = []
        for n in track(range(clips), "writing clips", clips):
            path = Path(folder) / f"clip{n:03d}.mp4"
            write_clip(path, seed=seed + n, **film)
            made.append(Clip(path.stem, str(path), 0))
        raw = ClipList("train", made, ["clip"])
        pack({"train": raw}, Path(folder) / "packed", "benchmark", PackSettings(), workers=1)
        packed, store = packed_list(str(Path(folder) / "packed"), "train", "benchmark")
        readers = {"raw": _Reader(raw, RawStore(), image_size), "packed": _Reader(packed, store, image_size)}
        rows = _in_turn(readers, rounds)
    names = [f"{row['data']}, mel {row['mel']}: {row['clips_per_second']:.0f} clips/s" for row in rows]
    draw = partial(stacked_bars, rows, names, [f"{part}_ms" for part in PARTS], "milliseconds a clip")
    return BenchmarkReport(rows, "Reading clips, one process", draw)


def _in_turn(readers: dict[str, _Reader], rounds: int) -> list[Row]:
    """One warm-up round, then the variants alternate, so that a drift of the machine's speed affects all alike."""
    found: dict[tuple[str, str], list[dict[str, float]]] = {(n, mel): [] for n in readers for mel in ("cpu", "device")}
    for number in track(range(rounds + 1), "reading clips", rounds + 1):
        for (name, mel), spent in found.items():
            spent.append(readers[name].round(number, mel == "cpu"))
    rows = []
    for (name, mel), spent in found.items():
        seconds = {part: median(of_round[part] for of_round in spent[1:]) for part in ("clip", *PARTS)}
        milliseconds = {f"{part}_ms": 1e3 * seconds[part] for part in PARTS}
        rows.append({"data": name, "mel": mel, "clips_per_second": 1 / seconds["clip"], **milliseconds})
    return rows


class _Reader:
    """The real dataset over a store that measures its own time."""

    def __init__(self, clips: ClipList, store: Store, image_size: int) -> None:
        self.store, self.blocks, self.prefetch = store, store.blocks, store.prefetch
        self.room, self.again = store.room, store.again
        self.dataset = WindowDataset(clips, self, SampleSpec(image_size, train=True))
        self.collate, self.log_mel = Collate(self.dataset), LogMel()

    def round(self, number: int, mel: bool) -> dict[str, float]:
        """Every clip once: mean seconds of a clip, and of each part of it."""
        self.spent: dict[str, float] = defaultdict(float)
        begin = time.perf_counter()
        for item in range(len(self.dataset)):
            batch = self.collate([self.dataset[item, number * 1000 + item]])
            assert len(batch) == 1, batch.problems
            if mel:
                with self.part("mel"):
                    self.log_mel(batch.waveform)
        total = time.perf_counter() - begin
        self.spent["crop"] = total - sum(self.spent.values())
        self.spent["clip"] = total
        return {part: self.spent[part] / len(self.dataset) for part in ("clip", *PARTS)}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.spent[name] += time.perf_counter() - begin

    @contextmanager
    def open(self, clip: Clip) -> Iterator[Any]:
        """What the dataset uses of an `OpenClip`, timed."""
        with ExitStack() as stack:
            with self.part("read"):
                opened = stack.enter_context(self.store.open(clip))
            frames, audio = self.part("frame")(opened.frames), self.part("audio")(opened.audio)
            plain = ("audio_end", "video_end", "frames_at_once")
            yield SimpleNamespace(frames=frames, audio=audio, **{name: getattr(opened, name) for name in plain})
            with self.part("read"):
                stack.close()


def write_clip(path: Path, seconds: float, height: int, width: int, fps: float, sample_rate: int, seed: int) -> None:
    """An image with texture at several scales that pans in a circle, and two voices with a little noise."""
    rng = np.random.default_rng(seed)
    scene = np.zeros((height + 120, width + 120, 3), np.float32)
    for cells, weight in ((6, 90.0), (24, 50.0), (90, 25.0)):
        noise = Image.fromarray(rng.integers(0, 256, (cells, 2 * cells, 3), dtype=np.uint8))
        smooth = np.asarray(noise.resize((width + 120, height + 120), Image.Resampling.BICUBIC), np.float32)
        scene += weight / 128 * (smooth - 128)
    still = np.clip(scene + 128, 0, 255).astype(np.uint8)

    def frames() -> Iterator[NDArray[np.uint8]]:
        for n in range(round(seconds * fps)):
            y, x = (round(60 + 60 * f(2 * np.pi * n / fps / 5)) for f in (np.sin, np.cos))
            yield still[y : y + height, x : x + width]

    t = np.arange(round(seconds * sample_rate)) / sample_rate
    pitches = rng.uniform(150, 900, 2)
    voices = [sum(np.sin(2 * np.pi * pitch * k * t) / k for k in (1, 2, 3)) for pitch in pitches]
    wave = 0.25 * np.stack(voices) * (1 + np.sin(2 * np.pi * 1.5 * t)) / 2 + 0.01 * rng.standard_normal((2, len(t)))
    write_mp4(path, frames(), fps, wave.astype(np.float32), sample_rate, audio_bit_rate=128_000)
