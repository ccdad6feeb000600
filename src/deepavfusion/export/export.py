"""Writes a network as a file that runs without this project, and checks the file against the network."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from deepavfusion.config.compose import root_folder
from deepavfusion.export.check import demo_clip, differences, inputs_of
from deepavfusion.export.description import describe
from deepavfusion.export.formats import FORMATS, Format, check_packages
from deepavfusion.export.graphs import Graph
from deepavfusion.export.spectra import ExportedLogMel, ExportedMelMask
from deepavfusion.inference.encoders import open_network
from deepavfusion.utils.errors import UserError, full_disk_named
from deepavfusion.utils.files import regular_file


@dataclass
class Exported:
    """A file that was written and checked.

    Attributes:
        files: the file, and behind it the one that it reads its weights from, if it has more than 2 GiB.
        graph: what is in it.
        summary: of the network.
        checked_on: the file that it was checked on; None: noise.
        differences: {output: {batch: largest absolute difference to the network}}.
        seconds: that tracing, writing and checking took.
    """

    files: list[Path]
    graph: Graph
    summary: str
    checked_on: Path | None
    differences: dict[str, dict[int, float]]
    seconds: float

    def lines(self) -> Iterator[str]:
        """For the terminal."""
        yield self.summary
        for name, (dtype, shape) in self.graph.inputs().items():
            yield f"  input {name}: {str(dtype).removeprefix('torch.')} [batch, {', '.join(map(str, shape))}]"
        for name, found in self.differences.items():
            batches = ", ".join(f"{value:.1e} (batch {batch})" for batch, value in found.items())
            yield f"  output {name}: differs from the network by at most {batches}"
        checked = self.checked_on or "noise; check=<video> takes a clip"
        size, files = sum(path.stat().st_size for path in self.files), " and ".join(map(str, self.files))
        yield f"written to {files}, {size / 1e6:.1f} MB in {self.seconds:.0f} s; checked on {checked}"


def export_checkpoint(
    source: str | Path,
    output: str | Path,
    kind: str,
    modality: str = "both",
    head: bool = True,
    preprocess: bool = True,
    check: str | Path | None = None,
) -> Exported:
    """Export the network of a checkpoint.

    Args:
        source: see `inference.encoders.open_network`.
        output: file to write, `.onnx` or `.pt2`; one that this function wrote is replaced.
        kind: "onnx" or "torch".
        modality, head, preprocess: see `graphs.Graph`.
        check: a video, or what has the modality, to compare the file with the network on; None: a clip of the demo
            data, or noise where there is none.

    Raises:
        UserError: the checkpoint, the output or the video cannot be used; a package is missing; or an output of the
            file differs by more than the format's bound, and the file is removed.
    """
    form, path, begin = FORMATS[kind], Path(output), time.monotonic()
    if kind == "onnx":
        check_packages()
    _check_output(form, path)
    network, summary = open_network(source)
    graph = Graph(network, modality, head, preprocess)
    clip = demo_clip(root_folder() / "data") if check is None else Path(check)
    inputs = inputs_of(graph, clip)
    written = graph
    if kind == "onnx":
        written = Graph(network, modality, head, preprocess, ExportedLogMel(), ExportedMelMask(graph.samples))
    description = describe(graph, network, source, kind)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name[:50]}.", dir=path.parent) as folder:
            with full_disk_named(path):
                partial = form.write(written, description, Path(folder, path.name))
            found = differences(graph, form.open(partial[0]), inputs)
            _check_differences(form, found, clip, graph)
            files = [path.with_name(each.name) for each in partial]
            for each, final in reversed([*zip(partial, files, strict=True)]):
                each.replace(final)
    except OSError as error:
        raise UserError(
            f"output {path} cannot be written: {error.strerror or error}; choose another output."
        ) from error
    summary = summary.removeprefix("encoder of ") if head else summary
    return Exported(files, graph, summary, clip, found, time.monotonic() - begin)


def _check_output(form: Format, path: Path) -> None:
    if path.suffix != form.suffix:
        raise UserError(f"output {path}: expected a name that ends in {form.suffix}.")
    beside = path.with_name(f"{path.name}.data")
    for each in (path, beside):
        if os.path.lexists(each) and not _is_ours(form, path):
            raise UserError(
                f"output {each} is there, and convert.py has not written it: it is left as it is; choose another "
                "output."
            )


def _is_ours(form: Format, path: Path) -> bool:
    try:
        regular_file(path)
        return form.is_ours(path)
    except OSError:
        return False


def _check_differences(form: Format, found: dict[str, dict[int, float]], clip: Path | None, graph: Graph) -> None:
    for name, by_batch in found.items():
        for batch, value in by_batch.items():
            if not value <= form.bound:  # nor nan
                advice = "check=<another video>"
                if "waveform" in graph.inputs() and form.suffix == ".onnx":
                    advice += ", or preprocess=false, which leaves out the log-mel, the part that is not equal to 1e-6"
                raise UserError(
                    f"the exported {name} differs from the network by {value:.1e} in a batch of {batch} on "
                    f"{clip or 'noise'}, expected at most {form.bound:g}, so the file was removed: give {advice}."
                )
