"""`hydra/launcher=slurm` and `trainer=slurm`, with commands that play SLURM's part on this machine."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.runs import PRETRAIN

REPOSITORY = Path(__file__).parents[1]
PYTHON = sys.executable
SBATCH = f"""#!{PYTHON}
import os, pathlib, subprocess, sys
script = sys.argv[-1]
pathlib.Path(os.environ["SLURM_PLAY"], "script.sh").write_text(pathlib.Path(script).read_text())
job = {{"SLURM_JOB_ID": "4216", "SLURM_JOB_NAME": "deepavfusion"}}
log = open(os.path.join(os.environ["SLURM_PLAY"], "job.log"), "w")
subprocess.Popen(["bash", script], env={{**os.environ, **job}}, stdout=log, stderr=log, start_new_session=True)
print("Submitted batch job 4216")
"""
SRUN = f"""#!{PYTHON}
import os, subprocess, sys
command = sys.argv[sys.argv.index("{PYTHON}"):]
tasks = [
    subprocess.Popen(command, env={{**os.environ, "SLURM_PROCID": str(n), "SLURM_LOCALID": str(n), "SLURM_NTASKS": "2",
    "SLURM_NNODES": "1", "SLURM_NODEID": "0", "SLURM_NODELIST": "localhost", "SLURM_JOB_NODELIST": "localhost",
    "SLURM_JOB_NUM_NODES": "1", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "1"}})
    for n in range(2)
]
sys.exit(max(task.wait() for task in tasks))
"""
SCONTROL = "#!/bin/sh\necho localhost\n"
SACCT = "#!/bin/sh\necho 'JobID|State|NodeList'\necho '4216|RUNNING|localhost'\n"


@pytest.mark.full
def test_a_submitted_run_trains_in_two_processes(data_root: Path, tmp_path: Path) -> None:
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, text in (("sbatch", SBATCH), ("srun", SRUN), ("scontrol", SCONTROL), ("sacct", SACCT)):
        (commands / name).write_text(text)
        (commands / name).chmod(stat.S_IRWXU)
    logs = tmp_path / "logs"
    path = f"{commands}:{os.environ['PATH']}"
    done = subprocess.run(
        [
            *(PYTHON, "src/train.py", "-m", "hydra/launcher=slurm", "trainer=slurm", "run.name=x", *PRETRAIN[2:]),
            *("scale=demo", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true"),
            *("trainer.sync_batchnorm=false", f"data.root={data_root}", f"paths.log_dir={logs}"),
            *("hydra.launcher.tasks_per_node=2", "hydra.launcher.partition=gpu"),
        ],
        cwd=REPOSITORY,
        env={**os.environ, "PATH": path, "SLURM_PLAY": str(tmp_path), "PYTHONPATH": "src"},
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stderr[-3000:] + (tmp_path / "job.log").read_text()[-3000:]
    script = (tmp_path / "script.sh").read_text()
    for line in ("--ntasks-per-node=2", "--gpus-per-node=8", "--partition=gpu", "--signal=USR1@120", "--time=1440"):
        assert f"#SBATCH {line}" in script, script
    assert [path.name for path in (logs / "pretrain" / "runs").iterdir()] == ["x"]
    assert "train/loss" in json.loads((logs / "pretrain" / "runs" / "x" / "metrics.json").read_text())
