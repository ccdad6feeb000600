"""How well sources were separated: SDR, SIR and SAR of BSS eval v3, and SI-SDR.

Letters: B mixtures · E sets of estimates · N sources of a mixture · T samples · L taps of the distortion filter.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics.functional.audio import scale_invariant_signal_distortion_ratio

from deepavfusion.metrics.by_item import ItemMetric, mean
from deepavfusion.utils.launch.cores import cores

MIXTURE = "mixture"
MEASURES = ("sdr", "sir", "sar", "si_sdr")
LIMIT_DB = 100.0  # values are clipped to ±100 dB: a perfect estimate counts as this, not as infinite
SILENT_REFERENCE = 1e-4  # rms; −80 dB re full scale, where the noise of a recording or a codec lies
SILENT_ESTIMATE = 1e-8  # rms; −160 dB: below any signal, so that quiet estimates are still evaluated
MAX_SOURCES = 1000  # of a mixture: items are numbered by mixture and source


class BSSEval(NamedTuple):
    """Ratios in dB, each [E, N]."""

    sdr: Tensor
    sir: Tensor
    sar: Tensor


def bss_eval(references: Tensor, estimates: Tensor, filter_length: int = 512) -> BSSEval:
    """SDR, SIR and SAR of several sets of estimates of the same references, without permutation.

    BSS eval v3 (Vincent, Gribonval, Févotte 2006, "Performance measurement in blind audio source separation"), the
    definition of mir_eval's `bss_eval_sources`: estimate = s_target + e_interf + e_artif, its projection on the own
    reference delayed by 0…L−1 samples, what all delayed references explain beyond that, and the rest.
    The normal equations are block Toeplitz; they are built and factored once for all sets.

    Args:
        references: [N, T], on the CPU, none silent. Their scale does not matter.
        estimates: [E, N, T]; estimates[e, n] is compared with references[n]. A silent one gives nan.
        filter_length: L, taps of the filter that is allowed between a reference and its estimate.
    """
    (sets, n, samples), taps = estimates.shape, filter_length
    assert references.shape == (n, samples), (references.shape, estimates.shape)
    size = _fft_size(samples + taps - 1)  # linear, not circular, for every product below
    references = references.double()
    references = references / torch.linalg.vector_norm(references, dim=-1, keepdim=True)  # better conditioned
    reference, estimate = torch.fft.rfft(references, size), torch.fft.rfft(estimates.double(), size)

    correlation = torch.fft.irfft(reference.conj().unsqueeze(1) * reference, size)  # [N, N, size]
    delay = torch.arange(taps)
    gram = correlation[:, :, delay.unsqueeze(1) - delay]  # [N, N, L, L]; negative lags are at the end
    moments = torch.fft.irfft(reference.conj() * estimate.unsqueeze(2), size)[..., :taps]  # [E, N, N, L]

    each = torch.arange(n)
    own = _solve(gram[each, each], moments[:, each, each].permute(1, 2, 0)).permute(2, 0, 1)  # [E, N, L]
    joint_gram = gram.transpose(1, 2).reshape(n * taps, n * taps)
    joint = _solve(joint_gram, moments.reshape(sets * n, n * taps).T).T.reshape(sets, n, n, taps)

    target = reference * torch.fft.rfft(own, size)
    explained = (reference * torch.fft.rfft(joint, size)).sum(dim=2)  # s_target + e_interf
    artefacts = estimate - explained
    return BSSEval(
        sdr=_ratio_db(target, estimate - target),
        sir=_ratio_db(target, explained - target),
        sar=_ratio_db(explained, artefacts),
    )


def _fft_size(minimum: int) -> int:
    """The least even size with small factors."""
    return min(m << max(1, (-(-minimum // m) - 1).bit_length()) for m in (1, 3, 5, 9, 15))


def _solve(gram: Tensor, moments: Tensor) -> Tensor:
    """gram [..., K, K] symmetric, moments [..., K, R] -> filters [..., K, R]; least squares where gram is singular."""
    factor, failed = torch.linalg.cholesky_ex(gram)
    if not failed.any():
        return torch.cholesky_solve(moments, factor)
    # Without energy in a part of the spectrum, gram is not positive definite to rounding.
    filters, failed = torch.linalg.solve_ex(gram, moments)
    if not failed.any() and filters.isfinite().all():
        return filters
    return torch.linalg.lstsq(gram, moments, driver="gelsd").solution


def _ratio_db(signal: Tensor, noise: Tensor) -> Tensor:
    return 10 * torch.log10(_energy(signal) / _energy(noise))


def _energy(half: Tensor) -> Tensor:
    """Half spectrum [..., F] of an even number of real samples -> their energy [...] times a constant."""
    both = 2 * torch.linalg.vector_norm(torch.view_as_real(half), dim=(-2, -1)).square()
    return both - half[..., 0].abs().square() - half[..., -1].abs().square()


class SeparationMetrics(ItemMetric):
    """SDR, SIR, SAR and SI-SDR in dB: means over sources of several sets of estimates, and of the mixture itself.

    Values that are undefined are excluded from means, and counted:
    - a silent reference (rms below −80 dB re full scale): no value for this source; the others of its mixture are
      projected on the references that are not silent. (Sound of Pixels excludes the whole mixture.)
    - a silent estimate (rms below −160 dB): no value for this source in this set.
    - a lone source, whose mixture has no other that is not silent: nothing interferes, and the mixture is the source.
      It has no SIR, no value of the mixture and no improvement.
    NaN or infinite samples are an error.

    A mixture that is evaluated twice (samplers pad with repetitions) counts once, so `items` must identify mixtures.
    The result does not depend on batches, order, workers or the number of processes, see `ItemMetric`.

    Args:
        estimates: names of the sets of estimates, the model's first.
        workers: threads that evaluate the mixtures of a batch, one core each; None: the cores of this process.
    """

    def __init__(self, estimates: Sequence[str] = ("model",), workers: int | None = None) -> None:
        names = tuple(estimates)
        reserved = {MIXTURE, "improvement"} & set(names)
        if not names or reserved or len(set(names)) < len(names):
            raise ValueError(f"expected different names of estimates other than mixture, improvement: {names}")
        suffixes = ("", *(f"_{name}" for name in (*names[1:], MIXTURE)))
        values: dict[str, type] = {"silent_reference": bool, "lone": bool}
        for suffix in suffixes:
            values |= {f"silent_estimate{suffix}": bool, **{f"{measure}{suffix}": float for measure in MEASURES}}
        columns = dict.fromkeys(("mixture", "source", "label"), torch.zeros(0, dtype=torch.int64))
        super().__init__({**columns, "values": torch.zeros(0, len(values), dtype=torch.float64)})
        self.names, self.workers = names, workers or cores()
        self._suffixes, self._values = suffixes, values

    @torch.no_grad()
    def update(
        self, references: Tensor, estimates: dict[str, Tensor], mixture: Tensor, items: Tensor, labels: Tensor
    ) -> None:
        """references [B, N, T], full scale 1; estimates {name: [B, N, T]}, in the order of the references;
        mixture [B, T]; items int [B], which mixture of the evaluation it is; labels int [B, N], class of each source
        """
        if set(estimates) != set(self.names):
            raise ValueError(f"expected estimates {sorted(self.names)}, got {sorted(estimates)}")
        batch, n, samples = references.shape
        for tensor in estimates.values():
            assert tensor.shape == references.shape, (tensor.shape, references.shape)
        assert mixture.shape == (batch, samples), (mixture.shape, references.shape)
        assert items.shape == (batch,), (items.shape, references.shape)
        assert labels.shape == (batch, n), (labels.shape, references.shape)
        if not batch:
            return
        tensors = [references, *(estimates[name] for name in self.names), mixture, items]
        each = zip(*(tensor.detach().cpu() for tensor in tensors), strict=True)
        values = torch.stack(_with_one_core_each(self.workers, _evaluate, each)).to(self.device)  # [B, N, values]
        source = torch.arange(n, device=self.device).expand(batch, n)
        mixtures = items.to(self.device).unsqueeze(1).expand(batch, n)
        rows = {"item": mixtures * MAX_SOURCES + source, "mixture": mixtures, "source": source, "label": labels}
        self.keep({**{name: column.flatten() for name, column in rows.items()}, "values": values.flatten(0, 1)})

    def compute(self) -> dict[str, Tensor]:
        """Means in dB, and counts; float64 scalars. A mean over no source is excluded.

        `sdr sir sar si_sdr` of the model; the same with `_<set>` of each further set; `sdr_mixture sir_mixture
        si_sdr_mixture`; `sdr_improvement sir_improvement si_sdr_improvement`, the mean of the model's value minus the
        mixture's. The mixture has no artefacts, so neither a SAR nor an improvement of it.
        `sources`: how many `sdr` is the mean of; with `silent_references` and `silent_estimates` (the model's) these
        are all. `silent_estimates_<set>`; `lone_sources`.
        """
        values = dict(zip(self._values, self.gathered()["values"].T, strict=True))
        for measure in ("sdr", "sir", "si_sdr"):
            values[f"{measure}_improvement"] = values[measure] - values[f"{measure}_{MIXTURE}"]
        means = (f"{measure}{suffix}" for suffix in (*self._suffixes, "_improvement") for measure in MEASURES)
        undefined = (f"sar_{MIXTURE}", "sar_improvement")
        result = {name: mean(values[name].tolist()) for name in means if name not in undefined}
        result["sources"] = int((~values["sdr"].isnan()).sum())
        result["silent_references"] = int(values["silent_reference"].sum())
        result["lone_sources"] = int(values["lone"].sum())
        for suffix in self._suffixes:
            result[f"silent_estimates{suffix}"] = int(values[f"silent_estimate{suffix}"].sum())
        return self.scalars(result)

    def rows(self) -> list[dict[str, Any]]:
        """One row for each source, by item and source: after `compute` those of all processes, before it our own.

        Keys: `item` (the mixture), `source` (its place in the mixture), `label`, `others` (labels of the other
        sources), `silent_reference`, `lone`, and `silent_estimate`, `sdr`, `sir`, `sar`, `si_sdr` of the model, with
        `_<set>` of the further sets and of the mixture. What is undefined is nan.
        """
        table = list(zip(*(column.tolist() for column in self.table().values()), strict=True))
        members: dict[int, list[int]] = defaultdict(list)  # mixture -> labels of its sources
        for _, item, _, label, _ in table:
            members[item].append(label)
        rows = []
        for _, item, source, label, values in table:
            others = tuple(members[item][:source] + members[item][source + 1 :])
            row = {"item": item, "source": source, "label": label, "others": others}
            rows.append(row | {name: kind(v) for (name, kind), v in zip(self._values.items(), values, strict=True)})
        return rows


def _with_one_core_each(workers: int, function: Callable[..., Tensor], arguments: Iterable[Any]) -> list[Tensor]:
    """Call a function with each of the arguments, in threads whose tensor operations do not compete for cores."""
    ours = torch.get_num_threads()
    torch.set_num_threads(1)  # new threads start with this number
    try:
        with ThreadPoolExecutor(workers) as pool:
            return list(pool.map(function, arguments))
    finally:
        torch.set_num_threads(ours)


@torch.no_grad()
def _evaluate(tensors: Sequence[Tensor]) -> Tensor:
    """references [N, T], E × estimates [N, T], mixture [T], item [] -> values of the metric [N, values]"""
    references, *estimates, mixture, item = tensors
    # Copies, so that the alignment, and with it the rounding, does not depend on the place in a batch.
    references = references.to(torch.float64, copy=True)  # [N, T]
    sets = torch.stack([*estimates, mixture.expand_as(references)]).double()  # [E + 1, N, T]
    if not (references.isfinite().all() and sets.isfinite().all()):
        raise ValueError(f"mixture {int(item)}: references, estimates or the mixture hold NaN or infinite samples")

    sounds = references.square().mean(dim=-1).sqrt() >= SILENT_REFERENCE  # [N]
    silent = (sets.square().mean(dim=-1).sqrt() < SILENT_ESTIMATE) & sounds  # [E + 1, N]
    lone = sounds & (sounds.sum() == 1)
    values = torch.full((len(MEASURES), *silent.shape), math.nan, dtype=torch.float64)
    if sounds.any():
        target, heard = references[sounds], sets[:, sounds]
        ratios = bss_eval(target, heard)
        si_sdr = scale_invariant_signal_distortion_ratio(heard, target.expand_as(heard))
        values[:, :, sounds] = torch.stack([*ratios, si_sdr]).clamp(-LIMIT_DB, LIMIT_DB)
    assert values[:, sounds & ~silent].isfinite().all(), f"mixture {int(item)}: {values}"
    values[:, silent] = math.nan
    values[MEASURES.index("sir"), :, lone] = math.nan
    values[:, -1, lone] = math.nan
    table = torch.cat([silent.unsqueeze(0), values])  # [1 + measures, E + 1, N]
    head = torch.stack([~sounds, lone])
    return torch.cat([head, table.transpose(0, 1).flatten(0, 1)]).T.contiguous()
