"""When checkpoints are written, which are kept, and how a run stops on a signal."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch import distributed

from deepavfusion.callbacks.guard.checkpoint_io import SyncedCheckpointIO
from deepavfusion.runs.directory import LAST, STEPS, STEPS_PATTERN, saved_after
from deepavfusion.runs.signals import StopRequested, StopSignals
from deepavfusion.utils.commands import command
from deepavfusion.utils.errors import TemporaryError, UserError
from deepavfusion.utils.files import link, whole
from deepavfusion.utils.launch.signals import STOPPED, leave, named, requeue

UNNAMED = ".unnamed"
BEFORE_VALIDATION = 1.0  # min of training that may be lost by a kill during validation, which writes no checkpoints


class Checkpoints(Checkpoint):
    """Writes `step_<n>.ckpt` and points `last.ckpt` to the newest one.

    A run resumed from any of them ends exactly as an uninterrupted one: they hold weights, optimizer, schedule, scaler,
    position in the epoch, running means and the callbacks' state; randomness derives from seed, epoch, step and clip.
    They are written beside the training, one at a time; the next one that is due waits for the one before it.
    `last.ckpt` points to a file only once it is whole and the curves up to its step are on disk, too.

    SIGTERM, SIGUSR1 and Ctrl-C save after the current step and end the run with exit status 75, at the latest after
    `signals.PATIENCE` seconds; on SIGUSR1, and when it is pre-empted, a SLURM job is requeued. During validation and
    test nothing is written: the run will resume from the last checkpoint. Object storage that is out of reach for too
    long ends a run in the same way, with a checkpoint if it was training: all processes stop before the same batch.

    Args:
        dirpath: the folder.
        every_n_epochs: write after so many epochs, and after the last.
        every_n_train_steps: also after so many optimizer steps, within epochs; None: do not count.
        every_n_minutes: also after so much time without a checkpoint; None: do not time.
        keep: newest files to keep.
        milestones: shares of all steps, 0…1; of each, the nearest file is kept, too.
    """

    def __init__(
        self,
        dirpath: str,
        every_n_epochs: int = 1,
        every_n_train_steps: int | None = None,
        every_n_minutes: float | None = 30.0,
        keep: int = 2,
        milestones: Sequence[float] = (),
    ) -> None:
        super().__init__()
        assert every_n_epochs >= 1, every_n_epochs
        assert keep >= 1, keep
        self.folder = Path(dirpath)
        self.every_n_epochs, self.every_n_train_steps = every_n_epochs, every_n_train_steps
        self.every_n_minutes, self.keep, self.milestones = every_n_minutes, keep, list(milestones)
        self.signals = StopSignals(self._leave)
        self.stopping = 0  # the signal, once all processes know it
        self.written: Path | None = None  # or being written; `last` does not point to it yet
        self.unnamed: Path | None = None  # where the first one is until then
        self.logged = True  # whether the curves up to its step are with the loggers
        self.lock = threading.RLock()  # two threads may commit: see `_leave`
        self.trainer: Trainer | None = None
        self.saved_at = time.monotonic()
        self.group: Any = None  # of all processes, for the vote
        self.vote: tuple[torch.Tensor, Any] | None = None

    # ---- when

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.trainer = trainer
        self.signals.listen()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.signals.release()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if isinstance(exception, StopRequested):
            return
        self.signals.release()  # there is no step to wait for
        with suppress(UserError, RuntimeError):  # another process may be gone; and this exception is what to report
            if isinstance(exception, TemporaryError) and exception.between_steps:
                if self.group is not None:  # the others have a batch, and wait for this process to have its own
                    distributed.all_reduce(torch.tensor([0, 0, 1]), distributed.ReduceOp.MAX, self.group)
                    exception.status = STOPPED if trainer.is_global_zero else 0  # as after a signal
                self._write_between_steps(trainer)
        with suppress(UserError):  # it may be the exception
            self._commit(trainer, wait=True)
        if isinstance(exception, TemporaryError):
            exception.args = (f"{str(exception).rstrip('.')}; {self._how_to_continue()}",)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.signals.listen()
        self.saved_at = time.monotonic()
        if trainer.world_size > 1:
            self.group = distributed.new_group(backend="gloo", timeout=getattr(trainer.strategy, "_timeout", None))
        if trainer.is_global_zero:
            for kind in ("*.partial", f"*{UNNAMED}"):  # of a run that was killed
                for path in self.folder.glob(kind):
                    path.unlink()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.logged = True
        self._commit(trainer)
        self._stop_if_asked(trainer)
        # Saving is collective, but a signal may reach one process only, and clocks differ: a process that saved alone
        # would wait forever. So they vote (the maximum wins). It runs beside the step, so that it costs no time, over
        # gloo, so that no GPU is involved.
        mine = torch.tensor([int(self.signals.received or 0), int(self._is_time(trainer, batch_idx)), 0])
        work = None
        if self.group is not None:
            work = distributed.all_reduce(mine, distributed.ReduceOp.MAX, self.group, async_op=True)
            if getattr(trainer.datamodule, "patience", 0.0):  # type: ignore[attr-defined]  # one may have no batch
                work.wait()
                if mine[2]:
                    self._write_between_steps(trainer)
                    self.stopping = int(mine[0])
                    self._stop_if_asked(trainer)
                    raise StopRequested(
                        f"stopped, as storage did not answer another process; {self._how_to_continue()}"
                    )
        self.vote = mine, work

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert self.vote is not None
        votes, work = self.vote
        if work is not None:
            work.wait()
        self.stopping, due, _ = votes.tolist()
        stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if not stepped or trainer.is_last_batch:  # gradients summed so far are not saved; the epoch's end is
            return
        if self.every_n_train_steps and trainer.global_step % self.every_n_train_steps == 0:
            due = True
        if due or self.stopping:
            self._write(trainer)

    def _is_time(self, trainer: Trainer, batch_idx: int) -> bool:
        minutes = (time.monotonic() - self.saved_at) / 60
        if self.every_n_minutes is not None and minutes >= self.every_n_minutes:
            return True
        validates = (trainer.current_epoch + 1) % (trainer.check_val_every_n_epoch or 1) == 0
        return validates and batch_idx + 2 == trainer.num_training_batches and minutes >= BEFORE_VALIDATION

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        epochs = trainer.current_epoch + 1
        if epochs % self.every_n_epochs == 0 or epochs == trainer.max_epochs or self.stopping or trainer.should_stop:
            self._write(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.logged = True
        self._commit(trainer)
        self._stop_if_asked(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.logged = True
        self._commit(trainer, wait=True)
        trainer.strategy.barrier("checkpoints")  # all processes read them from here on

    # ---- what

    def _write(self, trainer: Trainer) -> None:
        with self.lock:
            self._commit(trainer, wait=True)
            self.written, self.logged = self.folder / STEPS.format(trainer.global_step), False
            # Without a `last`, every step file counts, as where links were lost in copying. So the first one gets its
            # name when all that belongs to it is there.
            self.unnamed = None if os.path.lexists(self.folder / LAST) else self.written.with_suffix(UNNAMED)
            trainer.save_checkpoint(self.unnamed or self.written, weights_only=False)
            self.saved_at = time.monotonic()

    def _write_between_steps(self, trainer: Trainer) -> None:
        """Write the state of the last step, where the next batch did not come, or came and is not trained on.

        Lightning resumes rightly from what it counts at the end of a batch, but not between two: there, it takes the
        batch for the last one of a part of the epoch, and the steps of the curves go wrong. At the start of an epoch,
        the checkpoint of the last one is as good.
        """
        loop, loader = trainer.fit_loop.epoch_loop, trainer.train_dataloader
        progress: Any = loop.batch_progress
        if not progress.current.processed:
            return
        for count in (progress.current, progress.total):
            count.ready = count.started = count.processed
            count.completed = count.processed - 1
        progress.is_last_batch = False
        loop._batches_that_stepped -= 1
        loader.batches_done = progress.current.processed  # type: ignore[union-attr]
        try:
            self._write(trainer)
            self.logged = True
            self._commit(trainer, wait=True)
        finally:
            trainer.strategy.barrier("checkpoints")  # every process says where to continue

    def _commit(self, trainer: Trainer, wait: bool = False) -> None:
        """Point `last` to the new file if it is there, or once it is, unless its curves are not logged yet.

        Raises:
            UserError: it could not be written.
        """
        with self.lock:
            files = trainer.strategy.checkpoint_io
            if self.written is None or not trainer.is_global_zero:
                self.written = None
                return
            if isinstance(files, SyncedCheckpointIO):
                if files.is_writing and not wait:
                    return
                files.wait()
            if self.logged:
                self._point_to(self.written, trainer)
                self.written = None

    def settle(self) -> None:
        """Let the file that is being written count; for a thread that then ends the process."""
        files = None if self.trainer is None else self.trainer.strategy.checkpoint_io
        while isinstance(files, SyncedCheckpointIO) and files.is_writing:
            time.sleep(0.05)
        # The lock stays taken where the state is gathered from a process that has died.
        if self.trainer is not None and self.lock.acquire(timeout=1.0):
            with suppress(UserError):  # then the one before has to do
                self._commit(self.trainer)
            self.lock.release()

    def _point_to(self, written: Path, trainer: Trainer) -> None:
        for logger in trainer.loggers:
            flush = getattr(logger, "flush", None) or getattr(getattr(logger, "experiment", None), "flush", None)
            if flush is not None:
                flush()
        if self.unnamed is not None:
            self.unnamed.replace(written)
        last = self.folder / LAST
        if not link(last, written.name):
            with whole(last, durable=True) as partial:
                shutil.copyfile(written, partial)
        steps = sorted(self.folder.glob(STEPS_PATTERN))
        until_now = [path for path in steps if path.name <= written.name]
        kept = set(until_now[-self.keep :])
        if self.milestones:
            total = trainer.estimated_stepping_batches
            kept.update(min(until_now, key=lambda path: abs(saved_after(path) - m * total)) for m in self.milestones)
        for path in steps:  # newer ones are from a killed run, or damaged: this run did not resume from them
            if path not in kept:
                path.unlink()

    # ---- stopping

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self._commit(trainer)
        self.stopping = int(self.signals.received or 0)
        self._stop_if_asked(trainer)

    def on_test_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.on_validation_batch_end(trainer)

    def _stop_if_asked(self, trainer: Trainer) -> None:
        if not self.stopping:
            return
        self._commit(trainer, wait=True)
        if trainer.is_global_zero:
            requeue(self.stopping)
        raise StopRequested(self._farewell(signal.Signals(self.stopping)))

    def _farewell(self, number: signal.Signals) -> str:
        by = named(number)
        if not (self.folder / LAST).exists():
            return f"stopped by {by} before the first checkpoint: give the same command again, it starts anew."
        return f"stopped by {by}; {self._how_to_continue()}"

    def _how_to_continue(self) -> str:
        last = self.folder / LAST
        if not last.exists():
            return "there is no checkpoint yet: the same command starts anew."
        again = command("train.py resume={run_dir}", run_dir=self.folder.parent)
        return f"to continue from {last.resolve().stem}, type: {again}"

    def _leave(self) -> None:
        """End the process from a thread, because it did not reach a place to stop in time."""
        self.settle()
        assert self.signals.received is not None
        leave(self.signals.received, self._farewell(self.signals.received))
