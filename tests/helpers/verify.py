"""What the workers of test_verify.py import: they start in milliseconds where nothing heavy comes along."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

from deepavfusion.data.lists.clip_list import ClipList
from deepavfusion.types import Clip
from deepavfusion.verify.clip import Verdict


def listed(files: dict[str, Path], split: str = "train") -> ClipList:
    """A list of clips by id, of two classes in turn; those not on disk are missing."""
    clips = [Clip(name, str(path), n % 2) for n, (name, path) in enumerate(sorted(files.items()))]
    there = [clip for clip in clips if os.path.exists(clip.path)]
    return ClipList(split, there, ["drum", "flute"], [clip for clip in clips if clip not in there])


def scripted(clip: Clip) -> Verdict:
    """Does what the clip's id says."""
    if clip.id.startswith("hang"):
        time.sleep(60)
    if clip.id.startswith("crash"):
        os.kill(os.getpid(), signal.SIGSEGV)
    if clip.id.startswith("leave"):
        os._exit(3)
    if clip.id.startswith("raise"):
        raise KeyError(clip.id)
    return Verdict("ok", str(os.getpid()))


def logged(clip: Clip) -> Verdict:
    """Notes the clip in a file beside it; takes long enough to be killed."""
    with Path(clip.path).with_name("log").open("a") as file:
        print(clip.id, file=file)
    time.sleep(0.03)
    return Verdict("ok")


def pid(_: int) -> int:
    return os.getpid()


class Trap(Clip):
    """A clip whose opening in a worker does what its id says; `once` only the first time, noted in a file."""

    def __getattribute__(self, name: str) -> Any:
        if name == "path" and multiprocessing.parent_process():
            action, _, times = self.id.partition("-")
            mark = Path(super().__getattribute__("path")).with_suffix(".mark")
            if times != "once" or not mark.exists():
                mark.touch()
                if action == "hang":
                    time.sleep(60)
                os.kill(os.getpid(), {"crash": signal.SIGSEGV, "memory": signal.SIGKILL, "end": signal.SIGXCPU}[action])
        return super().__getattribute__(name)
