"""scikit-learn's figures, and cases a hand can compute."""

from __future__ import annotations

import math
import pickle
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn_metrics
from torch import Tensor

from deepavfusion.metrics.classification import ClassificationMetrics
from deepavfusion.types import ALL, STREAMS
from helpers.distributed import assert_two_give_the_same_as_one

CLASSES = 8
SUFFIXES = {ALL: "", **{stream: f"_{stream}" for stream in STREAMS}}
KINDS = pytest.mark.parametrize("multi_label", [False, True])


def clip(item: int, multi_label: bool) -> tuple[dict[str, Tensor], Tensor]:
    """Logits and target that depend on the item alone; class 5 never occurs, class 6 of several always."""
    generator = torch.Generator().manual_seed(item)
    if multi_label:
        target = (torch.rand(CLASSES, generator=generator) < 0.3).long()
        target[5], target[6] = 0, 1
        hot = target
    else:
        target = torch.randint(0, CLASSES - 1, (), generator=generator)
        target = target + (target >= 5)
        hot = torch.nn.functional.one_hot(target, CLASSES)
    logits = {name: torch.randn(CLASSES, generator=generator) + (1 + k) * hot for k, name in enumerate(STREAMS)}
    if multi_label:  # some are equal
        logits = {name: (4 * values).round() / 4 for name, values in logits.items()}
    return logits, target


def batch(items: list[int], multi_label: bool) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    clips = [clip(item, multi_label) for item in items or [0]]
    logits = {name: torch.stack([one[name] for one, _ in clips])[: len(items)] for name in STREAMS}
    return logits, torch.stack([target for _, target in clips])[: len(items)], torch.tensor(items, dtype=torch.int64)


def evaluate(multi_label: bool, *batches: list[int]) -> ClassificationMetrics:
    metric = ClassificationMetrics(CLASSES, multi_label)
    for items in batches:
        metric.update(*batch(items, multi_label))
    return metric


def scored(logits: Tensor, target: Tensor) -> ClassificationMetrics:
    """The same logits in all heads."""
    metric = ClassificationMetrics(logits.shape[1], multi_label=target.ndim == 2)
    metric.update(dict.fromkeys(STREAMS, logits), target, torch.arange(len(logits)))
    return metric


def values(metric: ClassificationMetrics) -> dict[str, float]:
    return {name: value.item() for name, value in metric.compute().items()}


def numbers(logits: Tensor, target: Tensor) -> dict[str, float]:
    """Those without suffix, after a look that the heads have the same."""
    result = values(scored(logits, target))
    for name in SUFFIXES.values():
        assert all(result[key + name] == result[key] for key in result if "_" not in key and key != "clips")
    return {key: value for key, value in result.items() if not key.endswith(STREAMS)}


def found(metric: ClassificationMetrics) -> tuple[dict[str, float], str]:
    """All that is said, to the last bit; text, so that nan equals nan."""
    result = values(metric)
    more = [metric.per_class(stream).tolist() for stream in SUFFIXES]
    more += [] if metric.multi_label else [metric.confusion(stream).tolist() for stream in SUFFIXES]
    return result, repr((more, {name: value.tolist() for name, value in metric.table().items()}))


def test_one_class_a_clip_as_scikit_learn():
    metric = evaluate(False, list(range(60)))
    result, predictions = values(metric), metric.table()
    target, classes = predictions["target"].numpy(), range(CLASSES)
    occurring = sorted(set(target.tolist()))
    assert occurring == [0, 1, 2, 3, 4, 6, 7]
    for stream, suffix in SUFFIXES.items():
        logits = predictions[stream].numpy()
        predicted = logits.argmax(axis=1)
        recall = sklearn_metrics.recall_score(target, predicted, labels=occurring, average=None)
        top5 = sklearn_metrics.top_k_accuracy_score(target, logits, k=5, labels=classes)
        # Counts divided once in float64, and so are scikit-learn's: equal up to its order of additions.
        assert result[f"top1{suffix}"] == sklearn_metrics.accuracy_score(target, predicted)
        assert result[f"top5{suffix}"] == pytest.approx(top5, abs=1e-15)
        assert result[f"top1_class{suffix}"] == pytest.approx(recall.mean(), abs=1e-15)
        confusion = sklearn_metrics.confusion_matrix(target, predicted, labels=classes)
        assert metric.confusion(stream).dtype == torch.int64
        assert metric.confusion(stream).tolist() == confusion.tolist()
        assert metric.per_class(stream).dtype == torch.float64
        assert metric.per_class(stream)[occurring].tolist() == recall.tolist()
        assert math.isnan(metric.per_class(stream)[5])
        assert 0.1 < result[f"top1_class{suffix}"] < result[f"top5{suffix}"]
    assert result["top1_image"] < result["top1_audio"] < result["top1_fusion"] < result["top5_fusion"] <= 1
    assert metric.confusion().tolist() == metric.confusion(ALL).tolist() != metric.confusion("image").tolist()
    assert metric.per_class()[:5].tolist() == metric.per_class(ALL)[:5].tolist()


def test_several_classes_as_scikit_learn():
    metric = evaluate(True, list(range(60)))
    result, predictions = values(metric), metric.table()
    target = predictions["target"].numpy()
    assert [target[:, c].sum() for c in (5, 6)] == [0, 60]
    for stream, suffix in SUFFIXES.items():
        logits = predictions[stream].numpy()
        assert len(np.unique(logits[:, 0])) < 55  # equal ones
        occurring, both = [0, 1, 2, 3, 4, 6, 7], [0, 1, 2, 3, 4, 7]
        # torchmetrics divides in float32.
        precision = [sklearn_metrics.average_precision_score(target[:, c], logits[:, c]) for c in occurring]
        auc = np.mean([sklearn_metrics.roc_auc_score(target[:, c], logits[:, c]) for c in both])
        assert result[f"map{suffix}"] == pytest.approx(np.mean(precision), abs=1e-6)
        assert result[f"auc{suffix}"] == pytest.approx(auc, abs=1e-6)
        assert metric.per_class(stream).dtype == torch.float64
        assert metric.per_class(stream)[occurring].tolist() == pytest.approx(precision, abs=1e-6)
        assert math.isnan(metric.per_class(stream)[5])
        assert result[f"map{suffix}"] > 0.5
        dprime = result[f"dprime{suffix}"]
        assert (1 + math.erf(dprime / 2)) / 2 == pytest.approx(auc, abs=1e-6)  # Φ(x) = (1 + erf(x / √2)) / 2
    assert result["dprime_image"] < result["dprime_audio"] < result["dprime_fusion"]


def test_names():
    names = {False: ("top1", "top5", "top1_class"), True: ("map", "auc", "dprime")}
    for multi_label, ours in names.items():
        result = evaluate(multi_label, [0, 1, 2]).compute()
        expected = [f"{name}{suffix}" for suffix in ("", "_image", "_audio", "_fusion") for name in ours]
        assert list(result) == [*expected, "clips"]
        assert {(value.dtype, value.shape) for value in result.values()} == {(torch.float64, ())}
        assert result["clips"] == 3


def test_one_class_a_clip_by_hand():
    """Class 0 right in 2 of 3 clips, class 1 in 0 of 1, class 6 never; ranks of the truth 1, 1, 6 and 5."""
    logits = torch.zeros(4, 7)
    logits[0, 0], logits[1, 0] = 1, 2
    logits[2] = torch.tensor([2.0, 7, 6, 5, 4, 3, 1])
    logits[3] = torch.tensor([9.0, 4, 8, 6, 5, 0, 0])
    target = torch.tensor([0, 0, 0, 1])
    assert numbers(logits, target) == {"top1": 0.5, "top5": 0.75, "top1_class": (2 / 3 + 0) / 2, "clips": 4}
    metric = scored(logits, target)
    assert metric.confusion()[:2, :2].tolist() == [[2, 1], [1, 0]]
    assert metric.confusion().sum() == 4
    assert metric.per_class()[:2].tolist() == [2 / 3, 0]
    assert metric.per_class()[2:].isnan().all()


def test_of_equal_logits_the_lower_class_comes_first():
    result = numbers(torch.zeros(7, 7), torch.arange(7))
    assert result == {"top1": 1 / 7, "top5": 5 / 7, "top1_class": 1 / 7, "clips": 7}
    assert scored(torch.zeros(7, 7), torch.arange(7)).confusion()[:, 0].tolist() == [1] * 7
    logits = torch.tensor([[0.0, 3, 1, 1, 1, 1, 1, 1]] * 2)
    assert numbers(logits, torch.tensor([5, 6]))["top5"] == 0.5  # classes 1, 2, 3, 4, 5


def test_among_fewer_than_five_classes_top5_is_one():
    assert numbers(torch.tensor([[3.0, 2, 1]]), torch.tensor([2]))["top5"] == 1


def column(scores: list[float], labels: list[int]) -> tuple[Tensor, Tensor]:
    return torch.tensor(scores).unsqueeze(1), torch.tensor(labels).unsqueeze(1)


@pytest.mark.parametrize(
    ("scores", "labels", "precision", "auc"),
    [
        ([4, 3, 2, 1], [1, 0, 0, 1], (1 / 1 + 2 / 4) / 2, 0.5),  # 2 of 4 pairs
        ([4, 3, 2, 1], [1, 0, 1, 0], (1 / 1 + 2 / 3) / 2, 0.75),
        ([0, 0, 0, 0], [1, 0, 0, 1], 2 / 4, 0.5),  # all equal
        ([2, 2, 1, 0], [1, 0, 1, 0], (1 / 2 + 2 / 3) / 2, (1.5 + 1) / 4),  # the first pair counts half
        ([-1, -2, -3, -4], [0, 0, 1, 0], 1 / 3, 1 / 3),
        ([math.inf, math.inf, 0, -math.inf], [1, 0, 1, 0], (1 / 2 + 2 / 3) / 2, (1.5 + 1) / 4),
    ],
)
def test_several_classes_by_hand(scores, labels, precision, auc):
    result = numbers(*column([float(score) for score in scores], labels))
    assert result["map"] == pytest.approx(precision, abs=1e-6)
    assert result["auc"] == pytest.approx(auc, abs=1e-6)
    assert result["clips"] == 4


def test_dprime():
    assert numbers(*column([4.0, 3, 2, 1], [1, 0, 0, 1]))["dprime"] == pytest.approx(0, abs=1e-6)
    # Standard normal table: Φ⁻¹(0.75) = 0.67449, and d′ is √2 times that.
    assert numbers(*column([4.0, 3, 2, 1], [1, 0, 1, 0]))["dprime"] == pytest.approx(1.41421 * 0.67449, abs=1e-5)
    assert numbers(*column([1.0, 0], [1, 0]))["dprime"] > 7
    assert numbers(*column([1.0, 0], [0, 1]))["dprime"] == -math.inf
    # Of the mean auc, (1 + 0.5) / 2, not the mean of inf and 0.
    logits, target = torch.tensor([[1.0, 0], [0, 0]]), torch.tensor([[1, 1], [0, 0]])
    assert numbers(logits, target)["dprime"] == pytest.approx(1.41421 * 0.67449, abs=1e-5)


@pytest.mark.parametrize("positives", range(1, 60, 6))
def test_perfect_order_is_one(positives):
    target = (torch.arange(61) < positives).long()
    result = numbers(*column((2.0 * target - torch.rand(61)).tolist(), target.tolist()))
    assert result["map"] == pytest.approx(1, abs=1e-6)
    assert result["auc"] == pytest.approx(1, abs=1e-6)
    assert result["auc"] <= 1
    assert result["dprime"] > 7  # inf but for rounding


def test_classes_that_do_not_occur_are_left_out_silently():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        target = torch.tensor([[1, 0, 1], [0, 0, 1]])
        result = numbers(torch.tensor([[1.0, 5, 0], [2, 5, 0]]), target)  # 1st: wrong order; 2nd: none; 3rd: all
        assert result == {"map": pytest.approx((0.5 + 1) / 2), "auc": 0, "dprime": -math.inf, "clips": 2}
        assert numbers(torch.zeros(2, 3), torch.zeros(2, 3)) == {"clips": 2}
        assert numbers(torch.zeros(2, 3), torch.ones(2, 3)) == {"map": 1, "clips": 2}
        assert scored(torch.zeros(2, 3), torch.zeros(2, 3)).per_class().isnan().tolist() == [True] * 3
        assert numbers(torch.eye(9)[:2], torch.tensor([0, 1]))["top1_class"] == 1


@KINDS
def test_all_is_the_mean_of_the_heads_logits(multi_label):
    metric = evaluate(multi_label, [3, 1, 2])
    predictions = metric.table()
    mean = torch.stack([predictions[stream] for stream in STREAMS]).double().mean(dim=0)
    assert torch.equal(predictions[ALL], mean.float())
    alone = ClassificationMetrics(CLASSES, multi_label)
    alone.update(dict.fromkeys(STREAMS, predictions[ALL]), predictions["target"], predictions["item"])
    names = [name for name in values(metric) if not name.endswith(STREAMS)]
    assert len(names) == 4
    assert {name: values(metric)[name] for name in names} == {name: values(alone)[name] for name in names}


@KINDS
def test_predictions(multi_label):
    metric = evaluate(multi_label, [8, 3, 0], [5, 3])
    logits, target, items = batch([0, 3, 5, 8], multi_label)
    for _ in range(2):
        predictions = metric.table()
        assert list(predictions) == ["item", "target", *STREAMS, ALL]
        assert predictions["item"].dtype == torch.int64
        assert predictions["target"].dtype == (torch.uint8 if multi_label else torch.int64)
        assert torch.equal(predictions["item"], items)
        assert torch.equal(predictions["target"].long(), target)
        for stream in STREAMS:
            assert predictions[stream].dtype == torch.float32
            assert torch.equal(predictions[stream], logits[stream])
        metric.compute()


@KINDS
def test_batches_order_and_repetitions_do_not_matter(multi_label):
    whole = found(evaluate(multi_label, list(range(30))))
    assert found(evaluate(multi_label, list(range(29, -1, -1)))) == whole
    assert found(evaluate(multi_label, *([item] for item in range(30)))) == whole
    assert found(evaluate(multi_label, [2, 2, 1, 0], list(range(20, 30)), [], [8, 0], list(range(3, 20)))) == whole
    assert found(evaluate(multi_label, list(range(29))))[0] != whole[0]


@KINDS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_counts_the_same_as_its_values_in_full(multi_label, dtype):
    logits, target, items = batch(list(range(20)), multi_label)
    results = []
    for type_of in (lambda x: x, Tensor.float, Tensor.double):
        metric = ClassificationMetrics(CLASSES, multi_label)
        metric.update({name: type_of(value.to(dtype)) for name, value in logits.items()}, target, items)
        assert {metric.table()[name].dtype for name in (*STREAMS, ALL)} == {torch.float32}
        results.append(found(metric))
    assert results[0] == results[1] == results[2]


def test_labels_may_be_of_any_type():
    logits, target, items = batch(list(range(20)), True)
    expected = found(evaluate(True, list(range(20))))
    for dtype in (torch.float32, torch.bool, torch.uint8, torch.int32):
        metric = ClassificationMetrics(CLASSES, multi_label=True)
        metric.update(logits, target.to(dtype), items.int())
        assert found(metric) == expected


def test_gradients_are_not_kept():
    logits, target, items = batch([0, 1], False)
    metric = ClassificationMetrics(CLASSES)
    metric.update({name: value.requires_grad_() for name, value in logits.items()}, target, items)
    assert not any(value.requires_grad for value in metric.table().values())


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
@KINDS
def test_nothing_evaluated_gives_the_count_only(multi_label):
    for metric in (ClassificationMetrics(CLASSES, multi_label), evaluate(multi_label, [])):
        assert found(metric)[0] == {"clips": 0}
        assert metric.table()["image"].shape == (0, CLASSES)
        assert metric.per_class().isnan().tolist() == [True] * CLASSES
        if not multi_label:
            assert metric.confusion().tolist() == [[0] * CLASSES] * CLASSES


@KINDS
def test_reset_copies_and_forward(multi_label):
    metric = evaluate(multi_label, [0, 1])
    metric.compute()
    other = pickle.loads(pickle.dumps(metric))
    other.update(*batch([2], multi_label))
    assert found(other) == found(evaluate(multi_label, [0, 1, 2]))
    assert metric(*batch([2], multi_label)) == evaluate(multi_label, [2]).compute()
    assert metric.table()["item"].tolist() == [0, 1, 2]
    assert found(metric) == found(other)
    metric.reset()
    assert metric.table()["item"].tolist() == []
    metric.update(*batch([4], multi_label))
    assert found(metric) == found(evaluate(multi_label, [4]))


def test_what_is_wrong_is_named():
    logits, target, items = batch([5, 6, 7], False)
    metric = ClassificationMetrics(CLASSES)
    logits["audio"][1, 3] = math.nan
    with pytest.raises(ValueError, match=r"^NaN logits in clips \[6\]$"):
        metric.update(logits, target, items)
    target[0], target[2] = CLASSES, -1
    with pytest.raises(ValueError, match=r"^NaN logits in clips \[6\]; targets other than 0…7 in clips \[5, 7\]$"):
        metric.update(logits, target, items)
    assert metric.table()["item"].tolist() == []  # nothing of the batch was kept
    logits, target, items = batch([5, 6, 7], True)
    logits["image"][2, 0], logits["fusion"][2, 0] = math.inf, -math.inf
    with pytest.raises(ValueError, match=r"^NaN logits in clips \[7\]$"):
        ClassificationMetrics(CLASSES, multi_label=True).update(logits, target, items)
    logits, target, items = batch([5, 6, 7], True)
    for wrong in (2, -1, 0.5, math.nan):
        target = target.double()
        target[1, 4] = wrong
        with pytest.raises(ValueError, match=r"^targets other than 0 and 1 in clips \[6\]$"):
            ClassificationMetrics(CLASSES, multi_label=True).update(logits, target, items)
    with pytest.raises(ValueError, match="num_classes 0"):
        ClassificationMetrics(0)


@KINDS
def test_shapes_that_do_not_fit_are_refused(multi_label):
    logits, target, items = batch([5, 6], multi_label)
    one_hot = target[:, 0] if multi_label else torch.nn.functional.one_hot(target, CLASSES)
    for wrong in (
        (logits | {"audio": logits["audio"][:, :4]}, target, items),
        (logits, target[1:], items),
        (logits, target, items[1:]),
        (logits, one_hot, items),
        (logits, target, items.float()),
    ):
        with pytest.raises(AssertionError):
            ClassificationMetrics(CLASSES, multi_label).update(*wrong)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
@pytest.mark.parametrize("real", [False, pytest.param(True, marks=pytest.mark.full)])  # starting processes takes long
@KINDS
def test_two_processes_give_the_same_as_one(multi_label, real, tmp_path):
    new, of_kind = partial(ClassificationMetrics, CLASSES, multi_label), partial(batch, multi_label=multi_label)
    assert_two_give_the_same_as_one(new, of_kind, found, tmp_path if real else None)
