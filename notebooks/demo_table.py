"""Train every demo with several seeds and print the table of docs/results.md: `make demo-table`.

Each run is `src/train.py experiment=<name> scale=demo seed=<seed>` in logs/demo_table. A finished run is not repeated,
and an interrupted one resumes, so the command can be stopped and started at any time. Classification and retrieval
start from the pre-training of the same seed, the others from scratch; `--starts` also trains some from the other start,
and reports the difference of the paired seeds with its 95 % interval (Student's t).

A demo is steady if its worst seed improves on the baseline by at least 0.8 of the mean. Exit status 1: one is not.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

REPOSITORY = Path(__file__).resolve().parents[1]
SEEDS = (1, 2, 3, 4, 5)
STEADY = 0.8  # worst / mean of the improvement, at least


@dataclass(frozen=True)
class Demo:
    """What is trained, and which metric it improves over what."""

    experiment: str
    task: str
    metric: str
    baseline: str | float  # metric, or what chance gives
    pretrained: bool = False  # starts from the pre-training of its seed


DEMOS = {
    "pretrain": Demo("pretrain_vggsound", "pretrain", "knn/combined", "knn/combined_before"),
    "probe": Demo("vggsound_linear_probe", "classify", "test/top1", "test/top1_untrained", pretrained=True),
    "finetune": Demo("vggsound_finetune", "classify", "test/top1", 1 / 8, pretrained=True),
    "retrieve": Demo(
        *("vggsound_retrieval", "retrieve", "test/audio_to_image_map", "test/audio_to_image_map_untrained"),
        pretrained=True,
    ),
    "separate": Demo("music_separation", "separate", "test/sdr", "test/sdr_mixture"),
    "s4": Demo("avsbench_s4", "segment", "test/miou_fg", "test/miou_fg_wrong_audio"),
    "ms3": Demo("avsbench_ms3", "segment", "test/miou_fg", "test/miou_fg_wrong_audio"),
}
OTHER_START = ("finetune", "retrieve", "separate", "s4", "ms3")  # of a probe, it is its baseline


def trained(name: str, seed: int, log_dir: Path, pretrained: bool, overrides: list[str]) -> dict[str, float]:
    """The final metrics of a demo, which is trained first unless it has been."""
    demo = DEMOS[name]
    run = f"{name}_{'pretrained' if pretrained else 'scratch'}_{seed}"
    metrics = log_dir / demo.task / "runs" / run / "metrics.json"
    if not metrics.exists():
        start = []
        if name != "pretrain":
            encoder = log_dir / "pretrain" / "runs" / f"pretrain_scratch_{seed}" / "checkpoints" / "last.ckpt"
            if pretrained and not (encoder.parents[1] / "metrics.json").exists():
                trained("pretrain", seed, log_dir, False, overrides)
            start = [f"model.pretrained={encoder if pretrained else 'null'}"]
        command = [sys.executable, "src/train.py", f"experiment={demo.experiment}", "scale=demo", f"seed={seed}"]
        command += [f"run.name={run}", "run.latest=false", f"paths.log_dir={log_dir}", *start, *overrides]
        print("$", *command[1:], file=sys.stderr, flush=True)
        log_dir.mkdir(parents=True, exist_ok=True)
        with (log_dir / f"{run}.log").open("a") as log:
            status = subprocess.run(command, cwd=REPOSITORY, stdout=log, stderr=log, env={**os.environ}).returncode
        if status:
            sys.exit(f"{run} ended with exit status {status}: see {log_dir / run}.log.")
    found: dict[str, float] = json.loads(metrics.read_text())
    return found


def spread(values: np.ndarray) -> str:
    """Mean and standard deviation over the seeds."""
    return f"{values.mean():.2f} ± {values.std(ddof=1):.2f}" if len(values) > 1 else f"{values.mean():.2f}"


def interval(differences: np.ndarray) -> str:
    """Mean of paired differences and its 95 % interval."""
    mean, error = differences.mean(), stats.sem(differences)
    low, high = stats.t.interval(0.95, len(differences) - 1, loc=mean, scale=error)
    return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"


def main() -> int:
    """Train what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--only", nargs="+", choices=DEMOS, default=list(DEMOS), help="which demos")
    parser.add_argument("--starts", action="store_true", help="also with and without pre-training")
    parser.add_argument("--log-dir", type=Path, default=REPOSITORY / "logs" / "demo_table")
    parser.add_argument("overrides", nargs="*", help="for every run, e.g. trainer=cpu")
    args = parser.parse_args()
    log_dir = args.log_dir.resolve()

    print(f"Seeds {', '.join(map(str, args.seeds))}; mean ± standard deviation.\n")
    print("| demo | metric | each seed | result | baseline | improvement | worst / mean |")
    print("|---|---|---|---|---|---|---|", flush=True)
    unsteady, values, names = [], {}, [name for name in DEMOS if name in args.only]
    for name in names:
        demo = DEMOS[name]
        runs = [trained(name, seed, log_dir, demo.pretrained, args.overrides) for seed in args.seeds]
        values[name] = np.array([run[demo.metric] for run in runs])
        baseline = np.array([run[demo.baseline] if isinstance(demo.baseline, str) else demo.baseline for run in runs])
        gain = values[name] - baseline
        ratio = gain.min() / gain.mean()
        if not (gain.mean() > 0 and ratio >= STEADY):
            unsteady.append(name)
        each = ", ".join(f"{value:.2f}" for value in values[name])
        cells = (name, f"`{demo.metric}`", each, spread(values[name]), spread(baseline), spread(gain), f"{ratio:.2f}")
        print("|", " | ".join(cells), "|", flush=True)
    if args.starts:
        print("\n| demo | from scratch | pre-trained | difference of the pairs [95 %] |\n|---|---|---|---|")
        for name in names:
            if name in OTHER_START:
                demo = DEMOS[name]
                runs = [trained(name, seed, log_dir, not demo.pretrained, args.overrides) for seed in args.seeds]
                other = np.array([run[demo.metric] for run in runs])
                scratch, started = (other, values[name]) if demo.pretrained else (values[name], other)
                print("|", " | ".join((name, spread(scratch), spread(started), interval(started - scratch))), "|")
    if unsteady:
        print(f"\nUnsteady, worst seed below {STEADY} × mean: {', '.join(unsteady)}.")
    return int(bool(unsteady))


if __name__ == "__main__":
    sys.exit(main())
