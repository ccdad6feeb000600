"""Real processes of torchrun, on one machine and, as it seems to them, on two."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deepavfusion.config.compose import REPOSITORY
from helpers.runs import PRETRAIN

TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
SHORT = [
    *(word for word in PRETRAIN if word not in ("trainer=cpu", "trainer.max_epochs=3", "model.warmup_epochs=1")),
    *("trainer.max_epochs=1", "trainer.limit_train_batches=1", "trainer.limit_val_batches=1"),
    *("model.warmup_epochs=0", "validate_before=false"),
]

pytestmark = pytest.mark.full


def start(*words: str, options: tuple[str, ...] = ("--nproc-per-node=2",)) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*TORCHRUN, *options, *words],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_a_trainer_of_one_process_is_refused_before_anything_is_written(data_root: Path, tmp_path: Path) -> None:
    process = start("src/train.py", *SHORT, "trainer=cpu", f"data.root={data_root}", f"paths.log_dir={tmp_path}")
    out = process.communicate(timeout=120)[0]
    assert process.returncode == 1  # torchrun's own
    assert "exitcode  : 2 " in out
    assert (
        out.count("torchrun started 2 processes, but the trainer has 1 (trainer.devices=1, trainer.num_nodes=1)") == 1
    )
    assert [*tmp_path.iterdir()] == []


def test_two_processes_train_one_run_and_evaluate_it(data_root: Path, finetuned: Path, tmp_path: Path) -> None:
    """Without a name, which both find alike."""
    words = ["trainer=ddp_sim", f"data.root={data_root}", f"paths.log_dir={tmp_path}"]
    process = start("src/train.py", *SHORT, *words)
    out = process.communicate(timeout=300)[0]
    assert process.returncode == 0, out
    (run_dir,) = (tmp_path / "pretrain/runs").iterdir()
    assert "train/loss" in json.loads((run_dir / "metrics.json").read_text())
    assert out.count("Results") == 1
    assert "2 processes on CPU" in out
    assert "shared by 2)" in out
    last = finetuned / "checkpoints/last.ckpt"
    of_classification = (f"ckpt_path={last}", "trainer=ddp_sim", f"paths.log_dir={tmp_path}")
    process = start("src/eval.py", *of_classification)
    out = process.communicate(timeout=300)[0]
    assert process.returncode == 0, out
    (evaluated,) = (tmp_path / "classify/evals").iterdir()
    assert any(name.startswith("test/") for name in json.loads((evaluated / "metrics.json").read_text()))


def test_the_processes_of_two_machines_train_one_run(data_root: Path, tmp_path: Path) -> None:
    """The numbers of devices and machines follow from torchrun."""
    meet = [
        "--nnodes=2",
        "--nproc-per-node=1",
        "--master-addr=127.0.0.1",
        f"--master-port={20000 + os.getpid() % 9999}",
    ]
    words = ["src/train.py", *SHORT, "trainer=ddp_sim", "trainer.devices=auto", "run.name=x", f"data.root={data_root}"]
    words += [f"paths.log_dir={tmp_path}"]
    machines = [start(*words, options=(*meet, f"--node-rank={n}")) for n in range(2)]
    outs = [machine.communicate(timeout=300)[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], outs
    assert [path.name for path in (tmp_path / "pretrain/runs").iterdir()] == ["x"]
    assert "train/loss" in json.loads((tmp_path / "pretrain/runs/x/metrics.json").read_text())


def test_a_run_goes_on_where_torchrun_starts_its_processes_again(data_root: Path, tmp_path: Path) -> None:
    words = ["trainer=ddp_sim", f"data.root={data_root}", f"paths.log_dir={tmp_path}", "run.name=x"]
    words += ["trainer.max_epochs=30", "callbacks.checkpoints.every_n_epochs=1"]
    process = start("src/train.py", *SHORT, *words, options=("--standalone", "--nproc-per-node=2", "--max-restarts=1"))
    last, until = tmp_path / "pretrain/runs/x/checkpoints/last.ckpt", time.monotonic() + 120
    while not last.exists():
        assert time.monotonic() < until
        time.sleep(0.1)
    os.kill(second_of(process.pid), signal.SIGKILL)
    out = process.communicate(timeout=300)[0]
    assert process.returncode == 0, out
    assert (tmp_path / "pretrain/runs/x/metrics.json").is_file()
    assert "resum" in out.lower()


def second_of(pid: int) -> int:
    """The child of a torchrun that is its rank 1."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    (child,) = (int(n) for n in children if b"\0RANK=1\0" in Path(f"/proc/{n}/environ").read_bytes())
    return child


def test_scripts_of_one_process_are_refused(tmp_path: Path) -> None:
    out = start("src/prepare.py", "command=demo", f"root={tmp_path / 'demo'}").communicate(timeout=120)[0]
    assert out.count("torchrun started 2 processes of prepare.py, which would write the same files") == 1
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("seconds", [6, 10, 14])  # before, torchrun itself starts
def test_a_signal_to_torchrun_ends_all_without_a_traceback_of_ours(seconds, data_root: Path, tmp_path: Path) -> None:
    words = ["trainer=ddp_sim", f"data.root={data_root}", f"paths.log_dir={tmp_path}", "trainer.max_epochs=1000"]
    process = start("src/train.py", *SHORT, *words, "run.name=x")
    time.sleep(seconds)
    process.send_signal(signal.SIGTERM)
    out = process.communicate(timeout=60)[0]
    ours = [line for line in out.splitlines() if "src/deepavfusion" in line or "src/train.py" in line.split("Error")[0]]
    assert not [line for line in ours if line.lstrip().startswith("File ")], out
    assert "stopped by SIGTERM" in out
