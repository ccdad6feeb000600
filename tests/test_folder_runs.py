"""data=folder, the whole way: by README's lines to a table of results, and without classes to sheets of neighbours."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from deepavfusion.callbacks.show.semantics.unlabelled import UnlabelledSheets, nearest_of_others
from deepavfusion.config.compose import REPOSITORY, instantiate
from deepavfusion.config.overrides import with_scale
from deepavfusion.data.lists.folder import folder
from deepavfusion.metrics.neighbours import NeighbourAccuracy
from deepavfusion.runs.build import make_demo_data
from deepavfusion.tasks.classify import Classify
from deepavfusion.transforms.audio import CLIP_SECONDS, SAMPLE_RATE
from helpers.errors import refusal
from helpers.media import read_audio
from helpers.runs import (
    CLASSIFY,
    DECODER,
    PRETRAIN,
    SEPARATE,
    SMALL,
    call,
    compose,
    finished,
    recorder,
    sentence,
)
from helpers.videos import KINDS, make_folder, write

FEW = ["data.index.max_windows=4", "data.num_workers=0"]
TINY = [*SMALL, "trainer.max_epochs=1", "data.audio_seconds=1.0", *FEW]


def lines() -> list[list[str]]:
    """The commands of README's section, as words."""
    text = (REPOSITORY / "README.md").read_text()
    section = text[text.index("### Your own videos") :]
    block = re.search(r"```bash\n(.+?)```", section, re.DOTALL)
    assert block
    return [shlex.split(line, comments=True) for line in block[1].splitlines()]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two videos of three classes each, of whose windows none is a video of its own."""
    root = tmp_path_factory.mktemp("small")
    for kind, name in enumerate(KINDS[:3]):
        for n in range(3):
            write(root / name / f"{n} = [a], 'b'.mp4", kind, seconds=2.0, seed=n)
    return root


def test_an_untold_scale_is_not_the_demo(tmp_path: Path) -> None:
    """With a root, the experiment's recipe; without, a sentence: there is no generated folder."""
    assert with_scale("train", ["experiment=folder_finetune", f"data.root={tmp_path}"])[1] is None
    said = refusal(with_scale, "train", ["experiment=folder_finetune", "data.root=nowhere"])
    assert "data.root=nowhere is not a folder" in said
    assert "demo" not in said
    said = refusal(make_demo_data, tmp_path, "folder")
    assert "there is no generated demo of data.name=folder" in said
    assert "data.root=<folder>" in said


@pytest.mark.parametrize(
    ("classes", "several", "fine"), [([], False, False), (["a"], False, False), (["a"], True, True)]
)
def test_a_classifier_needs_something_to_tell_apart(classes: list[str], several: bool, fine: bool) -> None:
    data = SimpleNamespace(dataset_name="folder", classes=classes, multi_label=several)
    if fine:
        Classify.check_labels(data)
    else:
        said = refusal(Classify.check_labels, data)
        assert f"folder has {classes[0]!r}" if classes else "folder has no classes" in said
        assert "a sub-folder for each class" in said


def test_neighbours_are_of_other_videos() -> None:
    """Clip n of a line of clips is nearest to its neighbours; those of its own video do not count."""
    angle = torch.arange(6) * 0.1
    rows = torch.stack([angle.cos(), angle.sin()], dim=1)
    found = nearest_of_others({"image": rows, "audio": rows.flip(1)}, [0, 3], torch.tensor([0, 0, 1, 1, 2, 2]))
    assert set(found) == {"image", "audio", "combined"}
    assert found["image"][0].tolist() == [2, 3, 4, 5]
    assert set(found["combined"][3].tolist()) == {0, 1, 4, 5}
    assert found["combined"][3].tolist()[0] == 4


def test_a_single_held_out_video_has_no_neighbours_and_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clips = [SimpleNamespace(video_id="one") for _ in range(3)]
    loader = SimpleNamespace(dataset=SimpleNamespace(clips=clips))
    sheets = UnlabelledSheets(str(tmp_path))
    sheets.found, sheets.items = {"image": torch.zeros(3, 2)}, torch.arange(3)
    trainer = SimpleNamespace(is_global_zero=True, testing=False, val_dataloaders=[loader])
    sheets.on_fit_end(trainer, None)  # type: ignore[arg-type]
    assert "no neighbours_<n>.png: the validation clips are of fewer than two videos" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_1nn_leaves_out_the_own_video() -> None:
    metric = NeighbourAccuracy(("fusion",))
    rows = torch.tensor([[1.0, 0.0], [1.0, 0.01], [0.9, 0.2], [0.0, 1.0]])
    metric.update({"fusion": rows}, torch.tensor([0, 0, 1, 1]), groups=torch.tensor([7, 7, 8, 9]))
    assert metric.compute()["fusion"] == 0.25  # only 3 → 2; with its own video, 0 and 1 would be right, too
    metric.reset()
    metric.update({"fusion": rows}, torch.full((4,), -1))
    assert metric.compute() == {}


@pytest.mark.full
def test_without_classes_what_needs_them_says_so(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    given = [
        f"data.root={small}",
        "data.index.classes=none",
        "model.pretrained=null",
        f"paths.log_dir={tmp_path}",
        *TINY,
    ]
    said = sentence(monkeypatch, capsys, "experiment=folder_finetune", *given)
    assert "folder has no classes, expected two classes or more" in said
    assert "a sub-folder for each class" in said
    said = sentence(monkeypatch, capsys, "experiment=vggsound_semantics", "data=folder", *given)
    assert "folder has no classes, expected some to compare" in said
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.mark.full
def test_without_classes_pretraining_draws_neighbours_of_other_videos(small: Path, tmp_path: Path) -> None:
    given = ["experiment=folder_pretrain", f"data.root={small}", "data.index.classes=none", "data.index.test_share=0.7"]
    run = finished(tmp_path, "a", *PRETRAIN, *given, "trainer.max_epochs=1", "data.audio_seconds=1.0", "logger=csv")
    found = json.loads((run / "metrics.json").read_text())
    assert found["val/loss"] > 0
    assert not any(name.startswith("knn") for name in found)
    sheets = min(3, int(found["data/val_present"]))
    assert sheets >= 2
    assert [path.name for path in sorted(run.glob("*.png"))] == [f"neighbours_{n + 1}.png" for n in range(sheets)]


@pytest.fixture(scope="module")
def forty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("forty"))


@pytest.mark.full
def test_from_forty_videos_to_a_table_by_the_lines_of_the_readme(
    forty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Of four kinds, in four containers; one lasts an hour, one has no sound, one is broken."""
    monkeypatch.chdir(tmp_path)
    places = {"<folder>": str(forty), "<weights>": str(tmp_path / "logs/pretrain/latest/checkpoints/last.ckpt")}
    places["<video>"] = str(next(forty.rglob("*quoted* 3.mov")))
    verify, pretrain, finetune, evaluate, predict = lines()
    notes = {"pretrain": recorder(tmp_path / "pretrain.txt"), "finetune": recorder(tmp_path / "finetune.txt")}
    tiny = ["data.index.max_windows=12", "trainer.max_epochs=1", "data.audio_seconds=3.0"]
    more = {
        "verify": ["workers=2"],
        "pretrain": [*SMALL, *DECODER, "model.warmup_epochs=0.5", *tiny, *notes["pretrain"]],
        "finetune": [*CLASSIFY, *tiny, "data.dense_windows=2", *notes["finetune"]],
        "evaluate": ["data.num_workers=0"],
        "predict": ["device=cpu"],
    }
    logs = f"paths.log_dir={tmp_path / 'logs'}"
    for name, words in zip(more, (verify, pretrain, finetune, evaluate, predict), strict=True):
        assert words[0] == "python"
        script = Path(words[1]).stem
        filled = [re.sub("<[a-z]+>", lambda found: places[found[0]], word) for word in words[2:]]
        call(monkeypatch, script, *filled, *more[name], *([] if name == "verify" else [logs]))
    said = capsys.readouterr().out
    assert "2 videos of 40 cannot be used" in said
    assert "top-1 accuracy" in said
    assert len(folder(forty, "all")) == 37 + 360
    train_list, test_list = (folder(forty, split, max_windows=12) for split in ("train", "test"))
    tests = {clip.id for clip in test_list.clips}
    videos = {clip.id: clip.video_id for clips in (train_list, test_list) for clip in clips.clips}
    held_out = {videos[each] for each in tests}
    assert len(videos) == 37 + 12
    for name in notes:
        trained = {each for line in (tmp_path / f"{name}.txt").read_text().splitlines() for each in json.loads(line)[2]}
        assert len(trained) > 15
        assert not trained & tests
        assert not {videos[each] for each in trained} & held_out
    run = tmp_path / "logs/classify/latest"
    found = json.loads((run / "metrics.json").read_text())
    assert found["data/used"] == len(tests)
    assert found["data/listed"] == test_list.listed
    assert 0 <= found["test/top1"] <= 1
    assert len((forty / "verify.csv").read_text().splitlines()) == 1 + 37 + 360 + 2
    problems = (run / "data_problems.csv").read_text()
    assert "the file has no audio stream" in problems
    assert "quoted" in problems
    (again,) = (tmp_path / "logs/classify/evals").glob("*/metrics.json")
    assert json.loads(again.read_text())["test/top1"] == found["test/top1"]
    assert list((tmp_path / "logs/predict/runs").glob("*/*.json"))


@pytest.mark.full
def test_weights_of_all_kinds_start_a_fine_tuning(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`model.pretrained=<.ckpt, .safetensors, .pth>` gives the same network."""
    given = ["experiment=folder_pretrain", f"data.root={small}", "data.audio_seconds=1.0", "trainer.max_epochs=1"]
    run = finished(tmp_path, "p", *PRETRAIN, *given)
    checkpoint = run / "checkpoints" / "last.ckpt"
    call(monkeypatch, "convert", f"input={checkpoint}", f"output={tmp_path / 'w.safetensors'}")
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    torch.save({"model": {name.removeprefix("net."): x for name, x in state.items()}}, tmp_path / "w.pth")
    found = []
    for n, weights in enumerate((checkpoint, tmp_path / "w.safetensors", tmp_path / "w.pth")):
        given = ["experiment=folder_finetune", f"data.root={small}", f"model.pretrained={weights}", *TINY]
        metrics = finished(tmp_path, f"f{n}", *given, "data.dense_windows=0") / "metrics.json"
        found.append(
            {
                key: value
                for key, value in json.loads(metrics.read_text()).items()
                if key.startswith(("test/", "train/"))
            }
        )
    assert found[0] == found[1] == found[2]
    assert len(found[0]) > 5


RETRIEVAL = ["experiment=vggsound_retrieval", *SMALL, "data.audio_seconds=1.0", "model.embed_dim=8"]
SEPARATION = [each for each in SEPARATE if "duet" not in each]
SEPARATION += ["experiment=music_separation", "model.head_dim=16"]
RUNS = {
    "probe": ["experiment=vggsound_linear_probe", *CLASSIFY, "model.compare_untrained=false"],
    "retrieval": RETRIEVAL,
    "retrieval without classes": [*RETRIEVAL, "data.index.classes=none"],
    "separation": SEPARATION,
    "separation without classes": [*SEPARATION, "data.index.classes=none"],
    "semantics": ["experiment=vggsound_semantics", *SMALL, "data.audio_seconds=1.0", "data.index.max_windows=1"],
}
EXPECTED = {
    "probe": "test/top1",
    "retrieval": "test/audio_to_image_map",
    "retrieval without classes": "test/audio_to_image_r1",
    "separation": "test/sdr",
    "separation without classes": "test/sdr",
    "semantics": "fusion_knn",
}


@pytest.mark.full
@pytest.mark.parametrize("name", RUNS)
def test_other_tasks_take_a_folder(forty: Path, tmp_path: Path, name: str) -> None:
    given = [*RUNS[name], "data=folder", f"data.root={forty}", "model.pretrained=null", "trainer.max_epochs=1"]
    if "max_windows" not in "".join(given):
        given += FEW
    found = json.loads((finished(tmp_path, "r", *given) / "metrics.json").read_text())
    assert EXPECTED[name] in found
    if "without" in name:
        assert not any("_map" in key for key in found)
    assert all(value == value for value in found.values())


@pytest.mark.full
def test_several_labels_a_clip_give_map(small: Path, tmp_path: Path) -> None:
    rows = [f'"{path.relative_to(small)}",{path.parent.name};{"low" if "0 =" in path.name else "high"}'
            for path in sorted(small.rglob("*.mp4"))]  # fmt: skip
    (small / "several.csv").write_text("path,label\n" + "\n".join(rows) + "\n")
    given = ["experiment=folder_finetune", f"data.root={small}", "data.index.annotations=several.csv", *TINY]
    run = finished(tmp_path, "r", *given, "model.pretrained=null", "data.dense_windows=0")
    found = json.loads((run / "metrics.json").read_text())
    assert {"test/map", "test/auc"} <= set(found)
    assert 0 < found["test/map_chance"] < 1


@pytest.mark.full
def test_packed_windows_are_the_raw_ones(forty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "packed"
    call(
        monkeypatch,
        "prepare",
        "command=pack",
        "data=folder",
        f"data.root={forty}",
        f"output={out}",
        *FEW[:1],
        "workers=2",
    )
    samples = {}
    for root in (forty, out):
        data = instantiate(compose("data=folder", f"data.root={root}", "data.image_size=64", *FEW).data)
        data.setup("fit")
        assert {clip.id for clip in data.lists["train"].clips}.isdisjoint(clip.id for clip in data.lists["test"].clips)
        dataset = data._dataset("test")
        samples[root] = {dataset.clips[n].id: dataset[n, 0][0] for n in range(len(dataset))}
    raw, packed = samples.values()
    assert raw.keys() == packed.keys()
    assert len(raw) >= len(KINDS)  # one of each class, and what else is drawn
    for name, sample in raw.items():
        # Packing reads from the start: where timestamps are rounded (mkv, webm), a pass from elsewhere is shifted
        first = round(sample.window_start * SAMPLE_RATE)
        whole = read_audio(Path(sample.clip.path), sample.clip.start, sample.window_start + CLIP_SECONDS)[first:]
        assert (packed[name].waveform - whole).abs().max() < 1e-4, name
        assert (packed[name].image.float() - sample.image.float()).abs().mean() < 12, name


@pytest.mark.full
def test_a_holdout_of_train_videos_has_none_of_their_windows(forty: Path, tmp_path: Path) -> None:
    data = instantiate(compose("data=folder", "experiment=folder_finetune", f"data.root={forty}").data)
    data.setup("fit")
    sides = [{clip.video_id for clip in data.lists[role].clips} for role in ("train", "val", "test")]
    assert all(sides)
    assert sum(map(len, sides)) == len(set().union(*sides)) == 38
