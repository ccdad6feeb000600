"""Signals at any time from the first line of a command on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deepavfusion.config.compose import REPOSITORY
from deepavfusion.utils.launch.signals import STOPPED

TERM, USR1, INT = signal.SIGTERM, signal.SIGUSR1, signal.SIGINT
SCONTROL = """#!/bin/sh
case $1 in
show) echo "JobId=4216 JobName=x Restarts=0 PreemptTime=$PREEMPTED SuspendTime=None" ;;
*) echo "$@" >> {}/asked ;;
esac
"""
LISTEN = """
import os, signal, sys, time
from deepavfusion.utils.launch import signals
{}
print("ready", flush=True)
{}
"""


def start(first: str, then: str = "time.sleep(60)", **variables: str) -> subprocess.Popen[str]:
    """A command that has just begun."""
    process = subprocess.Popen(
        [sys.executable, "-c", LISTEN.format(first, then)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY / "src"), **variables},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """A job, with a command that plays SLURM's part."""
    (tmp_path / "scontrol").write_text(SCONTROL.format(tmp_path))
    (tmp_path / "scontrol").chmod(0o755)
    return {"SLURM_JOB_ID": "4216", "PATH": f"{tmp_path}:{os.environ['PATH']}"}


@pytest.mark.parametrize(
    ("number", "preempted", "requeued"),
    [(TERM, "None", False), (TERM, "2026-11-28T21:34:33", True), (USR1, "None", True), (INT, "2026-11-28", False)],
)
def test_a_command_that_is_starting_ends_at_once(
    number: signal.Signals, preempted: str, requeued: bool, slurm, tmp_path: Path
) -> None:
    """A job that is pre-empted with time of grace, and ends within it, would not be requeued by SLURM."""
    process = start("signals.listen()", **slurm, PREEMPTED=preempted)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == STOPPED
    assert f"stopped by {'Ctrl-C' if number == INT else number.name}: give the same command again." in err
    assert (tmp_path / "asked").exists() == requeued
    if requeued:
        assert (tmp_path / "asked").read_text() == "requeue 4216\n"
        assert err.startswith("SLURM job 4216 is requeued\n")


def test_a_command_that_waits_in_c_ends_and_undoes_what_it_began(tmp_path: Path) -> None:
    """As for other processes at the rendezvous, or in a library that tries a system call again."""
    lines = ["signals.listen()", f"signals.on_leaving(lambda: os.rmdir({str(tmp_path / 'begun')!r}))"]
    (tmp_path / "begun").mkdir()
    lines += ["signals.on_leaving(lambda: 1 / 0)", "from ctypes import CDLL"]
    process = start("\n".join(lines), "while True: CDLL(None).pause()")
    process.send_signal(TERM)
    assert process.wait(30) == STOPPED
    assert not (tmp_path / "begun").exists()


def test_a_job_that_cannot_be_requeued_says_why(slurm, tmp_path: Path) -> None:
    (tmp_path / "scontrol").write_text("#!/bin/sh\necho not yours >&2; exit 1\n")
    for found, why in ((slurm["PATH"], "not yours"), ("/nowhere", "scontrol: No such file or directory")):
        process = start(f"signals.listen(); os.environ['PATH'] = {found!r}", **slurm)
        process.send_signal(USR1)
        assert f"SLURM job 4216 could not be requeued: {why}\n" in process.communicate(timeout=30)[1]
        assert process.returncode == STOPPED


def test_a_command_ends_where_nothing_can_be_printed() -> None:
    """A log on a full disk, a terminal that was lost."""
    process = start("signals.listen(); os.dup2(os.open('/dev/full', os.O_WRONLY), 2)")
    process.send_signal(TERM)
    assert process.wait(10) == STOPPED  # not by the main thread, half a minute later


@pytest.mark.parametrize("number", [TERM, USR1])
def test_other_commands_are_interrupted(number: signal.Signals) -> None:
    body = "try:\n    print('begun', flush=True)\n    time.sleep(60)\nfinally:\n    print('undone', flush=True)"
    process = start("signals.listen(130); signals.interrupt(); sys.excepthook = lambda *_: os._exit(7)", body)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(number)
    assert process.communicate(timeout=30)[0] == "undone\n"
    assert process.returncode == 7  # a KeyboardInterrupt, which `reported` turns into 130


@pytest.mark.parametrize("number", [TERM, USR1, INT])
def test_an_interrupted_import_is_no_error_of_the_library(number: signal.Signals) -> None:
    """numpy ends in a RecursionError, or lacks attributes."""
    body = """
with reported({}):
    try:
        print("begun", flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        pass
    raise AttributeError("half a library")
"""
    first = "signals.listen(130); from deepavfusion.cli.entry import reported; signals.interrupt()"
    process = start(first, body)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(number)
    error = process.communicate(timeout=30)[1]
    assert process.returncode == 130
    assert error == "Interrupted: give the same command again.\n"


@pytest.mark.parametrize("number", [TERM, USR1, INT])
def test_a_signal_while_the_modules_are_torn_down_does_not_change_how_a_command_ended(number: signal.Signals) -> None:
    body = f"""
class Last:
    def __del__(self, kill=os.kill, me=os.getpid()):
        kill(me, {number:d})
last = Last()
"""
    process = start(f"signals.listen(){body}", "signals.finish(3); sys.exit(3)")
    assert process.communicate(timeout=30)[1] == ""
    assert process.returncode == 3


def test_a_command_that_has_ended_keeps_its_status() -> None:
    process = start("signals.listen(); signals.finish(0)")
    process.send_signal(USR1)
    assert process.communicate(timeout=30)[1] == ""
    assert process.returncode == 0


def test_a_forked_process_ends_by_signals_as_any_other(tmp_path: Path) -> None:
    """And its parent takes none of them for its own."""
    body = f"""
for number in ({TERM:d}, {USR1:d}):
    if not (child := os.fork()):
        time.sleep(60)
    os.kill(child, number)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -number
time.sleep(0.2)
"""
    process = start("signals.listen()", body)
    assert process.communicate(timeout=30)[1] == ""
    assert process.returncode == 0


def test_other_processes_of_a_launcher_wait_for_the_first() -> None:
    """Whose end would end it before it has put the job back into the queue."""
    rank = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2", "RANK": "1"}
    process = start("signals.FIRST_LEAVES = 0.5; signals.listen()", **rank)
    process.send_signal(TERM)
    begin = time.monotonic()
    assert process.communicate(timeout=30)[1] == ""
    assert process.returncode == STOPPED
    assert time.monotonic() - begin >= 0.5


def test_a_signal_that_was_held_back_until_the_first_line_is_heard() -> None:
    process = start(
        f"signal.pthread_sigmask(signal.SIG_BLOCK, [{USR1:d}]); os.kill(os.getpid(), {USR1:d})",
        "signals.listen(); time.sleep(60)",
    )
    assert "stopped by SIGUSR1" in process.communicate(timeout=30)[1]


@pytest.mark.parametrize("script", ["train", "eval", "predict", "prepare", "convert", "study", "benchmark", "doctor"])
def test_every_script_listens_before_it_imports_anything(script: str) -> None:
    lines = [line for line in (REPOSITORY / "src" / f"{script}.py").read_text().split("\n") if line]
    imports = [n for n, line in enumerate(lines) if line.lstrip().startswith(("import ", "from "))]
    assert lines[imports[0]] == "from __future__ import annotations"
    assert lines[imports[1] - 1].startswith('if __name__ == "__main__":')
    assert "deepavfusion.utils.launch.signals import" in lines[imports[1]]
    assert lines[imports[1] + 1].strip().startswith("listen(")


def test_what_comes_before_listening_is_short() -> None:
    """Nothing of ours, or of others, that takes long to import."""
    code = "import sys; import deepavfusion.utils.launch.signals; print(*sys.modules)"
    names = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY / "src", capture_output=True, text=True).stdout
    found = set(names.split())
    assert "deepavfusion.utils.launch.signals" in found
    assert not found & {"torch", "hydra", "omegaconf", "rich", "numpy", "subprocess", "threading", "typing"}
    ours = {name for name in found if name.startswith("deepavfusion.")}
    assert ours == {f"deepavfusion.utils{end}" for end in ("", ".launch", ".launch.signals")}


SMALL = [
    *("scale=demo", "trainer=cpu", "trainer.limit_train_batches=3", "trainer.max_epochs=2", "run.name=x"),
    *("trainer.limit_val_batches=1", "validate_before=false", "data.num_workers=1", "data.batch_size=4"),
    *("model.net.image.embed_dim=32", "model.net.image.depth=2", "model.net.image.num_heads=2"),
    *("model.decoder_embed_dim=32", "model.decoder_depth=1", "model.decoder_num_heads=2", "model.warmup_epochs=1"),
]


@pytest.mark.full
@pytest.mark.parametrize("number", [TERM, USR1, INT])
def test_a_run_is_stopped_at_any_time_and_continues(number, data_root: Path, slurm, tmp_path: Path) -> None:
    command = [sys.executable, "src/train.py", *SMALL, f"data.root={data_root}", f"paths.log_dir={tmp_path / 'logs'}"]
    for seconds in (0.3, 1, 2, 4, 6, 8, 10, 12, 14, 16):
        process = subprocess.Popen(
            command, cwd=REPOSITORY, env={**os.environ, **slurm}, stdout=-1, stderr=subprocess.STDOUT, text=True
        )
        time.sleep(seconds)
        process.send_signal(number)
        out = process.communicate(timeout=60)[0]
        assert process.returncode in (STOPPED, 0), out
        assert "Traceback" not in out, out
        if process.returncode == 0:
            break
        assert "stopped by" in out
        if number == USR1:
            assert "SLURM job 4216 is requeued" in out
        assert not (tmp_path / "logs/pretrain/runs/x/.running").exists()
    else:
        assert subprocess.run(command, cwd=REPOSITORY).returncode == 0
    assert (tmp_path / "logs/pretrain/runs/x/metrics.json").exists()


@pytest.mark.full
@pytest.mark.parametrize("script", ["predict", "prepare", "convert", "benchmark", "doctor"])
def test_other_scripts_end_without_a_traceback(script: str, tmp_path: Path) -> None:
    given = {
        "predict": ["task=features", f"input={tmp_path}"],
        "prepare": ["command=demo", f"root={tmp_path}/demo"],
        "convert": ["input=a", "output=b"],
        "benchmark": ["benchmark=model", f"paths.log_dir={tmp_path}"],
    }
    for seconds in (0.3, 1, 2, 4):
        for number in (TERM, USR1, INT):
            process = subprocess.Popen(
                [sys.executable, f"src/{script}.py", *given.get(script, [])],
                cwd=REPOSITORY,
                stdout=-1,
                stderr=subprocess.STDOUT,
                text=True,
            )
            time.sleep(seconds)
            process.send_signal(number)
            out = process.communicate(timeout=60)[0]
            assert process.returncode in (130, 0, 1, 2), (number, process.returncode, out)
            assert "Traceback" not in out, (number, out)
