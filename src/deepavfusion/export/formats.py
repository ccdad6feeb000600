"""The two formats: how a graph is written, and how a file is run again."""

from __future__ import annotations

import io
import logging
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deepavfusion.export.graphs import Graph
from deepavfusion.utils.errors import UserError

Run = Callable[[dict[str, Tensor]], dict[str, Tensor]]
DOCUMENT = "deepavfusion"  # key of the description in a file's metadata; in a .pt2, with .json behind it
OPSET = 18  # of ONNX: what the exporter writes without converting it, and onnxruntime reads since 1.14
ONE_FILE = 2**31 - 2**26  # bytes of weights: protobuf ends at 2 GiB
PRODUCER = b"\x12\x0cdeepavfusion"  # as it stands in the first bytes of an ONNX file
PACKAGES = ("onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class Format:
    """
    Attributes:
        suffix: of the name of a file.
        bound: the largest difference to the network that an output may have.
        write: of a graph and its description, to a path; it returns the files written, whose names follow the path's.
        open: what runs the file at a path.
        is_ours: whether the file at a path is one that `write` wrote.
    """

    suffix: str
    bound: float
    write: Callable[[Graph, str, Path], list[Path]]
    open: Callable[[Path], Run]
    is_ours: Callable[[Path], bool]


def check_packages() -> None:
    """Raise a `UserError` if a package that export=onnx needs is not installed."""
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise UserError(
            f"export=onnx needs packages that are not installed ({', '.join(missing)}): "
            f"`{sys.executable} -m pip install {' '.join(PACKAGES)}` installs them."
        )


def traced(graph: Graph) -> torch.export.ExportedProgram:
    """The program of a graph, for batches of any size."""
    batch = torch.export.Dim("batch")
    example = {name: torch.zeros(2, *shape, dtype=dtype) for name, (dtype, shape) in graph.inputs().items()}
    with torch.no_grad(), _quietly():
        program = torch.export.export(graph, (), example, dynamic_shapes={name: {0: batch} for name in example})
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)  # where the code lies on this machine
    return program


def write_onnx(graph: Graph, description: str, path: Path) -> list[Path]:
    """Beside a network of more than 2 GiB lies its `.onnx.data`, which belongs to it."""
    check_packages()
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    program, names = traced(graph), [*graph.inputs()]
    outputs = list(program.call_spec.out_spec.context)  # names, in the order of the graph's outputs
    with _quietly():
        exported: Any = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            output_names=outputs,
            dynamic_shapes={name: {0: torch.export.Dim("batch")} for name in names},
            verbose=False,
        )
    model = exported.model
    ClearMetadataAndDocStringPass()(model)  # where the code lies on this machine
    model.producer_name, model.metadata_props[DOCUMENT] = "deepavfusion", description
    beside = sum(value.const_value.nbytes for value in model.graph.initializers.values()) > ONE_FILE
    exported.save(path, external_data=beside)
    return [path, *([path.with_name(f"{path.name}.data")] if beside else [])]


def open_onnx(path: Path) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        found = session.run(names, {name: tensor.numpy() for name, tensor in inputs.items()})
        return {name: torch.from_numpy(array) for name, array in zip(names, found, strict=True)}

    return run


def is_our_onnx(path: Path) -> bool:
    with path.open("rb") as file:
        return PRODUCER in file.read(32)


def write_torch(graph: Graph, description: str, path: Path) -> list[Path]:
    content = io.BytesIO()  # the library's own writer does not say why a file cannot be written
    with _quietly():
        torch.export.save(traced(graph), content, extra_files={f"{DOCUMENT}.json": description})
    path.write_bytes(content.getbuffer())
    return [path]


def open_torch(path: Path) -> Run:
    with _quietly():
        module: Any = torch.export.load(path).module()

    def run(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        with torch.no_grad():
            return module(**inputs)

    return run


def is_our_program(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith(f"/extra/{DOCUMENT}.json") for name in archive.namelist())
    except zipfile.BadZipFile:
        return False


@contextmanager
def _quietly() -> Iterator[None]:
    """Without what the exporters say of themselves."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


FORMATS = {
    "onnx": Format(".onnx", 1e-4, write_onnx, open_onnx, is_our_onnx),
    "torch": Format(".pt2", 1e-6, write_torch, open_torch, is_our_program),
}
