"""One run that is killed again and again, and one that is not: do they end the same? `make chaos KILLS=25`.

The run is `src/train.py` on generated clips, with decoding workers, checkpoints every second step, and a validation an
epoch. It is killed with SIGKILL at random moments: while it starts, in a step, while a checkpoint is written, in
validation; with two processes, either of them, and then the other has to end by itself. The same command starts it
again. At the end everything is compared: weights, optimizer and schedule bit by bit, the clips, windows and losses of
every step (of those that were done twice, both times), all curves in TensorBoard, and the final metrics without
throughput. Exit status 1: something differs.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import psutil
import torch
from lightning import Callback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

REPOSITORY = Path(__file__).resolve().parents[1]
STEPS_A_KILL = 4  # that are waited for, at most
STEP = 0.05  # s, what a step takes at least: on a fast machine the run would be over before it is killed
LIMIT = 300.0  # s that anything may take
END_WITHIN = 60.0  # s in which a process whose companion was killed ends
TIMED = ("clips_per_second",)  # what is never the same twice
TINY = [
    *("experiment=pretrain_vggsound", "scale=demo", "trainer.check_val_every_n_epoch=1", "trainer.log_every_n_steps=1"),
    *("trainer.enable_progress_bar=false", "~callbacks.progress", "~callbacks.model_summary", "~callbacks.projector"),
    *("model.warmup_epochs=1", "model.net.image.embed_dim=32", "model.net.image.depth=2"),
    *("model.net.image.num_heads=2", "model.decoder_embed_dim=32", "model.decoder_depth=1"),
    *("model.decoder_num_heads=2", "data.batch_size=2", "data.num_workers=2", "data.image_size=32"),
    *("callbacks.checkpoints.every_n_train_steps=2", "run.name=run", "run.latest=false", "validate_before=false"),
    *("data.gallery_clips=0", "callbacks.knn.k=1"),
]


class Recorder(Callback):
    """Notes the clips, windows and loss of every step of a process.

    Args:
        path: of the notes; the number of the process is added.
        slow: s that a step takes at least, until there is a file `<path>.fast`.
    """

    def __init__(self, path: str, slow: float = STEP) -> None:
        self.path, self.slow = path, slow

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        row = [trainer.current_epoch, batch_idx, batch.id, batch.window_start.tolist(), outputs["loss"].item().hex()]
        with open(f"{self.path}.{trainer.global_rank}", "a") as file:
            file.write(json.dumps(row) + "\n")
        time.sleep(self.slow if self.slow <= STEP or not os.path.exists(f"{self.path}.fast") else STEP)


@dataclass
class Runs:
    """Starts the run in a folder, and kills it.

    Args:
        root: of the data.
        epochs: that it takes.
        processes: that train.
        more: overrides.
        trainer: of one process.
        start: starts a command with a folder for its output; returns its process id.
    """

    root: Path
    epochs: int
    processes: int = 1
    more: Sequence[str] = ()
    trainer: str = "cpu"
    start: Callable[[list[str], Path], int] = field(default_factory=lambda: start_command)

    @classmethod
    def for_kills(cls, root: Path, kills: int, processes: int = 1, **more: Any) -> Runs:
        """A run over the 16 clips of `make_data` that is long enough: a kill may come some steps later than meant."""
        steps = 16 // 2 // processes  # an epoch
        return cls(root, max(2, -(-2 * STEPS_A_KILL * (kills + 1) // steps)), processes, **more)

    def command(self, folder: Path) -> list[str]:
        trainer = self.trainer if self.processes == 1 else "ddp_sim"
        found = [str(REPOSITORY / "src/train.py"), *TINY, f"trainer={trainer}", f"trainer.max_epochs={self.epochs}"]
        found += [f"data.root={self.root}", f"paths.log_dir={folder}", *self.more]
        return [*found, "+callbacks.recorder._target_=chaos.Recorder", f"+callbacks.recorder.path={folder}/steps"]

    def once(self, folder: Path) -> int:
        """Let it run to its end; its exit status."""
        folder.mkdir(parents=True, exist_ok=True)
        return wait_for(self.start(self.command(folder), folder))

    def killed(self, folder: Path, chance: random.Random) -> str:
        """Start it and kill it; what it was killed in.

        Args:
            folder: its logs.
            chance: draws the moment.
        """
        folder.mkdir(parents=True, exist_ok=True)
        pid = self.start(self.command(folder), folder)
        kind = chance.choice(("start", "step", "step", "step", "checkpoint", "checkpoint"))
        begin, before, steps = time.monotonic(), self.steps(folder), chance.randrange(STEPS_A_KILL)
        pause = chance.uniform(0, 6.0 if kind == "start" else 3 * STEP)
        while kind != "start" and self.steps(folder) < before + steps + (kind == "step"):
            assert ended(pid) is None, f"it ended by itself with {ended(pid)}; see {folder}/output.txt"
            assert time.monotonic() - begin < LIMIT, f"no step in {LIMIT:g} s; see {folder}/output.txt"
            time.sleep(0.005)
        if kind == "checkpoint":
            while not list(folder.glob("*/runs/run/checkpoints/*.partial")) and ended(pid) is None:
                assert time.monotonic() - begin < LIMIT, f"no checkpoint in {LIMIT:g} s; see {folder}/output.txt"
        else:
            # A start ends with its first step: where all is imported, the whole run may take less than the pause.
            late = time.monotonic() + pause
            while time.monotonic() < late and (kind == "step" or self.steps(folder) == before):
                time.sleep(0.005)
        companions = [child for child in children(pid) if trains(child)]
        victim = chance.choice([pid, *(child.pid for child in companions)])
        os.kill(victim, signal.SIGKILL)
        if victim == pid:
            wait_for(pid)
            _, alive = psutil.wait_procs(companions, END_WITHIN)
            assert not alive, f"process 1 was still there {END_WITHIN:g} s after the first one was killed"
            return kind
        begin = time.monotonic()
        status = wait_for(pid)
        took = time.monotonic() - begin
        assert took < END_WITHIN, f"the first process was still there {took:.0f} s after the other one was killed"
        assert status in (75, 0), f"it ended with {status}, not 75, after its other process was killed"
        return f"{kind} of process 1, {took:.1f} s"

    def steps(self, folder: Path) -> int:
        path = folder / "steps.0"
        return path.read_text().count("\n") if path.exists() else 0


def start_command(command: list[str], folder: Path) -> int:
    found = os.pathsep.join([str(REPOSITORY / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": found, "OMP_NUM_THREADS": "1"}
    with (folder / "output.txt").open("a") as output:
        return subprocess.Popen(
            [sys.executable, *command], cwd=REPOSITORY, env=environment, stdout=output, stderr=output
        ).pid


def start_forked(command: list[str], folder: Path, fault: Callable[[], None] = lambda: None) -> int:
    """The same in a copy of this process, which has imported everything: for tests, which have little time.

    Args:
        command: script and words.
        folder: of output.txt.
        fault: called before the script.
    """
    pid = os.fork()
    if pid:
        return pid
    status: Any = 1
    try:
        os.setsid()
        output = os.open(folder / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(output, stream)
        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__ = os.fdopen(1, "w"), os.fdopen(2, "w")
        os.chdir(REPOSITORY)
        # The threads of OpenMP do not survive a fork, but it believes they do: a run with two would hang, or crash.
        torch.set_num_threads(1)
        torch.set_num_threads = lambda _: None
        os.environ.pop("DEEPAVFUSION_RUN_DIR", None)
        keep_fork_server()
        sys.argv = command
        fault()
        from deepavfusion.cli import entry

        entry.run(importlib.import_module(Path(command[0]).stem).main)
        status = 0
    except SystemExit as end:
        status = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(OSError, AttributeError):
            for stream in (sys.stderr, sys.stdout):
                stream.flush()
        os._exit(status)


def keep_fork_server() -> None:
    """That of the copied process serves this one, too, though it is no child, for which multiprocessing would look."""
    if forkserver._forkserver._forkserver_pid is not None:
        forkserver.ensure_running = forkserver._forkserver.ensure_running = lambda: None


STATUS: dict[int, int] = {}


def ended(pid: int) -> int | None:
    """Exit status of a child, negative for a signal; None: it runs."""
    if pid not in STATUS:
        found, status = os.waitpid(pid, os.WNOHANG)
        if not found:
            return None
        STATUS[pid] = os.waitstatus_to_exitcode(status)
    return STATUS[pid]


def wait_for(pid: int) -> int:
    begin = time.monotonic()
    while (status := ended(pid)) is None:
        if time.monotonic() - begin > LIMIT:
            os.kill(pid, signal.SIGKILL)
            raise AssertionError(f"it did not end within {LIMIT:g} s")
        time.sleep(0.01)
    del STATUS[pid]  # the system may give the number again
    return status


def trains(process: psutil.Process) -> bool:
    """Whether it is another process that Lightning has started, not one that decodes."""
    try:
        return "LOCAL_RANK" in process.environ()
    except psutil.Error:  # it has ended
        return False


def children(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children()
    except psutil.NoSuchProcess:
        return []


# ---- what is compared


def differences(one: Path, other: Path) -> list[str]:
    """What two folders of logs differ in, a line each; none: the runs ended the same."""
    runs = [next(folder.glob("*/runs/run")) for folder in (one, other)]
    found = steps_differ(one, other)
    checkpoints = [torch.load(run / "checkpoints/last.ckpt", weights_only=True) for run in runs]
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch", "loops"):
        found += unequal(key, *(checkpoint[key] for checkpoint in checkpoints))
    metrics = [json.loads((run / "metrics.json").read_text()) for run in runs]
    curves = [scalars(run) for run in runs]
    for what, (mine, theirs) in (("metric", metrics), ("curve", curves)):
        for name in sorted(mine.keys() | theirs.keys()):
            if name not in TIMED and mine.get(name) != theirs.get(name):
                found.append(f"{what} {name}: {mine.get(name)} and {theirs.get(name)}"[:400])
    return found


def steps_differ(one: Path, other: Path) -> list[str]:
    """Clips, windows and losses of the steps; a step that was done again has to be the same again."""
    found = []
    for path in sorted(one.glob("steps.*")):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        expected = {(row[0], row[1]): row for row in rows}
        seen = set()
        for line in (other / path.name).read_text().splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue  # cut while it was written
            seen.add((row[0], row[1]))
            if row != expected[row[0], row[1]]:
                found.append(f"step {row[:2]} of process {path.suffix[1:]}: {expected[row[0], row[1]]} and {row}")
        found += [f"step {missing} was not done" for missing in sorted(expected.keys() - seen)]
    return found


def unequal(name: str, one: Any, other: Any) -> list[str]:
    """Where two nests of containers, values and tensors differ; times do not count."""
    if isinstance(one, torch.Tensor):
        return [] if torch.equal(one, other) else [f"{name}: tensors differ"]
    if isinstance(one, dict):
        if one.keys() != other.keys():
            return [f"{name}: {sorted(map(str, one.keys() ^ other.keys()))} on one side only"]
        return [line for key in one for line in unequal(f"{name}.{key}", one[key], other[key])]
    if isinstance(one, (list, tuple)) and len(one) == len(other):
        return [line for n, pair in enumerate(zip(one, other, strict=True)) for line in unequal(f"{name}.{n}", *pair)]
    return [] if one == other else [f"{name}: {one} and {other}"]


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it tells what it drops
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def make_data(folder: Path) -> Path:
    from deepavfusion.demo import demo

    counts = demo.Counts(vggsound_train=2, vggsound_test=1)
    return demo.ensure(folder, ["vggsound"], workers=1, counts=counts)[0]


def pack(root: Path, target: Path, start: Callable[[list[str], Path], int]) -> Path:
    command = [str(REPOSITORY / "src/prepare.py"), "command=pack", "data=vggsound", f"data.root={root}"]
    assert not wait_for(start([*command, f"output={target}", "workers=1"], target.parent))
    return target


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--seed", type=int, default=None, help="of the moments; default: another one each time")
    parser.add_argument("--packed", action="store_true", help="packed clips")
    parser.add_argument("--processes", type=int, default=1, help="that train (2: trainer=ddp_sim)")
    parser.add_argument("--trainer", default="cpu", help="of one process; on GPUs sums may differ in the last bit")
    parser.add_argument("overrides", nargs="*", help="of the run")
    given = parser.parse_args()
    seed = given.seed if given.seed is not None else random.randrange(10**6)
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="chaos_") as name:
        folder = Path(name)
        root = make_data(folder / "data")
        if given.packed:
            root = pack(root, folder / "packed", start_command)
        runs = Runs.for_kills(root, given.kills, given.processes, more=given.overrides, trainer=given.trainer)
        print(f"seed {seed}: {runs.epochs} epochs, undisturbed …", flush=True)
        if runs.once(folder / "whole"):
            print((folder / "whole/output.txt").read_text()[-3000:])
            return 1
        for number in range(1, given.kills + 1):
            kind = runs.killed(folder / "killed", chance)
            print(f"kill {number} of {given.kills}: {kind}; {runs.steps(folder / 'killed')} steps done", flush=True)
        if status := runs.once(folder / "killed"):
            print((folder / "killed/output.txt").read_text()[-3000:])
            print(f"the last start ended with status {status}")
            return 1
        found = differences(folder / "whole", folder / "killed")
        print("\n".join(found) or f"{given.kills} kills: weights, steps, curves and metrics are identical")
        return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
