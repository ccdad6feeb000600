"""What metrics find in two processes that gather from each other."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Accumulate = Callable[..., Any]
"""Called with the rank and, in threads, with what takes the place of torch.distributed in a `Metric`."""


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
    """Real ones, over gloo; a function at the top of its module."""
    torch.multiprocessing.spawn(_process, (accumulate, folder), nprocs=2)
    return {rank: torch.load(folder / f"{rank}.pt") for rank in range(2)}


def _process(rank: int, accumulate: Accumulate, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    torch.save(accumulate(rank), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()
