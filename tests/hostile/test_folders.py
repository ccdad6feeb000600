"""Folders of networks from anyone: what is wrong with their two files is said in one sentence, and nothing runs."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from deepavfusion.inference.encoders import open_network
from deepavfusion.inference.tasks import load_task
from deepavfusion.sharing.folder import open_shared, write_folder
from deepavfusion.weights.file import checksum
from helpers.checkpoints import write_classifier
from hostile.conftest import Refused


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("network")
    path = write_classifier(place / "last.ckpt")
    content = torch.load(path, weights_only=True)
    dim = load_task(path).net.embedding_dim
    content["novelty"] = {"mean": torch.zeros(dim), "whitening": torch.eye(dim), "threshold": 2.5}
    torch.save(content, path)
    return write_folder(open_shared(path), place / "folder")


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "folder")


def at(*names: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    """Set a value of the config; `...` removes it."""

    def change(config: dict[str, Any]) -> None:
        for name in names[:-1]:
            config = config[name]
        if value is ...:
            del config[names[-1]]
        else:
            config[names[-1]] = value

    return change


def both(name: str, value: int) -> Callable[[dict[str, Any]], None]:
    """Set a value of both encoders."""

    def change(config: dict[str, Any]) -> None:
        for stream in ("image", "audio"):
            config["content"]["record"]["model"]["net"][stream][name] = value

    return change


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


RECORD = ("content", "record")
MODEL = (*RECORD, "model")
CONFIGS: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "another program": (at("format", value="transformers"), "is of another program"),
    "no format": (at("format", value=...), "is of another program"),
    "a newer version": (at("format_version", value=2), "is of format_version 2, this code reads 1; update this code"),
    "an odd version": (at("format_version", value=True), "format_version is True, expected"),
    "a text as version": (at("format_version", value="1"), "is of format_version '1'"),
    "more": (at("auto_map", value={"AutoModel": "evil_module.Evil"}), "has 'auto_map', which is unknown"),
    "no checksum": (at("crc32", value=...), "has no 'crc32'"),
    "another checksum": (at("crc32", value="1"), "holds other values than those"),
    "a fusion": (at(*MODEL, "net", "fusion", value="eval"), "folder records an impossible model: model.net.fusion is"),
    "digits of another script": (at("date", value="٢٠٢٦-01-01 00:00"), "has the date"),
    "a date": (at("date", value="\x1b[31mtoday"), "has the date"),
    "a list": (at("content", value=[]), "content is a list of 0"),
    "no record": (at("content", "record", value="x"), "content.record is 'x'"),
    "no task": (at(*RECORD, "task", value=...), "has no 'task'"),
    "another task": (at(*RECORD, "task", value="segment"), "is a checkpoint of segment"),
    "classes": (at(*RECORD, "classes", value="abc"), "classes is 'abc', expected a list"),
    "numbers as classes": (at(*RECORD, "classes", value=[1, 2, 3]), "classes[0] is 1"),
    "a long class": (at(*RECORD, "classes", value=["a", "b", "c" * 10_001]), "names of at most 10000 characters"),
    "negative steps": (at("content", "global_step", value=-1), "global_step is -1"),
    "os.system": (at(*MODEL, "_target_", value="os.system"), "wants to build os.system"),
    "code inside": (at(*MODEL, "net", "image", value=[{"_target_": "evil_module.Evil"}]), "wants to build evil_module"),
    "a function": (at(*MODEL, "net", "_target_", value="deepavfusion.models.mae.random_patch_mask"), "wants to build"),
    "what is imported": (at(*MODEL, "net", "_target_", value="deepavfusion.models.vit.Tensor"), "wants to build"),
    "a partial": (at(*MODEL, "net", "_partial_", value=True), "does not fit this version"),
    "an interpolation": (at(*MODEL, "optimizer", value="${oc.env:HOME}"), "has ${…} in its record"),
    "a huge network": (at(*MODEL, "net", "image", "embed_dim", value=10**9), "impossible model"),
    "a deeper network": (both("depth", 6), "does not fit"),
    "another size": (both("embed_dim", 64), "does not fit"),
    "a text as size": (at(*MODEL, "net", "image", "embed_dim", value="32"), "impossible model"),
    "an unknown key": (at(*MODEL, "evil", value=1), "does not fit"),
    "classes that do not fit": (at(*MODEL, "num_classes", value=7), "does not fit"),
    "a missing tensor": (at("content", "novelty", "mean", value={"tensor": "x"}), "names the tensor 'x'"),
    "a tensor of another shape": (at("content", "novelty", "mean", value={"tensor": "novelty.whitening"}), "novelty"),
    "a tensor of the network": (
        at("content", "novelty", "mean", value={"tensor": "net.image_head.bias"}),
        "net.image_head.bias is in the model and not in the file",
    ),
    "a list as tensor": (at("content", "novelty", "mean", value={"tensor": []}), "names the tensor []"),
    "a threshold": (at("content", "novelty", "threshold", value=-1.0), "no threshold"),
    "nesting": (at(*MODEL, "net", "fusion_layers", value=nested(40)), "nested too deeply"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_changed_config_is_refused(name: str, folder: Path, refused: Refused) -> None:
    change, words = CONFIGS[name]
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    expected = "classify" if name == "another task" else None
    refused(lambda: load_task(folder, expected), words)


TEXTS: dict[str, tuple[Callable[[str], str | bytes], str]] = {
    "empty": (lambda text: "", "cannot be read as JSON"),
    "html": (lambda text: "<html>", "cannot be read as JSON"),
    "a list": (lambda text: "[]", "is of another program"),
    "a pickle": (lambda text: b"\x80\x02cos\nsystem\n(S'touch evil'\ntR.", "cannot be read as JSON"),
    "nan": (lambda text: text.replace('"epoch": 1', '"epoch": NaN'), "expected a whole number"),
    "a name twice": (lambda text: text.replace("{", '{"format": "deepavfusion",', 1), "a name is there twice"),
    "deep": (lambda text: "[" * 200_000, "config.json"),
    "large": (lambda text: text + " " * 5_000_000, "has 5"),
    "many values": (lambda text: '{"a": [' + "[]," * 1_000_000 + "1]}", "would take"),
    "UTF-16": (lambda text: text.encode("utf-16"), "cannot be read as JSON"),
    "a long number": (lambda text: text.replace('"epoch": 1', '"epoch": ' + "9" * 5000), "cannot be read as JSON"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_what_is_no_config_is_refused(name: str, folder: Path, refused: Refused) -> None:
    change, words = TEXTS[name]
    text = change((folder / "config.json").read_text())
    (folder / "config.json").write_bytes(text.encode() if isinstance(text, str) else text)
    refused(lambda: load_task(folder), words)


def rewritten(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Change the tensors, and the checksum with them."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config["crc32"] = checksum(tensors)
    (folder / "config.json").write_text(json.dumps(config))


TENSORS: dict[str, tuple[Callable[[dict[str, torch.Tensor]], object], str]] = {
    "nan": (lambda t: t["net.image_head.bias"].fill_(float("nan")), "NaN or infinite"),
    "a nan threshold of novelty": (lambda t: t["novelty.mean"].fill_(float("inf")), "NaN or infinite"),
    "one is missing": (lambda t: t.pop("net.image_head.bias"), "net.image_head.bias is in the model"),
    "one more": (lambda t: t.update({"net.evil": torch.zeros(3)}), "net.evil"),
    "another shape": (lambda t: t.update({"net.image_head.bias": torch.zeros(9)}), "net.image_head.bias is [9]"),
    "whole numbers": (lambda t: t.update({"net.image_head.bias": torch.zeros(3, dtype=torch.int64)}), "torch.int64"),
}


@pytest.mark.parametrize("name", TENSORS)
def test_other_tensors_are_refused(name: str, folder: Path, refused: Refused) -> None:
    change, words = TENSORS[name]
    rewritten(folder, change)  # type: ignore[arg-type]
    refused(lambda: load_task(folder), words)


def test_other_files_are_refused(folder: Path, whole: Path, refused: Refused, tmp_path: Path) -> None:
    weights, config = folder / "model.safetensors", folder / "config.json"
    whole_bytes = weights.read_bytes()
    for data, words in (
        (whole_bytes[:-10], "truncated, damaged or something else"),
        (whole_bytes[:-1] + b"\x01", "truncated, damaged"),
        (b"\x80\x02cos\nsystem\n(S'touch evil'\ntR.", "would take more memory"),
        (b"\xff" * 8 + whole_bytes[8:], "would take more memory"),
        (whole_bytes[:7] + b"\x01" + whole_bytes[8:], "would take more memory"),
    ):
        weights.write_bytes(data)
        refused(lambda: load_task(folder), words)
    weights.unlink()
    refused(lambda: load_task(folder), "has no model.safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"evil")
    refused(lambda: open_network(folder), "has no model.safetensors but pytorch_model.bin, a pickle")
    weights.symlink_to(whole / "model.safetensors")
    refused(lambda: load_task(folder), "model.safetensors is a link that leads out of its folder")
    weights.unlink()
    shutil.copy(whole / "model.safetensors", weights)
    config.unlink()
    os.mkfifo(config)
    refused(lambda: load_task(folder), "it is a named pipe")
    config.unlink()
    config.mkdir()
    refused(lambda: load_task(folder), "it is a folder")
    refused(lambda: load_task(tmp_path / "nothing"), "does not exist")


def test_a_link_within_the_folder_is_read(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "data")
    (folder / "model.safetensors").symlink_to("data")
    assert load_task(folder).novelty.threshold == 2.5
