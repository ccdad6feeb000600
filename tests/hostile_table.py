"""What hostile files cost: peak memory and time of each, by every way into the package. `make hostile-table`.

Each file is built and given to each door in a process of its own, with a limit on its memory and its time. The table is
written into docs/reliability.md, between two marks. Exit status 1: a file took more than the limits allow.

To add files, add a `Group`: how each is built, and the doors (functions that read it and say what came of it).
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parents[1]
PAGE = REPOSITORY / "docs/reliability.md"
BEGIN, END = "<!-- hostile-table: written by `make hostile-table` -->\n", "<!-- end of hostile-table -->\n"
ROOM = 3 << 30  # bytes of addresses that a process may take on top of its libraries
PATIENCE = 60.0  # s
MOST_MB = 1000.0  # of any file
READ = "read"  # what a door says of a file that it takes


class Cost(NamedTuple):
    """What one door made of one file."""

    said: str
    seconds: float
    megabytes: float  # of the peak, above a process that has done nothing
    orderly: bool = True  # it was read, or refused with a reason


LATE = Cost(f"not done after {PATIENCE:g} s", PATIENCE, 0.0, orderly=False)


@dataclass(frozen=True)
class Group:
    """Files that come in by the same doors: name of each -> what builds it; name of each door -> what reads a file."""

    files: Mapping[str, Callable[[Path], object]]
    doors: Mapping[str, Callable[[Path], str]]


def groups() -> list[Group]:
    from helpers.damage import open_checkpoint
    from helpers.hostile_media import CASES, DOORS, STILL_DOORS, STILLS
    from hostile.test_checkpoint_bounds import FIELD, GROWING, archive, of_torch

    def opened(path: Path) -> str:
        word, detail = open_checkpoint(str(path))
        sentence = (
            detail.removeprefix("checkpoint ").removeprefix(f"{path} ").removeprefix(f"({path.stat().st_size} bytes) ")
        )
        return READ if word == READ else sentence.split("; ")[0].split(": ")[0].split(" (")[0]

    small = ("set_of_view.ckpt", "two_archives.ckpt", "wide.safetensors")
    checkpoints = {name: partial(shutil.copyfile, FIELD / name) for name in small}
    for name, body in GROWING.items():
        checkpoints[f"{name}.ckpt"] = partial(archive, members=of_torch(body))
    return [
        Group({name: build for name, (build, _) in CASES.items()}, DOORS),
        Group(STILLS, STILL_DOORS),
        Group(checkpoints, {"read": opened}),
    ]


def cost(door: Callable[[Path], str], path: Path) -> Cost:
    """Of one file, in a process of its own."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_ask, args=(sender, door, path))
    process.start()
    sender.close()
    try:
        found = receiver.recv() if receiver.poll(PATIENCE) else LATE
    except EOFError:
        process.join()
        found = Cost(f"its process ended with status {process.exitcode}", 0.0, 0.0, orderly=False)
    process.kill()
    process.join()
    return found


def _ask(sender: Connection, door: Callable[[Path], str], path: Path) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + ROOM,) * 2)
    before, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    orderly = True
    try:
        said = door(path)
    except BaseException as error:  # whatever it is, it belongs into the table
        said, orderly = f"{type(error).__name__}: {error}", False
    seconds, peak = time.monotonic() - begin, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sender.send(Cost(said, seconds, (peak - before) / 1024, orderly))


def table(folder: Path) -> tuple[str, bool]:
    """The table in Markdown, and whether every file stayed within the limits."""
    lines, within = ["| file | bytes | result | peak memory, MB | time, s |", "|---|---|---|---|---|"], True
    for group in groups():
        for name, build in group.files.items():
            build(path := folder / name)
            costs = {door: cost(read, path) for door, read in group.doors.items()}
            within &= all(one.orderly and one.megabytes < MOST_MB for one in costs.values())
            size = f"{path.stat().st_size:,}".replace(",", " ")
            peak, seconds = (max(getattr(one, field) for one in costs.values()) for field in ("megabytes", "seconds"))
            lines.append(f"| {name} | {size} | {result(costs, folder)} | {peak:.0f} | {seconds:.2f} |")
            print(lines[-1], flush=True)
    return "\n".join(lines) + "\n", within


def result(costs: Mapping[str, Cost], folder: Path) -> str:
    """One cell: what all doors say, or what each does."""
    said = {door: shortened(one.said, folder) for door, one in costs.items()}
    if len(set(said.values())) == 1:
        return next(iter(said.values()))
    reasons = [text for text in said.values() if text != READ]
    doors = [door for door, text in said.items() if text != READ]
    if len(doors) == len(said):  # the same reason in other words
        return min(reasons, key=len)
    return f"{' and '.join(doors)}: {min(reasons, key=len)}; else read"


def shortened(text: str, folder: Path) -> str:
    return " ".join(text.replace(f"{folder}/", "").split()).replace("|", "\\|")[:160]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--print", action="store_true", help="do not change docs/reliability.md")
    only_print = parser.parse_args().print
    with tempfile.TemporaryDirectory() as folder:
        text, within = table(Path(folder))
    page = PAGE.read_text(encoding="utf-8")
    if not only_print:
        before, _, rest = page.partition(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}{text}{END}{rest.partition(END)[2]}", encoding="utf-8")
    return 0 if within else 1


if __name__ == "__main__":
    sys.path[:0] = [str(REPOSITORY / "src"), str(REPOSITORY / "tests")]
    sys.exit(main())
