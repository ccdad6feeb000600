"""The real training loop: how long a step waits for data, how long the device computes, and the rest."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.profilers import Profiler
from omegaconf import open_dict

from deepavfusion.benchmarks import memory
from deepavfusion.benchmarks.report import BenchmarkReport, stacked_bars
from deepavfusion.config.compose import compose
from deepavfusion.config.overrides import value_of
from deepavfusion.config.ranges import check_ranges
from deepavfusion.runs.build import build
from deepavfusion.runs.command import training_overrides
from deepavfusion.types import Batch
from deepavfusion.utils.console import say_once
from deepavfusion.utils.errors import UserError

PARTS = ("data_wait_ms", "device_ms", "other_ms")


def measure(
    experiment: str, scale: str = "auto", overrides: Sequence[str] = (), steps: int = 60, warmup: int = 10
) -> BenchmarkReport:
    """Train as `src/train.py` does, with its data, workers, model and optimizer, for a number of steps.

    Nothing is logged, saved or validated; the learning rate is that of the beginning of the run.

    Args:
        experiment, scale: as for `src/train.py`.
        overrides: further ones of `src/train.py`.
        steps: that are measured.
        warmup: steps before that: workers start, kernels are chosen.

    Returns:
        One row: `experiment`, `scale`, `devices`, `workers` (of each process), `batch`, `steps`, milliseconds a step,
        `clips_per_second` of all processes together, over the whole time from the end of the last warm-up step, and
        `memory_growth_bytes`: by how much more the first process holds after the last step than before the first.
        Means, as waits come in bursts that a median would hide. `data_wait_ms`: the data loader's next, the transfer
        and the transform on the device; `device_ms`: from the start of the batch to its end (on a GPU between two
        events of its stream: it computes while the next batch is waited for, so parts may overlap); `other_ms`: the
        rest of the step, 0 where parts overlap.

    Raises:
        UserError: as `src/train.py`, or too few steps.
    """
    chosen, demo_reason = training_overrides([f"experiment={experiment}", f"scale={scale}", *overrides])
    cfg = compose("train", chosen)
    check_ranges(cfg)
    if demo_reason:
        say_once(f"demo scale: {demo_reason}", "yellow")
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        with open_dict(cfg):
            cfg.paths.run_dir = folder
            cfg.callbacks, cfg.logger = {}, {}
            off = ("enable_checkpointing", "enable_progress_bar", "enable_model_summary")
            cfg.trainer.update({**dict.fromkeys(off, False), "limit_val_batches": 0, "limit_train_batches": 1.0})
            cfg.trainer.max_epochs = max(cfg.trainer.max_epochs, warmup + steps)  # an epoch has a step at least
        try:
            trainer, model, datamodule = build(cfg, chosen)
            timer = StepTimer(warmup, steps)
            trainer.callbacks.append(timer)  # type: ignore[attr-defined]
            trainer.profiler = timer.profiler  # type: ignore[attr-defined]
            say_once(f"{warmup} steps of warm-up, then {steps} that are measured")
            trainer.fit(model, datamodule=datamodule)
        finally:
            torch.set_num_threads(threads)
    if len(timer.steps) < steps:
        raise UserError(f"training stopped after {len(timer.steps)} of {steps} steps: give a smaller benchmark.steps.")
    settings = {
        "experiment": experiment,
        "scale": "demo" if value_of(chosen, "scale") == "demo" else "paper",
        "devices": trainer.world_size,
        "workers": datamodule.workers(trainer.num_devices),
        "batch": datamodule.batch_size,
        "steps": steps,
    }
    rows = [settings | timer.means(trainer.world_size) | {"memory_growth_bytes": timer.growth}]
    names = [f"{row['experiment']},\n{row['scale']}: {row['clips_per_second']:.0f} clips/s" for row in rows]
    draw = partial(stacked_bars, rows, names, PARTS, "milliseconds a step")
    return BenchmarkReport(rows, "Steps of the real training loop", draw)


class StepTimer(Callback):
    """Times the parts of training steps, and stops the training after enough of them.

    Args:
        warmup: steps before the first measured one, 1 or more.
        count: steps to measure.
        clock: returns seconds.
    """

    def __init__(self, warmup: int, count: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self.warmup, self.count, self.clock = warmup, count, clock
        self.profiler = _Waits(clock)
        self.steps: list[dict[str, float]] = []  # seconds of each part
        self.clips, self.seconds, self.seen = 0, 0.0, 0
        self.since = self.began = 0.0
        self.held: list[int | None] = []  # bytes, before the first measured step and after the last
        self.events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        self.began = self.clock()
        if pl_module.device.type == "cuda":
            self.events.append((torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)))
            self.events[-1][0].record()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self.seen += 1
        on_gpu = pl_module.device.type == "cuda"
        if on_gpu:
            self.events[-1][1].record()
            if self.seen in (self.warmup, self.warmup + self.count):
                torch.cuda.synchronize(pl_module.device)  # not in between: it would hold up the device
        now = self.clock()
        if self.warmup < self.seen <= self.warmup + self.count:
            self.steps.append({"data_wait": self.profiler.seconds, "device": now - self.began})
            self.clips += len(batch)
            self.seconds += now - self.since
        if self.seen in (self.warmup, self.warmup + self.count):
            self.held.append(memory.held(pl_module.device))
            now = self.clock()
        self.since, self.profiler.seconds = now, 0.0
        if self.seen >= self.warmup + self.count:
            trainer.should_stop = True
            for step, (start, end) in zip(self.steps, self.events[self.warmup :], strict=False):
                step["device"] = start.elapsed_time(end) / 1e3

    @property
    def growth(self) -> int | None:
        """Growth in bytes over the measured steps; None: unknown."""
        before, after = self.held
        return None if before is None or after is None else after - before

    def means(self, processes: int = 1) -> dict[str, float]:
        """`PARTS` and `clips_per_second`."""
        count = len(self.steps)
        wait, device = (sum(step[part] for step in self.steps) / count for part in ("data_wait", "device"))
        seconds = (wait, device, max(0.0, self.seconds / count - wait - device))
        milliseconds = {part: 1e3 * value for part, value in zip(PARTS, seconds, strict=True)}
        return milliseconds | {"clips_per_second": processes * self.clips / self.seconds}


class _Waits(Profiler):
    """Adds up the seconds that Lightning spends on getting the next batch, by its own profiler sections."""

    SECTIONS = (".train_dataloader_next", ".batch_to_device")  # the second contains .transfer_batch_to_device

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__()
        self.clock, self.seconds, self.began = clock, 0.0, 0.0

    def start(self, action_name: str) -> None:
        if action_name.endswith(self.SECTIONS):
            self.began = self.clock()

    def stop(self, action_name: str) -> None:
        if action_name.endswith(self.SECTIONS):
            self.seconds += self.clock() - self.began
