"""Segmentation runs from the command line down: what they write, that evaluation repeats, that they listen."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deepavfusion.callbacks.show.segmentation import Shown, draw, iou_by_class
from deepavfusion.config.compose import instantiate
from deepavfusion.data.mixtures import other_class_partners
from deepavfusion.demo import demo
from deepavfusion.figures.pixels import CORRECT, MISSED, TOO_MUCH, errors, highlight, palette
from deepavfusion.tasks.segment import Segment
from deepavfusion.types import Clip
from helpers.runs import (
    SEGMENT,
    assert_learns,
    check_dashboard,
    compose,
    evaluate,
    events,
    numbers,
    read_table,
    sentence,
    train,
)


def test_a_run_ends_with_the_numbers_of_the_test_split(segmented):
    metrics = json.loads((segmented / "metrics.json").read_text())
    measures = {"miou_fg", "fscore_fg", "fscore_fg_frames", "miou", "fscore"}
    assert {f"test/{name}" for name in measures} <= set(metrics)
    assert {f"test/{name}_wrong_audio" for name in measures} <= set(metrics)
    assert {"test/loss", "val/loss", "val/miou_fg", "train/loss_last", "data/coverage"} <= set(metrics)
    assert metrics["test/frames"] == metrics["data/listed"] == 4 * 5
    assert "test/frames_wrong_audio" not in metrics
    assert 0 <= metrics["test/miou_fg"] <= 1


def test_tested_are_the_weights_that_validation_judged_best(segmented):
    best = torch.load(segmented / "checkpoints" / "best.ckpt", weights_only=True)
    (state,) = (s for name, s in best["callbacks"].items() if "val/miou_fg" in name)
    values = events(segmented).Scalars("val/miou_fg")
    assert len(values) == 2
    assert state == {"best_model_score": state["best_model_score"]}  # no path
    assert state["best_model_score"] == pytest.approx(max(v.value for v in values), abs=1e-6)


def test_the_table_has_every_frame_with_its_iou(segmented, avsbench_root):
    rows = read_table(segmented / "segmentation_test.csv")
    assert [int(row["item"]) for row in rows] == list(range(20))
    metadata = read_table(avsbench_root / "metadata.csv")
    listed = {f"v1s_{row['uid']}": row["a_obj"] for row in metadata if row["label"] == "v1s"}
    assert all(listed[row["id"]] == row["classes"] for row in rows)
    assert [int(row["second"]) for row in rows] == [0, 1, 2, 3, 4] * 4
    for column, name in (("iou", "test/miou_fg"), ("iou_wrong_audio", "test/miou_fg_wrong_audio")):
        mean = sum(float(row[column]) for row in rows) / len(rows)
        assert numbers(segmented / "metrics.json")[name] == pytest.approx(mean, abs=1e-9)


def test_tensorboard_has_overlays_sounds_classes_and_failures(segmented):
    shown = events(segmented)
    tags = shown.Tags()
    assert {"segmentation/frames", "iou_by_class/val", "iou_by_class/test", "failures/frames"} <= set(tags["images"])
    assert len(shown.Images("segmentation/frames")) == 2
    sounds = [tag for tag in tags["audio"] if tag.startswith("audio/")]
    assert len(sounds) == len({tag.split("_v1s_")[1] for tag in sounds}) == 6
    failures = [tag for tag in tags["audio"] if tag.startswith("failures/")]
    assert [tag.split("/")[1][0] for tag in sorted(failures)] == ["1", "2", "3", "4"]  # one a clip
    check_dashboard(segmented, {"train_loss", "val_loss", "val_miou_fg"})


def test_classes_of_the_data_become_those_of_the_network(avsbench_root, tmp_path, monkeypatch, capsys):
    run = [*SEGMENT, "experiment=avsbench_avss", f"data.root={avsbench_root}", f"paths.log_dir={tmp_path}"]
    run += ["trainer.max_epochs=1", "trainer.check_val_every_n_epoch=1", "data.repeats=1"]
    train(monkeypatch, *run, "run.name=avss")
    folder = tmp_path / "segment" / "runs" / "avss"
    record = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)["record"]
    assert record["model"]["num_classes"] == len(record["classes"]) == 5
    metrics = json.loads((folder / "metrics.json").read_text())
    measures = {"miou", "miou_nobg", "miou_class", "miou_class_nobg", "fscore", "fscore_class", "fscore_class_nobg"}
    assert {f"test/{name}" for name in measures} <= set(metrics)
    assert metrics["test/frames"] == 8 * 5
    capsys.readouterr()
    before = (tmp_path / "segment" / "latest").resolve()
    message = sentence(monkeypatch, capsys, *run, "model.num_classes=3")
    assert "distinguish 5 classes" in message
    assert "model.num_classes" in message
    assert (tmp_path / "segment" / "latest").resolve() == before == folder  # not of a run that never began


@pytest.mark.full
def test_evaluation_repeats_the_numbers_of_the_classes(avsbench_root, tmp_path, monkeypatch):
    run = [*SEGMENT, "experiment=avsbench_avss", f"data.root={avsbench_root}", f"paths.log_dir={tmp_path}"]
    train(monkeypatch, *run, "trainer.max_epochs=1", "trainer.check_val_every_n_epoch=1", "run.name=avss")
    folder = tmp_path / "segment" / "runs" / "avss"
    evaluate(monkeypatch, f"ckpt_path={folder}/checkpoints/best.ckpt", f"paths.log_dir={tmp_path}", "run.name=again")
    assert numbers(tmp_path / "segment" / "evals" / "again" / "metrics.json") == numbers(folder / "metrics.json")


# ---- bad data


def test_bad_frames_and_masks_are_named_with_file_and_value(avsbench_root, tmp_path, monkeypatch, capsys):
    root = shutil.copytree(avsbench_root, tmp_path / "data")
    metadata = read_table(root / "metadata.csv")
    uids = [row["uid"] for row in metadata if (row["label"], row["split"]) == ("v1s", "test")]
    no_mask, strange, other_size, no_masks = (root / "v1s" / uid for uid in uids)
    (no_mask / "labels_semantic" / "3.png").unlink()
    for n in (1, 4):
        mask = np.full(Image.open(strange / "frames" / f"{n}.jpg").size[::-1], 77, np.uint8)
        Image.fromarray(mask).save(strange / "labels_semantic" / f"{n}.png")
    Image.new("L", (50, 40), 1).save(other_size / "labels_semantic" / "2.png")
    shutil.rmtree(no_masks / "labels_semantic")
    run = [*SEGMENT, "experiment=avsbench_avss", f"data.root={root}", f"paths.log_dir={tmp_path}", "run.name=bad"]
    run += ["trainer.max_epochs=1", "trainer.check_val_every_n_epoch=1", "data.repeats=1", "data.index.subset=s4"]
    message = sentence(monkeypatch, capsys, *run)
    assert "data.min_coverage" in message  # so many that the number would not be the protocol's
    train(monkeypatch, *run, "data.min_coverage=0.5", "run.name=accepted")
    out = capsys.readouterr().out
    folder = tmp_path / "segment" / "runs" / "accepted"
    assert "1 clip has no masks in labels_semantic" in out
    assert "1 clip has fewer images with masks than published" in out
    report = (folder / "data_problems.csv").read_text()
    for n in (1, 4):  # each once, in right and in wrong company
        assert report.count(f"labels_semantic/{n}.png holds the value 77, which is none of the 5 classes") == 1
        assert f"{strange}/labels_semantic/{n}.png" in report
    assert report.count("labels_semantic/2.png has 50 × 40 pixels, frames/2.jpg has") == 1
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["test/frames"] == 4 + 3 + 4
    assert metrics["data/listed"] == 4 * 5  # what is published, also of the clip that is missing
    assert metrics["data/coverage"] == pytest.approx(11 / 20)


# ---- the task itself


def task_and_data(avsbench_root: Path, *overrides: str):
    cfg = compose(
        *(value for value in SEGMENT if not value.startswith("~")),
        f"data.root={avsbench_root}",
        "model.pretrained=null",
        "model.num_classes=1",
        *overrides,
    )
    torch.manual_seed(0)
    task: Segment = instantiate(cfg.model)
    data = instantiate(cfg.data)
    data.setup()
    task.log = lambda *args, **kwargs: None
    return task, data


def first_batch(data, loader):
    return data.on_after_batch_transfer(next(iter(loader)), 0)


def test_wrong_sounds_come_with_the_same_pictures_and_another_class(avsbench_root):
    _, data = task_and_data(avsbench_root)
    right, wrong = data.test_dataloader()
    assert len(right.dataset) == len(wrong.dataset) == 20
    for item in (0, 7, 19):
        (one,), (other,) = right.dataset[item, 0], wrong.dataset[item, 0]
        assert torch.equal(one.image, other.image)
        assert torch.equal(one.mask, other.mask)
        assert one.clip == other.clip
        clips, heard = wrong.dataset.clips, wrong.dataset.other_class_partners[wrong.dataset.first_clip(item)]
        assert clips[heard].label != one.clip.label
        second = int(one.frame_time)
        (truly,) = (s for n in range(20) for s in [right.dataset[n, 0][0]] if s.clip == clips[heard]
                    and int(s.frame_time) == second)  # fmt: skip
        assert torch.equal(truly.waveform, other.waveform)


def test_strangers():
    def clip(name: str, *labels: int) -> Clip:
        return Clip(name, name, labels[0], labels=labels)

    clips = [clip("a", 0), clip("b", 1), clip("c", 0, 1), clip("d", 2)]
    found = other_class_partners(clips)
    assert found is not None
    assert all(not set(clips[n].labels) & set(clips[m].labels) for n, m in enumerate(found))
    assert other_class_partners(clips[::-1]) == [3 - m for m in found[::-1]]  # the order of the list does not matter
    assert other_class_partners([clip("a", 0), clip("b", 0)]) is None
    assert other_class_partners([clip("a", 0, 1), clip("b", 1)]) is None  # b hears nothing else in a than b
    assert other_class_partners([clip("a", 0, 1), clip("b", 1, 2)]) == [1, 0]


def test_a_class_alone_has_no_wrong_sound(avsbench_root):
    _, data = task_and_data(avsbench_root)
    data.lists["test"] = replace(data.lists["test"], clips=data.lists["test"].clips[:1])
    assert len(data.test_dataloader()) == 1


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_training_lowers_the_loss_of_a_batch(avsbench_root, precision):
    task, data = task_and_data(avsbench_root)
    batch = first_batch(data, data.test_dataloader()[0])
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        assert_learns(task, batch, lr=2e-3)


def test_a_batch_without_frames_is_no_step(avsbench_root):
    task, data = task_and_data(avsbench_root)
    batch = first_batch(data, data.test_dataloader()[0])
    loss = task.training_step(batch.first(0), 0)
    loss.backward()
    assert loss.item() == 0
    assert all(value.isfinite().all() for value in task.net.state_dict().values())
    assert task.eval().test_step(batch.first(0), 0) is None
    assert set(task.test_metrics.compute()) == {"frames", "empty_frames"}


# ---- images


def test_overlays_show_what_is_right_too_much_and_missed():
    image = np.full((2, 2, 3), 100, np.uint8)
    truth, predicted = np.array([[1, 1], [0, 0]]), np.array([[1, 0], [1, 0]])
    shown = errors(image, predicted, truth).astype(int)
    for (row, column), colour in (((0, 0), CORRECT), ((0, 1), MISSED), ((1, 0), TOO_MUCH)):
        assert np.abs(shown[row, column] - 0.75 * np.array(colour)).max() <= 16  # a quarter is grey
    assert len(set(shown[1, 1])) == 1  # grey
    lit = highlight(image, predicted, palette(2))
    assert (lit[0, 1] == 100 * 115 // 256).all()
    assert not (lit[0, 0] == lit[0, 1]).all()
    assert len({tuple(colour) for colour in palette(71)}) == 71
    frame = Shown("drum", "x" * 30, 0.5, image, truth.astype(np.uint8), predicted.astype(np.uint8), torch.zeros(10))
    figure = draw([frame, frame], ["silent", "sounding"], "Frames")
    assert [axis.get_title() for axis in figure.axes] == ["frame", "truth", "prediction", "error"] + 4 * [""]
    (words,) = figure.axes[4].texts
    assert words.get_text().split("\n") == ["drum", "xxxxxxxxxxx…xxxxx", "at 0.5 s", "IoU 0.33"]
    assert words.get_rotation() == 0
    assert frame.name == f"drum_{'x' * 30}_0.5s"
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["error: none (correct)", "error: too much", "error: missed"]


def test_marked_regions_are_outlined_and_the_legend_names_what_occurs():
    image = np.full((40, 60, 3), 100, np.uint8)
    marks = np.zeros((40, 60), np.uint8)
    marks[10:30, 10:30], marks[10:30, 30:50] = 1, 2
    colours = palette(4)
    lit = highlight(image, marks, colours)
    for row, column, n in ((10, 20, 1), (20, 10, 1), (20, 29, 1), (20, 30, 2), (29, 40, 2)):
        assert (lit[row, column] == colours[n]).all()
    assert (lit[20, 20] != colours[1]).any()
    frame = Shown("drum", "x", 0.5, image, marks, marks, torch.zeros(10))
    figure = draw([frame], ["background", "dog", "drum", "cat"], "Frames")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["error: none (correct)", "dog", "drum"]
    silent = Shown("drum", "x", 0.5, image, 0 * marks, 0 * marks, torch.zeros(10))
    assert draw([silent], ["silent", "sounding"], "Frames").legends == []


def test_iou_by_class_is_a_mean_over_the_frames_of_the_class(avsbench_root):
    task, data = task_and_data(avsbench_root)
    (loader, _) = data.test_dataloader()
    task.eval()
    with torch.no_grad():
        for batch in loader:
            task.test_step(data.on_after_batch_transfer(batch, 0), 0)
    found = iou_by_class(task.test_metrics, loader.dataset)
    rows = task.test_metrics.rows()
    assert set(found) == set(demo.STAGE)
    mean = sum(found.values()) / 4  # as many frames each
    assert mean == pytest.approx(sum(row["iou"] for row in rows) / 20)
