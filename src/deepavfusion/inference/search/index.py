"""The index of a search: features of unimodal passes in an .npz file. That of a folder is kept up to date by itself."""

from __future__ import annotations

import math
import os
import textwrap
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepavfusion.config.ranges import RULES
from deepavfusion.data.lists.text import count
from deepavfusion.inference.features import UNIMODAL, Features, Remark, State, extract_features, states_of
from deepavfusion.inference.inputs import Inputs, read_input
from deepavfusion.inference.write.features import write_features
from deepavfusion.models.deepavfusion import DeepAVFusion
from deepavfusion.tasks.base import Task
from deepavfusion.utils.errors import UserError
from deepavfusion.utils.files import no_file, regular_file
from deepavfusion.utils.names import stem_of
from deepavfusion.weights.hub import CONFIG, MODEL, address_of, cached, local, missing

AGAIN = "python src/predict.py task=features passes=unimodal input=<folder> output=<file.npz>"
HEADERS: Any = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


@dataclass
class Index:
    """Features of unimodal passes, and the checkpoint (path, hash of its content) that they come from."""

    path: Path
    features: Features
    checkpoint: str
    sha256: str


def hash_of(source: str | Path) -> str:
    """SHA-256 of the content of a checkpoint: of its file, or of both files of a folder."""
    place, digest = local(source), sha256()
    for path in (place / CONFIG, place / MODEL) if place.is_dir() else (place,):
        with path.open("rb") as file:
            while part := file.read(2**22):
                digest.update(part)
    return digest.hexdigest()


def read_index(path: str | Path) -> Index:
    """The index in an .npz file of `write_features`, which may come from anyone.

    Raises:
        UserError: no such file, a damaged one, one of something else, or without unimodal passes.
    """
    path = Path(path)
    if wrong := no_file(path):
        raise UserError(f"index {path} {wrong}: expected a folder, or the .npz file of {AGAIN}.")
    try:
        arrays = _arrays(path)
        features = _features(arrays)
        found = str(arrays["checkpoint"]), str(arrays["checkpoint_sha256"])
    except _NoIndex as error:
        raise UserError(f"index {path} {error}: write it with {AGAIN}, or give the folder as index.") from None
    except Exception as error:  # of a damaged file, NumPy and zipfile raise nearly anything
        words = textwrap.shorten(f"{type(error).__name__}: {error}", 120, placeholder=" …")
        raise UserError(
            f"index {path} is damaged, or no features file ({words}): write it again with {AGAIN}, or give the folder "
            "as index."
        ) from error
    return Index(path, features, *found)


def checkpoint_of(index: Index) -> str:
    """The checkpoint that an index was made with.

    Raises:
        UserError: it would have to be fetched: an index may come from anyone, and does not choose what is.
    """
    address = address_of(index.checkpoint)
    if address and not (address.pinned and cached(address)):
        raise UserError(
            f"index {index.path} was made with {address}, which is not in the cache: fetch it with ckpt_path={address}."
        )
    return index.checkpoint


def matching(index: Index, checkpoint: str | Path) -> Index:
    """The index, if it was made with this checkpoint.

    Raises:
        UserError: it was not, or the checkpoint is not there.
    """
    if wrong := missing(checkpoint):
        raise UserError(
            f"index {index.path} was made with checkpoint {checkpoint}, which {wrong}: give that file as ckpt_path, or "
            f"write the index anew with {AGAIN}."
        )
    if hash_of(checkpoint) != index.sha256:
        raise UserError(
            f"index {index.path} was made with another checkpoint than {checkpoint} ({index.checkpoint}, as it was "
            f"then), so that distances mean nothing: write it anew with {AGAIN}, or give that checkpoint as ckpt_path."
        )
    return index


class _NoIndex(Exception):
    """Features that cannot be searched; the message is a clause."""


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of an .npz file that is not compressed, none of which takes more memory than the file has bytes."""
    size = regular_file(path).st_size
    with zipfile.ZipFile(path) as archive:
        if sum(info.file_size for info in archive.infolist()) > size:
            raise ValueError("it is compressed")
        for info in archive.infolist():
            with archive.open(info) as member:
                shape, _, dtype = HEADERS[np.lib.format.read_magic(member)](member)
            if dtype.hasobject or math.prod(shape) * dtype.itemsize > info.file_size:
                raise ValueError(f"{info.filename} is shorter than it says")
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _features(arrays: dict[str, NDArray[Any]]) -> Features:
    if "path" not in arrays or "failed_reason" not in arrays:
        raise _NoIndex("holds no features")
    if arrays["level"].item() != "pooled":
        raise _NoIndex("holds single tokens, expected their means (level=pooled)")
    if not arrays.get("checkpoint_sha256", np.array("")).item() or not set(UNIMODAL) <= set(arrays):
        raise _NoIndex("has no embeddings of unimodal passes, only joint ones, whose audio has met the image")
    texts = {name: _texts(arrays[name]) for name in ("path", "place", "modalities", "failed", "failed_reason")}
    texts |= {name: _texts(arrays[name]) for name in ("failed_place", "remark", "remark_reason")}
    paths, failed = texts["path"], texts["failed"]
    embeddings = {name: arrays[name] for name in UNIMODAL}
    dim = embeddings[UNIMODAL[0]].shape[-1]
    for name, values in embeddings.items():
        if values.dtype != np.float32 or values.shape != (len(paths), dim):
            raise ValueError(f"{name} has the shape {values.shape}")
    if not set(texts["modalities"]) <= {"image audio", "image", "audio"}:
        raise ValueError("its modalities are none")
    if not RULES["windows"].holds(windows := int(arrays["windows"])):  # as many are read of a query
        raise ValueError(f"it was made of {windows} windows")
    places = dict(zip(paths, texts["place"], strict=True))
    states = {
        name: State(int(size), int(modified))
        for names, prefix in ((paths, ""), (failed, "failed_"))
        for name, size, modified in zip(names, arrays[f"{prefix}size"], arrays[f"{prefix}modified_ns"], strict=True)
    }
    return Features(
        paths=paths,
        embeddings=embeddings,
        modalities=[each for _, each in zip(paths, texts["modalities"], strict=True)],
        places=texts["place"],
        states=states,
        failed=[Remark(*row) for row in zip(failed, texts["failed_reason"], texts["failed_place"], strict=True)],
        remarks=[
            Remark(name, reason, places[name])
            for name, reason in zip(texts["remark"], texts["remark_reason"], strict=True)
        ],
        level="pooled",
        windows=windows,
        image_size=int(arrays["image_size"]),
        audio_seconds=float(arrays["audio_seconds"]),
    )


def _texts(values: NDArray[Any]) -> list[str]:
    if values.ndim != 1 or values.dtype.kind != "U":
        raise ValueError("it has other values than texts")
    found = [str(value) for value in values]
    if any("\0" in value for value in found):  # no path has one
        raise ValueError("it has texts with a null character")
    return found


def folder_index(
    network: Task | DeepAVFusion,
    folder: str | Path,
    kept_in: Path,
    checkpoint: str | Path,
    digest: str,
    windows: int = 1,
    **reading: Any,
) -> tuple[Index, str]:
    """The index of a folder (or list) of files, and a line on what had to be done for it.

    It is kept in a file for each folder, checkpoint and number of windows. Only what is new, or has another size or
    time of change, is read.

    Args:
        network: of the checkpoint.
        folder: see `read_input`.
        kept_in: folder for the index.
        checkpoint: the file, folder or address that the network came from.
        digest: its hash.
        windows: per file, as of `extract_features`.
        reading: further arguments of it.

    Raises:
        UserError: nothing there, or none of it can be used.
    """
    inputs = read_input(folder, "index")
    key = sha256(f"{os.path.abspath(folder)}\0{digest}\0{windows}".encode(errors="surrogateescape")).hexdigest()[:16]
    path = kept_in / f"{stem_of(folder)}-{key}.npz"
    earlier, states = _earlier(path, inputs), dict(states_of(inputs))
    known = earlier.states if earlier else {}
    same = {name for name in inputs.files if name in states and known.get(name) == states[name]}
    left = Inputs({name: place for name, place in inputs.files.items() if name not in same})
    gone = len(known.keys() - inputs.files.keys())
    if earlier and not left.files and not gone:
        return Index(path, earlier, str(checkpoint), digest), f"index {path}: nothing changed, reused as it is"
    parts = [earlier] if earlier else []
    if left.files:
        parts.append(extract_features(network, left, windows=windows, passes="unimodal", **reading))
    features = _merged(parts, inputs, same)
    write_features(features, path, str(checkpoint), digest)
    done = f"built, {count(len(features), 'file')}"
    if earlier:
        done = f"{len(left.files)} new or changed, {gone} gone, {len(same)} reused"
    return Index(path, features, str(checkpoint), digest), f"index {path}: {done}"


def _earlier(path: Path, inputs: Inputs) -> Features | None:
    """The index of an earlier search, if there is one, with today's names of the files, which may have been named
    relative to another folder; a damaged one is removed, as it can be made again."""
    if not os.path.lexists(path):
        return None
    try:
        found = read_index(path).features
    except UserError:
        path.unlink()
        return None
    names = {os.path.abspath(place): name for name, place in inputs.files.items()}
    places = [*zip(found.paths, found.places, strict=True), *((name, place) for name, _, place in found.failed)]
    new = {name: names.get(os.path.abspath(place), os.path.abspath(place)) for name, place in places}
    return replace(
        found,
        paths=[new[name] for name in found.paths],
        states={new[name]: state for name, state in found.states.items()},
        failed=[each._replace(path=new[each.path]) for each in found.failed],
        remarks=[each._replace(path=new[each.path]) for each in found.remarks],
    )


def _merged(parts: list[Features], inputs: Inputs, same: Iterable[str]) -> Features:
    """Rows of the earlier index that are the `same`, and new ones, in the order of the inputs."""
    kept, number = set(same), {name: n for n, name in enumerate(inputs.files)}
    rows: list[tuple[int, int, int]] = []  # position in the inputs, part, row
    failed, remarks, states = list[Remark](), list[Remark](), dict[str, State]()
    for n, part in enumerate(parts):
        old = len(parts) > 1 and n == 0
        taken = [name in number and (not old or name in kept) for name in part.paths]
        rows += [(number[name], n, row) for row, name in enumerate(part.paths) if taken[row]]
        failed += [each for each in part.failed if each.path in number and (not old or each.path in kept)]
        used = {name for name, take in zip(part.paths, taken, strict=True) if take}
        remarks += [each for each in part.remarks if each.path in used]
        states |= {name: state for name, state in part.states.items() if not old or name in kept}
    rows.sort()
    first = parts[-1]
    begins = np.cumsum([0, *(len(part) for part in parts)])
    order = np.array([begins[n] + row for _, n, row in rows], np.int64)

    def joined(values: list[list[str]]) -> list[str]:
        return [values[n][row] for _, n, row in rows]

    return Features(
        paths=joined([part.paths for part in parts]),
        embeddings={
            name: np.concatenate([part.embeddings[name] for part in parts])[order] for name in first.embeddings
        },
        modalities=joined([part.modalities for part in parts]),
        places=joined([part.places for part in parts]),
        states=states,
        failed=sorted(failed, key=lambda each: number[each.path]),
        remarks=sorted(remarks, key=lambda each: number[each.path]),
        level="pooled",
        windows=first.windows,
        image_size=first.image_size,
        audio_seconds=first.audio_seconds,
        notes=inputs.notes,
    )
