"""What embeddings know of classes: measures on small embeddings, and the files of a whole evaluation."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from matplotlib.patches import Rectangle
from omegaconf import DictConfig
from sklearn import metrics as sklearn
from sklearn.cluster import KMeans
from torch import Tensor
from torch.nn import functional as F

from deepavfusion.callbacks.show.semantics.report import class_lines, pair_lines, stream_lines, verdicts
from deepavfusion.callbacks.show.semantics.sheets import Shown, choose, draw_sheet
from deepavfusion.config.compose import instantiate
from deepavfusion.metrics.neighbours import NeighbourAccuracy
from deepavfusion.metrics.semantics import (
    Findings,
    chance,
    cluster_agreement,
    compare,
    describe,
    k_means,
    neighbours,
    pair_auc,
    search,
    settled,
)
from deepavfusion.runs.build import build
from deepavfusion.runs.start_weights import load_start_weights
from deepavfusion.tasks.semantics import Embedder, Semantics, free
from deepavfusion.utils.errors import UserError
from helpers.checkpoints import encoder
from helpers.distributed import in_two_processes
from helpers.runs import SMALL, compose, finished, read_table, sentence

SEMANTICS = [
    *SMALL,
    "experiment=vggsound_semantics",
    "data.audio_seconds=1.0",
    "data.eval_split=train",  # some of each class
    "callbacks.report.num_queries=1",
    "callbacks.report.num_extremes=1",
]


def unit_vectors(count: int, width: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)).double(), dim=1)


# ---------------------------------------------------------------- measures


def test_neighbours_on_a_circle_by_hand() -> None:
    angles = torch.tensor([0.0, 10.0, 25.0, 90.0, 100.0]).deg2rad()
    vectors = torch.stack([angles.cos(), angles.sin()], dim=1)
    labels = torch.tensor([0, 1, 0, 1, 1])
    found = neighbours(vectors, vectors, labels, labels, leave_one_out=True)
    assert found.first.tolist() == [0, 0, 0, 1, 1]  # nearest: 1, 0, 1, 4, 3
    # 0: 1, [2], 3, 4; 1: 0, 2, [3], [4]; 2: 1, [0], 3, 4; 3: [4], 2, [1], 0; 4: [3], 2, [1], 0
    assert found.precision.tolist() == pytest.approx([1 / 2, (1 / 3 + 2 / 4) / 2, 1 / 2, 5 / 6, 5 / 6])


def test_neighbours_and_votes_are_those_of_pre_training() -> None:
    queries, gallery = unit_vectors(60, 5), unit_vectors(90, 5, 1)
    labels, others = torch.arange(60) % 4, torch.arange(90) % 4
    for votes, one_out in ((1, True), (5, False), (7, False)):
        metric = NeighbourAccuracy(("x",), votes, one_out)
        metric.update({"x": queries}, labels)
        if not one_out:
            metric.update({"x": gallery}, others, gallery=True)
        against = (queries, labels) if one_out else (gallery, others)
        found = neighbours(queries, against[0], labels, against[1], votes, one_out)
        assert found.voted.mean().item() == pytest.approx(metric.compute()["x"].item())
    score = queries @ gallery.T
    expected = [sklearn.average_precision_score(others == label, row) for label, row in zip(labels, score, strict=True)]
    assert found.precision.tolist() == pytest.approx(expected)


def test_of_several_classes_one_has_to_be_shared() -> None:
    """With one class each it is the same as with a number."""
    queries, gallery = unit_vectors(20, 3), unit_vectors(30, 3, 1)
    labels, others = torch.arange(20) % 3, torch.arange(30) % 3
    several = F.one_hot(labels, 3).bool(), F.one_hot(others, 3).bool()
    one = neighbours(queries, gallery, labels, others, votes=4)
    for mine, theirs in zip(one, neighbours(queries, gallery, *several, votes=4), strict=True):
        assert torch.equal(mine, theirs)
    everything = neighbours(queries, gallery, torch.ones(20, 3).bool(), several[1], votes=4)
    assert [values.mean().item() for values in everything] == [1, 1, 1]


@pytest.mark.parametrize("several", [False, True])
def test_a_collapsed_network_is_as_good_as_chance(several: bool) -> None:
    labels = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2, 0])
    given = F.one_hot(labels, 3).bool() if several else labels
    same = F.normalize(torch.ones(10, 4), dim=1)
    found = neighbours(same, same, given, given, leave_one_out=True)
    expected = chance(given)
    assert found.first.mean().item() == pytest.approx(expected["knn"]) == (4 * 3 + 2 * 1 + 4 * 3) / 90
    assert found.precision.mean().item() == pytest.approx(expected["map"])
    by_train = neighbours(same, same[:4], given, given[:4])
    expected = chance(given, given[:4])
    assert by_train.first.mean().item() == pytest.approx(expected["knn"])
    assert by_train.precision.nanmean().item() == pytest.approx(expected["map"])
    pair = compare(same, same, (torch.zeros(10, 2).long(),) * 2, 0) | search(same, same, given)
    assert [pair[name] for name in ("cka", "auc", "r1", "median_rank")] == pytest.approx([0, 0.5, 0.1, 5.5], abs=1e-6)


def test_rows_that_differ_by_rounding_are_equal() -> None:
    rows = torch.rand(8, 5) + 1
    assert torch.equal(settled(rows), rows)
    rounded = rows[:1] + 1e-6 * torch.randn(8, 5)
    assert (settled(rounded) == settled(rounded)[0]).all()
    rounded[0, 0] += 1e-3
    assert torch.equal(settled(rounded), rounded)


def test_clusters_agree_with_classes_as_elsewhere() -> None:
    random = np.random.default_rng(0)
    for classes, clusters, count in ((3, 3, 20), (5, 8, 300), (1, 4, 12), (30, 30, 60)):
        labels, member = (torch.from_numpy(random.integers(n, size=count)) for n in (classes, clusters))
        member[: count // 2] = labels[: count // 2]
        found = cluster_agreement(member, labels)
        expected = {
            "nmi": sklearn.normalized_mutual_info_score(labels, member),
            "ami": sklearn.adjusted_mutual_info_score(labels, member),
            "ari": sklearn.adjusted_rand_score(labels, member),
        }
        assert found == pytest.approx(expected, abs=2e-5)


def test_k_means_finds_what_is_there() -> None:
    labels = torch.arange(90) % 6
    rows = F.normalize(unit_vectors(6, 12)[labels] + 0.1 * unit_vectors(90, 12, 1), dim=1)
    found = k_means(rows, 6, seed=3)
    assert torch.equal(found, k_means(rows, 6, seed=3))
    assert cluster_agreement(found, labels)["ari"] == pytest.approx(1)

    def spread(member: Tensor) -> float:
        return sum((rows[member == n] - rows[member == n].mean(dim=0)).square().sum().item() for n in member.unique())

    rows = unit_vectors(200, 4, 2)
    theirs = torch.from_numpy(KMeans(7, n_init=10, random_state=0).fit_predict(rows.numpy()))
    assert spread(k_means(rows, 7, seed=0)) == pytest.approx(spread(theirs), rel=0.03)
    assert k_means(rows[:1].expand(5, -1), 3, seed=0).tolist() == [0] * 5  # fewer places than clusters


def test_true_pairs_against_mismatched_ones() -> None:
    one, other = unit_vectors(40, 6), unit_vectors(40, 6, 1)
    other = F.normalize(other + 0.4 * one, dim=1)
    other[7:10] = other[7].clone()
    score = (one @ other.T).round(decimals=9)
    expected = sklearn.roc_auc_score(torch.eye(40).flatten(), score.flatten())
    assert pair_auc(one, other) == pytest.approx(expected, abs=1e-9)
    assert pair_auc(one, one) == 1


def test_a_stream_is_described() -> None:
    labels = torch.arange(24) % 3
    rows = F.one_hot(labels, 5).float() + 0.01 * unit_vectors(24, 5).float()
    vectors = F.normalize(rows.double(), dim=1)
    found, precision = describe(rows, vectors, labels, (vectors[:6], labels[:6]), votes=2, seed=0)
    perfect = ("knn", "map", "knn_train", "map_train", "nmi", "ami", "ari")
    assert [found[name] for name in perfect] == pytest.approx([1] * 7, abs=1e-5)
    assert found["rank_me"] == pytest.approx(3, abs=0.3)
    assert 0 < found["nmi_chance"] < 0.4
    assert precision.tolist() == [1] * 24
    few, _ = describe(rows, vectors, F.one_hot(labels).bool(), None, votes=2, seed=0)
    assert few.keys() == {"knn", "map", "uniformity", "rank_me"}  # clusters are compared with one class a clip
    single, _ = describe(rows, vectors, labels, None, votes=2, seed=0, single=True)
    assert single == {"knn": 1, "map": 1}


def test_search_leaves_the_own_clip_out_and_ranks_its_pair() -> None:
    vectors, labels = unit_vectors(12, 6), torch.arange(12) // 2
    found = search(vectors, vectors, labels)
    own = neighbours(vectors, vectors, labels, labels, leave_one_out=True)
    assert found["map"] == pytest.approx(own.precision.mean().item())
    assert (found["r1"], found["median_rank"]) == (1, 1)
    assert (found["r1_chance"], found["median_rank_chance"]) == (1 / 12, 6.5)


# ---------------------------------------------------------------- network and task


def test_the_embedder_names_what_it_gives() -> None:
    net = instantiate(encoder(16, 64)).eval()
    embedder = Embedder(net)
    image, audio = torch.randn(2, 3, 64, 64), torch.randn(2, 1, 128, 64)
    with torch.no_grad():
        found, other = embedder(image, audio), embedder(image, audio + 1)
        joint, alone = net(image, audio), net(None, audio)
    assert [*found] == [*embedder.kinds]
    assert {tuple(x.shape) for x in found.values()} == {(2, 16)}
    count = {kind: [*embedder.kinds.values()].count(kind) for kind in ("type", "group", "token")}
    assert count == {"type": 7, "group": 9, "token": 24}
    assert torch.equal(found["image"], joint.image.mean(dim=1))
    assert torch.equal(found["token_05"], joint.fusion[:, 5])
    assert torch.allclose(found["image_group"], joint.fusion[:, 4:6].mean(dim=1))
    assert torch.equal(found["fusion_of_audio"], alone.fusion.mean(dim=1))
    assert torch.equal(found["solo_audio"], alone.audio.mean(dim=1))
    same = {name for name in found if torch.equal(found[name], other[name])}
    aggregates = {"image_group", "token_04", "token_05"}  # of the image; with two layers, audio has not reached them
    assert same == {name for name in found if name.endswith("_of_image")} | {"solo_image"} | aggregates | {
        f"{name}_of_audio" for name in aggregates
    }


def test_what_costs_no_network() -> None:
    image, spectrogram = torch.rand(2, 3, 64, 48), torch.rand(2, 1, 128, 50)
    found = free(image, spectrogram)
    assert found["free_image"].shape == (2, 768)
    assert found["free_image"][1, 0] == pytest.approx(image[1, 0, :4, :3].mean())
    assert found["free_audio"][1, 3] == pytest.approx(spectrogram[1, 0, 3].mean())
    assert found["free_audio"][1, 128 + 3] == pytest.approx(spectrogram[1, 0, 3].std())


def task() -> Semantics:
    torch.manual_seed(0)
    return Semantics(instantiate(encoder(16, 64)))


def test_data_without_classes_are_refused() -> None:
    for classes, counts in (([], []), (["a"], [0])):
        data = SimpleNamespace(dataset_name="music", classes=classes, class_counts=counts, multi_label=False)
        with pytest.raises(UserError, match="music has no classes, expected some to compare embeddings with"):
            task().check_data(data)


# ---------------------------------------------------------------- a run


@pytest.fixture(scope="module")
def run(classify_data: Path, pretrained: Path) -> Path:
    given = [*SEMANTICS, f"data.root={classify_data / 'vggsound'}", f"model.pretrained={pretrained}"]
    return finished(classify_data / "logs", "semantics", *given)


def test_a_run_writes_numbers_tables_plots_and_sheets(run: Path, pretrained: Path) -> None:
    assert run.parent.parent.joinpath("latest").resolve() == run
    found = json.loads((run / "metrics.json").read_text())
    assert (found["data/used"], found["data/coverage"]) == (24, 1)  # 8 classes of 3
    assert found["fusion_knn_chance"] == found["free_audio_knn_chance"] == pytest.approx(2 / 23)
    assert found["fusion_knn_train_chance"] == pytest.approx(1 / 8)
    streams = ("image", "audio", "fusion", "combined", "solo_image", "solo_audio", "mixed_group_of_audio")
    for stream in streams:
        for measure in ("knn", "knn_train", "map", "map_train", "nmi", "ami", "ari", "uniformity", "rank_me"):
            assert {f"{stream}_{measure}", f"{stream}_{measure}_untrained"} <= set(found)
    assert (
        found["combined_knn"] != found["combined_knn_untrained"] or found["image_map"] != found["image_map_untrained"]
    )
    assert {"token_00_knn", "token_15_of_image_knn_untrained"} <= set(found)
    assert found["audio_group_of_image_knn"] == pytest.approx(found["audio_group_of_image_knn_chance"])  # constant
    pair = "solo_audio_to_solo_image"
    for measure in ("map", "r1", "median_rank"):
        assert {f"{pair}_{measure}{end}" for end in ("", "_untrained", "_chance")} <= set(found)
    assert found[f"{pair}_r1_chance"] == pytest.approx(1 / 24)
    assert found["image_to_audio_auc_chance"] == 0.5

    table = {row["stream"]: row for row in read_table(run / "semantics.csv")}
    assert len(table) == 7 + 9 + 3 * 16 + 4
    assert float(table["fusion"]["knn"]) == pytest.approx(found["fusion_knn"], rel=1e-5)
    assert table["token_03_of_image"]["pass"] == "image"
    assert (table["token_03"]["rank_me"], table["free_image"]["knn_untrained"]) == ("", "")
    pairs = {(row["query"], row["searched"]): row for row in read_table(run / "semantics_pairs.csv")}
    assert len(pairs) == 7 * 6
    assert (pairs["image", "audio"]["cka"] == "", pairs["audio", "image"]["cka"] == "") == (False, True)
    classes = read_table(run / "semantics_classes.csv")
    assert [int(row["clips"]) for row in classes] == [3] * 8
    mean = sum(float(row["map_fusion"]) for row in classes) / 8
    assert mean == pytest.approx(found["fusion_map"], rel=1e-5)

    text = (run / "report.md").read_text()
    assert str(pretrained) in text
    assert "24 of 24 clips of the split train, 8 classes; 24 train clips for `knn_train`" in text
    images = {part.split(")")[0] for part in text.split("](")[1:]}
    assert images == {path.name for path in run.glob("*.png")}
    sheets = {path.name for path in run.glob("neighbours_*.png")}
    assert sheets == {f"neighbours_{why}_1.png" for why in ("seed", "best", "worst")}
    for name in images:
        assert imread(run / name).std() > 0.02, name


@pytest.mark.full
def test_batches_and_processes_do_not_matter(run: Path, classify_data: Path, pretrained: Path, tmp_path: Path) -> None:
    given = [*SEMANTICS, f"data.root={classify_data / 'vggsound'}", f"model.pretrained={pretrained}"]
    cfg = compose(*given, "data.batch_size=7", "~logger", "trainer.precision=64-true")
    cfg.paths.run_dir = str(tmp_path)
    one, two = _evaluate(cfg, 1), in_two_processes(partial(_evaluate, cfg, 2), tmp_path)
    assert two[0].keys() == one.keys()
    assert [two[rank] for rank in (0, 1)] == [pytest.approx(one, rel=1e-5, abs=1e-7)] * 2
    found = json.loads((run / "metrics.json").read_text())  # in batches of four, in 32 bits
    assert found["fusion_knn"] == pytest.approx(one["fusion_knn"])
    assert found["solo_audio_to_solo_image_map"] == pytest.approx(one["solo_audio_to_solo_image_map"], abs=0.01)


def _evaluate(cfg: DictConfig, processes: int, rank: int = 0) -> dict[str, float]:
    small = cfg.copy()
    small.callbacks = {"coverage": cfg.callbacks.coverage}
    small.trainer.devices, small.trainer.strategy = processes, "ddp" if processes > 1 else "auto"
    trainer, task, datamodule = build(small, [])
    torch.set_num_threads(1)  # the trainer takes all cores, and tests run side by side
    load_start_weights(task, Path("unused"))
    trainer.test(task, datamodule=datamodule, verbose=False)
    assert isinstance(task, Semantics)
    assert task.found is not None
    return task.found.metrics()


def test_without_a_gallery_there_is_no_vote_of_train_clips(
    classify_data: Path, pretrained: Path, tmp_path: Path
) -> None:
    given = [*SEMANTICS, f"data.root={classify_data / 'vggsound'}", f"model.pretrained={pretrained}"]
    cfg = compose(*given, "data.gallery_clips=0", "~logger")
    cfg.paths.run_dir = str(tmp_path)
    found = _evaluate(cfg, 1)
    assert "fusion_knn" in found
    assert not [name for name in found if "_train" in name.replace("_untrained", "")]


def test_wrong_runs_end_in_a_sentence(
    classify_data: Path, pretrained: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    given = [*SEMANTICS, f"data.root={classify_data / 'vggsound'}", f"model.pretrained={pretrained}"]
    given += [f"paths.log_dir={tmp_path}", "run.name=x"]
    said = sentence(monkeypatch, capsys, *given, "data.batch_size=3", "trainer.limit_test_batches=1")
    assert "3 clips could be used, expected at least 4 to compare" in said
    assert not (tmp_path / "semantics" / "latest").exists()
    assert "model.votes is 0, expected a whole number from 1" in sentence(monkeypatch, capsys, *given, "model.votes=0")
    said = sentence(monkeypatch, capsys, *given, "model.pretrained=auto")
    assert "nothing was pre-trained here" in said


# ---------------------------------------------------------------- report


def findings() -> Findings:
    """Six clips of three classes; fusion tokens find the pair of clips 0 and 1 best, and of 4 and 5 worst."""
    kinds = {"image": "type", "fusion": "type", "mixed_group": "group", "token_00": "token"}
    kinds |= dict.fromkeys(("free_image", "free_audio", "free_combined"), "free")
    found = Findings(kinds, torch.arange(10, 16), torch.arange(6) // 2, 0)
    for n, stream in enumerate(kinds):
        found.streams[stream] = {"knn": {"": 0.5 + n / 100, "untrained": 0.505, "chance": 0.2}}
    found.pairs = {("image", "fusion"): {"auc": {"": 0.7, "chance": 0.5}, "map": {"": 0.6}}}
    near = torch.tensor([[1, 2], [0, 2], [3, 0], [0, 1], [0, 5], [1, 2]])
    found.nearest = {"image": near, "fusion": near.flip(1)}
    found.precision = {"fusion": torch.tensor([1.0, 0.9, 0.8, 0.3, 0.6, 0.2]), "image": torch.full((6,), torch.nan)}
    return found


def test_tables_say_what_was_found() -> None:
    found = findings()
    head, first, *_ = stream_lines(found)
    row = dict(zip(head, first, strict=True))
    assert (row["stream"], row["knn"], row["knn_chance"], row["map"]) == ("image", "0.5", "0.2", "")
    head, first = pair_lines(found)
    row = dict(zip(head, first, strict=True))
    assert (row["auc"], row["auc_chance"], row["auc_untrained"], row["map"]) == ("0.7", "0.5", "", "0.6")
    lines = [*class_lines(found, ["a", "b", "never", "c"])]
    assert lines[0] == ["class", "clips", "map_image", "map_fusion"]
    assert [line[:2] for line in lines[1:]] == [["a", 2], ["b", 2], ["never", 2]]
    assert float(lines[1][3]) == pytest.approx(0.95)
    assert lines[1][2] == ""
    flat = found.metrics()
    assert flat["image_to_fusion_auc_chance"] == 0.5
    assert (flat["token_00_knn"], "token_00_knn_chance" in flat) == (0.53, False)
    said = "\n".join(verdicts(found))
    assert "Not above the untrained network: image (0.500, untrained 0.505)" in said
    assert "fusion (0.510)" in said.splitlines()[2]  # what costs no network gets 0.56


def test_queries_are_chosen_by_seed_best_and_worst() -> None:
    found = findings()
    chosen = choose(found, 3, 2, seed=0)
    assert chosen["best"] == [0, 2]  # of different classes
    assert chosen["worst"] == [5, 3]
    assert len(set(chosen["seed"])) == 3
    assert chosen["seed"] == choose(found, 3, 2, seed=0)["seed"]
    assert choose(found, 0, 9, seed=0)["best"] == [0, 2, 4, 1, 3, 5]
    assert {tuple(choose(found, 3, 2, seed=seed)["seed"]) for seed in range(9)} != {tuple(chosen["seed"])}


def test_a_sheet_frames_what_is_right() -> None:
    found = findings()
    clips = {n: Shown(torch.rand(3, 8, 8), torch.rand(128, 64), "playing $ [x]", f"clip{n}") for n in range(6)}
    figure = draw_sheet(found, 0, clips, "a title", "test clips")
    frames = [artist for artist in figure.artists if isinstance(artist, Rectangle)]
    assert len(frames) == 2  # clip 1, by either stream
    lefts = sorted(round(frame.get_x(), 3) for frame in frames)
    assert lefts[0] < lefts[1]  # nearest by image, second by fusion
    captions = [text.get_text() for axis in figure.axes for text in axis.texts]
    assert captions == ["query", "image\n1 of 2", "fusion\n1 of 2"]
    assert math.prod(draw_sheet(found, 0, {0: clips[0]}, "others are gone", "test clips").get_size_inches()) > 0
