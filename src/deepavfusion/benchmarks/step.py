"""The real training loop: how long a step waits for data, how long the device computes, and the rest."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.profilers import Profiler
from omegaconf import open_dict

from deepavfusion.benchmarks import memory
from deepavfusion.benchmarks.report import BenchmarkReport, stacked_bars
from deepavfusion.cli.complete import training_overrides
from deepavfusion.config.check import check_ranges
from deepavfusion.config.compose import compose
from deepavfusion.config.overrides import value_of
from deepavfusion.runs.build import build
from deepavfusion.types import Batch
from deepavfusion.utils.console import say_once
from deepavfusion.utils.errors import UserError

PARTS = ("data_wait_ms", "device_ms", "other_ms")


def measure(experiment: str, scale: str, overrides: Sequence[str], steps: int, warmup: int) -> BenchmarkReport:
    """Train as `src/train.py` does, with its data, workers, model and optimizer, for a number of steps.

    Nothing is logged, saved or validated; the learning rate is that of the first steps of a run.

    Args:
        experiment, scale, overrides: as for `src/train.py`.
        steps: measured steps.
        warmup: steps before them, in which workers start and kernels are chosen.

    Returns:
        One row: `experiment`, `scale`, `devices`, `workers` (per process), `batch`, `steps`, and what
        `StepTimer.means` returns.

    Raises:
        UserError: as `src/train.py`, or training stopped too early.
    """
    chosen, demo_reason = training_overrides([f"experiment={experiment}", f"scale={scale}", *overrides])
    cfg = compose("train", chosen)
    check_ranges(cfg)
    if demo_reason:
        say_once(f"demo scale: {demo_reason}", "yellow")
    with tempfile.TemporaryDirectory() as folder:
        with open_dict(cfg):
            cfg.paths.run_dir = folder
            cfg.callbacks, cfg.logger = {}, {}
            off = ("enable_checkpointing", "enable_progress_bar", "enable_model_summary")
            cfg.trainer.update({**dict.fromkeys(off, False), "limit_val_batches": 0, "limit_train_batches": 1.0})
            cfg.trainer.max_epochs = max(cfg.trainer.max_epochs, warmup + steps)  # an epoch has a step at least
        trainer, model, datamodule = build(cfg, chosen)
        timer = StepTimer(warmup, steps)
        trainer.callbacks.append(timer)  # type: ignore[attr-defined]
        trainer.profiler = timer.profiler  # type: ignore[attr-defined]
        say_once(f"{warmup} warm-up steps, then {steps} measured steps")
        trainer.fit(model, datamodule=datamodule)
    if len(timer.steps) < steps:
        raise UserError(f"training stopped after {len(timer.steps)} of {steps} steps: give a smaller benchmark.steps.")
    row = {
        "experiment": experiment,
        "scale": "demo" if value_of(chosen, "scale") == "demo" else "paper",
        "devices": trainer.world_size,
        "workers": datamodule.workers(trainer.num_devices),
        "batch": datamodule.batch_size,
        "steps": steps,
        **timer.means(trainer.world_size),
    }
    name = f"{experiment},\n{row['scale']}: {row['clips_per_second']:.0f} clips/s"
    draw = partial(stacked_bars, [row], [name], PARTS, "milliseconds a step")
    return BenchmarkReport([row], "Steps of the real training loop", draw)


class StepTimer(Callback):
    """Times the parts of training steps, and stops the training after enough of them.

    Args:
        warmup: steps before the first measured one, 1 or more.
        count: steps to measure.
    """

    def __init__(self, warmup: int, count: int) -> None:
        self.warmup, self.last = warmup, warmup + count
        self.profiler = _Waits()
        self.steps: list[dict[str, float]] = []  # seconds of each part
        self.clips, self.seconds, self.seen = 0, 0.0, 0
        self.since = self.began = 0.0
        self.held: list[int | None] = []  # bytes, before the first measured step and after the last
        self.events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        self.began = time.perf_counter()
        if pl_module.device.type == "cuda":
            self.events.append((torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)))
            self.events[-1][0].record()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self.seen += 1
        at_edge = self.seen in (self.warmup, self.last)
        if pl_module.device.type == "cuda":
            self.events[-1][1].record()
            if at_edge:
                torch.cuda.synchronize(pl_module.device)  # not in between: it would hold up the device
        now = time.perf_counter()
        if self.warmup < self.seen <= self.last:
            self.steps.append({"data_wait": self.profiler.seconds, "device": now - self.began})
            self.clips += len(batch)
        if at_edge:
            self.seconds = now - self.since
            self.held.append(memory.held(pl_module.device))
            self.since = time.perf_counter()
        self.profiler.seconds = 0.0
        if self.seen >= self.last:
            trainer.should_stop = True
            for step, (start, end) in zip(self.steps, self.events[self.warmup :], strict=False):
                step["device"] = start.elapsed_time(end) / 1e3

    def means(self, processes: int = 1) -> dict[str, float | None]:
        """Means over the measured steps; medians would hide the waits, which come in bursts.

        Returns:
            `data_wait_ms`: for the data loader's next batch, its transfer and the transform on the device.
            `device_ms`: from the start of a batch to its end. A GPU is timed by events of its stream: it computes while
            the next batch is waited for, so parts may overlap. `other_ms`: the rest of the step, 0 where parts overlap.
            `clips_per_second`: of all processes, over the whole time from the end of the last warm-up step.
            `memory_growth_bytes`: of this process over the measured steps; None: unknown.
        """
        count = len(self.steps)
        wait, device = (sum(step[part] for step in self.steps) / count for part in ("data_wait", "device"))
        seconds = (wait, device, max(0.0, self.seconds / count - wait - device))
        before, after = self.held
        return {
            **{part: 1e3 * value for part, value in zip(PARTS, seconds, strict=True)},
            "clips_per_second": processes * self.clips / self.seconds,
            "memory_growth_bytes": None if before is None or after is None else after - before,
        }


class _Waits(Profiler):
    """Adds up the seconds that Lightning spends on getting the next batch, by its own profiler sections."""

    SECTIONS = (".train_dataloader_next", ".batch_to_device")  # the second contains .transfer_batch_to_device
    seconds = began = 0.0

    def start(self, action_name: str) -> None:
        if action_name.endswith(self.SECTIONS):
            self.began = time.perf_counter()

    def stop(self, action_name: str) -> None:
        if action_name.endswith(self.SECTIONS):
            self.seconds += time.perf_counter() - self.began
