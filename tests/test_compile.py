"""Compiled training: the same numbers, compiled once, and checkpoints without a trace of it."""

from __future__ import annotations

import json
from copy import deepcopy

import pytest
import torch
from torch._dynamo.utils import counters

from deepavfusion.models.classifier import Classifier
from deepavfusion.models.retriever import Retriever
from deepavfusion.models.segmenter import Segmenter
from deepavfusion.models.separator import Separator
from helpers import golden as cases
from helpers.runs import PRETRAIN, sentence, train

BACKEND = "aot_eager"  # all of torch.compile but the generated kernels, which take minutes


@pytest.fixture
def fresh():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()
    torch.compiler.set_stance("default")


def run(root, logs, monkeypatch, *overrides: str) -> dict[str, float]:
    train(monkeypatch, *PRETRAIN, f"data.root={root}", f"paths.log_dir={logs}", "trainer.max_epochs=2", *overrides)
    name = overrides[0].removeprefix("run.name=")
    return json.loads((logs / "pretrain" / "runs" / name / "metrics.json").read_text())


@pytest.mark.full
def test_compiled_steps_learn_the_same_and_are_compiled_once(data_root, tmp_path, monkeypatch, fresh):
    plain = run(data_root, tmp_path, monkeypatch, "run.name=plain")
    compiled = run(data_root, tmp_path, monkeypatch, "run.name=compiled", f"compile={BACKEND}")
    # two epochs with validations, whose batches have other sizes
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    assert set(compiled) == set(plain)
    for name, value in plain.items():
        if name.startswith(("train/", "val/")):
            assert compiled[name] == pytest.approx(value, rel=1e-4), name
    last = tmp_path / "pretrain" / "runs" / "compiled" / "checkpoints" / "last.ckpt"
    known = torch.load(last.parents[2] / "plain" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    found = torch.load(last, weights_only=True)["state_dict"]
    assert list(found) == list(known)


@pytest.mark.parametrize(
    "head",
    [
        "separator",
        *(
            pytest.param(head, marks=pytest.mark.full)
            for head in ("classifier", "probe", "segmenter", "retriever", "frozen retriever")
        ),
    ],
)
def test_every_head_is_one_graph_with_the_same_outputs_and_gradients(head, fresh):
    torch.manual_seed(0)
    encoder = cases.tiny_encoder()
    image, audio = torch.randn(4, 3, 64, 64), torch.randn(2 if head == "separator" else 4, 1, 32, 48)
    net = {
        "classifier": lambda: Classifier(encoder, 5),
        "probe": lambda: Classifier(encoder, 5, frozen=True),
        "separator": lambda: Separator(encoder),
        "segmenter": lambda: Segmenter(encoder, head_dim=16, min_head_dim=16),
        "retriever": lambda: Retriever(encoder, embed_dim=8),
        "frozen retriever": lambda: Retriever(encoder, embed_dim=8, frozen=True),
    }[head]()
    compiled = deepcopy(net)
    compiled.compile(fullgraph=True, dynamic=False, backend="eager")
    for _ in range(2):
        found = []
        for each in (net, compiled):
            out = each(image, audio)
            out = sum(out.values()) if isinstance(out, dict) else out
            each.zero_grad()
            out.square().mean().backward()
            found.append((out, {name: p.grad for name, p in each.named_parameters() if p.grad is not None}))
        torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)
    assert counters["stats"]["unique_graphs"] == 1


def test_an_unknown_backend_is_named(data_root, tmp_path, monkeypatch, capsys):
    where = [f"data.root={data_root}", f"paths.log_dir={tmp_path}"]
    message = sentence(monkeypatch, capsys, *PRETRAIN, *where, "compile=fast")
    assert "compile=fast is not a backend of torch.compile: expected true, or " in message
    assert "inductor" in message


def test_a_missing_compiler_is_named(data_root, tmp_path, monkeypatch, capsys):
    from torch._inductor import config

    with config.patch({"cpp.cxx": ("no-such-compiler",)}):
        where = [f"data.root={data_root}", f"paths.log_dir={tmp_path}"]
        message = sentence(monkeypatch, capsys, *PRETRAIN, *where, "compile=true")
    assert "torch.compile finds no C++ compiler here" in message
    assert "apt install g++" in message
    assert "compile=false" in message
