"""How the commands are called: `deepavfusion train` anywhere, `python src/train.py` in a clone; texts follow suit."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from pathlib import Path

COMMANDS = {
    "train": "train a network, see it learn, and evaluate it",
    "eval": "evaluate a checkpoint",
    "predict": "use a trained network: separate, segment, classify, features, or search",
    "prepare": "generate demo data, check a dataset's clips, or pack them",
    "study": "answer a question by many runs: a report with tables, plots and intervals",
    "benchmark": "measure this machine: reading clips, the networks, the training loop",
    "convert": "convert a checkpoint to a file of weights",
    "doctor": "check whether this machine can train",
}
STARTED = "DEEPAVFUSION_PROGRAM"  # environment variable: what the user typed before `train`, for all processes of a run
PACKAGE = Path(__file__).resolve().parents[1]
REPOSITORY = PACKAGE.parents[1]  # of a clone
IN_CLONE = (REPOSITORY / "setup.cfg").is_file() and (REPOSITORY / "src" / "train.py").is_file()
CLONE = REPOSITORY if IN_CLONE else None  # None: the package was installed, without what lies around it
SCRIPT = re.compile(rf"(?<![\w/.-])(python src/)?({'|'.join(COMMANDS)})\.py(?![\w/-])|(?<![\w-])make (doctor)(?![\w-])")
START = "import sys; sys.path[:] = filter(None, sys.path); from deepavfusion.__main__ import main; main()"


def by_program() -> bool:
    """Whether the commands are those of the program `deepavfusion`, not the scripts of a clone."""
    return STARTED in os.environ or not IN_CLONE


def program() -> list[str]:
    """The words before the name of a command, as the user typed them."""
    return shlex.split(os.environ.get(STARTED, "deepavfusion"))


def note_program() -> None:
    """Note how this process was called; to be called where the program starts."""
    called = sys.orig_argv[1] if len(sys.orig_argv) > 1 else ""
    words = ["deepavfusion"]
    if "-m" in sys.orig_argv[1:] and Path(sys.argv[0]).stem == "__main__":
        words = [python(), "-m", "deepavfusion"]
    elif Path(called).name == "deepavfusion" and not _is_found_as("deepavfusion", called):
        words = [called]
    os.environ.setdefault(STARTED, shlex.join(words))


def called(command: str) -> list[str]:
    """The words that start a command, to be shown."""
    return [*program(), command] if by_program() else ["python", f"src/{command}.py"]


def python() -> str:
    """The interpreter as it was called: `python`, or `.venv/bin/python` by make."""
    called = sys.orig_argv[0]
    return called if Path(called).name.startswith("python") else sys.executable


def beside_python(name: str) -> str:
    """How to call a program that was installed with this interpreter: short, if the shell finds it."""
    if by_program() and _is_found_as(name, str(Path(sys.executable).with_name(name))):
        return name
    path = Path(python())
    return name if path.name == str(path) else str(path.with_name(name))


def _is_found_as(name: str, path: str) -> bool:
    found = shutil.which(name)
    return found is not None and os.path.realpath(found) == os.path.realpath(path)


def starting(command: str) -> list[str]:
    """The words that start a command in a process of its own, whatever lies in the current folder."""
    if by_program():
        return [sys.executable, "-c", START, command]
    return [sys.executable, str(REPOSITORY / "src" / f"{command}.py")]


def calling(command: str) -> list[str]:
    """What `sys.argv` begins with in a process of a command."""
    return [sys.argv[0], command] if by_program() else [str(REPOSITORY / "src" / f"{command}.py")]


def typed() -> list[str]:
    """The words that started this process, as the user typed them."""
    words = sys.orig_argv
    if STARTED not in os.environ:
        return words
    for n, word in enumerate(words[1:], 1):
        if Path(word).name in ("deepavfusion", "deepavfusion.__main__"):
            return [*program(), *words[n + 1 :]]
    return words


def spoken(text: str) -> str:
    """A text about the scripts of a clone, such as `python src/train.py` or train.py, as it is said to this user."""
    if not by_program() or (".py" not in text and "make doctor" not in text):
        return text

    def said(match: re.Match[str]) -> str:
        words = program() if match[1] or match[3] else ["deepavfusion"]
        return f"{shlex.join(words)} {match[2] or match[3]}"

    return SCRIPT.sub(said, text)
