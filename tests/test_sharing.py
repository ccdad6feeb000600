"""A checkpoint as a folder: the same network, nothing of the machine, and a card that says what is known."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard

from deepavfusion.commands import convert
from deepavfusion.config.ranges import RULES
from deepavfusion.inference.encoders import open_network
from deepavfusion.inference.tasks import load_task
from deepavfusion.models.deepavfusion import DeepAVFusion
from deepavfusion.models.vit import ViT
from deepavfusion.sharing.card import card
from deepavfusion.sharing.folder import open_shared, write_folder
from deepavfusion.sharing.share import share
from deepavfusion.utils.errors import ArgumentError, UserError
from deepavfusion.weights.weights import Weights, write_weights
from helpers.checkpoints import write_classifier, write_segmenter, write_separator
from helpers.hub import invalid

HOME = "/home/alice/secret"
PLACES = ("data.root", "model.pretrained", "+x", "paths.log_dir", "run.name")
EVIL = "a`b\n---\nlicense: mit\n# <script>alert(1)</script> [x](http://evil) | c \u202e"


def written(path: Path, **changes: Any) -> Path:
    """A classifier's checkpoint, with changes of its record and content."""
    write_classifier(path, changes.pop("classes", ["one", "two"]))
    content = torch.load(path, weights_only=True)
    content["record"] |= {key: value for key, value in changes.items() if key not in ("novelty", "baselines")}
    content |= {key: value for key, value in changes.items() if key in ("novelty", "baselines")}
    training = {"optimizer_states": [{}], "hyper_parameters": {"pretrained": HOME}}
    torch.save({**content, **training, "global_step": 150}, path)
    return path


def same(one: Any, other: Any) -> bool:
    mine, yours = one.state_dict(), other.state_dict()
    equal = [torch.equal(mine[name], yours[name]) and mine[name].dtype == yours[name].dtype for name in mine]
    return mine.keys() == yours.keys() and all(equal)


@pytest.mark.parametrize("write", [write_classifier, write_separator, write_segmenter])
def test_a_folder_holds_the_same_network(write: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "last.ckpt")
    folder = write_folder(open_shared(path), tmp_path / "a folder")
    one, other = load_task(path), load_task(folder)
    assert same(one, other)
    assert type(one) is type(other)
    assert one.record["classes"] == other.record["classes"]
    assert one.origin.date == other.origin.date
    assert other.origin.path == folder
    sizes: Any = {"embed_dim": 64, "depth": 2, "num_heads": 1}
    image, audio = ViT((32, 32), **sizes), ViT((128, 64), in_chans=1, **sizes)
    net = DeepAVFusion(image, audio, num_fusion_tokens=(4, 2, 2), fusion_num_heads=1)
    tensors = {f"encoder.{name}": tensor for name, tensor in net.state_dict().items()}
    path = write_weights(Weights("", "ours", tensors), tmp_path / "weights.safetensors")
    folder = write_folder(open_shared(path), tmp_path / "folder")
    one, other = open_network(path)[0], open_network(folder)[0]
    assert same(one, other)
    with pytest.raises(UserError, match="has no record of its model"):
        load_task(folder)
    text = card(open_shared(folder))
    assert invalid(text) == []
    assert "pipeline_tag: feature-extraction" in text
    assert "Metrics of these weights: not recorded." in text


def test_nothing_names_a_place_of_the_machine(tmp_path: Path) -> None:
    """Wherever a record has one: start weights, overrides, config, the name of the data."""
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    path = written(
        run / "checkpoints" / "last.ckpt",
        data={"name": HOME, "root": HOME, "demo": False, "image_size": 64, "audio_seconds": 2.0},
        overrides=["experiment=vggsound_finetune", *(f"{key}={HOME}" for key in PLACES), "seed=3"],
        config={"paths": {"log_dir": HOME}},
        made_here=HOME,
    )
    content = torch.load(path, weights_only=True)
    content["record"]["model"] |= {"pretrained": HOME}
    torch.save(content, path)
    start = {
        "commit": HOME, "command": f"python {HOME}/train.py", "seed": 3, "machine": {"cpu": HOME, "gpus": [HOME]},
        "versions": {"torch": HOME}, "data": {"coverage": {"train": {"split": HOME, "listed": 2, "present": 1}}},
        "weights": [{"checkpoint": HOME, "task": HOME, "data": "vggsound", "steps": 7}],
    }  # fmt: skip
    (run / "provenance.json").write_text(json.dumps({"starts": [start]}))
    (run / "metrics.json").write_text(json.dumps({"test/top1": 0.5, HOME: 1.0}))
    lines = list(share(str(path), str(tmp_path / "out"), card=True))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["content"]["record"]["overrides"] == ["experiment=vggsound_finetune", "seed=3"]
    assert config["content"]["record"]["model"]["pretrained"] is None
    for name in ("config.json", "model.safetensors", "README.md"):
        assert b"alice" not in (tmp_path / "out" / name).read_bytes()
        assert str(tmp_path).encode() not in (tmp_path / "out" / name).read_bytes()
    assert len(lines) == 3


def test_what_is_not_plain_is_not_written(tmp_path: Path) -> None:
    path = written(tmp_path / "last.ckpt")
    content = torch.load(path, weights_only=True)
    content["record"]["model"]["note"] = "see /home/alice"
    torch.save(content, path)
    with pytest.raises(UserError, match=r"model.note is 'see /home/alice', expected a plain word"):
        write_folder(open_shared(path), tmp_path / "out")
    content["record"]["model"].pop("note")
    torch.save({**content, "notes": {"a": ["x"]}}, path)
    with pytest.raises(UserError, match="notes holds the text 'x'"):
        write_folder(open_shared(path), tmp_path / "out")
    torch.save({**content, "bound": float("nan")}, path)
    with pytest.raises(UserError, match="cannot be written as a folder"):
        write_folder(open_shared(path), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def run_of(tmp_path: Path, **more: Any) -> Path:
    """The last checkpoint of a finished run."""
    place = tmp_path / "run" / "checkpoints"
    place.mkdir(parents=True)
    headline = {
        "test/top1": "top-1 accuracy",
        "test/loss": EVIL,
        "knn/fusion": "1-NN",
        "test/map": "mAP",
        "test/map_fusion": "fusion",
    }
    config = {"callbacks": {"run_summary": {"headline": headline}}}
    path = written(place / "step_00000150.ckpt", config=config, steps=150, **more)
    (place / "last.ckpt").symlink_to(path.name)
    metrics = {"test/top1": 0.75, "test/top1_untrained": 0.5, "test/loss": 1.0, "data/used": 7, "data/listed": 8}
    (tmp_path / "run" / "metrics.json").write_text(json.dumps({**metrics, "knn/fusion": 0.25}))
    coverage = {"train": {"split": "train", "listed": 10, "present": 9}}
    start = {"commit": "1" * 40, "dirty": True, "seed": 4, "data": {"coverage": coverage}, "weights": []}
    (tmp_path / "run" / "provenance.json").write_text(json.dumps({"starts": [start]}))
    return place / "last.ckpt"


def test_a_card_says_what_the_run_recorded_and_nothing_else(tmp_path: Path) -> None:
    path = run_of(tmp_path, data={"name": "vggsound", "demo": False, "image_size": 64, "audio_seconds": 2.0})
    text = card(open_shared(path), "cc-by-4.0")
    assert invalid(text) == []
    for words in (
        "| top\\-1 accuracy | `test/top1` | 0.750 | 0.500 | 0.500 |",  # the label's - is no sign of Markdown
        "7 of 8 items were evaluated, with seed 4.",
        "- Training: 9 of 10 listed clips were there and not known to be damaged (split `train`)",
        "- Test: number and coverage of clips not recorded",
        "- Optimizer steps: 150 of 150",
        "- Started from: nothing, from scratch",
        f"- Commit of the code: `{'1' * 40}` (with changes that were not committed)",
        "- Hardware: not recorded",
        "- 2 classes: `one`, `two`",
        "Weights: `cc-by-4.0`. Data that they were trained on: not recorded.",
        "one image of 64 × 64 pixels and 2 s of sound",
    ):
        assert words.replace("\\-", "-") in text
    data = ModelCard(text).data
    found = data.to_dict()
    assert [found[name] for name in ("license", "library_name", "pipeline_tag")] == [
        "cc-by-4.0",
        "deepavfusion",
        "video-classification",
    ]
    assert [(each.dataset_name, each.metric_type, each.metric_value) for each in data.eval_results] == [
        ("vggsound", "accuracy", 0.75),
        ("vggsound", "fusion", 0.25),
    ]
    assert "license: unknown" in card(open_shared(path))
    assert "license_name: my-own" in card(open_shared(path), "my-own")


def test_metrics_of_another_checkpoint_are_not_taken(tmp_path: Path) -> None:
    """The test of a run that keeps its best weights is theirs."""
    last = run_of(tmp_path)
    earlier = last.with_name("step_00000100.ckpt")
    best = last.with_name("best.ckpt")
    earlier.write_bytes(last.read_bytes())
    assert "Metrics of these weights: not recorded." in card(open_shared(earlier))
    best.write_bytes(last.read_bytes())
    assert "`test/top1`" in card(open_shared(best))
    assert "`knn/fusion`" not in card(open_shared(best))
    assert "`test/top1`" not in card(open_shared(last))
    assert "`knn/fusion`" in card(open_shared(last))
    assert "Coverage of the evaluation: not recorded" in card(open_shared(last))


def test_names_cannot_break_a_card(tmp_path: Path) -> None:
    path = run_of(tmp_path, classes=[EVIL, "y\udcff"], data={"name": EVIL.replace("/", ""), "demo": True})
    text = card(open_shared(path), None)
    assert text.encode()
    front, body = re.fullmatch(r"---\n(.*?)\n---\n(.*)", text, re.DOTALL).groups()  # type: ignore[union-attr]
    assert yaml.safe_load(front)["license"] == "unknown"
    assert invalid(text) == []
    assert "---" not in body.splitlines()
    assert "\u202e" not in text
    outside = re.sub(r"(`+)[^`\n].*?\1", "", body)  # what is not code
    assert "<script" not in re.sub(r"\\.", "", outside)
    assert not re.search(r"\]\(http://evil", outside)
    assert len([line for line in body.splitlines() if line.startswith("#")]) == 8


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    path, out = written(tmp_path / "last.ckpt"), tmp_path / "out"
    list(share(str(path), str(out), card=True))
    list(share(str(path), str(out), card=True))  # what was written here is replaced
    edited = (out / "README.md").read_text().replace("not recorded", "lots")
    (out / "README.md").write_text(edited)
    with pytest.raises(UserError, match=r"README.md is there, and was not written by convert.py, or changed since"):
        list(share(str(path), str(out), card=True))
    assert list(share(str(path), str(out)))[-1].endswith("README.md is as it was")
    assert (out / "README.md").read_text() == edited
    (out / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="has not written it"):
        list(share(str(path), str(out)))
    assert (out / "config.json").read_text() == '{"model_type": "bert"}'


def test_a_licence_is_an_identifier(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"license is 'mit.*expected an SPDX identifier"):
        list(share("x", str(tmp_path / "out"), card=True, license="mit\n---\n# evil"))
    assert not (tmp_path / "out").exists()


def test_a_file_takes_no_keys_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    path = written(tmp_path / "last.ckpt")
    assert not RULES["license"].holds("CC-BY")
    assert RULES["license"].holds("cc-by-4.0")
    for given, words in (
        ("output=x.safetensors push=hf://a/b", "push is for a folder"),
        ("output=x.pth", "expected a name that ends in .safetensors"),
    ):
        monkeypatch.setattr("sys.argv", ["convert.py", f"input={path}", *given.split()])
        monkeypatch.chdir(tmp_path)
        with pytest.raises(SystemExit) as end:
            convert.start()
        assert end.value.code == 2
        assert words in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.glob("x*"))


def test_a_card_shows_chance_of_map_where_the_run_recorded_it(tmp_path: Path) -> None:
    path = run_of(tmp_path)
    metrics = {"test/map": 0.75, "test/map_fusion": 0.5, "test/map_chance": 0.25}
    (tmp_path / "run" / "metrics.json").write_text(json.dumps(metrics))
    text = card(open_shared(path), "cc-by-4.0")
    assert "| mAP | `test/map` | 0.750 | 0.250 |" in text
    assert "| fusion | `test/map_fusion` | 0.500 | 0.250 |" in text
    assert "the share of positive labels for mAP" in text
