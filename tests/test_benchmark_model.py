"""`benchmark=model`: which cases run, in what order, what a row says; never how fast."""

from __future__ import annotations

import csv
import shutil
from dataclasses import fields, replace

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from deepavfusion.benchmarks import flops, memory, model
from deepavfusion.benchmarks.model_report import compare
from deepavfusion.benchmarks.passes import FUSIONS, IMPLEMENTATIONS, PASSES, Case, Pass, Recipe
from deepavfusion.config.compose import instantiate
from deepavfusion.utils.errors import UserError
from helpers.runs import call
from helpers.runs import compose as compose_config

CPU = torch.device("cpu")
SMALL = [  # a network of one layer: 4 patches of the picture, 4 of the sound, 6 fusion tokens
    "benchmark.size=tiny",
    "benchmark.device=cpu",
    "benchmark.rounds=1",
    "benchmark.cases.cpu=[{}]",
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
CASE = Case("fast", "factorized", True, 2, "fp32", False, "tiny", "train_step")


def compose(*overrides: str):
    return compose_config("benchmark=model", *overrides, config="benchmark")


def measure(*overrides: str):
    return instantiate(compose(*SMALL, *overrides).benchmark)


@pytest.fixture(scope="module")
def recipe():
    return Recipe(**OmegaConf.to_container(compose(*SMALL), resolve=True)["benchmark"]["recipe"])


def main(monkeypatch, *overrides: object) -> None:
    call(monkeypatch, "benchmark", *overrides)


# ---- configs


def test_the_recipe_is_that_of_pretraining():
    recipe = compose().benchmark.recipe
    pretrain = compose_config("experiment=pretrain_vggsound", "scale=paper").model
    shared = {field.name for field in fields(Recipe)} - {"nets", "lr"}
    assert {key: recipe[key] for key in shared} == {key: pretrain[key] for key in shared}
    assert recipe.lr == pretrain.blr
    assert set(recipe.nets) == {"tiny", "small", "base", "large"}
    assert recipe.nets.base == pretrain.net


def default_cases(device: str, *implementations: str) -> list[model.Group]:
    return model.groups_of(OmegaConf.to_container(compose().benchmark.cases[device]), ["base"], implementations)


def test_the_default_cases_on_a_cpu_hold_what_is_promised():
    groups = default_cases("cpu", "fast", "reference")
    timed = {case for group in groups if group.timed for case in group.cases}
    measured = {case for group in groups if group.memory for case in group.cases}
    assert Case("fast", "dense", True, 8, "fp32", False, "base", "encoder_forward_backward") in timed
    for name in ("fast", "reference"):
        assert Case(name, "factorized", True, 8, "fp32", False, "base", "encoder_forward_backward") in timed
        for fusion in ("factorized", "dense"):
            assert Case(name, fusion, False, 1, "fp32", False, "base", "encoder_forward") in timed
        assert Case(name, "factorized", True, 8, "fp32", False, "base", "train_step") in timed
        assert Case(name, "dense", False, 4, "fp32", False, "base", "encoder_forward_backward") in measured


def test_the_default_grid_on_a_gpu_is_full():
    cases = {case for group in default_cases("cuda", "fast") for case in group.cases}
    values = {field.name: {getattr(case, field.name) for case in cases} for field in fields(Case)}
    assert values["fusion"] == set(FUSIONS)
    assert values["passed"] == set(PASSES)
    assert values["precision"] == {"fp32", "bf16"}
    assert values["masked"] == values["compiled"] == {True, False}
    batches = len(values["batch"])
    assert len(cases) == 4 * batches * 2 * 2 * (3 + 2)  # a train_step is always masked


def test_values_given_replace_those_of_every_entry_and_cases_run_once():
    entries = [{"batch": 1, "passes": "encoder_forward"}, {"passes": ["encoder_forward", "train_step"], "memory": True}]
    groups = model.groups_of([{**entry, "batch": [3, 4]} for entry in entries], ["base"], ["fast"])
    found = [(case.batch, case.passed, group.memory) for group in groups for case in group.cases]
    assert found == [
        (3, "encoder_forward", True),
        (4, "encoder_forward", True),
        (3, "train_step", True),
        (4, "train_step", True),
    ]


def test_an_entry_may_leave_out_the_reference_and_the_fast_ones_go_first():
    entries = [{"fusion": ["factorized", "token"]}, {"fusion": "dense", "reference": False}]
    groups = model.groups_of([{**entry, "passes": "train_step"} for entry in entries], ["base"], IMPLEMENTATIONS)
    found = [(case.implementation, case.fusion) for group in groups for case in group.cases]
    assert found == [
        ("fast", "factorized"),
        ("fast", "token"),
        ("fast", "dense"),
        ("reference", "factorized"),
        ("reference", "token"),
    ]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "benchmark.fusion=[dense,sparse]",
            "benchmark.fusion is 'sparse': choose among factorized, dense",
        ),
        ("benchmark.size=giant", "benchmark.size is 'giant': choose among tiny, small, base, large"),
        ("benchmark.precision=fp8", "benchmark.precision is 'fp8': choose among fp32, bf16"),
        ("benchmark.passes=[backward]", "benchmark.passes is 'backward': choose among encoder_forward"),
        ("benchmark.masked=1", "benchmark.masked is 1: choose among True, False"),
        ("benchmark.batch=0", "benchmark.batch is 0: expected a number of clips"),
        ("benchmark.device=tpu", "benchmark.device is 'tpu': choose one of auto, cpu, cuda"),
        ("benchmark.cases.cpu=[{fusoin: dense}]", "the key 'fusoin': expected fusion, masked"),
        ("benchmark.cases.cpu=[]", "no case is left to run"),
    ],
)
def test_what_there_is_not_is_said_in_one_sentence(override, said, tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit) as end:
        main(monkeypatch, "benchmark=model", *SMALL, override, f"paths.log_dir={tmp_path}")
    assert end.value.code == 2
    assert said in capsys.readouterr().err.strip().splitlines()[-1]
    assert not any((tmp_path / "benchmark" / "runs").iterdir())


# ---- passes


def test_a_train_step_changes_the_network_and_draws_fresh_masks(recipe, monkeypatch):
    run, drawn = Pass(CASE, recipe, CPU), []
    masks = run.masks
    monkeypatch.setattr(run, "masks", lambda: drawn.append(masks()) or drawn[-1])
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
    run.warm_up()
    run()
    assert shapes == [(1, 2, 8), (3, 2, 8)]
    assert {int(state["step"]) for state in run.optimizer.state.values()} == {2}


@pytest.mark.parametrize(("masked", "shape"), [(True, (2, 2, 8)), (False, (2, 4, 8))])
@pytest.mark.parametrize("passed", ["encoder_forward", "encoder_forward_backward"])
def test_encoder_passes_see_the_kept_patches_and_leave_gradients_only_where_they_should(passed, masked, shape, recipe):
    run = Pass(replace(CASE, passed=passed, masked=masked), recipe, CPU)
    shapes = []
    run.net.register_forward_hook(lambda *arguments: shapes.append(arguments[-1].image.shape))
    run()
    assert shapes == [shape]
    with_gradient = [parameter for parameter in run.net.parameters() if parameter.grad is not None]
    assert bool(with_gradient) == (passed == "encoder_forward_backward")


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
    case = replace(CASE, fusion="dense", masked=False, batch=3, passed="encoder_forward")
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
@pytest.mark.parametrize("passed", PASSES)
def test_the_reference_counts_more(fusion, passed, recipe):
    case = replace(CASE, fusion=fusion, passed=passed)
    assert flops.count(replace(case, implementation="reference"), recipe) > flops.count(case, recipe) > 0


def test_a_backward_pass_and_bf16_count(recipe):
    forward, both = (flops.count(replace(CASE, passed=passed), recipe) for passed in PASSES[:2])
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


def test_variants_take_turns_and_the_first_round_does_not_count():
    order, now = [], [0.0]
    seconds = {"fast": iter([100.0, 1.0, 5.0, 2.0]), "reference": iter([200.0, 9.0, 7.0, 8.0])}

    def variant(name: str):
        def run() -> None:
            order.append(name)
            now[0] += next(seconds[name])

        return run

    medians = model.alternate({name: variant(name) for name in seconds}, rounds=3, clock=lambda: now[0])
    assert order == ["fast", "reference"] * 4
    assert medians == {"fast": 2.0, "reference": 8.0}


def test_the_device_is_waited_for_before_the_clock_is_read():
    events: list[str] = []

    def note(name: str) -> float:
        events.append(name)
        return 0.0

    model.alternate({"a": lambda: note("run")}, 1, clock=lambda: note("clock"), wait=lambda: note("wait"))
    assert events[-5:] == ["wait", "clock", "run", "wait", "clock"]


def test_rows_of_a_small_network():
    report = measure(
        "reference=true",
        "benchmark.fusion=[factorized,none]",
        "benchmark.masked=[true,false]",
        "benchmark.batch=[1,2]",
        "benchmark.precision=[fp32,bf16]",
        "benchmark.passes=[encoder_forward,train_step]",
    )
    rows = report.rows
    settings = ["implementation", "fusion", "masked", "batch", "precision", "compiled", "size", "pass"]
    columns = [*settings, "median_s", "peak_bytes", "gflop", "mfu"]
    assert list(rows[0])[: len(columns)] == columns
    found = [tuple(row[name] for name in settings) for row in rows]
    assert len(set(found)) == len(rows) == 2 * 2 * 2 * 2 * (2 + 1)
    assert ("reference", "none", False, 2, "bf16", False, "tiny", "encoder_forward") in found
    assert ("reference", "none", False, 2, "bf16", False, "tiny", "train_step") not in found
    assert all(row["median_s"] > 0 and row["gflop"] > 0 for row in rows)
    assert all(row["peak_bytes"] is None and row["mfu"] is None for row in rows)
    one, two = ([row["gflop"] for row in rows if row["batch"] == batch] for batch in (1, 2))
    assert two == pytest.approx([2 * gflop for gflop in one])


def test_what_does_not_fit_together_is_timed_alone_and_what_does_not_fit_leaves_an_empty_cell(monkeypatch, capsys):
    def time(cases, *_):
        if len(cases) > 1 or cases[0].implementation == "reference":
            raise torch.OutOfMemoryError
        return {cases[0]: 0.5}, {cases[0]: 7}

    monkeypatch.setattr(model, "_time", time)
    rows = measure("reference=true", "benchmark.batch=2", "benchmark.passes=[train_step]").rows
    assert {row["implementation"]: (row["median_s"], row["peak_bytes"]) for row in rows} == {
        "fast": (0.5, 7),
        "reference": (None, None),
    }
    assert "does not fit" in capsys.readouterr().out


def test_ratios_come_from_rows_that_differ_in_one_column():
    def row(implementation, fusion, median_s, peak_bytes=None, batch=8):
        case = Case(implementation, fusion, True, batch, "fp32", False, "base", "train_step")
        return {**case.columns(), "median_s": median_s, "peak_bytes": peak_bytes}

    rows = [
        row("fast", "factorized", 2.0, 100),
        row("reference", "factorized", 3.0, 700),
        row("fast", "dense", 2.2),
        row("reference", "dense", 22.0),
        row("reference", "factorized", 99.0, batch=1),  # has no fast one
        row("fast", "factorized", None, batch=4),
        row("reference", "factorized", 5.0, batch=4),
    ]
    found = compare(rows)
    assert [(ratio.quantity, ratio.above, ratio.below, round(ratio.value, 9)) for ratio in found] == [
        ("time", "reference", "fast", 1.5),
        ("memory", "reference", "fast", 7.0),
        ("time", "reference", "fast", 10.0),
        ("time", "dense", "factorized", 1.1),
    ]
    told = "time, reference / fast: factorized, masked, batch 8, fp32, eager, base, train_step"
    assert str(found[0]).split(maxsplit=2) == ["1.50", "×", told]
    assert found[3].case.startswith("fast, masked, batch 8")


@pytest.mark.full
def test_the_command_leaves_csv_picture_and_ratios(tmp_path, monkeypatch, capsys):
    # the tiny network on whole inputs, for memory that can be told from noise
    entry = "{fusion: dense, masked: false, batch: 2, passes: encoder_forward_backward, memory: true}"
    sizes = [
        "benchmark.size=tiny",
        "benchmark.recipe.nets.tiny.image.depth=2",
        "benchmark.device=cpu",
        "benchmark.rounds=1",
    ]
    where = [f"paths.log_dir={tmp_path}", "run.name=here"]
    main(monkeypatch, "benchmark=model", "reference=true", *sizes, f"benchmark.cases.cpu=[{entry}]", *where)
    latest = tmp_path / "benchmark" / "latest"
    assert latest.resolve() == (tmp_path / "benchmark" / "runs" / "here").resolve()
    rows = list(csv.DictReader((latest / "results.csv").open()))
    assert [row["implementation"] for row in rows] == ["fast", "reference"]
    assert {(row["masked"], row["compiled"], row["pass"], row["mfu"]) for row in rows} == {
        ("False", "False", "encoder_forward_backward", "")
    }
    assert {"machine", "cores", "gpu", "python", "torch", "commit"} <= set(rows[0])
    fast, reference = (int(row["peak_bytes"]) for row in rows)
    assert fast > 2**20
    assert reference > 5 * fast
    assert Image.open(latest / "results.png").width > 300
    said = capsys.readouterr().out
    ratio = next(line for line in said.splitlines() if "memory, reference / fast: dense, all tokens, batch 2" in line)
    assert float(ratio.split()[0]) == pytest.approx(reference / fast, abs=0.01)


# ---- compiled


@pytest.mark.full
@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="no C++ compiler")
def test_compiled_networks_run_on_a_cpu():
    rows = measure("benchmark.compiled=[false,true]", "benchmark.batch=2", "benchmark.passes=[encoder_forward]").rows
    assert [row["compiled"] for row in rows if row["median_s"] > 0] == [False, True]
    assert rows[0]["gflop"] == rows[1]["gflop"]


def test_a_missing_compiler_is_named():
    from torch._inductor import config

    torch.compiler.reset()
    with config.patch({"cpp.cxx": ("no-such-compiler",)}), pytest.raises(UserError, match="no C\\+\\+ compiler"):
        measure("benchmark.compiled=true", "benchmark.batch=2", "benchmark.passes=[encoder_forward]")
