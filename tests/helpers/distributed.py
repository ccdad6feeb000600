"""What metrics find in two processes that gather from each other."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deepavfusion.metrics.by_item import ItemMetric

Accumulate = Callable[..., Any]
"""Called with the rank and, in threads, with what takes the place of torch.distributed in a `Metric`."""


SHARES = {"both": [[2, 0], [3, 1, 2]], "an empty one": [[1, 0, 2], []], "nothing": [[], []]}  # items of each process


def assert_two_give_the_same_as_one(
    new: Callable[[], ItemMetric],
    batch: Callable[[list[int]], tuple | dict],
    found: Callable[[ItemMetric], Any],
    folder: Path | None = None,
) -> None:
    """Two processes find in their shares, and after each continued with an item of its own, what one finds in all.

    Args:
        batch: arguments of `update` for some items.
        found: all that a metric gives, to compare.
        folder: for two real processes, which need functions at the top of their module; without it, threads.
    """
    expected = {}
    for name, (first, second) in SHARES.items():
        for suffix, more in (("", []), (", more", [5, 6])):
            expected[name + suffix] = found(_updated(new(), batch, sorted({*first, *second}) + more))
    accumulate = partial(_accumulate, new, batch, found)
    both = in_two_processes(accumulate, folder) if folder else in_two_threads(accumulate)
    assert both == {0: expected, 1: expected}


def _accumulate(new: Callable, batch: Callable, found: Callable, rank: int, **distributed: Any) -> dict[str, Any]:
    results = {}
    for name, shares in SHARES.items():
        metric = new()
        for key, value in distributed.items():
            setattr(metric, key, value)
        results[name] = found(_updated(metric, batch, shares[rank]))
        _updated(metric, batch, [5 + rank])
        table = metric.table()  # our own, until `compute`
        items = table.get("mixture", table["item"])
        assert items.unique().tolist() == sorted({*shares[rank], 5 + rank})
        results[f"{name}, more"] = found(metric)
    return results


def _updated(metric: ItemMetric, batch: Callable, items: list[int]) -> ItemMetric:
    for item in items:
        inputs = batch([item])
        metric.update(**inputs) if isinstance(inputs, dict) else metric.update(*inputs)
    return metric


def in_two_threads(accumulate: Accumulate) -> dict[int, Any]:
    """Threads play the processes; what they gather must fit together as it must for the network."""
    meet, sent = threading.Barrier(2, timeout=60), [torch.empty(0)] * 2
    found: dict[int, Any] = {}

    def process(rank: int) -> None:
        def gather(tensor: Tensor, group: object) -> list[Tensor]:
            sent[rank] = tensor
            meet.wait()
            both = list(sent)
            meet.wait()
            assert both[0].dtype == both[1].dtype
            assert both[0].shape[1:] == both[1].shape[1:]
            return both

        found[rank] = accumulate(rank, dist_sync_fn=gather, distributed_available_fn=lambda: True)

    threads = [threading.Thread(target=process, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def in_two_processes(accumulate: Accumulate, folder: Path) -> dict[int, Any]:
    """Real ones, over gloo; a function at the top of its module.

    Copies of this process import nothing anew. Where backward passes have started threads, as on GPUs, torch has none.
    """
    method = "spawn" if torch.cuda.is_available() else "fork"
    torch.multiprocessing.start_processes(_process, (accumulate, folder), nprocs=2, start_method=method)
    return {rank: torch.load(folder / f"{rank}.pt") for rank in range(2)}


def _process(rank: int, accumulate: Accumulate, folder: Path) -> None:
    """As torchrun starts it: a trainer starts no others."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    os.environ |= {"TORCHELASTIC_RUN_ID": "x", "GROUP_WORLD_SIZE": "1", **{k: str(n) for k, n in numbers.items()}}
    torch.save(accumulate(rank), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()
