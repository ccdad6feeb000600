"""A training step asks the device for nothing and leaves nothing behind."""

from __future__ import annotations

import gc
import resource
from pathlib import Path

import pytest
import torch
from lightning import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

from deepavfusion.tasks.pretrain import Pretrain
from deepavfusion.transforms.device import DeviceTransform
from deepavfusion.types import Batch
from helpers import golden as cases

CLIPS = 4


class Clips(torch.utils.data.Dataset):
    """Noise that is as long as a batch needs."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> Batch:
        generator = torch.Generator().manual_seed(step)
        times = torch.zeros(CLIPS)
        return Batch(
            image=torch.randint(0, 256, (CLIPS, 3, 64, 64), dtype=torch.uint8, generator=generator),
            waveform=torch.randn(CLIPS, 12_000, generator=generator),  # 48 frames of 250 samples
            label=torch.zeros(CLIPS, dtype=torch.int64),
            id=[f"{step}_{row}" for row in range(CLIPS)],
            frame_time=times,
            window_start=times,
            gain_db=times,
            item=torch.arange(CLIPS),
        )


class Step(Pretrain):
    """Pre-training with the data module's transform, without a data module; the sound has 32 mel bands."""

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        batch = DeviceTransform()(batch)
        batch.spectrogram = batch.spectrogram[:, :, :32]
        return batch


def fit(folder: Path, steps: int, *callbacks: Callback, log_every: int = 50) -> None:
    torch.manual_seed(0)
    task = Step(cases.tiny_encoder(), 32, 2, 4, batch_size=CLIPS, warmup_epochs=0)
    quiet = dict.fromkeys(("enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    shown = {"logger": TensorBoardLogger(folder), "log_every_n_steps": log_every}
    trainer = Trainer(accelerator="cpu", max_epochs=1, callbacks=list(callbacks), **shown, **quiet)
    trainer.fit(task, DataLoader(Clips(steps), batch_size=None))


class ReadBack(TorchDispatchMode):
    """Counts what would have to wait for a GPU: a value that goes to Python, and sizes that depend on values."""

    WAITING = ("aten._local_scalar_dense", "aten.nonzero", "aten.masked_select", "aten.equal", "aten.unique")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        by_value = str(func).startswith("aten.index.") and any(i is not None and i.dtype == torch.bool for i in args[1])
        if by_value or str(func).startswith(self.WAITING):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


class Watch(Callback):
    """Counts from the step's forward pass to the end of its backward pass and in what is logged after it; AdamW reads
    its own step counter, which lies on the CPU unless it is fused."""

    def __init__(self) -> None:
        self.steps: list[list[str]] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.mode = ReadBack()
        self.mode.__enter__()

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.mode.__exit__(None, None, None)
        self.steps.append(self.mode.found)


def test_a_step_waits_for_the_device_only_where_it_logs(tmp_path):
    watch = Watch()
    fit(tmp_path, 6, watch, log_every=3)
    assert watch.steps == [[]] * 6


def test_read_backs_are_noticed():
    with ReadBack() as mode:
        float(torch.ones(()))
        torch.ones(3)[torch.tensor([True, False, True])]
    assert [name.split(".")[1] for name in mode.found] == ["_local_scalar_dense", "index"]


class Held(Callback):
    """Tensors that live, their bytes, and the largest resident set so far, at some steps."""

    def __init__(self, *steps: int) -> None:
        self.steps = steps
        self.found: list[tuple[int, int]] = []
        self.resident: list[int] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx in self.steps:
            gc.collect()
            tensors = [each for each in gc.get_objects() if isinstance(each, torch.Tensor)]
            self.found.append((len(tensors), sum(each.untyped_storage().nbytes() for each in tensors)))
            self.resident.append(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.full
def test_two_hundred_steps_hold_no_more_than_the_first(tmp_path):
    held = Held(20, 120, 220)
    fit(tmp_path, 221, held)
    assert held.found[0] == held.found[1] == held.found[2]
    assert held.resident[2] - held.resident[0] < 8 * 2**20
