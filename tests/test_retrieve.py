"""Retrieval: embeddings that have not met the other modality, its loss in several processes, and what a run writes."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from deepavfusion.config.compose import REPOSITORY, instantiate
from deepavfusion.data.lists.retrieval import named_clips
from deepavfusion.data.stores.packed_list import packed_list
from deepavfusion.metrics.retrieval import DIRECTIONS, chance
from deepavfusion.models.retriever import MAX_SCALE, Retriever, info_nce, joint_means, solo_means
from deepavfusion.tasks.retrieve import BASELINES, Retrieve
from deepavfusion.utils.errors import UserError
from helpers.distributed import in_two_processes
from helpers.errors import refusal
from helpers.packs import small_pack
from helpers.runs import (
    CLASSIFY,
    assert_learns,
    check_dashboard,
    compose,
    evaluate,
    events,
    finished,
    numbers,
    sentence,
)  # fmt: skip

MEASURES = ("map", "r1", "r5", "r10", "median_rank", "mean_rank", "ties")
SMALL = [value for value in CLASSIFY if not value.startswith("~")]


def task_of(*overrides: str) -> Retrieve:
    cfg = compose("experiment=vggsound_retrieval", *SMALL, "model.pretrained=null", *overrides)
    cfg.model.num_classes, cfg.model.multi_label = 8, "data=audioset" in overrides
    torch.manual_seed(0)
    task: Retrieve = instantiate(cfg.model)
    task.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
    return task


def batch_of(root: Path, loader: int = 0) -> Any:
    cfg = compose("experiment=vggsound_retrieval", *SMALL, f"data.root={root}")
    data = instantiate(cfg.data)
    data.setup()
    return data.on_after_batch_transfer(next(iter(data.test_dataloader()[loader])), loader)


# ---- the network


def test_an_embedding_has_not_met_the_other_modality(classify_data):
    net, batch = task_of().net.double().eval(), batch_of(classify_data / "vggsound")
    image, audio = batch.image.double(), batch.spectrogram.double().requires_grad_()
    both, alone = net(image, audio), net(image, None)
    assert set(alone) == {"image"}
    assert torch.equal(both["image"], alone["image"])
    assert torch.equal(both["audio"], net(None, audio)["audio"])
    torch.testing.assert_close(both["image"].norm(dim=1), torch.ones(4).double())
    (gradient,) = torch.autograd.grad(both["image"].sum(), audio, allow_unused=True)
    assert gradient is None

    encoded = net.encoder(image, None)
    mean = torch.cat([encoded.image, encoded.fusion], dim=1).mean(dim=1)
    torch.testing.assert_close(solo_means(net.encoder, image, audio)["image"], mean)
    torch.testing.assert_close(both["image"], F.normalize(net.image_proj(mean), dim=1))
    joint = joint_means(net.encoder, image, audio)  # it has
    (gradient,) = torch.autograd.grad(joint["image"].sum(), audio)
    assert gradient.abs().max() > 0


def test_a_frozen_encoder_stays_as_it_is(classify_data):
    task, batch = task_of("model.frozen=true"), batch_of(classify_data / "vggsound")
    assert not task.net.encoder.training
    trained = {name for name, p in task.net.named_parameters() if p.requires_grad}
    parts = {f"{stream}_proj.{kind}" for stream in ("image", "audio") for kind in ("weight", "bias")}
    assert trained == {*parts, "log_temperature"}
    task.training_step(batch, 0).backward()
    assert all(p.grad is None for p in task.net.encoder.parameters())
    assert task.net.norms["image"].num_batches_tracked == 1


# ---- the loss

ROWS = {"uneven": (3, 2), "an empty one": (5, 0), "none": (0, 0)}


def embeddings(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(count)
    return torch.randn(count, 4, generator=random).double(), torch.randn(count, 4, generator=random).double()


def loss_and_gradients(image: torch.Tensor, audio: torch.Tensor, weight: float) -> dict[str, Any]:
    image, audio = image.requires_grad_(), audio.requires_grad_()
    scale = torch.tensor(5.0, dtype=torch.float64, requires_grad=True)
    loss = info_nce(F.normalize(image, dim=1), F.normalize(audio, dim=1), scale, most=5)
    (loss * weight).backward()
    assert scale.grad is not None
    return {"loss": loss.item(), "image": image.grad, "audio": audio.grad, "scale": scale.grad.item()}


def _loss_of_a_process(rank: int) -> dict[str, Any]:
    found = {}
    for name, rows in ROWS.items():
        image, audio = embeddings(sum(rows))
        own = slice(rows[0] * rank, rows[0] + rows[1] * rank)
        weight = rows[rank] * 2 / max(sum(rows), 1)  # as `Counts.weighted`
        found[name] = loss_and_gradients(image[own].clone(), audio[own].clone(), weight)
    return found


def test_the_loss_is_that_of_cross_entropy_over_all_pairs():
    image, audio = (F.normalize(x, dim=1) for x in embeddings(5))
    logits, own = 5 * audio @ image.T, torch.arange(5)
    expected = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    torch.testing.assert_close(info_nce(image, audio, torch.tensor(5.0).double(), 5), expected)
    collapsed = info_nce(image[:1].expand(5, -1), audio[:1].expand(5, -1), torch.tensor(5.0).double(), 5)
    assert collapsed.item() == pytest.approx(math.log(5))


def test_clips_of_all_processes_are_negatives_with_gradients(tmp_path):
    """Uneven processes, one without a clip, and none with one: the mean over processes is what one process finds."""
    both = in_two_processes(_loss_of_a_process, tmp_path)
    for name, rows in ROWS.items():
        shares = [both[rank][name] for rank in (0, 1)]
        one = loss_and_gradients(*embeddings(sum(rows)), 1.0)
        loss = sum(n * share["loss"] for n, share in zip(rows, shares, strict=True)) / max(sum(rows), 1)
        assert loss == pytest.approx(one["loss"], rel=1e-12)
        for stream in ("image", "audio"):
            gradient = torch.cat([share[stream] for share in shares]) / 2  # processes take the mean
            torch.testing.assert_close(gradient, one[stream], rtol=1e-12, atol=1e-15)
        assert sum(share["scale"] for share in shares) / 2 == pytest.approx(one["scale"], rel=1e-12)


def test_the_temperature_is_learned_within_its_limit(classify_data):
    net = Retriever(task_of().net.encoder, temperature=0.07)
    assert net.scale.item() == pytest.approx(1 / 0.07)
    with torch.no_grad():
        net.log_temperature.fill_(-9.0)
    net.limit_scale()
    assert net.scale.item() == pytest.approx(MAX_SCALE)
    task, batch = task_of(), batch_of(classify_data / "vggsound")
    assert_learns(task, batch, lr=3e-3)
    assert task.net.scale.item() != pytest.approx(1 / 0.07)


def test_a_batch_without_clips_is_no_step(classify_data):
    task, batch = task_of(), batch_of(classify_data / "vggsound")
    loss = task.training_step(batch.first(0), 0)
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is not None for p in task.parameters() if p.requires_grad)
    assert task.eval().test_step(batch.first(0), 0) is None


# ---- a run


def test_every_result_stands_beside_what_it_is_compared_with(retrieved, classify_data):
    found = numbers(retrieved / "metrics.json")
    names = {f"{direction}_{measure}" for direction in DIRECTIONS for measure in MEASURES}
    assert {f"test/{name}" for name in names} <= set(found)
    for suffix in (*BASELINES, "chance", "dense", "diagonal_dense"):
        assert {f"test/{name}_{suffix}" for name in names} <= set(found), suffix
    assert found["test/clips"] == 8
    expected = chance(torch.arange(8))  # one clip of each class
    assert found["test/image_to_audio_map_chance"] == pytest.approx(expected["map"])
    assert found["test/audio_to_image_r5_chance"] == 5 / 8
    assert found["test/audio_to_image_median_rank_chance"] == 4.5
    metrics = json.loads((retrieved / "metrics.json").read_text())
    assert {"val/loss", "val/audio_to_image_map", "train/loss_last", "train/temperature"} <= set(metrics)
    assert 0.01 <= metrics["train/temperature"] < 1
    check_dashboard(retrieved, {"train_loss", "val_loss", "val_audio_to_image_map", "val_image_to_audio_map"})
    assert "test/audio_to_image_map_zero_shot" in events(retrieved).Tags()["scalars"]


def test_baselines_are_those_of_the_encoders_before_training(retrieved, classify_data, pretrained):
    """Mean tokens of the start weights, and of the network that the seed gives."""
    found = numbers(retrieved / "metrics.json")
    cfg = compose("experiment=vggsound_retrieval", *SMALL, f"data.root={classify_data / 'vggsound'}")
    data = instantiate(cfg.data)
    data.setup()
    task, weights = task_of(), torch.load(pretrained, weights_only=True)["state_dict"]
    encoder = {k.removeprefix("net.encoder."): v for k, v in weights.items() if k.startswith("net.encoder.")}
    task.net.encoder.load_state_dict(encoder)
    task.eval()
    metrics = {name: task.new_metric(32) for name in BASELINES}
    loader = data.test_dataloader()[0]
    for batch in loader:
        for name, means in task.baseline_means(data.on_after_batch_transfer(batch, 0)).items():
            task.update(metrics[name], means, batch)
    for name, value in task.keep_baselines(loader.dataset, metrics).items():
        if not name.endswith("_untrained"):  # the run seeds otherwise
            assert found[f"test/{name}"] == pytest.approx(value, abs=1e-6), name
    assert found["test/audio_to_image_mean_rank_joint"] != found["test/audio_to_image_mean_rank_zero_shot"]
    with pytest.raises(ValueError, match="not enough values"):  # it is not kept in memory
        task.baseline_means(batch)


def test_the_table_is_printed_before_training_and_at_its_end(classify_data, pretrained, tmp_path, capsys):
    given = [*CLASSIFY, "experiment=vggsound_retrieval", f"data.root={classify_data / 'vggsound'}"]
    given += ["trainer.max_epochs=1", "trainer.limit_train_batches=1", "data.dense_windows=0"]
    run = finished(tmp_path, "shown", *given, f"model.pretrained={pretrained}")
    out = capsys.readouterr().out
    before, after = out.split("Results")
    rows = [line.split() for line in before.split("Before training")[1].splitlines() if "test/" in line]
    assert [row[-5] for row in rows] == [
        f"test/{direction}_{name}" for name in ("map", "r1", "r5", "r10") for direction in DIRECTIONS
    ]
    found = numbers(run / "metrics.json")
    for row in rows:
        for word, suffix in zip(row[-4:], ("untrained", "chance", "zero_shot", "joint"), strict=True):
            assert float(word) == pytest.approx(found[f"{row[-5]}_{suffix}"], abs=6e-4)
    assert "joint is no retrieval" in before
    assert "test/audio_to_image_map" in after
    assert "eval.py ckpt_path=" in after
    assert f"task=search index={classify_data / 'vggsound'} query=" in " ".join(after.split())


def test_baselines_of_other_clips_are_left_out(retrieved, classify_data, tmp_path, monkeypatch, capsys):
    ids = [clip.id for clip in listed(classify_data / "vggsound", "test").clips]
    path = retrieval_list(tmp_path / "list.json", ids[:5])
    last = retrieved / "checkpoints" / "last.ckpt"
    evaluate(monkeypatch, f"ckpt_path={last}", f"data.index.retrieval_list={path}", "run.name=five")
    assert "other clips than at the start of the training: …_untrained, …_zero_shot" in capsys.readouterr().out
    found = numbers(retrieved.parents[1] / "evals" / "five" / "metrics.json")
    assert found["test/clips"] == 5
    assert found["test/audio_to_image_r1_chance"] == pytest.approx(1 / 5)
    assert not any(name.endswith(BASELINES) for name in found)


@pytest.mark.parametrize(
    "state",
    [[1.0], {"of": 1}, {"of": -1, "values": {}}, {"of": 1, "values": {"a_joint": "1"}}, {"of": 1, "values": {1: 1.0}}],
)
def test_what_a_checkpoint_may_not_hold(state):
    with pytest.raises(UserError, match=r"^the checkpoint's baselines.*: use one that train.py wrote"):
        task_of().on_load_checkpoint({"baselines": state})


def test_a_resumed_run_keeps_the_baselines(retrieved):
    content = torch.load(retrieved / "checkpoints" / "last.ckpt", weights_only=True)
    assert not any("untrained" in name for name in content["state_dict"])
    task = task_of()
    task.on_load_checkpoint(content)
    found = numbers(retrieved / "metrics.json")
    assert {f"test/{name}": value for name, value in task.baselines.items()} == {
        name: pytest.approx(value) for name, value in found.items() if name.endswith(BASELINES)
    }


def test_a_run_resumed_before_its_baselines_can_still_measure_them(classify_data):
    task, batch = task_of(), batch_of(classify_data / "vggsound")
    task.on_load_checkpoint({})
    assert task.eval().baseline_means(batch).keys() == set(BASELINES)


def test_settings_that_cannot_be(classify_data, monkeypatch, capsys):
    given = ["experiment=vggsound_retrieval", *CLASSIFY, f"data.root={classify_data}/vggsound", "model.pretrained=null"]
    given += [f"paths.log_dir={classify_data}/logs", "run.name=never"]
    assert "vggsound has 8 classes, one a clip, the network 9 classes, one a clip" in sentence(
        monkeypatch, capsys, *given, "model.num_classes=9"
    )
    assert "data.batch_size is 4, model.batch_size 2" in sentence(monkeypatch, capsys, *given, "model.batch_size=2")
    assert "model.temperature is 0, expected a number of at least 0.01" in sentence(
        monkeypatch, capsys, *given, "model.temperature=0"
    )


def test_several_labels_are_relevant_where_one_is_shared(classify_data, capsys):
    """Other data, which has no retrieval list."""
    other = ["experiment=vggsound_retrieval", "data=audioset", *SMALL, f"data.root={classify_data}/audioset"]
    cfg = compose(*other, "data.index.retrieval_list=list.json", "data.train_split=balanced", "data.eval_split=eval")
    data = instantiate(cfg.data)
    assert "data.index.retrieval_list is of VGGSound's clips: here, all of the split" in capsys.readouterr().out
    data.setup()
    cfg.model.num_classes, cfg.model.multi_label = data.num_classes, data.multi_label
    task: Retrieve = instantiate(cfg.model)
    task.check_data(data)
    task.trainer = SimpleNamespace(training=False, barebones=False)  # type: ignore[assignment]
    loader = data.test_dataloader()[0]
    with torch.no_grad():
        for batch in loader:
            task.eval().test_step(data.on_after_batch_transfer(batch, 0), 0)
    found, table = task.test_metrics.compute(), task.test_metrics.table()
    assert found["clips"] == 8
    assert table["label"].dtype == torch.bool
    shared = (table["label"].float() @ table["label"].float().T > 0).sum()
    assert 8 < shared < 64
    assert found["audio_to_image_map"] > 0


# ---- the published list


def listed(root: Path, split: str, **options: Any) -> Any:
    from deepavfusion.data.lists.vggsound import vggsound

    return vggsound(root, split, **options)


def retrieval_list(path: Path, ids: list[str]) -> Path:
    """As CAV-MAE publishes it."""
    rows = [{"video_id": each, "wav": "<YOUR_VGGS_PATH>/a.wav", "video_path": "", "labels": "vgg_3"} for each in ids]
    text = json.dumps({"data": rows}).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


@pytest.mark.parametrize("name", ["list.json", "list.json.gz"])
def test_a_list_chooses_test_clips_and_missing_ones_lower_the_coverage(name, classify_data, tmp_path):
    root = classify_data / "vggsound"
    everything = listed(root, "test")
    lines = (root / "annotations" / "vggsound.csv").read_text()
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "vggsound.csv").write_text(f"{lines}aaaaaaaaaaa,7,{everything.classes[0]},test\n")
    (tmp_path / "clips").symlink_to(root / "clips")
    ids = [clip.id for clip in everything.clips]
    path = retrieval_list(tmp_path / name, [ids[3], "aaaaaaaaaaa_000007", ids[1], ids[3]])
    found = listed(tmp_path, "test", retrieval_list=str(path))
    assert [clip.id for clip in found.clips] == [ids[1], ids[3]]
    assert [clip.id for clip in found.missing] == ["aaaaaaaaaaa_000007"]
    assert found.coverage == "2 of 3 clips of the test split are on disk"
    assert found.notes[-1] == f"3 of its 9 clips are evaluated, those of {path}."
    assert found.classes == everything.classes
    train = listed(tmp_path, "train", retrieval_list=str(path))
    assert len(train) == 24
    assert not any("evaluated" in note for note in train.notes)


def test_a_list_chooses_packed_clips(tmp_path):
    root = small_pack(tmp_path / "packed", train=2, test=5)
    path = str(retrieval_list(tmp_path / "list.json", ["test0004", "test0001"]))
    clips, store = packed_list(str(root), "test", "vggsound", {"retrieval_list": path})
    assert [clip.id for clip in clips.clips] == ["test0001", "test0004"]
    with store.open(clips.clips[1]) as opened:
        assert opened.audio_end == 4.0
    assert len(packed_list(str(root), "train", "vggsound", {"retrieval_list": path})[0]) == 2
    with pytest.raises(UserError, match=r"names 1 clip that the test split does not list \(e.g. 'nowhere'\)"):
        named_clips(clips, str(retrieval_list(tmp_path / "other.json", ["nowhere"])))


def test_packing_takes_whole_splits(classify_data, tmp_path, monkeypatch, capsys):
    path = retrieval_list(tmp_path / "list.json", ["x"])
    given = ["command=pack", "data=vggsound", f"data.root={classify_data}/vggsound", f"output={tmp_path}/packed"]
    found = sentence(monkeypatch, capsys, *given, f"data.index.retrieval_list={path}", script="prepare")
    assert "data.index.retrieval_list is set, but packed data holds whole splits" in found


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "does not exist; expected a list of clips"),
        (b'{"data": []}', "has no clips"),
        (b'{"data": [{"video_id": 3}]}', "entry 1 is {'video_id': 3}"),
        (b'["x"]', "has no clips"),
        (b"id,start\n", "cannot be read as JSON"),
        (b'{"data": [{"video_id": "nowhere_000001"}]}', "names 1 clip that the test split does not list"),
    ],
)
def test_a_list_that_cannot_be_used_is_one_sentence(classify_data, tmp_path, content, words):
    path = tmp_path / "list.json"
    if content is not None:
        path.write_bytes(content)
    found = refusal(listed, classify_data / "vggsound", "test", retrieval_list=str(path))
    assert words in found
    assert str(path) in found


@pytest.mark.parametrize("kind", ["no gzip", "cut", "endless"])
def test_a_compressed_list_that_is_damaged_or_endless(classify_data, tmp_path, kind):
    content = b"no gzip" if kind == "no gzip" else gzip.compress(b" " * 2**28 if kind == "endless" else b'{"data": ', 1)
    content = content[:-3] if kind == "cut" else content
    path = tmp_path / "list.json.gz"
    path.write_bytes(content)
    found = refusal(listed, classify_data / "vggsound", "test", retrieval_list=str(path))
    assert "is no whole gzip file" in found or "holds more than" in found


def test_the_published_list_is_read(tmp_path):
    folder = REPOSITORY.parent / "shared" / "metadata" / "vggsound_retrieval"
    if not folder.is_dir():
        pytest.skip("no lists beside the repository")
    (path,) = folder.glob("*.json.gz")
    with gzip.open(path) as file:
        rows = json.load(file)["data"]
    lines = [f"{row['video_id'][:-7]},{int(row['video_id'][-6:])},{row['labels']},test" for row in rows]
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "vggsound.csv").write_text("\n".join([*lines, "bbbbbbbbbbb,3,vgg_0,test"]))
    first = rows[0]["video_id"]
    clip = tmp_path / "clips" / rows[0]["labels"] / f"{first}_{int(first[-6:]) + 10:06d}.mp4"
    clip.parent.mkdir(parents=True)
    clip.touch()
    found = listed(tmp_path, "test", retrieval_list=str(path))
    assert found.listed == 1545
    assert len(found.classes) == 309
    assert [each.id for each in found.clips] == [first]
