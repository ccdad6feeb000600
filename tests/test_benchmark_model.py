"""`benchmark=model`: which cases run, in what order, what a row contains; never how fast."""

from __future__ import annotations

import csv
import shutil
from dataclasses import fields, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from deepavfusion.benchmarks import flops, memory, model
from deepavfusion.benchmarks.passes import FUSIONS, IMPLEMENTATIONS, PASSES, Case, Pass, Recipe
from deepavfusion.config.compose import instantiate
from deepavfusion.utils.errors import UserError
from helpers.runs import call
from helpers.runs import compose as compose_config

CPU = torch.device("cpu")
SMALL = [  # a network of one layer: 4 patches of the image, 4 of the audio, 6 fusion tokens
    "benchmark.device=cpu",
    "benchmark.rounds=1",
    "data.image_size=32",
    "benchmark.recipe.nets.tiny.audio.input_size=[32,32]",
    "benchmark.recipe.nets.tiny.image.embed_dim=8",
    "benchmark.recipe.nets.tiny.image.depth=1",
    "benchmark.recipe.nets.tiny.image.num_heads=2",
    "benchmark.recipe.nets.tiny.num_fusion_tokens=[2,2,2]",
    "benchmark.recipe.nets.tiny.fusion_attn_ratio=0.5",
    "benchmark.recipe.image_mask_ratio=0.5",
    "benchmark.recipe.audio_mask_ratio=0.5",
    "benchmark.recipe.decoder_embed_dim=8",
    "benchmark.recipe.decoder_depth=1",
    "benchmark.recipe.decoder_num_heads=2",
]
CASE = Case(batch=2, size="tiny")


def compose(*overrides: str):
    return compose_config("benchmark=model", *overrides, config="benchmark")


def measure(*entries: str, reference: bool = False):
    cases = f"benchmark.cases.cpu=[{','.join(entries)}]"
    return instantiate(compose(*SMALL, cases, f"reference={reference}").benchmark)


def entries_of(device: str) -> list[dict[str, Any]]:
    return OmegaConf.to_container(compose().benchmark.cases[device])


@pytest.fixture(scope="module")
def recipe():
    return Recipe(**OmegaConf.to_container(compose(*SMALL), resolve=True)["benchmark"]["recipe"])


# ---- configs


def test_the_recipe_is_that_of_pretraining():
    recipe = compose().benchmark.recipe
    pretrain = compose_config("experiment=pretrain_vggsound", "scale=paper").model
    shared = {field.name for field in fields(Recipe)} - {"nets", "lr"}
    assert {key: recipe[key] for key in shared} == {key: pretrain[key] for key in shared}
    assert recipe.lr == pretrain.blr
    assert recipe.nets.base == pretrain.net


def test_the_default_cases_on_a_cpu_are_those_behind_the_published_ratios():
    def row(implementation, fusion, masked, batch, passes):
        return Case(implementation, fusion, masked, batch, "fp32", False, "base", passes)

    forward, both, step = PASSES
    entries = entries_of("cpu")
    assert [model.variants(entry, reference=True) for entry in entries] == [
        [row(name, kind, False, 1, forward) for name in IMPLEMENTATIONS for kind in ("factorized", "dense")],
        [
            row("fast", "factorized", True, 8, both),
            row("fast", "dense", True, 8, both),
            row("reference", "factorized", True, 8, both),
        ],
        [row(name, "factorized", True, 8, step) for name in IMPLEMENTATIONS],
        [row(name, "dense", False, 4, both) for name in IMPLEMENTATIONS],
    ]
    assert [entry.get("measure") for entry in entries] == [None, None, None, "memory"]


def test_the_default_cases_on_a_gpu_cover_each_setting():
    cases = [case for entry in entries_of("cuda") for case in model.variants(entry, reference=False)]
    assert 20 <= len(cases) == len(set(cases)) <= 30
    values = {field.name: {getattr(case, field.name) for case in cases} for field in fields(Case)}
    assert {"factorized", "dense", "token", "none"} <= values["fusion"]
    assert values["passes"] == set(PASSES)
    assert values["precision"] == {"fp32", "bf16"}
    assert values["masked"] == values["compiled"] == {True, False}


# ---- passes


def test_a_train_step_changes_the_network_and_draws_fresh_masks(recipe, monkeypatch):
    run, drawn = Pass(CASE, recipe, CPU), []
    masks = run.masks
    monkeypatch.setattr(run, "masks", lambda clips: drawn.append(masks(clips)) or drawn[-1])
    before = {name: parameter.clone() for name, parameter in run.net.named_parameters()}
    for _ in range(8):
        run()
    trained = {name for name, parameter in run.net.named_parameters() if parameter.requires_grad}
    moved = {name for name, parameter in run.net.named_parameters() if not torch.equal(parameter, before[name])}
    assert trained
    assert moved == trained
    assert all(parameter.grad is None for parameter in run.net.parameters())
    assert len({tuple(mask[0].keep.flatten().tolist()) for mask in drawn}) > 1
    assert drawn[0][0].keep.shape == (2, 2)  # half of 4 patches


def test_the_warm_up_is_a_step_of_one_clip(recipe):
    run, shapes = Pass(replace(CASE, batch=3), recipe, CPU), []
    run.net.encoder.register_forward_hook(lambda *arguments: shapes.append(tuple(arguments[-1].image.shape)))
    run(clips=1)
    run()
    assert shapes == [(1, 2, 8), (3, 2, 8)]
    assert {int(state["step"]) for state in run.optimizer.state.values()} == {2}


@pytest.mark.parametrize(("masked", "shape"), [(True, (2, 2, 8)), (False, (2, 4, 8))])
@pytest.mark.parametrize("passes", ["encoder_forward", "encoder_forward_backward"])
def test_encoder_passes_see_the_kept_patches_and_leave_gradients_only_where_they_should(passes, masked, shape, recipe):
    run = Pass(replace(CASE, passes=passes, masked=masked), recipe, CPU)
    shapes = []
    run.net.register_forward_hook(lambda *arguments: shapes.append(arguments[-1].image.shape))
    run()
    assert shapes == [shape]
    with_gradient = [parameter for parameter in run.net.parameters() if parameter.grad is not None]
    assert bool(with_gradient) == (passes == "encoder_forward_backward")


@pytest.mark.parametrize("fusion", FUSIONS)
def test_both_implementations_begin_with_the_same_network_and_input(fusion, recipe):
    fast, reference = (Pass(replace(CASE, implementation=name, fusion=fusion), recipe, CPU) for name in IMPLEMENTATIONS)
    assert type(fast.net) is not type(reference.net)
    assert bool(fast.net.encoder.fusion_blocks) == (fusion != "none")
    torch.testing.assert_close(fast.net.state_dict(), reference.net.state_dict())
    torch.testing.assert_close((fast.image, fast.audio), (reference.image, reference.audio))


def test_bf16_runs_in_autocast(recipe):
    run, seen = Pass(replace(CASE, precision="bf16"), recipe, CPU), []
    run.net.encoder.image.blocks[0].mlp.register_forward_hook(lambda *arguments: seen.append(arguments[-1].dtype))
    run()
    assert seen == [torch.bfloat16]
    assert {parameter.dtype for parameter in run.net.parameters()} == {torch.float32}


# ---- FLOPs


def test_gflop_is_what_a_hand_counts(recipe):
    case = replace(CASE, fusion="dense", masked=False, batch=3, passes="encoder_forward")
    dim, width, fusion = 8, 4, 6  # width of the fusion attention: half of dim
    total = 0
    for tokens, pixels in ((4, 3 * 256), (4, 256)):
        total += tokens * pixels * dim  # patches
        total += tokens * dim * 3 * dim + fusion * dim * 2 * dim  # queries, keys, values; context has no queries
        total += 2 * tokens * (tokens + fusion) * dim  # logits and averages
        total += tokens * dim * dim + 2 * tokens * dim * 4 * dim  # projection, MLP
        total += tokens * dim * 2 * width + 2 * fusion * tokens * width  # fusion: keys, values; logits, averages
    total += fusion * dim * width + fusion * width * dim + 2 * fusion * dim * dim  # queries, projection, MLP
    assert flops.count(case, recipe) == pytest.approx(3 * 2 * total / 1e9)


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("passes", PASSES)
def test_the_reference_counts_more(fusion, passes, recipe):
    case = replace(CASE, fusion=fusion, passes=passes)
    assert flops.count(replace(case, implementation="reference"), recipe) > flops.count(case, recipe) > 0


def test_a_backward_pass_and_bf16_count(recipe):
    forward, both = (flops.count(replace(CASE, passes=passes), recipe) for passes in PASSES[:2])
    assert 2 * forward < both <= 3 * forward
    assert flops.count(replace(CASE, precision="bf16", compiled=True), recipe) == flops.count(CASE, recipe)


def test_utilisation_is_known_where_the_peak_is(monkeypatch):
    assert flops.peak("NVIDIA H100 80GB HBM3", "bf16") == 989.4
    assert flops.peak("NVIDIA A100-SXM4-80GB", "fp32") == 19.5
    assert flops.peak("NVIDIA A100 80GB PCIe", "fp32", tf32=True) == 156
    assert flops.peak("Tesla V100-SXM2-16GB", "bf16") is None
    assert flops.peak("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "bf16") is None
    assert flops.peak("NVIDIA GeForce RTX 4090 Laptop GPU", "bf16") is None
    assert flops.utilisation(1.0, 1.0, CPU, "fp32") is None
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100-SXM4-80GB")
    # 156 TFLOP in a second, where 312 are possible
    assert flops.utilisation(156e3, 1.0, torch.device("cuda"), "bf16") == pytest.approx(0.5)


# ---- memory


@pytest.mark.skipif(not (memory.PROC / "clear_refs").exists(), reason="/proc/self/clear_refs is Linux's")
def test_resident_peak_is_what_is_held_at_once():
    def run() -> None:
        for _ in range(3):
            torch.ones(100, 2**18)  # 100 MiB, freed before the next

    assert memory.resident_peak(run) / 2**20 == pytest.approx(100, abs=8)


# ---- order, rows


def test_variants_take_turns_and_the_first_round_does_not_count(monkeypatch):
    order, now = [], [0.0]
    seconds = {"fast": iter([100.0, 1.0, 5.0, 2.0]), "reference": iter([200.0, 9.0, 7.0, 8.0])}

    def variant(name: str):
        def run() -> None:
            order.append(name)
            now[0] += next(seconds[name])

        return run

    monkeypatch.setattr(model, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    medians = model.alternate({name: variant(name) for name in seconds}, rounds=3, wait=lambda: None)
    assert order == ["fast", "reference"] * 4
    assert medians == {"fast": 2.0, "reference": 8.0}


def test_the_device_is_waited_for_before_the_clock_is_read(monkeypatch):
    events: list[str] = []

    def note(name: str) -> float:
        events.append(name)
        return 0.0

    monkeypatch.setattr(model, "time", SimpleNamespace(perf_counter=lambda: note("clock")))
    model.alternate({"a": lambda: note("run")}, rounds=1, wait=lambda: note("wait"))
    assert events[-5:] == ["wait", "clock", "run", "wait", "clock"]


def test_rows_of_a_small_network():
    two = "{fusion: [factorized, none], size: tiny, batch: 1, masked: false, passes: encoder_forward}"
    rows = measure(two, "{size: tiny, batch: 2, precision: bf16}", reference=True).rows
    settings = ["implementation", "fusion", "masked", "batch", "precision", "compiled", "size", "pass"]
    assert list(rows[0]) == [*settings, "median_s", "peak_bytes", "gflop", "mfu", "device", "threads"]
    shared = (False, 1, "fp32", False, "tiny", "encoder_forward")
    assert [tuple(row[name] for name in settings) for row in rows] == [
        ("fast", "factorized", *shared),
        ("fast", "none", *shared),
        ("reference", "factorized", *shared),
        ("reference", "none", *shared),
        ("fast", "factorized", True, 2, "bf16", False, "tiny", "train_step"),
        ("reference", "factorized", True, 2, "bf16", False, "tiny", "train_step"),
    ]
    assert all(row["median_s"] > 0 and row["gflop"] > 0 for row in rows)
    assert all(row["peak_bytes"] is None and row["mfu"] is None for row in rows)


def test_variants_that_do_not_fit_together_are_timed_alone_and_one_too_large_leaves_an_empty_cell(monkeypatch, capsys):
    def time(cases, *_):
        if len(cases) > 1 or cases[0].implementation == "reference":
            raise torch.OutOfMemoryError
        return {cases[0]: (0.5, 7)}

    monkeypatch.setattr(model, "_time", time)
    rows = measure("{size: tiny, batch: 2}", reference=True).rows
    assert [(row["median_s"], row["peak_bytes"]) for row in rows] == [(0.5, 7), (None, None)]
    assert "does not fit" in capsys.readouterr().out


def test_ratios_come_from_rows_that_differ_in_one_column():
    def row(implementation, fusion, median_s, peak_bytes=None, batch=8):
        return {**Case(implementation, fusion, batch=batch).columns(), "median_s": median_s, "peak_bytes": peak_bytes}

    rows = [
        row("fast", "factorized", 2.0, 100),
        row("reference", "factorized", 3.0, 700),
        row("fast", "dense", 2.2),
        row("reference", "dense", 22.0),
        row("reference", "factorized", 99.0, batch=1),  # no fast one to compare with
        row("fast", "factorized", None, batch=4),
        row("reference", "factorized", 5.0, batch=4),
    ]
    setting = "masked, batch 8, fp32, eager, base, train_step"
    assert [line.strip() for line in model.compare(rows)] == [
        f"1.50 ×  time, reference / fast: factorized, {setting}",
        f"10.00 ×  time, reference / fast: dense, {setting}",
        f"7.00 ×  memory, reference / fast: factorized, {setting}",
        f"1.10 ×  time, dense / factorized: fast, {setting}",
    ]


@pytest.mark.full
def test_the_command_leaves_csv_figure_and_ratios(tmp_path, monkeypatch, capsys):
    # the tiny network on whole inputs, for memory that exceeds the noise
    entry = "{fusion: [dense], size: tiny, masked: false, batch: 2, passes: encoder_forward_backward, measure: memory}"
    words = ["reference=true", "benchmark.device=cpu", "benchmark.recipe.nets.tiny.image.depth=2"]
    where = [f"paths.log_dir={tmp_path}", "run.name=here"]
    call(monkeypatch, "benchmark", "benchmark=model", *words, f"benchmark.cases.cpu=[{entry}]", *where)
    latest = tmp_path / "benchmark" / "latest"
    assert latest.resolve() == (tmp_path / "benchmark" / "runs" / "here").resolve()
    rows = list(csv.DictReader((latest / "results.csv").open()))
    assert [(row["implementation"], row["pass"], row["median_s"]) for row in rows] == [
        ("fast", "encoder_forward_backward", ""),
        ("reference", "encoder_forward_backward", ""),
    ]
    assert {"machine", "cores", "gpu", "python", "torch", "commit"} <= set(rows[0])
    fast, reference = (int(row["peak_bytes"]) for row in rows)
    assert fast > 2**20
    assert reference > 5 * fast
    assert Image.open(latest / "results.png").width > 300
    lines = capsys.readouterr().out.splitlines()
    ratio = next(line for line in lines if "memory, reference / fast: dense, all tokens, batch 2" in line)
    assert float(ratio.split()[0]) == pytest.approx(reference / fast, abs=0.01)


# ---- compiled


@pytest.mark.full
@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="no C++ compiler")
def test_compiled_networks_run_on_a_cpu():
    entry = "{size: tiny, batch: 2, passes: encoder_forward, compiled: %s}"
    eager, compiled = measure(entry % "false", entry % "true").rows
    assert (eager["compiled"], compiled["compiled"]) == (False, True)
    assert compiled["median_s"] > 0
    assert eager["gflop"] == compiled["gflop"]


def test_a_missing_compiler_is_named():
    from torch._inductor import config

    torch.compiler.reset()
    with config.patch({"cpp.cxx": ("no-such-compiler",)}), pytest.raises(UserError, match="no C\\+\\+ compiler"):
        measure("{size: tiny, batch: 2, compiled: true}")
