"""The published evaluators' numbers, AVSBench's definitions in slow loops, and cases a hand can compute."""

from __future__ import annotations

import math
import pickle
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from deepavfusion.metrics.segmentation import AVSBENCH, CUTS, PUBLISHED, SegmentationMetrics
from helpers.distributed import assert_two_give_the_same_as_one
from helpers.golden import float64, load_json, wave

SIZE = (12, 10)
KINDS = pytest.mark.parametrize("num_classes", [1, 5])
FSCORES = ("fscore", "fscore_fg", "fscore_fg_frames")


def frame(item: int, num_classes: int) -> tuple[Tensor, Tensor]:
    """Logits and mask that depend on the item alone: every fifth without a sounding pixel, every fifth all sounding."""
    generator = torch.Generator().manual_seed(item)
    mask = torch.randint(0, max(2, num_classes), SIZE, generator=generator)
    if item % 5 == 3:
        mask.zero_()
    if item % 5 == 4:
        mask.clamp_(min=1)
    logits = 2 * torch.randn(num_classes, *SIZE, generator=generator)
    if num_classes == 1:
        logits += mask - 0.5
        logits[0, 0, :4] = torch.tensor([0.0, 40.0, -math.inf, math.inf])
    else:
        mask[mask == 2] = 0  # a class that is never in truth
        logits.scatter_add_(0, mask.unsqueeze(0), torch.full((1, *SIZE), 2.0))
    return logits, mask


def batch(items: list[int], num_classes: int) -> tuple[Tensor, Tensor, Tensor]:
    frames = [frame(item, num_classes) for item in items] or [(torch.zeros(num_classes, *SIZE), torch.zeros(SIZE))]
    logits, masks = (torch.stack(one)[: len(items)] for one in zip(*frames, strict=True))
    return logits, masks.long(), torch.tensor(items, dtype=torch.int64)


def evaluate(num_classes: int, *batches: list[int]) -> SegmentationMetrics:
    metric = SegmentationMetrics(num_classes)
    for items in batches:
        metric.update(*batch(items, num_classes))
    return metric


def found(metric: SegmentationMetrics) -> tuple[dict[str, float], str]:
    """All that is said; text, so that nan equals nan."""
    numbers = {name: value.item() for name, value in metric.compute().items()}
    return numbers, repr((metric.rows(), None if metric.binary else metric.per_class()))


def numbers(logits: Tensor, mask: Tensor) -> dict[str, float]:
    metric = SegmentationMetrics(logits.shape[1])
    metric.update(logits, mask, torch.arange(len(logits)))
    return {name: value.item() for name, value in metric.compute().items()}


def certain(prediction: Tensor, num_classes: int = 1) -> Tensor:
    """Classes [B, H, W] -> logits that predict them."""
    if num_classes == 1:
        return (20.0 * prediction - 10).unsqueeze(1)
    return 9.0 * torch.nn.functional.one_hot(prediction, num_classes).permute(0, 3, 1, 2)


@pytest.mark.parametrize("num_classes", [1, 4])
def test_golden(num_classes):
    with float64():
        logits = wave((3, num_classes, 16, 16), 0.021, 0.0009, 3)
        heard = wave((3, 16, 16), 0.013, 0.0003)
    classes = (torch.arange(3 * 16 * 16) // 64 % 4).reshape(3, 16, 16)
    mask = (heard > 0.2).long() if num_classes == 1 else (heard > 0.1) * classes
    mask[2] = 0
    golden, result = load_json("segmentation_metrics.json")[str(num_classes)], numbers(logits, mask)
    assert len(golden) == 8
    for name, expected in golden.items():
        # The original divides in float32; only the binary F is in float64, with 1e-10 added to denominators.
        tolerance = 1e-9 if num_classes == 1 and name.startswith("fscore") else 1e-7
        assert result[name.lower()] == pytest.approx(expected, abs=tolerance), name
    assert (result["frames"], result["empty_frames"]) == (3, 1)


def _slow_f(predicted: np.ndarray, true: np.ndarray) -> float:
    hit = (predicted & true).sum()
    if hit == 0:
        return 0.0
    precision, recall = hit / predicted.sum(), hit / true.sum()
    return 1.3 * precision * recall / (0.3 * precision + recall)


def _slow_pr(predicted: np.ndarray, true: np.ndarray) -> tuple[float, float]:
    hit = (predicted & true).sum()
    return hit / (predicted.sum() + 1e-20), hit / (true.sum() + 1e-20)


def _slow_binary(logits: np.ndarray, masks: np.ndarray) -> dict[str, float]:
    ious, curves, pairs, best = [], [], [], []
    classes: list[list[float]] = [[], []]
    for logit, mask in zip(logits[:, 0], masks, strict=True):
        with np.errstate(over="ignore"):
            prob, true = 1 / (1 + np.exp(-logit)), mask > 0
        predicted = prob > 0.5
        if not true.any():
            ious.append((~predicted).sum() / true.size)
            continue
        ious.append((predicted & true).sum() / (predicted | true).sum())
        curves.append([_slow_f(prob >= t, true) for t in np.linspace(0, 1 - 1e-10, 255)])
        pairs.append([_slow_pr(prob >= t, true) for t in np.linspace(0, 1 - 1e-10, 255)])
        best.append(max(_slow_f(prob >= t, true) for t in np.linspace(0, 1 - 1e-10, 256)))
        for values, one, other in ((classes[0], ~predicted, ~true), (classes[1], predicted, true)):
            if (one | other).any():
                values.append((one & other).sum() / (one | other).sum())
    precision, recall = np.mean(pairs, axis=0).T
    return {
        "miou_fg": np.mean(ious),
        "fscore_fg": (1.3 * precision * recall / (0.3 * precision + recall + 1e-20)).max(),
        "fscore_fg_frames": np.mean(curves, axis=0).max(),
        "fscore": np.mean(best),
        "miou": np.mean([np.mean(values) for values in classes]),
        "miou_nobg": np.mean(classes[1]),
    }


def _slow_semantic(logits: np.ndarray, masks: np.ndarray) -> dict[str, float]:
    result = {}
    for kind, chosen in (("", masks.any(axis=(1, 2))), ("_class", masks.any(axis=(1, 2)) | True)):
        ious, scores = [], []
        for c in range(logits.shape[1]):
            iou, score = [], []
            for prediction, mask in zip(logits[chosen].argmax(axis=1), masks[chosen], strict=True):
                one, other = prediction == c, mask == c
                if (one | other).any():
                    iou.append((one & other).sum() / (one | other).sum())
                    score.append(_slow_f(one, other))
            if iou:
                ious.append(np.mean(iou))
                scores.append(np.mean(score))
        result |= {f"miou{kind}": np.mean(ious), f"miou{kind}_nobg": np.mean(ious[1:])}
        result |= {f"fscore{kind}": np.mean(scores), f"fscore{kind}_nobg": np.mean(scores[1:])}
    return result


def test_definitions_in_slow_loops():
    for num_classes, slow in ((1, _slow_binary), (5, _slow_semantic)):
        logits, masks, _ = batch(list(range(15)), num_classes)
        result = numbers(logits, masks)
        for name, expected in slow(logits.double().numpy(), masks.numpy()).items():
            assert result[name] == pytest.approx(expected, abs=1e-12), name
        assert (result["frames"], result["empty_frames"]) == (15, 3)


def test_perfect_is_one_and_inverted_is_zero():
    mask = torch.arange(2 * 6 * 6).view(2, 6, 6) // 3 % 2
    assert {value for name, value in numbers(certain(mask), mask).items() if "frames" not in name} == {1.0}
    inverted = numbers(certain(1 - mask), mask)
    for name in ("miou", "miou_nobg", "miou_fg", "precision", "recall"):
        assert inverted[name] == 0, name
    # At threshold 0 all is marked: P = 1/2, R = 1.
    assert [inverted[name] for name in FSCORES] == pytest.approx([1.3 * 0.5 / 1.15] * 3)
    mask = torch.arange(2 * 6 * 6).view(2, 6, 6) // 3 % 4
    assert {value for name, value in numbers(certain(mask, 4), mask).items() if "frames" not in name} == {1.0}
    inverted = numbers(certain((mask + 1) % 4, 4), mask)
    assert {value for name, value in inverted.items() if "frames" not in name} == {0.0}


def test_a_frame_without_sound():
    """Half of it marked: 1/2 for AVSBench, skipped by the published evaluator."""
    mask, prediction = torch.zeros(2, 4, 4, dtype=torch.long), torch.zeros(2, 4, 4, dtype=torch.long)
    prediction[0, :2] = 1
    mask[1, 0], prediction[1, :2] = 1, 1  # 4 of 16 sound, 8 are marked
    result = numbers(certain(prediction), mask)
    assert result["miou_fg"] == (0.5 + 0.5) / 2
    assert result["miou"] == (0.5 + 8 / 12) / 2
    assert [result[name] for name in FSCORES] == pytest.approx([1.3 * 0.5 / 1.15] * 3)
    alone = numbers(certain(prediction[:1]), mask[:1])
    assert alone == {"miou_fg": 0.5, "frames": 1, "empty_frames": 1}
    semantic = numbers(certain(prediction[:1], 3), mask[:1])
    assert semantic.pop("fscore_class") == pytest.approx(1.3 * 0.5 / (0.3 + 0.5) / 2)
    assert semantic == {
        "miou_class": 0.25, "miou_class_nobg": 0, "fscore_class_nobg": 0, "frames": 1, "empty_frames": 1
    }  # fmt: skip


def test_all_sounding_and_all_marked_has_no_background():
    """The background's mean is over the frames in which it occurs, so this frame changes the other class alone."""
    mask = torch.ones(2, 4, 4, dtype=torch.long)
    mask[1, 0] = 0
    prediction = torch.ones(2, 4, 4, dtype=torch.long)
    result = numbers(certain(prediction), mask)
    assert result["miou"] == (0 + (1 + 12 / 16) / 2) / 2
    assert result["miou_nobg"] == result["miou_fg"] == (1 + 12 / 16) / 2
    assert numbers(certain(prediction[:1]), mask[:1])["miou"] == 1


def test_classes_first_then_their_mean():
    """Class 1 in two frames (IoU 1 and 0), class 2 in one (IoU 1), class 3 in none."""
    mask, prediction = torch.zeros(2, 2, 4, dtype=torch.long), torch.zeros(2, 2, 4, dtype=torch.long)
    mask[0, 0, :2], prediction[0, 0, :2] = 1, 1
    mask[1, 0, :2], prediction[1, 0, :2] = 2, 2
    prediction[1, 1, :3] = 1
    metric = SegmentationMetrics(4)
    metric.update(certain(prediction, 4), mask, torch.tensor([7, 3]))
    result = {name: value.item() for name, value in metric.compute().items()}
    background = (1 + 3 / 6) / 2
    assert result["miou"] == result["miou_class"] == (background + 0.5 + 1) / 3
    assert result["miou_nobg"] == result["miou_class_nobg"] == 0.75
    assert metric.per_class().dtype == torch.float64
    assert metric.per_class().tolist()[:3] == [background, 0.5, 1]
    assert math.isnan(metric.per_class()[3])


@pytest.mark.parametrize(("count", "places", "name"), [(255, AVSBENCH, "fscore_fg"), (256, PUBLISHED, "fscore")])
def test_a_probability_on_the_threshold_counts(count, places, name):
    cuts = torch.tensor([CUTS[place] for place in places], dtype=torch.float64)
    expected = torch.linspace(0, 1 - 1e-10, count, dtype=torch.float64)
    assert torch.allclose(cuts.sigmoid(), expected, rtol=0, atol=1e-14)
    mask = (torch.arange(16).view(1, 4, 4) % 3 == 0).long()
    for cut in cuts[[1, 40, 127, 200, count - 1]]:
        below = torch.nextafter(cut, torch.tensor(-math.inf, dtype=torch.float64))
        assert numbers(torch.where(mask > 0, cut, below).unsqueeze(1), mask)[name] == 1
        assert numbers(torch.where(mask > 0, below, cut).unsqueeze(1), mask)[name] < 1


def test_one_half_is_not_marked_and_of_equal_logits_the_first_class_counts():
    mask = torch.ones(1, 2, 2, dtype=torch.long)
    assert numbers(torch.zeros(1, 1, 2, 2), mask)["miou_fg"] == 0
    assert numbers(torch.full((1, 1, 2, 2), 1e-30), mask)["miou_fg"] == 1
    assert numbers(torch.zeros(1, 3, 1, 2), torch.tensor([[[0, 1]]]))["recall"] == 0.5


@KINDS
def test_batches_order_and_repetitions_do_not_matter(num_classes):
    whole = found(evaluate(num_classes, list(range(9))))
    assert found(evaluate(num_classes, [4], [8, 2, 0], [7, 3, 6, 1, 5])) == whole
    assert found(evaluate(num_classes, *([item] for item in range(9)))) == whole
    assert found(evaluate(num_classes, [2, 2, 1, 0], [3, 4, 5, 6, 7, 8], [], [8, 0])) == whole
    assert found(evaluate(num_classes, list(range(8)))) != whole


def test_rows():
    metric = evaluate(1, [8, 3, 0], [5])
    logits, masks, _ = batch([0, 3, 5, 8], 1)
    rows = metric.rows()
    assert [row["item"] for row in rows] == [0, 3, 5, 8]
    assert [row["sounding"] for row in rows] == pytest.approx(masks.double().mean(dim=(1, 2)).tolist())
    assert [row["marked"] for row in rows] == pytest.approx((logits > 0).double().mean(dim=(1, 2, 3)).tolist())
    alone = [numbers(*one) for one in zip(logits.split(1), masks.split(1), strict=True)]
    assert [row["iou"] for row in rows] == [one["miou_fg"] for one in alone]
    for row, one in zip(rows, alone, strict=True):
        for name in ("miou", "fscore"):
            assert row[name] == one[name] if row["sounding"] else math.isnan(row[name])
    metric.compute()
    assert repr(metric.rows()) == repr(rows)
    assert metric.rows()[0]["fscore"] > metric.rows()[0]["iou"] > 0.2


def test_rows_of_classes():
    rows = evaluate(5, [3, 1]).rows()
    alone = [numbers(*(tensor[:1] for tensor in batch([item], 5)[:2])) for item in (1, 3)]
    assert [row["item"] for row in rows] == [1, 3]
    assert [row["iou"] for row in rows] == [one["miou_class"] for one in alone]
    assert (rows[0]["miou"], rows[0]["fscore"]) == (alone[0]["miou"], alone[0]["fscore"])
    assert math.isnan(rows[1]["miou"])
    assert math.isnan(rows[1]["fscore"])
    logits, masks, _ = batch([1, 3], 5)
    assert [row["sounding"] for row in rows] == pytest.approx((masks > 0).double().mean(dim=(1, 2)).tolist())
    assert [row["marked"] for row in rows] == pytest.approx((logits.argmax(1) > 0).double().mean(dim=(1, 2)).tolist())


@KINDS
def test_half_precision_counts_the_same_as_its_values_in_full(num_classes):
    logits, mask, _ = batch(list(range(6)), num_classes)
    for dtype in (torch.bfloat16, torch.float16):
        assert numbers(logits.to(dtype), mask) == numbers(logits.to(dtype).double(), mask)
    assert numbers(logits.bfloat16(), mask.to(torch.uint8)) == numbers(logits.bfloat16(), mask)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
@KINDS
def test_nothing_evaluated_gives_counts_only(num_classes):
    for metric in (SegmentationMetrics(num_classes), evaluate(num_classes, [])):
        assert found(metric)[0] == {"frames": 0, "empty_frames": 0}
        assert metric.rows() == []
    assert SegmentationMetrics(5).per_class().isnan().tolist() == [True] * 5


def test_reset_copies_and_forward():
    metric = evaluate(1, [0, 1])
    metric.compute()
    other = pickle.loads(pickle.dumps(metric))
    other.update(*batch([2], 1))
    assert found(other) == found(evaluate(1, [0, 1, 2]))
    assert metric(*batch([2], 1)) == evaluate(1, [2]).compute()
    assert [row["item"] for row in metric.rows()] == [0, 1, 2]
    assert found(metric) == found(other)
    metric.reset()
    assert metric.rows() == []
    metric.update(*batch([4], 1))
    assert found(metric) == found(evaluate(1, [4]))


def test_what_is_wrong_is_named():
    logits, mask, items = batch([5, 6, 7], 1)
    logits[1, 0, 3, 3] = math.nan
    with pytest.raises(ValueError, match=r"NaN logits in frames \[6\]"):
        SegmentationMetrics(1).update(logits, mask, items)
    logits, mask, items = batch([5, 6, 7], 5)
    logits[2, 1, 0, 0] = math.nan
    mask[0, 0, 0], mask[1, 0, 0] = 5, -1
    with pytest.raises(ValueError, match=r"NaN logits in frames \[7\]; masks of unknown classes in frames \[5, 6\]"):
        SegmentationMetrics(5).update(logits, mask, items)
    with pytest.raises(ValueError, match="num_classes 0"):
        SegmentationMetrics(0)
    logits, mask, items = batch([5, 6], 5)
    for wrong in ((logits[:, :4], mask, items), (logits, mask[:, 1:], items), (logits, mask, items[1:])):
        with pytest.raises(AssertionError):
            SegmentationMetrics(5).update(*wrong)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
@pytest.mark.parametrize("real", [False, pytest.param(True, marks=pytest.mark.full)])  # starting processes takes long
@KINDS
def test_two_processes_give_the_same_as_one(num_classes, real, tmp_path):
    new, of_kind = partial(SegmentationMetrics, num_classes), partial(batch, num_classes=num_classes)
    assert_two_give_the_same_as_one(new, of_kind, found, tmp_path if real else None)
