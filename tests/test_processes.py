"""Two processes train as one does with all their clips, through the trainer and the real data.

Without what by its nature depends on the clips of one process: mixup, whose partners are of one process, and BatchNorm,
which needs GPUs to be exchanged (`trainer.sync_batchnorm`), so that its running statistics are used here. On packed
clips each process trains on runs of neighbours: these are measured only.
"""

from __future__ import annotations

import math
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import Callback
from omegaconf import DictConfig
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from deepavfusion.callbacks.guard import coverage
from deepavfusion.metrics.row_mean import RowMean
from deepavfusion.models.mae import random_patch_mask
from deepavfusion.runs.build import build
from deepavfusion.tasks.base import Task
from deepavfusion.transforms.mixup import draw_shares
from deepavfusion.utils.shared_rows import Counts
from helpers.distributed import in_two_processes
from helpers.packs import small_pack
from helpers.runs import NETWORK, PRETRAIN, SEGMENT, SEPARATE, SMALL, compose

KEPT = ("knn", "step_guard", "data_report", "coverage", "throughput")  # callbacks
QUICK = ("pretrain", "retrieve")
BATCH = {"pretrain": 8, "classify": 2, "separate": 2, "segment": 4, "retrieve": 2}  # of one process
OVERRIDES = {
    "pretrain": [*PRETRAIN, "trainer.limit_train_batches=2", "model.solo_share=0.6"],
    # The draws of a step that lacks a clip are others.
    "classify": [
        *SMALL, "experiment=vggsound_finetune", "data.audio_seconds=1.0", "data.val_split=test", "model.mixup=0",
        "model.net.image.drop_path=0",
    ],
    "separate": [*SEPARATE, "trainer.limit_train_batches=2"],
    "retrieve": [*SMALL, "experiment=vggsound_retrieval", "data.audio_seconds=1.0", "data.val_split=test"],
    "segment": [*SEGMENT, "data.val_split=val", "trainer.limit_train_batches=2"],
}  # fmt: skip
IN_ALL = [*NETWORK, "trainer.max_epochs=2", "trainer.limit_val_batches=4", "trainer.precision=64-true"]


class Curve(Callback):
    """Rows, loss and learning rate of each step; uses the running statistics of BatchNorm."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, float, float]] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        for module in pl_module.modules():
            module.train(module.training and not isinstance(module, _BatchNorm))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        rate = max(trainer.lr_scheduler_configs[0].scheduler.get_last_lr())
        self.steps.append((len(batch), outputs["loss"].item(), rate))


def _fit(cfg: DictConfig, processes: int, rank: int = 0) -> dict[str, Any]:
    """A short training; returns the curve, the metrics and the weights."""
    curve, small = Curve(), cfg.copy()
    small.callbacks = {name: callback for name, callback in cfg.callbacks.items() if name in KEPT}
    small.data.batch_size = cfg.data.batch_size // processes
    small.trainer.sync_batchnorm = True  # which CPUs do without
    small.trainer.devices, small.trainer.strategy = processes, "ddp" if processes > 1 else "auto"
    trainer, task, datamodule = build(small, [])
    trainer.callbacks.append(curve)
    trainer.fit(task, datamodule=datamodule)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    return {"steps": curve.steps, "metrics": metrics, "weights": {n: p.detach() for n, p in task.named_parameters()}}


def _of_a_process(cfg: DictConfig, rank: int) -> dict[str, Any]:
    return _fit(cfg, 2, rank)


def _copied(root: Path, copy: Path, broken: bool) -> Path:
    """Demo data with an odd number of test clips, and on request with a training clip that does not decode."""
    shutil.copytree(root, copy)
    lines = (copy / "annotations" / "vggsound.csv").read_text().splitlines()
    first = {split: next(line for line in lines if line.endswith(split)) for split in ("train", "test")}
    (copy / "annotations" / "vggsound.csv").write_text(
        "\n".join(line for line in lines if line != first["test"]) + "\n"
    )
    if broken:
        next((copy / "clips").rglob(f"{first['train'].split(',')[0]}*.mp4")).write_bytes(b"no video")
    return copy


@pytest.mark.parametrize(
    "task", [pytest.param(task, marks=pytest.mark.full) if task not in QUICK else task for task in BATCH]
)
def test_two_processes_train_as_one(task, data_root, music_root, avsbench_root, tmp_path):
    root = {"separate": music_root, "segment": avsbench_root}.get(task)
    root = root or _copied(data_root, tmp_path / "data", broken=task in ("classify", "retrieve"))
    given = [*OVERRIDES[task], *IN_ALL, f"data.root={root}", f"data.batch_size={BATCH[task]}"]
    cfg = compose(*given, "trainer.enable_checkpointing=false", "~logger")
    cfg.paths.run_dir = str(tmp_path)
    one, two = _fit(cfg, 1), in_two_processes(partial(_of_a_process, cfg), tmp_path)

    steps = 16 if task in ("classify", "retrieve") else 4
    assert [len(found["steps"]) for found in (one, *two.values())] == [steps] * 3
    for step, (rows, loss, rate) in enumerate(one["steps"]):
        shares = [two[rank]["steps"][step] for rank in (0, 1)]
        assert sum(share[0] for share in shares) == rows
        assert [share[2] for share in shares] == [rate, rate]
        assert sum(share[0] * share[1] for share in shares) / rows == pytest.approx(loss, rel=1e-9)
    for name, value in one["weights"].items():
        assert torch.equal(two[0]["weights"][name], two[1]["weights"][name])
        assert torch.allclose(two[0]["weights"][name], value, rtol=1e-6, atol=1e-9), name
    expected, found = one["metrics"], two[0]["metrics"]
    assert {"train/loss", "val/loss", "data/coverage", "data/train_used"} <= set(expected)
    for name in expected:
        if name != "clips_per_second" and not name.endswith("_step"):  # those of the first process
            assert found[name] == pytest.approx(expected[name], rel=1e-6), name
    if task in ("classify", "retrieve"):  # a process trained without a clip, and counted none, for a step of each epoch
        assert {share[0] for rank in (0, 1) for share in two[rank]["steps"]} == {0, 1}
        assert [found[f"data/train_{name}"] for name in ("used", "drawn")] == [15, 16]
        assert found["data/train_coverage"] == pytest.approx(15 / 16)


def _tested(cfg: DictConfig, processes: int, rank: int = 0) -> dict[str, float]:
    small = cfg.copy()
    small.callbacks = {name: callback for name, callback in cfg.callbacks.items() if name in KEPT}
    small.trainer.devices, small.trainer.strategy = processes, "ddp" if processes > 1 else "auto"
    trainer, task, datamodule = build(small, [])
    trainer.test(task, datamodule=datamodule, verbose=False)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def _tested_by_a_process(cfg: DictConfig, rank: int) -> dict[str, float]:
    return _tested(cfg, 2, rank)


def test_two_processes_measure_packed_clips_as_one(tmp_path):
    """Seven in three chunks, of which a part of one is damaged."""
    root = small_pack(tmp_path / "packed", per_chunk=3, train=2, test=7)
    chunk = root / "test" / "chunk-00001.bin"
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2 :: 97] = bytes(len(content[len(content) // 2 :: 97]))
    chunk.write_bytes(content)
    given = [
        *SMALL,
        "experiment=vggsound_finetune",
        "data.audio_seconds=1.0",
        "data.batch_size=2",
        "data.dense_windows=3",
    ]
    cfg = compose(*given, *IN_ALL, "data.dense_windows=3", f"data.root={root}", "data.min_coverage=0", "~logger")
    cfg.paths.run_dir = str(tmp_path)
    one, two = _tested(cfg, 1), in_two_processes(partial(_tested_by_a_process, cfg), tmp_path)
    assert one["test/clips"] < 7
    assert one["data/coverage"] == pytest.approx(one["test/clips"] / 7)
    assert one.keys() == two[0].keys() == two[1].keys()
    for name, value in one.items():
        if name != "clips_per_second":
            assert [two[rank][name] for rank in (0, 1)] == pytest.approx([value] * 2, rel=1e-9, nan_ok=True), name


STEPS = [[(2.0, 8), (0.0, 0)], [(2.2, 8), (5.0, 0)]]  # value and rows of each step of two processes


def _means(rank: int) -> dict[str, Any]:
    """What a process finds of steps that differ in their rows."""
    mean, lonely, broken = RowMean(), RowMean(), RowMean()
    for value, rows in STEPS[rank]:
        mean.update(torch.tensor(value), rows)
        lonely.update(torch.tensor(value), rows * rank)
    broken.update(torch.tensor([1.0, math.nan][rank]), 1)
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    counts = Counts((3 * rank, rank, 1), torch.device("cpu"))  # 0 and 3 rows
    counts.weighted(weight * [7.0, 2.0][rank]).backward()
    torch.manual_seed(0)
    drawn = {"keep": random_patch_mask(3, 8, 0.5).keep, "shares": draw_shares(3, 1.0)}
    means = {"mean": float(mean.compute()), "lonely": float(lonely.compute()), "broken": float(broken.compute())}
    return {**means, "total": counts.total().tolist(), "gradient": float(weight.grad), **drawn}


def test_what_processes_exchange_counts_each_row_once(tmp_path):
    found = in_two_processes(_means, tmp_path)
    torch.manual_seed(0)
    keep, shares = random_patch_mask(6, 8, 0.5).keep, draw_shares(6, 1.0)
    for rank in (0, 1):
        assert found[rank]["mean"] == pytest.approx(2.1)
        assert found[rank]["lonely"] == pytest.approx(2.2)
        assert math.isnan(found[rank]["broken"])
        assert found[rank]["total"] == [3, 1, 2]
        assert torch.equal(found[rank]["keep"], keep[rank::2])
        assert torch.equal(found[rank]["shares"], shares[rank::2])
    assert sum(found[rank]["gradient"] for rank in (0, 1)) / 2 == 2.0  # of the only rows there are


def _task(batch_size: int) -> Task:
    task = Task(batch_size=batch_size)
    task.net = nn.Identity()
    task.trainer = SimpleNamespace(world_size=1, global_rank=0, state=SimpleNamespace(fn="other"), training=True)
    task.log = lambda name, value, **_: task.logged.append(name)
    task.logged = []
    return task


def test_a_task_exchanges_nothing_before_a_step(monkeypatch):
    """In a sweep of a launcher's processes, which stay together, nccl would refuse what is on the CPU."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda *_, **__: pytest.fail("an exchange"))
    Task(batch_size=1)


def test_a_step_without_a_clip_has_no_loss():
    task = _task(8)
    for value, rows in ((2.0, 8), (0.0, 0), (2.2, 8)):
        task.log_train({"train/loss": torch.tensor(value)}, rows)
    assert task.train_means["train/loss"].compute() == pytest.approx(2.1)
    # the mean each time, as all processes exchange it at the end of an epoch
    assert task.logged == ["train/loss_step", "train/loss", "train/loss", "train/loss_step", "train/loss"]


@pytest.mark.parametrize(("former", "expected"), [(None, (2.0 * 4 + 4.0 * 8) / 12), ([6.0, 3.0], 2.5)])
def test_the_mean_of_a_resumed_epoch_counts_what_came_before(former, expected):
    """Also of an earlier commit, which counted steps instead of rows: three here, of loss 2."""
    before, checkpoint = _task(8), {}
    before.log_train({"train/loss": torch.tensor(2.0)}, 4)
    before.on_save_checkpoint(checkpoint)
    if former:
        checkpoint = {"train_means": [{"train/loss": former}]}
    after = _task(8)
    after.on_load_checkpoint(checkpoint)
    after.log_train({"train/loss": torch.tensor(4.0)}, 8)
    assert after.train_means["train/loss"].compute() == pytest.approx(expected)


def test_the_coverage_of_a_resumed_epoch_counts_what_came_before(monkeypatch):
    logged: dict[str, float] = {}
    said: list[str] = []
    monkeypatch.setattr(coverage, "say_once", lambda text, _: said.append(text))

    class Clips(list):
        listed, unit = 100, "clips"

    trainer: Any = SimpleNamespace(train_dataloader=SimpleNamespace(dataset=Clips(range(96))), current_epoch=1)
    task: Any = SimpleNamespace(log_dict=lambda values, **_: logged.update(values))
    before, after = coverage.Coverage(), coverage.Coverage()
    before.on_train_epoch_start(trainer, task)
    task.counts = Counts((8, 2, 48), torch.device("cpu"))
    before.on_train_batch_end(trainer, task)
    after.load_state_dict(before.state_dict())
    task.counts = Counts((8, 1, 48), torch.device("cpu"))
    after.on_train_batch_end(trainer, task)
    after.on_train_epoch_end(trainer, task)
    share = 3 / 96 * 96 / 100
    assert logged == {"data/train_used": 3, "data/train_drawn": 96, "data/train_coverage": pytest.approx(share)}
    assert said == ["data: 3 of the 96 clips drawn in epoch 1 were used; data_problems.csv names the others"]
    after.on_train_epoch_start(trainer, task)
    assert after.state_dict() == {"used": 0, "drawn": 0}
