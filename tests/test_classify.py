"""Classification runs from the command line down: what they write, that evaluation repeats, what is trained."""

from __future__ import annotations

import json
import os
import shutil
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from torch.nn import functional as F

from deepavfusion.config.compose import instantiate
from deepavfusion.models.classifier import mean_of_heads
from deepavfusion.runs.start_weights import load_start_weights
from deepavfusion.tasks.classify import Classify
from deepavfusion.transforms.mixup import draw_shares, mixup
from deepavfusion.types import STREAMS
from deepavfusion.utils.errors import UserError
from helpers.runs import CLASSIFY, assert_learns, check_dashboard, compose, events, numbers, sentence


def saved(run_dir: Path) -> dict[str, np.ndarray]:
    with np.load(run_dir / "predictions_test.npz", allow_pickle=False) as file:
        return dict(file)


# ---- what a run says


def test_a_run_ends_with_the_accuracy_of_each_stream_of_all_and_of_dense_windows(finetuned):
    found = numbers(finetuned / "metrics.json")
    names = {f"test/{measure}{stream}{dense}" for measure in ("top1", "top5", "top1_class")
             for stream in ("", "_image", "_audio", "_fusion") for dense in ("", "_dense")}  # fmt: skip
    assert names <= set(found)
    assert found["test/clips"] == 8
    assert "test/top1_untrained" not in found
    metrics = json.loads((finetuned / "metrics.json").read_text())
    assert {"val/top1", "val/loss", "train/loss_last", "data/coverage"} <= set(metrics)
    assert metrics["val/clips"] == metrics["data/val_listed"] > 0
    assert metrics["data/train_listed"] + metrics["data/val_listed"] == 24  # the hold-out is not trained on


def test_numbers_are_those_of_scikit_learn_on_the_saved_predictions(finetuned):
    found, file = numbers(finetuned / "metrics.json"), saved(finetuned)
    target, classes = file["target"], np.arange(8)
    for prefix, suffix in (("logits", ""), ("dense_logits", "_dense")):
        for stream in ("all", *STREAMS):
            scores = file[f"{prefix}_{stream}"]
            name = ("" if stream == "all" else f"_{stream}") + suffix
            assert found[f"test/top1{name}"] == pytest.approx(sk.accuracy_score(target, scores.argmax(1)))
            top5 = sk.top_k_accuracy_score(target, scores, k=5, labels=classes)
            assert found[f"test/top5{name}"] == pytest.approx(top5)
            balanced = sk.balanced_accuracy_score(target, scores.argmax(1))
            assert found[f"test/top1_class{name}"] == pytest.approx(balanced)
        mean = np.mean([file[f"{prefix}_{stream}"] for stream in STREAMS], axis=0)
        np.testing.assert_allclose(file[f"{prefix}_all"], mean, atol=1e-6)
    loss = sk.log_loss(target, F.softmax(torch.from_numpy(file["logits_all"]), dim=1), labels=classes)
    assert found["test/loss"] == pytest.approx(loss, abs=1e-5)


def test_several_labels_are_measured_by_map_auc_and_d_prime(several):
    found, file = numbers(several / "metrics.json"), saved(several)
    assert not any("top1" in name for name in found)
    for stream, name in (("all", ""), *((s, f"_{s}") for s in STREAMS)):
        scores = file[f"logits_{stream}"]
        present = file["target"].any(axis=0)
        average = sk.average_precision_score(file["target"][:, present], scores[:, present], average="macro")
        assert found[f"test/map{name}"] == pytest.approx(average, abs=1e-6)
        assert {f"test/auc{name}", f"test/dprime{name}", f"test/map{name}_dense"} <= set(found) | skipped(found, name)
    assert file["target"].sum(axis=1).max() > 1  # clips do have several


def skipped(found: dict[str, float], name: str) -> set[str]:
    """d′ of a perfect AUC is not finite, and not written."""
    return {f"test/dprime{name}"} if found[f"test/auc{name}"] in (0.0, 1.0) else set()


def test_the_probe_is_compared_with_one_on_an_untrained_encoder(probed):
    found = numbers(probed / "metrics.json")
    assert {f"test/top1{stream}_untrained" for stream in ("", "_image", "_audio", "_fusion")} <= set(found)


def test_tensorboard_has_the_confusion_and_examples_with_sound(finetuned):
    tags = events(finetuned).Tags()
    images = {"confusion/val", "confusion/test", "accuracy_by_class/test", "examples/worst", "examples/best"}
    assert images <= set(tags["images"])
    assert sum(tag.startswith("examples/worst") for tag in tags["audio"]) == 6
    rates = {tag for tag in tags["scalars"] if tag.startswith("lr/")}
    assert rates == {"lr/layer_00", "lr/layer_03"}  # the lowest and the highest of four
    check_dashboard(finetuned, {"train_loss", "val_loss", "val_top1"})


# ---- what is trained


def state_of(run_dir: Path) -> dict[str, torch.Tensor]:
    return torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def test_a_probe_leaves_the_encoder_bitwise_as_it_was(probed, pretrained):
    before, after = torch.load(pretrained, weights_only=True)["state_dict"], state_of(probed)
    encoder = {name for name in after if name.startswith("net.encoder.")}
    assert encoder == {name for name in before if name.startswith("net.encoder.")}
    for name in encoder:
        assert torch.equal(after[name], before[name]), name
    clips = json.loads((probed / "metrics.json").read_text())["data/train_listed"]
    assert after["net.norms.image.num_batches_tracked"] == 2 * (clips // 4)
    fresh = classify(compose_task("vggsound_linear_probe"))
    for name, value in fresh.untrained.encoder.state_dict().items():
        assert torch.equal(after[f"untrained.encoder.{name}"], value), name  # that of the seed
    heads = {name for name in after if "_head." in name}
    assert len(heads) == 12
    assert not any(torch.equal(after[name], fresh.state_dict()[name]) for name in heads)


def test_fine_tuning_trains_everything(finetuned, pretrained):
    before, after = torch.load(pretrained, weights_only=True)["state_dict"], state_of(finetuned)
    same = [name for name in before if name in after and torch.equal(before[name], after[name])]
    # Fixed by design; a key's bias shifts all scores of a query alike and has no gradient.
    kinds = {name.split(".")[-1] if "pos_embed" in name else name.split("attn.")[-1] for name in same}
    assert kinds <= {"pos_embed", "k.bias"}


# ---- start weights


def overrides(data: Path) -> list[str]:
    return ["experiment=vggsound_finetune", *CLASSIFY, f"data.root={data}/vggsound", f"paths.log_dir={data}/logs"]


@pytest.mark.parametrize("found", [True, False])
def test_a_checkpoint_of_another_architecture_is_an_error(found, classify_data, pretrained, monkeypatch, capsys):
    """Asked for, or the newest pre-training here: never a network from scratch without a word."""
    given = overrides(classify_data)
    if found:
        latest = classify_data / "logs" / "pretrain" / "latest" / "checkpoints" / "last.ckpt"
        latest.parent.mkdir(parents=True)
        shutil.copy(pretrained, latest)
    weights = [] if found else [f"model.pretrained={pretrained}"]
    message = sentence(monkeypatch, capsys, *given, *weights, "model.net.fusion=dense", "model.net.image.depth=3")
    assert "model.net.image.depth is 2 in the file and 3 here" in message
    assert "model.net.fusion is factorized in the file and dense here" in message
    assert "set model.net.image.depth=2 " in message
    assert "model.pretrained=null starts from scratch" in message
    shutil.rmtree(classify_data / "logs" / "pretrain", ignore_errors=True)


def test_start_weights_are_named_with_their_run_data_steps_and_date(pretrained, tmp_path, capsys):
    def started(latest: Path, given: object, data: str = "vggsound") -> list[str]:
        task = classify(compose_task("vggsound_finetune", f"model.pretrained={given}"))
        task.record = {"data": {"name": data, "demo": False}}
        load_start_weights(task, latest)
        return capsys.readouterr().out.strip().splitlines()

    copy = tmp_path / "run" / "checkpoints" / "last.ckpt"
    copy.parent.mkdir(parents=True)
    content = torch.load(pretrained, weights_only=True)
    record = {"task": "pretrain", "data": {"name": "vggsound"}}
    content |= {"global_step": 400, "record": record | {"steps": 400}}
    torch.save(content, copy)
    os.utime(copy, (0, 0))
    (tmp_path / "latest").symlink_to("run")
    latest = tmp_path / "latest" / "checkpoints" / "last.ckpt"
    (line,) = started(latest, "auto")
    date = datetime.fromtimestamp(0).strftime("%Y-%m-%d %H:%M")
    assert line.startswith(f"encoder from the latest pre-training, {copy} (pretrain on vggsound, 400 steps, {date}): ")
    assert "tensors loaded" in line
    assert "in the file unused (audio_decoder" in line
    assert started(tmp_path, copy)[0] == line.replace("the latest pre-training, ", "")

    torch.save(content | {"global_step": 30}, copy)
    _, unfinished, other = started(latest, "auto", "audioset")
    assert unfinished.startswith(
        "note: the training of these weights is not finished (30 of 400 steps); run.latest=false"
    )
    assert "trained on vggsound, this run uses audioset" in other
    torch.save(content | {"global_step": 2, "record": record | {"steps": 2}}, copy)
    assert "these weights were trained for 2 steps only" in started(tmp_path, copy)[1]
    assert started(tmp_path, "null") == ["encoder from scratch (model.pretrained=null)"]


@pytest.mark.parametrize("experiment", ["vggsound_linear_probe", "vggsound_finetune"])
def test_nothing_starts_from_scratch_unless_asked_to(experiment, tmp_path):
    task = classify(compose_task(experiment, "model.pretrained=auto"))
    with pytest.raises(UserError, match=r"nothing was pre-trained here .* model.pretrained=null"):
        load_start_weights(task, tmp_path / "nowhere.ckpt")


def test_classes_of_other_data_are_an_error(classify_data, monkeypatch, capsys):
    given = overrides(classify_data)
    message = sentence(monkeypatch, capsys, *given, "model.num_classes=9", "model.pretrained=null", "run.name=never")
    assert "vggsound has 8 classes, one a clip, the network 9 classes" in message
    message = sentence(monkeypatch, capsys, *given, "model.net=small", "run.name=never")
    assert "model.net=small would replace a config with a word: did you mean model/net=small?" in message
    assert not (classify_data / "logs" / "classify" / "runs" / "never").exists()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("+model.compare_untrained=true", "model.frozen=true"),
        ("model.optimizer=sgd", "expected adamw or lars"),
        ("model.mixup=-1", "model.mixup is -1, expected a number of at least 0"),
        ("model.label_smoothing=1", "model.label_smoothing is 1, expected a number of at least 0 and below 1"),
    ],
)
def test_settings_that_cannot_be(classify_data, monkeypatch, capsys, override, words):
    assert words in sentence(monkeypatch, capsys, *overrides(classify_data), override, "model.pretrained=null")


# ---- the task itself


def compose_task(experiment: str, *overrides: str):
    small = (value for value in CLASSIFY if not value.startswith("~"))
    cfg = compose(f"experiment={experiment}", *small, "model.pretrained=null", *overrides)
    cfg.model.num_classes, cfg.model.multi_label = 8, "audioset" in experiment
    return cfg


def classify(cfg) -> Classify:
    torch.manual_seed(0)
    task: Classify = instantiate(cfg.model)
    task.log = lambda *args, **kwargs: None
    return task


def batch_of(classify_data: Path, cfg, loader: int = 0):
    cfg.data.root = str(classify_data / cfg.data.name)
    data = instantiate(cfg.data)
    data.setup()
    return data.on_after_batch_transfer(next(iter(data.test_dataloader()[loader])), loader)


@pytest.mark.parametrize("experiment", ["vggsound_finetune", "audioset_finetune"])
def test_mixup_that_keeps_all_and_no_smoothing_is_the_plain_loss(classify_data, experiment, monkeypatch):
    plain = ["model.label_smoothing=0", "model.net.image.drop_path=0", "model.class_weighted=false"]
    cfg = compose_task(experiment, *plain)
    task, batch = classify(cfg), batch_of(classify_data, cfg)
    monkeypatch.setattr("deepavfusion.tasks.classify.draw_shares", lambda count, *_: torch.ones(count))
    logits = mean_of_heads(task.net(batch.image, batch.spectrogram))
    if experiment == "vggsound_finetune":
        expected = F.cross_entropy(logits, batch.label)
    else:
        expected = F.binary_cross_entropy_with_logits(logits, batch.labels)
    torch.testing.assert_close(task.training_step(batch, 0), expected, atol=1e-6, rtol=0)


def test_mixup_blends_picture_sound_and_target_by_the_same_share():
    share = torch.tensor([1.0, 0.75, 0.5])
    image, target = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 3, 2, 2), torch.eye(3)
    mixed, blended = mixup([image, target], share)
    assert mixed[:, 0, 0, 0].tolist() == [0.0, 1.0, 0.5 * 2 + 0.5 * 0]
    assert blended.tolist() == [[1, 0, 0], [0, 1, 0], [0.5, 0, 0.5]]
    torch.manual_seed(0)
    shares = draw_shares(4000, 1.0)
    assert shares.mean().item() == pytest.approx(0.5, abs=0.02)  # Beta(1, 1): uniform
    assert shares.std().item() == pytest.approx(12**-0.5, abs=0.02)
    assert draw_shares(4000, 0.2).std() > 0.38
    assert draw_shares(0, 1.0).shape == (0,)


def test_dense_windows_count_as_the_mean_of_their_logits(classify_data):
    cfg = compose_task("vggsound_finetune")
    task, batch = classify(cfg).eval(), batch_of(classify_data, cfg, loader=1)
    assert batch.group == 3
    assert len(batch) == 12
    with torch.no_grad():
        task.test_step(batch, 0, 1)
        logits = task.net(batch.image, batch.spectrogram)
    found = task.dense_metrics.table()
    assert found["item"].tolist() == [0, 1, 2, 3]
    for stream in STREAMS:
        for row in range(4):
            torch.testing.assert_close(found[stream][row], logits[stream][3 * row : 3 * row + 3].mean(dim=0))
    assert len(task.test_metrics.table()["item"]) == 0


def test_heads_start_from_the_classes_and_rare_ones_weigh_more(classify_data):
    cfg = compose_task("audioset_finetune")
    task = classify(cfg)
    cfg.data.root = str(classify_data / "audioset")
    data = instantiate(cfg.data)
    data.setup()
    task._trainer = SimpleNamespace(datamodule=data)  # type: ignore[assignment]
    task.setup("test")
    assert not task.net.image_head.bias.any()
    task.setup("fit")
    counts = torch.tensor(data.class_counts).double()
    assert counts.sum() > len(data.lists["train"])
    f = counts / counts.sum()
    expected = torch.log((f + 1e-3) / (1 - f + 1e-3)).float()
    torch.testing.assert_close(task.net.fusion_head.bias.detach(), expected)
    there = counts > 0
    weighted = (task.class_weight * counts)[there]
    torch.testing.assert_close(weighted, weighted[:1].expand_as(weighted))
    assert task.class_weight[there].mean().item() == pytest.approx(1)


@pytest.mark.parametrize("experiment", ["vggsound_finetune", "vggsound_linear_probe", "audioset_finetune"])
def test_training_lowers_the_loss_of_a_batch(classify_data, experiment):
    cfg = compose_task(experiment, "+model.mixup=0" if "probe" in experiment else "model.mixup=0")
    task, batch = classify(cfg), batch_of(classify_data, cfg)
    assert_learns(task, batch, lr=3e-3)


@pytest.mark.parametrize(
    ("experiment", "optimizer", "lrs"),
    [
        ("vggsound_finetune", "adamw", {0.75**n for n in range(4)}),
        ("vggsound_linear_probe", "adamw", {1.0}),
        ("vggsound_linear_probe", "lars", {1.0}),
    ],
)
def test_every_trained_parameter_has_one_learning_rate(experiment, optimizer, lrs):
    task = classify(
        compose_task(experiment, f"model.optimizer={optimizer}", "model.blr=0.256", "model.warmup_epochs=0")
    )
    of_trainer = {"world_size": 1, "accumulate_grad_batches": 1, "max_epochs": 2, "estimated_stepping_batches": 10}
    task._trainer = SimpleNamespace(**of_trainer)  # type: ignore[assignment]
    made = task.configure_optimizers()["optimizer"]
    assert type(made).__name__.lower() == optimizer
    listed = [id(p) for group in made.param_groups for p in group["params"]]
    assert sorted(listed) == sorted(id(p) for p in task.parameters() if p.requires_grad)
    first = max(group["lr"] for group in made.param_groups)
    assert first == pytest.approx(0.256 * 4 / 256)  # four clips a step
    assert {round(group["lr"] / first, 6) for group in made.param_groups} == {round(lr, 6) for lr in lrs}


@pytest.mark.parametrize("experiment", ["vggsound_finetune", "vggsound_linear_probe"])
def test_a_batch_without_clips_is_no_step(classify_data, experiment):
    cfg = compose_task(experiment)
    task, batch = classify(cfg), batch_of(classify_data, cfg)
    loss = task.training_step(batch.first(0), 0)
    loss.backward()
    assert loss.item() == 0
    assert all(value.isfinite().all() for value in task.state_dict().values())
    assert task.eval().test_step(batch.first(0), 0) is None
    assert set(task.test_metrics.compute()) == {"clips"}
