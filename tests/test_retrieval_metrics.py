"""Retrieval and alignment give the reference values of the field's protocols, ties and collapsed networks included."""

from __future__ import annotations

import json
import resource
import time
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.retrieval import retrieval_average_precision

from deepavfusion.metrics import alignment
from deepavfusion.metrics.retrieval import PairRetrieval, chance, rank_pairs, unit
from deepavfusion.utils.errors import UserError
from helpers.distributed import assert_two_give_the_same_as_one
from helpers.golden import GOLDEN

DIRECTIONS = ("audio_to_image", "image_to_audio")


def reference(name: str) -> dict[str, Any]:
    return json.loads((GOLDEN / "protocols" / f"{name}.json").read_text())


def chirp(shape: tuple[int, ...], a: float, c: float, amplitude: float = 1.0) -> Tensor:
    i = torch.arange(int(np.prod(shape)), dtype=torch.float64)
    return (amplitude * torch.sin(a * i + c * (i * i))).view(shape)


def wave(shape: tuple[int, ...], a: float, b: float, amplitude: float = 1.0) -> Tensor:
    i = torch.arange(int(np.prod(shape)), dtype=torch.float64)
    return (amplitude * torch.sin(a * i) * torch.cos(b * i)).view(shape)


def clips() -> tuple[Tensor, Tensor]:
    """Audio and video, [120, 4, 32]."""
    shared = chirp((120, 1, 32), 0.37, 0.0173)
    return shared + chirp((120, 4, 32), 0.53, 0.0191, 2), shared + chirp((120, 4, 32), 0.71, 0.0137, 2)


def summaries(audio: Tensor, image: Tensor) -> dict[str, dict[str, float]]:
    pairs = {"audio_to_image": (audio, image), "image_to_audio": (image, audio)}
    return {name: rank_pairs(*pair).summary() for name, pair in pairs.items()}


@pytest.mark.parametrize("case", ["plain", "ten_equal_videos", "all_equal"])
def test_retrieval_is_that_of_the_field(case: str) -> None:
    audio, video = clips()
    if case == "ten_equal_videos":
        video[:10] = video[0].clone()
    elif case == "all_equal":
        audio, video = (x[:1].expand(120, -1, -1) for x in (audio, video))
    found = summaries(unit(audio.mean(dim=1), "audio"), unit(video.mean(dim=1), "image"))
    for direction in DIRECTIONS:
        expected = reference("retrieval")[case]["expected"][direction]
        for k in (1, 5, 10):
            assert found[direction][f"r{k}"] == pytest.approx(expected[f"R{k}_expected"], abs=1e-9)
        assert found[direction]["ties"] == expected["ties"]
        if not expected["ties"]:
            assert found[direction]["mean_rank"] == pytest.approx(expected["mean_rank"], abs=1e-9)
            assert found[direction]["median_rank"] == expected["median_rank"]
    if case == "all_equal":  # a collapsed network is as good as chance
        assert found["audio_to_image"]["median_rank"] == found["audio_to_image"]["mean_rank"] == 60.5


@pytest.mark.parametrize("how", ["diagonal_mean", "mean"])
def test_windows_are_compared_as_in_the_field(how: str) -> None:
    audio, video = (F.normalize(x, dim=-1) for x in windows_of_clips())
    if how == "mean":
        audio, video = audio.mean(dim=1), video.mean(dim=1)
    else:
        audio, video = audio.flatten(1) / 6, video.flatten(1)
    found = summaries(audio, video)
    for direction in DIRECTIONS:
        expected = reference("retrieval")["sync"][how][direction]["expected"]
        assert [found[direction][f"r{k}"] for k in (1, 5, 10)] == [expected[f"R{k}_expected"] for k in (1, 5, 10)]
        assert found[direction]["mean_rank"] == pytest.approx(expected["mean_rank"], abs=1e-9)


@pytest.mark.parametrize("value", [0.0, torch.nan, torch.inf])
def test_an_embedding_that_is_near_to_nothing_is_refused(value: float) -> None:
    embeddings = clips()[1].mean(dim=1)
    embeddings[3] = value
    with pytest.raises(UserError, match=r"1 of 120 image embeddings are zero or not finite \(the first: row 3\)"):
        unit(embeddings, "image")


def test_ties_count_as_if_in_random_order() -> None:
    """Average precision, against the mean over random orders; several labels a clip, too."""
    random = torch.Generator().manual_seed(0)
    vectors = F.normalize(torch.randint(1, 4, (40, 2), generator=random).double(), dim=1)
    labels = torch.arange(40) % 4
    several = F.one_hot(labels, 5).bool()
    several[:7, 4] = True
    for given in (labels, several):
        found = rank_pairs(vectors, vectors, given)
        relevant = (given.unsqueeze(1) == given) if given.ndim == 1 else (given.float() @ given.float().T > 0)
        orders = np.random.default_rng(0)
        total, score = np.zeros(40), (vectors @ vectors.T).numpy().round(9)
        for _ in range(4000):
            order = np.lexsort((orders.random(score.shape), -score), axis=1)
            hit = np.take_along_axis(relevant.numpy(), order, axis=1)
            total += (hit.cumsum(axis=1) / np.arange(1, 41) * hit).sum(axis=1) / hit.sum(axis=1)
        np.testing.assert_allclose(found.precision.numpy(), total / 4000, atol=0.01)
        collapsed = rank_pairs(torch.ones(40, 3), torch.ones(40, 3), given).summary()
        assert collapsed | {"ties": 0.0} == pytest.approx(chance(given), abs=1e-12)


def test_a_clip_without_a_class_is_no_query_for_it() -> None:
    """The others have the class precision that they have without it, if it is the farthest of all."""
    random = torch.Generator().manual_seed(0)
    vectors = torch.cat([torch.rand(12, 4, generator=random), -torch.ones(1, 4)]).double()
    labels = torch.cat([F.one_hot(torch.arange(12) % 3, 3), torch.zeros(1, 3, dtype=torch.int64)]).bool()
    found, complete = (rank_pairs(vectors[:n], vectors[:n], labels[:n]).summary()["map"] for n in (13, 12))
    assert found == pytest.approx(complete, abs=1e-12)
    collapsed = rank_pairs(torch.ones(13, 3), torch.ones(13, 3), labels).summary()
    assert collapsed["map"] == pytest.approx(chance(labels)["map"], abs=1e-12)


def test_without_ties_average_precision_is_the_usual_one() -> None:
    audio, video = (unit(x.mean(dim=1), "x") for x in clips())
    labels = torch.arange(120) % 7
    found = rank_pairs(audio, video, labels).precision
    for query in range(0, 120, 17):
        score = 1 + audio[query] @ video.T  # torchmetrics takes what is not positive for not relevant
        expected = retrieval_average_precision(score, labels == labels[query])
        assert found[query].item() == pytest.approx(expected.item(), abs=1e-6)


def test_processes_and_batches_do_not_matter() -> None:
    audio, video = (x[:7] for x in clips())
    assert_two_give_the_same_as_one(
        lambda: PairRetrieval(32),
        lambda items: {
            "audio": audio[items].mean(dim=1), "image": video[items].mean(dim=1), "labels": torch.tensor(items) % 2,
            "item": torch.tensor(items),
        },
        lambda metric: {name: value.item() for name, value in metric.compute().items()},
    )  # fmt: skip


def windows_of_clips() -> tuple[Tensor, Tensor]:
    """Audio and video of CAV-MAE Sync, [36, 6, 24]."""
    shared = chirp((36, 1, 24), 0.41, 0.0157)
    return shared + chirp((36, 6, 24), 0.59, 0.0181, 1.5), shared + chirp((36, 6, 24), 0.67, 0.0149, 1.5)


def test_a_metric_takes_the_windows_of_a_clip_in_both_ways() -> None:
    """Clips in any order and batches, and one twice."""
    audio, video = windows_of_clips()
    metric, order = PairRetrieval(24), torch.randperm(36, generator=torch.Generator().manual_seed(0))
    for items in (*order.split(7), order[:2]):
        metric.update(audio[items].flatten(0, 1), video[items].flatten(0, 1), items % 3, items)
    found = metric.compute()
    assert found["clips"] == 36
    for suffix, how in (("", "mean"), ("_diagonal", "diagonal_mean")):
        for direction in DIRECTIONS:
            expected = reference("retrieval")["sync"][how][direction]["expected"]
            for k in (1, 5, 10):
                assert found[f"{direction}_r{k}{suffix}"].item() == pytest.approx(expected[f"R{k}_expected"], abs=1e-9)
            assert found[f"{direction}_mean_rank{suffix}"].item() == pytest.approx(expected["mean_rank"], abs=1e-9)
    labels = torch.arange(36) % 3
    mean = (F.normalize(x.float().double(), dim=-1).mean(dim=1) for x in (audio, video))
    assert found["audio_to_image_map"].item() == pytest.approx(rank_pairs(*mean, labels).summary()["map"], abs=1e-12)


@pytest.mark.full
def test_fifteen_thousand_clips_fit_into_little_time_and_memory() -> None:
    random = torch.Generator().manual_seed(0)
    audio, image = (unit(torch.randn(15_000, 768, generator=random), "x") for _ in range(2))
    begin, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = rank_pairs(audio, image, torch.arange(15_000) % 309).summary()
    print(f"{time.monotonic() - begin:.0f} s")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1e6  # kB
    assert found["map"] == pytest.approx(chance(torch.arange(15_000) % 309)["map"], rel=0.02)


def test_alignment_is_that_of_the_field() -> None:
    expected = reference("alignment")
    z = chirp((200, 8), 0.47, 0.0163)
    x = z @ chirp((8, 32), 0.91, 0.0311) + chirp((200, 32), 0.33, 0.0121) + wave((32,), 0.5, 0.02, 0.5)
    y = z @ chirp((8, 48), 0.77, 0.0273) + chirp((200, 48), 0.61, 0.0143) - wave((48,), 0.7, 0.03, 0.5)
    assert [v.sum().item() for v in (x, y)] == pytest.approx([expected["check"][name][0] for name in "xy"])
    unit_x, unit_y = F.normalize(x, dim=1), F.normalize(y, dim=1)
    theirs = expected["platonic_on_unit_features"]
    assert alignment.nearest(unit_x, 10)[0].tolist() == expected["nearest_10_of_x_row_0"]
    for k in (1, 10):
        assert alignment.mutual_knn(unit_x, unit_y, k) == pytest.approx(theirs[f"mutual_knn@{k}"], abs=1e-6)
    assert alignment.cka(unit_x, unit_y) == pytest.approx(theirs["cka"], abs=1e-9)
    assert alignment.cka(unit_x, unit_y, unbiased=True) == pytest.approx(theirs["unbiased_cka"], abs=1e-9)
    plain = alignment.cka(unit_x, unit_y, unbiased=True, epsilon=0.0)
    assert plain == pytest.approx(theirs["unbiased_cka, without 1e-6"], abs=1e-9)

    formula = expected["formula"]
    a = F.normalize(x[:, :24], dim=1)
    b = F.normalize(0.6 * x[:, :24] + y[:, :24], dim=1)
    for alpha in (1, 2):
        assert alignment.alignment(a, b, alpha) == pytest.approx(formula[f"alignment_alpha_{alpha}"], abs=1e-9)
    assert alignment.uniformity(a) == pytest.approx(formula["uniformity_x_t_2"], abs=1e-9)
    assert alignment.uniformity(b) == pytest.approx(formula["uniformity_y_t_2"], abs=1e-9)
    assert alignment.modality_gap(a, b) == pytest.approx(formula["modality_gap"], abs=1e-9)
    ranks = formula["rankme_eps_1e-7"]
    assert [alignment.rank_me(v) for v in (x, y, unit_x)] == pytest.approx(list(ranks.values()), abs=1e-9)
    collapsed = torch.outer(chirp((200,), 0.3, 0.011), wave((32,), 0.4, 0.01)) + x / 1000
    found = next(value for name, value in formula.items() if name.startswith("collapsed"))
    assert alignment.rank_me(collapsed) == pytest.approx(found["rankme_eps_1e-7"], abs=1e-9)
    assert alignment.uniformity(F.normalize(collapsed, dim=1)) == pytest.approx(found["uniformity_t_2"], abs=1e-9)
