"""The classifier gives the logits of the authors' code; its losses, LARS, and which layer learns how fast."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from deepavfusion.models.classifier import Classifier, classification_loss, mean_of_heads
from deepavfusion.optim.lars import LARS
from deepavfusion.optim.param_groups import layer_decay_groups
from deepavfusion.types import STREAMS
from helpers import golden as cases


def golden_classifier(frozen: bool) -> Classifier:
    model = Classifier(cases.tiny_encoder(), 7, frozen)
    cases.fill_parameters(model)
    return model


@pytest.mark.parametrize("protocol", ["finetune", "linear_probe"])
def test_logits_match_golden_in_float64(protocol):
    golden = cases.load(f"classifier_{protocol}.npz")
    with cases.float64(), torch.no_grad():
        model = golden_classifier(protocol == "linear_probe")
        inputs = cases.clip_inputs()
        found = model(*inputs)
        if protocol == "linear_probe":
            found |= {f"eval_{stream}": x for stream, x in model.eval()(*inputs).items()}
    assert set(found) == set(golden)
    for name, expected in golden.items():
        torch.testing.assert_close(found[name], torch.from_numpy(expected), atol=1e-10, rtol=0)


def test_logits_match_golden_in_float32():
    golden = cases.load("classifier_finetune.npz")
    with torch.no_grad():
        found = golden_classifier(False)(*cases.clip_inputs())
    for stream in STREAMS:
        tolerance = 1e-4 * np.abs(golden[stream]).max()
        torch.testing.assert_close(found[stream], torch.from_numpy(golden[stream]).float(), atol=tolerance, rtol=0)


def test_lars_matches_golden():
    golden = cases.load("lars.npz")
    with cases.float64():
        matrix, vector = (torch.nn.Parameter(cases.wave(*of)) for of in (((6, 5), 0.7, 0.1), ((6,), 0.9, 0.2)))
        optimizer = LARS([matrix, vector], lr=0.3, weight_decay=0.01)
        for step in range(3):
            matrix.grad = cases.wave((6, 5), 0.2 + step, 0.05)
            vector.grad = cases.wave((6,), 0.4 + step, 0.07)
            optimizer.step()
            for name, parameter in (("matrix", matrix), ("vector", vector)):
                expected = torch.from_numpy(golden[f"step{step}_{name}"])
                torch.testing.assert_close(parameter.detach(), expected, atol=1e-12, rtol=0)


def test_lars_moves_matrices_that_are_zero_and_keeps_its_momentum():
    matrix = torch.nn.Parameter(torch.zeros(2, 2))
    optimizer = LARS([matrix], lr=0.1)
    matrix.grad = torch.ones(2, 2)
    optimizer.step()
    torch.testing.assert_close(matrix.detach(), torch.full((2, 2), -0.1))
    other = LARS([matrix], lr=0.1)
    other.load_state_dict(deepcopy(optimizer.state_dict()))
    before = matrix.detach().clone()
    matrix.grad.zero_()
    other.step()
    torch.testing.assert_close(before - matrix.detach(), torch.full((2, 2), 0.09))


def test_layers_of_a_classifier_decay_as_those_of_a_separator():
    """The golden list is of a separator of the same encoder; heads follow one rule."""
    expected = {n: tuple(v) for n, v in cases.load_json("layer_decay_separator.json").items() if "encoder." in n}
    model = golden_classifier(False)
    names = {id(p): name for name, p in model.named_parameters()}
    found = {
        names[id(p)]: (group["lr_scale"], group["weight_decay"])
        for group in layer_decay_groups(model, 0.05, 0.75, 4)
        for p in group["params"]
    }
    heads = {name: found.pop(name) for name in list(found) if "_head." in name}
    assert found == {name: expected[name] for name in found}
    assert heads == {
        f"{s}_head.{part}": (1.0, decay) for s in STREAMS for part, decay in (("weight", 0.05), ("bias", 0.0))
    }


def small_classifier(frozen: bool = False, drop_path: float = 0.0) -> Classifier:
    torch.manual_seed(0)
    return Classifier(cases.tiny_encoder(drop_path=drop_path), 5, frozen)


def test_a_frozen_encoder_stays_in_evaluation_and_as_it_is():
    model = small_classifier(frozen=True, drop_path=0.5).train()
    before = deepcopy(model.encoder.state_dict())
    assert not any(module.training for module in model.encoder.modules())
    assert all(norm.training for norm in model.norms.values())
    image, audio = torch.randn(4, 3, 64, 64), torch.randn(4, 1, 32, 48)
    first = model(image, audio)
    assert all(torch.equal(first[stream], x) for stream, x in model(image, audio).items())  # no branch is dropped
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {f"{stream}_head.{part}" for stream in STREAMS for part in ("weight", "bias")}
    mean_of_heads(first).sum().backward()
    assert all(p.grad is None for p in model.encoder.parameters())
    assert all(head.weight.grad is not None for head in model.heads.values())
    for name, value in model.encoder.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not torch.equal(model.norms["image"].running_mean, torch.zeros(48))


def test_one_clip_alone_is_normalised_by_the_running_statistics():
    model = small_classifier(frozen=True).train()
    image, audio = torch.randn(4, 3, 64, 64), torch.randn(4, 1, 32, 48)
    model(image, audio)
    before = deepcopy(model.state_dict())
    alone = model(image[:1], audio[:1])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    evaluated = model.eval()(image[:1], audio[:1])
    assert all(torch.equal(alone[stream], evaluated[stream]) for stream in STREAMS)
    assert model.train()(image[:0], audio[:0])["fusion"].shape == (0, 5)
    assert all(value.isfinite().all() for value in model.state_dict().values())


def test_biases_start_from_the_log_odds_of_the_classes():
    model = small_classifier()
    model.start_from_log_odds(torch.tensor([1.0, 1.0, 2.0, 4.0, 0.0]))
    f = np.array([1, 1, 2, 4, 0]) / 8
    expected = torch.from_numpy(np.log((f + 1e-3) / (1 - f + 1e-3))).float()
    for head in model.heads.values():
        torch.testing.assert_close(head.bias.detach(), expected)


# ---- losses


def some_logits() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {stream: torch.randn(6, 5, dtype=torch.float64) for stream in STREAMS}


def test_without_smoothing_it_is_the_plain_loss():
    logits, label = some_logits(), torch.tensor([0, 1, 2, 3, 4, 0])
    target = F.one_hot(label, 5).double()
    joint = F.cross_entropy(mean_of_heads(logits).float(), label)
    torch.testing.assert_close(classification_loss(logits, target).float(), joint)
    heads = torch.stack([F.cross_entropy(x.float(), label) for x in logits.values()]).mean()
    torch.testing.assert_close(classification_loss(logits, target, per_head=True).float(), heads)
    several = (torch.rand(6, 5) > 0.5).double()
    plain = F.binary_cross_entropy_with_logits(mean_of_heads(logits).float(), several)
    torch.testing.assert_close(classification_loss(logits, several, multi_label=True), plain)


def test_smoothing_is_torchs_for_one_class_and_for_several():
    logits, label = some_logits(), torch.tensor([0, 1, 2, 3, 4, 0])
    target = F.one_hot(label, 5).double()
    expected = F.cross_entropy(mean_of_heads(logits), label, label_smoothing=0.1)
    torch.testing.assert_close(classification_loss(logits, target, smoothing=0.1), expected)
    smooth = target * 0.9 + 0.02
    expected = F.binary_cross_entropy_with_logits(mean_of_heads(logits), smooth)
    found = classification_loss(logits, target.float(), multi_label=True, smoothing=0.1)
    torch.testing.assert_close(found, expected)


def test_class_weights_scale_each_classs_part():
    logits, target = some_logits(), torch.zeros(6, 5, dtype=torch.float64)
    weight = torch.tensor([2.0, 0.0, 1.0, 1.0, 0.0], dtype=torch.float64)
    parts = F.softplus(mean_of_heads(logits).float()).mean(dim=0)
    found = classification_loss(logits, target, multi_label=True, class_weight=weight.float())
    torch.testing.assert_close(found.float(), (parts * weight.float()).mean())


@pytest.mark.parametrize("multi_label", [False, True])
def test_no_clips_no_loss(multi_label):
    logits = {stream: torch.zeros(0, 5, requires_grad=True) for stream in STREAMS}
    loss = classification_loss(logits, torch.zeros(0, 5), multi_label)
    loss.backward()
    assert loss.item() == 0
