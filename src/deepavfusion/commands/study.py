"""Answer a question by many runs: `python src/study.py study=<name>`. Keys: configs/study.yaml and configs/study/."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from deepavfusion.cli.entry import entry, overrides_of_run, run
from deepavfusion.config.compose import choices
from deepavfusion.utils.errors import UserError


@entry("study")
def main(cfg: DictConfig) -> None:
    if cfg.study.name is None:
        raise UserError(f"study=<name> is missing: expected one of {', '.join(choices('study'))}.")
    from deepavfusion.study.plan import Plan  # takes seconds, as the next, which a mistake should not cost
    from deepavfusion.study.study import answer, work_on

    study: Any = OmegaConf.to_container(cfg.study, resolve=True)
    plan = Plan(cfg.study, cfg.paths.log_dir, cfg.paths.data_dir)
    keep = study["keep_checkpoints"] == "last"
    if study["only"] is not None:
        work_on(plan, study["only"], keep)
        return
    words = [*_own_configs(), *overrides_of_run()]
    answer(plan, words, study["costs"], study["processes"], study["list"], keep)


def _own_configs() -> list[str]:
    """The words for a folder of configs that the command named."""
    sources = HydraConfig.get().runtime.config_sources
    return [f"--config-dir={Path(each.path).resolve()}" for each in sources if each.provider == "command-line"]


def start() -> None:
    """What the shell calls."""
    run(main)
