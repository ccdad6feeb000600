"""How well sources were separated: SDR, SIR and SAR of BSS eval v3 and SI-SDR, computed beside the evaluation.

Letters: B mixtures · E sets of estimates · N sources of a mixture · T samples · L taps of the distortion filter.
"""

from __future__ import annotations

import math
import os
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.audio import scale_invariant_signal_distortion_ratio
from torchmetrics.utilities import dim_zero_cat

from deepavfusion.utils.processes import cores

MIXTURE = "mixture"
MEASURES = ("sdr", "sir", "sar", "si_sdr")
LIMIT_DB = 100.0  # values are clipped to ±100 dB: a perfect estimate counts as this, not as infinite
SILENT_REFERENCE = 1e-4  # rms; −80 dB re full scale, where the noise of a recording or a codec lies
SILENT_ESTIMATE = 1e-8  # rms; −160 dB: quieter than any sound, so that no model gains by whispering
PENDING = 4  # mixtures waiting for each worker before `update` waits, too


class BSSEval(NamedTuple):
    """Ratios in dB, each [E, N]."""

    sdr: Tensor
    sir: Tensor
    sar: Tensor


def bss_eval(references: Tensor, estimates: Tensor, filter_length: int = 512) -> BSSEval:
    """SDR, SIR and SAR of several sets of estimates of the same references, without permutation.

    BSS eval v3 (Vincent, Gribonval, Févotte 2006, "Performance measurement in blind audio source separation"), the
    definition of mir_eval's `bss_eval_sources`: estimate = s_target + e_interf + e_artif, its projection on the own
    reference delayed by 0…L−1 samples, what all references so delayed explain beyond that, and the rest.
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
    # Sounds without energy in a part of the spectrum: not positive definite to rounding.
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


class SeparationMetrics(Metric):
    """SDR, SIR, SAR and SI-SDR in dB: means over sources of several sets of estimates, and of the mixture itself.

    `update` hands every mixture to a thread and returns; only when `PENDING` mixtures wait for each worker does it
    wait for the oldest. Copies from the device are made by the threads: do not change the tensors in place afterwards.
    An error of a thread is raised by the next `update` or by `compute`, each time until `reset`.

    What has no value is left out of a mean and counted:
    - a silent reference (rms below −80 dB re full scale): no value for this source; the others of its mixture are
      projected on the references that sound. (Sound of Pixels leaves out the whole mixture.)
    - a silent estimate (rms below −160 dB): no value for this source in this set.
    - a lone source, whose mixture has no other that sounds: nothing interferes, and the mixture is the source. It has
      no SIR, no value of the mixture and no improvement.
    NaN or infinite samples are an error.

    A mixture that processes evaluate twice (samplers pad with repetitions) counts once, so `items` must tell mixtures
    apart. The result does not depend on batches, order, workers or the number of processes.

    Args:
        estimates: names of the sets of estimates, the model's first.
        workers: threads, each of one core. By default the cores of this process, shared among LOCAL_WORLD_SIZE.
    """

    full_state_update = False
    results: list[Tensor]  # [rows, columns]; one tensor once processes are synchronised

    def __init__(self, estimates: Sequence[str] = ("model",), workers: int | None = None) -> None:
        super().__init__()
        self.names = tuple(estimates)
        reserved = {MIXTURE, "improvement"} & set(self.names)
        if not self.names or reserved or len(set(self.names)) < len(self.names):
            raise ValueError(f"expected different names of estimates other than mixture, improvement: {self.names}")
        self.workers = workers or _cores()
        self._suffixes = ("", *(f"_{name}" for name in (*self.names[1:], MIXTURE)))
        self._columns: dict[str, type] = {"item": int, "source": int, "label": int}
        self._columns |= {"silent_reference": bool, "lone": bool}
        for suffix in self._suffixes:
            self._columns[f"silent_estimate{suffix}"] = bool
            self._columns |= {f"{measure}{suffix}": float for measure in MEASURES}
        self._pool: ThreadPoolExecutor | None = None
        self._pending: deque[Future[Tensor]] = deque()
        self._seen: list[dict[str, Any]] | None = None  # the rows behind the last `compute`
        self.add_state("results", default=[], dist_reduce_fx="cat")

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
        self._seen = None
        ready = None
        if references.is_cuda:
            ready = torch.cuda.Event(blocking=True)
            ready.record(torch.cuda.current_stream(references.device))
        tensors = [references, *(estimates[name] for name in self.names), mixture, items, labels]
        for one in zip(*(tensor.detach().unbind() for tensor in tensors), strict=True):
            self._collect(PENDING * self.workers - 1)
            self._pending.append(self._threads().submit(_evaluate, one, ready))

    def compute(self) -> dict[str, Tensor]:
        """Means in dB, and counts; float64 scalars. A mean over no source is left out.

        `sdr sir sar si_sdr` of the model; the same with `_<set>` of each further set; `sdr_mixture sir_mixture
        si_sdr_mixture`; `sdr_improvement sir_improvement si_sdr_improvement`, the mean of the model's value minus the
        mixture's. The mixture has no artefacts, so neither a SAR nor an improvement of it.
        `sources`: how many `sdr` is the mean of; with `silent_references` and `silent_estimates` (the model's) these
        are all. `silent_estimates_<set>`; `lone_sources`.
        """
        self._collect(0)
        rows = self._seen = self._table()
        means: dict[str, list[float]] = {
            name: [row[name] for row in rows]
            for name in (f"{measure}{suffix}" for suffix in self._suffixes for measure in MEASURES)
            if name != f"sar_{MIXTURE}"
        }
        for measure in ("sdr", "sir", "si_sdr"):
            means[f"{measure}_improvement"] = [row[measure] - row[f"{measure}_{MIXTURE}"] for row in rows]
        defined = {name: [value for value in values if not math.isnan(value)] for name, values in means.items()}
        # fsum rounds once: the order and the number of threads do not matter
        result = {name: math.fsum(values) / len(values) for name, values in defined.items() if values}
        result["sources"] = len(defined["sdr"])
        result["silent_references"] = sum(row["silent_reference"] for row in rows)
        result["lone_sources"] = sum(row["lone"] for row in rows)
        for suffix in self._suffixes:
            result[f"silent_estimates{suffix}"] = sum(row[f"silent_estimate{suffix}"] for row in rows)
        return {name: torch.tensor(v, dtype=torch.float64, device=self.device) for name, v in result.items()}

    def rows(self) -> list[dict[str, Any]]:
        """One row for each source, by item and source: after `compute` those of all processes, before it our own.

        Keys: `item`, `source` (its place in the mixture), `label`, `others` (labels of the other sources),
        `silent_reference`, `lone`, and `silent_estimate`, `sdr`, `sir`, `sar`, `si_sdr` of the model, with
        `_<set>` of the further sets and of the mixture. What has no value is nan.
        """
        if self._seen is not None:
            return self._seen
        self._collect(0)
        return self._table()

    def _table(self) -> list[dict[str, Any]]:
        unique: dict[tuple[int, int], dict[str, Any]] = {}
        for values in dim_zero_cat(self.results).tolist():
            row = {name: kind(value) for (name, kind), value in zip(self._columns.items(), values, strict=True)}
            unique.setdefault((row["item"], row["source"]), row)
        rows = [unique[key] for key in sorted(unique)]
        for _, same in groupby(rows, key=itemgetter("item")):
            sources = list(same)
            for row in sources:
                row["others"] = tuple(other["label"] for other in sources if other is not row)
        return rows

    def _threads(self) -> ThreadPoolExecutor:
        if self._pool is None:
            # What a thread sets holds for itself and for those that start later, so all start now, and then our own
            # number is set again.
            ours = torch.get_num_threads()
            self._pool = ThreadPoolExecutor(self.workers, initializer=_take_one_core)
            started = threading.Barrier(self.workers + 1)
            for _ in range(self.workers):
                self._pool.submit(started.wait)
            started.wait()
            torch.set_num_threads(ours)
        return self._pool

    def _collect(self, limit: int) -> None:
        """Keep what is done; wait until at most `limit` are pending. One that failed stays, and raises again."""
        while self._pending and (len(self._pending) > limit or self._pending[0].done()):
            self.results.append(self._pending[0].result().to(self.device))
            self._pending.popleft()
        if limit == 0 and isinstance(self.results, list) and not self.results:
            # torchmetrics would gather a process without mixtures as one dimension of float32
            self.results.append(torch.zeros(0, len(self._columns), dtype=torch.float64, device=self.device))

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gather the results of all processes, when every thread is done; `compute` calls it first."""
        self._collect(0)
        super().sync(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """`update`, and `compute` of this batch alone: waits for the threads."""
        self._collect(0)  # torchmetrics resets before the batch
        result = super().forward(*args, **kwargs)
        self._seen = None  # it was this batch
        return result

    def reset(self) -> None:
        """Forget everything; mixtures that wait are not evaluated."""
        for future in self._pending:
            future.cancel()
        self._pending.clear()
        self._seen = None
        super().reset()

    def __getstate__(self) -> dict[str, Any]:
        self._collect(0)
        return super().__getstate__() | {"_pool": None}


def _cores() -> int:
    return max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _take_one_core() -> None:
    """Operations of this thread shall not spread over the cores of the others."""
    torch.get_num_threads()  # the first look copies the number of the process, and would do so after ours was set
    torch.set_num_threads(1)


@torch.no_grad()
def _evaluate(tensors: Sequence[Tensor], ready: torch.cuda.Event | None) -> Tensor:
    """references [N, T], E × estimates [N, T], mixture [T], item [], labels [N] -> rows [N, columns] of the metric"""
    if ready is None:
        tensors = [tensor.cpu() for tensor in tensors]
    else:
        ready.synchronize()
        with torch.cuda.stream(torch.cuda.Stream(tensors[0].device)):  # not behind the batches that came later
            tensors = [tensor.cpu() for tensor in tensors]
    references, *estimates, mixture, item, labels = tensors
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
    head = torch.stack([item.expand_as(labels), torch.arange(len(labels)), labels, ~sounds, lone])
    return torch.cat([head, table.transpose(0, 1).flatten(0, 1)]).T.contiguous()
