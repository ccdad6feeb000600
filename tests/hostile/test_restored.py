"""Every part of a checkpoint that a run restores is checked before anything is restored."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer

from deepavfusion.callbacks.guard.best import BestCheckpoint
from deepavfusion.callbacks.guard.step_guard import StepGuard
from deepavfusion.callbacks.terminal.summary import RunSummary
from deepavfusion.data.datamodule import ClipDataModule
from deepavfusion.utils.errors import UserError
from deepavfusion.utils.structure import misfit
from deepavfusion.weights import restored
from deepavfusion.weights.file import read_file
from helpers.checkpoints import build, classifier

OPTIM = "epoch_loop.automatic_optimization.optim_progress"
DIM = 96  # of the classifier's embeddings
DATA = object.__new__(ClipDataModule)  # only its class is asked


def trainer_of(folder: Path) -> Trainer:
    callbacks = [StepGuard(str(folder)), RunSummary(str(folder)), BestCheckpoint(str(folder), "val/x")]
    return Trainer(max_epochs=4, logger=False, callbacks=callbacks, accelerator="cpu", enable_progress_bar=False)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Trainer]:
    """A checkpoint after one step of AdamW, its task and a trainer."""
    folder = tmp_path_factory.mktemp("restored")
    task, trainer = build(classifier()), trainer_of(folder)
    optimizer, schedule = restored._optimizer(trainer, task)
    sum((p**2).sum() for p in task.parameters() if p.requires_grad).backward()
    optimizer.step()
    schedule.step()
    loops = {name: copy.deepcopy(getattr(trainer, name).state_dict()) for name in restored.LOOPS}
    loops["fit_loop"][OPTIM]["optimizer"]["step"]["total"]["completed"] = 1
    loops["fit_loop"]["state_dict"] = {"combined_loader": [{"delivered": 1}]}
    content = {
        "epoch": 1,
        "global_step": 1,
        "pytorch-lightning_version": "2.6.0",
        "state_dict": task.state_dict(),
        "loops": loops,
        "callbacks": {
            "StepGuard": {"norms": [1.5, 2.0], "skipped": 0, "spikes": 0},
            "RunSummary": {"kept": {"a": 1.0}, "latest": {"b": math.nan}},
            trainer.callbacks[-1].state_key: {"best_model_score": 0.5},
            "OfAnotherVersion": {"anything": [torch.zeros(2)]},
        },
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [schedule.state_dict()],
        "ClipDataModule": {"delivered": 1},
        "train_means": [{"train/loss": [0.5, 3.0]}],
        "train_means_of": "rows",
        "progress": {"step": 0, "epoch": 0.0, "steps_per_epoch": 2.0},
        "hyper_parameters": {"betas": [0.9, 0.95]},
        "record": {"task": "classify"},
    }
    torch.save(content, folder / "last.ckpt")
    return folder / "last.ckpt", build(classifier()), trainer


def check(whole: tuple[Path, Any, Trainer], content: Any, training: bool = True) -> None:
    restored.check_restorable(str(whole[0]), content, whole[2], whole[1], DATA, training)


def test_what_a_run_saved_is_restorable(whole: tuple[Path, Any, Trainer]) -> None:
    content = read_file(whole[0])
    check(whole, content)
    check(whole, content, training=False)
    content["optimizer_states"][0]["param_groups"][0]["fused"] = True  # of a GPU
    check(whole, content)
    without = {key: content[key] for key in ("state_dict", "epoch", "global_step", "pytorch-lightning_version")}
    check(whole, without, training=False)


def test_the_moment_of_a_single_number_may_be_negative() -> None:
    """Such as that of the temperature of retrieval, whose runs could not go on when it was; its steps may not."""
    temperature = torch.nn.Parameter(torch.tensor(0.5))
    optimizer = torch.optim.AdamW([temperature])
    (-temperature).backward()
    optimizer.step()
    example, state = restored._after_a_step(optimizer), optimizer.state_dict()
    assert state["state"][0]["exp_avg"] < 0
    assert misfit(state, example, "") is None
    state["state"][0]["step"].fill_(-1)
    assert "state.0.step" in misfit(state, example, "")


def at(*keys: Any, to: Any = None, drop: bool = False) -> Callable[[Any], None]:
    """Change the value at a place, or drop it."""

    def change(content: Any) -> None:
        for key in keys[:-1]:
            content = content[key]
        if drop:
            del content[keys[-1]]
        else:
            content[keys[-1]] = to

    return change


FIT, GROUP, MOMENTS = (
    ("loops", "fit_loop"),
    ("optimizer_states", 0, "param_groups", 0),
    ("optimizer_states", 0, "state"),
)
WRONG = {
    "no optimizer": (at("optimizer_states", drop=True), "has no 'optimizer_states'"),
    "no schedule": (at("lr_schedulers", drop=True), "has no 'lr_schedulers'"),
    "two optimizers": (at("optimizer_states", to=[1, 2]), "optimizer_states is a list of 2, expected a list of 1"),
    "a moment of another shape": (at(*MOMENTS, 0, "exp_avg", to=torch.zeros(3)), "optimizer_states[0].state.0.exp_avg"),
    "a moment of whole numbers": (at(*MOMENTS, 0, "exp_avg_sq", to=torch.zeros(1, dtype=torch.int64)), "exp_avg_sq"),
    "a moment that is NaN": (lambda c: c["optimizer_states"][0]["state"][0]["exp_avg"].fill_(math.nan), "not finite"),
    "no moment": (at(*MOMENTS, 0, "exp_avg", drop=True), "state.0 has no 'exp_avg'"),
    "a moment of no parameter": (at(*MOMENTS, 999, to={}), "optimizer_states[0].state has 999, which is unknown"),
    "a text as rate": (at(*GROUP, "lr", to="fast"), "param_groups[0].lr is 'fast', expected a finite number"),
    "an infinite rate": (at(*GROUP, "lr", to=math.inf), "param_groups[0].lr is inf"),
    "betas of three": (at(*GROUP, "betas", to=[0.9, 0.9, 0.9]), "param_groups[0].betas is a list of 3"),
    "other parameters": (at(*GROUP, "params", to=[7]), "param_groups[0].params is a list of 1"),
    "another algorithm": (at(*GROUP, "amsgrad", to=True), "param_groups[0].amsgrad is True, expected False"),
    "a number as factor": (at("lr_schedulers", 0, "lr_lambdas", 0, to=7), "lr_lambdas[0] is 7, expected nothing"),
    "tensors as parameters": (at(*GROUP, "params", 0, to=torch.zeros(2)), "param_groups[0].params[0] is torch.float32"),
    "a negative count": (lambda c: c["optimizer_states"][0]["state"][0]["step"].fill_(-1), "state.0.step is torch.fl"),
    "a method of the schedule": (at("lr_schedulers", 0, "step", to=1), "lr_schedulers[0] has 'step', which is unknown"),
    "too few rates": (at("lr_schedulers", 0, "base_lrs", to=[1.0]), "lr_schedulers[0].base_lrs is a list of 1"),
    "a negative step": (at("lr_schedulers", 0, "last_epoch", to=-3), "last_epoch is -3, expected a whole number"),
    "no loops": (at("loops", drop=True), "has no 'loops'"),
    "loops as a list": (at("loops", to=[]), "loops is a list of 0, expected a dict"),
    "progress as text": (at(*FIT, "epoch_progress", "total", to="1"), "loops.fit_loop.epoch_progress.total is '1'"),
    "endless progress": (at(*FIT, "epoch_loop.batch_progress", "current", "ready", to=10**30), "current.ready is 1000"),
    "an attribute of progress": (at(*FIT, "epoch_progress", "reset_on_run", to=1), "reset_on_run"),
    "a loader's state": (at(*FIT, "state_dict", "combined_loader", to=[{"delivered": None}]), "delivered is None"),
    "steps that differ": (at("global_step", to=5), "global_step is 5, its loops are at 1"),
    "a step as text": (at("global_step", to="5"), "global_step is '5', expected a whole number"),
    "no version": (at("pytorch-lightning_version", drop=True), "has no 'pytorch-lightning_version'"),
    "a version of code": (at("pytorch-lightning_version", to="1; import os"), "Lightning '1; import os', expected 2.x"),
    "an old version": (at("pytorch-lightning_version", to="0.9.0"), "Lightning '0.9.0', expected 2.x"),
    "a version as number": (at("pytorch-lightning_version", to=2), "pytorch-lightning_version is 2, expected a str"),
    "callbacks as a list": (at("callbacks", to=[1]), "callbacks is a list of 1, expected a dict"),
    "a callback's state as text": (at("callbacks", "StepGuard", to="x"), "callbacks.StepGuard is 'x'"),
    "norms of text": (at("callbacks", "StepGuard", "norms", to=["x"]), "StepGuard.norms[0] is 'x', expected a"),
    "a metric as tensor": (at("callbacks", "RunSummary", "latest", "b", to=torch.zeros(2)), "RunSummary.latest.b is"),
    "a best score as text": (
        lambda c: c["callbacks"].update({k: {"best_model_score": "x"} for k in c["callbacks"] if "val/x" in k}),
        "records 'x' as the best val/x",
    ),
    "batches as fraction": (at("ClipDataModule", "delivered", to=0.5), "ClipDataModule.delivered is 0.5"),
    "batches of nothing": (at("ClipDataModule", to={}), "ClipDataModule has no 'delivered'"),
    "means as numbers": (at("train_means", to=[{"train/loss": 3.0}]), "train_means[0].train/loss is 3.0"),
    "means of something else": (at("train_means_of", to="steps"), "train_means_of is 'steps'"),
    "no progress": (at("progress", "steps_per_epoch", to=0.0), "no steps in an epoch"),
    "a detector of another network": (at("novelty", to={"mean": torch.zeros(3)}), "novelty detector"),
    "a detector of NaN": (
        at("novelty", to={"mean": torch.full((DIM,), math.nan), "whitening": torch.eye(DIM), "threshold": 1.0}),
        "novelty detector has values that are NaN",
    ),
    "weights as text": (at("state_dict", "net.encoder.fusion_tokens", to="x"), "fusion_tokens is in the model and not"),
    "weights beside the network": (at("state_dict", "more", to=torch.zeros(2)), "more is in the file and not in the"),
    "weights that are NaN": (
        lambda c: c["state_dict"]["net.encoder.fusion_tokens"].fill_(math.nan),
        "weights that are NaN or infinite, in encoder.fusion_tokens",
    ),
    "weights of whole numbers": (
        lambda c: c["state_dict"].update({n: t.long() for n, t in c["state_dict"].items() if "fusion_tokens" in n}),
        "fusion_tokens is of torch.int64 in the file and of torch.float32",
    ),
}


@pytest.fixture(scope="module")
def example(whole: tuple[Path, Any, Trainer]) -> Any:
    """Made once; it does not depend on the file."""
    return restored._example(whole[2], whole[1], DATA, training=True)


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_part_is_named_and_nothing_changes(
    whole: tuple[Path, Any, Trainer], example: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, words = WRONG[name]
    path, task, trainer = whole
    monkeypatch.setattr(restored, "_example", lambda *_: example)
    content = read_file(path)
    change(content)
    before = copy.deepcopy(task.state_dict())
    with pytest.raises(UserError) as error:
        check(whole, content)
    assert words in str(error.value)
    assert str(path) in str(error.value) or "the checkpoint" in str(error.value)
    assert len(str(error.value)) < 500 + len(str(path))
    assert all(torch.equal(tensor, before[key]) for key, tensor in task.state_dict().items())
    assert (task.novelty, task.progress, list(trainer.callbacks[0].norms)) == (None, None, [])
    assert trainer.fit_loop.epoch_progress.total.ready == 0


def test_a_record_cannot_choose_a_network_larger_than_the_file(whole: tuple[Path, Any, Trainer]) -> None:
    """Its sizes are compared on the meta device: 200 GB would be built otherwise."""
    config = classifier()
    config["net"]["image"] |= {"embed_dim": 65_536}
    config["net"]["audio"] |= {"embed_dim": 65_536}
    content = read_file(whole[0])
    with pytest.raises(UserError, match=r"is of another network: model\.net\.image\.embed_dim is 32 in the file"):
        restored.check_plan_of_task(lambda: build(config), str(whole[0]), content)
    restored.check_plan_of_task(lambda: build(classifier()), str(whole[0]), content)
