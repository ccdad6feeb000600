"""`benchmark=cost`: which networks are compared, and what theory says of passes that a hand can count."""

from __future__ import annotations

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from deepavfusion.benchmarks import cost, flops
from deepavfusion.benchmarks.passes import Case, Recipe
from deepavfusion.benchmarks.theory import Ledger, Rates, Theory, of_pass
from deepavfusion.config.check import check_ranges
from deepavfusion.config.compose import instantiate
from deepavfusion.utils.errors import UserError
from helpers.runs import compose

CPU = torch.device("cpu")
SMALL = [  # a network of one layer: 4 patches of the image, 4 of the audio
    *("benchmark.device=cpu", "benchmark.rounds=1", "data.image_size=32"),
    "benchmark.recipe.nets.tiny.audio.input_size=[32,32]",
    "benchmark.recipe.nets.tiny.image.embed_dim=8",
    "benchmark.recipe.nets.tiny.image.depth=1",
    "benchmark.recipe.nets.tiny.image.num_heads=2",
    "benchmark.recipe.nets.tiny.fusion_attn_ratio=0.5",
    *("benchmark.recipe.image_mask_ratio=0.5", "benchmark.recipe.audio_mask_ratio=0.5"),
    *("benchmark.recipe.decoder_embed_dim=8", "benchmark.recipe.decoder_depth=1"),
    "benchmark.recipe.decoder_num_heads=2",
]


def config(*overrides: str):
    return compose("benchmark=cost", *SMALL, *overrides, config="benchmark").benchmark


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return Recipe(**OmegaConf.to_container(config().recipe, resolve=True))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small yardsticks, and no processes for memory."""
    monkeypatch.setattr("deepavfusion.benchmarks.theory.SIDE", {"cpu": 8})
    monkeypatch.setattr("deepavfusion.benchmarks.theory.COPIED", {"cpu": 64})
    monkeypatch.setattr("deepavfusion.benchmarks.memory.cpu_peak", lambda case, recipe: 2**20)


# ---- theory


def test_a_product_is_booked_with_its_operations_and_bytes_and_what_it_holds():
    with FakeTensorMode():
        x, weight = torch.ones(4, 8), torch.ones(8, 16)
        with Ledger() as ledger:
            y = (x @ weight).view(64)
            z = y + 1
            del y
            z.mul_(2)
    product, total, scaled = ledger.kernels
    assert product == (2 * 4 * 8 * 16, 4 * (32 + 128 + 64))
    assert total == (0.0, 4 * (64 + 64))
    assert scaled == (0.0, 4 * (64 + 64))  # in place: nothing new
    assert (ledger.peak, ledger.used) == (4 * 128, 4 * 64)


def test_what_backward_needs_is_held_until_then():
    with FakeTensorMode():
        layers = nn.Sequential(nn.Linear(8, 32, bias=False), nn.GELU(), nn.Linear(32, 8, bias=False))
        x = torch.ones(4, 8)
        layers(x).sum().backward()  # gradients exist
        with Ledger() as frozen, torch.no_grad():
            layers(x)
        with Ledger() as trained:
            loss = layers(x).sum()
            assert trained.used == 4 * (4 * 32 + 4 * 32 + 1)  # before and after GELU, and the loss
            loss.backward()
            del loss
    assert frozen.peak == 4 * (4 * 32 + 4 * 32)
    assert trained.peak >= 4 * (4 * 32 * 3)
    assert (frozen.used, trained.used) == (0, 0)


def test_repeated_elements_are_read_once():
    with FakeTensorMode():
        x = torch.ones(1, 8).expand(100, 8)
        with Ledger() as ledger:
            x.neg()
    assert ledger.kernels == [(0.0, 4 * (8 + 800))]


def test_the_least_time_is_that_of_operations_or_of_bytes_of_each_kernel():
    said = Theory([(100.0, 1.0), (1.0, 100.0)], 0, 0, 0)
    assert (said.flop, said.moved, said.seconds(Rates(10.0, 50.0))) == (101.0, 101.0, 12.0)


@pytest.mark.parametrize(
    ("passes", "fusion"),
    [
        ("encoder_forward", "factorized"),
        ("encoder_forward", "dense"),
        ("encoder_forward_backward", "factorized"),
        pytest.param("train_step", "factorized", marks=pytest.mark.full),
    ],
)
def test_operations_are_those_that_benchmark_model_counts(recipe: Recipe, passes: str, fusion: str):
    case = Case(fusion=fusion, batch=2, size="tiny", passes=passes)
    said, counted = of_pass(case, recipe, CPU), flops.count(case, recipe) * 1e9
    # attention on a CPU keeps no probabilities for backward, which computes them again
    assert said.flop == pytest.approx(counted, rel=0 if passes == "encoder_forward" else 0.1)
    assert said.flop >= counted
    assert said.weights == 4 * said.parameters
    assert said.peak > 0


# ---- the benchmark


def test_networks_differ_from_the_first_in_one_respect():
    found = cost.networks({"fusion": ["factorized", "dense"], "fusion_layers": ["all", "last", "none"]})
    assert [tuple(net.values()) for net in found] == [
        *(("factorized", "all"), ("dense", "all"), ("factorized", "last"), ("factorized", "none"))
    ]


def test_the_first_network_is_the_published_one():
    found = config()
    base = found.recipe.nets.base
    assert {key: values[0] for key, values in found.vary.items()} == {key: base[key] for key in found.vary}


def test_a_row_has_what_was_measured_and_what_theory_says(quick: None, tmp_path):
    cases = "benchmark.cases.cpu=[{size: tiny, batch: 2, passes: encoder_forward}]"
    vary = "benchmark.vary={fusion:[factorized],fusion_layers:[all,none],num_fusion_tokens:[[2,2,2],[4,2,2]]}"
    report = instantiate(config(cases, vary))
    assert [(row["fusion"], row["fusion_layers"], row["num_fusion_tokens"]) for row in report.rows] == [
        ("factorized", "all", "2+2+2"),
        ("factorized", "none", "2+2+2"),
        ("factorized", "all", "4+2+2"),
    ]
    first, *others = report.rows
    assert first["time_ratio"] == pytest.approx(first["median_s"] / first["bound_s"])
    assert first["memory_ratio"] == 2**20 / first["activation_bytes"]
    assert first["gflop"] < others[-1]["gflop"]
    assert first["weight_bytes"] == 4 * first["parameters"] > others[-2]["weight_bytes"]
    assert set(report.shown) <= set(first)
    report.draw(tmp_path / "cost.png")
    assert Image.open(tmp_path / "cost.png").width > 300


@pytest.mark.parametrize("values", ["fusion=[]", "num_fusion_tokens=[[8,4]]", "fusion_layers=[first]"])
def test_values_that_no_network_has_are_refused(values: str):
    with pytest.raises(UserError, match=f"benchmark.vary.{values.partition('=')[0]} is .*, expected a list"):
        check_ranges(compose("benchmark=cost", f"benchmark.vary.{values}", config="benchmark"))


def test_a_kind_of_fusion_in_a_case_is_refused(quick: None):
    with pytest.raises(UserError, match=r"benchmark.cases.cpu\[0\] has fusion, which benchmark.vary decides"):
        instantiate(config("benchmark.cases.cpu=[{size: tiny, fusion: [dense]}]"))
