"""What a classification run shows: which classes are confused, which stream knows which, the clips that fail."""

from __future__ import annotations

import csv
import math
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import matplotlib
import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torch.utils.tensorboard import SummaryWriter

from deepavfusion.callbacks.pictures import first_loader, is_due, playable, spectrogram_picture, writer_of
from deepavfusion.metrics.classification import ALL
from deepavfusion.transforms.audio import FRAMES_PER_SECOND, SAMPLE_RATE
from deepavfusion.transforms.image import Normalise
from deepavfusion.types import STREAMS

HEADS = (ALL, *STREAMS)
EXTREMES = 20  # of many classes, so many best and worst ones, and pairs that are confused
ALIKE = 2  # at most so many of the best examples are of the same classes, as long as there are others
MARKS = {"image": ("o", "#0072b2", -0.27), "audio": ("^", "#d55e00", 0.0), "fusion": ("s", "#009e73", 0.27)}
RIGHT, WRONG = "#b5e0b8", "#f3bcb4"


@dataclass
class Said:
    """What one stream says of N clips: the classes it names, likeliest first; the probability of the first, and of the
    truth, where that is several classes of the least likely of them (nan where it is none)."""

    predicted: list[list[int]]
    probability: list[float]
    of_truth: list[float]


@dataclass
class Example:
    """A clip to draw: picture [3, H, W] in 0…1, spectrogram RGB [3, M, F] in 0…1, waveform [1, T].

    `said`: stream -> name of the likeliest class, its probability, that of the truth, and whether it is (in) the truth.
    """

    name: str
    truth: str
    said: dict[str, tuple[str, float, float, bool]]
    picture: Tensor
    spectrogram: Tensor
    waveform: Tensor


class ClassificationReport(Callback):
    """Confusions, and how well each class is known, of every validation and test; after a test its best and worst
    clips, and files with all predictions.

    TensorBoard: `confusion/{val,test}` (one class a clip), `accuracy_by_class/{val,test}` or, for several classes a
    clip, `average_precision_by_class/{val,test}`; `examples/{worst,best}` with sounds, in the order of `scores`.
    `classification_test.csv`: item, id, classes, what is predicted and how probable that and the truth are; also for
    each stream, and for the dense windows where there are any. `predictions_test.npz`: logits to compute metrics from,
    see `write_logits`. A test without clips leaves nothing.

    Args:
        run_dir: where the files go.
        num_examples: clips shown of the best and of the worst each.
        most_classes: up to so many stand with their names in the confusion matrix.
        every_n_epochs: epochs between two drawings of validations, see `pictures.is_due`.
    """

    def __init__(self, run_dir: str, num_examples: int = 8, most_classes: int = 30, every_n_epochs: int = 1) -> None:
        self.run_dir, self.num_examples = Path(run_dir), num_examples
        self.most_classes, self.every_n_epochs = most_classes, every_n_epochs

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """By now the metrics know the clips of all processes."""
        writer = writer_of(trainer)
        if writer is not None and is_due(trainer, self.every_n_epochs):
            classes = first_loader(trainer.val_dataloaders).dataset.list.classes
            self._draw(writer, pl_module.val_metrics, classes, "val", trainer.global_step)

    @torch.no_grad()
    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        loader = first_loader(trainer.test_dataloaders)
        module: Any = pl_module
        metrics, multi_label = module.test_metrics, module.test_metrics.multi_label
        found, dense = metrics.predictions(), module.dense_metrics.predictions()
        if not len(found["item"]):
            return
        verdicts = {stream: said(found[stream], found["target"], multi_label) for stream in HEADS}
        with _whole(self.run_dir / "classification_test.csv") as file:
            csv.writer(file).writerows(rows(found, verdicts, dense, multi_label, loader.dataset))
        write_logits(self.run_dir / "predictions_test.npz", found, dense, loader.dataset)
        writer = writer_of(trainer)
        if writer is None:
            return
        step = trainer.global_step
        self._draw(writer, metrics, loader.dataset.list.classes, "test", step)
        for kind in ("worst", "best"):
            chosen = choose(found, multi_label, self.num_examples, best=kind == "best")
            examples = self._read(trainer, module, loader, found, verdicts, chosen)
            if examples:
                writer.add_figure(f"examples/{kind}", draw_examples(examples), step)
            for place, example in enumerate(examples, 1):
                writer.add_audio(f"examples/{kind}_{place}_{example.name}", example.waveform, step, SAMPLE_RATE)

    def _draw(self, writer: SummaryWriter, metrics: Any, classes: list[str], split: str, step: int) -> None:
        """Of a split of which nothing was evaluated there is nothing to see."""
        by_class = {stream: metrics.per_class(stream).tolist() for stream in HEADS}
        target = metrics.predictions()["target"]
        if not len(target):
            return
        if not metrics.multi_label:
            figure = draw_confusion(metrics.confusion().cpu().numpy(), classes, split, self.most_classes)
            writer.add_figure(f"confusion/{split}", figure, step)
        measure = "average precision" if metrics.multi_label else "accuracy"
        clips = _truth(target, len(classes)).sum(dim=0).tolist()
        if any(clips):
            figure = draw_classes(by_class, clips, classes, f"{measure}, {split}")
            writer.add_figure(f"{measure.replace(' ', '_')}_by_class/{split}", figure, step)

    @staticmethod
    def _read(
        trainer: Trainer,
        pl_module: LightningModule,
        loader: Any,
        found: dict[str, Tensor],
        verdicts: dict[str, Said],
        chosen: Sequence[int],
    ) -> list[Example]:
        """Pictures and sounds once more; a clip that is not there any more is left out."""
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        classes = loader.dataset.list.classes
        truth = _truth(found["target"][chosen], len(classes))
        examples = []
        for n, true in zip(chosen, truth, strict=True):
            batch = loader.collate_fn([loader.dataset[int(found["item"][n]), 0]])
            batch = datamodule.on_after_batch_transfer(batch.to(pl_module.device), 0)
            if not len(batch):
                continue
            words = {}
            for stream, verdict in verdicts.items():
                likely = verdict.predicted[n][0]
                words[stream] = (classes[likely], verdict.probability[n], verdict.of_truth[n], bool(true[likely]))
            examples.append(
                Example(
                    name=batch.id[0],
                    truth=names(true.nonzero().flatten().tolist(), classes),
                    said=words,
                    picture=Normalise().to(batch.image.device).reverse(batch.image[:1])[0].cpu(),
                    spectrogram=spectrogram_picture(batch.spectrogram[:1])[0],
                    waveform=playable(batch.waveform[0]),
                )
            )
        return examples


# ---- predictions


def _truth(target: Tensor, classes: int) -> Tensor:
    """int [N] or 0 and 1 [N, C] -> bool [N, C]"""
    return target.bool() if target.ndim == 2 else F.one_hot(target, classes).bool()


def _least(values: Tensor, truth: Tensor) -> Tensor:
    """values, bool [N, C] -> the smallest value of a true class [N], inf where there is none"""
    return values.masked_fill(~truth, math.inf).amin(dim=1)


def said(logits: Tensor, target: Tensor, multi_label: bool) -> Said:
    """Probabilities are a softmax, or for several classes a clip a sigmoid; then all classes are named that are
    likelier than not, and if there is none, the likeliest.

    Args:
        logits: [N, C].
        target: int [N], or 0 and 1 [N, C].
        multi_label: whether clips may have several classes.
    """
    chances = logits.sigmoid() if multi_label else logits.softmax(dim=1)
    ranked = logits.argsort(dim=1, descending=True, stable=True)  # of equal ones the first, as the metrics do
    many = (logits > 0).sum(dim=1).clamp(min=1).tolist() if multi_label else [1] * len(logits)
    of_truth = _least(chances, _truth(target, logits.shape[1]))
    return Said(
        predicted=[row[:n].tolist() for row, n in zip(ranked, many, strict=True)],
        probability=chances.gather(1, ranked[:, :1]).squeeze(1).tolist(),
        of_truth=of_truth.masked_fill(of_truth.isinf(), math.nan).tolist(),
    )


def scores(logits: Tensor, target: Tensor, multi_label: bool) -> Tensor:
    """How right each clip is, float64 [N]: the log probability of the truth.

    With several classes a clip: the logit of its least likely true class above that of the likeliest other class,
    positive where all that is true comes first. (Binary cross entropy would mostly tell how many classes a clip has.)
    Where nothing or everything is true, 0 takes the place of what is missing.
    """
    logits, truth = logits.double(), _truth(target, logits.shape[1])
    if not multi_label:
        return _least(logits.log_softmax(dim=1), truth)
    least, most = _least(logits, truth), logits.masked_fill(truth, -math.inf).amax(dim=1)
    return least.masked_fill(~truth.any(dim=1), 0) - most.masked_fill(truth.all(dim=1), 0)


def choose(found: dict[str, Tensor], multi_label: bool, count: int, best: bool) -> list[int]:
    """Rows of the worst predictions, the worst first; or of the best, the best first, and of the same classes at most
    two as long as there are others."""
    order = scores(found[ALL], found["target"], multi_label).argsort(descending=best, stable=True).tolist()
    if not best:
        return order[:count]
    taken: Counter[tuple[int, ...]] = Counter()
    first: list[int] = []
    later: list[int] = []
    for row in order:
        kind = tuple(found["target"][row].flatten().tolist())
        taken[kind] += 1
        (first if taken[kind] <= ALIKE else later).append(row)
        if len(first) == count:
            break
    return sorted((first + later)[:count], key=order.index)


def names(labels: Sequence[int], classes: Sequence[str]) -> str:
    return " + ".join(classes[label] for label in labels)


def rows(
    found: dict[str, Tensor], verdicts: dict[str, Said], dense: dict[str, Tensor], multi_label: bool, dataset: Any
) -> Iterator[list[Any]]:
    """Lines of the table, the header first. The probability of the truth is that of its least likely class; nothing
    stands for the dense windows of a clip where they could not be read."""
    classes = dataset.list.classes
    columns = {"": verdicts[ALL], **{f"_{stream}": verdicts[stream] for stream in STREAMS}}
    place = {suffix: {n: n for n in range(len(found["item"]))} for suffix in columns}  # row -> row of the verdict
    if len(dense["item"]):
        row_of = {item: n for n, item in enumerate(dense["item"].tolist())}
        columns["_dense"] = said(dense[ALL], dense["target"], multi_label)
        place["_dense"] = {n: row_of[item] for n, item in enumerate(found["item"].tolist()) if item in row_of}
    words = ("predicted", "probability", "probability_of_truth")
    yield ["item", "id", "classes", *(f"{word}{suffix}" for suffix in columns for word in words)]
    truth = _truth(found["target"], len(classes))
    for n, item in enumerate(found["item"].tolist()):
        line = [item, dataset.clips[dataset.first_clip(item)].id, names(truth[n].nonzero().flatten().tolist(), classes)]
        for suffix, verdict in columns.items():
            if (at := place[suffix].get(n)) is None:
                line += ["", "", ""]
                continue
            line.append(names(verdict.predicted[at], classes))
            line += ["" if math.isnan(p) else f"{p:.6g}" for p in (verdict.probability[at], verdict.of_truth[at])]
        yield line


def write_logits(path: Path, found: dict[str, Tensor], dense: dict[str, Tensor], dataset: Any) -> None:
    """All that metrics can be computed from, for `numpy.load`, without pickled objects.

    `classes` str [C]; `item` int64 [N], position in the list; `id` str [N]; `target` int64 [N], or 0 and 1 [N, C];
    `logits_{image,audio,fusion,all}` float32 [N, C]. The same of the dense windows, mean logits of a clip, with names
    `dense_…`, where there are any; both are sorted by item, and differ in length where not all could be read.
    """
    arrays = {"classes": np.array(dataset.list.classes, dtype=str)}
    for prefix, table in (("", found), ("dense_", dense)):
        if len(table["item"]):
            ids = [dataset.clips[dataset.first_clip(item)].id for item in table["item"].tolist()]
            arrays[f"{prefix}id"] = np.array(ids, dtype=str)
            arrays |= {f"{prefix}{name}": table[name].numpy() for name in ("item", "target")}
            arrays |= {f"{prefix}logits_{stream}": table[stream].numpy() for stream in HEADS}
    with _whole(path, binary=True) as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


@contextmanager
def _whole(path: Path, binary: bool = False) -> Iterator[IO[Any]]:
    """A file that is written whole or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    text: dict[str, Any] = {} if binary else {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}
    try:
        with partial.open("wb" if binary else "w", **text) as file:
            yield file
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


# ---- drawings


def draw_confusion(counts: NDArray[np.int64], classes: Sequence[str], split: str, most_classes: int = 30) -> Figure:
    """Share of the clips of each class (row) that are predicted as each (column).

    Up to `most_classes` with names and per cents, and up to 12 with counts, too. More are drawn by number, small shares
    lifted, next to a list of the pairs that are confused most often.

    Args:
        counts: int [C, C], rows truth, columns prediction.
    """
    total = counts.sum(axis=1, keepdims=True)
    share = np.where(total > 0, counts / np.maximum(total, 1), np.nan)  # rows of classes that do not occur stay grey
    if len(classes) > most_classes:
        return _draw_many(counts, share, classes, split)
    size = max(4.5, 0.42 * len(classes) + 1.5) if len(classes) > 12 else max(4.5, 0.75 * len(classes) + 1.5)
    figure = Figure(figsize=(size + 0.8, size), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(share, cmap=_colours("Blues"), vmin=0, vmax=1)
    labels = [_short(name, 28) for name in classes]
    axis.set_xticks(range(len(classes)), labels, rotation=90)
    axis.set_yticks(range(len(classes)), labels)
    for (i, j), value in np.ndenumerate(share):
        if counts[i, j]:
            text = f"{100 * value:.0f}" + (f"\n({counts[i, j]})" if len(classes) <= 12 else "")
            colour = "white" if value > 0.55 else "0.15"
            axis.text(j, i, text, ha="center", va="center", color=colour, fontsize=8)
    _label(axis, figure, image, counts, split)
    return figure


def _draw_many(counts: NDArray[np.int64], share: NDArray[np.float64], classes: Sequence[str], split: str) -> Figure:
    side = max(6.5, len(classes) / 50)  # inches: two pixels a class
    figure = Figure(figsize=(side + 8.0, side + 0.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(side + 1.0, 3.0))
    image = left.imshow(share, cmap=_colours("magma"), norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
    _label(left, figure, image, counts, split)
    left.set_xlabel("predicted (number of the class)")
    left.set_ylabel("truth (number of the class)")
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    rank = np.lexsort((np.arange(wrong.size), -np.nan_to_num(share).ravel(), -wrong.ravel()))[:EXTREMES]
    pairs = [divmod(int(n), len(classes)) for n in rank if wrong.flat[n]]
    texts = [" → ".join(f"{_short(classes[n], 34)} ({n})" for n in pair) for pair in pairs]
    shares = [float(share[pair]) for pair in pairs]
    right.barh(range(len(pairs)), shares, color="#c6a0b8")
    for place, (pair, value) in enumerate(zip(pairs, shares, strict=True)):
        right.text(value, place, f" {counts[pair]} of {counts[pair[0]].sum()}", va="center", fontsize=8)
    right.set_yticks(range(len(pairs)), texts, fontsize=8)
    right.set_ylim(EXTREMES - 0.4, -0.6)
    right.set_xlim(0, 1.4 * max(shares, default=1.0))
    right.set_title("most often confused: truth → prediction (numbers)", loc="right", fontsize=9)
    right.set_xlabel("share of the true clips")
    return figure


def _label(axis: Axes, figure: Figure, image: Any, counts: NDArray[np.int64], split: str) -> None:
    axis.set_xlabel("predicted")
    axis.set_ylabel("truth")
    axis.set_title(f"{split}: {np.trace(counts)} of {counts.sum()} clips right", fontsize=9)
    figure.colorbar(image, ax=axis, label="share of the clips of a class", shrink=0.8)


def _colours(name: str) -> Any:
    return matplotlib.colormaps[name].with_extremes(bad="0.85")


def _short(name: str, letters: int) -> str:
    """No longer than so many letters; a dollar sign does not begin a formula."""
    return (name if len(name) <= letters else f"{name[: letters - 1]}…").replace("$", r"\$")


def draw_classes(values: dict[str, list[float]], clips: Sequence[int], classes: Sequence[str], measure: str) -> Figure:
    """Bars for the mean of the heads, the best class first, and marks for each head; of many classes both ends.

    Args:
        values: stream -> of each class, nan where it does not occur.
        clips: of each class.
        measure: what it is, and of which split.
    """
    known = [n for n, value in enumerate(values[ALL]) if not math.isnan(value)]
    order = sorted(known, key=lambda n: [-values[stream][n] for stream in (ALL, *STREAMS[::-1])])
    parts = {f"all {len(order)} classes (clips)": order}
    if len(order) > 2 * EXTREMES:
        best = f"the best {EXTREMES} of {len(order)} classes (clips)"
        parts = {best: order[:EXTREMES], f"the worst {EXTREMES}": order[-EXTREMES:]}
    lines = max(len(part) for part in parts.values())
    figure = Figure(figsize=(6.5 * len(parts), 0.24 * lines + 1.6), layout="constrained")
    axes = figure.subplots(1, len(parts), squeeze=False)[0]
    for axis, (title, part) in zip(axes, parts.items(), strict=True):
        places = np.arange(len(part))
        heights = [values[ALL][n] for n in part]
        axis.barh(places, heights, color="0.85")
        for stream, (mark, colour, shift) in MARKS.items():
            axis.plot([values[stream][n] for n in part], places + shift, mark, color=colour, markersize=3.5)
        for place, value in zip(places, heights, strict=True):
            axis.text(1.03, place, f"{value:.2f}", va="center", fontsize=8)
        axis.set_yticks(places, [f"{_short(classes[n], 36)} ({clips[n]})" for n in part], fontsize=8)
        axis.set_ylim(len(part) - 0.4, -0.6)
        axis.set_xlim(-0.02, 1.13)  # room for the number
        axis.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1])
        axis.set_title(title, fontsize=9)
        axis.set_xlabel(measure)
    means = {stream: math.fsum(values[stream][n] for n in known) / len(known) for stream in HEADS}
    handles: list[Any] = [Patch(color="0.85", label=f"mean of the heads, {means[ALL]:.3f}")]
    for stream, (mark, colour, _) in MARKS.items():
        label = f"{stream}, {means[stream]:.3f}"
        handles.append(Line2D([], [], color=colour, marker=mark, markersize=4, linestyle="", label=label))
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8, title="mean over the classes",
                  title_fontsize=8)  # fmt: skip
    return figure


def draw_examples(examples: Sequence[Example]) -> Figure:
    """A row for each clip: picture, spectrogram, a bar for what each stream takes for likeliest, and on its right the
    probability of the truth."""
    figure = Figure(figsize=(10, 1.75 * len(examples) + 0.5), layout="constrained")
    axes = figure.subplots(len(examples), 3, squeeze=False, width_ratios=(1, 1.9, 3))
    for line, example in zip(axes, examples, strict=True):
        seconds = example.spectrogram.shape[-1] / FRAMES_PER_SECOND
        line[0].imshow(example.picture.permute(1, 2, 0))
        line[0].set_xticks([])
        line[0].set_ylabel(_short(example.name, 24), fontsize=7)
        line[1].imshow(example.spectrogram.permute(1, 2, 0), aspect="auto", extent=(0, seconds, 0, 1))
        line[1].tick_params(labelsize=7)
        for axis in line[:2]:
            axis.set_yticks([])
        truth = textwrap.wrap(f"truth: {example.truth}".replace("$", r"\$"), 76, max_lines=2, placeholder=" …")
        line[2].set_title("\n".join(truth), loc="left", fontsize=8)
        for place, (name, probability, of_truth, right) in enumerate(example.said.values()):
            line[2].barh(place, probability, color=RIGHT if right else WRONG)
            line[2].text(0.01, place, f"{_short(name, 40)}  {100 * probability:.1f} %", va="center", fontsize=8)
            if not math.isnan(of_truth):
                line[2].text(1.02, place, f"{100 * of_truth:.1f} %", va="center", fontsize=8)
        line[2].set_yticks(range(len(example.said)), list(example.said), fontsize=8)
        line[2].set_ylim(len(example.said) - 0.5, -0.5)
        line[2].set_xlim(0, 1)
        line[2].set_xticks([0, 0.5, 1])
        line[2].tick_params(axis="x", labelsize=7)
    axes[-1, 1].set_xlabel("s", fontsize=8)
    axes[-1, 2].set_xlabel("probability; right: of the truth, of several classes the least likely", fontsize=8)
    handles = [Patch(color=RIGHT, label="the likeliest class is true"), Patch(color=WRONG, label="it is not")]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=8)
    return figure
