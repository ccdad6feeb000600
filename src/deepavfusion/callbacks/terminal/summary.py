"""The end of a run: `metrics.json`, a table, and the next commands."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from lightning import Callback, LightningModule, Trainer
from rich import get_console

from deepavfusion.callbacks.terminal.results import chances, example_video, results_table
from deepavfusion.runs.directory import BEST, CHECKPOINTS, LAST, METRICS
from deepavfusion.utils.commands import command
from deepavfusion.utils.console import say
from deepavfusion.utils.files import write_whole
from deepavfusion.utils.structure import DictOf

PREDICTED = ("separate", "segment", "classify")  # tasks of predict.py with the same name
SEARCHED = ("pretrain", "retrieve")  # whose networks a search is for
SAME = ("scale=", "trainer=", "paths.", "model.net.", "model/net=", "data.image_size=")  # also in the next command
DATA = ("data=", "data.root=", "data.index.")  # overrides that say what data is used


class RunSummary(Callback):
    """Writes the final metrics, and prints them.

    `metrics.json` maps flat names to finite numbers: the last value of every metric (of an epoch, not of a step);
    `knn/…_before`, from a validation before training; `train/loss_first` and `train/loss_last`, means over the first
    and the last epoch; the number of clips that each split lists and has on disk (`data/<split>_listed`,
    `data/<split>_present`); with several labels a clip, `test/map_chance`, the share of positive labels.

    Args:
        run_dir: where `metrics.json` goes; its presence marks a run as finished.
        test_follows: the run ends with a test, after which `metrics.json` is written.
        headline: name -> label of the main metrics, which are shown; also names alone.
        next_commands: what to do next: [words, command], see `utils.commands.command`. A command may use {run_dir},
            {last} and {best}, checkpoints of the run, {tested}, the checkpoint that was evaluated, {task}, {video}, a
            clip of the test split, {root}, the data with that clip, {same}, the overrides that make the network the
            same, {data}, those that say where the data is, and {demo}: as {same}, and the command is for demo runs
            only, as it needs other data.
    """

    STATE: ClassVar = {"kept": DictOf(math.nan), "latest": DictOf(math.nan)}  # see utils/structure.py

    def __init__(
        self,
        run_dir: str,
        test_follows: bool = False,
        headline: Mapping[str, str] | Sequence[str] = (),
        next_commands: Sequence[Sequence[str]] = (),
    ) -> None:
        self.run_dir, self.test_follows = Path(run_dir), test_follows
        self.headline = dict(headline) if isinstance(headline, Mapping) else {name: name for name in headline}
        self.next_commands = next_commands
        self.kept: dict[str, float] = {}
        self.before: dict[str, float] = {}  # for the table only
        self.latest: dict[str, float] = {}  # at the last epoch's end; a resumed run may not log them again
        self.final: dict[str, float] = {}
        self.finished = False
        self.count = 0  # of the values in metrics.json

    def state_dict(self) -> dict[str, Any]:
        return {"kept": dict(self.kept), "latest": dict(self.latest)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.kept, self.latest = dict(state_dict["kept"]), dict(state_dict["latest"])

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "validate":
            for name, value in trainer.callback_metrics.items():
                kept = self.kept if name.startswith("knn/") else self.before
                kept[f"{name}_before"] = float(value)

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
        if "test/map" in self.final and "map" in (chance := chances(getattr(trainer, "datamodule", None))):
            self.final["test/map_chance"] = chance["map"]
        finite = {name: value for name, value in sorted(self.final.items()) if math.isfinite(value)}
        write_whole(self.run_dir / METRICS, json.dumps(finite, indent=2) + "\n")
        self.count = len(finite)
        self.finished = True

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not self.finished:
            return
        datamodule: Any = getattr(trainer, "datamodule", None)
        get_console().print(
            results_table(self.before | self.final, self.headline, chances(datamodule))
        )  # the bar is closed by now
        used, listed = (int(self.final.get(f"data/{name}", 0)) for name in ("used", "listed"))
        if datamodule is not None and listed:
            say(f"{used} of {listed} {datamodule.count('test' if stage == 'test' else 'val')[1]} evaluated")
        trained, drawn = (int(self.final.get(f"data/train_{name}", 0)) for name in ("used", "drawn"))
        if trained < drawn:
            say(f"{trained} of {drawn} {datamodule.count('train')[1]} drawn in the last epoch used", "yellow")
        say(f"all {self.count} values: {self.run_dir / METRICS}")
        self._say_next(trainer, pl_module)

    def _say_next(self, trainer: Trainer, task: Any) -> None:
        folder = self.run_dir / CHECKPOINTS
        best = folder / (BEST if (folder / BEST).is_file() else LAST)
        values = {"run_dir": self.run_dir, "last": folder / LAST, "best": best, "tested": trainer.ckpt_path}
        values |= {"absolute": self.run_dir.resolve()}
        datamodule, name = getattr(trainer, "datamodule", None), task.record.get("task")
        values |= {"task": name, "video": example_video(datamodule), "root": getattr(datamodule, "root", "")}
        given = task.record.get("overrides", [])
        same = [override for override in given if override.startswith(SAME)]
        lists = {"same": same, "demo": same, "data": [each for each in given if each.startswith(DATA)]}
        watch = [each for logger in trainer.loggers if (each := getattr(logger, "watch", None))]
        needs = {"{demo}": "scale=demo" in given, "tensorboard": any(each.startswith("tensorboard") for each in watch)}
        needs |= {"_finetune": bool(getattr(datamodule, "classes", True))}
        needs |= {"task={task}": name in PREDICTED, "task=search": name in SEARCHED}
        needs |= {"{root}": str(values["video"]).startswith(f"{values['root']}/")}
        needs |= {"{last}": (folder / LAST).exists(), "{best}": best.exists()}
        commands = [each for each in self.next_commands if all(needs[word] for word in needs if word in each[1])]
        loggers: list[Any] = [logger for logger in trainer.loggers if getattr(logger, "purpose", None)]
        commands = [*((logger.purpose, logger.watch) for logger in loggers if logger.watch), *commands]
        if commands:
            say("Next", "bold")
        for words, template in commands:
            say(f"  {words}:")
            say(f"    {command(template, lists, **values)}")


def _values(trainer: Trainer) -> dict[str, float]:
    return {name: float(v) for name, v in trainer.callback_metrics.items() if not name.endswith("_step")}
