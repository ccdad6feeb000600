"""Writes embeddings: one .npz, and a list of the videos that failed."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepavfusion.data.lists.text import count
from deepavfusion.inference.features import Features, Remark
from deepavfusion.inference.write.saving import made, saving
from deepavfusion.utils.errors import UserError
from deepavfusion.utils.files import check_ours, regular_file, whole

HEAD = "# videos that failed, of predict.py task=features: why, and the path"
SHOWN = 3  # files named in a message


def write_features(features: Features, output: str | Path, checkpoint: str = "", sha256: str = "") -> Path | None:
    """Write an .npz atomically, and beside it a list of the files that failed, <name>_failed.txt, if any did.

    `np.load` reads it without pickle: `path`, `modalities`, and the embeddings, in general `image`, `audio` and
    `fusion`, a row each; `failed` and `failed_reason`, `remark` and `remark_reason` (paths with reasons); the settings:
    `checkpoint`, `level`, `windows`, `image_size` (pixels) and `audio_seconds`; and by what a search knows whether it
    still holds: `place` (absolute path), `size` (bytes) and `modified_ns`, also as `failed_…`, `checkpoint_sha256`.

    Args:
        features: of `extract_features`.
        output: a name that ends in .npz; an earlier one is replaced.
        checkpoint: the file that the encoder came from.
        sha256: of its content, in hexadecimal digits; empty: unknown, so that no search can use the file.

    Returns:
        The list of the videos that failed, None if none did.

    Raises:
        UserError: no video could be used (the list is still written); the files cannot be written.
    """
    output = check_output(output)
    failed = _failed_list(output)
    with saving(output):
        with suppress(FileNotFoundError):
            failed.unlink()  # of an earlier run
        if features.failed:
            lines = (f"# {reason}\n{Path(place).absolute()}\n" for _, reason, place in features.failed)
            with whole(failed) as partial:
                partial.write_text("".join([f"{HEAD}\n", *lines]), encoding="utf-8", errors="surrogateescape")
        if not len(features):
            raise UserError(
                f"none of {count(len(features.failed), 'file')} could be used ({'; '.join(_first(features.failed))}), "
                f"see {failed}: expected complete files with frames, audio or both."
            )
        failures = [failure.path for failure in features.failed]
        settings = {name: getattr(features, name) for name in ("level", "windows", "image_size", "audio_seconds")}
        arrays: dict[str, Any] = {
            "path": _texts(features.paths),
            "modalities": _texts(features.modalities),
            **features.embeddings,
            "place": _texts(features.places),
            **_states(features, features.paths),
            "failed": _texts(failures),
            "failed_reason": _texts(failure.reason for failure in features.failed),
            "failed_place": _texts(failure.place for failure in features.failed),
            **{f"failed_{key}": values for key, values in _states(features, failures).items()},
            "remark": _texts(remark.path for remark in features.remarks),
            "remark_reason": _texts(remark.reason for remark in features.remarks),
            "checkpoint": np.array(checkpoint),
            "checkpoint_sha256": np.array(sha256),
            **settings,
        }
        with whole(output) as partial, partial.open("wb") as file:
            np.savez(file, **arrays)
    return failed if features.failed else None


def check_output(output: str | Path) -> Path:
    """The path of a features file; makes its folder.

    Raises:
        UserError: it does not end in .npz, the folder cannot be made or written to, or there are files of such names
            that are not ours.
    """
    path = Path(output)
    if path.suffix != ".npz" or os.path.isdir(path):
        raise UserError(f"output={output} is not the name of a features file: expected one that ends in .npz.")
    if not os.access(made(path.parent), os.W_OK):
        raise UserError(f"folder {path.parent} cannot be written to; give another output.")
    if os.path.lexists(path) and not _is_ours(path):
        raise UserError(f"output {path} is there, and holds no features: it is left as it is; choose another output.")
    _failed_list(path)
    return path


def _is_ours(path: Path) -> bool:
    """Whether a file is what `write_features` wrote."""
    try:
        regular_file(path)
        with zipfile.ZipFile(path) as archive:
            return {f"{name}.npy" for name in ("path", "failed_reason", "level", "audio_seconds")} <= {
                *archive.namelist()
            }
    except (OSError, ValueError, zipfile.BadZipFile):
        return False


def _failed_list(output: Path) -> Path:
    """The list of the videos that failed; a `UserError` if there is something else of its name."""
    path = output.with_name(f"{output.stem}_failed.txt")
    # Those beside files of earlier commits have a reason in their first line, of a kind.
    check_ours(path, "# " if _is_ours(output) else HEAD, "choose another output")
    return path


def summary(features: Features, output: Path, failed: Path | None) -> list[str]:
    """What was written, in lines for the terminal."""
    total = len(features) + len(features.failed)
    shapes = ", ".join(f"{name} {list(values.shape)}" for name, values in features.embeddings.items())
    windows = f"{count(features.windows, 'window')} of {features.audio_seconds:g} s"
    level = "means over the tokens" if features.level == "pooled" else "tokens"
    lines = [f"Written to {output}: {len(features)} of {count(total, 'file')}; {level}, {windows}: {shapes}"]
    lines += [f"  {note}" for note in features.notes]
    lines += [f"  {line}" for line in _partial(features)]
    for remarks, title in (
        (features.failed, f"failed, listed in {failed} and in the file (failed, failed_reason)"),
        (features.remarks, "used with a remark, listed in the file (remark, remark_reason)"),
    ):
        if remarks:
            lines += [f"  {len(remarks)} {title}:", *(f"    {line}" for line in _first(remarks))]
    return lines


def _partial(features: Features) -> Iterator[str]:
    """What the rows are made of that lack a modality."""
    for present, absent in (("image", "audio"), ("audio", "image")):
        alone = [path for path, found in zip(features.paths, features.modalities, strict=True) if found == present]
        if alone:
            more = f" and {len(alone) - SHOWN} more" if len(alone) > SHOWN else ""
            yield (
                f"{len(alone)} with {present} alone (modalities): fusion is of {present} only, {absent} is nan: "
                f"{', '.join(alone[:SHOWN])}{more}"
            )


def _first(remarks: list[Remark]) -> list[str]:
    more = [f"and {len(remarks) - SHOWN} more"] if len(remarks) > SHOWN else []
    return [*(f"{remark.path}: {remark.reason}" for remark in remarks[:SHOWN]), *more]


def _states(features: Features, names: Sequence[str]) -> dict[str, NDArray[np.int64]]:
    """Size and time of files; −1 of those that were not there."""
    states = np.array([features.states.get(name, (-1, -1)) for name in names], np.int64).reshape(-1, 2)
    return {"size": states[:, 0], "modified_ns": states[:, 1]}


def _texts(values: Iterable[str]) -> NDArray[np.str_]:
    return np.array(list(values), dtype=np.str_)
