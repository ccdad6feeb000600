"""Schedules match the authors'; weight decay goes where it should."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from deepavfusion.optim.param_groups import param_groups
from deepavfusion.optim.schedules import half_cosine_rise, warmup_cosine
from helpers import golden as cases

SCHEDULES = cases.load_json("lr_schedules.json")


@pytest.mark.parametrize("name", ["pretrain_vggsound", "linear_probe"])
def test_schedules_match_golden(name):
    options, rows = SCHEDULES[name]["opt"], SCHEDULES[name]["rows"]
    assert len(rows) > 5
    for epoch, lr, lr_branch, lr_half in rows:
        found = options["lr"] * warmup_cosine(epoch, options["epochs"], options["warmup_epochs"])
        assert found == pytest.approx(lr, rel=1e-9, abs=1e-15)
        assert 0.5 * found == pytest.approx(lr_half, rel=1e-9, abs=1e-15)
        if "pt_warmup_epochs" in options:
            found *= half_cosine_rise(epoch, options["epochs"] / 2)
        assert found == pytest.approx(lr_branch, rel=1e-9, abs=1e-15)


def test_every_trainable_parameter_is_in_one_group_and_vectors_do_not_decay():
    model = nn.ModuleDict({"image": nn.Linear(3, 4), "rest": nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))})
    model["token"] = nn.ParameterList([nn.Parameter(torch.zeros(1, 1, 4))])
    model["image"].frozen = nn.Parameter(torch.zeros(2, 2), requires_grad=False)
    groups = {g["name"]: g for g in param_groups(model, 0.05, {"image": model["image"]})}
    sizes = {name: sorted(tuple(p.shape) for p in g["params"]) for name, g in groups.items()}
    assert sizes == {
        "image": [(4, 3)],
        "image_no_decay": [(4,)],
        "main": [(1, 1, 4), (4, 4)],
        "main_no_decay": [(4,), (4,), (4,)],
    }
    assert {name: g["weight_decay"] for name, g in groups.items()} == {
        "image": 0.05,
        "image_no_decay": 0.0,
        "main": 0.05,
        "main_no_decay": 0.0,
    }
