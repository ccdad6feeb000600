"""What is unlike the training clips: the distance checked by scikit-learn, what a run stores, what predictions mark."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.covariance import EmpiricalCovariance

from deepavfusion.callbacks.novelty import FitNoveltyDetector
from deepavfusion.config.compose import instantiate
from deepavfusion.inference.classify import Classification, spans
from deepavfusion.inference.tasks import load_task
from deepavfusion.models.novelty import MIN_HELD_OUT, NoveltyDetector
from deepavfusion.utils.errors import UserError
from helpers.runs import CLASSIFY, compose


def test_the_distance_is_mahalanobis_and_held_out_windows_set_the_threshold():
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(6, 6, generator=generator)
    train, held_out = ((torch.randn(n, 6, generator=generator) @ mixing + 3) for n in (500, 200))
    detector = NoveltyDetector.fit(train, held_out)
    shrunk = 0.99 * np.cov(train.numpy().T) + 0.01 * np.trace(np.cov(train.numpy().T)) / 6 * np.eye(6)
    reference = EmpiricalCovariance()
    reference.location_, reference.precision_ = train.double().mean(0).numpy(), np.linalg.inv(shrunk)
    expected = np.sqrt(reference.mahalanobis(held_out.double().numpy()))
    np.testing.assert_allclose(detector.distance(held_out).numpy(), expected, rtol=1e-4)
    assert detector.threshold == pytest.approx(np.quantile(expected, 0.95), rel=1e-4)
    assert (detector.distance(held_out) > detector.threshold).sum() == 10
    assert (detector.distance(train.mean(0) + 100 * torch.randn(50, 6, generator=generator)) > detector.threshold).all()
    restored = NoveltyDetector.from_state(detector.state(), 6)
    assert torch.equal(restored.distance(held_out), detector.distance(held_out))


def test_too_few_or_constant_embeddings_give_none():
    many = torch.randn(MIN_HELD_OUT, 4)
    assert NoveltyDetector.fit(many, many[:-1]) is None
    assert NoveltyDetector.fit(many[:1], many) is None
    assert NoveltyDetector.fit(torch.ones(30, 4), many) is None
    assert NoveltyDetector.fit(many * torch.nan, many) is None
    assert NoveltyDetector.from_state(None, 4) is None


@pytest.mark.parametrize(
    "state",
    [
        {},
        [1.0],
        {"mean": torch.zeros(4), "whitening": torch.eye(4)},
        {"mean": torch.zeros(4), "whitening": torch.eye(4), "threshold": "1"},
        {"mean": torch.zeros(5), "whitening": torch.eye(5), "threshold": 1.0},
        {"mean": torch.zeros(4), "whitening": torch.eye(4).double(), "threshold": 1.0},
    ],
)
def test_what_a_checkpoint_may_not_hold(state):
    with pytest.raises(UserError, match=r"novelty detector .*: use a checkpoint that train.py wrote"):
        NoveltyDetector.from_state(state, 4)


def test_a_run_stores_it_and_one_in_twenty_held_out_windows_exceeds_it(finetuned, classify_data):
    task = load_task(finetuned / "checkpoints" / "last.ckpt")
    overrides = [value for value in CLASSIFY if not value.startswith("~")]
    cfg = compose("experiment=vggsound_finetune", *overrides, f"data.root={classify_data}/vggsound")
    data = instantiate(cfg.data)
    data.setup("fit")
    distances = []
    with torch.no_grad():
        for batch in data.novelty_dataloaders(4000, 5)[1]:
            batch = data.on_after_batch_transfer(batch, 0)
            distances.append(task.novelty.distance(task.net.embedding(task.net.pooled(batch.image, batch.spectrogram))))
    distance = torch.cat(distances)
    assert len(distance) == 5 * len(data.lists["val"]) >= MIN_HELD_OUT
    assert float(distance.double().quantile(0.95)) == pytest.approx(task.novelty.threshold, rel=1e-3)
    assert [len(loader.dataset) for loader in data.novelty_dataloaders(3, 5)] == [3, 3]


def test_it_is_fitted_after_the_last_epoch_only():
    class Trainer:
        current_epoch, max_epochs, should_stop = 3, 5, False
        datamodule = None  # would be read

    FitNoveltyDetector().on_train_epoch_end(Trainer(), None)
    Trainer.should_stop = True
    with pytest.raises(AttributeError, match="novelty_dataloaders"):
        FitNoveltyDetector().on_train_epoch_end(Trainer(), None)


def test_too_few_windows_for_a_detector_are_said(capsys):
    none = SimpleNamespace(novelty_dataloaders=lambda clips, windows: [[], []])
    trainer = SimpleNamespace(current_epoch=4, max_epochs=5, should_stop=False, datamodule=none, is_global_zero=True)
    net = torch.nn.Linear(1, 1)
    net.embedding_dim = 2
    task = SimpleNamespace(
        net=net, device=torch.device("cpu"), eval=lambda: None, train=lambda: None, novelty=None,
        fit_novelty=lambda train, held_out: None,
    )  # fmt: skip
    FitNoveltyDetector().on_train_epoch_end(trainer, task)
    assert "0 windows of train clips and 0 of validation clips are too few" in " ".join(capsys.readouterr().out.split())


def test_parts_are_novel_where_most_of_their_windows_are():
    scores = np.zeros((5, 4, 2), np.float32)
    scores[:3, :, 0] = scores[3:, :, 1] = 1
    starts = [float(n) for n in range(5)]
    found = Classification("a.mp4", ["a", "b"], False, 7.0, 3.0, 1.0, starts, scores, scores.mean(axis=0))
    assert [part.novel for part in spans(found)] == [False, False]
    found.novelty = [0.5, 1.2, 1.3, 1.1, 0.9]
    assert [part.novel for part in spans(found)] == [True, False]
