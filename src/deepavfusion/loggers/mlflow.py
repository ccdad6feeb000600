"""MLflow."""

from __future__ import annotations

import csv
import io
import logging
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from deepavfusion.loggers.service import Service, State, wav_file
from deepavfusion.utils.addresses import USER
from deepavfusion.utils.console import say
from deepavfusion.utils.names import to_cell

LONGEST_VALUE = 500  # characters of a parameter
MOST_AT_ONCE = 100  # parameters of a request
STATUSES = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}
LATER = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "DEADLINE_EXCEEDED", "ABORTED")
QUIET = {  # unless the environment says otherwise: usage data is not sent, and a server that is down is noticed soon
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # at the end, and with its password
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}


class MlflowLogger(Service):
    """A run of MLflow: on a tracking server, or in `<run_dir>/mlflow` (an SQLite file, and artifacts beside it).

    Args:
        run_dir: of the run.
        tracking_uri: of a server or a store; None: MLFLOW_TRACKING_URI, or else the run's directory.
        experiment: its name.
        name: of the run there; None: that of its directory.
        tags: of the run there.
        purge_step, finish_seconds: see `Service`.
    """

    title, folder, plain_tags = "MLflow", "mlflow", True

    def __init__(
        self,
        run_dir: str,
        tracking_uri: str | None = None,
        experiment: str = "deepavfusion",
        name: str | None = None,
        tags: Mapping[str, str] | None = None,
        purge_step: int | None = None,
        finish_seconds: float = 120.0,
    ) -> None:
        super().__init__(run_dir, purge_step, finish_seconds)
        self.experiment_name, self.run_name, self.tags = experiment, name or self.run_dir.name, dict(tags or {})
        given = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
        self.local = None if given else self.run_dir.resolve() / self.folder
        self.tracking_uri = given or f"sqlite:///{self.local}/mlflow.db"
        self.run_id = ""

    @property
    def place(self) -> str:
        return f"{self.address} {self.experiment_name}"

    @property
    def address(self) -> str:
        """Without a user and password."""
        return USER.sub("", self.tracking_uri)

    @property
    def watch(self) -> str | None:
        if self.local is not None:
            return "mlflow ui --backend-store-uri sqlite:///{absolute}/mlflow/mlflow.db"
        return None

    @property
    def purpose(self) -> str:
        return super().purpose + ("" if _has_pages() else f" (first: {sys.executable} -m pip install mlflow)")

    def _open(self, state: State) -> Any:
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        if self.local is not None:
            self.local.mkdir(parents=True, exist_ok=True)
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        logging.getLogger("mlflow").setLevel(logging.WARNING)  # it tells of the tables that it creates
        client = MlflowClient(self.tracking_uri)
        if state.id:
            try:
                found = client.get_run(state.id)
                if self.local is None or self._is_here(found.info.artifact_uri):
                    client.update_run(state.id, status="RUNNING")
                    self._name(state.id, found.info.experiment_id)
                    return client
                why = "its artifacts are not in this directory, which was moved or copied"
            except MlflowException as error:
                if self.is_temporary(error):
                    raise
                why = "it is not there any more"
            say(f"MLflow: run {state.id} is not continued, as {why}; a new one begins", "yellow")
            state.id, state.before, state.given = "", {}, {}
        experiment = self._experiment(client)
        run = client.create_run(experiment, run_name=self.run_name, tags=self.tags)
        state.id = run.info.run_id
        self._name(state.id, experiment)
        return client

    def _name(self, run_id: str, experiment: str) -> None:
        self.run_id = run_id
        if self.address.startswith("http"):
            say(f"MLflow: {self.address.rstrip('/')}/#/experiments/{experiment}/runs/{run_id}")

    def _experiment(self, client: Any) -> str:
        """Its id; it is created if there is none. Another one of that name may be of a directory that was moved."""
        for number in range(1, 1000):
            name = self.experiment_name + (f" ({number})" if number > 1 else "")
            found = client.get_experiment_by_name(name)
            if found is None:
                where = (self.local / "artifacts").as_uri() if self.local is not None else None
                return str(client.create_experiment(name, artifact_location=where))
            if found.lifecycle_stage == "active" and (self.local is None or self._is_here(found.artifact_location)):
                return str(found.experiment_id)
        raise ValueError(f"there are a thousand experiments of the name {self.experiment_name}")

    def _is_here(self, place: str) -> bool:
        assert self.local is not None
        artifacts = (self.local / "artifacts").as_uri()
        return (place == artifacts or place.startswith(f"{artifacts}/")) and ".." not in place

    def is_temporary(self, error: Exception) -> bool:
        return super().is_temporary(error) or getattr(error, "error_code", "") in LATER

    def _give(self, opened: Any, values: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [Metric(name, value, now, step) for name, value in values.items()]
        opened.log_batch(self.run_id, metrics=metrics, synchronous=True)

    def _finish(self, opened: Any, status: str) -> None:
        opened.set_terminated(self.run_id, STATUSES[status])

    # ---- what it shows

    def show_image(self, tag: str, image: NDArray[np.uint8], step: int) -> None:
        tag = self.tag(tag)
        self.send(
            [tag], step,
            lambda opened, _: opened.log_image(self.run_id, image, key=tag, step=step, synchronous=True), image.nbytes,
        )  # fmt: skip

    def show_audio(self, tag: str, waveform: NDArray[np.float32], step: int, rate: int) -> None:
        tag = self.tag(tag)

        def call(opened: Any, _: set[str]) -> None:
            with wav_file(waveform, rate, f"step_{step:08d}.wav") as path:
                opened.log_artifact(self.run_id, str(path), _folder("audio", tag))

        self.send([tag], step, call, waveform.nbytes)

    def show_video(self, tag: str, path: Path, step: int) -> None:
        tag = self.tag(tag)

        def call(opened: Any, _: set[str]) -> None:
            with TemporaryDirectory(prefix="deepavfusion-") as folder:
                named = Path(folder, f"step_{step:08d}{path.suffix}")
                shutil.copyfile(path, named)
                opened.log_artifact(self.run_id, str(named), _folder("video", tag))

        self.send([tag], step, call)

    def show_text(self, tag: str, text: str, step: int) -> None:
        tag = self.tag(tag)
        file = f"text/{tag}_{step:08d}.md" if step else f"text/{tag}.md"
        self.send([tag], step, lambda opened, _: opened.log_text(self.run_id, text, file), len(text))

    def show_table(self, tag: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        tag, text = self.tag(tag), io.StringIO()
        csv.writer(text).writerows([to_cell(cell) for cell in row] for row in (columns, *rows))
        file = f"tables/{tag}_{step:08d}.csv"
        self.send([tag], step, lambda opened, _: opened.log_text(self.run_id, text.getvalue(), file), 4 * text.tell())

    def show_settings(self, settings: Mapping[str, Any], metrics: Sequence[str], config: str) -> None:
        found = {**dict(_flat(yaml.safe_load(config) or {})), **{f"settings.{n}": v for n, v in settings.items()}}
        parameters = {self.tag(name)[:250]: str(value)[:LONGEST_VALUE] for name, value in found.items()}
        self.send(["config"], 0, lambda opened, _: self._give_parameters(opened, parameters, config))

    def _give_parameters(self, opened: Any, parameters: Mapping[str, str], config: str) -> None:
        from mlflow.entities import Param

        known = opened.get_run(self.run_id).data.params  # which never change
        new = [Param(name, value) for name, value in parameters.items() if name not in known]
        for start in range(0, len(new), MOST_AT_ONCE):
            opened.log_batch(self.run_id, params=new[start : start + MOST_AT_ONCE], synchronous=True)
        if config:
            opened.log_text(self.run_id, config, "config.yaml")


def _folder(kind: str, tag: str) -> str:
    """Of the artifacts of a tag, one for each step: MLflow shows them as a tree."""
    return tag if tag.startswith(f"{kind}/") else f"{kind}/{tag}"


def _has_pages() -> bool:
    """Whether all of MLflow is installed; mlflow-skinny has the command that shows runs, but not its pages."""
    try:
        distribution("mlflow")
    except PackageNotFoundError:
        return False
    return True


def _flat(config: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a config under their whole keys."""
    if isinstance(config, Mapping) and config:
        for name, value in config.items():
            yield from _flat(value, f"{key}.{name}" if key else str(name))
    else:
        yield key, config
