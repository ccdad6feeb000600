"""Sheets of nearest neighbours for data without classes, where a pre-training has no other measure than its loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from lightning import LightningModule, Trainer
from torch import Tensor
from torch.nn import functional as F

from deepavfusion.callbacks.evaluation import EvaluationCallback, first_loader
from deepavfusion.callbacks.show.clips import classes_of, shown_clips
from deepavfusion.callbacks.show.semantics.report import Clips
from deepavfusion.callbacks.show.semantics.sheets import draw_sheet
from deepavfusion.figures.style import save_figure, short
from deepavfusion.metrics.by_item import Rows
from deepavfusion.metrics.semantics import Findings
from deepavfusion.types import STREAMS, Batch
from deepavfusion.utils.console import say

SHEETS, SHOWN = 3, 5  # queries, and nearest clips of each stream
COMBINED = "combined"


class UnlabelledSheets(EvaluationCallback):
    """After training on data without classes: `neighbours_<n>.png` in the run directory, a query and what the image,
    audio and fusion tokens, and all three, find nearest to it among the validation clips of other videos.

    It reads {"embeddings": {stream: [B, D]}} from `validation_step`, loader 0.

    Args:
        run_dir: where the sheets go.
    """

    def __init__(self, run_dir: str) -> None:
        self.run_dir = Path(run_dir)
        self.rows: dict[str, Rows] = {}
        self.found: dict[str, Tensor] = {}  # stream -> rows of all processes, at the last validation
        self.items = torch.zeros(0, dtype=torch.int64)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        width = cast(Any, pl_module).net.encoder.embed_dim
        labelled = bool(classes_of(trainer))
        self.rows = {} if labelled else {name: Rows(width).to(pl_module.device) for name in STREAMS}

    def on_batch(self, trainer: Trainer, task: LightningModule, outputs: Any, batch: Batch, loader: int) -> None:
        for name, rows in self.rows.items():
            if loader == 0 and len(batch):
                rows.update(batch.item, outputs["embeddings"][name].float())

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.found = {name: rows.compute().cpu() for name, rows in self.rows.items()}
        for rows in self.rows.values():
            self.items = rows.table()["item"]
        self.rows = {}

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        stopped = getattr(trainer, "interrupted", False) or getattr(trainer, "fast_dev_run", False)
        if not trainer.is_global_zero or not self.found or stopped:
            return
        loader = first_loader(trainer)
        clips = [loader.dataset.clips[item] for item in self.items.tolist()]
        number = {video: n for n, video in enumerate(dict.fromkeys(clip.video_id for clip in clips))}
        videos = torch.tensor([number[clip.video_id] for clip in clips])
        if len(number) < 2:
            say(
                "no neighbours_<n>.png: the validation clips are of fewer than two videos; hold out more, "
                "of a folder by data.index.test_share",
                "yellow",
            )
            return
        seed = pl_module.hparams["seed"]
        order = torch.randperm(len(clips), generator=torch.Generator().manual_seed(seed)).tolist()
        first = {clips[n].video_id: n for n in reversed(order)}  # one of each video
        queries = sorted(first.values(), key=order.index)[:SHEETS]
        found = Findings(dict.fromkeys((*STREAMS, COMBINED), "type"), self.items, torch.full_like(self.items, -1), 0)
        found.nearest = nearest_of_others(self.found, queries, videos)
        read, names = Clips(trainer, pl_module, loader, found), []
        for place, query in enumerate(queries, 1):
            near = {n for each in found.nearest.values() for n in each[query].tolist()}
            shown = {n: clip for n in sorted({query, *near}) if (clip := read(n)) is not None}
            if query not in shown:  # its file is gone by now
                continue
            title = f"{short(shown[query].id, 60)}, chosen by seed {seed} of {len(clips)} clips of {len(number)} videos"
            what = f"{shown_clips(pl_module)} of other videos"
            names.append(self.run_dir / f"neighbours_{place}.png")
            save_figure(draw_sheet(found, query, shown, title, what), names[-1])
        say(f"what is nearest to what, among clips without classes: {', '.join(map(str, names))}")


def nearest_of_others(rows: dict[str, Tensor], queries: list[int], videos: Tensor) -> dict[str, Tensor]:
    """Positions of the nearest clips of other videos, by cosine: stream -> int64 [N, k], of the queries only.

    Args:
        rows: stream -> [N, D].
        queries: positions.
        videos: int64 [N], equal for clips of one video; there are two or more.
    """
    unit = {name: F.normalize(x, dim=1) for name, x in rows.items()}
    unit[COMBINED] = torch.cat([*unit.values()], dim=1)
    most = min(SHOWN, *(int((videos != videos[query]).sum()) for query in queries))
    found = {name: torch.zeros(len(videos), most, dtype=torch.int64) for name in unit}
    for name, x in unit.items():
        for query in queries:
            score = (x @ x[query]).masked_fill(videos == videos[query], float("-inf"))
            found[name][query] = score.topk(most).indices
    return found
