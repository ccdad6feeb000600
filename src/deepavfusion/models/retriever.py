"""The retriever: image and audio of a clip in one space, each from a pass of the encoder that has not met the other."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deepavfusion.models.classifier import BatchNorm
from deepavfusion.models.deepavfusion import DeepAVFusion
from deepavfusion.models.layers import init_linear
from deepavfusion.types import EncoderOutput
from deepavfusion.utils.shared_rows import gather_rows

MAX_SCALE = 100.0  # of similarities, as in CLIP (Radford et al. 2021)


def solo_means(encoder: DeepAVFusion, image: Tensor | None, audio: Tensor | None) -> dict[str, Tensor]:
    """The mean of all tokens, those of the modality and fusion, of a pass for each modality that is given.

    Args:
        image: [B, 3, H, W], ImageNet-normalised; None: absent.
        audio: [B, 1, M, F], log10 power mel spectrogram; None: absent.

    Returns:
        {"image", "audio"}, without an absent one -> [B, embed_dim of the encoder]
    """
    found = {}
    if image is not None:
        found["image"] = _mean(encoder(image, None), "image")
    if audio is not None:
        found["audio"] = _mean(encoder(None, audio), "audio")
    return found


def joint_means(encoder: DeepAVFusion, image: Tensor, audio: Tensor) -> dict[str, Tensor]:
    """The same means of one joint pass. Each has met the other modality: nothing that could be retrieved by."""
    encoded = encoder(image, audio)
    return {stream: _mean(encoded, stream) for stream in ("image", "audio")}


def _mean(encoded: EncoderOutput, stream: str) -> Tensor:
    return torch.cat([encoded.tokens[stream], encoded.fusion], dim=1).mean(dim=1)


class Retriever(nn.Module):
    """A linear projection of the mean tokens of each modality, and the temperature that their similarities are learned
    with.

    Args:
        encoder: the backbone.
        embed_dim: of the embeddings.
        frozen: the encoder is not trained and stays in evaluation mode even after `train()`; mean tokens pass a
            BatchNorm without affine parameters before their projection, as in the linear probe.
        temperature: at the start.
    """

    def __init__(
        self, encoder: DeepAVFusion, embed_dim: int = 256, frozen: bool = False, temperature: float = 0.07
    ) -> None:
        super().__init__()
        self.encoder, self.embed_dim, self.frozen = encoder, embed_dim, frozen
        dim = encoder.embed_dim
        if frozen:
            encoder.requires_grad_(False)
            self.norms = nn.ModuleDict({"image": BatchNorm(dim), "audio": BatchNorm(dim)})
        self.image_proj, self.audio_proj = nn.Linear(dim, embed_dim), nn.Linear(dim, embed_dim)
        for proj in (self.image_proj, self.audio_proj):
            init_linear(proj)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature)))
        self.train()

    def train(self, mode: bool = True) -> Retriever:
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        return self

    @property
    def scale(self) -> Tensor:
        """What similarities are multiplied with: 1 / temperature, a scalar."""
        return (-self.log_temperature).exp()

    @torch.no_grad()
    def limit_scale(self) -> None:
        """Keep the scale at most `MAX_SCALE`; after each step, as a clamped one would have no gradient to return by."""
        self.log_temperature.clamp_(min=-math.log(MAX_SCALE))

    def forward(self, image: Tensor | None, audio: Tensor | None) -> dict[str, Tensor]:
        """Unit vectors: {"image", "audio"}, without an absent one -> [B, embed_dim]; arguments of `solo_means`."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            means = solo_means(self.encoder, image, audio)
        return self.project(means)

    def project(self, means: dict[str, Tensor]) -> dict[str, Tensor]:
        """Unit vectors [B, embed_dim] of those means of `solo_means` that exist."""
        if self.frozen:
            means = {stream: self.norms[stream](x) for stream, x in means.items()}
        projected = {stream: getattr(self, f"{stream}_proj")(x) for stream, x in means.items()}
        return {
            stream: F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=1)
            for stream, x in projected.items()
        }


def info_nce(image: Tensor, audio: Tensor, scale: Tensor, most: int) -> Tensor:
    """Symmetric InfoNCE (van den Oord et al. 2018; Radford et al. 2021): which image of a batch is that of an audio,
    and the other way round.

    Args:
        image, audio: unit vectors of this process, float [B, D] each; row n of one and row n of the other are a pair.
        scale: 1 / temperature.
        most: the most rows of a process.

    Returns:
        A scalar, the mean over the rows of this process. The other rows of *all* processes are negatives, through which
        gradients flow, too: weighted by rows, the mean over processes is the loss of the whole batch.
    """
    rows, present, first = gather_rows(torch.cat([image, audio], dim=1), most)
    images, audios = rows.split(image.shape[1], dim=1)
    own = first + torch.arange(len(image), device=image.device)
    total = image.new_zeros(())
    for queries, gallery in ((audio, images), (image, audios)):
        with torch.autocast(image.device.type, enabled=False):  # similarities differ by less than half precision
            logits = (scale * queries @ gallery.T).masked_fill(~present, -torch.inf)
        # Without rows 0, but with a gradient: the other processes wait for what theirs bring back.
        total = total + (F.cross_entropy(logits, own) if len(own) else logits.sum())
    return total / 2
