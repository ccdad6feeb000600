"""The base of loggers that hand over to a service: W&B, MLflow."""

from __future__ import annotations

import json
import re
import secrets
import time
import wave
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import numpy as np
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only
from numpy.typing import NDArray

from deepavfusion.loggers.board import Shows
from deepavfusion.loggers.courier import Courier
from deepavfusion.loggers.curves import worth_showing
from deepavfusion.loggers.trouble import Trouble
from deepavfusion.utils.console import say
from deepavfusion.utils.errors import UserError
from deepavfusion.utils.files import write_whole
from deepavfusion.utils.reading import read_json

STATE = "deepavfusion.json"  # in the logger's folder of a run
MOST_STATE = 2**23  # bytes in memory
FLUSH = 5.0  # s that a checkpoint waits for the curves up to its step
STOPPED = 5.0  # s of those after a signal, see `runs.signals.PATIENCE`
MARGIN = 1.0  # s, the last of a limit, in which what has not ended is left
LONGEST = 80  # characters of a part of a tag
STATUSES = ("finished", "failed", "stopped")


class State:
    """What a run has to know of a service when it is resumed: the id of its run there, and what it was given.

    A service takes no points back. So those up to the last one that it was given are not given again: a resumed run
    repeats the steps after its checkpoint, and would double them.

    Args:
        path: of a JSON file.
        place: where the service is, or what tells its runs apart; an id counts for this place only.
        resumes: whether a run continues; else what is there is of a run that never began.
    """

    def __init__(self, path: Path, place: str, resumes: bool) -> None:
        self.path, self.place = path, place
        self.id = ""
        self.before: dict[str, int] = {}  # name -> the last step, when this process began
        self.given: dict[str, int] = {}
        if resumes and path.exists():
            self._read()

    def _read(self) -> None:
        found = read_json(self.path, MOST_STATE, "what a logger wrote of its run")
        given = found.get("given") if isinstance(found, dict) else None
        if not isinstance(given, dict) or not all(type(step) is int for step in given.values()):
            raise UserError(f"{self.path} does not hold what a logger wrote: remove it, and the run begins anew there.")
        if found.get("place") == self.place and re.fullmatch(r"[A-Za-z0-9_-]{1,64}", str(found.get("id"))):
            self.id, self.before, self.given = found["id"], dict(given), dict(given)

    def new(self, names: Iterable[str], step: int) -> set[str]:
        """The names under which nothing was given for this step, or a later one, before the run was resumed."""
        return {name for name in names if step > self.before.get(name, -1)}

    def write(self, names: Iterable[str] = (), step: int = 0) -> None:
        """Remember what was given."""
        for name in names:
            self.given[name] = max(step, self.given.get(name, -1))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.path, json.dumps({"id": self.id, "place": self.place, "given": self.given}) + "\n")


class Service(Logger, Shows):
    """Curves, and what else can be shown, of the first process of a run, in a thread of its own.

    A service that is slow, down or broken keeps no training waiting: one line says so, and another one at the end what
    is missing there. It is opened with the first value: a start that is refused leaves nothing.

    Args:
        run_dir: everything local is below it.
        purge_step: the step from which a run is resumed; None: it begins.
        finish_seconds: how long the end of a run waits until everything is delivered.
    """

    title: ClassVar[str]
    folder: ClassVar[str]  # below the run's directory
    plain_tags: ClassVar[bool] = False  # only ASCII in names

    def __init__(self, run_dir: str, purge_step: int | None, finish_seconds: float) -> None:
        super().__init__()
        self.run_dir, self.purge_step, self.finish_seconds = Path(run_dir), purge_step, finish_seconds
        self.trouble = Trouble(self.title)
        self.courier: Courier | None = None
        self.state: State | None = None
        self.opened: Any = None  # by the thread
        self.broken: Exception | None = None  # why it cannot be opened
        self.closed = False

    # ---- of each service

    @property
    def place(self) -> str:
        """Where the service is, without secrets."""
        raise NotImplementedError

    @property
    def watch(self) -> str | None:
        """The command that shows the run, see `utils.commands.command`; None: the service has an address."""
        raise NotImplementedError

    @property
    def purpose(self) -> str:
        """What that command is for, in words."""
        return "see its curves, pictures and sounds"

    def _open(self, state: State) -> Any:
        """Begin or continue a run; sets `state.id`. In the thread, as the next ones."""
        raise NotImplementedError

    def _give(self, opened: Any, values: Mapping[str, float], step: int) -> None:
        raise NotImplementedError

    def _finish(self, opened: Any, status: str) -> None:
        """End the run there; `status` is one of `STATUSES`."""
        raise NotImplementedError

    def is_temporary(self, error: Exception) -> bool:
        """Whether the service, or the disk, may take later what it did not take now."""
        return isinstance(error, OSError) and not isinstance(error, FileNotFoundError)

    # ---- Lightning's logger

    @property
    def name(self) -> str:
        return self.folder

    @property
    def version(self) -> str:
        return self.run_dir.name

    @property
    def save_dir(self) -> str:
        return str(self.run_dir)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        shown = {self.tag(name): float(value) for name, value in worth_showing(metrics).items()}
        self.send(shown, step or 0, lambda opened, new: self._give(opened, {n: shown[n] for n in new}, step or 0))

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *_: Any, **__: Any) -> None:
        """They are part of what `show_settings` gives."""

    def save(self) -> None:
        """Lightning calls it after each value; `flush` waits."""

    def finalize(self, status: str) -> None:
        """Lightning calls it after validation, training and test; `close` ends the run."""

    # ---- the thread

    def tag(self, name: str) -> str:
        """A name as the service takes it."""
        return "/".join(_plain(part, self.plain_tags) for part in name.split("/"))

    def send(self, names: Iterable[str], step: int, call: Callable[[Any, set[str]], None], size: int = 0) -> None:
        """Have the thread call a function with what `_open` returned and those of the names that are new at a step."""
        if self.closed:
            return
        if self.courier is None:
            self.courier = Courier(self.trouble, self.is_temporary)
        names = list(names)

        def deliver() -> None:
            if self.opened is None:
                self._begin()
            assert self.state is not None
            if new := self.state.new(names, step):
                try:
                    call(self.opened, new)
                except ConnectionError:
                    self._lost()
                    raise
                self._remember(new, step)

        self.courier.send(deliver, size)

    def _begin(self) -> None:
        if self.broken is not None:
            raise self.broken
        try:
            if self.state is None:
                resumes = self.purge_step is not None
                self.state = State(self.run_dir / self.folder / STATE, self.place, resumes)
            self.opened = self._open(self.state)
        except Exception as error:
            self.broken = None if self.is_temporary(error) else error
            raise
        self._remember()

    def _remember(self, names: Iterable[str] = (), step: int = 0) -> None:
        assert self.state is not None
        try:
            self.state.write(names, step)
        except OSError as error:  # what was given must not be given again; the next one may be written
            self.trouble.tell(error)

    def _lost(self) -> None:
        """The connection broke; the next value may open a new one."""

    def _abandon(self) -> None:
        """The service has not answered until the end: the process ends without it."""

    def flush(self) -> None:
        """Wait, but not for long, until everything that was logged is delivered."""
        if self.courier is not None:
            self.courier.flush(FLUSH)

    def close(self, status: str) -> None:
        """End the run: everything is delivered, or a line says what is not."""
        assert status in STATUSES, status
        if self.courier is None or self.closed:
            return
        self.closed = True
        limit = STOPPED if status == "stopped" else self.finish_seconds
        deadline = time.monotonic() + max(limit - MARGIN, limit / 2)
        self.courier.send(lambda: self._finish(self.opened, status) if self.opened is not None else None)
        if not self.courier.flush(min(limit / 2, 5.0)) and status != "stopped":
            say(f"{self.title}: waiting up to {limit:g} s until everything is delivered …", "dim")
        if not self.courier.close(max(0.0, deadline - time.monotonic())):
            self._abandon()
        self.trouble.say_again()


def new_id() -> str:
    """Of a run; it leaves the random numbers of the training alone."""
    return secrets.token_hex(6)


def _plain(part: str, ascii_only: bool) -> str:
    """A part of a name as a name of a file, unlike that of other parts."""
    allowed = r"[^A-Za-z0-9_. -]" if ascii_only else r"[^\w. -]"
    plain = re.sub(allowed, "_", part)[:LONGEST]
    plain = plain if plain.strip(". ") else "_"
    return plain if plain == part else f"{plain}_{sha256(part.encode(errors='replace')).hexdigest()[:6]}"


@contextmanager
def wav_file(waveform: NDArray[np.float32], rate: int, name: str = "audio.wav") -> Iterator[Path]:
    """A file with a waveform [T] in -1…1, 16 bits, for as long as the block lasts."""
    samples = (np.nan_to_num(waveform).clip(-1, 1) * 32767).astype("<i2")
    with TemporaryDirectory(prefix="deepavfusion-") as folder:
        path = Path(folder, name)
        with wave.open(str(path), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(rate)
            file.writeframes(samples.tobytes())
        yield path
