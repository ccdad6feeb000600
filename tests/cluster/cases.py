"""Jobs of docs/scaling.md on the SLURM of two nodes that slurm.sh starts, disturbed in every way that SLURM has.

A run that continues has to end as one that nobody disturbed: weights, optimizer, steps, curves and metrics are compared
with those of two processes without SLURM, as in tests/chaos.py. Scripts and commands are those of the page; options in
front and words behind them make them small and run them on CPUs, as the page says.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import psutil

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY / "tests"), str(REPOSITORY / "src")]
import chaos  # noqa: E402
from helpers.studies import results, write_study  # noqa: E402

PAGE = REPOSITORY / "docs" / "scaling.md"
EPOCHS = 4  # of 4 steps in two processes
SLOW = 2.0  # s a step takes at least until the job was disturbed
LIMIT = 400.0  # s that anything may take
END_WITHIN = 60.0  # s in which a process whose companion was killed ends
SILENT = 45.0  # s after which a rank that gives no sign of life is taken for dead
SETTLED = 65.0  # s
OVER = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY", "DEADLINE"}
CORES = min(os.cpu_count() or 1, 4)  # of a node, as in slurm.sh
TWO_NODES = ["--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=1", "--cpus-per-task=1", "--time=10"]
ON_CPU = ["trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.sync_batchnorm=false"]
CASES: dict[str, Callable[[Cluster, Path], Ended]] = {}


@dataclass
class Ended:
    """A case's last job, and how it ended."""

    job: str
    how: str


def case(function: Callable[[Cluster, Path], Ended]) -> Callable[[Cluster, Path], Ended]:
    CASES[function.__name__] = function
    return function


def page_blocks() -> dict[str, str]:
    """The marked scripts and commands of the page."""
    found = re.findall(r"<!-- test-cluster: (\S+) -->\n```bash\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return dict(found)


def until(holds: Callable[[], bool], what: str, limit: float = LIMIT) -> float:
    """Wait; how long it took, s."""
    begin = time.monotonic()
    while not holds():
        assert time.monotonic() - begin < limit, f"not within {limit:g} s: {what}"
        time.sleep(0.1)
    return time.monotonic() - begin


def command(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


class Job:
    """A job that was submitted."""

    def __init__(self, number: str) -> None:
        self.number = number

    def about(self) -> dict[str, str]:
        line = command("scontrol", "show", "job", "-o", self.number).splitlines()[0]
        return dict(word.split("=", 1) for word in line.split() if "=" in word)

    def is_over(self) -> bool:
        return self.about()["JobState"] in OVER

    def is_requeued(self) -> None:
        """Wait until the job is back in the queue, or runs again."""
        until(lambda: self.about()["Restarts"] == "1" or self.is_over(), f"job {self.number} is requeued")
        about = self.about()
        assert about["Restarts"] == "1", f"job {self.number} ended as {about['JobState']} {about['ExitCode']}"

    def end(self, how: str = "COMPLETED 0:0", restarts: int = 0, limit: float = LIMIT) -> Ended:
        """Wait for its end, which has to be this one."""
        until(self.is_over, f"the end of job {self.number}, now {self.about()['JobState']}", limit)
        about = self.about()
        found = f"{about['JobState']} {about['ExitCode']}"
        assert found == how, f"job {self.number} ended as {found}, expected {how}"
        assert int(about["Restarts"]) == restarts, f"job {self.number} was started again {about['Restarts']} times"
        return Ended(self.number, found + (f", {restarts} restart{'s'[: restarts > 1]}" if restarts else ""))

    def task(self, rank: int) -> psutil.Process | None:
        """The process of a rank."""
        for process in psutil.process_iter():
            try:
                if "src/train.py" not in " ".join(process.cmdline()):
                    continue
                environment, parent = process.environ(), process.parent()
                is_worker = parent is not None and "slurmstepd" not in parent.name()
            except psutil.Error:
                continue
            mine = (environment.get("SLURM_JOB_ID"), environment.get("SLURM_PROCID")) == (self.number, str(rank))
            if mine and not is_worker:
                return process
        return None


class Cluster:
    """Submits jobs of the page.

    Args:
        folder: for everything that is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.blocks = page_blocks()
        path = os.pathsep.join(filter(None, [str(REPOSITORY / "tests"), os.environ.get("PYTHONPATH")]))
        os.environ |= {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}

    @cached_property
    def runs(self) -> chaos.Runs:
        return chaos.Runs(chaos.make_data(self.folder / "data"), EPOCHS, processes=2)

    @cached_property
    def whole(self) -> Path:
        """Logs of the run that nobody disturbs, in two processes of this machine."""
        folder = self.folder / "whole"
        assert self.runs.once(folder) == 0, (folder / "output.txt").read_text()[-3000:]
        return folder

    def words(self, folder: Path, named: bool = True, slow: float = SLOW) -> list[str]:
        """What makes a run of the page small, and writes it to a folder."""
        _, *found = self.runs.command(folder)
        drop = ("trainer=", *(() if named else ("run.name=",)))
        found = [word for word in found if not word.startswith(drop)]
        # No checkpoint within an epoch but those that a disturbance asks for.
        return [*found, *ON_CPU, f"+callbacks.recorder.slow={slow}", "callbacks.checkpoints.every_n_train_steps=null"]

    def submit(
        self, folder: Path, options: Sequence[str] = (), script: str = "train.sbatch", words: Sequence[str] = ()
    ) -> Job:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / script).write_text(self.blocks[script].replace("<packed>", "none"))
        words = words or self.words(folder)
        options = [*TWO_NODES, f"--output={folder}/output.txt", *options]
        done = subprocess.run(
            ["sbatch", "--parsable", *options, str(folder / script), *words],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return Job(done.stdout.strip())

    def here(self, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
        folder.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, timeout=LIMIT)
        (folder.parent / f"{folder.name}.txt").write_text(done.stdout + done.stderr)
        return done

    def after_steps(self, folder: Path) -> None:
        """Wait until a run is in the third of four steps of its first epoch."""
        until(lambda: self.runs.steps(folder) >= 2, "two steps")

    def has_saved(self, folder: Path) -> None:
        """It wrote a checkpoint after the step in which it was disturbed."""
        text = (folder / "output.txt").read_text()
        found = re.search(r"to continue from step_(\d+)", text)
        assert found is not None, text[-2000:]
        assert int(found[1]) == 3, f"the checkpoint is of step {int(found[1])}"

    def is_whole(self, folder: Path) -> None:
        """One run directory, both ranks, and all as undisturbed."""
        runs = list(folder.glob("*/runs/*"))
        assert len(runs) == 1, f"run directories: {runs}"
        found = chaos.differences(self.whole, folder)
        assert not found, "\n".join(found[:20])


def hurry(folder: Path) -> None:
    """The run was disturbed: its steps need not be slow any more."""
    (folder / "steps.fast").touch()


def ends_whole(cluster: Cluster, folder: Path, job: Job, restarts: int = 0) -> Ended:
    """The rest of a run that was disturbed: it ends as an undisturbed one."""
    hurry(folder)
    ended = job.end(restarts=restarts)
    cluster.is_whole(folder)
    return ended


# ---- jobs that continue


@case
def two_nodes(cluster: Cluster, folder: Path) -> Ended:
    """A node and a rank each: one run, with the weights of two local processes."""
    ended = cluster.submit(folder, words=cluster.words(folder, slow=0)).end()
    cluster.is_whole(folder)
    return ended


def disturbed(cluster: Cluster, folder: Path, disturb: Callable[[Job], None], saves: bool = True) -> Ended:
    job = cluster.submit(folder)
    cluster.after_steps(folder)
    disturb(job)
    job.is_requeued()
    ended = ends_whole(cluster, folder, job, restarts=1)
    if saves:
        cluster.has_saved(folder)
    return ended


@case
def usr1(cluster: Cluster, folder: Path) -> Ended:
    return disturbed(cluster, folder, lambda job: command("scancel", "--signal=USR1", job.number))


@case
def requeue(cluster: Cluster, folder: Path) -> Ended:
    return disturbed(cluster, folder, lambda job: command("scontrol", "requeue", job.number))


@case
def preempted(cluster: Cluster, folder: Path) -> Ended:
    """A job of a higher partition takes both nodes."""

    def take(job: Job) -> None:
        command("sbatch", "--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")

    return disturbed(cluster, folder, take)


@case
def node_lost(cluster: Cluster, folder: Path) -> Ended:
    def lose(job: Job) -> None:
        command("scontrol", "update", "nodename=test-n2", "state=down", "reason=test")
        until(lambda: job.about()["JobState"] != "RUNNING", f"job {job.number} is taken off the node")
        subprocess.run(["scontrol", "update", "nodename=test-n2", "state=resume"], capture_output=True)  # or it is back

    return disturbed(cluster, folder, lose, saves=False)


@case
def time_limit(cluster: Cluster, folder: Path) -> Ended:
    """Of two minutes; the signal comes one minute before, or up to a minute earlier."""
    words = cluster.words(folder, slow=8)
    job = cluster.submit(folder, ["--time=2", "--signal=USR1@60"], words=words)
    job.is_requeued()
    return ends_whole(cluster, folder, job, restarts=1)


@case
def usr1_while_starting(cluster: Cluster, folder: Path) -> Ended:
    """Before the run has a directory: it starts again."""
    job = cluster.submit(folder)
    until(lambda: job.task(0) is not None and job.task(1) is not None, "both tasks")
    time.sleep(1)
    assert not list(folder.glob("*/runs/*"))
    command("scancel", "--signal=USR1", job.number)
    return ends_whole(cluster, folder, job, restarts=1)


@case
def suspended(cluster: Cluster, folder: Path) -> Ended:
    """Longer than a rank may be silent: all of them stand still, so none is taken for dead."""
    job = cluster.submit(folder)
    cluster.after_steps(folder)
    command("scontrol", "suspend", job.number)
    time.sleep(SILENT + 10)
    command("scontrol", "resume", job.number)
    return ends_whole(cluster, folder, job)


@case
def killed(cluster: Cluster, folder: Path) -> Ended:
    """A rank is killed: the other one ends soon, the job fails, and continues when it is requeued."""
    job = cluster.submit(folder)
    cluster.after_steps(folder)
    first, second = job.task(0), job.task(1)
    assert first is not None
    assert second is not None
    second.kill()
    until(lambda: not first.is_running(), "the first rank ends after the second was killed", END_WITHIN)
    until(job.is_over, "the job ends")
    assert job.about()["JobState"] == "FAILED", job.about()["JobState"]
    # On a busy machine SLURM repeats, a minute later, a request to end the step, which would meet the next start: on
    # others a requeued job waits for two minutes.
    time.sleep(SETTLED)
    command("scontrol", "requeue", job.number)
    until(lambda: not job.is_over(), f"job {job.number} is requeued")
    return ends_whole(cluster, folder, job, restarts=1)


@case
def no_requeue(cluster: Cluster, folder: Path) -> Ended:
    """Where requeueing is not allowed, the job ends with 75, and the same command continues the run."""
    job = cluster.submit(folder, ["--no-requeue"])
    cluster.after_steps(folder)
    command("scancel", "--signal=USR1", job.number)
    ended = job.end("FAILED 75:0")
    cluster.has_saved(folder)
    assert "could not be requeued" in (folder / "output.txt").read_text()
    hurry(folder)
    cluster.submit(folder, ["--no-requeue"]).end()
    cluster.is_whole(folder)
    return ended


@case
def cancelled(cluster: Cluster, folder: Path) -> Ended:
    """It saves within SLURM's 30 s; the same command continues the run."""
    job = cluster.submit(folder)
    cluster.after_steps(folder)
    command("scancel", job.number)
    until(job.is_over, f"job {job.number} ends")
    until(lambda: job.task(0) is None, "its first rank ends", END_WITHIN)
    ended = Ended(job.number, job.about()["JobState"])
    assert ended.how == "CANCELLED", ended.how
    cluster.has_saved(folder)
    hurry(folder)
    cluster.submit(folder).end()
    cluster.is_whole(folder)
    return ended


@case
def array(cluster: Cluster, folder: Path) -> Ended:
    """Two seeds, of which one is requeued: a directory each."""
    words = cluster.words(folder, named=False)
    words = [word for word in words if not word.startswith(("experiment=", "+callbacks.recorder"))]
    options = ["--array=0-1", "--nodes=1", "--output=/dev/null", f"--output={folder}/%a.txt"]
    job = cluster.submit(folder, options, "sweep.sbatch", [*words, "experiment=pretrain_vggsound"])
    runs = [folder / "pretrain" / "runs" / f"seed{seed}" for seed in range(2)]
    one = Job(f"{job.number}_1")
    until(lambda: bool(list(runs[1].glob("checkpoints/step_*"))), "a checkpoint of the second run")
    command("scancel", "--signal=USR1", one.number)
    Job(f"{job.number}_0").end()
    ended = one.end(restarts=1)
    assert sorted(folder.glob("*/runs/*")) == runs
    for seed, run in enumerate(runs):
        assert json.loads((run / "provenance.json").read_text())["starts"][-1]["seed"] == seed
        assert (run / "metrics.json").exists()
    return ended


@case
def launcher(cluster: Cluster, folder: Path) -> Ended:
    """The command that submits by itself; its job is requeued once."""
    words = shlex.split(cluster.blocks["launcher"].replace("\\\n", " ").replace("<packed>", "none"))
    small = [f"hydra.launcher.{word}" for word in ("nodes=2", "tasks_per_node=1", "gpus_per_node=1", "cpus_per_task=1")]
    folder.mkdir(parents=True)
    with (folder / "launcher.txt").open("w") as output:
        process = subprocess.Popen(
            [*words, *small, f"hydra.sweep.dir={folder}/multirun", *cluster.words(folder)],
            cwd=REPOSITORY,
            stdout=output,
            stderr=output,
        )
    until(lambda: cluster.runs.steps(folder) >= 2 or process.poll() is not None, "two steps")
    assert process.poll() is None, (folder / "launcher.txt").read_text()[-2000:]
    number = command("squeue", "-h", "--name=deepavfusion", "-o", "%i").split()[-1]
    command("scancel", "--signal=USR1", number)
    ended = ends_whole(cluster, folder, Job(number), restarts=1)
    assert process.wait(LIMIT) == 0, (folder / "launcher.txt").read_text()[-2000:]
    (script,) = folder.glob("multirun/.submitit/*/*_submission.sh")
    for words in ("--requeue", "--signal=USR1@", "--kill-on-bad-exit", "SRUN_CPUS_PER_TASK"):
        assert words in script.read_text(), f"{words} is not in the script that was submitted"
    return ended


@case
def study(cluster: Cluster, folder: Path) -> Ended:
    """A job for each chain, of which one goes back into the queue: the results of a study that nobody disturbs."""
    write_study(folder, cluster.runs.root)
    words = [sys.executable, "src/study.py", "study=mine", f"--config-dir={folder}"]
    jobs = ["-m", "hydra/launcher=slurm", "study.only=0,1", f"paths.log_dir={folder}/jobs"]
    small = [f"hydra.launcher.{word}" for word in ("gpus_per_node=1", "cpus_per_task=1", "timeout_min=10")]
    with (folder / "jobs.txt").open("w") as output:
        process = subprocess.Popen(
            [*words, *jobs, *small, f"hydra.sweep.dir={folder}/multirun"], cwd=REPOSITORY, stdout=output, stderr=output
        )
    saved = folder.glob
    until(lambda: any(saved("jobs/**/step_*.ckpt")) or process.poll() is not None, "a checkpoint")
    assert process.poll() is None, (folder / "jobs.txt").read_text()[-2000:]
    number = command("squeue", "-h", "--name=deepavfusion", "-t", "R", "-o", "%A").split()[0]
    command("scancel", "--signal=USR1", number)
    ended = Job(number).end(restarts=1)
    assert process.wait(LIMIT) == 0, (folder / "jobs.txt").read_text()[-2000:]
    done = cluster.here(folder / "whole", *words, f"paths.log_dir={folder}/whole")
    assert done.returncode == 0, done.stderr[-2000:]
    assert results(folder / "jobs") == results(folder / "whole")
    return ended


# ---- commands that must not start


def refused(done: subprocess.CompletedProcess[str], folder: Path) -> Ended:
    """Exit status 2, one sentence, nothing written."""
    assert done.returncode == 2, f"status {done.returncode}:\n{done.stdout[-1000:]}{done.stderr[-2000:]}"
    assert "Traceback" not in done.stderr
    sentences = [line for line in done.stderr.splitlines() if line and not line.startswith("srun: ")]
    text = " ".join(sentences)
    assert text.count("rror") <= 1, text
    assert len(text) < 900, text
    assert not list(folder.iterdir()), list(folder.iterdir())
    return Ended("–", "status 2")


@case
def two_tasks_one_device(cluster: Cluster, folder: Path) -> Ended:
    words = [*cluster.words(folder, slow=0), "trainer=cpu"]
    return refused(cluster.here(folder, "srun", "--nodes=1", "--ntasks=2", *TRAIN, *words), folder)


# ---- how it starts


@case
def no_tasks_per_node(cluster: Cluster, folder: Path) -> Ended:
    """Two tasks that SLURM distributed by itself are two ranks of one run."""
    words = [*cluster.words(folder, slow=0), "trainer=slurm"]
    done = cluster.here(folder, "srun", "--ntasks=2", *TRAIN, *words)
    assert done.returncode == 0, done.stderr[-2000:]
    cluster.is_whole(folder)
    return Ended("–", "status 0")


@case
def interactive(cluster: Cluster, folder: Path) -> Ended:
    """In a shell of salloc, a run is alone."""
    words = [*cluster.words(folder, slow=0), "trainer=cpu"]
    options = ["--nodes=1", "--ntasks-per-node=2", "--gpus-per-node=1", "--cpus-per-task=1"]
    salloc = shlex.split(cluster.blocks["salloc"])
    done = cluster.here(folder, *salloc, *options, *TRAIN, *words)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (folder / "steps.0").exists()
    assert not (folder / "steps.1").exists()
    return Ended("–", "status 0")


def bound(cluster: Cluster, folder: Path, options: Sequence[str], workers: int) -> Ended:
    words = [word for word in cluster.words(folder, slow=0) if not word.startswith("data.num_workers")]
    ended = cluster.submit(folder, options, words=words).end()
    found = re.search(r"(\d+) decoding workers? each", (folder / "output.txt").read_text())
    assert found is not None
    assert int(found[1]) == workers, f"{found[0]}, expected {workers}: as many as the task has cores"
    cluster.is_whole(folder)
    return ended


@case
def one_node(cluster: Cluster, folder: Path) -> Ended:
    """Two ranks of a node, each bound to its half of the cores."""
    half = CORES // 2
    return bound(cluster, folder, ["--nodes=1", "--ntasks-per-node=2", f"--cpus-per-task={half}"], half)


@case
def all_cores(cluster: Cluster, folder: Path) -> Ended:
    """A rank has all cores of its node."""
    return bound(cluster, folder, [f"--cpus-per-task={CORES}"], CORES)


@case
def torchrun(cluster: Cluster, folder: Path) -> Ended:
    """Two launchers of one process each, as on two machines."""
    words = shlex.split(cluster.blocks["torchrun"].replace("\\\n", " ").replace("<packed>", "none"))
    words = [word.replace("<host>", "127.0.0.1") for word in words]
    script = words.index("src/train.py")
    small = ["--nnodes=2", "--nproc-per-node=1"]
    words = [*words[:script], *small, *words[script:], *cluster.words(folder, slow=0)]
    folder.mkdir(parents=True)
    with (folder / "output.txt").open("w") as output:
        both = [subprocess.Popen(words, cwd=REPOSITORY, stdout=output, stderr=output) for _ in range(2)]
        statuses = [process.wait(LIMIT) for process in both]
    assert statuses == [0, 0], statuses
    cluster.is_whole(folder)
    return Ended("–", "status 0")


TRAIN = ["python", "src/train.py"]


def run(cluster: Cluster, name: str) -> tuple[Ended | None, str, float]:
    """A case; how it ended, why it failed, and how long it took."""
    folder, begin = cluster.folder / name, time.monotonic()
    failure, ended = "", None
    try:
        ended = CASES[name](cluster, folder)
    except Exception as error:
        failure = f"{type(error).__name__}: {error}"
        if not isinstance(error, AssertionError):
            traceback.print_exc()
        for path in (folder / "output.txt", folder.parent / f"{name}.txt"):
            if path.exists():
                print(f"---- {path.name}\n{path.read_text(errors='replace')[-3000:]}\n----", flush=True)
    subprocess.run(["scancel", "--signal=KILL", "--full", "--user=root"], capture_output=True)
    subprocess.run(["scancel", "--user=root"], capture_output=True)
    return ended, failure, time.monotonic() - begin


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("state", nargs="?", help="folder of the cluster, given by slurm.sh")
    parser.add_argument("cases", nargs="*", help="default: all")
    parser.add_argument("--list", action="store_true", help="the names of the cases")
    given = parser.parse_args()
    if given.list:
        print("\n".join(CASES))
        return 0
    names = given.cases or list(CASES)
    if unknown := set(names) - set(CASES):
        print(f"unknown case {', '.join(sorted(unknown))}; there are {', '.join(CASES)}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    cluster = Cluster(Path(given.state, "work"))
    rows = []
    for name in names:
        ended, failure, seconds = run(cluster, name)
        rows.append((name, ended.job if ended else "", failure.split("\n")[0] if failure else ended.how, seconds))
        print(f"{'failed' if failure else 'ok':8}{name}, {seconds:.0f} s: {failure or rows[-1][2]}", flush=True)
    print(f"\n{'case':22}{'job':8}{'seconds':>8}  ended")
    for name, job, how, seconds in rows:
        print(f"{name:22}{job:8}{seconds:8.0f}  {how[:90]}")
    return int(any(job == "" for _, job, _, _ in rows))


if __name__ == "__main__":
    sys.exit(main())
