"""Measure: `python src/benchmark.py benchmark=data`. Keys: configs/benchmark.yaml and configs/benchmark/."""

from __future__ import annotations

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from deepavfusion.benchmarks import report
from deepavfusion.transforms.audio import FRAMES_PER_SECOND
from deepavfusion.utils.cli import run, run_and_report
from deepavfusion.utils.configs import CONFIG_DIR, REPOSITORY, instantiate, register_resolvers
from deepavfusion.utils.console import say
from deepavfusion.utils.run_dir import choose_run_dir, link_latest, write_record

register_resolvers(FRAMES_PER_SECOND)


@hydra.main(version_base="1.3", config_path=CONFIG_DIR, config_name="benchmark")
@run_and_report
def main(cfg: DictConfig) -> None:
    overrides = HydraConfig.get().overrides.task
    run_dir = choose_run_dir(cfg.paths.log_dir, "benchmark", cfg.run.name)
    write_record(run_dir, OmegaConf.to_yaml(cfg, resolve=True), list(overrides))
    rows = instantiate(cfg.benchmark)
    report.write_csv([row | report.environment(REPOSITORY) for row in rows], run_dir / "results.csv")
    link_latest(run_dir)
    report.show(rows, "Reading clips, one process")
    names = [f"{row['source']}, mel {row['mel']}: {row['clips_per_second']:.0f} clips/s" for row in rows]
    parts = [column for column in rows[0] if column.endswith("_ms")]
    report.stacked_bars(rows, names, parts, "milliseconds a clip", run_dir / "results.png")
    say(f"written to {run_dir}/results.csv and results.png")


if __name__ == "__main__":
    run(main)
