"""What a run shows at its start: the layout of the curves, its settings, and where it comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from lightning import Callback, LightningModule, Trainer

from deepavfusion.loggers.board import board_of
from deepavfusion.runs.directory import CHECKPOINTS, CONFIG, PROVENANCE
from deepavfusion.utils.names import code, printable
from deepavfusion.utils.reading import RECORD, read_json


class Dashboard(Callback):
    """Once a run, before its first step: its settings, config and origin, and for TensorBoard several curves a card.

    Args:
        run_dir: has the config and the provenance of the run.
        cards: section -> title of a card -> its curves, as regular expressions of their whole names.
        settings: names and values, what runs are compared by. Data, learning rate, batch size over all processes, and
            start weights are added.
        metrics: names of the curves whose last values stand beside the settings.

    Settings and metrics have to be the same for all tasks: TensorBoard reads their names and types from one run, and
    shows these columns for all.
    """

    def __init__(
        self,
        run_dir: str,
        cards: Mapping[str, Mapping[str, Sequence[str]]],
        settings: Sequence[tuple[str, Any]],
        metrics: Sequence[str],
    ) -> None:
        self.run_dir, self.cards, self.settings, self.metrics = Path(run_dir), cards, settings, metrics

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        board = board_of(trainer)
        if board is None:
            return
        start = last_start(self.run_dir)
        if trainer.global_step:  # a resumed run has written it
            if changed := start.get("changed"):
                board.text("changed", "\n".join(f"- `{line}`" for line in changed), trainer.global_step)
            return
        board.layout(self.cards)
        recipe, data = pl_module.hparams, cast(Any, pl_module).record["data"]
        more = {
            "data": f"{data['name']}{' (demo)' if data['demo'] else ''}",
            "lr": trainer.optimizers[0].param_groups[0]["initial_lr"],  # the peak, before layer decay
            "batch": recipe["batch_size"] * trainer.world_size * trainer.accumulate_grad_batches,
            "start_weights": start_weights(start),
        }
        values = {name: plain(value) for name, value in {**dict(self.settings), **more}.items()}
        config = self.run_dir / CONFIG
        board.settings(values, self.metrics, config.read_text() if config.is_file() else "")
        board.text("about", run_table(self.run_dir, start))


def plain(value: Any) -> float | int | str:
    """A number or a text."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    return value if isinstance(value, (int, float)) else printable(str(value))


def last_start(run_dir: Path) -> dict[str, Any]:
    """The newest entry of a run's provenance; empty if it has none."""
    path = run_dir / PROVENANCE
    return read_json(path, RECORD, "the provenance of a run")["starts"][-1] if path.is_file() else {}


def start_weights(start: Mapping[str, Any]) -> str:
    """The runs whose checkpoints, or else the files, that a run started from."""
    paths = [Path(weights["checkpoint"]) for weights in start.get("weights", [])]
    names = [path.parents[1].name if path.parent.name == CHECKPOINTS else path.name for path in paths]
    return " + ".join(names) or "scratch"


def run_table(run_dir: Path, start: Mapping[str, Any]) -> str:
    """Command, place and origin of a run, as Markdown."""
    rows = {"command": code(str(start.get("command", ""))), "run directory": code(str(run_dir))}
    if start:
        rows["commit"] = f"{code(str(start['commit']))}{' with changes' if start['dirty'] is True else ''}"
        rows["started"] = start["date"]
    rows["start weights"] = "<br>".join(code(str(each["checkpoint"])) for each in start.get("weights", [])) or "none"
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])
