"""What is exported: a network with the steps before and after it that predict.py takes, from tensors to named tensors.

Letters: B clips · H×W pixels · T samples · M mel bands · F frames · N tokens · D embedding dimension · C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from deepavfusion.inference.separate import source_mask
from deepavfusion.models.classifier import Classifier, mean_of_heads
from deepavfusion.models.deepavfusion import DeepAVFusion
from deepavfusion.models.novelty import NoveltyDetector
from deepavfusion.models.retriever import Retriever, solo_means
from deepavfusion.models.segmenter import Segmenter, probabilities
from deepavfusion.models.separator import Separator
from deepavfusion.tasks.base import Task
from deepavfusion.transforms.audio import HOP_LENGTH, N_MELS, LogMel, MelMask
from deepavfusion.transforms.image import Normalise
from deepavfusion.types import ALL, HEADS
from deepavfusion.utils.errors import UserError

MODALITIES = {"both": ("image", "audio"), "image": ("image",), "audio": ("audio",)}
Outputs = dict[str, Tensor]


class Graph(nn.Module):
    """A network in evaluation mode, on the CPU, in float32.

    Inputs, of any B:
        image: uint8 [B, 3, H, W], RGB; without `preprocess` float32, ImageNet-normalised.
        waveform: float32 [B, T], mono, 16 kHz, in [−1, 1].
        spectrogram: float32 [B, 1, M, F], log10 power mel: without `preprocess`, in place of the waveform.

    Outputs:
        an encoder: `image_tokens`, `audio_tokens`, `fusion_tokens` [B, N, D], of the modalities that it gets.
        a classifier: `logits` and `scores` (0…1) [B, heads, C], see `heads`; `novelty` [B] where the checkpoint has it.
        a retriever: `image_embedding`, `audio_embedding` [B, D], unit vectors, each of its own pass.
        a separator: `mask` [B, M, F], the share of the mixture, 0…1; with `preprocess` also `estimate` [B, T].
        a segmenter: `scores` [B, C, H, W], 0…1.

    Args:
        network: a task, or an encoder alone.
        modality: key of `MODALITIES`.
        head: False: the encoder alone, whatever the task has.
        preprocess: whether normalisation and log-mel are part of it.
        log_mel, mel_mask: modules with the forward of `LogMel` and `MelMask`; None: these.

    Raises:
        UserError: the network needs both modalities.
    """

    net: Any

    def __init__(
        self,
        network: Task | DeepAVFusion,
        modality: str = "both",
        head: bool = True,
        preprocess: bool = True,
        log_mel: nn.Module | None = None,
        mel_mask: nn.Module | None = None,
    ) -> None:
        super().__init__()
        net: Any = network if isinstance(network, DeepAVFusion) else network.net
        encoder: DeepAVFusion = net if isinstance(net, DeepAVFusion) else net.encoder
        self.net = net if head and type(net) in OUTPUTS else encoder
        self.modalities, self.preprocess = MODALITIES[modality], preprocess
        if isinstance(self.net, (Separator, Segmenter)) and modality != "both":
            raise UserError(
                f"modality is {modality}, but a {type(self.net).__name__.lower()} needs image and audio: omit it, or "
                "export the encoder alone (head=false)."
            )
        self.normalise = Normalise()
        self.log_mel, self.mel_mask = log_mel or LogMel(), mel_mask or MelMask()
        hparams = {} if isinstance(network, DeepAVFusion) else network.hparams
        self.multi_label, self.mask = bool(hparams.get("multi_label")), str(hparams.get("mask"))
        self.novelty: NoveltyDetector | None = getattr(network, "novelty", None) if modality == "both" else None
        self.image_size: int = encoder.image.patch_embed.input_size[0]
        self.frames: int = encoder.audio.patch_embed.input_size[1]
        self.eval()

    @property
    def samples(self) -> int:
        """Length of the waveform."""
        return self.frames * HOP_LENGTH

    @property
    def heads(self) -> list[str]:
        """What the rows of a classifier's outputs are of: those of `HEADS` that exist."""
        return [head for head in HEADS if head in (*self.modalities, "fusion", ALL)]

    def inputs(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Type and shape of each input, without B."""
        image = (torch.uint8 if self.preprocess else torch.float32, (3, self.image_size, self.image_size))
        waveform, spectrogram = (torch.float32, (self.samples,)), (torch.float32, (1, N_MELS, self.frames))
        audio = {"waveform": waveform} if self.preprocess else {"spectrogram": spectrogram}
        present = {"image": {"image": image}, "audio": audio}
        return {name: kind for modality in self.modalities for name, kind in present[modality].items()}

    def forward(
        self, image: Tensor | None = None, waveform: Tensor | None = None, spectrogram: Tensor | None = None
    ) -> Outputs:
        if self.preprocess:
            image = None if image is None else self.normalise(image)
            spectrogram = None if waveform is None else self.log_mel(waveform)
        return OUTPUTS[type(self.net)](self, image, spectrogram, waveform)


def _encoder(graph: Graph, image: Tensor | None, spectrogram: Tensor | None, waveform: Tensor | None) -> Outputs:
    return {f"{stream}_tokens": tokens for stream, tokens in graph.net(image, spectrogram).tokens.items()}


def _classifier(graph: Graph, image: Tensor | None, spectrogram: Tensor | None, waveform: Tensor | None) -> Outputs:
    pooled = graph.net.encoder(image, spectrogram).pooled()
    logits = graph.net.logits(pooled)
    rows = torch.stack([{**logits, ALL: mean_of_heads(logits)}[head] for head in graph.heads], dim=1)
    found = {"logits": rows, "scores": rows.sigmoid() if graph.multi_label else rows.softmax(dim=-1)}
    if graph.novelty:
        found["novelty"] = graph.novelty.distance(graph.net.embedding(pooled)) / graph.novelty.threshold
    return found


def _retriever(graph: Graph, image: Tensor | None, spectrogram: Tensor | None, waveform: Tensor | None) -> Outputs:
    means = solo_means(graph.net.encoder, image, spectrogram)
    return {f"{stream}_embedding": vectors for stream, vectors in graph.net.project(means).items()}


def _separator(graph: Graph, image: Tensor | None, spectrogram: Tensor | None, waveform: Tensor | None) -> Outputs:
    mask = source_mask(graph.net(image, spectrogram), graph.mask)
    return {"mask": mask.squeeze(1), **({} if waveform is None else {"estimate": graph.mel_mask(mask, waveform)})}


def _segmenter(graph: Graph, image: Tensor | None, spectrogram: Tensor | None, waveform: Tensor | None) -> Outputs:
    return {"scores": probabilities(graph.net(image, spectrogram))}


OUTPUTS: dict[type[nn.Module], Callable[..., Outputs]] = {
    DeepAVFusion: _encoder,
    Classifier: _classifier,
    Retriever: _retriever,
    Separator: _separator,
    Segmenter: _segmenter,
}
