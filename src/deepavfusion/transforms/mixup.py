"""Mixup: clips and their labels, blended in pairs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributions import Beta

from deepavfusion.utils.shared_rows import draw_rows


def draw_shares(count: int, alpha: float, device: torch.device | str = "cpu") -> Tensor:
    """The weight of each clip itself: `count` draws from Beta(alpha, alpha), alpha > 0, [count]"""
    concentration = torch.tensor(alpha, dtype=torch.float32, device=device)  # there is no Dirichlet of half precision
    return draw_rows(lambda rows: Beta(concentration, concentration).sample((rows,)), count)


def mixup(tensors: Sequence[Tensor], share: Tensor) -> list[Tensor]:
    """Each row blended with its partner, the first with the last and so on (Zhang et al. 2018, "mixup").

    Partners are rows of one process: with another number of processes, clips have other partners.

    timm's Mixup blends pairs likewise, but only one tensor of images, batches of even size and one class per clip.

    Args:
        tensors: images, spectrograms and targets of the same clips, each [B, …].
        share: [B], of each row's own; the same for image and audio.
    """
    return [torch.lerp(x.flip(0), x, share.to(x.dtype).view(-1, *[1] * (x.ndim - 1))) for x in tensors]
