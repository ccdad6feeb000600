"""Separation runs from the command line down: what they write, that evaluation repeats, what they say."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from deepavfusion.callbacks.show.separation import class_table
from deepavfusion.config.compose import instantiate
from deepavfusion.models.separator import target_mask
from deepavfusion.tasks.separate import Separate
from helpers.runs import SEPARATE, assert_learns, check_dashboard, compose, events, numbers, read_table, sentence, train


def test_a_run_ends_with_the_numbers_of_the_test_split(separated):
    metrics = json.loads((separated / "metrics.json").read_text())
    measures = {"sdr", "sir", "sar", "si_sdr"}
    expected = {f"test/{name}" for name in measures}
    expected |= {f"test/{name}_{of}" for name in measures for of in ("wrong_frame", "ideal", "ideal_binary")}
    expected |= {f"test/{name}_{of}" for name in ("sdr", "sir", "si_sdr") for of in ("mixture", "improvement")}
    expected |= {"test/silent_references", "test/silent_estimates", "test/sources", "test/loss"}
    expected |= {"val/loss", "val/sdr", "train/loss_last", "data/coverage", "data/test_listed"}
    assert expected <= set(metrics)
    assert metrics["test/sources"] == 2 * metrics["data/test_present"] == 2 * 4
    improvement = metrics["test/sdr"] - metrics["test/sdr_mixture"]
    assert metrics["test/sdr_improvement"] == pytest.approx(improvement, abs=1e-9)
    assert metrics["test/sdr_ideal"] > metrics["test/sdr_mixture"] + 5


def test_the_mixtures_and_what_came_of_them_are_in_the_run_directory(separated):
    mixtures, results = (read_table(separated / f"{name}_test.csv") for name in ("mixtures", "separation"))
    keys = ("mixture", "source", "id", "class")
    assert [[row[k] for k in keys] for row in mixtures] == [[row[k] for k in keys] for row in results]
    assert len(mixtures) == 8
    for first, second in zip(mixtures[::2], mixtures[1::2], strict=True):
        assert first["class"] != second["class"]
        assert first["mixture"] == second["mixture"]
    mean = sum(float(row["sdr"]) for row in results) / len(results)
    assert numbers(separated / "metrics.json")["test/sdr"] == pytest.approx(mean, abs=1e-9)


def test_every_run_is_tested_on_the_same_mixtures():
    seeds = [compose("experiment=music_separation", f"seed={seed}").data.samples.seed for seed in (0, 3)]
    assert seeds == [0, 0]


def test_tensorboard_has_sounds_pictures_and_histograms(separated):
    tags = events(separated).Tags()
    assert {"separation/mixture_0", "sdr_by_class/test"} <= set(tags["images"])
    kinds = {tag.split("/")[1].split("_")[0] for tag in tags["audio"] if tag.startswith("mixture_0/")}
    assert kinds == {"mixture", "estimate", "truth"}
    assert len([tag for tag in tags["audio"] if tag.startswith("mixture_0/estimate")]) == 2
    assert {"test_sources/sdr", "test_sources/sdr_improvement"} <= set(tags["histograms"])
    check_dashboard(separated, {"train_loss", "val_loss", "val_sdr"})


def test_duets_are_separated_after_the_test(separated, music_root):
    listed = json.loads((music_root / "MUSIC_duet_videos.json").read_text())["videos"]
    (folder,) = (separated / "duets").iterdir()
    assert folder.name in {clip for clips in listed.values() for clip in clips}
    expected = {f"{folder.name}_source{n}.{kind}" for n in (1, 2) for kind in ("wav", "mp4")}
    expected |= {f"{folder.name}_separation.png", f"{folder.name}_sources.json"}
    assert {file.name for file in folder.iterdir()} == expected
    network = json.loads((folder / f"{folder.name}_sources.json").read_text())["network"]
    assert (network["task"], network["data"]) == ("separate", "music")
    assert network["checkpoint"] == str((separated / "checkpoints" / "last.ckpt").resolve())
    assert {f"duet_{folder.name}/source1", f"duet_{folder.name}/source2"} <= set(events(separated).Tags()["audio"])


def test_a_checkpoint_knows_its_model_and_its_run(separated):
    record = torch.load(separated / "checkpoints" / "last.ckpt", weights_only=True)["record"]
    assert record["task"] == "separate"
    assert record["model"]["_target_"] == "deepavfusion.tasks.separate.Separate"
    assert len(record["classes"]) == 4
    assert "experiment=music_duet_separation" in record["overrides"]


@pytest.mark.full  # test_classify has it in the short test run
def test_the_newest_pretrained_encoder_is_taken(separated, music_root, tmp_path, monkeypatch, capsys):
    """What else it may say: test_classify."""
    state = torch.load(separated / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    encoder = {name: value for name, value in state.items() if name.startswith("net.encoder.")}
    newest = tmp_path / "pretrain" / "latest" / "checkpoints" / "last.ckpt"
    newest.parent.mkdir(parents=True)
    torch.save({"state_dict": encoder}, newest)
    small = ["debug=fast", "trainer.limit_train_batches=1", "data.min_coverage=0", "test=false"]
    train(
        monkeypatch, *SEPARATE, f"data.root={music_root}", f"paths.log_dir={tmp_path}", *small, "model.pretrained=auto"
    )
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("encoder from"))
    assert line.startswith(f"encoder from the latest pre-training, {newest} (no record of its training, ")
    assert f": {len(encoder) - 2} tensors loaded" in line
    (start,) = json.loads(next(tmp_path.glob("separate/runs/*/provenance.json")).read_text())["starts"]
    assert [weights["checkpoint"] for weights in start["weights"]] == [str(newest)]


def test_what_eval_says_when_it_cannot(separated, monkeypatch, capsys, tmp_path):
    torch.save({"state_dict": {"net.encoder.fusion_tokens": torch.zeros(1, 4, 8)}}, tmp_path / "old.ckpt")
    for words, *given in (
        ("ckpt_path is missing", "experiment=music_separation"),
        ("does not exist", f"ckpt_path={tmp_path}/none.ckpt"),
        ("add experiment=<name>", f"ckpt_path={tmp_path}/old.ckpt"),
        ("is of another network", f"ckpt_path={separated}/checkpoints/last.ckpt", "model.net.image.embed_dim=48"),
    ):
        assert words in sentence(monkeypatch, capsys, *given, script="eval")


# ---- the task itself


def task_and_batch(music_root: Path, sources: int = 2, **model: object):
    cfg = compose(
        *(value for value in SEPARATE if not value.startswith("~")),
        f"data.root={music_root}",
        f"data.samples.sources={sources}",
        "model.pretrained=null",
        *(f"model.{key}={value}" for key, value in model.items()),
    )
    torch.manual_seed(0)
    task: Separate = instantiate(cfg.model)
    task.log = lambda *args, **kwargs: None
    data = instantiate(cfg.data)
    data.setup("test")
    return task, data.on_after_batch_transfer(next(iter(data.test_dataloader()[0])), 0)


@pytest.mark.parametrize("sources", [2, 3, 4])
def test_mixtures_of_several_sources(music_root, sources):
    task, batch = task_and_batch(music_root, sources)
    mixture, log_mel = task.mix(batch)
    assert mixture.shape == (batch.items, 16000)
    torch.testing.assert_close(mixture[0], batch.waveform[:sources].sum(dim=0))
    assert task.net(batch.image, log_mel).shape == (len(batch), 1, 128, 64)
    ideal = task._ideal_masks(batch)
    torch.testing.assert_close(ideal["ideal"][:sources].sum(dim=0), torch.ones(1, 128, 64))
    assert ideal["ideal_binary"][:sources].sum(dim=0).max() == 1


@pytest.mark.parametrize("sources", [2, 3])
def test_a_wrong_frame_is_that_of_another_source(music_root, sources):
    """The numbers under wrong_frame are those of the model shown the next source's frame."""
    task, batch = task_and_batch(music_root, sources)
    task.eval()
    task.test_step(batch, 0)
    task.test_metrics.compute()
    swapped = replace(batch, image=batch.image.unflatten(0, (-1, sources)).roll(1, dims=1).flatten(0, 1))
    expected = task.test_metrics.rows()
    task.test_metrics.reset()
    task.test_step(swapped, 0)
    task.test_metrics.compute()
    for row, other in zip(expected, task.test_metrics.rows(), strict=True):
        assert row["sdr_wrong_frame"] == pytest.approx(other["sdr"], abs=1e-3)


@pytest.mark.parametrize(
    ("mask", "weighted"),
    [
        ("ratio", True),
        *(
            pytest.param(*case, marks=pytest.mark.full)
            for case in [("ratio", False), *itertools.product(("binary", "dominant"), (True, False))]
        ),
    ],
)
def test_training_lowers_the_loss_of_a_batch(music_root, mask, weighted):
    task, batch = task_and_batch(music_root, mask=mask, weighted_loss=weighted)
    assert_learns(task, batch, lr=2e-3)


def test_training_and_evaluation_run_in_mixed_precision(music_root):
    task, batch = task_and_batch(music_root)
    with torch.autocast("cpu", torch.bfloat16):
        loss = task.training_step(batch, 0)
        output = task.eval().test_step(batch, 0)
    assert loss.dtype == output.estimate.dtype == torch.float32
    assert loss.isfinite()
    assert {"sdr", "sdr_wrong_frame", "sdr_ideal"} <= set(task.test_metrics.compute())


def test_the_target_is_made_of_the_sources_power(music_root):
    task, batch = task_and_batch(music_root)
    _, log_mel = task.mix(batch)
    source, mixture = 10 ** batch.spectrogram[1], 10 ** log_mel[0]
    found = task._target(batch, 10**log_mel, "ratio")[1]
    torch.testing.assert_close(found, target_mask(source, mixture, "ratio"))


def test_a_batch_without_clips_is_no_step(music_root):
    task, batch = task_and_batch(music_root)
    loss = task.training_step(batch.first(0), 0)
    loss.backward()
    assert loss.item() == 0
    assert not any(p.grad.any() for p in task.net.parameters() if p.grad is not None)
    assert all(value.isfinite().all() for value in task.net.state_dict().values())  # BatchNorm's statistics, too


def test_sizes_of_data_and_model_that_differ_are_named(music_root, monkeypatch, capsys, tmp_path):
    where = [f"data.root={music_root}", f"paths.log_dir={tmp_path}"]
    message = sentence(monkeypatch, capsys, *SEPARATE, *where, "model.net.image.input_size=[96,96]")
    assert "data.image_size" in message


def test_sdr_by_class_is_a_mean_over_pairs():
    rows = [
        {"label": 0, "others": (1,), "sdr": 2.0},
        {"label": 0, "others": (1,), "sdr": 4.0},
        {"label": 1, "others": (0,), "sdr": float("nan")},
    ]
    table = class_table(rows, 2)
    assert table[0, 1] == 3.0
    assert torch.from_numpy(table).isnan().sum() == 3
