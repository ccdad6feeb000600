"""Nearest-neighbour accuracy on cases a hand can compute."""

from __future__ import annotations

import pytest
import torch

from deepavfusion.metrics.neighbours import NeighbourAccuracy


def at(*degrees: float) -> torch.Tensor:
    angle = torch.deg2rad(torch.tensor(degrees))
    return torch.stack([angle.cos(), angle.sin()], dim=1)


def test_leave_one_out_on_a_circle():
    metric = NeighbourAccuracy(("image", "audio"))
    labels = torch.tensor([0, 0, 1, 1])
    # image: pairs of a class are neighbours; audio: only the first two find their own class
    metric.update({"image": at(0, 10, 90, 100), "audio": 3 * at(0, 20, 70, 35)}, labels)
    result = {name: value.item() for name, value in metric.compute().items()}
    # audio: 0→20 right, 20→35 wrong, 70→35 right, 35→20 wrong
    assert result["image"] == 1.0
    assert result["audio"] == 0.5
    # sums of cosines, clip 1: with 0 .985+.940, with 2 .174+.643, with 3 0+.966; clip 3: with 2 .985+.819 is most
    assert result["combined"] == 1.0


def test_a_clip_is_never_its_own_neighbour():
    metric = NeighbourAccuracy(("fusion",))
    metric.update({"fusion": at(0, 90, 180)}, torch.tensor([0, 1, 2]))
    assert metric.compute()["fusion"] == 0.0


def test_train_to_test_votes():
    metric = NeighbourAccuracy(("fusion",), k=3, leave_one_out=False)
    metric.update({"fusion": at(-10, 5, 12, 100)}, torch.tensor([1, 0, 0, 1]), gallery=True)
    metric.update({"fusion": at(0, 95)}, torch.tensor([0, 1]))
    # 0°: votes 0, 1, 0 → 0; 95°: votes of 100°, 12°, 5° → 1, 0, 0 → 0, wrong
    assert metric.compute()["fusion"] == 0.5


def test_a_tied_vote_goes_to_the_nearest():
    metric = NeighbourAccuracy(("fusion",), k=2, leave_one_out=False)
    metric.update({"fusion": at(3, -10)}, torch.tensor([1, 0]), gallery=True)
    metric.update({"fusion": at(0)}, torch.tensor([1]))
    assert metric.compute()["fusion"] == 1.0


@pytest.mark.parametrize("clips", [0, 1])
def test_too_few_clips_give_no_number(clips):
    metric = NeighbourAccuracy(("fusion",))
    metric.update({"fusion": at(*range(clips)) if clips else torch.zeros(0, 2)}, torch.zeros(clips).long())
    assert metric.compute() == {}


def test_batches_and_chunks_do_not_matter(monkeypatch):
    torch.manual_seed(0)
    embeddings, labels = torch.randn(50, 8), torch.randint(0, 4, (50,))
    whole, parts = NeighbourAccuracy(("fusion",), k=1), NeighbourAccuracy(("fusion",), k=1)
    whole.update({"fusion": embeddings}, labels)
    expected = whole.compute()["fusion"]
    similarity = torch.cosine_similarity(embeddings[:, None], embeddings[None], dim=-1).fill_diagonal_(-2)
    assert expected == (labels[similarity.argmax(1)] == labels).float().mean()
    monkeypatch.setattr("deepavfusion.metrics.neighbours.CHUNK", 7)
    for rows in torch.arange(50).split(9):
        parts.update({"fusion": embeddings[rows]}, labels[rows])
    assert parts.compute()["fusion"] == expected
