"""Compares an exported file with the network it was made of, on real input."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from deepavfusion.export.formats import Run
from deepavfusion.export.graphs import Graph
from deepavfusion.inference.video import open_partial
from deepavfusion.transforms.audio import SAMPLE_RATE, LogMel, extend_by_mirror
from deepavfusion.transforms.image import Normalise, centre_view

BATCHES = (1, 5)


def demo_clip(data: Path) -> Path | None:
    """A generated clip in the folder of the datasets, always the same; None: there is none."""
    return min((data / "demo").glob("*/clips/**/*.mp4"), default=None)


def inputs_of(graph: Graph, path: Path | None, count: int = max(BATCHES)) -> dict[str, Tensor]:
    """What a graph takes, `count` rows: windows that lie evenly in a file, each with the frame in its middle.

    Args:
        path: a file with the modalities that the graph takes; None: noise.

    Raises:
        UserError: the file lacks one of them, or does not decode.
    """
    image, waveform = _noise(graph, count) if path is None else _windows(graph, path, count)
    if not graph.preprocess:
        image = None if image is None else Normalise()(image)
        waveform = None if waveform is None else LogMel()(waveform)
    given = [tensor for tensor in (image, waveform) if tensor is not None]
    return dict(zip(graph.inputs(), given, strict=True))


def differences(graph: Graph, run: Run, inputs: dict[str, Tensor]) -> dict[str, dict[int, float]]:
    """{output: {batch: largest absolute difference}} between a graph and what runs its file; nan where one is nan."""
    found: dict[str, dict[int, float]] = {}
    for batch in BATCHES:
        rows = {name: tensor[:batch].contiguous() for name, tensor in inputs.items()}
        with torch.no_grad():
            expected = graph(**rows)
        outputs = run(rows)
        for name, tensor in expected.items():
            assert outputs[name].shape == tensor.shape, (name, outputs[name].shape, tensor.shape)
            found.setdefault(name, {})[batch] = (outputs[name] - tensor).abs().max().item()
    return found


def _windows(graph: Graph, path: Path, count: int) -> tuple[Tensor | None, Tensor | None]:
    """uint8 [count, 3, H, W], float32 [count, T]"""
    seconds, needs = graph.samples / SAMPLE_RATE, graph.modalities
    image = waveform = None
    with open_partial(path, "used as check") as media:
        for kind in [kind for kind, stream in (("video", "image"), ("audio", "audio")) if stream in needs]:
            media.require(kind)
        end = media.info.audio_end if "audio" in needs else media.info.video_end
        starts = [n * max(0.0, end - seconds) / max(count - 1, 1) for n in range(count)]
        if "image" in needs:
            frames = [Image.fromarray(frame) for frame in media.frames([start + seconds / 2 for start in starts])]
            view = centre_view(frames[0].height, frames[0].width)
            image = torch.stack([view.of(frame, graph.image_size) for frame in frames])
        if "audio" in needs:
            parts = [media.audio(start, seconds, SAMPLE_RATE) for start in starts]
            waveform = torch.stack([extend_by_mirror(part, graph.samples) for part in parts])
    return image, waveform


def _noise(graph: Graph, count: int) -> tuple[Tensor | None, Tensor | None]:
    random, size = torch.Generator().manual_seed(0), graph.image_size
    image = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=random)
    waveform = 0.2 * torch.rand(count, graph.samples, generator=random) - 0.1
    return (image if "image" in graph.modalities else None), (waveform if "audio" in graph.modalities else None)
