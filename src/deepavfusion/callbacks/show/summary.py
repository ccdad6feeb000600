"""The end of a run: `metrics.json`, a table, and the next commands."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from rich import get_console
from rich.table import Table

from deepavfusion.runs.directory import METRICS
from deepavfusion.utils.files import write_whole


class RunSummary(Callback):
    """Writes the final metrics, and prints them.

    `metrics.json` maps flat names to finite numbers: the last value of every metric (of an epoch, not of a step);
    `knn/…_before`, from a validation before training; `train/loss_first` and `train/loss_last`, means over the first
    and the last epoch; the number of clips that each split lists and has on disk (`data/<split>_listed`,
    `data/<split>_present`).

    Args:
        run_dir: where `metrics.json` goes; its presence marks a run as finished.
        test_follows: the run ends with a test, after which `metrics.json` is written.
        headline: names of the main metrics, shown at the top of the table.
        next_commands: printed at the end.
    """

    def __init__(
        self, run_dir: str, test_follows: bool = False, headline: Sequence[str] = (), next_commands: Sequence[str] = ()
    ) -> None:
        self.run_dir, self.test_follows = Path(run_dir), test_follows
        self.headline, self.next_commands = headline, next_commands
        self.kept: dict[str, float] = {}
        self.latest: dict[str, float] = {}  # at the last epoch's end; a resumed run may not log them again
        self.final: dict[str, float] = {}
        self.finished = False

    def state_dict(self) -> dict[str, Any]:
        return {"kept": dict(self.kept), "latest": dict(self.latest)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.kept, self.latest = dict(state_dict["kept"]), dict(state_dict["latest"])

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "validate":
            for name, value in trainer.callback_metrics.items():
                if name.startswith("knn/"):
                    self.kept[f"{name}_before"] = float(value)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if "train/loss" in trainer.callback_metrics:
            loss = float(trainer.callback_metrics["train/loss"])
            self.kept.setdefault("train/loss_first", loss)
            self.kept["train/loss_last"] = loss
        self.latest = _values(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.interrupted:
            self.final |= self.latest | _values(trainer) | self.kept
            if not self.test_follows:
                self._finish(trainer)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.interrupted:
            self.final |= _values(trainer)
            self._finish(trainer)

    def _finish(self, trainer: Trainer) -> None:
        if not trainer.is_global_zero:
            return
        for split, clips in getattr(getattr(trainer, "datamodule", None), "lists", {}).items():
            self.final[f"data/{split}_listed"] = clips.listed
            self.final[f"data/{split}_present"] = len(clips.clips)
        finite = {name: value for name, value in sorted(self.final.items()) if math.isfinite(value)}
        write_whole(self.run_dir / METRICS, json.dumps(finite, indent=2) + "\n")
        self.finished = True

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not self.finished:
            return
        metrics = self.final  # shown now that the progress bar is closed
        table = Table(title="Final metrics", show_header=False, title_justify="left")
        first = [name for name in self.headline if name in metrics]
        for name in first:
            table.add_row(name, f"{metrics[name]:,.4g}", style="bold", end_section=name == first[-1])
        for name, value in sorted(metrics.items()):
            if name not in first and not name.startswith("lr/"):  # 0 by now
                table.add_row(name, f"{value:,.4g}")
        lines = [f"Run directory  {self.run_dir}", *(f"Next           {command}" for command in self.next_commands)]
        console = get_console()
        console.print(table)
        console.print("\n".join(lines), soft_wrap=True, highlight=False)  # unwrapped, for copying


def _values(trainer: Trainer) -> dict[str, float]:
    return {name: float(v) for name, v in trainer.callback_metrics.items() if not name.endswith("_step")}
