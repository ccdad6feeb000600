"""Weights & Biases."""

from __future__ import annotations

import html
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import yaml
from numpy.typing import NDArray
from torch import Tensor

from deepavfusion.loggers.service import Service, State, new_id, wav_file
from deepavfusion.loggers.trouble import in_a_line
from deepavfusion.loggers.wandb_log import steps_in
from deepavfusion.utils.commands import command
from deepavfusion.utils.console import say

SERVER = "https://api.wandb.ai"
STEP = "trainer/global_step"  # the axis of the curves, as of Lightning's logger
MOST_ROWS = 10_000  # of a table, which W&B shows
FOLDERS = {"WANDB_CACHE_DIR": "cache", "WANDB_DATA_DIR": "data"}  # of each run, which a process may have several of
QUIET = {"WANDB_ERROR_REPORTING": "false", "WANDB_SILENT": "true"}  # unless the environment says otherwise
SYNC = "wandb sync {run_dir}/wandb"  # what sends a run that was kept offline, see `utils.commands.command`
SYNC_REST = "wandb sync --include-online {run_dir}/wandb/{start}"  # … the rest of a start that was sent in part
UPLOAD = 0.8  # of the time at the end, for what is not sent yet
_placed: dict[str, str] = {}  # by the last one
EXIT_CODES = {"finished": 0, "failed": 1, "stopped": 75}


class WandbLogger(Service):
    """A run of Weights & Biases; its files are in `<run_dir>/wandb`.

    Without an API key (`wandb login`, WANDB_API_KEY), or if the server does not answer at the start, it is kept
    offline, and `wandb sync` sends it later. Nobody is asked for a key.

    Args:
        run_dir: of the run.
        project: of W&B.
        entity: user or team; None: WANDB_ENTITY, or the user's own.
        name: of the run there; None: that of its directory.
        group: of the run there.
        tags: of the run there.
        offline: True: send nothing; False: send; None: as WANDB_MODE says, or else send if there is a key.
        init: further arguments of `wandb.init`.
        purge_step, finish_seconds: see `Service`.
    """

    title, folder = "W&B", "wandb"

    def __init__(
        self,
        run_dir: str,
        project: str = "deepavfusion",
        entity: str | None = None,
        name: str | None = None,
        group: str | None = None,
        tags: Sequence[str] = (),
        offline: bool | None = None,
        init: Mapping[str, Any] | None = None,
        purge_step: int | None = None,
        finish_seconds: float = 120.0,
    ) -> None:
        super().__init__(run_dir, purge_step, finish_seconds)
        self.offline, self.opened_once = offline, False
        self.mode = ""  # of `wandb.init`, once it is opened
        self.arguments: dict[str, Any] = {
            "project": project,
            "entity": entity,
            "name": name or self.run_dir.name,
            "group": group,
        }
        self.arguments |= {"tags": list(tags) or None, **(init or {})}

    @property
    def place(self) -> str:
        return "/".join([self.arguments["entity"] or "", self.arguments["project"]])

    @property
    def watch(self) -> str | None:
        return SYNC if (self.mode or mode_of(self.offline)[0]) == "offline" else None

    @property
    def purpose(self) -> str:
        return "send its curves, pictures and sounds to Weights & Biases"

    def _open(self, state: State) -> Any:
        for name, folder in FOLDERS.items():
            if os.environ.get(name) in (None, _placed.get(name)):  # the user's own stay
                os.environ[name] = _placed[name] = str(self.run_dir / self.folder / folder)
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        hooks = sys.excepthook, sys.exit
        import wandb

        if state.before and self.opened_once is False:
            with suppress(Exception):  # what is on disk says best what there is: W&B's process may have been killed
                state.before = steps_in(self.run_dir / self.folder, STEP) | {"config": 0}
        self.opened_once = True
        state.id = state.id or new_id()
        mode, why = (self.mode, "") if self.mode else mode_of(self.offline)  # once offline, a run stays so
        for each in dict.fromkeys((mode, "offline")):
            try:
                run = self._init(wandb, state.id, each)
                break
            except (wandb.errors.Error, OSError) as error:
                self._lost()  # or the id would count as being used
                if each == "offline":
                    raise
                mode, why = "offline", in_a_line(error)
        self.mode = mode
        sys.excepthook, sys.exit = hooks  # wandb only notes there how the process ends, which `_finish` says
        run.define_metric(STEP)
        run.define_metric("*", step_metric=STEP, step_sync=True)
        if why:
            say(f"W&B: {why}; the run is kept offline, to be sent by: {command(SYNC, run_dir=self.run_dir)}", "yellow")
        elif mode == "online":
            say(f"W&B: {run.url}")
        return run

    def _init(self, wandb: Any, run_id: str, mode: str) -> Any:
        settings = wandb.Settings(
            console="off",
            silent=True,
            finish_timeout=UPLOAD * self.finish_seconds,
            finish_timeout_raises=True,
            init_timeout=min(60.0, self.finish_seconds / 2),
        )
        given = {"id": run_id, "resume": "allow", "mode": mode, "dir": str(self.run_dir), "reinit": "create_new"}
        return wandb.init(settings=settings, **(given | self.arguments))

    def _lost(self) -> None:
        import wandb

        self.opened = None
        with suppress(Exception):
            wandb.teardown(1)
        os.environ.pop("WANDB_SERVICE", None)

    def _give(self, opened: Any, values: Mapping[str, Any], step: int) -> None:
        opened.log({**values, STEP: step})

    def _finish(self, opened: Any, status: str) -> None:
        if status == "stopped":
            opened.mark_preempting()
        try:
            opened.finish(exit_code=EXIT_CODES[status])
        except TimeoutError:
            rest = command(SYNC_REST, run_dir=self.run_dir, start=Path(opened.settings.sync_dir).name)
            say(f"W&B: its server did not take everything; the rest, which is on disk, is sent by: {rest}", "yellow")
        import wandb

        if wandb.run is None:  # nothing else in this process uses it
            wandb.teardown(EXIT_CODES[status])

    def _abandon(self) -> None:
        with suppress(Exception):
            from wandb.sdk.wandb_setup import singleton

            service = singleton().ensure_service()
            if service._proc is not None and service._cleanup is not None:
                service._cleanup()  # at its exit this process would wait for that one, however long it takes
                service._proc._process.terminate()

    # ---- what it shows

    def show_image(self, tag: str, image: NDArray[np.uint8], step: int) -> None:
        self._show(tag, step, lambda wandb: wandb.Image(image, file_type="png"), image.nbytes)

    def show_audio(self, tag: str, waveform: NDArray[np.float32], step: int, rate: int) -> None:
        tag = self.tag(tag)

        def call(opened: Any, _: set[str]) -> None:
            import wandb

            with wav_file(waveform, rate) as path:  # which is copied when it is logged
                self._give(opened, {tag: wandb.Audio(str(path))}, step)

        self.send([tag], step, call, waveform.nbytes)

    def show_video(self, tag: str, path: Path, step: int) -> None:
        self._show(tag, step, lambda wandb: wandb.Video(str(path), format=path.suffix[1:]))

    def show_text(self, tag: str, text: str, step: int) -> None:
        page = f"<pre style='white-space: pre-wrap'>{html.escape(text)}</pre>"
        self._show(tag, step, lambda wandb: wandb.Html(page, inject=False), len(page))

    def show_table(self, tag: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        some = [[_cell(cell) for cell in row] for row in rows[:MOST_ROWS]]
        self._show(
            tag, step, lambda wandb: wandb.Table(columns=list(columns), data=some, allow_mixed_types=True),
            64 * len(columns) * len(some),
        )  # fmt: skip

    def show_histogram(self, tag: str, values: NDArray[np.float64], step: int) -> None:
        counts = np.histogram(values, bins=64)
        self._show(tag, step, lambda wandb: wandb.Histogram(np_histogram=counts))

    def show_embedding(self, tag: str, vectors: Tensor, labels: list[str], thumbnails: Tensor, step: int) -> None:
        """A table, whose panel projects it: a column for the label, and one for each dimension."""
        columns = ["label", *(f"d{n}" for n in range(vectors.shape[1]))]
        points = [[label, *point] for label, point in zip(labels, vectors.float().tolist(), strict=True)]
        self._show(
            f"embedding/{tag}", step, lambda wandb: wandb.Table(columns=columns, data=points), 32 * vectors.numel()
        )

    def show_settings(self, settings: Mapping[str, Any], metrics: Sequence[str], config: str) -> None:
        found = {**(yaml.safe_load(config) or {}), "settings": dict(settings)} if config else dict(settings)
        self.send(["config"], 0, lambda opened, _: opened.config.update(found, allow_val_change=True))

    def _show(self, tag: str, step: int, make: Any, size: int = 0) -> None:
        tag = self.tag(tag)

        def call(opened: Any, _: set[str]) -> None:
            import wandb

            self._give(opened, {tag: make(wandb)}, step)

        self.send([tag], step, call, size)


def mode_of(offline: bool | None) -> tuple[str, str]:
    """The mode of `wandb.init`, and why nothing is sent where nobody asked for that."""
    if offline is not None:
        return ("offline" if offline else "online"), ""
    if mode := os.environ.get("WANDB_MODE", "").strip().lower():
        return {"dryrun": "offline", "run": "online"}.get(mode, mode), ""
    if has_key():
        return "online", ""
    return "offline", "there is no API key (`wandb login`, or WANDB_API_KEY)"


def has_key() -> bool:
    """Whether W&B finds an API key without asking for one."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or SERVER).hostname or ""
    try:
        return netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, NetrcParseError, UnicodeError):
        return False


def _cell(value: Any) -> Any:
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
