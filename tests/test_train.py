"""`src/train.py` from the command line down: what it writes, how it resumes, and its error messages."""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from deepavfusion.config.compose import instantiate
from deepavfusion.demo import demo
from deepavfusion.runs.build import build
from deepavfusion.weights.weights import load_mae
from helpers.runs import PRETRAIN, KilledError, check_dashboard, compose, events, read_table, recorder, sentence, train

RATES = ("main", "image_encoder", "audio_encoder")


@pytest.fixture
def command(data_root, tmp_path) -> list[str]:
    where = [f"data.root={data_root}", f"paths.log_dir={tmp_path}", "run.latest=false"]
    return [*PRETRAIN, *where, "~callbacks.reconstructions"]  # which take longer to draw than the steps


@pytest.fixture(scope="module")
def finished(data_root, tmp_path_factory):
    """A whole run, and the order of its clips."""
    logs = tmp_path_factory.mktemp("logs")
    with pytest.MonkeyPatch.context() as patch:
        order = logs / "order.jsonl"
        train(patch, *PRETRAIN, *recorder(order), f"data.root={data_root}", f"paths.log_dir={logs}", "run.name=whole")
    return logs / "pretrain" / "runs" / "whole", order


def test_a_pretraining_has_no_test(finished, monkeypatch, capsys):
    last = finished[0] / "checkpoints" / "last.ckpt"
    said = sentence(monkeypatch, capsys, f"ckpt_path={last}", script="eval")
    assert f"{last} is of a pre-training, which has no test" in said
    assert f"experiment=vggsound_linear_probe model.pretrained={last}" in said
    assert not [*finished[0].parents[1].glob("evals/*")]


def test_a_run_leaves_metrics_config_and_checkpoints(finished):
    run_dir, _ = finished
    metrics = json.loads((run_dir / "metrics.json").read_text())
    expected = {"train/loss_first", "train/loss_last", "clips_per_second", "val/loss"}
    expected |= {f"knn/{s}" for s in ("image", "audio", "fusion", "combined", "fusion_before", "image_before")}
    expected |= {f"knn_train/{s}" for s in ("image", "audio", "fusion", "combined")}
    assert expected <= set(metrics)
    assert all(isinstance(value, (int, float)) for value in metrics.values())
    assert metrics["train/loss_last"] < metrics["train/loss_first"]
    assert (metrics["data/train_listed"], metrics["data/test_present"], metrics["data/failed"]) == (16, 8, 0)
    checkpoints = sorted(path.name for path in (run_dir / "checkpoints").iterdir())
    assert checkpoints == ["last.ckpt", "step_00000004.ckpt", "step_00000006.ckpt"]
    assert "embed_dim: 32" in (run_dir / "config.yaml").read_text()
    assert "run.name=whole" in (run_dir / "overrides.yaml").read_text()
    assert (run_dir.parents[1] / "latest").resolve() == run_dir.resolve()
    assert [p.name for p in run_dir.parent.iterdir()] == ["whole"]


def test_first_and_last_loss_are_epoch_means(finished):
    run_dir, _ = finished
    shown = events(run_dir)
    steps = [event.value for event in shown.Scalars("train/loss_step")]
    metrics = json.loads((run_dir / "metrics.json").read_text())
    assert len(steps) == 6  # 16 clips in batches of 6: two whole batches an epoch
    assert metrics["train/loss_first"] == pytest.approx(sum(steps[:2]) / 2, rel=1e-5)
    assert metrics["train/loss_last"] == pytest.approx(sum(steps[-2:]) / 2, rel=1e-5)


def test_tensorboard_shows_curves_pictures_sounds_and_the_embedding(finished):
    run_dir, _ = finished
    shown = events(run_dir)
    tags = shown.Tags()
    scalars = {"train/loss_step", "train/loss_image", "val/loss_audio", "knn/fusion", "clips_per_second"}
    assert scalars <= set(tags["scalars"])
    assert {tag for tag in tags["scalars"] if tag.startswith("lr/")} == {f"lr/{n}" for n in RATES}
    check_dashboard(run_dir, {"train_loss", "val_loss", "knn_combined"})
    assert set(tags["images"]) == {"reconstruction/image", "reconstruction/audio", "attention/fusion"}
    assert len([t for t in tags["audio"] if t.startswith("audio/")]) == 2
    # before training and after each of three epochs
    assert len(shown.Images("reconstruction/image")) == 4
    assert [event.step for event in shown.Scalars("knn/fusion")] == [0, 1, 3, 5]
    labels = next((run_dir / "tensorboard").rglob("metadata.tsv")).read_text().splitlines()
    assert sorted(labels)[0] == "playing accordion"
    assert len(labels) == 8


def test_learning_rate_follows_batch_and_schedule(finished):
    run_dir, _ = finished
    checkpoint = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)
    (state,) = checkpoint["optimizer_states"]
    assert {g["initial_lr"] for g in state["param_groups"]} == {checkpoint["hyper_parameters"]["blr"] * 6 / 256}
    shown = events(run_dir)
    peak = checkpoint["hyper_parameters"]["blr"] * 6 / 256
    # six steps, two of them warm-up, then a cosine over four
    expected = [0, 0.5, 1, 0.853553, 0.5, 0.146447]
    found = [event.value / peak for event in shown.Scalars("lr/main")]
    assert found == pytest.approx(expected, abs=1e-5)


def test_a_killed_run_goes_on_with_the_same_command(finished, data_root, tmp_path, monkeypatch):
    whole, whole_order = finished
    order = tmp_path / "order.jsonl"
    command = [*PRETRAIN, f"data.root={data_root}", f"paths.log_dir={tmp_path}", "run.name=killed", "run.latest=false"]
    command += recorder(order, dies_in_epoch=2)
    with pytest.raises(KilledError):
        train(monkeypatch, *command)
    run_dir = tmp_path / "pretrain" / "runs" / "killed"
    assert (run_dir / "checkpoints" / "last.ckpt").exists()
    assert not (run_dir / "metrics.json").exists()
    train(monkeypatch, *command)
    assert order.read_text() == whole_order.read_text()  # the same clips and windows in the same order, each once
    assert not (tmp_path / "pretrain" / "latest").exists()
    metrics, undisturbed = (json.loads((d / "metrics.json").read_text()) for d in (run_dir, whole))
    del metrics["clips_per_second"], undisturbed["clips_per_second"]
    check_dashboard(run_dir, {"train_loss", "val_loss", "knn_combined"})
    assert metrics == undisturbed  # masks and gains too: nothing depends on where the run was cut
    weights = [torch.load(d / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for d in (run_dir, whole)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])


def test_steps_with_one_modality_train_and_leave_validation_as_it_is(command):
    """With a share of 0.7, the first epoch's second step is such a step, and the first is not."""
    cfg = compose(*(override for override in command if not override.startswith("~")))
    data = instantiate(cfg.data)
    data.setup("fit")
    batch = data.on_after_batch_transfer(next(iter(data.val_dataloader()[0])), 0)
    found = {}
    for share in (0, 0.7):
        torch.manual_seed(0)
        task = instantiate(cfg.model, solo_share=share)
        task.log = lambda *args, **kwargs: None
        task.trainer = SimpleNamespace(current_epoch=0)
        steps = []
        for step in range(2):
            task.on_train_batch_start(batch, step)
            steps.append(task.training_step(batch, step).item())
        task.validation_step(batch, 0)
        found[share] = steps, {name: mean.compute().item() for name, mean in task.val_losses.items()}
    assert found[0][0][0] == found[0.7][0][0]
    assert found[0][0][1] != found[0.7][0][1] > 0
    assert found[0][1] == found[0.7][1]


def test_steps_with_one_modality_resume(data_root, tmp_path, monkeypatch):
    """Without figures, which take longer than the training."""
    given = [*PRETRAIN, "model.solo_share=0.7", "trainer.max_epochs=2", "~logger.tensorboard", f"data.root={data_root}"]
    given += [f"paths.log_dir={tmp_path}", "run.latest=false", "validate_before=false"]
    train(monkeypatch, *given, "run.name=whole")
    given += ["run.name=killed", *recorder(tmp_path / "order.jsonl", dies_in_epoch=1)]
    with pytest.raises(KilledError):
        train(monkeypatch, *given)
    train(monkeypatch, *given)
    whole, killed = (tmp_path / "pretrain" / "runs" / name for name in ("whole", "killed"))
    metrics, cut = (json.loads((d / "metrics.json").read_text()) for d in (whole, killed))
    del metrics["clips_per_second"], cut["clips_per_second"]
    assert cut == metrics  # which steps have one modality, and which, does not depend on where the run was cut
    weights = [torch.load(d / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for d in (killed, whole)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])


def test_resume_takes_the_overrides_of_the_run(command, tmp_path, monkeypatch):
    with pytest.raises(KilledError):
        train(monkeypatch, *command, *recorder(tmp_path / "a", dies_in_epoch=1))
    (run_dir,) = (tmp_path / "pretrain" / "runs").iterdir()
    train(monkeypatch, f"resume={run_dir}", f"paths.log_dir={tmp_path}")
    epochs = [json.loads(line)[0] for line in (tmp_path / "a").read_text().splitlines()]
    assert epochs == [0, 0, 1, 1, 2, 2]
    assert (run_dir / "metrics.json").exists()


def test_a_finished_run_is_not_run_again(finished, data_root, monkeypatch, capsys):
    run_dir, _ = finished
    logs = run_dir.parents[2]
    text = sentence(monkeypatch, capsys, *PRETRAIN, f"data.root={data_root}", f"paths.log_dir={logs}", "run.name=whole")
    assert "is finished" in text
    assert "run.name" in text


def test_weights_of_a_run_load_into_another(finished, command, tmp_path, monkeypatch, capsys):
    run_dir, _ = finished
    last = run_dir / "checkpoints" / "last.ckpt"
    train(monkeypatch, *command, "run.name=x", f"model.pretrained={last}", "trainer.max_epochs=1", "model.blr=0")
    assert f"weights from {last.resolve()} (pretrain on vggsound, " in (out := capsys.readouterr().out)
    assert "tensors loaded" in out
    model = network(command)
    load_mae(model, last)
    trained = torch.load(tmp_path / "pretrain/runs/x/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(trained[f"net.{name}"], tensor) for name, tensor in model.state_dict().items())


def network(overrides: list[str]) -> torch.nn.Module:
    return instantiate(compose(*overrides).model).net


def test_a_run_goes_on_past_bad_clips_and_names_them(data_root, real_clips, tmp_path, monkeypatch, capsys):
    root = tmp_path / "mine"
    (root / "annotations").mkdir(parents=True)
    (root / "clips" / "films").mkdir(parents=True)
    rows = []
    for name in ("bigbuckbunny", "bikes", "music_duet_1", "music_duet_2"):
        rows.append([name, 0, "films", "train"])
        (root / f"clips/films/{name}_000000_000010.mp4").symlink_to((real_clips / f"{name}.mp4").resolve())
    with (root / "annotations" / "vggsound.csv").open("w", newline="") as file:
        csv.writer(file).writerows([*rows, ["vanished", 0, "films", "train"]])
    train(monkeypatch, *PRETRAIN, f"data.root={root}", f"paths.log_dir={tmp_path}", "run.name=mine", "run.latest=false")
    run_dir = tmp_path / "pretrain" / "runs" / "mine"
    rows = read_table(run_dir / "data_problems.csv")
    problems = {row["id"]: (row["reason"], row["used"]) for row in rows}
    assert problems == {"bikes_000000": ("no_audio", "False"), "vanished_000000": ("not_on_disk", "False")}
    metrics = json.loads((run_dir / "metrics.json").read_text())
    counts = {name: metrics[f"data/{name}"] for name in ("failed", "train_listed", "train_present", "test_listed")}
    assert counts == {"failed": 1, "train_listed": 5, "train_present": 4, "test_listed": 0}
    assert "knn/fusion" not in metrics
    assert metrics["train/loss_last"] > 0
    out = capsys.readouterr().out
    assert "bikes_000000" in out
    assert "4 of 5 clips of the train split are on disk" in out
    assert "fewer than two test clips" in out


@pytest.mark.full
def test_a_run_over_a_folder_with_a_fifth_of_it_damaged_counts_them(data_root, tmp_path, monkeypatch, capsys):
    root = tmp_path / "damaged"
    shutil.copytree(data_root, root)
    with (root / "annotations" / "vggsound.csv").open() as file:
        split_of = {f"{row[0]}_{int(row[1]):06d}": row[3] for row in csv.reader(file)}
    paths = {split: [] for split in ("train", "test")}
    for path in sorted(root.rglob("*.mp4")):
        paths[split_of[path.stem.rpartition("_")[0]]].append(path)
    damaged = paths["train"][:3] + paths["test"][:2]  # of 24
    rng = random.Random(0)
    for kind, path in enumerate(damaged):
        data = bytearray(path.read_bytes())
        if kind % 3 == 0:
            data = data[: rng.randrange(len(data) // 3)]  # the header at the end is gone
        elif kind % 3 == 1:
            data[data.find(b"moov") :] = bytes(len(data) - data.find(b"moov"))
        else:
            for _ in range(len(data) // 4):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
    names = {path.stem.rpartition("_")[0] for path in damaged}
    command = [*PRETRAIN, f"paths.log_dir={tmp_path}", "run.latest=false"]
    train(monkeypatch, *command, f"data.root={root}", "run.name=x", *recorder(tmp_path / "order"))
    metrics = json.loads((tmp_path / "pretrain/runs/x/metrics.json").read_text())
    problems = read_table(tmp_path / "pretrain/runs/x/data_problems.csv")
    assert {row["id"] for row in problems if row["used"] == "False"} == names
    assert metrics["data/failed"] == 5
    lost = sum(split_of[name] == "test" for name in names)
    assert lost == 2
    assert (metrics["data/used"], metrics["data/listed"]) == (8 - lost, 8)
    assert metrics["data/coverage"] == pytest.approx(1 - lost / 8)
    steps = [json.loads(line) for line in (tmp_path / "order").read_text().splitlines()]
    used = sum(len(ids) for epoch, _, ids, _ in steps if epoch == 2)
    assert (metrics["data/train_used"], metrics["data/train_drawn"]) == (used, 12)
    assert metrics["data/train_coverage"] == pytest.approx(used / 12)
    out = capsys.readouterr().out
    assert f"data: {used} of the 12 clips drawn in epoch 2 were used" in out
    assert f"{used} of 12 clips drawn in the last epoch used" in out
    # a protocol's result needs more than this
    text = sentence(monkeypatch, capsys, *command, f"data.root={root}", "data.min_coverage=0.9")
    assert f"used {8 - lost} of 8 items of the test split" in text
    assert "data.min_coverage=" in text
    (victim,) = (root / "clips").rglob(f"*{min(n for n in names if split_of[n] == 'test')}*.mp4")
    victim.unlink()
    text = sentence(monkeypatch, capsys, *command, f"data.root={root}", "data.min_coverage=0.9")
    assert "only 7 of 8 clips of the test split" in text


def test_a_run_with_nothing_to_hear_stops(tmp_path, real_clips, monkeypatch, capsys):
    root = tmp_path / "mute"
    (root / "annotations").mkdir(parents=True)
    (root / "clips" / "street").mkdir(parents=True)
    (root / "clips/street/bikes_000000_000010.mp4").symlink_to((real_clips / "bikes.mp4").resolve())
    (root / "annotations" / "vggsound.csv").write_text("bikes,0,street,train\n")
    text = sentence(
        monkeypatch, capsys, *PRETRAIN, f"data.root={root}", f"paths.log_dir={tmp_path}", "run.latest=false"
    )
    assert "no training clip could be used in" in text
    assert "no audio stream" in text


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["experiment=nope"], ["experiment=nope", "experiment=audioset_2m_finetune, ", "pretrain_vggsound"]),
        (["data.rooot=x"], ["data.rooot", "did you mean data.root=x?", "Type: python src/train.py "]),
        (["data.root=/nowhere"], ["data.root=/nowhere", "not a folder", "omit data.root"]),
        (["data.image_size=100"], ["[100, 100]", "model.net.image.patch_size=16", "data.image_size"]),
        (["model.pretrained=/nowhere.pth"], ["/nowhere.pth", "does not exist", "expected"]),
        (["ckpt_path=/nowhere.ckpt"], ["ckpt_path=/nowhere.ckpt", "does not exist"]),
        (["ckpt_path=last"], ["ckpt_path=last", "run.name"]),
        (["run.name=a/b"], ["run.name is 'a/b'", "slashes"]),
        (["resume=/nowhere"], ["resume=/nowhere", "last.ckpt"]),
        (["model.net.fusion=sum"], ["model.net.fusion", "factorized, dense, token"]),
        (["trainer.max_epochs=-1"], ["trainer.max_epochs"]),
        pytest.param(
            ["trainer.accelerator=gpu"],
            ["trainer=auto"],
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_mistakes_get_one_sentence(overrides, words, data_root, tmp_path, monkeypatch, capsys):
    given = [] if any(o.startswith("data.root") for o in overrides) else [f"data.root={data_root}"]
    text = sentence(monkeypatch, capsys, *PRETRAIN, *given, f"paths.log_dir={tmp_path}", "run.latest=false", *overrides)
    assert all(word in text for word in words), text


def test_a_damaged_checkpoint_is_named_and_nothing_is_left_behind(command, tmp_path, monkeypatch, capsys):
    path = tmp_path / "cut.ckpt"
    path.write_bytes(b"PK\x03\x04 not a checkpoint")
    text = sentence(monkeypatch, capsys, *command, f"model.pretrained={path}")
    assert str(path) in text
    assert "cannot be read" in text
    assert list((tmp_path / "pretrain" / "runs").iterdir()) == []
    text = sentence(monkeypatch, capsys, *command, f"ckpt_path={path}")
    assert str(path) in text
    assert "cannot be read" in text


def test_a_run_goes_on_only_from_a_run_of_the_same_network(finished, command, tmp_path, monkeypatch, capsys):
    last = finished[0] / "checkpoints" / "last.ckpt"
    weights = tmp_path / "published.pth"
    torch.save({"state_dict": {"encoder.fusion_tokens": torch.zeros(1, 9, 48)}}, weights)
    assert "model.pretrained" in sentence(monkeypatch, capsys, *command, f"ckpt_path={weights}")
    text = sentence(monkeypatch, capsys, *command, f"ckpt_path={last}", "model.decoder_embed_dim=64")
    assert "model.decoder_embed_dim is 64, but was 32" in text
    assert "give model.decoder_embed_dim=32" in text


@pytest.mark.full
def test_the_final_weights_are_always_validated(command, tmp_path, monkeypatch):
    drawn = [word for word in command if word != "~callbacks.reconstructions"]
    train(monkeypatch, *drawn, "run.name=x", "trainer.check_val_every_n_epoch=50", "trainer.max_epochs=2")
    shown = events(tmp_path / "pretrain/runs/x")
    assert [event.step for event in shown.Scalars("knn/fusion")] == [0, 3]
    assert len(shown.Images("reconstruction/audio")) == 2


def test_a_run_has_as_many_processes_as_were_started_or_none(command, tmp_path, monkeypatch, capsys):
    for name, value in {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0", "SLURM_JOB_ID": "4216"}.items():
        monkeypatch.setenv(name, value)
    text = sentence(monkeypatch, capsys, *command)
    assert "srun started 2 processes, but the trainer has 1 (trainer.devices=1, trainer.num_nodes=1)" in text
    assert [*tmp_path.iterdir()] == []


@pytest.mark.full
def test_the_shell_of_salloc_is_one_process(command, tmp_path, monkeypatch):
    for name, value in {"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_JOB_NAME": "mine"}.items():
        monkeypatch.setenv(name, value)
    train(monkeypatch, *command, "trainer.max_epochs=1")
    assert len([*tmp_path.glob("pretrain/runs/*/metrics.json")]) == 1


def test_the_progress_bar_comes_after_what_processes_exchange(data_root, tmp_path):
    cfg = compose(*(override for override in PRETRAIN if "progress" not in override), f"data.root={data_root}")
    cfg.paths.run_dir = str(tmp_path)
    trainer, _, _ = build(cfg, [])
    kinds = [type(callback).__name__ for callback in trainer.callbacks]
    assert kinds.index("RunProgress") > kinds.index("DataReport")
    assert kinds[-2:] == ["RunProgress", "Checkpoints"]


@pytest.mark.full
def test_two_processes_share_the_work_and_one_directory(data_root, real_clips, tmp_path):
    """As Lightning starts them on a machine with two devices; an odd number of clips, one of them bad."""
    root = tmp_path / "data"
    shutil.copytree(data_root, root)
    victim = sorted((root / "clips" / "playing_flute").glob("*.mp4"))[0]
    victim.write_bytes((real_clips / "bikes.mp4").read_bytes())
    lines = (root / "annotations" / "vggsound.csv").read_text().splitlines()
    dropped = next(line for line in lines if line.endswith("test") and victim.name.split("_000")[0] not in line)
    (root / "annotations" / "vggsound.csv").write_text("\n".join(line for line in lines if line != dropped) + "\n")

    found, seen = {}, {}
    for devices in (1, 2):
        given = [override for override in PRETRAIN if "progress" not in override]  # the bar exchanges something, too
        command = [sys.executable, "src/train.py", *given, f"data.root={root}", f"paths.log_dir={tmp_path}/{devices}"]
        command += ["trainer=ddp_sim"] if devices > 1 else []
        done = subprocess.run(
            [*command, "model.blr=0", "run.latest=false", "data.batch_size=4", *recorder(tmp_path / f"{devices}.txt")],
            cwd=Path(__file__).parents[1],
            capture_output=True,
            text=True,
            timeout=400,
            env={k: v for k, v in os.environ.items() if k != "DEEPAVFUSION_RUN_DIR"} | {"PYTHONPATH": "src:tests"},
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert "warn" not in done.stderr.lower()
        (run_dir,) = (tmp_path / str(devices) / "pretrain" / "runs").iterdir()
        found[devices] = json.loads((run_dir / "metrics.json").read_text())
        seen[devices] = Counter()
        for line in (tmp_path / f"{devices}.txt").read_text().splitlines():
            epoch, _, ids, _ = json.loads(line)
            seen[devices].update((epoch, name) for name in ids)
    assert len(seen[1]) >= 3 * 15
    assert seen[2] == seen[1]
    assert set(seen[2].values()) == {1}
    # nothing is learned at blr=0, so evaluation must not depend on the number of processes
    assert set(found[1]) == set(found[2])
    for name, value in found[1].items():
        if name.startswith(("knn", "data/")):
            assert found[2][name] == pytest.approx(value, abs=1e-6), name
    assert found[2]["data/failed"] == 1
    assert found[2]["data/test_listed"] == 7


def test_no_data_means_demo_and_says_so(tmp_path, monkeypatch, capsys):
    data = tmp_path / "data"
    counts = demo.Counts(vggsound_train=2, vggsound_test=1)
    monkeypatch.setattr(
        "deepavfusion.runs.build.make_demo_data", lambda root, name: demo.ensure(root, [name], 0, 1, counts)
    )
    monkeypatch.setattr("deepavfusion.config.compose.REPOSITORY", tmp_path)
    given = [override for override in PRETRAIN if override != "scale=demo"]
    train(monkeypatch, *given, "model/net=tiny", "run.name=auto", "trainer.max_epochs=1")
    out, err = capsys.readouterr()
    assert "Demo scale" in out
    assert "no data.root was given" in out
    assert "  length   1 epoch × 2 steps = 2 steps, validation each epoch" in out
    steps = torch.load(tmp_path / "logs/pretrain/runs/auto/checkpoints/last.ckpt", weights_only=True)["record"]["steps"]
    assert steps == 2  # as printed before the first step
    noise = ("FLOPs", "Modules in", "srun", "GPU available", "litlogger", "LeafSpec", "num_workers", "\x1b")
    assert [words for words in noise if words in out + err] == []
    config = (tmp_path / "logs/pretrain/runs/auto/config.yaml").read_text()
    assert f"root: {data}/demo/vggsound" in config
