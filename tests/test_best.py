"""The checkpoint with the best weights: what a checkpoint says of it is a number, whoever wrote it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel

from deepavfusion.callbacks.guard.best import BestCheckpoint
from deepavfusion.config.compose import choices, instantiate
from helpers.errors import refusal
from helpers.runs import compose


class Scored(BoringModel):
    """Logs these values, one an epoch."""

    def __init__(self, *scores: float) -> None:
        super().__init__()
        self.scores = scores

    def on_validation_epoch_end(self) -> None:
        self.log("val/score", self.scores[self.current_epoch])


def fit(folder: Path, *scores: float, resume: Path | None = None) -> BestCheckpoint:
    """Train for as many epochs; `last.ckpt` and `best.ckpt` are in the folder."""
    best = BestCheckpoint(str(folder), "val/score")
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    short: dict[str, Any] = {"limit_train_batches": 1, "limit_val_batches": 1, "max_epochs": len(scores)}
    trainer = Trainer(accelerator="cpu", callbacks=[best], num_sanity_val_steps=0, **quiet, **short)
    trainer.fit(Scored(*scores), ckpt_path=resume, weights_only=True)
    trainer.save_checkpoint(folder / "last.ckpt")
    return best


def epoch_of(path: Path) -> int:
    return int(torch.load(path, weights_only=True)["epoch"])


def changed(path: Path, **state: Any) -> Path:
    """The checkpoint with another state of the callback."""
    content = torch.load(path, weights_only=True)
    (key,) = content["callbacks"]
    assert content["callbacks"] == {key: {"best_model_score": pytest.approx(0.5)}}
    assert key.startswith("ModelCheckpoint{'monitor': 'val/score'")  # where checkpoints of earlier commits have it
    content["callbacks"][key] = state
    torch.save(content, path)
    return path


def test_a_moved_run_keeps_its_best(tmp_path: Path) -> None:
    fit(tmp_path / "a", 0.5, 0.2)
    moved = (tmp_path / "a").rename(tmp_path / "b")
    best = fit(moved, 0.5, 0.2, 0.4, resume=moved / "last.ckpt")
    assert (best.best_model_path, float(best.best_model_score)) == (str(moved / "best.ckpt"), 0.5)  # type: ignore
    assert epoch_of(moved / "best.ckpt") == 0
    best = fit(moved, 0.5, 0.2, 0.4, 0.6, resume=moved / "last.ckpt")
    assert epoch_of(moved / "best.ckpt") == 3
    assert float(best.best_model_score) == pytest.approx(0.6)  # type: ignore[arg-type]
    (moved / "best.ckpt").unlink()
    best = fit(moved, 0, 0, 0, 0, 0.1, resume=moved / "last.ckpt")  # what is not there is not the best
    assert epoch_of(moved / "best.ckpt") == 4


def test_no_path_of_a_checkpoint_is_followed(tmp_path: Path) -> None:
    precious = tmp_path / "run" / "precious"
    fit(tmp_path / "run", 0.5)
    precious.mkdir()
    theirs = {
        "dirpath": str(tmp_path / "run"),
        "best_model_path": "http://127.0.0.1:9/x.ckpt",
        "kth_best_model_path": str(precious),
        "last_model_path": str(precious),
        "best_k_models": {str(precious): torch.tensor(0.1)},
        "kth_value": torch.tensor(0.1),
        "current_score": torch.tensor(0.1),
        "monitor": "val/score",
        "best_model_score": torch.tensor(0.5),
    }
    last = changed(tmp_path / "run" / "last.ckpt", **theirs).rename(tmp_path / "theirs.ckpt")
    best = fit(tmp_path / "run", 0.5, 0.2, resume=last)
    assert best.best_model_path == str(tmp_path / "run" / "best.ckpt")
    best = fit(tmp_path / "run", 0.5, 0.9, resume=last)
    assert {path: float(score) for path, score in best.best_k_models.items()} == {
        str(tmp_path / "run" / "best.ckpt"): pytest.approx(0.9)
    }
    assert precious.is_dir()
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["best.ckpt", "last.ckpt", "precious"]


@pytest.mark.parametrize("score", ["/etc", [0.5], {"a": 1}, float("nan"), torch.zeros(2), True, 1j])
def test_a_score_that_is_no_number_is_refused(score: Any, tmp_path: Path) -> None:
    best = BestCheckpoint(str(tmp_path), "val/score")
    text = refusal(best.load_state_dict, {"best_model_score": score})
    assert "as the best val/score, expected a number" in text
    assert best.best_model_score is None


def test_no_callback_of_ours_keeps_a_path() -> None:
    """Nor any of Lightning that the configs name; what is new has to be looked at."""
    stateful = set()
    for group in choices("callbacks"):
        for node in compose(f"callbacks={group}", "paths.run_dir=/nowhere").callbacks.values():
            callback = instantiate(node)
            assert not isinstance(callback, ModelCheckpoint) or isinstance(callback, BestCheckpoint)
            if state := callback.state_dict():
                assert "nowhere" not in repr(state)
                stateful.add(type(callback).__name__)
    assert stateful == {"BestCheckpoint", "Coverage", "DataReport", "RunSummary", "StepGuard"}
