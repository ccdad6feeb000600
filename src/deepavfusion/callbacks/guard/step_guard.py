"""Stops or skips steps that would ruin the weights, and explains those that do not fit into memory."""

from __future__ import annotations

import json
import math
import statistics
import traceback
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from deepavfusion.types import Batch
from deepavfusion.utils.console import say_once
from deepavfusion.utils.errors import UserError
from deepavfusion.utils.files import write_whole
from deepavfusion.utils.structure import ListOf

REMEMBERED = 100  # steps whose gradient norms a spike is measured by
PRINTED = 5  # spikes in the terminal
FINITE = torch.finfo(torch.float32).max


@dataclass
class Step:
    """An optimizer step whose gradient norm may still be on its way from the device."""

    number: int
    epoch: int
    process: int
    rate: float
    batches: list[Batch]
    losses: list[Tensor]
    norm: Tensor
    usual: float  # running median of the gradient norm; inf: not yet known
    arrived: torch.cuda.Event | None


class StepGuard(Callback):
    """Checks the gradient norm of each optimizer step, and logs it as `train/grad_norm_step`.

    If it is not finite, the clips of the step are written to `nonfinite/step_<n>_rank<r>.json` and the run stops; the
    weights, and the checkpoints, are those before the step. Up to `max_skips` such steps are skipped instead: weights
    and moments stay, the schedule proceeds; `train/skipped` counts them. With 16-bit floats, whose gradients overflow
    routinely, the loss scaler does all this and the guard is inactive.

    The CPU never waits for a GPU to compute the norm: fused AdamW skips such a step by itself, and the norm is read one
    step later.

    If a step does not fit into memory, the run stops and names the largest batch size that does, by trying.

    Args:
        run_dir: of the run.
        max_skips: steps with non-finite gradients that a run may skip.
        spike_factor: warn of norms above this multiple of the median of the last hundred steps, and count them in
            `train/grad_spikes`; None: do not check.
        skip_spikes: skip such steps, too.
    """

    STATE: ClassVar = {"norms": ListOf(math.nan), "skipped": 0, "spikes": 0}  # see utils/structure.py

    def __init__(
        self, run_dir: str, max_skips: int = 0, spike_factor: float | None = 20.0, skip_spikes: bool = False
    ) -> None:
        self.folder, self.max_skips = Path(run_dir) / "nonfinite", max_skips
        self.spike_factor, self.skip_spikes = spike_factor, skip_spikes
        self.norms: deque[float] = deque(maxlen=REMEMBERED)
        self.skipped = self.spikes = 0
        self.batches: list[Batch] = []  # of the current step
        self.losses: list[Tensor] = []
        self.pending: Step | None = None  # the previous step, on a GPU

    def state_dict(self) -> dict[str, Any]:
        self._settle()
        return {"norms": list(self.norms), "skipped": self.skipped, "spikes": self.spikes}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.norms.extend(state_dict["norms"])
        self.skipped, self.spikes = state_dict["skipped"], state_dict["spikes"]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self.batches, self.losses = [], []
        self.batches.append(batch)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        self.losses.append(loss.detach())

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if getattr(trainer.precision_plugin, "scaler", None) is not None:
            return
        self._settle()
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)  # gradients are reduced already: equal on all processes
        usual = statistics.median(self.norms) if len(self.norms) >= REMEMBERED // 4 else math.inf
        rate = max(group["lr"] for group in optimizer.param_groups)
        place = trainer.global_step, trainer.current_epoch, trainer.global_rank
        step = Step(*place, rate, self.batches, self.losses, norm, usual, arrived=None)
        limit = min(FINITE, self.spike_factor * usual if self.skip_spikes and self.spike_factor else math.inf)
        pl_module.log("train/grad_norm_step", norm, batch_size=1)
        self.pending = step
        if not optimizer.defaults.get("fused"):
            if not norm < limit:
                optimizer.zero_grad(set_to_none=True)  # LARS and AdamW skip parameters without a gradient
            self._settle()
            return
        # `found_inf` is how a GradScaler tells fused optimizers to skip a step, without reading the flag back to the
        # CPU: where it is 1, the kernel changes neither weights nor moments nor its step count. There is no scaler
        # here, so the attribute is free for the guard.
        optimizer.found_inf = (~(norm < limit)).float()  # type: ignore[attr-defined]
        if norm.is_cuda:
            step.norm = torch.empty((), dtype=norm.dtype, pin_memory=True).copy_(norm, non_blocking=True)
            step.arrived = torch.cuda.Event()
            step.arrived.record()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        counts = {"train/skipped": self.skipped, "train/grad_spikes": self.spikes}
        pl_module.log_dict({name: float(count) for name, count in counts.items() if count}, batch_size=1)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._settle()

    def _settle(self) -> None:
        """Count and report the outcome of the previous step."""
        step, self.pending = self.pending, None
        if step is None:
            return
        if step.arrived is not None:
            step.arrived.synchronize()
        norm = step.norm.item()
        if not norm < FINITE:
            self._nonfinite(step, norm)
            return
        self.norms.append(norm)
        if self.spike_factor is not None and norm > self.spike_factor * step.usual:
            self._spike(step, norm)

    def _nonfinite(self, step: Step, norm: float) -> None:
        losses = [loss.item() for loss in step.losses]
        clips = [
            {"id": i, "window_start": start, "frame_time": frame}
            for batch in step.batches
            for i, start, frame in zip(batch.id, batch.window_start.tolist(), batch.frame_time.tolist(), strict=True)
        ]
        found = {"step": step.number, "epoch": step.epoch, "losses": [str(loss) for loss in losses]}
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"step_{step.number:08d}_rank{step.process}.json"
        write_whole(
            path, json.dumps({**found, "grad_norm": str(norm), "lr": step.rate, "clips": clips}, indent=2) + "\n"
        )
        where = f"step {step.number} (epoch {step.epoch})"
        what = f"loss {', '.join(f'{loss:g}' for loss in losses)}, gradient norm {norm:g}"
        if self.skipped < self.max_skips:
            self.skipped += 1
            say_once(f"{where}: {what}; skipped, {self.skipped} of {self.max_skips}", "yellow")
            return
        after = f" after {self.skipped} skipped" if self.skipped else ""
        raise UserError(
            f"{where}{after}: {what}, which is not finite; {path} lists its clips, and the weights are those before "
            "it: lower model.blr, set trainer.gradient_clip_val=1.0 or trainer.precision=32-true, or skip such steps "
            "with callbacks.step_guard.max_skips=<n>."
        )

    def _spike(self, step: Step, norm: float) -> None:
        self.spikes += 1
        self.skipped += self.skip_spikes
        if self.spikes <= PRINTED:
            done = "skipped" if self.skip_spikes else "taken (trainer.gradient_clip_val=<norm> limits it)"
            more = "; train/grad_spikes counts further ones" if self.spikes == PRINTED else ""
            found = f"gradient norm {norm:.3g}, {norm / step.usual:.0f} times the median"
            say_once(f"step {step.number}: {found}; {done}{more}", "yellow")

    # ---- memory

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if not is_out_of_memory(exception):
            return
        batch = self.batches[-1] if self.batches and trainer.training else None
        size = trainer.datamodule.batch_size if batch is None else batch.items  # type: ignore[attr-defined]
        fits = size // 2
        if batch is not None and trainer.world_size == 1:  # several would deadlock
            traceback.clear_frames(exception.__traceback__)  # they hold the tensors that did not fit
            while fits and not _fits(trainer, pl_module, batch.first(fits * batch.group)):
                fits //= 2
        where = "training" if trainer.training else "evaluation"
        lighter = "model.net.checkpoint_layers=true needs a fifth of the memory for activations"
        if not fits:
            error = UserError(
                f"out of memory in {where}: not even data.batch_size=1 fits; {lighter}, data.num_workers=<fewer> "
                "reduces that of the decoding processes; or choose a smaller network or another device."
            )
        else:
            tried = "fits (tried just now)" if batch is not None and trainer.world_size == 1 else "may fit"
            same = f" with trainer.accumulate_grad_batches={-(-size * trainer.accumulate_grad_batches // fits)}"
            error = UserError(
                f"out of memory in {where} with data.batch_size={size}: data.batch_size={fits} {tried}"
                f"{same + ' for the same effective batch' if trainer.training else ''}; {lighter}."
            )
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        for callback in callbacks[callbacks.index(self) + 1 :]:  # Lightning calls none after one that raises
            callback.on_exception(trainer, pl_module, error)
        raise error from exception


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the machine had no memory left."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    words = ("not enough memory", "can't allocate memory")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def _fits(trainer: Trainer, pl_module: LightningModule, batch: Batch) -> bool:
    """Whether a step with so few rows, and the optimizer's moments, fit into memory."""
    # Lightning forbids logging in `on_exception`, from where this is called, but `training_step` logs. There is no
    # switch for it, so the instance gets a `log` that does nothing, until `del` uncovers the method again.
    pl_module.log = lambda *_, **__: None  # type: ignore[method-assign]
    try:
        pl_module.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        moments = [torch.empty_like(p) for p in pl_module.parameters() if p.requires_grad for _ in range(2)]
        if any(optimizer.state for optimizer in trainer.optimizers):
            moments = []  # already allocated
        with trainer.precision_plugin.train_step_context():
            loss = pl_module.training_step(batch, 0)
        assert isinstance(loss, torch.Tensor)
        loss.backward()
        del moments, loss
        return True
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        traceback.clear_frames(error.__traceback__)
        return False
    finally:
        del pl_module.log
        pl_module.zero_grad(set_to_none=True)
