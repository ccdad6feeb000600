"""Hours of training on demo data under observation: `make soak HOURS=2`.

Every ten seconds the memory and the open files of the trainer and of its decoding workers are noted, in
logs/soak/<time>.csv. At the end the run is asked to stop, and the figures after a tenth of the time, when caches are
warm, are compared with those at the end. Exit status 1: memory grew by more than 5 %, or over ten files stayed open.
"""

from __future__ import annotations

import csv
import os
import signal
import statistics
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import psutil

REPOSITORY = Path(__file__).resolve().parents[1]
EVERY = 10.0  # s
GROWTH = 0.05
FILES = 10  # validation and checkpoints open some for a while; what leaks once an epoch is hundreds in two hours
COLUMNS = ("seconds", "role", "pid", "megabytes", "files")


def megabytes(pid: int) -> float:
    """Memory that a process has written to, and its part of what is shared; files that are mapped do not count.

    What a worker has from the trainer's start counts in full, in each: its part (PSS) would grow by itself when the
    trainer writes to the pages that they had in common.
    """
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    return sum(int(fields[name].split()[0]) for name in ("Anonymous", "Pss_Shmem")) / 1024


def open_files(pid: int) -> int:
    """Without the shared memory of batches on their way, which comes and goes, and counts as memory."""
    found = 0
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found += "/torch_" not in os.readlink(link)
        except OSError:  # closed meanwhile
            continue
    return found


def sample(trainer: int, seconds: float) -> list[tuple[float, str, int, float, int]]:
    """A row for the trainer and for each worker."""
    rows = []
    for role, pid in [("trainer", trainer), *(("worker", child.pid) for child in psutil.Process(trainer).children())]:
        try:
            rows.append((round(seconds, 1), role, pid, megabytes(pid), open_files(pid)))
        except (OSError, KeyError):  # it has just ended
            continue
    return rows


def main(hours: float, overrides: list[str]) -> int:
    name = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    table = REPOSITORY / "logs" / "soak" / f"{name}.csv"
    table.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(REPOSITORY / "src/train.py"), "scale=demo", "trainer=cpu", "data.num_workers=2"]
    command += ["trainer.max_epochs=1000000", f"run.name=soak_{name}", "run.latest=false", *overrides]
    command += ["trainer.enable_progress_bar=false", "~callbacks.progress"]
    begin = time.monotonic()
    run = subprocess.Popen(command)
    with table.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(COLUMNS)
        while run.poll() is None and time.monotonic() - begin < hours * 3600:
            time.sleep(EVERY)
            rows.writerows(sample(run.pid, time.monotonic() - begin))
            file.flush()
    if run.poll() is not None:
        print(f"the run ended by itself with status {run.returncode}", file=sys.stderr)
        return 1
    run.send_signal(signal.SIGTERM)
    run.wait(60)
    return report(table)


def report(table: Path) -> int:
    """Print growth between the second and the last tenth of the time; 1 if there is too much."""
    with table.open(newline="") as file:
        rows = [
            (float(r["seconds"]), r["role"], r["pid"], float(r["megabytes"]), int(r["files"]))
            for r in csv.DictReader(file)
        ]
    end = rows[-1][0]
    status = 0
    print(f"{table}: {end / 60:.0f} minutes")
    for role, pid in dict.fromkeys((role, pid) for _, role, pid, _, _ in rows):
        mine = [row for row in rows if row[2] == pid]
        early, late = ([row for row in mine if low <= row[0] / end <= high] for low, high in ((0.1, 0.2), (0.9, 1.0)))
        if not early or not late:  # a worker of one validation
            continue
        memory = [statistics.median(row[3] for row in part) for part in (early, late)]
        files = [statistics.median(row[4] for row in part) for part in (early, late)]
        growth = memory[1] / memory[0] - 1
        bad = growth > GROWTH or files[1] > files[0] + FILES
        status |= bad
        print(
            f"{role} {pid}: {memory[0]:.0f} → {memory[1]:.0f} MB ({growth:+.1%}), "
            f"{files[0]:.0f} → {files[1]:.0f} open files" + (" — too much" if bad else "")
        )
    return int(status)


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), sys.argv[2:]))
