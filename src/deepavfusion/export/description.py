"""What a file says of itself: enough to feed it and to read its outputs, without this project."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from deepavfusion.export.formats import OPSET
from deepavfusion.export.graphs import Graph
from deepavfusion.inference.search.index import hash_of
from deepavfusion.inference.segment import class_names
from deepavfusion.inference.tasks import recorded_classes
from deepavfusion.models.classifier import Classifier
from deepavfusion.models.segmenter import Segmenter
from deepavfusion.models.separator import Separator
from deepavfusion.runs.provenance import code_state, versions
from deepavfusion.tasks.base import Task
from deepavfusion.transforms.audio import FRAMES_PER_SECOND, HOP_LENGTH, LOG_OFFSET, N_FFT, N_MELS, SAMPLE_RATE
from deepavfusion.transforms.image import EVAL_ZOOM, IMAGENET_MEAN, IMAGENET_STD
from deepavfusion.utils.program import CLONE

VERSION = 1  # of this description; a number above it may mean other things by the same names


def describe(graph: Graph, network: Any, source: str | Path, kind: str) -> str:
    """JSON for the metadata of a file, see docs/python.md.

    Args:
        graph: what is exported.
        network: that the graph was made of, a task or an encoder.
        source: what it was read from.
        kind: key of `FORMATS`.
    """
    with torch.no_grad():
        example = {name: torch.zeros(1, *shape, dtype=dtype) for name, (dtype, shape) in graph.inputs().items()}
        outputs = graph(**example)
    known = versions()
    return json.dumps(
        {
            "format": VERSION,
            "network": type(graph.net).__name__.lower(),
            "modalities": graph.modalities,
            "preprocess": graph.preprocess,
            "inputs": {name: _shape(tensor) for name, tensor in example.items()},
            "outputs": {name: _shape(tensor) for name, tensor in outputs.items()},
            **_meaning(graph, network),
            "image": {"size": graph.image_size, "zoom": EVAL_ZOOM, "mean": IMAGENET_MEAN, "std": IMAGENET_STD},
            "audio": {
                "sample_rate": SAMPLE_RATE,
                "samples": graph.samples,
                "seconds": graph.frames / FRAMES_PER_SECOND,
                "frames": graph.frames,
                "n_fft": N_FFT,
                "hop_length": HOP_LENGTH,
                "n_mels": N_MELS,
                "log_offset": LOG_OFFSET,
            },
            "source": _source(network, source),
            "made_with": {
                "commit": code_state(CLONE)["commit"],
                **{name: known[name] for name in ("deepavfusion", "torch")},
                **({"opset": OPSET} if kind == "onnx" else {}),
            },
        },
        ensure_ascii=False,
    )


def _shape(tensor: torch.Tensor) -> dict[str, Any]:
    return {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": ["batch", *tensor.shape[1:]]}


def _meaning(graph: Graph, network: Any) -> dict[str, Any]:
    """How the outputs are to be read."""
    if isinstance(graph.net, Classifier):
        return {"heads": graph.heads, "classes": recorded_classes(network), "multi_label": graph.multi_label}
    if isinstance(graph.net, Segmenter):
        return {"classes": class_names(network) or ["sounding"], "exclusive": graph.net.num_classes > 1}
    return {"mask": graph.mask} if isinstance(graph.net, Separator) else {}


def _source(network: Any, source: str | Path) -> dict[str, Any]:
    """Where the weights come from; of a path on this machine, only the name."""
    path, shared = Path(source), str(source).startswith("hf://")
    found = {"checkpoint": str(source) if shared else path.name}
    if path.is_file():
        found["sha256"] = hash_of(path)
    origin = network.origin.described() if isinstance(network, Task) and network.origin else {}
    return {**origin, **found}
