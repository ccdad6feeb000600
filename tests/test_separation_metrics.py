"""BSS eval on cases a hand can compute and against mir_eval's numbers; the metric over mixtures."""

from __future__ import annotations

import copy
import math
import pickle
import threading
from functools import partial

import pytest
import torch
from torch import Tensor
from torchmetrics.functional.audio import scale_invariant_signal_distortion_ratio

from deepavfusion.metrics import separation
from deepavfusion.metrics.separation import SeparationMetrics, bss_eval
from helpers.distributed import assert_two_give_the_same_as_one
from helpers.golden import float64, load_json, wave

SAMPLES = 4000


def apart(n: int, seed: int = 0) -> Tensor:
    """n noises of energy 1 that follow each other with gaps longer than the filter: orthogonal at every delay."""
    noise = torch.randn(n, 2000, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    sounds = torch.zeros(n, n, 3000, dtype=torch.float64)
    for i in range(n):
        sounds[i, i, :2000] = noise[i] / noise[i].norm()
    return sounds.flatten(1)


def batch(items: list[int], n: int = 2) -> dict:
    """Mixtures that depend on their id alone."""
    one = [torch.randn(3 * n, SAMPLES, generator=torch.Generator().manual_seed(item)) / 10 for item in items]
    noise = torch.stack([*one, torch.empty(3 * n, SAMPLES)])[:-1].unflatten(1, (3, n))
    references = noise[:, 0]
    mixture = references.sum(dim=1)
    return {
        "references": references,
        "estimates": {
            "model": references + 0.2 * mixture.unsqueeze(1) + 0.05 * noise[:, 1],
            "ideal": references + 0.02 * noise[:, 2],
        },
        "mixture": mixture,
        "items": torch.tensor(items),
        "labels": torch.tensor(items).unsqueeze(1) * 10 + torch.arange(n),
    }


def evaluate(*batches: dict, workers: int = 1) -> SeparationMetrics:
    metric = SeparationMetrics(("model", "ideal"), workers)
    for one in batches:
        metric.update(**one)
    return metric


def numbers(metric: SeparationMetrics) -> dict[str, float]:
    return {name: value.item() for name, value in metric.compute().items()}


def found(metric: SeparationMetrics) -> tuple[dict, list[dict]]:
    return metric.compute(), metric.rows()


def test_golden():
    with float64():
        references = torch.stack([wave((8000,), 0.08, 0.00007, 0.8), wave((8000,), 0.31, 0.0003, 0.4)])
        first = references[0] + 0.2 * references[1] + 0.01 * wave((8000,), 0.9, 0.01)
        estimates = torch.stack([first, references[1] + 0.1 * references[0]])
    found, golden = bss_eval(references, estimates.unsqueeze(0)), load_json("bss_eval.json")
    for name in ("sdr", "sir", "sar"):
        for value, expected in zip(getattr(found, name)[0].tolist(), golden[name], strict=True):
            assert value > 80 if expected > 80 else abs(value - expected) < 0.05, (name, value, expected)


def test_orthogonal_parts_of_three_sources():
    *references, noise = apart(4)
    a, b, c = references
    estimates = torch.stack([a + 0.1 * b + 0.05 * c, 2 * b + 0.2 * noise, -0.5 * c + 0.05 * a + 0.05 * noise])
    sdr, sir, sar = (values[0].tolist() for values in bss_eval(torch.stack(references), estimates.unsqueeze(0)))
    of_first = -10 * math.log10(0.01 + 0.0025)
    assert sdr == pytest.approx([of_first, 20, 20 - 10 * math.log10(2)], abs=1e-9)
    assert sir[0] == pytest.approx(of_first, abs=1e-9)
    assert sir[1] > 80
    assert sir[2] == pytest.approx(20, abs=1e-9)
    assert sar[0] > 80
    assert sar[1:] == pytest.approx([20, 10 * math.log10((0.25 + 0.0025) / 0.0025)], abs=1e-9)


def test_gain_and_filter_are_allowed_but_no_longer_one():
    references = apart(2)
    echo, late = torch.zeros_like(references), torch.zeros_like(references)
    echo[:, 511:], late[:, 512:] = references[:, :-511], references[:, :-512]
    estimates = torch.stack([-3 * references, references + 0.5 * echo, references + 0.1 * late])
    sdr = bss_eval(references, estimates).sdr
    assert (sdr[:2] > 80).all()
    assert ((sdr[2] - 20).abs() < 2).all()  # a tap too late: most of it, at −20 dB, is distortion


def test_projections_are_least_squares():
    generator = torch.Generator().manual_seed(0)
    references, estimates = torch.randn(2, 300, generator=generator), torch.randn(3, 2, 300, generator=generator)
    references[1] += 0.5 * references[0]
    found = bss_eval(references, estimates, filter_length=7)
    delayed = torch.stack([torch.stack([_delay(r, k) for k in range(7)], dim=1) for r in references.double()])
    for e, n in torch.cartesian_prod(torch.arange(3), torch.arange(2)).tolist():
        estimate = _delay(estimates[e, n].double(), 0)
        target = delayed[n] @ torch.linalg.lstsq(delayed[n], estimate.unsqueeze(1)).solution[:, 0]
        both = torch.cat([*delayed], dim=1)
        explained = both @ torch.linalg.lstsq(both, estimate.unsqueeze(1)).solution[:, 0]
        for value, signal, rest in (
            (found.sdr, target, estimate - target),
            (found.sir, target, explained - target),
            (found.sar, explained, estimate - explained),
        ):
            assert value[e, n].item() == pytest.approx(20 * math.log10(signal.norm() / rest.norm()), abs=1e-9)


def _delay(signal: Tensor, by: int) -> Tensor:
    return torch.nn.functional.pad(signal, (by, 6 - by))


def test_singular_references_fall_back_to_least_squares():
    """The same waveform twice, and silence beside it: equal ones cannot be distinguished, the others can."""
    sound, noise = apart(2)
    sdr, sir, _ = bss_eval(torch.stack([sound, sound]), torch.stack([sound + 0.1 * noise, sound]).unsqueeze(0))
    assert sdr[0, 0].item() == pytest.approx(20, abs=1e-6)
    assert (sir > 80).all()


def test_means_of_hand_made_mixtures():
    a, b, noise = apart(3) * 10
    references, mixture = torch.stack([a, b]), a + 2 * b
    metric = SeparationMetrics(("model", "ideal"), workers=1)
    for item, gain in enumerate((0.1, 0.01)):
        estimates = {"model": torch.stack([a + gain * noise, b + 0.1 * a]), "ideal": references}
        every = {name: value.unsqueeze(0) for name, value in estimates.items()}
        metric.update(references[None], every, mixture[None], torch.tensor([item]), torch.tensor([[3, 5]]))
    result, by_hand = numbers(metric), 10 * math.log10(4)
    assert result["sdr"] == pytest.approx((20 + 20 + 40 + 20) / 4, abs=1e-6)
    assert result["si_sdr"] == pytest.approx(result["sdr"], abs=1e-6)
    assert result["sir"] == pytest.approx((100 + 20) / 2, abs=1e-6)  # a perfect one counts as 100
    assert result["sar"] == pytest.approx((20 + 100 + 40 + 100) / 4, abs=1e-6)
    assert result["sdr_mixture"] == pytest.approx((-by_hand + by_hand) / 2, abs=1e-6)
    assert result["sdr_improvement"] == pytest.approx(25, abs=1e-6)
    assert result["sir_improvement"] == pytest.approx(60, abs=1e-6)
    assert result["sdr_ideal"] == result["si_sdr_ideal"] == 100
    assert not {"sar_mixture", "sar_improvement"} & set(result)
    assert result["sources"] == 4
    row = metric.rows()[3]
    assert (row["item"], row["source"], row["label"], row["others"]) == (1, 1, 5, (3,))
    assert row["sdr"] == pytest.approx(20, abs=1e-6)
    assert row["sdr_mixture"] == pytest.approx(by_hand, abs=1e-6)


def test_si_sdr_is_torchmetrics():
    inputs = batch([0, 1, 2])
    expected = scale_invariant_signal_distortion_ratio(
        inputs["estimates"]["model"].double(), inputs["references"].double()
    )
    metric = evaluate(inputs)
    metric.compute()
    assert [row["si_sdr"] for row in metric.rows()] == pytest.approx(expected.flatten().tolist(), abs=1e-9)


def test_batches_order_repetitions_and_workers_do_not_matter():
    whole = evaluate(batch([0, 1, 2, 3, 4]))
    parts = evaluate(batch([4]), batch([2, 0]), batch([3, 1, 4]), workers=3)
    assert whole.compute() == parts.compute()
    assert whole.rows() == parts.rows()
    assert [row["item"] for row in parts.rows()] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert [row["label"] for row in parts.rows()] == [0, 1, 10, 11, 20, 21, 30, 31, 40, 41]


def test_workers_use_a_core_each_and_leave_our_number_of_threads(monkeypatch):
    before, inside, original = torch.get_num_threads(), [], separation._evaluate

    def noted(*args):
        inside.append(torch.get_num_threads())
        return original(*args)

    monkeypatch.setattr(separation, "_evaluate", noted)
    torch.set_num_threads(2)
    try:
        evaluate(batch([0, 1, 2]), workers=2)
        assert inside == [1, 1, 1]
        later: list[int] = []
        thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert [torch.get_num_threads(), *later] == [2, 2]
    finally:
        torch.set_num_threads(before)


def test_silent_reference_is_counted_and_the_others_are_evaluated():
    inputs = batch([0, 1], n=3)
    inputs["references"][1, 2] = 1e-5 * inputs["references"][1, 2]  # −120 dB
    metric = evaluate(inputs)
    result, rows = numbers(metric), metric.rows()
    assert (result["silent_references"], result["sources"], result["lone_sources"]) == (1, 5, 0)
    assert [row["silent_reference"] for row in rows] == [False] * 5 + [True]
    assert all(math.isnan(rows[5][name]) for name in ("sdr", "sir", "sar", "si_sdr", "sdr_ideal", "sdr_mixture"))
    assert result["sdr"] == pytest.approx(sum(row["sdr"] for row in rows[:5]) / 5)
    two = bss_eval(inputs["references"][1, :2], inputs["estimates"]["model"][1:, :2])
    assert [row["sir"] for row in rows[3:5]] == pytest.approx(two.sir[0].tolist(), abs=1e-9)
    assert rows[:3] == evaluate(batch([0], n=3)).rows()


def test_a_lone_source_has_no_sir_and_no_improvement():
    inputs = batch([0, 1])
    inputs["references"][1, 0] = 0
    metric = evaluate(inputs)
    result, rows = numbers(metric), metric.rows()
    assert (result["silent_references"], result["lone_sources"], result["sources"]) == (1, 1, 3)
    assert math.isfinite(rows[3]["sdr"])
    assert all(math.isnan(rows[3][name]) for name in ("sir", "sir_ideal", "sdr_mixture", "si_sdr_mixture"))
    alone = numbers(evaluate(batch([0])))
    for name in ("sir", "sdr_mixture", "sdr_improvement"):
        assert result[name] == alone[name]


def test_silent_estimate_is_counted_by_set():
    inputs, whole = batch([0, 1]), evaluate(batch([0, 1]))
    inputs["estimates"]["ideal"][0, 1] = 0
    metric = evaluate(inputs)
    result, expected = numbers(metric), numbers(whole)
    assert (result["silent_estimates"], result["silent_estimates_ideal"], result["sources"]) == (0, 1, 4)
    for name in ("sdr_ideal", "sir_ideal", "sar_ideal", "si_sdr_ideal"):
        kept = [row[name] for row in whole.rows() if (row["item"], row["source"]) != (0, 1)]
        assert result[name] == math.fsum(kept) / 3
    same = [name for name in expected if not name.endswith("_ideal")]
    assert {name: result[name] for name in same} == {name: expected[name] for name in same}
    inputs["estimates"]["model"][0, 1] = 0
    result = numbers(evaluate(inputs))
    assert (result["silent_estimates"], result["sources"]) == (1, 3)


def test_nothing_evaluated_gives_counts_only():
    metric = SeparationMetrics(workers=1)
    metric.update(**batch([]) | {"estimates": {"model": torch.zeros(0, 2, SAMPLES)}})
    assert set(numbers(metric)) == {
        "sources", "silent_references", "lone_sources", "silent_estimates", "silent_estimates_mixture"
    }  # fmt: skip
    assert not any(numbers(metric).values())
    assert metric.rows() == []


def test_an_error_of_a_thread_names_the_mixture_and_adds_nothing():
    metric = evaluate(batch([0]))
    inputs = batch([6, 7, 8])
    inputs["estimates"]["model"][1, 0, 5] = math.nan
    with pytest.raises(ValueError, match="mixture 7"):
        metric.update(**inputs)
    assert metric.compute() == evaluate(batch([0])).compute()


def test_copies_and_forward_keep_what_went_before():
    metric = evaluate(batch([0]))
    assert metric(**batch([1])) == evaluate(batch([1])).compute()
    whole = evaluate(batch([0, 1, 2])).compute()
    for one in (copy.deepcopy(metric), pickle.loads(pickle.dumps(metric)), metric):
        assert one.compute() == evaluate(batch([0, 1])).compute()
        one.update(**batch([2]))
        assert one.compute() == whole


def test_names_are_checked():
    with pytest.raises(ValueError, match="mixture"):
        SeparationMetrics(("model", "mixture"))
    with pytest.raises(ValueError, match=r"expected estimates \['model'\], got \['ideal', 'model'\]"):
        SeparationMetrics(workers=1).update(**batch([0]))


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
@pytest.mark.parametrize("real", [False, pytest.param(True, marks=pytest.mark.full)])  # starting processes takes long
def test_two_processes_give_the_same_as_one(real, tmp_path):
    new = partial(SeparationMetrics, ("model", "ideal"), workers=1)
    assert_two_give_the_same_as_one(new, batch, found, tmp_path if real else None)
