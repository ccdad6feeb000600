"""What the cells of a study cost: the sizes of their encoders, and an estimate of time and disk before they run."""

from __future__ import annotations

import shutil
import statistics
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch.utils.flop_counter import FlopCounterMode

from deepavfusion.config.compose import instantiate
from deepavfusion.config.overrides import in_demo_data
from deepavfusion.models.deepavfusion import DeepAVFusion
from deepavfusion.runs.directory import CHECKPOINTS
from deepavfusion.study.definition import Run
from deepavfusion.study.plan import Composed, Plan
from deepavfusion.study.results import starts_of
from deepavfusion.study.work import costs_of
from deepavfusion.utils.launch.cores import cores

BYTES = 12  # of a trained parameter in a checkpoint: it, and two moments of AdamW
ROUNDS = 3  # of timing, after one of warm-up
BATCH = {"cpu": 8, "cuda": 64}  # clips that are timed


def encoder_of(cfg: DictConfig) -> DeepAVFusion:
    """The encoder of a config, without memory for its weights."""
    with torch.device("meta"):
        found: DeepAVFusion = instantiate(cfg.model.net)
    return found


def size_of(cfg: DictConfig) -> tuple[float, float]:
    """Millions of parameters of the encoder of a config, and GFLOP for a clip: all tokens of both modalities, matrix
    products and attention, a multiply-add as two."""
    encoder = encoder_of(cfg)
    with FlopCounterMode(display=False) as counter:  # with gradients: without, it asserts that tokens have them
        net: Any = OmegaConf.to_container(cfg.model.net, resolve=True)
        encoder(*_inputs(net, 1, torch.device("meta")))
    return sum(p.numel() for p in encoder.parameters()) / 1e6, counter.get_total_flops() / 1e9


def sizes(plan: Plan) -> dict[str, tuple[float, float]]:
    """Name of a cell -> `size_of` its encoder, with clips as its first stage reads them."""
    found: dict[str, tuple[float, float]] = {}
    known: dict[str, tuple[float, float]] = {}
    for cell in plan.cells:
        cfg = plan.composed(plan.stages_of(cell)[0], cell).cfg
        net = OmegaConf.to_yaml(cfg.model.net, resolve=True)
        if net not in known:
            known[net] = size_of(cfg)
        found[cell.name] = known[net]
    return found


def _inputs(net: dict[str, Any], batch: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    image, audio = net["image"], net["audio"]
    return (
        torch.zeros(batch, image["in_chans"], *image["input_size"], device=device),
        torch.zeros(batch, audio["in_chans"], *audio["input_size"], device=device),
    )


# ---- estimates


@dataclass(frozen=True)
class Estimate:
    """Of a run.

    Args:
        seconds: that it takes alone.
        disk: GB that its checkpoints take.
        measured: whether it is what such a run took here, not a guess from the speed of its encoder.
    """

    seconds: float
    disk: float
    measured: bool


class Estimator:
    """Estimates runs from those of the same stage that are finished, else from the speed of the encoder here.

    Args:
        costs: task, or probe -> times that it takes as long for a training clip as the encoder does forward and
            backward (`train`; 0: it does not train), for an evaluated one (`test`); seconds to read a clip (`read`) and
            to start (`start`); multiples of the encoder's parameters (`weights`); and `clips` and `tested`, how many of
            data are trained on, and tested.
        processes: chains at a time.
        gpus: of a chain; 0: they share the cores.
    """

    def __init__(self, plan: Plan, costs: dict[str, dict[str, Any]], processes: int, gpus: int) -> None:
        self.plan, self.costs = plan, costs
        self.device = torch.device("cuda" if gpus else "cpu")
        self.share = max(1, gpus)
        self.threads = max(1, cores() // processes)
        self.speeds: dict[str, float] = {}
        self.cells = {run.name: chain.cell for chain in plan.chains for run in chain.runs}
        self.taken: dict[str, list[tuple[str, float]]] = {}  # stage -> runs, and their seconds
        for run in plan.runs:
            found = costs_of(run.directory) if run.finished else {}
            if found.get("parts") == 1 == len(starts_of(run)):
                self.taken.setdefault(run.stage.name, []).append((run.name, found["seconds"]))

    def estimate(self, run: Run) -> Estimate:
        """From the other seeds of its cell, else from the other cells, by what each would be thought to take."""
        composed = self._composed(run, run.name)
        taken = self.taken.get(run.stage.name, [])
        same = [seconds for name, seconds in taken if self._composed(run, name).digest == composed.digest]
        if same:
            return Estimate(statistics.median(same), self._disk(run, composed.cfg), True)
        ratios = [seconds / self._seconds(self._composed(run, name)) for name, seconds in taken]
        seconds = self._seconds(composed) * (statistics.median(ratios) if ratios else 1.0)
        return Estimate(seconds, self._disk(run, composed.cfg), bool(ratios))

    def _composed(self, run: Run, name: str) -> Composed:
        """Of a run of the same stage."""
        return self.plan.composed(run.stage, self.cells[name])

    def _seconds(self, composed: Composed) -> float:
        """From the speed of the encoder; a task that does not train only evaluates."""
        cfg = composed.cfg
        kind = "probe" if OmegaConf.select(cfg, "model.frozen") is True else cfg.task
        cost = {**self.costs["default"], **self.costs.get(kind, {})}
        count = self._count("clips", cfg) * OmegaConf.select(cfg, "data.repeats", default=1)
        limit, size = cfg.trainer.get("limit_train_batches"), cfg.data.batch_size
        epochs, steps = (cfg.trainer[key] or 0 for key in ("max_epochs", "max_steps"))
        ends = [epochs * (limit * size if isinstance(limit, int) else count)] if epochs > 0 else []
        trained = min([*ends, *([steps * size] if steps > 0 else [])], default=0)
        speed = self._speed(cfg)
        seconds = trained * (cost["train"] * speed + cost["read"]) if cost["train"] else 0.0
        return float(cost["start"] + seconds + self._count("tested", cfg) * (cost["test"] * speed + cost["read"]))

    def _count(self, of: str, cfg: DictConfig) -> float:
        counts = self.costs[of]["demo" if in_demo_data(cfg.data.root, cfg.paths.data_dir) else "published"]
        return float(counts.get(cfg.data.name, counts["default"]))

    def _speed(self, cfg: DictConfig) -> float:
        """Seconds that the encoder takes for a clip, forward and backward, with a chain's share of this machine."""
        key = OmegaConf.to_yaml(cfg.model.net, resolve=True)
        if key not in self.speeds:
            with ProcessPoolExecutor(1, get_context("spawn")) if self.device.type == "cuda" else nullcontext() as child:
                given: Any = (OmegaConf.to_container(cfg.model.net, resolve=True), self.device.type, self.threads)
                # On a GPU in a process of its own: this one stays, and a GPU may allow one at a time.
                taken = child.submit(_timed, *given).result() if child else _timed(*given)
            self.speeds[key] = taken / self.share
        return self.speeds[key]

    def _disk(self, run: Run, cfg: DictConfig) -> float:
        """What the checkpoints of a run take, beyond those that it has already."""
        cost = {**self.costs["default"], **self.costs.get(cfg.task, {})}
        if not cost["train"]:
            return 0.0
        parameters = sum(p.numel() for p in encoder_of(cfg).parameters()) * cost["weights"]
        kept, each = cfg.callbacks.checkpoints, BYTES / 3 if OmegaConf.select(cfg, "model.frozen") is True else BYTES
        count = kept.keep + len(kept.milestones) + ("best" in cfg.callbacks)
        has = sum(path.stat().st_size for path in (run.directory / CHECKPOINTS).glob("*") if not path.is_symlink())
        return max(0.0, float(count * parameters * each - has) / 1e9)


def _timed(net: dict[str, Any], device: str, threads: int) -> float:
    """Seconds that an encoder takes for a clip, forward and backward; in bf16 on a GPU."""
    on, before = torch.device(device), torch.get_num_threads()
    clock = time.perf_counter if threads > 1 or device == "cuda" else time.process_time  # others may use the CPU
    torch.set_num_threads(threads)
    times, batch = [], BATCH[device]
    encoder = instantiate(OmegaConf.create(net)).to(on)
    inputs = _inputs(net, batch, on)
    try:
        for _ in range(ROUNDS + 1):
            begin = clock()
            with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
                found = encoder(*inputs)
                total = found.image.sum() + found.audio.sum() + found.fusion.sum()
            total.backward()
            if device == "cuda":
                torch.cuda.synchronize()
            times.append(clock() - begin)
    finally:
        torch.set_num_threads(before)
    return statistics.median(times[1:]) / batch


def free_gb(folder: Path) -> float:
    """Of the disk that a folder lies on, which need not exist yet."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free / 1e9


def shares(plan: Plan, seconds: Mapping[str, float]) -> list[float]:
    """Seconds that each chain takes for the runs that no chain before it does.

    Args:
        seconds: name -> that a run takes; of those that are left.
    """
    seen: set[str] = set()
    found = []
    for chain in plan.chains:
        mine = [run.name for run in chain.runs if run.name not in seen]
        seen.update(mine)
        found.append(sum(seconds.get(name, 0.0) for name in mine))
    return found


def room_of(plan: Plan, disk: Mapping[str, float], processes: int, keep: bool) -> float:
    """GB that the checkpoints of the runs take at most at a time.

    Args:
        disk: name -> GB of a run; of those that are left.
        processes: chains at a time.
        keep: whether checkpoints are kept that no run starts from any more.
    """
    if keep:
        return sum(disk.values())
    of = Counter(run.name for chain in plan.chains for run in chain.runs)
    shared = sum(size for name, size in disk.items() if of[name] > 1)
    own = [sum(disk.get(run.name, 0.0) for run in chain.runs if of[run.name] == 1) for chain in plan.chains]
    return shared + sum(sorted(own)[-processes:])


def makespan(plan: Plan, seconds: Mapping[str, float], processes: int) -> float:
    """Time until all chains are worked off as `execute.Executor` does: several at a time, in their order, but for those
    that would wait for another one's run.

    Args:
        seconds: name -> that a run takes; of those that are left.
    """
    free, ends = [0.0] * processes, dict[str, float]()
    waiting = [[run.name for run in chain.runs if run.name in seconds] for chain in plan.chains]
    while waiting := [chain for chain in waiting if chain]:
        place = min(range(processes), key=free.__getitem__)
        now = free[place]
        left = [[name for name in chain if ends.get(name, now + 1) > now] for chain in waiting]
        number = next((n for n, chain in enumerate(left) if not chain or chain[0] not in ends), None)
        if number is None:  # all of them would wait
            free[place] = min(ends[chain[0]] for chain in left)
            continue
        for name in left[number]:
            now = max(now, ends[name]) if name in ends else now + seconds[name]
            ends.setdefault(name, now)
        free[place] = now
        del waiting[number]
    return max(free)
