"""What each kind of token knows: an evaluation of any checkpoint, without training."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deepavfusion.metrics.alignment import nearest
from deepavfusion.metrics.by_item import Rows
from deepavfusion.metrics.retrieval import unit
from deepavfusion.metrics.semantics import Findings, chance, compare, describe, search, settled
from deepavfusion.models.deepavfusion import DeepAVFusion
from deepavfusion.tasks.base import Task
from deepavfusion.transforms.audio import N_MELS
from deepavfusion.types import STREAMS, Batch
from deepavfusion.utils.console import say_once
from deepavfusion.utils.errors import UserError

PASSES = {"": ("image", "audio"), "_of_image": ("image",), "_of_audio": ("audio",)}
"""Ending of the fusion streams of a pass -> the modalities that it is given."""
GROUPS = ("mixed_group", "image_group", "audio_group")
"""The fusion tokens that attend to pairs, and the aggregates of each modality."""
PIXELS = 16  # of the sides of the picture that costs no network
FREE = {"free_image": 3 * PIXELS**2, "free_audio": 2 * N_MELS}  # their numbers
COMBINED = {"combined": STREAMS, "free_combined": tuple(FREE)}  # the mean of the cosines of others
NETWORKS = ("", "untrained")
LABELS = ("", "labels")
FEWEST = 4  # clips that can be compared: unbiased CKA divides by n − 3
SHOWN = 5  # nearest neighbours that a report shows

Key = tuple[str, str]  # network and stream


class Embedder(nn.Module):
    """The mean tokens of the joint pass and of the two unimodal ones, which have not seen the other modality.

    - types: `image`, `audio`, `fusion` of the joint pass; `solo_image`, `solo_audio`, `fusion_of_image`,
      `fusion_of_audio` of the unimodal ones
    - groups of fusion tokens: `mixed_group`, `image_group`, `audio_group`, with `_of_image` and `_of_audio` of the
      unimodal passes
    - single fusion tokens: `token_00`, …, likewise

    Args:
        encoder: the backbone.
    """

    def __init__(self, encoder: DeepAVFusion) -> None:
        super().__init__()
        self.encoder = encoder

    @property
    def kinds(self) -> dict[str, str]:
        """Name of each embedding, in the order of `forward` -> "type", "group" or "token"."""
        tokens = range(sum(self.encoder.num_fusion_tokens))
        found: dict[str, str] = {}
        for ending, present in PASSES.items():
            found |= dict.fromkeys((f"solo_{name}" if ending else name for name in present), "type")
            found[f"fusion{ending}"] = "type"
            found |= dict.fromkeys((f"{group}{ending}" for group in GROUPS), "group")
            found |= dict.fromkeys((f"token_{n:02}{ending}" for n in tokens), "token")
        return found

    def forward(self, image: Tensor, audio: Tensor) -> dict[str, Tensor]:
        """image [B, 3, H, W], audio [B, 1, M, F], as of the encoder -> name: [B, embed_dim]"""
        rows: list[Tensor] = []
        for present in PASSES.values():
            out = self.encoder(image if "image" in present else None, audio if "audio" in present else None)
            groups = out.fusion.split(self.encoder.num_fusion_tokens, dim=1)
            rows += out.pooled().values()
            rows += [group.mean(dim=1) for group in groups]
            rows += out.fusion.unbind(dim=1)
        return dict(zip(self.kinds, rows, strict=True))


class Semantics(Task):
    """Compares the embeddings of an `Embedder` with the classes of the clips and with each other.

    Beside each number stand the same of an untrained network (random weights of the run's seed), chance, and what costs
    no network: `free_image`, the picture at 16 × 16 pixels; `free_audio`, mean and deviation of each mel band over
    time; `free_combined`, both. Their numbers are standardised over the evaluated clips. `combined` is the mean of the
    cosines of image, audio and fusion in the joint pass.

    Args:
        net: the backbone.
        votes: train clips that vote in `…_knn_train`, if there is a gallery.
        mutual: neighbours that are compared in `…_mutual_knn`.
        recipe: see `Task`; of no effect but for batch size, start weights and seed.
    """

    trains = False

    def __init__(self, net: DeepAVFusion, votes: int = 5, mutual: int = 10, **recipe: Any) -> None:
        super().__init__(**recipe)
        # Start weights are loaded into `net` later, so this copy stays untrained.
        self.untrained = Embedder(deepcopy(net))
        self.net = Embedder(net)
        self.requires_grad_(False)
        self.found: Findings | None = None
        self._rows: list[dict[Key, Rows]] = []  # by loader: evaluated clips, gallery; on the CPU

    def check_data(self, datamodule: Any) -> None:
        if not datamodule.classes or (not datamodule.multi_label and not any(datamodule.class_counts)):
            raise UserError(
                f"{datamodule.dataset_name} has no classes, expected some to compare embeddings with: give data with "
                "labels (data=vggsound; of data=folder, a sub-folder for each class, or a CSV file with a column "
                "label); pre-training draws neighbours without (experiment=folder_pretrain)."
            )
        clips = datamodule.lists["test"].clips if getattr(datamodule, "lists", None) else []
        if len(videos := {clip.video_id for clip in clips}) < len(clips):
            say_once(
                f"note: {len(clips)} clips are of {len(videos)} videos, and those of one find each other (of "
                "data=folder, data.index.max_windows=1 takes one of each)",
                "yellow",
            )

    @property
    def kinds(self) -> dict[str, str]:
        """Stream -> see `Findings`."""
        found: dict[str, str] = {}
        for stream, kind in self.net.kinds.items():
            found |= {stream: kind} | ({"combined": "type"} if stream == STREAMS[-1] else {})
        return found | dict.fromkeys((*FREE, "free_combined"), "free")

    def on_test_epoch_start(self) -> None:
        loaders: Any = self.trainer.test_dataloaders
        width = self.net.encoder.embed_dim
        widths = {(network, stream): width for network in NETWORKS for stream in self.net.kinds}
        widths |= {("", stream): width for stream, width in FREE.items()}
        # All of them now: a process without a clip has to exchange the same ones at the end.
        datamodule: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        widths[LABELS] = len(datamodule.classes) if datamodule.multi_label else 1
        self._rows = [{key: Rows(width) for key, width in widths.items()} for _ in loaders]

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        if not len(batch):
            return
        self.check_shapes(batch)
        assert batch.spectrogram is not None
        found: dict[Key, Tensor] = {}
        for network, net in zip(NETWORKS, (self.net, self.untrained), strict=True):
            rows = net(batch.image, batch.spectrogram)
            # One transfer for all streams; each is copied out, so that its memory is freed once it is described.
            each = torch.stack([*rows.values()]).float().cpu()
            found |= {(network, stream): x.clone() for stream, x in zip(rows, each, strict=True)}
        found |= {("", stream): x for stream, x in free(batch.image, batch.spectrogram).items()}
        found[LABELS] = batch.label.unsqueeze(1) if batch.labels is None else batch.labels
        item = batch.item.cpu()
        for key, metric in self._rows[dataloader_idx].items():
            metric.update(item, found[key].float().cpu())

    def on_test_epoch_end(self) -> None:
        self.found = self._find()
        self._rows = []
        # Hundreds of numbers, and no curves: they go to the files of the run only. Equal on all processes.
        self.log_dict(self.found.metrics(), logger=False, sync_dist=True)

    def _gather(self, key: Key) -> list[tuple[Tensor, Tensor]]:
        """Items and rows of a stream by loader, of all processes; rows on the device that compares them."""
        device = self.device if self.device.type == "cuda" else torch.device("cpu")  # others have no float64
        found = []
        for metrics in self._rows:
            metric = metrics.pop(key).to(self.device)
            rows = metric.compute()
            found.append((metric.table()["item"], rows.to(device)))
        return found

    def _find(self) -> Findings:
        """All processes gather each stream, one of them describes it, and all learn what was found."""
        tables = self._gather(LABELS)
        items, labels = tables[0][0], [_classes(rows) for _, rows in tables]
        if len(items) < FEWEST:
            raise UserError(
                f"{len(items)} clips could be used, expected at least {FEWEST} to compare: see data_problems.csv, or "
                "set data.eval_split or data.root."
            )
        found = Findings(self.kinds, items, labels[0].cpu(), len(labels[1]) if len(labels) > 1 else 0)
        gallery = labels[1] if found.train_clips else None
        streams, precision, vectors = self._describe(labels[0], gallery)
        pairs = self._compare({key: x for key, x in vectors.items() if key[1] != "combined"}, labels[0])
        for theirs in self._exchange((streams, precision, pairs)):
            _merge(found, *theirs)
        order = [*found.kinds]  # whichever process found it
        found.pairs = dict(sorted(found.pairs.items(), key=lambda item: [*map(order.index, item[0])]))
        _add_chance(found, None if gallery is None else gallery.cpu())
        shown, ours = min(SHOWN, len(items) - 1), {stream: x for (network, stream), x in vectors.items() if not network}
        found.nearest = {stream: nearest(ours[stream], shown) for stream in found.kinds if stream in ours}
        return found

    def _describe(
        self, labels: Tensor, gallery: Tensor | None
    ) -> tuple[dict[Key, dict[str, float]], dict[str, Tensor], dict[Key, Tensor]]:
        """Of this process's share of the streams: measures, and average precision of each clip; unit vectors of all
        types."""
        streams: dict[Key, dict[str, float]] = {}
        precision: dict[str, Tensor] = {}
        vectors: dict[Key, Tensor] = {}
        for number, ((network, stream), rows) in enumerate(self._streams()):
            kind = self.kinds[stream]
            each = [unit(x, stream) for x in rows]  # on all processes, of which none may be left waiting by an error
            if kind == "type":
                vectors[network, stream] = each[0]
            if number % self.trainer.world_size != self.trainer.global_rank:
                continue
            of_train = None if gallery is None else (each[1], gallery)
            recipe = self.hparams["votes"], self.hparams["seed"], kind == "token"
            streams[network, stream], found = describe(rows[0], each[0], labels, of_train, *recipe)
            if kind == "type" and not network:
                precision[stream] = found
        return streams, precision, vectors

    def _streams(self) -> Iterator[tuple[Key, list[Tensor]]]:
        """Network and stream, and its rows by loader; those that others are made of are kept until these follow."""
        parts: dict[Key, list[Tensor]] = {}
        for network, stream in [*self._rows[0]]:
            rows = [settled(x) if len(x) else x for _, x in self._gather((network, stream))]
            if stream in FREE:
                middle, spread = rows[0].mean(dim=0), rows[0].std(dim=0)
                # One more number, as clips that are all alike would be left with zeros.
                rows = [F.pad((x - middle) / spread.clamp(min=1e-6), (0, 1), value=1e-6) for x in rows]
            yield (network, stream), rows
            if any(stream in streams for streams in COMBINED.values()):
                parts[network, stream] = [F.normalize(x.double(), dim=1).float() for x in rows]
        for network in NETWORKS:
            for name, streams in COMBINED.items():
                if (network, streams[0]) in parts:
                    both = zip(*(parts[network, stream] for stream in streams), strict=True)
                    yield (network, name), [torch.cat(each, dim=1) for each in both]

    def _compare(self, vectors: dict[Key, Tensor], labels: Tensor) -> dict[tuple[str, str, str], dict[str, float]]:
        """Network and two of its streams -> measures, of this process's share. Those that do not depend on the order
        are given once."""
        found: dict[tuple[str, str, str], dict[str, float]] = {}
        mutual, seed = min(self.hparams["mutual"], len(labels) - 1), self.hparams["seed"]
        pairs = [(one, other) for one in vectors for other in vectors if one[0] == other[0] and one != other]
        order, near = {key: n for n, key in enumerate(vectors)}, cache(lambda key: nearest(vectors[key], mutual))
        for one, other in pairs[self.trainer.global_rank :: self.trainer.world_size]:
            x, y = vectors[one], vectors[other]
            measures = search(x, y, labels)
            if order[one] < order[other]:
                measures |= compare(x, y, (near(one), near(other)), seed)
            found[one[0], one[1], other[1]] = measures
        return found

    def _exchange(self, mine: Any) -> list[Any]:
        """What each process found."""
        if self.trainer.world_size == 1:
            return [mine]
        found: list[Any] = [None] * self.trainer.world_size
        torch.distributed.all_gather_object(found, mine)
        return found


def _classes(rows: Tensor) -> Tensor:
    """float [N, 1], a class each, or zeros and ones [N, C] -> int64 [N] or bool [N, C]"""
    return rows.bool() if rows.shape[1] > 1 else rows[:, 0].long()


def _merge(
    found: Findings,
    streams: dict[Key, dict[str, float]],
    precision: dict[str, Tensor],
    pairs: dict[tuple[str, str, str], dict[str, float]],
) -> None:
    """Add what a process found."""
    found.precision |= precision
    for (network, stream), measures in streams.items():
        _enter(found.streams[stream], network, measures)
    for (network, one, other), measures in pairs.items():
        _enter(found.pairs.setdefault((one, other), {}), network, measures)


def _enter(place: dict[str, dict[str, float]], network: str, measures: dict[str, float]) -> None:
    """`<measure>_chance` becomes what chance gives; that of the network as it is."""
    for name, value in measures.items():
        measure = name.removesuffix("_chance")
        if measure == name:
            place.setdefault(measure, {})[network] = value
        elif not network:
            place.setdefault(measure, {})["chance"] = value


def _add_chance(found: Findings, gallery: Tensor | None) -> None:
    """What neighbours in random order and random clusters give."""
    values = {"ami": 0.0, "ari": 0.0, **chance(found.labels)}
    if gallery is not None:
        values |= {f"{name}_train": value for name, value in chance(found.labels, gallery).items()}
    for measures in found.streams.values():
        for name, networks in measures.items():
            if name in values:
                networks["chance"] = values[name]


def free(image: Tensor, spectrogram: Tensor) -> dict[str, Tensor]:
    """What can be compared without a network: {"free_image": [B, 768], "free_audio": [B, 256]}.

    image [B, 3, H, W], spectrogram [B, 1, M, F]
    """
    mel = spectrogram[:, 0].float()
    return {
        "free_image": F.adaptive_avg_pool2d(image.float(), PIXELS).flatten(1),
        "free_audio": torch.cat([mel.mean(dim=2), mel.std(dim=2)], dim=1),
    }
