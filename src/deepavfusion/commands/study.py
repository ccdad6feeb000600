"""Answer a question by many runs: `python src/study.py study=<name>`. Keys: configs/study.yaml and configs/study/."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from deepavfusion.cli.entry import entry, overrides_of_run, run
from deepavfusion.config.compose import CONFIG_DIR, choices
from deepavfusion.config.overrides import split_override
from deepavfusion.utils.errors import UserError

LISTS = (
    "study.list=true prints the whole plan and starts nothing: leave it out, or study.only and -m with its launcher."
)
TRUE = ("true", "1")


def _of_a_job(words: list[str]) -> list[str]:
    """A job of a cluster is one process, which starts those of its runs itself, with the cores of all of them."""
    given = {key: value for _, key, value in map(split_override, words)}
    if given.get("hydra/launcher") != "slurm":
        return []
    if given.get("study.list", "").lower() in TRUE:
        raise UserError(LISTS)
    launcher = OmegaConf.load(Path(CONFIG_DIR, "hydra", "launcher", "slurm.yaml"))
    gpus = given.get("hydra.launcher.gpus_per_node", "")
    cores = launcher.cpus_per_task * (int(gpus) if gpus.isdigit() else launcher.gpus_per_node)
    of_a_job = {"hydra.launcher.tasks_per_node": 1, "hydra.launcher.cpus_per_task": cores}
    return [f"{key}={value}" for key, value in of_a_job.items() if key not in given]


@entry("study", more=_of_a_job)
def main(cfg: DictConfig) -> None:
    if cfg.study.name is None:
        raise UserError(f"study=<name> is missing: expected one of {', '.join(choices('study'))}.")
    base = OmegaConf.load(Path(CONFIG_DIR, "study", "_study.yaml"))
    if missing := [str(key) for key in base if key not in cfg.study]:
        why = "begin a study with defaults: [_study, _self_], and remove no key"
        raise UserError(f"study.{missing[0]} is missing: {why}.")
    from deepavfusion.study.plan import Plan  # takes seconds, as the next, which a mistake should not cost
    from deepavfusion.study.study import answer, work_on

    study: Any = OmegaConf.to_container(cfg.study, resolve=True)
    plan = Plan(cfg.study, cfg.paths.log_dir, cfg.paths.data_dir)
    keep = study["keep_checkpoints"] == "last"
    words = [*_own_configs(), *overrides_of_run()]
    if study["list"] and study["only"] is not None:
        raise UserError(LISTS)
    if study["only"] is not None:
        work_on(plan, study["only"], words, keep)
        return
    answer(plan, words, study["costs"], study["processes"], study["list"], keep)


def _own_configs() -> list[str]:
    """The words for a folder of configs that the command named."""
    sources = HydraConfig.get().runtime.config_sources
    return [f"--config-dir={Path(each.path).resolve()}" for each in sources if each.provider == "command-line"]


def start() -> None:
    """What the shell calls."""
    run(main)
