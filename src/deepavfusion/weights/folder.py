"""A network as a folder: `model.safetensors` and `config.json`, from which it is built; nothing else is read there.

`config.json` holds what a .ckpt file has besides its tensors and what only training needs, in its form, with
`{"tensor": name}` for a tensor that is not of the network. sharing/folder.py writes both.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from deepavfusion.utils.errors import UserError
from deepavfusion.utils.files import no_file
from deepavfusion.utils.reading import read_json
from deepavfusion.utils.structure import Among, ListOf, Maybe, misfit
from deepavfusion.weights.hub import CONFIG, MAX_CONFIG, MODEL, PICKLES

FORMAT, VERSION = "deepavfusion", 1
MAX_DEPTH = 32
EXPECTED = f"a folder that convert.py wrote, with {CONFIG} and {MODEL}"
DATE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d", re.ASCII)
RECORDED = Among(
    {
        "task": "",
        "model": Among({}),
        "classes": Maybe(ListOf("")),
        "data": Maybe(Among({})),
        "overrides": Maybe(ListOf("")),
        "steps": Maybe(0),
    }
)
LIKE = {
    "format": "",
    "format_version": 0,
    "crc32": "",
    "date": "",
    "content": Among(
        {"global_step": Maybe(0), "epoch": Maybe(0), "pytorch-lightning_version": Maybe(""), "record": Maybe(RECORDED)}
    ),
}


class OtherFolder(Exception):
    """A folder that does not hold a network; the message is a clause."""


def check_folder(folder: Path) -> None:
    """Check that a folder has the two files, which lie in it.

    Raises:
        UserError: one is missing, no regular file, or a link that leads elsewhere.
    """
    if not (folder / CONFIG).exists() or not (folder / MODEL).exists():
        lacking = MODEL if (folder / CONFIG).exists() else CONFIG
        raise UserError(
            f"checkpoint {folder} cannot be read (it is a folder, not a regular file, and has no "
            f"{lacking}{_instead(folder)}): expected a checkpoint of this project, a file or {EXPECTED}."
        )
    for name in (CONFIG, MODEL):
        if wrong := no_file(folder / name):
            raise UserError(f"{folder / name} {wrong}: expected {EXPECTED}.")
        if not _lies_in(folder, (folder / name).resolve()):
            raise UserError(
                f"{folder / name} is a link that leads out of its folder; it was not read: expected {EXPECTED}, put "
                "the file itself there."
            )


def _instead(folder: Path) -> str:
    """A clause on what else is there."""
    if (folder / "checkpoints").is_dir():
        return f" and is the directory of a run, whose checkpoint is {folder / 'checkpoints' / 'last.ckpt'}"
    found = sorted(path.name for _, path in zip(range(1000), folder.iterdir(), strict=False))
    pickles = [name for name in found if name.endswith(PICKLES)]
    if not pickles:
        return ""
    return f" but {pickles[0]:.80}, a pickle, which is not read from a folder"


def _lies_in(folder: Path, place: Path) -> bool:
    """Whether a file is in a folder, or where the cache of huggingface_hub keeps the files that its folders link to."""
    folder = folder.resolve()
    places = [folder]
    if folder.parent.name == "snapshots":  # <cache>/models--owner--name/snapshots/<commit>
        places += [folder.parents[1] / "blobs", folder.parents[2] / "blobs"]
    return any(each in place.parents for each in places)


def read_config(path: Path) -> dict[str, Any]:
    """The content of a `config.json`, checked.

    Raises:
        UserError: it cannot be read, is of another version or program, or holds something else than expected.
    """
    config = read_json(path, MAX_CONFIG, "a network's config.json, as convert.py writes it", _unlike)
    try:
        return _checked(config)
    except OtherFolder as error:
        raise UserError(f"{path} {error}: write the folder again with convert.py, or fetch it again.") from None


def _checked(config: Any) -> dict[str, Any]:
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise OtherFolder(f'is of another program (no "format": "{FORMAT}")')
    if (version := config.get("format_version")) != VERSION:
        newer = type(version) is int and version > VERSION
        remedy = "; update this code" if newer else ""
        raise OtherFolder(f"is of format_version {version!r:.20}, this code reads {VERSION}{remedy}")
    if _depth(config) > MAX_DEPTH:
        raise OtherFolder("is nested too deeply")
    if wrong := misfit(config, LIKE, ""):
        raise OtherFolder(wrong)
    if not DATE.fullmatch(config["date"]):
        raise OtherFolder(f"has the date {config['date']!r:.40}, expected one like 2026-01-31 23:59")
    if any(value != value or value in (float("inf"), -float("inf")) for value in _leaves(config, float)):
        raise OtherFolder("has a number that is not finite")
    return config


def assembled(config: Mapping[str, Any], tensors: dict[str, Tensor] | None, path: Path) -> dict[str, Any]:
    """The content of a folder in the form of a .ckpt file.

    Args:
        config: see `read_config`.
        tensors: of `model.safetensors`; None: they were not read, and what has some is left as it is.
        path: of the folder.

    Raises:
        UserError: the config names a tensor that the file lacks.
    """
    if tensors is None:
        return {**config["content"], "date": config["date"]}
    state = dict(tensors)
    try:
        content = _with_tensors(config["content"], tensors, state)
    except OtherFolder as error:
        raise UserError(f"{path / CONFIG} {error}: write the folder again with convert.py.") from None
    return {**content, "date": config["date"], "state_dict": state}


def _with_tensors(value: Any, tensors: Mapping[str, Tensor], state: dict[str, Tensor]) -> Any:
    """The value with tensors where it names them, which are taken out of the network's."""
    if isinstance(value, dict):
        if value.keys() == {"tensor"}:
            if not isinstance(name := value["tensor"], str) or name not in tensors:
                raise OtherFolder(f"names the tensor {name!r:.80}, which {MODEL} does not have")
            state.pop(name, None)
            return tensors[name]
        return {key: _with_tensors(each, tensors, state) for key, each in value.items()}
    return [_with_tensors(each, tensors, state) for each in value] if isinstance(value, list) else value


def separated(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """A value without its tensors, which are added to `tensors`; `assembled` puts them back.

    Raises:
        ValueError: it holds something else than numbers, texts and tensors; the message says where.
    """
    if isinstance(value, Tensor):
        if name in tensors:
            raise ValueError(f"{name} is there twice")
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: separated(each, f"{name}.{key}", tensors) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [separated(each, f"{name}.{n}", tensors) for n, each in enumerate(value)]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ValueError(f"{name} is a {type(value).__name__}")


def config_text(content: Mapping[str, Any], crc32: str, date: str) -> str:
    """The text of a `config.json`.

    Raises:
        ValueError: a number is not finite.
    """
    config = {"format": FORMAT, "format_version": VERSION, "crc32": crc32, "date": date, "content": content}
    return json.dumps(config, indent=2, allow_nan=False) + "\n"


def _unlike(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose names are unlike: readers differ in which of two they take."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name is there twice")
    return found


def _depth(value: Any) -> int:
    """How deeply containers are nested; at most one more than `MAX_DEPTH` is counted."""
    level, depth = [value], 0
    while level and depth <= MAX_DEPTH:
        level = [
            each
            for parent in level
            if isinstance(parent, (dict, list))
            for each in (parent.values() if isinstance(parent, dict) else parent)
        ]
        depth += 1
    return depth


def _leaves(value: Any, kind: type) -> Iterator[Any]:
    if isinstance(value, (dict, list)):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _leaves(each, kind)
    elif isinstance(value, kind):
        yield value
