"""The classifier: one linear head on the mean token of each stream (Mo & Morgado, CVPR 2024, section 3.4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deepavfusion.models.deepavfusion import DeepAVFusion
from deepavfusion.models.layers import init_linear
from deepavfusion.types import STREAMS


class BatchNorm(nn.BatchNorm1d):
    """BatchNorm without affine parameters; a batch of a single clip is normalised by the running statistics."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, eps=1e-6, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and len(x) < 2:
            return F.batch_norm(x, self.running_mean, self.running_var, eps=self.eps)
        return super().forward(x)


class Classifier(nn.Module):
    """Three linear heads on the mean token of image, audio and fusion; their mean logit is the prediction.

    Args:
        encoder: the backbone.
        num_classes: outputs of each head.
        frozen: linear probe: the encoder is not trained and stays in evaluation mode even after `train()`; each stream
            passes a BatchNorm without affine parameters before its head, as in MAE's linear probing.
    """

    def __init__(self, encoder: DeepAVFusion, num_classes: int, frozen: bool = False) -> None:
        super().__init__()
        self.encoder, self.num_classes, self.frozen = encoder, num_classes, frozen
        dim = encoder.embed_dim
        if frozen:
            encoder.requires_grad_(False)
            self.norms = nn.ModuleDict({stream: BatchNorm(dim) for stream in STREAMS})
        self.image_head, self.audio_head, self.fusion_head = (nn.Linear(dim, num_classes) for _ in STREAMS)
        for head in self.heads.values():
            init_linear(head)
        self.train()

    @property
    def embedding_dim(self) -> int:
        """Length of `embedding`."""
        return len(STREAMS) * self.encoder.embed_dim

    @property
    def heads(self) -> dict[str, nn.Linear]:
        return {stream: getattr(self, f"{stream}_head") for stream in STREAMS}

    def train(self, mode: bool = True) -> Classifier:
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        return self

    def forward(self, image: Tensor | None, audio: Tensor | None) -> dict[str, Tensor]:
        """Logits of each stream.

        Args:
            image: [B, 3, H, W], ImageNet-normalised; None: absent.
            audio: [B, 1, M, F], log10 power mel spectrogram; None: absent.

        Returns:
            {"image", "audio", "fusion"}, without an absent one -> [B, num_classes]
        """
        return self.logits(self.pooled(image, audio))

    def pooled(self, image: Tensor | None, audio: Tensor | None) -> dict[str, Tensor]:
        """The mean token of each stream that exists: {"image", "audio", "fusion"} -> [B, embed_dim]."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return self.encoder(image, audio).pooled()

    def logits(self, pooled: dict[str, Tensor]) -> dict[str, Tensor]:
        """From the mean token of each stream that exists."""
        if self.frozen:
            pooled = {stream: self.norms[stream](x) for stream, x in pooled.items()}
        return {stream: self.heads[stream](x) for stream, x in pooled.items()}

    def embedding(self, pooled: dict[str, Tensor]) -> Tensor:
        """All that the heads see, [B, embedding_dim]."""
        return torch.cat([pooled[stream] for stream in STREAMS], dim=1)

    @torch.no_grad()
    def start_from_log_odds(self, counts: Tensor) -> None:
        """Initialise the biases so that the heads start from the class frequencies.

        Args:
            counts: clips of each class [num_classes]; with f = count / all counts the bias is
                log((f + 1e-3) / (1 − f + 1e-3)).
        """
        frequency = counts / counts.sum()
        for head in self.heads.values():
            head.bias.copy_(torch.log((frequency + 1e-3) / (1 - frequency + 1e-3)))


def mean_of_heads(logits: dict[str, Tensor]) -> Tensor:
    """{stream: [B, C]} of the streams that exist -> [B, C]"""
    return torch.stack([logits[stream] for stream in STREAMS if stream in logits]).mean(dim=0)


def classification_loss(
    logits: dict[str, Tensor],
    target: Tensor,
    multi_label: bool = False,
    per_head: bool = False,
    smoothing: float = 0.0,
    class_weight: Tensor | None = None,
    seen: Tensor | None = None,
) -> Tensor:
    """Cross entropy or, for several classes a clip, binary cross entropy: a scalar, the mean over clips.

    Args:
        logits: {stream: [B, C]}
        target: share of each class [B, C], in 0…1; unless multi_label, rows sum to 1.
        multi_label: a clip may have several classes.
        per_head: the mean of the three heads' losses instead of the loss of their mean logit.
        smoothing: label smoothing as in torch's cross_entropy, target · (1 − smoothing) + smoothing / C, also for
            several labels.
        class_weight: [C], weight of each class in the loss.
        seen: indices of the classes that the loss compares; None: all.
    """
    if seen is not None:
        logits, target = {stream: x[:, seen] for stream, x in logits.items()}, target[:, seen]
        class_weight = None if class_weight is None else class_weight[seen]
    total = target.new_zeros(())
    rows = [logits[stream] for stream in STREAMS] if per_head else [mean_of_heads(logits)]
    for row in rows:
        row = row.to(torch.promote_types(row.dtype, torch.float32))  # of half precision, the loss is not
        target = target.to(row.dtype)
        if not len(row):
            loss = row.sum()  # 0, but with a gradient: every rank of a DDP run needs one
        elif multi_label:
            smooth = target * (1 - smoothing) + smoothing / target.shape[1]
            loss = F.binary_cross_entropy_with_logits(row, smooth, weight=class_weight)
        else:
            loss = F.cross_entropy(row, target, weight=class_weight, label_smoothing=smoothing)
        total = total + loss / len(rows)
    return total
