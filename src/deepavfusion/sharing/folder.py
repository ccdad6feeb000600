"""Writes a network as a folder: its weights, and what builds it; nothing of the machine that trained it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from deepavfusion.config.records import shareable
from deepavfusion.utils.errors import UserError
from deepavfusion.utils.files import write_whole
from deepavfusion.utils.reading import read_text
from deepavfusion.weights.file import OPTIMIZER, checksum, read_file
from deepavfusion.weights.folder import FORMAT, config_text, separated
from deepavfusion.weights.hub import CONFIG, MAX_CONFIG, MODEL, address_of, source_of
from deepavfusion.weights.origin import Origin, origin_of
from deepavfusion.weights.weights import Weights, recognise, write_weights

# Of a .ckpt file, what only a training that continues needs; all else that holds numbers and tensors is kept.
TRAINING = (
    *("loops", "callbacks", "lr_schedulers", "hparams_name", "hyper_parameters", "ClipDataModule"),
    *("progress", "train_means", "train_means_of", "native_amp_scaling_state", "MixedPrecision"),
)
PLACES = ("pretrained", "image_weights", "audio_weights")  # keys of a model that name files of the machine
WORD = re.compile(r"\w[\w.+-]{0,79}", re.ASCII)


@dataclass
class Shared:
    """A checkpoint that was read to be shared.

    Args:
        source: its path, or its address with the commit.
        content: as `read_file` gives it.
        weights: see `recognise`.
        origin: where it comes from.
    """

    source: str | Path
    content: dict[str, Any]
    weights: Weights
    origin: Origin

    @property
    def record(self) -> dict[str, Any]:
        """Of its run; empty: there is none, so that it holds an encoder alone."""
        return self.weights.record if isinstance(self.weights.record.get("model"), dict) else {}


def open_shared(source: str | Path) -> Shared:
    """Read a checkpoint, ours or published.

    Raises:
        UserError: see `read_file` and `recognise`; or it is a ViT of one modality.
    """
    source = source_of(source)
    if address_of(source) is None and Path(source).is_symlink():
        source = Path(source).resolve()  # last.ckpt of a run that goes on names file after file
    content = read_file(source, without=OPTIMIZER)
    weights = recognise(content, source)
    if weights.kind == "vit":
        raise UserError(
            f"{source} is an MAE or AudioMAE ViT, of image or audio alone: a folder holds a network of this project; "
            "expected output=<file.safetensors>."
        )
    origin = origin_of(source, content)
    name = origin.data and Path(origin.data).name  # for a path was given as the name
    return Shared(source, content, weights, replace(origin, data=name))


def write_folder(shared: Shared, folder: Path) -> Path:
    """Write `model.safetensors` and `config.json`, from which `weights.file.read_file` gives the same network.

    Args:
        folder: is made if it is not there; other files in it are left alone.

    Raises:
        UserError: there are files of these names that this function has not written, they cannot be written, or the
            checkpoint holds something that is not shared.
    """
    tensors = dict(shared.content["state_dict"]) if shared.record else dict(shared.weights.tensors)
    try:
        content = _content(shared, tensors)
        text = config_text(content, checksum(tensors), shared.origin.date)
    except ValueError as error:
        raise UserError(
            f"{shared.source} cannot be written as a folder ({error}): use a checkpoint that train.py wrote."
        ) from None
    _check_own(folder / CONFIG)
    written = Weights(str(shared.source), "ours", tensors)
    try:
        write_weights(written, folder / MODEL)
        write_whole(folder / CONFIG, text)
        shutil.copymode(folder / CONFIG, folder / MODEL)  # safetensors lets nobody else read
    except OSError as error:
        raise UserError(f"output {folder} cannot be written ({error.strerror or error}): choose another.") from error
    return folder


def _check_own(path: Path) -> None:
    """Raise a `UserError` if there is a `config.json` that `write_folder` has not written."""
    if path.exists() or path.is_symlink():
        head = ""
        if path.is_file() and not path.is_symlink():
            head = read_text(path, MAX_CONFIG, "a config.json of convert.py")[:100]
        if not re.match(rf'\{{\s*"format": "{FORMAT}"', head):
            raise UserError(
                f"output {path} is there, and convert.py has not written it: it is left as it is; choose another "
                "output."
            )


def _content(shared: Shared, tensors: dict[str, Any]) -> dict[str, Any]:
    """What goes into `config.json`; its tensors are added to the network's."""
    if not shared.record:
        return {}
    without = {"state_dict", "record", "date", *OPTIMIZER, *TRAINING}
    kept = {key: value for key, value in shared.content.items() if key not in without}
    for key, value in kept.items():
        if key != "pytorch-lightning_version" and (text := _text_in(value)) is not None:
            raise ValueError(f"{key} holds the text {text!r:.60}")
    found: dict[str, Any] = {key: separated(value, key, tensors) for key, value in kept.items()}
    return found | {"record": _record(shared.record)}


def _record(record: Mapping[str, Any]) -> dict[str, Any]:
    """What of a record builds the network and says what it knows, without paths of the machine."""
    data = record.get("data")
    data = data if isinstance(data, dict) else {}
    found = {
        "task": str(record.get("task")),
        "model": _model(record["model"], "model"),
        "classes": record.get("classes", []),
        "data": {key: value for key, value in data.items() if isinstance(value, (bool, int, float))},
        "overrides": shareable(record.get("overrides")),
    }
    if isinstance(name := data.get("name"), str):
        found["data"]["name"] = Path(name).name
    if type(steps := record.get("steps")) is int:
        found["steps"] = steps
    return found


def _model(value: Any, name: str) -> Any:
    """The config of a model; of the files that it names, only those on the Hub are kept."""
    if isinstance(value, dict):
        return {key: _place(each) if key in PLACES else _model(each, f"{name}.{key}") for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_model(each, f"{name}.{n}") for n, each in enumerate(value)]
    if isinstance(value, str) and not WORD.fullmatch(value):
        raise ValueError(f"{name} is {value!r:.60}, expected a plain word")
    return value


def _place(value: Any) -> Any:
    try:
        return value if isinstance(value, str) and address_of(value) else None
    except UserError:
        return None


def _text_in(value: Any) -> str | None:
    """The first text in a value."""
    if isinstance(value, str):
        return value
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return next((text for each in inside if (text := _text_in(each)) is not None), None)
