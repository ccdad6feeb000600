"""The scripts and commands of docs/scaling.md, as far as they can be checked without SLURM (`make test-cluster`)."""

from __future__ import annotations

import shlex
import subprocess

import hydra
import pytest
from omegaconf import OmegaConf
from submitit.slurm.slurm import SlurmExecutor, _make_sbatch_string

from cluster.cases import page_blocks
from deepavfusion.cli.hints import check
from deepavfusion.cli.words import Word
from deepavfusion.config.check import check_ranges
from deepavfusion.config.compose import CONFIG_DIR

BLOCKS = page_blocks()
OPTIONS = {"--requeue", "--signal=USR1@180", "--open-mode=append", "--ntasks-per-node=8", "--gpus-per-node=8"}


@pytest.mark.parametrize("name", ["train.sbatch", "sweep.sbatch", "torchrun", "launcher"])
def test_what_they_start_composes(name: str) -> None:
    text = BLOCKS[name].replace("\\\n", " ").replace("<packed>", "x")
    (line,) = (line for line in text.splitlines() if "src/train.py" in line)
    words = shlex.split(line.partition("src/train.py")[2].replace("$SLURM_ARRAY_TASK_ID", "1").replace('"$@"', ""))
    overrides = [word for word in words if "=" in word]
    check("train", [], [Word(override, override) for override in overrides])
    with hydra.initialize_config_dir(CONFIG_DIR, version_base="1.3"):
        check_ranges(hydra.compose("train", overrides=[*overrides, "scale=paper"]))


@pytest.mark.parametrize("name", ["train.sbatch", "sweep.sbatch"])
def test_scripts_say_what_a_run_needs_to_continue(name: str) -> None:
    subprocess.run(["bash", "-n"], input=BLOCKS[name].replace("<packed>", "x"), text=True, check=True)
    lines = BLOCKS[name].splitlines()
    assert {line.partition(" ")[2] for line in lines if line.startswith("#SBATCH ")} >= OPTIONS
    assert any(line.startswith("export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK") for line in lines)
    assert any(line.startswith("srun --kill-on-bad-exit=1 python src/train.py trainer=slurm ") for line in lines)


def test_the_launcher_submits_such_a_script() -> None:
    with hydra.initialize_config_dir(CONFIG_DIR, version_base="1.3"):
        cfg = hydra.compose(
            "train",
            overrides=["hydra/launcher=slurm", "experiment=pretrain_vggsound", "scale=paper"],
            return_hydra_config=True,
        )
    found = OmegaConf.to_container(cfg.hydra.launcher)
    assert isinstance(found, dict)
    for key in ("_target_", "submitit_folder"):
        del found[key]
    names = SlurmExecutor._equivalence_dict()
    given = {names.get(key, key): value for key, value in found.items()}
    script = _make_sbatch_string("command", "logs", **given)
    assert {line.partition(" ")[2] for line in script.splitlines() if line.startswith("#SBATCH ")} >= OPTIONS
    assert "\nexport SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK\n" in script
    assert " --kill-on-bad-exit=1 command" in script
