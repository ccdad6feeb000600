"""What a classification run shows: confused classes, the accuracy of each stream, the best and worst clips."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from deepavfusion.callbacks.evaluation import first_loader, read_again
from deepavfusion.callbacks.show.classification_figures import Example, draw_classes, draw_confusion, draw_examples
from deepavfusion.callbacks.show.clips import playable, shown_clips, unnormalised
from deepavfusion.callbacks.show.predictions import Verdict, choose, names, rows, truth_of, verdicts_of, write_logits
from deepavfusion.figures.by_class import EXTREMES, NAMED
from deepavfusion.figures.style import save_figure
from deepavfusion.loggers.board import Board, board_of, step_of
from deepavfusion.transforms.audio import SAMPLE_RATE
from deepavfusion.types import HEADS, Batch
from deepavfusion.utils.files import write_csv
from deepavfusion.utils.names import printable


class ClassificationReport(Callback):
    """Confusion and accuracy by class of every validation and test; after a test the best and worst clips, and files
    with all predictions.

    Shown: `confusion/{val,test}` (one class a clip), `accuracy_by_class/{val,test}` or, for several classes a
    clip, `average_precision_by_class/{val,test}`; `examples/{worst,best}` with audio, in the order of
    `predictions.scores`.
    Figures in loggers are for small cards: of many classes, they show the ends. After a test, the whole figures
    are `confusion_test.png` and `{accuracy,average_precision}_by_class_test.png` in the run's directory.

    `classification_test.csv`: item, id, classes, the prediction, its probability and that of the truth; the same for
    each stream, and for the dense windows if there are any. `predictions_test.npz`: logits to compute metrics from,
    see `predictions.write_logits`. A test without clips writes nothing.

    Args:
        run_dir: where the files go.
        num_examples: number of the best clips shown, and of the worst.
    """

    def __init__(self, run_dir: str, num_examples: int = 6) -> None:
        self.run_dir, self.num_examples = Path(run_dir), num_examples

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """By now the metrics have gathered the clips of all processes."""
        board = board_of(trainer)
        if board is not None:
            classes = first_loader(trainer).dataset.list.classes
            self._draw(board, pl_module.val_metrics, classes, "val", step_of(trainer))

    @torch.no_grad()
    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        loader, module = first_loader(trainer), cast(Any, pl_module)
        dataset, metrics = loader.dataset, module.test_metrics
        found, dense = metrics.table(), module.dense_metrics.table()
        if not len(found["item"]):
            return
        verdicts = {stream: verdicts_of(found[stream], found["target"]) for stream in HEADS}
        lines = list(rows(found, verdicts, dense, dataset))
        write_csv(self.run_dir / "classification_test.csv", lines)
        write_logits(self.run_dir / "predictions_test.npz", found, dense, dataset)
        board, step, classes = board_of(trainer), step_of(trainer), dataset.list.classes
        self._draw(board, metrics, classes, "test", step)
        if board is None:
            return
        board.table("predictions/test", lines, step)
        truth = truth_of(found["target"], len(classes))
        for kind in ("worst", "best"):
            examples = []
            for n in choose(found, self.num_examples, best=kind == "best"):
                batch = read_again(trainer, module, loader, int(found["item"][n]))
                if len(batch):
                    verdict_of = {stream: verdicts[stream][n] for stream in HEADS}
                    examples.append(_example(batch, truth[n], verdict_of, classes))
            if examples:
                order = "lowest" if kind == "worst" else "highest"
                title = f"The {kind} {len(examples)} {shown_clips(pl_module)}, {order} probability of the truth first"
                board.figure(f"examples/{kind}", draw_examples(examples, title), step)
            for place, example in enumerate(examples, 1):
                tag = f"examples/{kind}_{place}_{printable(example.name)}"
                board.audio(tag, example.waveform, step, SAMPLE_RATE)

    def _draw(self, board: Board | None, metrics: Any, classes: list[str], split: str, step: int) -> None:
        """The figures of a split; none if no clip was evaluated."""
        by_class = {stream: metrics.per_class(stream).tolist() for stream in HEADS}
        target = metrics.table()["target"]
        if not len(target):
            return
        files = split == "test"
        if not metrics.multi_label:
            counts = metrics.confusion().cpu().numpy()
            if board is not None:
                board.figure(f"confusion/{split}", draw_confusion(counts, classes, split), step)
            if files and len(classes) > NAMED:
                figure = draw_confusion(counts, classes, split, everything=True)
                save_figure(figure, self.run_dir / f"confusion_{split}.png")
        measure = "average precision" if metrics.multi_label else "accuracy"
        clips = truth_of(target, len(classes)).sum(dim=0).tolist()
        if any(clips):
            shown = (by_class, clips, classes, measure, split)
            name = f"{measure.replace(' ', '_')}_by_class"
            if board is not None:
                board.figure(f"{name}/{split}", draw_classes(*shown), step)
            if files and sum(map(bool, clips)) > 2 * EXTREMES + 1:
                save_figure(draw_classes(*shown, everything=True), self.run_dir / f"{name}_{split}.png")


def _example(batch: Batch, truth: Tensor, verdicts: dict[str, Verdict], classes: list[str]) -> Example:
    assert batch.spectrogram is not None
    return Example(
        name=batch.id[0],
        truth=names(truth.nonzero().flatten().tolist(), classes),
        verdicts={
            stream: (classes[v.predicted[0]], v.probability, v.of_truth, bool(truth[v.predicted[0]]))
            for stream, v in verdicts.items()
        },
        frame=unnormalised(batch.image[:1])[0],
        spectrogram=10 * batch.spectrogram[0, 0].float().cpu(),
        waveform=playable(batch.waveform[0]),
    )
