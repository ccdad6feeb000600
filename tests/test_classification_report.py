"""What a classification run shows and writes, from known logits: files against metrics, figures, best and worst."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from sklearn.metrics import average_precision_score
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn import functional as F

from deepavfusion.callbacks.show.classification import ClassificationReport
from deepavfusion.callbacks.show.classification_figures import Example, draw_classes, draw_confusion, draw_examples
from deepavfusion.callbacks.show.predictions import choose, rows, scores, verdicts_of
from deepavfusion.data.datamodule import ClipDataModule
from deepavfusion.data.lists.clip_list import ClipList
from deepavfusion.data.samples import ClipDataset, Unreadable
from deepavfusion.figures.style import BLACK, WRONG
from deepavfusion.figures.style import STREAMS as STREAM_STYLE
from deepavfusion.metrics.classification import ClassificationMetrics
from deepavfusion.types import ALL, HEADS, STREAMS, Clip, Problem, Sample
from helpers.runs import read_table

NAMES = ["accordion", "banjo, old", "drum", "flüte", "guitar $5", "piano $6", "trumpet", "violin"]


class Tones(ClipDataset):
    """Clips that need no files; those called "broken…", and those in `lost`, do not decode."""

    def __init__(self, *args, windows: int = 1, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.group = windows
        self.lost: set[str] = set()

    def read(self, item: int):
        clip = self.clips[item]
        if clip.id.startswith("broken") or clip.id in self.lost:
            raise Unreadable(Problem(clip.id, clip.path, "undecodable", "", used=False))
        image = torch.full((3, self.spec.image_size, self.spec.image_size), item, dtype=torch.uint8)
        sound = torch.full((self.spec.num_samples,), 0.1)
        return [Sample(image, sound, clip, 0.5, 0.0) for _ in range(self.group)]


class Knows(LightningModule):
    """Says what a table holds; the dense windows say half of it."""

    def __init__(self, logits: dict[str, torch.Tensor], multi_label: bool = False, loses: set[str] = frozenset()):
        super().__init__()
        self.logits, self.multi_label, self.loses = logits, multi_label, loses
        classes = logits["image"].shape[1]
        for name in ("val", "test", "dense"):
            setattr(self, f"{name}_metrics", ClassificationMetrics(classes, multi_label))
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.found = {}

    def count(self, metrics, batch, factor: float) -> None:
        item = batch.item[:: batch.group]
        target = batch.labels if self.multi_label else batch.label
        metrics.update({s: factor * x[item] for s, x in self.logits.items()}, target[:: batch.group], item)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def training_step(self, batch, batch_idx):
        return self.weight**2

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.count(self.val_metrics, batch, 1.0)

    def test_step(self, batch, batch_idx, dataloader_idx=0):
        self.count(*((self.dense_metrics, batch, 0.5) if dataloader_idx else (self.test_metrics, batch, 1.0)))

    def on_validation_epoch_end(self):
        self.val_metrics.compute()

    def on_test_epoch_end(self):
        self.found = {name: getattr(self, f"{name}_metrics").compute() for name in ("test", "dense")}
        self.trainer.test_dataloaders[0].dataset.lost = self.loses


def guesses(clips: int, classes: int, target: torch.Tensor) -> dict[str, torch.Tensor]:
    """Logits that are often right, the fusion's most often."""
    draw = torch.Generator().manual_seed(0)
    truth = target.float() if target.ndim == 2 else F.one_hot(target, classes).float()
    return {
        stream: 2 * torch.randn(clips, classes, generator=draw) + strength * truth - 1
        for stream, strength in zip(STREAMS, (1, 2, 3), strict=True)
    }


def clip_list(labels: list[tuple[int, ...]], classes: int, multi_label: bool = False, broken: int = 0) -> ClipList:
    clips = [
        Clip(f"{'broken' if n < broken else 'clip'}_{n:02d}", "", label[0] if label else -1,
             labels=label if multi_label else ())
        for n, label in enumerate(labels)
    ]  # fmt: skip
    return ClipList(
        "test", clips, [*NAMES, *(f"class {n}" for n in range(8, classes))][:classes], multi_label=multi_label
    )


def data_of(clips: ClipList, dense: int = 0, batch_size: int = 5) -> ClipDataModule:
    return ClipDataModule(
        lambda root, split: clips, "", "tones", samples=Tones, batch_size=batch_size, image_size=16, audio_seconds=0.5,
        num_workers=0, dense_windows=dense,
    )  # fmt: skip


def trainer_of(folder: Path, tensorboard: bool = True, epochs: int = 1, **report) -> Trainer:
    return Trainer(
        accelerator="cpu", max_epochs=epochs, logger=TensorBoardLogger(folder, "", "") if tensorboard else False,
        callbacks=[ClassificationReport(str(folder), **report)], enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip


def tags(folder: Path) -> dict[str, list[str]]:
    return EventAccumulator(str(folder), size_guidance={"audio": 0, "images": 0}).Reload().Tags()


def table(folder: Path) -> list[dict[str, str]]:
    return read_table(folder / "classification_test.csv")


def single(folder: Path, broken: int = 0, dense: int = 0, clips: int = 40, classes: int = 8, **more):
    labels = torch.arange(clips) % classes
    module = Knows(guesses(clips, classes, labels), loses=more.pop("loses", frozenset()))
    data = data_of(clip_list([(n,) for n in labels.tolist()], classes, broken=broken), dense)
    trainer_of(folder, **more).test(module, data, verbose=False)
    return module


def several(folder: Path, **more):
    labels = [(0, 1), (1,), (2, 7), (3,), (4, 5, 6), (5,), (6,), (0, 2), (3, 4), (7,), (1, 7), ()]
    target = torch.tensor([[int(n in label) for n in range(8)] for label in labels])
    module = Knows(guesses(len(labels), 8, target), multi_label=True)
    clips = clip_list(labels, 8, multi_label=True)
    clips.clips.pop()  # of no class: for direct calls only
    trainer_of(folder, **more).test(module, data_of(clips, dense=2), verbose=False)
    return module


# ---- files


def test_accuracy_follows_from_the_file_of_logits(tmp_path):
    module = single(tmp_path, tensorboard=False, broken=3, dense=2)
    with np.load(tmp_path / "predictions_test.npz", allow_pickle=False) as file:
        found = dict(file)
    assert found["classes"].tolist() == NAMES
    assert found["item"].tolist() == list(range(3, 40))
    assert found["id"].tolist() == [f"clip_{n:02d}" for n in range(3, 40)]
    assert found["target"].tolist() == [n % 8 for n in range(3, 40)]
    for prefix, name in (("", "test"), ("dense_", "dense")):
        for stream in HEADS:
            logits = found[f"{prefix}logits_{stream}"]
            assert logits.dtype == np.float32
            right = (logits.argmax(axis=1) == found[f"{prefix}target"]).mean()
            assert right == module.found[name]["top1" if stream == ALL else f"top1_{stream}"].item()
    assert np.array_equal(found["dense_logits_image"], 0.5 * found["logits_image"])
    assert found["dense_id"].tolist() == found["id"].tolist()
    assert [p.name for p in tmp_path.iterdir() if "partial" in p.name] == []


def test_precision_follows_from_the_file_of_logits(tmp_path):
    module = several(tmp_path, tensorboard=False)
    with np.load(tmp_path / "predictions_test.npz", allow_pickle=False) as found:
        assert found["target"].shape == (11, 8)
        for stream in HEADS:
            mean = average_precision_score(found["target"], found[f"logits_{stream}"], average="macro")
            assert mean == pytest.approx(module.found["test"]["map" if stream == ALL else f"map_{stream}"].item())


def test_the_table_has_the_verdict_of_each_stream(tmp_path):
    module = single(tmp_path, tensorboard=False, broken=1, dense=2)
    rows, found = table(tmp_path), module.test_metrics.table()
    assert [int(row["item"]) for row in rows] == found["item"].tolist()
    assert [row["id"] for row in rows] == [f"clip_{n:02d}" for n in range(1, 40)]
    assert [row["classes"] for row in rows] == [NAMES[n % 8] for n in range(1, 40)]
    for stream, suffix in ((ALL, ""), *((s, f"_{s}") for s in STREAMS)):
        right = [row[f"predicted{suffix}"] == row["classes"] for row in rows]
        assert sum(right) / len(rows) == module.found["test"][f"top1{suffix}"].item()
        chances = found[stream].double().softmax(dim=1)
        for row, chance, target in zip(rows, chances, found["target"], strict=True):
            assert float(row[f"probability{suffix}"]) == pytest.approx(chance.max().item(), rel=1e-4)
            assert float(row[f"probability_of_truth{suffix}"]) == pytest.approx(chance[target].item(), rel=1e-4)
    assert all(row["predicted_dense"] == row["predicted"] for row in rows)
    assert all(float(row["probability_dense"]) < float(row["probability"]) for row in rows)


def test_with_several_classes_all_likely_ones_are_named(tmp_path):
    module = several(tmp_path, tensorboard=False)
    found = module.test_metrics.table()
    for row, logits, target in zip(table(tmp_path), found[ALL], found["target"].bool(), strict=True):
        assert row["classes"] == " + ".join(NAMES[n] for n in target.nonzero().flatten())
        named = [NAMES.index(name) for name in row["predicted"].split(" + ")]
        values = logits[named].tolist()
        assert values == sorted(values, reverse=True)
        assert set(named) == set((logits > 0).nonzero().flatten().tolist()) or named == [logits.argmax().item()]
        assert float(row["probability_of_truth"]) == pytest.approx(logits[target].min().sigmoid().item(), rel=1e-4)


def test_dense_windows_that_could_not_be_read_leave_cells_empty():
    clips = data_of(clip_list([(0,), (1,)], 2))
    clips.setup()
    dataset = clips._dataset("test")
    logits = torch.tensor([[3.0, 0.0], [1.0, 0.0]])
    found = {"item": torch.tensor([0, 1]), "target": torch.tensor([0, 1]), **dict.fromkeys(HEADS, logits)}
    dense = {name: values[1:] for name, values in found.items()}
    verdicts = {stream: verdicts_of(logits, found["target"]) for stream in HEADS}
    header, first, second = rows(found, verdicts, dense, dataset)
    assert header[-3:] == ["predicted_dense", "probability_dense", "probability_of_truth_dense"]
    assert first[-3:] == ["", "", ""]
    assert second[-3] == "accordion"
    assert float(second[-1]) == pytest.approx(1 / (1 + math.e), rel=1e-4)


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    (tmp_path / "predictions_test.npz").write_text("before")

    def stops(file, **arrays):
        file.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(np, "savez_compressed", stops)
    with pytest.raises(OSError, match="no space"):
        single(tmp_path)
    assert (tmp_path / "predictions_test.npz").read_text() == "before"
    assert not (tmp_path / "predictions_test.npz.partial").exists()


# ---- TensorBoard


def test_tensorboard_has_confusions_classes_and_examples_with_sounds(tmp_path):
    module = single(tmp_path, num_examples=3)
    found = tags(tmp_path)
    assert set(found["images"]) == {"confusion/test", "accuracy_by_class/test", "examples/worst", "examples/best"}
    order = choose(module.test_metrics.table(), 3, best=False)
    expected = [f"examples/worst_{place}_clip_{row:02d}" for place, row in enumerate(order, 1)]
    assert sorted(tag for tag in found["audio"] if "worst" in tag) == expected
    assert len([tag for tag in found["audio"] if "best" in tag]) == 3


def test_several_classes_have_no_confusion_matrix(tmp_path):
    several(tmp_path, num_examples=2)
    assert set(tags(tmp_path)["images"]) == {"average_precision_by_class/test", "examples/worst", "examples/best"}


def test_every_validation_is_drawn(tmp_path):
    labels = torch.arange(6) % 3
    clips = clip_list([(n,) for n in labels.tolist()], 3)
    trainer = trainer_of(tmp_path, epochs=3)
    trainer.fit(Knows(guesses(6, 3, labels)), data_of(clips, batch_size=6))
    events = EventAccumulator(str(tmp_path), size_guidance={"images": 0}).Reload()
    for tag in ("confusion/val", "accuracy_by_class/val"):
        assert [event.step for event in events.Images(tag)] == [0, 1, 2]
    assert not (tmp_path / "classification_test.csv").exists()


def test_without_tensorboard_and_dense_windows_there_are_still_the_files(tmp_path):
    single(tmp_path, tensorboard=False)
    assert {p.name for p in tmp_path.iterdir()} == {"classification_test.csv", "predictions_test.npz"}
    assert len(table(tmp_path)) == 40
    assert not any("dense" in column for column in table(tmp_path)[0])
    with np.load(tmp_path / "predictions_test.npz") as found:
        assert not any("dense" in name for name in found)


def test_with_many_classes_the_whole_figures_are_files(tmp_path, monkeypatch):
    saved = {}
    where = "deepavfusion.callbacks.show.classification"
    monkeypatch.setattr(f"{where}.save_figure", lambda figure, path: saved.update({path.name: figure}))
    monkeypatch.setattr(f"{where}.draw_examples", lambda *_: Figure())
    single(tmp_path, clips=62, classes=31, num_examples=1)
    assert {name: len(figure.axes) for name, figure in saved.items()} == {
        "confusion_test.png": 2,
        "accuracy_by_class_test.png": 1,
    }


def test_a_clip_that_is_gone_at_the_end_is_not_shown(tmp_path):
    module = single(tmp_path, clips=6, classes=2, loses={"clip_00", "clip_01"})
    found = tags(tmp_path)
    assert "confusion/test" in found["images"]
    assert {tag[-7:] for tag in found["audio"]} == {f"clip_{n:02d}" for n in range(2, 6)}
    assert module.found["test"]["clips"] == len(table(tmp_path)) == 6


def test_a_test_without_a_clip_that_decodes_leaves_nothing(tmp_path):
    labels = torch.arange(4) % 2
    module = Knows(guesses(4, 2, labels))
    data = data_of(clip_list([(n,) for n in labels.tolist()], 2, broken=4))
    module.test_step = lambda batch, *_: module.count(module.test_metrics, batch, 1.0) if len(batch) else None
    module.validation_step = lambda batch, *_: None
    trainer_of(tmp_path).test(module, data, verbose=False)
    trainer_of(tmp_path).validate(module, data, verbose=False)
    assert [p.name for p in tmp_path.iterdir() if "events" not in p.name and p.name != "hparams.yaml"] == []


# ---- best and worst


def test_examples_are_in_the_order_of_the_probability_of_the_truth():
    logits = torch.tensor([[0.0, 0.0], [5.0, 0.0], [0.0, 9.0], [0.0, 1.0], [50.0, 0.0], [60.0, 0.0]])
    found = {ALL: logits, "target": torch.tensor([0, 0, 0, 1, 0, 1])}
    assert choose(found, 3, best=False) == [5, 2, 0]
    assert scores(logits, found["target"]).exp()[0].item() == 0.5
    assert choose(found, 6, best=True) == [4, 1, 3, 0, 2, 5]  # all of them, however alike


def test_the_best_are_of_several_classes():
    target = torch.tensor([0] * 10 + [1] * 3 + [2])
    logits = F.one_hot(target, 3) * torch.arange(14, 0, -1).float().unsqueeze(1)  # class 0 is known best
    found = {ALL: logits, "target": target}
    assert choose(found, 5, best=True) == [0, 1, 10, 11, 13]
    assert choose(found, 7, best=True) == [0, 1, 2, 3, 10, 11, 13]
    assert choose(found, 50, best=True) == list(range(14))


def test_several_classes_are_right_by_the_margin_between_true_and_false():
    logits = torch.tensor([[4.0, 1.0, -2.0]] * 5)
    target = torch.tensor([[1, 0, 0], [1, 1, 0], [1, 0, 1], [0, 0, 0], [1, 1, 1]])
    assert scores(logits, target).tolist() == [3, 3, -3, -4, -2]
    assert choose({ALL: logits, "target": target}, 2, best=False) == [3, 2]
    words = verdicts_of(logits, target)
    assert [word.predicted for word in words] == [[0, 1]] * 5
    assert math.isnan(words[3].of_truth)
    assert words[4].of_truth == pytest.approx(1 / (1 + math.exp(2)))
    assert [word.predicted for word in verdicts_of(logits - 5, target)] == [[0]] * 5  # none is likelier than not


# ---- figures


def fits(figure) -> bool:
    """Whether nothing is cut off at the figure's edges."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    box = figure.get_tightbbox(canvas.get_renderer())  # inches
    width, height = figure.get_size_inches()
    pixel = 1 / figure.dpi
    return box.x0 > -pixel and box.y0 > -pixel and box.x1 < width + pixel and box.y1 < height + pixel


def overlapping(texts, figure) -> list[tuple[str, str]]:
    boxes = [(text.get_text(), text.get_window_extent(figure.canvas.get_renderer())) for text in texts]
    return [(a, b) for (a, one), (b, other) in pairwise(boxes) if one.overlaps(other)]


def test_a_figure_that_cuts_text_off_is_noticed():
    figure = draw_confusion(np.eye(2, dtype=int), ["a", "b"], "val")
    assert fits(figure)
    figure.axes[0].text(1, 1, "a text that is much longer than its axis is wide" * 3)
    assert not fits(figure)


def test_a_small_confusion_matrix_has_names_and_percentages():
    counts = np.array([[3, 1, 0], [0, 10, 0], [0, 0, 0]])
    figure = draw_confusion(counts, ["a", "b $1$", "c"], "val")
    axis, colours = figure.axes
    assert fits(figure)
    assert [label.get_text() for label in axis.get_yticklabels()] == ["a (4)  1", "b $1$ (10)  2", "c (0)  3"]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["1", "2", "3"]
    assert all(label.get_rotation() == 0 for label in axis.get_xticklabels())
    assert axis.get_ylabel() == "truth (clips)"
    assert {t.get_position(): t.get_text() for t in axis.texts} == {(0, 0): "75", (1, 0): "25", (1, 1): "100"}
    shown = axis.images[0].get_array()
    assert shown[0].tolist() == [75, 25, 0]
    assert np.ma.getmaskarray(np.ma.masked_invalid(shown))[2].all()  # no clip of that class
    assert figure.texts[0].get_text() == "Confusion matrix, val: 13 of 14 clips right"
    assert colours.get_ylabel() == "% of the clips of the true class"
    assert colours.get_ylim() == (0, 100)  # in the unit of the cells


@pytest.mark.parametrize("classes", [31, 309, 527])
def test_of_many_classes_the_confused_pairs_and_both_ends_are_drawn(classes):
    names = [f"opening or closing the windows of car number {n}" for n in range(classes)]
    counts = np.diag(np.full(classes, 40))
    counts[0, 0] = 0  # does not occur
    counts[3, 30], counts[30, 3], counts[7, 8] = 9, 20, 9
    counts[7, 7] = 1
    confusion = draw_confusion(counts, names, "test")
    (pairs,) = confusion.axes
    assert [text.get_text().strip() for text in pairs.texts] == ["20 of 60", "9 of 10", "9 of 49"]  # then by share
    labels = [label.get_text().split("\n→ ") for label in pairs.get_yticklabels()]
    assert [(truth[-2:], said_to_be[-2:]) for truth, said_to_be in labels] == [("30", " 3"), (" 7", " 8"), (" 3", "30")]
    bars = draw_classes(
        {s: [n / classes for n in range(classes)] for s in HEADS}, [5] * classes, names, "recall", "val"
    )
    (axis,) = bars.axes
    assert len(axis.patches) == 20
    assert [axis.patches[n].get_width() for n in (0, -1)] == [(classes - 1) / classes, 0]
    assert f"… {classes - 20} classes between …" in [text.get_text() for text in axis.texts]
    for figure in (confusion, bars):
        assert fits(figure)
        assert figure.get_size_inches().tolist() <= [6.5, 6.5]  # for a card
    assert overlapping(axis.get_yticklabels(), bars) == []


def test_files_show_all_classes():
    names = [f"class number {n}" for n in range(75)]
    whole = draw_confusion(np.eye(75, dtype=int), names, "test", everything=True)
    assert [text.get_text() for text in whole.axes[0].get_yticklabels()][74] == "class number 74 (1)  75"
    assert len(whole.axes[0].get_xticklabels()) == 15  # every fifth number
    values = {s: [n / 75 for n in range(75)] for s in HEADS}
    bars = draw_classes(values, [5] * 75, names, "accuracy", "test", everything=True)
    assert [len(axis.patches) for axis in bars.axes] == [70, 5]


def test_pairs_end_with_the_twelfth():
    counts = np.ones((40, 40), dtype=int)
    assert len(draw_confusion(counts, [str(n) for n in range(40)], "test").axes[0].texts) == 12
    assert len(draw_confusion(0 * counts, [str(n) for n in range(40)], "test").axes[0].texts) == 0
    few = [draw_confusion(counts[:n, :n], [str(n) for n in range(n)], "test").axes[0].texts for n in (15, 16)]
    assert list(map(len, few)) == [225, 0]  # numbers would not fit


def test_bars_are_sorted_and_marked_by_stream():
    values = {ALL: [0.5, 1.0, math.nan], "image": [0.1, 0.2, math.nan], "audio": [0.3, 0.4, math.nan]}
    values["fusion"] = [0.6, 0.9, math.nan]
    figure = draw_classes(values, [2, 3, 0], ["a", "b", "c"], "accuracy", "val")
    (axis,) = figure.axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["b (3)", "a (2)"]
    assert [bar.get_width() for bar in axis.patches] == [1.0, 0.5]
    assert [text.get_text() for text in axis.texts] == ["1.00", "0.50"]
    assert [list(line.get_xdata()) for line in axis.lines] == [[0.2, 0.1], [0.4, 0.3], [0.9, 0.6]]
    legend = figure.legends[0]
    assert [text.get_text() for text in legend.get_texts()] == [
        "all heads 0.75",
        "image 0.15",
        "audio 0.35",
        "fusion 0.75",
    ]
    colours = [handle.get_color() for handle in legend.legend_handles[1:]]
    assert colours == [line.get_color() for line in axis.lines] == [STREAM_STYLE[s][1] for s in STREAMS]
    assert figure.get_suptitle() == "Accuracy by class, val: 2 of 3 classes occur (clips)"
    assert 1.0 in axis.get_xticks()
    assert fits(figure)


def test_examples_show_frame_spectrogram_and_words():
    words = {
        "all": ("a rather long name of a class, with a comma", 0.7, 0.2, False),
        "image": ("banjo $5 to $6", 0.6, 0.6, True),
        "audio": ("drum", 1.0, 0.0, False),
        "fusion": ("flute", 0.0123, math.nan, False),
    }
    frame, spectrogram = torch.rand(3, 16, 16), torch.rand(8, 192)
    truth = " + ".join(f"class number {n}" for n in range(12))
    one = Example("ABCDEFGHIJK_000030", truth, words, frame, spectrogram, torch.zeros(1, 5))
    figure = draw_examples([one, one], "The worst")
    assert fits(figure)
    shown, heard, verdicts = figure.axes[:3]
    assert np.array_equal(shown.images[0].get_array(), frame.permute(1, 2, 0))
    title = shown.get_title(loc="left")
    assert title.startswith("class number 0 + class number 1")
    assert title.endswith("…   (ABCDEFGHIJK_000030)")
    assert np.array_equal(heard.images[0].get_array(), spectrogram)
    assert heard.get_ylabel() == "kHz"
    assert heard.get_xlim() == (0, 3)
    texts = [text.get_text() for text in verdicts.texts]
    assert texts == [
        "✗ a rather long name o…h a comma  70 %",
        "✓ banjo $5 to $6  60 %",
        "✗ drum  100 %",
        "✗ flute  1 %",
    ]
    widths = Counter((bar.get_facecolor(), round(bar.get_width(), 4)) for bar in verdicts.patches)
    truths = [width for colour, width in widths if colour == to_rgba(BLACK)]
    assert sorted(truths) == [0, 0.2, 0.6]  # no truth, no probability of it
    wrong = [width for colour, width in widths if colour == to_rgba(WRONG)]
    assert sorted(wrong) == [0.0123, 0.7, 1.0]
    assert figure.axes[-1].get_xlabel() == "mel power (dB re 1)"
