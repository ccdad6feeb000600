"""How far a run is: a bar on a terminal, elsewhere a line every so often."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich import get_console
from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar as Bar
from rich.table import Table
from rich.text import Text

from deepavfusion.types import Batch
from deepavfusion.utils.console import Pace, duration, is_live, rate, say

REFRESH = 0.5  # s between two drawings; reading the loss waits for the GPU


class RunProgress(ProgressBar):
    """Epoch, step, loss (mean of the epoch so far), speed and the time left of the whole run.

    Validations and tests show the time that they take themselves. The results of the last validation stay above the
    bar. Where a bar cannot be redrawn (see `utils.console.is_live`) the same is printed as lines.

    Args:
        shown: metrics of a validation to show.
    """

    def __init__(self, shown: Sequence[str] = ()) -> None:
        super().__init__()
        self.shown = list(shown)
        self.enabled = True
        self.live: Live | None = None
        self.pace: Pace | None = None  # of the lines
        self.found: dict[str, float] = {}  # by the first validation
        self.note = ""  # on the last one
        self.training, self.evaluating = _Meter(), _Meter()
        self.validation_seconds = 0.0
        self.drawn = 0.0
        self.stage, self.done, self.total = "", 0, 0
        self.began = 0.0  # of the validation or test

    def disable(self) -> None:
        self.enabled = False

    def enable(self) -> None:
        self.enabled = True

    # ---- training

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._enter(self._epoch(trainer), int(self.total_train_batches))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        if not self.total:  # resumed within an epoch
            self._enter(self._epoch(trainer), int(self.total_train_batches))
        self.training.tick(len(batch) * trainer.world_size)
        self.done = batch_idx + 1
        if self._due():
            unit = "clips" if batch.mask is None else "frames"
            left = self._seconds_left(trainer)
            self._show(_loss(pl_module, outputs), self.training.speed(unit), left and f"run {duration(left)} left")

    def _epoch(self, trainer: Trainer) -> str:
        return f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"

    def _seconds_left(self, trainer: Trainer) -> float:
        """Of the run, without its test; 0: not known yet."""
        epochs = (trainer.max_epochs or 0) - trainer.current_epoch - 1
        batches = self.total - self.done + epochs * self.total
        if trainer.max_steps > 0:
            batches = min(batches, (trainer.max_steps - trainer.global_step) * trainer.accumulate_grad_batches)
        every = trainer.check_val_every_n_epoch or 1
        validations = -(-(epochs + 1) // every) if trainer.enable_validation else 0
        step = self.training.seconds
        return step and batches * step + validations * self.validation_seconds

    # ---- validation and test

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        batches = trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches
        before = trainer.state.fn == "validate" or trainer.sanity_checking
        self._evaluate("before training" if before else f"{self._epoch(trainer)}, validation", batches)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._evaluate("test", trainer.num_test_batches)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *step: Any) -> None:
        batch = step[1]
        self.done += 1
        self.evaluating.tick(len(batch) * trainer.world_size)
        if self._due():
            left = (self.total - self.done) * self.evaluating.seconds
            unit = "clips" if batch.mask is None else "frames"
            self._show(self.evaluating.speed(unit), left and f"{duration(left)} left")

    on_test_batch_end = on_validation_batch_end  # type: ignore[assignment]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.validation_seconds = time.monotonic() - self.began
        if trainer.is_global_zero and self.enabled:
            metrics = trainer.callback_metrics
            values = {name: float(metrics[name]) for name in self.shown if name in metrics}
            self.found = self.found or values
            changes = (_change(name, self.found.get(name), value) for name, value in values.items())
            self.note = " · ".join([self.stage, *changes])
            if self.live is None and values:
                say(self.note)
        self.training.pause()
        if trainer.state.fn == "validate":
            self._stop()

    # ---- drawing

    def _evaluate(self, stage: str, batches: Any) -> None:
        self.began = time.monotonic()
        self.evaluating = _Meter()
        self._enter(stage, int(sum(batches)) if isinstance(batches, list) else int(batches))

    def _enter(self, stage: str, total: int) -> None:
        """Begin a stage; the bar or the first line shows it at once."""
        self.stage, self.done, self.total = stage, 0, total
        if not self.enabled:
            return
        if is_live(get_console()):
            if self.live is None:
                self.live = Live(console=get_console(), auto_refresh=False, transient=True)
                self.live.start()
            self._show()
        elif self.pace is None:
            self.pace = Pace()

    def _due(self) -> bool:
        """Whether to draw, or to print, now."""
        if not self.enabled:
            return False
        if self.live is None:
            return self.pace is not None and self.pace.due()
        return self.done == self.total or time.monotonic() - self.drawn > REFRESH

    def _show(self, *parts: Any) -> None:
        steps = f"{self.done}/{self.total}"
        text = " · ".join(str(part) for part in parts if part)
        if self.live is None:
            say(f"{self.stage} · step {steps} · {text}".removesuffix(" · "))
            return
        grid = Table.grid(expand=True, padding=(0, 1))
        grid.add_column(no_wrap=True)
        grid.add_column(ratio=1, min_width=4)
        grid.add_column(no_wrap=True)
        grid.add_row(self.stage, Bar(max(self.total, 1), self.done), f"{steps} · {text}".removesuffix(" · "))
        note = [Text(self.note, style="dim", no_wrap=True, overflow="ellipsis")] if self.note else []
        self.live.update(Group(*note, grid), refresh=True)
        self.drawn = time.monotonic()

    def _stop(self) -> None:
        """Remove the bar, so that nothing of it is left below what is printed next."""
        if self.live is not None:
            self.live.stop()
            self.live = None

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop()

    on_test_end = on_fit_end

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._stop()


class _Meter:
    """Seconds and clips of a step, smoothed over the last twenty; without the first step, in which workers start."""

    def __init__(self) -> None:
        self.seconds = self.clips = 0.0
        self.steps = 0
        self.since: float | None = None

    def tick(self, clips: int) -> None:
        now = time.monotonic()
        if self.since is not None:
            self.steps += 1
            share = max(1 / self.steps, 0.05)
            self.seconds += share * (now - self.since - self.seconds)
            self.clips += share * (clips - self.clips)
        self.since = now

    def pause(self) -> None:
        self.since = None

    def speed(self, unit: str) -> str:
        return f"{rate(self.clips / self.seconds)} {unit}/s" if self.seconds else ""


def _loss(task: Any, outputs: Any) -> str:
    """Of this process: nothing is exchanged with the others, which do not draw."""
    mean = getattr(task, "train_means", {}).get("train/loss")
    if mean is not None and not mean.rows:
        return ""  # no clip of this process could be used so far
    value = mean.total / mean.rows if mean is not None else outputs["loss"]
    return f"loss {float(value):.3f}"


def _change(name: str, before: float | None, now: float) -> str:
    return f"{name} {now:.3f}" if before in (None, now) else f"{name} {before:.3f} → {now:.3f}"
