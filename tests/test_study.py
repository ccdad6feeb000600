"""Studies: the plan of runs, and the report of what they found."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from scipy import stats

from deepavfusion.config.compose import choices, root_folder
from deepavfusion.demo.plans import FULL, NAMES, STAGE
from deepavfusion.study.findings import findings_of, measured_of, scores_of
from deepavfusion.study.plan import Plan
from deepavfusion.study.report import write_report
from deepavfusion.study.results import rows_of
from deepavfusion.study.starts import PLACEHOLDER, checkpoint, place
from deepavfusion.study.work import note_failure
from deepavfusion.utils.errors import UserError
from helpers.runs import compose, read_table

SCRATCH = {"overrides": ["model.pretrained=null"]}
PROBE = {"probe": {"experiment": "vggsound_linear_probe", "metrics": ["test/top1"], **SCRATCH}}
RATES = {"model.blr": [0.1, 0.2]}


def staged(**probe: Any) -> dict[str, Any]:
    """A probe that starts from a pre-training, unless it is told otherwise."""
    start = {"overrides": ["model.pretrained={pretrain}"]}
    return {"pretrain": {"experiment": "pretrain_vggsound"}, "probe": {**PROBE["probe"], **start, **probe}}


def plan(
    tmp_path: Path,
    axes: dict[str, Any] = RATES,
    stages: dict[str, Any] = PROBE,
    data_dir: str | None = None,
    **more: Any,
) -> Plan:
    """What configs/study/trial.yaml would say."""
    base = OmegaConf.to_container(compose(config="study").study)
    assert isinstance(base, dict)
    return Plan(
        OmegaConf.create({**base, "name": "trial", "question": "Which?", "axes": axes, "stages": stages, **more}),
        tmp_path,
        data_dir,
    )


QUICK = ("fusion_depth", "masking")  # the others take seconds each
SHIPPED = [name if name in QUICK else pytest.param(name, marks=pytest.mark.full) for name in choices("study")]


@pytest.fixture(scope="module", params=SHIPPED)
def shipped(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    cfg = compose(f"study={request.param}", config="study")
    assert cfg.study.name == request.param
    return Plan(cfg.study, tmp_path_factory.mktemp("logs"))


def test_every_study_can_be_planned(shipped: Plan) -> None:
    assert len(shipped.chains) == len(shipped.cells) * 3
    assert shipped.baseline in shipped.cells
    assert len({run.name for run in shipped.runs}) == len({run.directory for run in shipped.runs}) == len(shipped.runs)
    for run in shipped.runs:
        assert len(run.name) <= 80
        assert not PLACEHOLDER.search("".join(run.overrides))


def test_cells_are_all_combinations_with_each_seed(tmp_path: Path) -> None:
    found = plan(tmp_path)
    assert [chain.name for chain in found.chains] == [
        *("0.1 · seed 1", "0.1 · seed 2", "0.1 · seed 3", "0.2 · seed 1", "0.2 · seed 2", "0.2 · seed 3")
    ]
    assert all(f"model.blr={chain.cell.name}" in chain.runs[0].overrides for chain in found.chains)


def test_one_axis_varies_at_a_time_from_the_baseline(tmp_path: Path) -> None:
    axes = {"model.blr": [0.1, 0.2], "model.layer_decay": [0.5, 0.6], "trainer.max_epochs": [3, 4]}
    stages = {"tune": {"experiment": "vggsound_finetune", "metrics": ["test/top1"]}}
    found = plan(tmp_path, axes, stages, baseline={"model.blr": 0.2}, vary="one", seeds=1)
    assert [cell.name for cell in found.cells] == ["0.1, 0.5, 3", "0.2, 0.5, 3", "0.2, 0.5, 4", "0.2, 0.6, 3"]
    assert found.baseline.name == "0.2, 0.5, 3"


def test_cells_share_the_runs_that_an_axis_does_not_change(tmp_path: Path) -> None:
    found = plan(tmp_path, {"model.trust_coefficient": [0.001, 0.002]}, staged(), seeds=[7])
    (one, other) = found.chains
    assert one.runs[0] == other.runs[0]
    assert one.runs[1] != other.runs[1]
    assert f"model.pretrained='{one.runs[0].last}'" in other.runs[1].overrides
    assert len(found.runs) == 3


def test_a_stage_is_given_the_keys_of_an_axis_that_it_has(tmp_path: Path) -> None:
    rates = {"a": {"model.net.fusion": "dense", "model.layer_decay": 0.7}}
    rates["b"] = {"model.net.fusion": "token", "model.layer_decay": 0.8}
    stages = staged(experiment="vggsound_finetune")
    found = plan(tmp_path, {"kind": rates}, stages, seeds=1)
    given = [[each for each in run.overrides if each.startswith(("model.net.f", "model.lay"))] for run in found.runs]
    assert given == [
        *(["model.net.fusion='dense'"], ["model.net.fusion='dense'", "model.layer_decay=0.7"]),
        *(["model.net.fusion='token'"], ["model.net.fusion='token'", "model.layer_decay=0.8"]),
    ]
    assert [found.composed(found.stages[0], cell).cfg.model.net.fusion for cell in found.cells] == ["dense", "token"]


def test_an_axis_of_starts_leaves_the_stages_alone_that_it_names(tmp_path: Path) -> None:
    axes = {"model.pretrained": {"scratch": None, "pretrained": "{pretrain}"}}
    found = plan(tmp_path, axes, staged(overrides=[]))
    scratch, pretrained = found.chains[0], found.chains[3]
    assert [run.stage.name for run in scratch.runs] == ["probe"]
    assert "model.pretrained=null" in scratch.runs[0].overrides
    assert [run.stage.name for run in pretrained.runs] == ["pretrain", "probe"]


def test_a_run_may_start_from_the_middle_of_another(tmp_path: Path) -> None:
    axes = {"model.pretrained": {"half": "{pretrain@0.5}", "whole": "{pretrain}"}}
    found = plan(tmp_path, axes, staged(overrides=[]), seeds=1)
    (half, whole) = found.chains
    assert half.runs[0] == whole.runs[0]
    assert "callbacks.checkpoints.milestones=[0.5]" in half.runs[0].overrides
    assert half.runs[1].midway == ((half.runs[0].directory, 0.5),)
    assert f"model.pretrained='{checkpoint(half.runs[0].directory, 0.5)}'" in half.runs[1].overrides
    assert whole.runs[1].midway == ()
    assert half.runs[1].name != whole.runs[1].name
    ordinary = plan(tmp_path, RATES, staged(), seeds=1).chains[0].runs[0]
    assert not any("milestones" in each for each in ordinary.overrides)


@pytest.mark.parametrize(
    ("steps", "share", "taken"), [([50, 100], 0.5, 50), ([45, 58, 90, 100], 0.5, 45), ([10, 90, 100], 0.1, 10)]
)
def test_the_checkpoint_nearest_to_a_share_of_the_steps_is_taken(steps, share, taken, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for step in steps:
        (folder / f"step_{step:08d}.ckpt").write_text(str(step))
    (folder / "last.ckpt").symlink_to(f"step_{steps[-1]:08d}.ckpt")
    for _ in range(2):
        place(tmp_path, share)
        assert checkpoint(tmp_path, share).read_text() == str(taken)


@pytest.mark.parametrize(("steps", "words"), [([], "none at all"), ([95, 100], "only those after 95, 100")])
def test_a_checkpoint_that_is_missing_is_said(steps, words, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    for step in steps:
        (tmp_path / "checkpoints" / f"step_{step:08d}.ckpt").touch()
    with pytest.raises(UserError, match=f"no checkpoint near 50% of its steps, {words}"):
        place(tmp_path, 0.5)


def test_cells_are_compared_with_those_that_are_alike_on_the_other_axes(tmp_path: Path) -> None:
    axes = {"model.momentum": [0.8, 0.9], "model.blr": [0.1, 0.2]}
    found = plan(tmp_path, axes, baseline={"model.momentum": 0.8}, seeds=2)
    for chain in found.chains:
        value = {"0.1": 0.5, "0.2": 0.7}[chain.cell.labels["model.blr"]] + float(chain.cell.labels["model.momentum"])
        finish(chain.runs[0], [n < 100 * (value - 0.8) for n in range(100)])
    findings = findings_of(found, measured_of(found, rows_of(found, tmp_path)))
    compared = [(each.cell.name, round(each.comparison.seeds.mean, 6)) for each in findings if each.comparison]
    assert compared == [("0.9, 0.1", 0.1), ("0.9, 0.2", 0.1)]
    text, _ = report(found)
    assert "Differences are from the baseline (0.8, at the same model.blr), of pairs" in text


def test_the_quick_form_trains_less_and_leaves_out_what_would_learn_nothing(tmp_path: Path) -> None:
    pairs = {"experiment": "vggsound_finetune", "metrics": ["test/top1"], "quick": False, **SCRATCH}
    stages = {**staged(), "pairs": pairs}
    (long,), (short,) = (plan(tmp_path, {}, stages, seeds=1, quick=quick).chains for quick in (False, True))
    assert [run.stage.name for run in long.runs] == ["pretrain", "probe", "pairs"]
    assert [run.stage.name for run in short.runs] == ["pretrain", "probe"]
    assert [word for run in short.runs for word in run.overrides if "max_epochs" in word] == [
        *("trainer.max_epochs=8", "trainer.max_epochs=4")
    ]


def test_the_quick_form_shortens_what_an_axis_sets(tmp_path: Path) -> None:
    found = plan(tmp_path, {"trainer.max_epochs": [10, 100]}, seeds=1, quick=True)
    ends = [[word for word in run.overrides if word.startswith("trainer.max_epochs=")][-1] for run in found.runs]
    assert ends == ["trainer.max_epochs=4", "trainer.max_epochs=40"]
    assert [found.composed(found.stages[0], cell).cfg.trainer.max_epochs for cell in found.cells] == [4, 40]


def test_a_run_has_another_name_where_it_would_find_something_else(tmp_path: Path) -> None:
    def name(**more: Any) -> str:
        return plan(tmp_path, seeds=1, **more).runs[0].name

    assert name() == name() == name(overrides=["logger=tensorboard"]) == name(data_dir=str(root_folder() / "data"))
    others = [
        name(stage_overrides=["probe: trainer.max_epochs=3"]),
        name(quick=True),
        name(scale="demo"),
        name(data_dir="/other"),
    ]
    assert len({name(), *others}) == 5


@pytest.mark.parametrize(
    ("axes", "stages", "more", "words"),
    [
        (RATES, {"a": {"experiment": "nothing", "metrics": ["x"]}}, {}, "experiment=nothing, expected"),
        (RATES, {"a": {"experiment": "avsbench_s4", "metric": ["x"]}}, {}, "has the key metric"),
        (RATES, staged(quick="no"), {}, "study.stages.probe.quick is no, expected true or false"),
        (RATES, staged(metrics=[]), {}, "names no metrics"),
        (RATES, {"pre-train": PROBE["probe"]}, {}, "study.stages.pre-train: runs cannot have such a name"),
        ({"model.pretrained": {"a": "{pretrian}"}}, PROBE, {}, "starts from {pretrian}, expected a stage before it"),
        (RATES, staged(metrics=["test/topp1"]), {}, "test/topp1, expected one of test/top1"),
        ({"model.nothing": [1]}, PROBE, {}, "model.nothing"),
        (RATES, staged(metrics=[7]), {}, "study.stages.probe.metrics is [7], expected a list of texts"),
        (RATES, staged(overrides=[{"model.momentum": 0.8}]), {}, "study.stages.probe.overrides is [{"),
        ({"model.blr": []}, PROBE, {}, "study.axes.model.blr is [], expected a list of values"),
        ({"model.blr": 0.1}, PROBE, {}, "study.axes.model.blr is 0.1, expected a list of values"),
        ({"model.blr": [0.1, -1]}, PROBE, {}, "stage probe of cell -1: model.blr is -1"),
        (RATES, PROBE, {"baseline": {"model.blr": 7}}, "expected one of 0.1, 0.2"),
        (RATES, PROBE, {"overrides": ["model.nothing=1"]}, "model.nothing"),
        (RATES, staged(overrides=["model.pretrained={pretrain@1.5}"]), {}, "such as {pretrain@0.5}"),
        (RATES, staged(overrides=["model.pretrained={later}"]), {}, "starts from {later}, expected a stage before it"),
        (RATES, staged(overrides=[]), {}, "stage probe has model.pretrained=auto, expected in its overrides a stage"),
        (RATES, staged(overrides=["model.pretrained=/no.ckpt"]), {}, "model.pretrained=/no.ckpt, which does not exist"),
        (
            RATES,
            staged(overrides=["++run.name=x"]),
            {},
            "study.stages.probe.overrides has ++run.name=x, which the study",
        ),
        (RATES, PROBE, {"overrides": ["seed=4"]}, "study.overrides has seed=4, which the study sets"),
        (
            RATES,
            PROBE,
            {"stage_overrides": ["prob: model.blr=4"]},
            "study.stage_overrides has 'prob: model.blr=4', expected <stage>: <override>, of the stages probe",
        ),
        (RATES, PROBE, {"stage_overrides": ["probe: run.name=x"]}, "study.stages.probe.overrides has run.name=x"),
        (
            {
                "a": {"x, y": {"model.blr": 1}, "x": {"model.blr": 2}},
                "b": {"z": {"model.momentum": 0.8}, "y, z": {"model.momentum": 0.9}},
            },
            PROBE,
            {},
            "study.axes makes several cells called x, y, z",
        ),
        (RATES, PROBE, {"incomparable": ["data"]}, "study.incomparable has data, expected some of the axes model.blr"),
        ({}, PROBE, {"incomparable": ["data"]}, "study.incomparable has data, expected none: the study has no axes"),
        ({"seed": [1, 2]}, PROBE, {}, "study.axes.seed sets seed, expected a key that changes what a run finds"),
        ({"x": {"on": {"logger": "none"}}}, PROBE, {}, "study.axes.x sets logger"),
    ],
)
def test_what_is_no_study_is_said_before_anything_runs(axes, stages, more, words, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        assert plan(tmp_path, axes, stages, **more).runs
    assert words in str(error.value)
    assert not any(tmp_path.iterdir())


def finish(run: Any, right: list[bool], seconds: float = 10, steps: int = 60) -> None:
    """Write what a classification leaves."""
    run.directory.mkdir(parents=True)
    lines = [[n, f"clip{n}", "a", "a" if each else "b"] for n, each in enumerate(right)]
    with (run.directory / "classification_test.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["item", "id", "classes", "predicted"], *lines])
    (run.directory / "metrics.json").write_text(json.dumps({"test/top1": sum(right) / len(right)}))
    cost = {"seconds": seconds, "peak_memory_gb": 1, "parts": 1, "steps": steps}
    (run.directory / "cost.json").write_text(json.dumps(cost))
    start = {"commit": "0123456789", "dirty": False, "machine": {"cpu": "a b", "cores": 1, "gpus": []}}
    (run.directory / "provenance.json").write_text(json.dumps({"starts": [start]}))


@pytest.fixture
def finished(tmp_path: Path) -> Plan:
    """Two cells: the second is right on 20 more clips of 100 with every seed."""
    found = plan(tmp_path)
    for chain in found.chains:
        right = 50 + chain.seed + 20 * (chain.cell.name == "0.2")
        finish(chain.runs[0], [n < right for n in range(100)])
    return found


def interval(text: str) -> tuple[float, ...]:
    return tuple(map(float, text.strip("[]").split(", ")))


def report(found: Plan, plots: bool = False) -> tuple[str, list[dict[str, str]]]:
    """The text, and the lines of results.csv; plots take half a second."""
    sizes = {cell.name: (1.0, 2.0) for cell in found.cells}
    with pytest.MonkeyPatch.context() as patch:
        if not plots:
            patch.setattr("deepavfusion.study.report._draw", lambda *_: [])
        write_report(found, rows_of(found, found.failures), sizes, {"command": "a b"}, found.reports)
    with (found.reports / "results.csv").open(newline="") as file:
        return (found.reports / "report.md").read_text(), list(csv.DictReader(file))


def test_the_report_has_a_row_for_each_cell_and_seed_and_says_what_differs(finished: Plan) -> None:
    text, lines = report(finished, plots=True)
    assert [(line["model.blr"], line["seed"], line["probe test/top1"]) for line in lines] == [
        *(("0.1", "1", "0.51"), ("0.1", "2", "0.52"), ("0.1", "3", "0.53")),
        *(("0.2", "1", "0.71"), ("0.2", "2", "0.72"), ("0.2", "3", "0.73")),
    ]
    assert {line["seconds"] for line in lines} == {"10"}
    assert "| 0.1 | 0.520 ± 0.010 |" in text
    (line,) = re.findall(r"\| 0.2 \| (0.720 ± 0.010 \| \[.*) \|", text)
    mean, both, difference, seeds, paired, p, words = line.split(" | ")
    assert (mean, difference, seeds, p) == ("0.720 ± 0.010", "+0.200", "[+0.200, +0.200]", "< 0.001")
    assert words == "better, supported by 3 seeds"
    assert interval(both) == pytest.approx((0.63, 0.81), abs=0.01)  # 72 of 100 clips: ± 1.96 × 0.045
    assert interval(paired) == pytest.approx((0.12, 0.28), abs=0.01)  # 20 of 100 clips: ± 1.96 × 0.04
    base, other = read_table(finished.reports / "summary.csv")
    assert [base[key] for key in ("model.blr", "mean", "difference", "verdict")] == ["0.1", "0.52", "", "baseline"]
    assert [other[key] for key in ("model.blr", "mean", "difference", "verdict")] == ["0.2", "0.72", "0.2", words]
    ends = [float(other[f"difference_{end}_seeds_and_clips"]) for end in ("low", "high")]
    assert interval(paired) == pytest.approx(ends, abs=5e-4)
    assert {path.name for path in finished.reports.glob("*.png")} == {"probe_top1.png", "probe_top1_cost.png"}
    assert "Not run" not in text
    assert "6 of 6 runs of 2 cells are finished, with seeds 1, 2, 3, made by commit 0123456." in text
    assert "| machine | a b, 1 core a run |" in text
    assert "GPUs" not in text


def test_the_report_says_whether_all_cells_took_the_same_steps(finished: Plan) -> None:
    def with_steps(*steps: int) -> str:
        for run, each in zip(finished.runs, steps, strict=True):
            (run.directory / "cost.json").write_text(json.dumps({"seconds": 10, "steps": each}))
        text, lines = report(finished)
        assert [line["probe steps"] for line in lines] == [str(each) for each in steps]
        return text[text.index("- probe: ") :].partition("\n\n##")[0]

    assert with_steps(*[60] * 6) == "- probe: 60 optimizer steps, the same in every cell."
    assert (
        with_steps(60, 62, 62, 60, 62, 62)
        == "- probe: 60 to 62 optimizer steps, the same in every cell with the same seed."
    )
    said = with_steps(60, 60, 60, 30, 60, 60).splitlines()
    assert said[0] == "- probe: 30 to 60 optimizer steps; they **differ** between cells."
    assert [line for line in said if line.startswith("| 0.")] == ["| 0.1 | 60 |", "| 0.2 | 30 to 60 |"]


@pytest.mark.parametrize(
    ("name", "stage", "data"),
    [
        ("pretraining", "pretrain_other", "audioset"),
        ("token_semantics", "audioset", "audioset"),
        ("token_semantics", "music", "music"),
    ],
)
def test_pre_training_on_other_data_takes_about_as_many_steps(name: str, stage: str, data: str) -> None:
    """Of drawn clips, of which there are fewer; the published recipe passes each once."""
    for scale in ("study", "demo", "paper"):
        cfg = compose(f"study={name}", f"study.scale={scale}", config="study")
        (repeats,) = (int(text[13:]) for text in cfg.study.stages[stage].overrides if text.startswith("data.repeats="))
        clips = cfg.study.costs.clips.demo
        if scale == "paper":
            assert repeats == 1
        else:
            assert repeats * clips[data] == pytest.approx(clips["default"], rel=0.2)


def test_the_estimate_knows_how_many_clips_are_drawn() -> None:
    costs = compose(config="study").study.costs
    assert costs.clips.demo.audioset == FULL.audioset_unbalanced
    assert costs.tested.demo.audioset == FULL.audioset_eval
    assert costs.clips.demo.vggsound_music == FULL.vggsound_music_train * len(STAGE)
    assert costs.tested.demo.vggsound_music == FULL.vggsound_music_test * len(STAGE)
    assert costs.clips.demo.default == pytest.approx(FULL.vggsound_train * len(NAMES), rel=0.05)  # less those held out
    assert costs.tested.demo.default == FULL.vggsound_test * len(NAMES)


@pytest.mark.parametrize("name", choices("study"))
def test_accuracies_on_other_data_are_not_compared(name: str) -> None:
    study = compose(f"study={name}", config="study").study
    assert ("data" in study.axes) == ("data" in study.incomparable)


def test_equal_cells_are_reported_as_no_difference(tmp_path: Path) -> None:
    found = plan(tmp_path)
    for chain in found.chains:
        finish(chain.runs[0], [n < 50 + chain.seed for n in range(100)])
    base, other = findings_of(found, measured_of(found, rows_of(found, tmp_path)))
    assert other.comparison
    assert (base.verdict, other.verdict) == ("baseline", "no difference that the seeds support")
    assert other.comparison.p == 1.0


def test_cells_that_share_a_run_are_no_comparison(tmp_path: Path) -> None:
    stages = staged()
    stages["pretrain"]["metrics"] = ["knn/combined"]
    found = plan(tmp_path, {"model.momentum": [0.8, 0.9]}, stages)  # pre-training has no such key
    for run in {chain.runs[0].name: chain.runs[0] for chain in found.chains}.values():
        finish(run, [True])
        (run.directory / "metrics.json").write_text('{"knn/combined": 0.5}')
    _, other = findings_of(found, measured_of(found, rows_of(found, tmp_path)))[:2]
    assert other.verdict == "no difference: the same runs"
    assert "Of 0 such comparisons" in report(found)[0]


def test_pairs_without_the_baseline_are_compared_too(tmp_path: Path) -> None:
    found = plan(tmp_path, {"model.blr": [0.1, 0.2, 0.3]})
    for chain in found.chains:
        right = 50 + chain.seed + {"0.1": 0, "0.2": 5 * chain.seed, "0.3": 30 + 4 * chain.seed}[chain.cell.name]
        finish(chain.runs[0], [n < right for n in range(100)])
    text, _ = report(found)
    lines = read_table(found.reports / "pairs.csv")
    assert [(each["cell"], each["other"], each["difference"]) for each in lines] == [
        *(("0.2", "0.1", "0.1"), ("0.3", "0.1", "0.38"), ("0.3", "0.2", "0.28")),
    ]
    assert "Of its 1 comparisons without a baseline, the seeds support 1;" in text
    low, high = stats.t.interval(0.95, 2, loc=0.28, scale=stats.sem([0.29, 0.28, 0.27]))
    assert f"| probe | `test/top1` | 0.3 | 0.2 | +0.280 | [+{low:.3f}, +{high:.3f}] | < 0.001 |" in text


@pytest.mark.parametrize(("incomparable", "all_pairs", "others"), [(False, 9, 4), (True, 6, 2)])
def test_no_two_values_of_an_incomparable_axis_are_compared(
    incomparable: bool, all_pairs: int, others: int, tmp_path: Path
) -> None:
    axes = {"model.blr": [0.1, 0.2, 0.3], "model.momentum": [0.8, 0.9]}
    names = ["model.momentum", "model.momentum"] if incomparable else []
    found = plan(tmp_path, axes, baseline={"model.blr": 0.1}, incomparable=names)
    for chain in found.chains:
        other = "0.9" in chain.cell.name
        finish(chain.runs[0], [n < 50 + chain.seed + 20 * other for n in range(100)], steps=60 - 20 * other)
    text, _ = report(found, plots=incomparable)
    pairs = {(line["cell"], line["other"]) for line in read_table(found.reports / "pairs.csv")}
    rates = (("0.2", "0.1"), ("0.3", "0.1"), ("0.3", "0.2"))
    assert pairs >= {(f"{cell}, {at}", f"{other}, {at}") for cell, other in rates for at in ("0.8", "0.9")}
    assert len(pairs) == all_pairs
    but = ", but not on model.momentum" if incomparable else ""
    assert f"that differ on one axis{but}. Of its {others} comparisons without a baseline" in text
    same = ", the same in every cell with the same seed and model.momentum."
    assert f"- probe: 40 to 60 optimizer steps{same if incomparable else '; they **differ** between cells.'}" in text
    if incomparable:  # one plot of costs for each of its values
        drawn = {path.name for path in found.reports.glob("*.png")}
        assert drawn == {"probe_top1_1.png", "probe_top1_cost_1.png", "probe_top1_cost_2.png"}
        assert "![probe: test/top1, and cost, 0.9](probe_top1_cost_2.png)" in text


@pytest.mark.parametrize(
    ("axes", "vary", "baselines", "name"),
    [
        ({"model.blr": [0.1, 0.2]}, "all", {}, "none: no two cells have the same model.blr"),
        (
            {"model.blr": [0.1, 0.2], "model.momentum": [0.8, 0.9]},
            "all",
            {"0.1, 0.9": "0.1, 0.8", "0.2, 0.9": "0.2, 0.8"},
            "0.8, at the same model.blr",
        ),
        (
            {"model.blr": [0.1, 0.2], "model.momentum": [0.8, 0.9]},
            "one",
            {"0.1, 0.9": "0.1, 0.8"},
            "0.8, at the same model.blr",
        ),
    ],
)
def test_the_baseline_is_alike_on_incomparable_axes(axes, vary, baselines, name, tmp_path: Path) -> None:
    found = plan(tmp_path, axes, vary=vary, incomparable=["model.blr"])
    for chain in found.chains:
        finish(chain.runs[0], [n < 50 + chain.seed for n in range(100)])
    text, _ = report(found)
    assert f"Differences are from the baseline ({name}), of pairs" in text
    findings = findings_of(found, measured_of(found, rows_of(found, tmp_path)))
    assert {each.cell.name: each.baseline.name for each in findings if each.comparison} == baselines
    assert {each.cell.name for each in findings if each.verdict == "baseline"} == set(baselines.values())


def test_a_plot_of_what_is_no_longer_reported_is_removed(finished: Plan) -> None:
    finished.reports.mkdir(parents=True)
    (finished.reports / "probe_loss.png").write_bytes(b"old")
    text, _ = report(finished, plots=True)
    assert "probe_loss" not in text
    assert not (finished.reports / "probe_loss.png").exists()
    assert (finished.reports / "probe_top1.png").exists()


def test_runs_on_other_numbers_of_gpus_are_said(finished: Plan) -> None:
    start = {"machine": {"cpu": "a b", "cores": 12, "gpus": ["H100", "H100"]}}
    (finished.runs[0].directory / "provenance.json").write_text(json.dumps({"starts": [start]}))
    text, _ = report(finished)
    assert "| machine | a b, 1 core a run; a b, 12 cores a run, 2 × H100 |" in text
    assert "Runs had 0 or 2 GPUs: their batches differ, which may explain differences." in text


@pytest.mark.parametrize("content", ["{", "[1]", "{}"])
def test_a_run_whose_metrics_are_damaged_costs_the_report_its_row_only(finished: Plan, content: str) -> None:
    (finished.runs[0].directory / "metrics.json").write_text(content)
    text, lines = report(finished)
    assert "| 0.1 | 0.525 ± 0.007 (2 of 3 seeds) |" in text
    assert [line["seconds"] for line in lines] == ["", *["10"] * 5]
    assert lines[0]["missing"].startswith("probe: ")


def test_a_study_of_one_cell_has_a_table_of_its_metrics(tmp_path: Path) -> None:
    found = plan(tmp_path, {})
    for chain in found.chains:
        finish(chain.runs[0], [n < 50 + chain.seed for n in range(100)])
    text, lines = report(found)
    assert "| probe: `test/top1` | 0.520 ± 0.010 |" in text
    assert "baseline" not in text
    assert [line["seed"] for line in lines] == ["1", "2", "3"]
    assert not list(found.reports.glob("*.png"))


def test_the_same_difference_with_every_seed_is_none_if_other_clips_might_not_give_it(tmp_path: Path) -> None:
    """One clip more, each time; of 130, the differences are not equal to the last bit."""
    found = plan(tmp_path)
    for chain in found.chains:
        finish(chain.runs[0], [n < 50 + chain.seed + (chain.cell.name == "0.2") for n in range(130)])
    _, other = findings_of(found, measured_of(found, rows_of(found, tmp_path)))
    assert other.comparison
    assert other.comparison.seeds.low == pytest.approx(1 / 130)
    assert other.comparison.p == 0.0
    assert other.verdict == "no difference that the seeds support"
    for run in found.runs:
        (run.directory / "classification_test.csv").unlink()
    _, other = findings_of(found, measured_of(found, rows_of(found, tmp_path)))
    assert other.verdict == "no difference that the seeds support"


def test_a_run_that_was_killed_is_not_timed_whole(finished: Plan) -> None:
    assert "Some runs were killed" not in report(finished)[0]
    (finished.runs[0].directory / "provenance.json").write_text('{"starts": [{"commit": "a"}, {"commit": "b"}]}')
    text, lines = report(finished)
    assert "Some runs were killed, and their seconds are of the other starts only." in text
    assert lines[0]["commit"] == "a b"
    (finished.runs[0].directory / "cost.json").unlink()
    assert "| 0.1 | 1.00 | 2.000 | 10 |" in report(finished)[0]  # of the other seeds


def test_a_study_of_which_nothing_is_finished_is_reported(tmp_path: Path) -> None:
    found = plan(tmp_path)
    text, lines = report(found)
    assert "0 of 6 runs of 2 cells are finished" in text
    assert [line["missing"] for line in lines] == ["probe: not run yet"] * 6
    finish(found.runs[0], [True])
    assert "| 0.1 | 1.000 ± – (1 of 3 seeds) |" in report(found)[0]


def test_what_failed_or_was_not_run_is_named_and_the_rest_reported(finished: Plan) -> None:
    first, last = finished.runs[0], finished.runs[-1]
    for run in (first, last):
        (run.directory / "metrics.json").unlink()
    note_failure(first, finished.failures, "the disk burned")
    text, lines = report(finished)
    assert "| 0.1, seed 1 | probe | the disk burned |" in text
    assert "| 0.2, seed 3 | probe | not run yet |" in text
    assert lines[0]["missing"] == "probe: the disk burned"
    assert "| +0.200 | – |" in text  # of the pair with seed 2
    assert "fewer than 3 seeds say nothing" in text


def test_scores_that_are_not_those_of_the_metric_are_not_used(finished: Plan) -> None:
    run = finished.runs[0]
    assert len(scores_of(run, "test/top1") or {}) == 100
    (run.directory / "metrics.json").write_text(json.dumps({"test/top1": 0.9}))
    assert scores_of(run, "test/top1") is None
