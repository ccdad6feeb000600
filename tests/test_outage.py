"""Object storage that is out of reach for longer than a run waits: it stops with a checkpoint, and continues."""

from __future__ import annotations

import multiprocessing
import os
import re
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer

from deepavfusion.callbacks.guard.checkpoint_io import SyncedCheckpointIO
from deepavfusion.callbacks.guard.checkpoints import Checkpoints
from deepavfusion.data.datamodule import ClipDataModule
from deepavfusion.data.lists.vggsound import vggsound
from deepavfusion.data.storage import faults
from deepavfusion.data.storage.settings import StorageSettings
from deepavfusion.runs.signals import StopRequested
from deepavfusion.types import Batch
from deepavfusion.utils.errors import TemporaryError
from helpers.packs import small_pack
from helpers.runs import PRETRAIN, events, train
from helpers.storage import Fault, Service, put_folder

ROOT = "s3://data/packed"
FORK = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "PAUSES", (0.02, 0.05))


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """32 clips for training, a chunk each: two ranks have sixteen each."""
    return small_pack(tmp_path_factory.mktemp("pack") / "vggsound", per_chunk=1, train=32, test=2)


@pytest.fixture
def stored(s3: Service, packed: Path) -> Service:
    put_folder(s3, packed, "data", "packed")
    return s3


def failing(name: str) -> Fault:
    return lambda method, path: (503, "SlowDown") if name in path else None


class Line(LightningModule):
    """Trains in no time; what it was trained on stays in its state, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Linear(1, 1)
        torch.nn.init.constant_(self.net.weight, 0.5)
        torch.nn.init.constant_(self.net.bias, 0.0)
        self.seen: list[list[str]] = []

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        self.seen.append(batch.id)
        return (self.net(batch.waveform.abs().mean(1, keepdim=True)) - batch.label[:, None]).square().mean()

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        pass

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.05)


def fit(root: Path | str, folder: Path, accumulate: int = 1, **options: Any) -> Line:
    """Train two epochs, from the last checkpoint if there is one."""
    trainer, line, module = parts(root, folder, accumulate, **options)
    last = folder / "checkpoints" / "last.ckpt"
    trainer.fit(line, datamodule=module, ckpt_path=str(last) if last.exists() else None)
    return line


def parts(root: Path | str, folder: Path, accumulate: int = 1, **options: Any) -> tuple[Trainer, Line, ClipDataModule]:
    module = ClipDataModule(
        vggsound,
        str(root),
        "vggsound",
        batch_size=2,
        image_size=32,
        num_workers=0,
        cache_dir=str(folder / "cache"),
        storage=StorageSettings(patience_seconds=0.4),
    )
    module.setup()
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=False,
        callbacks=[Checkpoints(str(folder / "checkpoints"), every_n_epochs=2)],
        plugins=[SyncedCheckpointIO()],
        accumulate_grad_batches=accumulate,
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **{"devices": 1, "limit_val_batches": 0, **options},
    )
    return trainer, Line(), module


def state(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=False)


def alike(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Weights and moments, bit by bit."""
    pairs = [(one["state_dict"][key], value) for key, value in other["state_dict"].items()]
    moments = (each["optimizer_states"][0]["state"] for each in (one, other))
    for a, b in zip(*(states.values() for states in moments), strict=True):
        pairs += [(a[key], b[key]) for key in b]
    return len(pairs) == 8 and all(torch.equal(a, b) for a, b in pairs)


def order(root: Path, batch_size: int = 2) -> list[str]:
    """The chunk of each batch of the first epoch."""
    module = ClipDataModule(vggsound, str(root), "vggsound", batch_size=batch_size, image_size=32, num_workers=0)
    module.setup()
    chunk = {clip.id: clip.path.rpartition("/")[2] for clip in module.lists["train"].clips}
    return [chunk[batch.id[-1]] for batch in module.train_dataloader()]


@pytest.mark.parametrize(("batch", "accumulate"), [(3, 1), (7, 4), (0, 1)])
def test_a_run_stops_between_two_steps_and_continues(
    stored: Service, packed: Path, tmp_path: Path, batch: int, accumulate: int
) -> None:
    whole = fit(packed, tmp_path / "whole", accumulate)
    stored.fault = failing(order(packed)[batch])
    with pytest.raises(TemporaryError) as error:
        fit(ROOT, tmp_path / "run", accumulate)
    said = str(error.value)
    assert said.startswith("storage s3://data/packed has not answered for 0.4 s (503 SlowDown:")
    assert error.value.status == 75
    if batch:
        assert f"to continue from step_{state(tmp_path / 'run')['global_step']:08d}, type: " in said
        assert state(tmp_path / "run")["ClipDataModule"]["delivered"] % accumulate == 0
    else:
        assert "there is no checkpoint yet: the same command starts anew" in said
    stored.fault = lambda method, path: None
    rest = fit(ROOT, tmp_path / "run", accumulate)
    assert rest.seen == whole.seen[-len(rest.seen) :]
    assert len(rest.seen) < len(whole.seen) or not batch
    assert alike(state(tmp_path / "run"), state(tmp_path / "whole"))


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_outage_in_an_evaluation(stored: Service, tmp_path: Path) -> None:
    trainer, line, module = parts(ROOT, tmp_path)
    stored.fault = failing("chunk")
    with pytest.raises(TemporaryError, match=r"has not answered for 0\.4 s .* give the same command again") as error:
        trainer.test(line, datamodule=module, verbose=False)
    assert (error.value.status, error.value.between_steps) == (75, False)


def test_an_outage_in_validation_writes_no_checkpoint(stored: Service, packed: Path, tmp_path: Path) -> None:
    fit(packed, tmp_path / "whole", limit_val_batches=1.0)
    stored.fault = failing("test/chunk")
    with pytest.raises(TemporaryError, match="there is no checkpoint yet"):
        fit(ROOT, tmp_path / "run", limit_val_batches=1.0)
    stored.fault = lambda method, path: None
    fit(ROOT, tmp_path / "run", limit_val_batches=1.0)
    assert alike(state(tmp_path / "run"), state(tmp_path / "whole"))


# ---------------------------------------------------------------- two processes


def in_two_ranks(root: Path | str, folder: Path) -> list[str]:
    """What each of two processes that torchrun starts ended with."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pipes, processes = [], []
    for rank in range(2):
        here, there = FORK.Pipe()
        pipes.append(here)
        processes.append(FORK.Process(target=_rank, args=(rank, port, root, folder, there)))
        processes[-1].start()
    said = [pipe.recv() if pipe.poll(60) else "nothing" for pipe in pipes]
    for process in processes:
        process.join(20)
        process.kill()
    return said


def _rank(rank: int, port: int, root: Path | str, folder: Path, report: Any) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        **dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank)),
        **dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), "2"),
        "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "x",
    }
    try:
        fit(root, folder, strategy="ddp", devices=2)
        report.send("done")
    except (TemporaryError, StopRequested) as error:
        report.send(f"{type(error).__name__} {getattr(error, 'status', 75)}: {error}")


@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.full)])
def test_all_processes_stop_before_the_same_batch(stored: Service, packed: Path, tmp_path: Path, rank: int) -> None:
    """One of them has no batch; the other has, and does not train on it."""
    assert in_two_ranks(packed, tmp_path / "whole") == ["done", "done"]
    name = order(packed)[8 * rank + 3]
    stored.fault = failing(name)
    said = in_two_ranks(ROOT, tmp_path / "run")
    assert said[rank].startswith(f"Unreachable {0 if rank else 75}: storage s3://data/packed has not answered")
    assert said[1 - rank].startswith(
        "StopRequested 75: stopped, as storage did not answer another process; to continue"
    )
    assert 2 <= state(tmp_path / "run")["global_step"] < 8
    stored.fault = lambda method, path: None
    assert in_two_ranks(ROOT, tmp_path / "run") == ["done", "done"]
    assert alike(state(tmp_path / "run"), state(tmp_path / "whole"))


# ---------------------------------------------------------------- the command


@pytest.mark.full
def test_a_command_stops_and_continues(
    stored: Service, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """With decoding processes, and the curves."""
    given = [
        *PRETRAIN,
        *("data.batch_size=4", "data.image_size=32", "data.audio_seconds=1.0", "data.num_workers=2", "test=false"),
        *("validate_before=false", "data.gallery_clips=0", "trainer.max_epochs=2", "run.latest=false", "run.name=x"),
        *("data.storage.patience_seconds=1", "callbacks.checkpoints.every_n_epochs=2", f"data.cache_dir={tmp_path}/c"),
    ]
    local, remote = ([*given, f"paths.log_dir={tmp_path / name}"] for name in ("local", "remote"))
    train(monkeypatch, *local, f"data.root={packed}")
    chunks = order(packed, 4)
    stored.fault = failing(chunks[5])
    with pytest.raises(SystemExit) as end:
        train(monkeypatch, *remote, f"data.root={ROOT}")
    assert end.value.code == 75
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.match(
        r"storage s3://data/packed has not answered for 1 s .* to continue from step_\d+, type: \S*python src/train.py",
        said,
    )
    stored.fault = lambda method, path: None
    train(monkeypatch, *remote, f"data.root={ROOT}")
    runs = [tmp_path / name / "pretrain" / "runs" / "x" for name in ("local", "remote")]
    one, other = (torch.load(run / "checkpoints" / "last.ckpt", weights_only=False)["state_dict"] for run in runs)
    assert all(torch.equal(one[key], other[key]) for key in one)
    curves = [events(run) for run in runs]
    for tag in ("train/loss_step", "train/loss", "val/loss"):
        first, second = ([(each.step, each.value) for each in curve.Scalars(tag)] for curve in curves)
        assert first == second
