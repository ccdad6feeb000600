"""VGGSounder: figures as the benchmark defines them, labels as its package ships them, and a test of a checkpoint."""

from __future__ import annotations

import csv
import json
from importlib import metadata, util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from torch import Tensor

from deepavfusion.cli.complete import evaluation_overrides
from deepavfusion.config.compose import instantiate
from deepavfusion.data.lists.clip_list import ClipList
from deepavfusion.data.lists.vggsound import vggsound
from deepavfusion.metrics.vggsounder import AT, BOTH, HEARD, PASSES, SEEN, VGGSounderMetrics, areas, figures
from deepavfusion.metrics.vggsounder_labels import CODES, COLUMNS, FILES, VGGSounderLabels, read_labels
from deepavfusion.models.classifier import mean_of_heads
from deepavfusion.tasks.vggsounder import VGGSounder
from deepavfusion.types import Batch, Clip
from deepavfusion.utils.errors import UserError
from helpers.checkpoints import SIZE, encoder, save
from helpers.distributed import assert_two_give_the_same_as_one
from helpers.errors import refusal
from helpers.golden import GOLDEN
from helpers.runs import CLASSIFY, compose, evaluate, numbers, sentence

Rows = list[tuple[str, str, str, bool]]  # clip, label, modality, background music


@pytest.fixture(scope="module")
def reference() -> dict[str, Any]:
    return json.loads((GOLDEN / "protocols" / "vggsounder.json").read_text())


@pytest.fixture(scope="module")
def classes() -> list[str]:
    """In the order of the benchmark, which is not alphabetical."""
    return json.loads((GOLDEN / "protocols" / "vggsounder_classes.json").read_text())


def labels_of(reference: dict[str, Any], classes: list[str]) -> VGGSounderLabels:
    coded = {
        version: {clip: {name: CODES[modality] for name, modality in labels} for clip, labels in clips.items()}
        for version, clips in reference["labels"].items()
    }
    return VGGSounderLabels.of(classes, coded)


def filled(reference: dict[str, Any], classes: list[str]) -> dict[str, Tensor]:
    """The logits behind the reference values, float64 [60, 309]."""
    found = {}
    for key, (name, gain) in enumerate((("a", 1.7), ("v", 1.2), ("av", 1.9))):
        i = torch.arange(60 * 309, dtype=torch.float64)
        x = torch.sin((0.11 + 0.2 * key) * i + 0.0131 * (i * i)).view(60, 309)
        for row, clip in enumerate(reference["ids"]):
            for label in {label for label, _ in reference["labels"]["1.0"][clip]}:
                n = classes.index(label)
                x[row, n] += gain * (0.4 + np.sin(1.3 * row + 0.7 * n + 2.1 * key))
        assert reference["check"][name] == pytest.approx([x.sum().item(), x.abs().sum().item()], abs=1e-9)
        found[name] = x
    return found


def expected(reference: dict[str, Any], version: str) -> dict[str, float]:
    """Under our names."""
    found = {}
    for subset, values in reference["metrics"][version].items():
        for name, value in values.items() if isinstance(values, dict) else ():
            key = name.replace("hit_rate", "hit").replace("@", "_at_")
            found[f"{subset.replace(' ', '_')}_{key}"] = value
    return found


@pytest.mark.parametrize("version", ["1.0", "0.1.6"])
def test_figures_are_those_of_the_benchmark(version, reference, classes):
    labels = labels_of(reference, classes)
    rows = [labels.rows[clip] for clip in reference["ids"]]
    codes = labels.codes[rows, [*labels.sets].index(version)]
    logits = filled(reference, classes)
    found, values = figures(logits, codes), expected(reference, version)
    assert len(values) == 5 * 31 + 3
    assert {name: found[name] for name in values} == pytest.approx(values, abs=1e-9)
    heads = {"a_head": logits["v"], "v_head": logits["a"]}
    both = figures(logits | heads, codes)
    assert {name: both[name] for name in found} == found
    assert both["a_f1_at_1_head"] == sk.f1_score(*chosen(logits["v"], codes, (HEARD, BOTH)), average="micro")
    assert (both["mu_a_head"], both["mu_v_head"], both["mu_av_head"]) == (found["mu_v"], found["mu_a"], found["mu_av"])


def chosen(logits: Tensor, codes: Tensor, kinds: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Truth and likeliest class of the clips with such labels."""
    truth = torch.isin(codes, torch.tensor(kinds))
    rows = truth.any(dim=1)
    marked = torch.zeros_like(truth).scatter_(1, logits.argmax(dim=1, keepdim=True), True)
    return truth[rows], marked[rows]


def test_the_metric_names_each_set_of_labels_and_counts_its_clips(reference, classes):
    """In parts, in another order, with a clip evaluated twice, and one of them not at all."""
    labels, logits = labels_of(reference, classes), filled(reference, classes)
    logits |= {"a_head": logits["a"], "v_head": logits["v"]}
    rows = torch.tensor([labels.rows[clip] for clip in reference["ids"]])
    metric = VGGSounderMetrics(labels.sets, 309)
    for part in (torch.arange(30, 60), torch.arange(31)):
        metric.update({name: x[part] for name, x in logits.items()}, labels.codes[rows[part]], part)
    found = {name: value.item() for name, value in metric.compute().items()}
    for version in labels.sets:
        values = expected(reference, version)  # logits in float32 rank these clips alike
        assert {name: found[f"{version}/{name}"] for name in values} == pytest.approx(values, abs=1e-9)
        assert (found[f"{version}/clips"], found[f"{version}/coverage"]) == (60, 1)

    metric.reset()
    metric.update({name: x[:45] for name, x in logits.items()}, labels.codes[rows[:45]], torch.arange(45))
    found = metric.compute()
    assert (found["1.0/clips"], found["1.0/coverage"]) == (45, 0.75)
    with pytest.raises(ValueError, match=r"NaN logits of v_head in clips \[7\]"):
        metric.update(logits | {"v_head": logits["v"].index_fill(0, torch.tensor([7]), torch.nan)},
                      labels.codes[rows], torch.arange(60))  # fmt: skip


def test_equal_logits_are_ranked_by_the_order_of_the_classes():
    codes = torch.tensor([[0, BOTH, BOTH, 0], [BOTH, 0, 0, 0]], dtype=torch.uint8)
    found = figures(dict.fromkeys(("a", "v", "av"), torch.zeros(2, 4)), codes)
    assert [found[f"av_hit_at_{k}"] for k in AT] == [0.5, 1, 1, 1]
    assert found["av_accuracy_at_1"] == 0.5
    assert (found["av_auc_roc"], found["av_auc_pr"]) == (0.5, 0.5)
    assert found["av_f1_at_10"] == pytest.approx(2 * 3 / (8 + 3))  # with four classes, all are predicted
    assert (found["mu_a"], found["mu_av"]) == (0, 0)
    assert "a_only_clips" not in found


def test_bounds_are_what_all_labels_and_the_commonest_ones_get():
    codes = torch.tensor([[BOTH, BOTH, 0], [BOTH, 0, 0], [0, 0, BOTH]], dtype=torch.uint8)
    found = figures({"av": torch.rand(3, 3)}, codes)
    assert found["av_f1_at_1_perfect"] == 2 * 3 / (3 + 4)
    assert (found["av_f1_at_1_frequent"], found["av_hit_at_1_frequent"]) == (2 * 2 / (3 + 4), 2 / 3)


def test_areas_with_equal_scores_are_those_of_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 6, (80, 5), generator=generator).double()
    truth = torch.rand(80, 5, generator=generator) < 0.2
    truth[:, 3], truth[:, 4] = True, False  # without a negative, or a positive
    found = areas(scores, truth)
    pairs = [(truth[:, n].numpy(), scores[:, n].numpy()) for n in range(3)]
    assert found["auc_roc"] == pytest.approx(np.mean([sk.roc_auc_score(*pair) for pair in pairs]), abs=1e-12)
    assert found["auc_pr"] == pytest.approx(np.mean([sk.average_precision_score(*pair) for pair in pairs]), abs=1e-12)


def drawn(items: list[int]) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(sum(items))
    logits = {name: torch.randn(len(items), 4, generator=generator) for name in PASSES}
    codes = torch.randint(0, 4, (len(items), 2, 4), generator=generator).byte()
    return {"logits": logits, "codes": codes, "item": torch.tensor(items)}


def test_two_processes_find_what_one_finds():
    def found(metric: VGGSounderMetrics) -> dict[str, float]:
        return {name: value.item() for name, value in metric.compute().items()}

    assert_two_give_the_same_as_one(lambda: VGGSounderMetrics({"x": 7, "y": 9}, 4), drawn, found)


# ---- labels


def install(folder: Path, patch: pytest.MonkeyPatch, classes: list[str], rows: dict[str, Rows], release: str = "1.0"):
    """A stand-in for the package of the labels: its files, and its release."""
    data, info = folder / "vggsounder" / "data", folder / f"vggsounder-{release}.dist-info"
    data.mkdir(parents=True)
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vggsounder\nVersion: {release}\n")
    (folder / "vggsounder" / "__init__.py").write_text("raise AssertionError('only the files are read')\n")
    tables = {FILES.get(release, FILES["1.0"])[version]: (COLUMNS, *(
        (clip, label, modality, music, False, False) for clip, label, modality, music in lines
    )) for version, lines in rows.items()}  # fmt: skip
    tables["classes.csv"] = (
        ("index", "mid", "display_name"),
        *((n, f"vgg_{n}", name) for n, name in enumerate(classes)),
    )
    for name, lines in tables.items():
        with (data / name).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(lines)
    patch.syspath_prepend(str(folder))


ROWS: dict[str, Rows] = {
    "304d10a": [
        ("b_000001", "dog, barking", "A", False), ("b_000001", "cat", "AV", False), ("a_000030", "cat", "V", True),
    ],
    "v1.0": [("b_000001", "cat", "V", False), ("c_000000", "dog, barking", "AV", False)],
}  # fmt: skip


def test_labels_of_each_version_with_and_without_background_music(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, ["dog, barking", "cat"], ROWS)
    labels = read_labels(["304d10a", "304d10a_music", "v1.0"])
    assert labels.classes == ["dog, barking", "cat"]
    assert labels.sets == {"304d10a": 1, "304d10a_music": 2, "v1.0": 2}
    assert list(labels.rows) == ["a_000030", "b_000001", "c_000000"]
    assert labels.codes.tolist() == [
        [[0, 0], [0, SEEN], [0, 0]],
        [[HEARD, BOTH], [HEARD, BOTH], [0, SEEN]],
        [[0, 0], [0, 0], [BOTH, 0]],
    ]
    assert labels.known(["x", "c_000000", "b_000001"]) == [1, 2]


def test_the_clip_in_which_release_1_0_changed_the_former_labels_is_as_it_was_published(tmp_path, monkeypatch, classes):
    clip = "InjDI0taSEQ_000350"
    changed = [(clip, "male speech, man speaking", "AV", False), (clip, "people gargling", "A", False)]
    install(tmp_path, monkeypatch, classes, {"304d10a": changed, "v1.0": changed})
    labels = read_labels(["304d10a", "v1.0"])
    published, now = ({classes[n]: code for n, code in enumerate(row) if code} for row in labels.codes[0].tolist())
    assert published == {
        "bee, wasp, etc. buzzing": BOTH, "fly, housefly buzzing": HEARD, "male speech, man speaking": HEARD,
    }  # fmt: skip
    assert now == {"male speech, man speaking": BOTH, "people gargling": HEARD}


def test_the_installed_package_has_the_published_numbers_of_clips():
    if util.find_spec("vggsounder") is None or metadata.version("vggsounder") not in FILES:
        pytest.skip("the extra `benchmarks` is not installed")
    versions = FILES[metadata.version("vggsounder")]
    labels = read_labels([*versions])
    assert len(labels.classes) == 309
    counts = {"304d10a": (12372, 12275, 11402, 11145, 5998, 923), "v1.0": (12014, 11917, 10188, 9889, 6393, 851)}
    for n, version in enumerate(versions):
        codes = labels.codes[:, n]
        kinds = ((HEARD, BOTH), (SEEN, BOTH), (BOTH,), (HEARD,), (SEEN,))
        with_such = [torch.isin(codes, torch.tensor(kind)).any(dim=1).sum().item() for kind in kinds]
        assert (labels.sets[version], *with_such) == counts[version]


def hide(patch: pytest.MonkeyPatch) -> None:
    """As where the package is not installed."""
    find = util.find_spec
    patch.setattr(util, "find_spec", lambda name, *more: None if name == "vggsounder" else find(name, *more))


def test_what_is_not_installed_or_not_known_is_one_sentence(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        hide(patch)
        message = refusal(read_labels, ["v1.0"])
    assert message.startswith("the labels of VGGSounder are not installed: expected the package vggsounder; `")
    assert "-m pip install --no-deps vggsounder==" in message
    classes = ["dog, barking", "cat"]
    with monkeypatch.context() as patch:
        install(tmp_path / "new", patch, classes, ROWS, "2.0")
        assert "release 2.0 of vggsounder is not known here" in refusal(read_labels, ["v1.0"])
    with monkeypatch.context() as patch:
        install(tmp_path / "old", patch, classes, {"304d10a": ROWS["304d10a"]}, "0.1.5")
        assert read_labels(["304d10a"]).sets == {"304d10a": 1}
        message = refusal(read_labels, ["304d10a", "v1.0"])
        assert message.startswith("release 0.1.5 of vggsounder has no labels v1.0: install another (`")
        (tmp_path / "old" / "vggsounder" / "data" / "classes.csv").unlink()
        assert "classes.csv cannot be read (No such file or directory)" in refusal(read_labels, ["304d10a"])
    with monkeypatch.context() as patch:
        install(tmp_path / "odd", patch, classes, {"304d10a": [("b_000001", "cow", "A", False)], "v1.0": ROWS["v1.0"]})
        message = refusal(read_labels, ["304d10a"])
    assert "_0.1.6.csv, line 2, is b_000001,cow,A,False: expected `video_id,label,modality,background_music" in message


# ---- the task


def task_of(classes: int = 3) -> VGGSounder:
    torch.manual_seed(0)
    return VGGSounder(instantiate(encoder(32, 128)), classes, label_sets=["304d10a", "v1.0"], pretrained=None).eval()


def data_of(*ids: str, classes: tuple[str, ...] = ("cat", "cow", "dog")) -> Any:
    clips = ClipList("test", [Clip(name, name, 0) for name in ids], list(classes))
    more = {"num_classes": len(classes), "multi_label": False, "dataset_name": "vggsound", "root": "data/vggsound"}
    return SimpleNamespace(classes=list(classes), lists={"test": clips}, **more)


def test_heads_and_passes_by_one_modality_are_both_measured(tmp_path, monkeypatch):
    """Two windows of each of three clips, one of which the benchmark does not have; its classes in its own order."""
    rows = {
        version: [("b_000001", "cow", "A", False), ("c_000000", "dog", "V", False)] for version in ("304d10a", "v1.0")
    }
    install(tmp_path, monkeypatch, ["dog", "cat", "cow"], rows)
    task = task_of()
    task.check_data(data_of("a_000000", "b_000001", "c_000000"))
    assert task.order == [2, 0, 1]
    image, audio = torch.randn(6, 3, SIZE, SIZE), torch.randn(6, 1, 128, 128)
    ids = [name for name in ("a_000000", "b_000001", "c_000000") for _ in range(2)]
    plain = {"waveform": torch.zeros(6, 1), "frame_time": torch.zeros(6), "window_start": torch.zeros(6)}
    batch = Batch(image=image, spectrogram=audio, label=torch.zeros(6, dtype=torch.int64), id=ids, group=2,
                  gain_db=torch.zeros(6), item=torch.tensor([5, 5, 6, 6, 9, 9]), **plain)  # fmt: skip
    with torch.no_grad():
        task.evaluate(batch, "dense", task.dense_metrics)
        joint, heard, seen = task.net(image, audio), task.net(None, audio), task.net(image, None)
    assert (set(heard), set(seen)) == ({"audio", "fusion"}, {"image", "fusion"})
    table = task.dense_sounder.table()
    assert table["item"].tolist() == [6, 9]
    wanted = {"av": mean_of_heads(joint), "a": mean_of_heads(heard), "v": mean_of_heads(seen),
              "a_head": joint["audio"], "v_head": joint["image"]}  # fmt: skip
    for name, logits in wanted.items():
        mean = logits.view(3, 2, 3).mean(dim=1)[1:, [2, 0, 1]]
        torch.testing.assert_close(table[name], mean, atol=1e-6, rtol=0)
    assert table["codes"].tolist() == [[[0, 0, HEARD]] * 2, [[SEEN, 0, 0]] * 2]
    assert not len(task.test_sounder.table()["item"])


def test_other_classes_and_other_clips_are_one_sentence(tmp_path, monkeypatch):
    rows = {version: [("b_000001", "cow", "A", False)] for version in ("304d10a", "v1.0")}
    install(tmp_path, monkeypatch, ["dog", "cat", "cow"], rows)
    message = refusal(task_of().check_data, data_of("b_000001", classes=("cat", "cow", "goat")))
    assert "VGGSounder has 3 classes and vggsound under data/vggsound 3, of which 2 are the same" in message
    assert "('dog' is only in VGGSounder): expected a classifier trained on VGGSound with its whole list" in message
    message = refusal(task_of().check_data, data_of("b_1", "c_1"))
    assert "none of the 2 clips of the test split under data/vggsound (e.g. b_1) is in VGGSounder (e.g. b_000001)" in (
        message
    )


def test_classes_in_another_order_than_those_of_the_checkpoint_are_one_sentence():
    task = task_of()
    task.record = {"classes": ["cat", "cow", "dog"]}
    for record in ({"classes": ["cat", "cow", "dog"]}, {}, None, {"classes": 3}):
        task.on_load_checkpoint({"record": record})
    message = refusal(task.on_load_checkpoint, {"record": {"classes": ["cat", "dog", "cow"]}})
    assert "or in another order (number 1 is dog there and cow here)" in message
    with pytest.raises(UserError, match="number 2 is none there and dog here"):
        task.on_load_checkpoint({"record": {"classes": ["cat", "cow"]}})


# ---- from the command line


@pytest.fixture
def stand_in(classify_data, tmp_path, monkeypatch) -> Rows:
    """Labels for the test clips of the demo, its classes in reversed order; one of its clips is on no disk."""
    listed = vggsound(classify_data / "vggsound", "test")
    rows = []
    for clip in listed.clips[:-1]:
        other = listed.classes[clip.label - 1]
        rows += [(clip.id, listed.classes[clip.label], "AV", False), (clip.id, other, "AV"[clip.label % 2], False)]
    rows.append(("nowhere_000000", listed.classes[0], "AV", False))
    former = [(clip, label, modality, clip == rows[0][0]) for clip, label, modality, _ in rows]
    install(tmp_path / "site", monkeypatch, listed.classes[::-1], {"304d10a": former, "v1.0": rows})
    return rows


def test_a_checkpoint_is_evaluated(finetuned, stand_in, tmp_path, monkeypatch, capsys):
    given = ["experiment=vggsounder", f"ckpt_path={finetuned}/checkpoints/last.ckpt", f"paths.log_dir={tmp_path}/logs"]
    evaluate(monkeypatch, *given, "run.name=x", "~logger.tensorboard")
    out = capsys.readouterr().out
    assert "v1.0, image  vggsounder_v1.0/v_f1_at_1" in out  # a table that fits 80 columns
    assert "…" not in out[out.index("Results") :]
    assert "VGGSounder, labels v1.0: 7 of 8 clips were evaluated" in out
    assert "VGGSounder, labels 304d10a: 6 of 7 clips were evaluated" in out
    folder = tmp_path / "logs" / "classify" / "evals" / "x"
    assert numbers(folder / "metrics.json") == pytest.approx(numbers(finetuned / "metrics.json"), abs=1e-5)
    assert {key: numbers(folder / "metrics.json", "vggsounder_v1.0/")[f"vggsounder_v1.0/{key}"] for key in
            ("clips", "coverage", "av_clips")} == {"clips": 7, "coverage": 7 / 8, "av_clips": 7}  # fmt: skip
    with np.load(folder / "predictions_test.npz", allow_pickle=False) as file:
        saved = {name: torch.from_numpy(file[name]) for name in ("logits_all", "logits_audio", "logits_image")}
        ids, classes = file["id"].tolist(), file["classes"].tolist()
    codes = torch.zeros(len(ids), len(classes), dtype=torch.uint8)
    for clip, label, modality, _ in stand_in[:-1]:
        codes[ids.index(clip), classes.index(label)] = CODES[modality]
    rows = (codes > 0).any(dim=1)
    passes = {"av": "all", "a": "audio", "v": "image"}
    heads = figures({name: saved[f"logits_{head}"][rows].flip(1) for name, head in passes.items()}, codes[rows].flip(1))
    found = numbers(folder / "metrics.json", "vggsounder_v1.0/")
    for name, value in heads.items():
        suffix = "" if name.startswith("av_") or name.endswith(("_frequent", "_perfect", "_clips")) else "_head"
        assert found[f"vggsounder_v1.0/{name}{suffix}"] == pytest.approx(value, abs=1e-6), name
    assert {f"{name}_dense" for name in found if "_dense" not in name} <= found.keys()


@pytest.mark.parametrize("trained", ["vggsound_finetune", "vggsound_linear_probe"])
def test_the_kind_of_model_is_that_of_the_checkpoint(trained, tmp_path):
    record = {"task": "classify", "overrides": [f"experiment={trained}", "scale=demo", "model.blr=0.5"]}
    path = save(tmp_path / "last.ckpt", torch.nn.Linear(1, 1), record)
    found, _ = evaluation_overrides([f"ckpt_path={path}", "experiment=vggsounder", f"paths.data_dir={tmp_path}"])
    cfg = compose(*found, config="eval")
    assert cfg.model._target_ == "deepavfusion.tasks.vggsounder.VGGSounder"
    assert (cfg.model.get("frozen", False), cfg.model.blr) == (trained == "vggsound_linear_probe", 0.5)
    assert cfg.model.net.image.embed_dim == 128
    others, _ = evaluation_overrides([f"ckpt_path={path}", "experiment=music_separation", f"paths.data_dir={tmp_path}"])
    assert not any(override.startswith("model=") for override in others)  # of another task


def test_what_is_no_benchmark_is_one_sentence(stand_in, finetuned, classify_data, tmp_path, monkeypatch, capsys):
    checkpoint = f"ckpt_path={finetuned}/checkpoints/last.ckpt"
    more = ["experiment=vggsounder", f"paths.log_dir={tmp_path}/logs"]
    message = sentence(monkeypatch, capsys, *more, checkpoint, "model.label_sets=[v2.0]", script="eval")
    assert "model.label_sets is ['v2.0'], expected a list, each item 304d10a or 304d10a_music or v1.0" in message
    message = sentence(monkeypatch, capsys, *CLASSIFY, f"data.root={classify_data}/vggsound", *more)
    assert message.startswith("experiment=vggsounder evaluates a classifier and trains none: give `python src/eval.py ")
    hide(monkeypatch)
    message = sentence(monkeypatch, capsys, *more, checkpoint, script="eval")
    assert message.startswith("the labels of VGGSounder are not installed")
