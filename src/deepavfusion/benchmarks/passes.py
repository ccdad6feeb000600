"""The passes that `benchmark=model` runs: encoder forward, forward and backward, and a whole pre-training step."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

import torch

from deepavfusion.config.compose import instantiate
from deepavfusion.models.fusion import FUSION_ATTENTION
from deepavfusion.models.mae import MaskedAutoencoder, random_patch_mask
from deepavfusion.models.reference import ReferenceDeepAVFusion, ReferenceMaskedAutoencoder
from deepavfusion.optim.param_groups import param_groups
from deepavfusion.types import PatchMask

IMPLEMENTATIONS = ("fast", "reference")
FUSIONS = (*FUSION_ATTENTION, "none")
PASSES = ("encoder_forward", "encoder_forward_backward", "train_step")


@dataclass(frozen=True)
class Case:
    """What one row of the results measures: a network, its input and a pass.

    Args:
        implementation: one of `IMPLEMENTATIONS`; the reference follows the paper literally.
        fusion: one of `FUSIONS`; "none": no fusion blocks.
        masked: the encoder gets the kept patches only, as in pre-training; a train_step is always masked.
        batch: clips.
        precision: "fp32" or "bf16" (autocast).
        compiled: by torch.compile.
        size: a key of `Recipe.nets`.
        passes: one of `PASSES`, the column `pass`.
    """

    implementation: str = "fast"
    fusion: str = "factorized"
    masked: bool = True
    batch: int = 8
    precision: str = "fp32"
    compiled: bool = False
    size: str = "base"
    passes: str = "train_step"

    def columns(self) -> dict[str, Any]:
        return {"pass" if name == "passes" else name: value for name, value in asdict(self).items()}


@dataclass(frozen=True)
class Recipe:
    """Settings shared by all cases.

    Args:
        nets: configs of the encoder by size, as under configs/model/net.
        decoder_embed_dim, decoder_depth, decoder_num_heads: size of both decoders.
        image_mask_ratio, audio_mask_ratio: share of patches that are masked.
        lr, weight_decay, betas: of AdamW.
        seed: of weights, inputs and masks.
    """

    nets: dict[str, dict[str, Any]]
    decoder_embed_dim: int
    decoder_depth: int
    decoder_num_heads: int
    image_mask_ratio: float
    audio_mask_ratio: float
    lr: float
    weight_decay: float
    betas: tuple[float, float]
    seed: int

    def encoder(self, case: Case) -> Any:
        net = self.nets[case.size]
        if case.implementation == "reference":
            net = net | {"_target_": f"{ReferenceDeepAVFusion.__module__}.{ReferenceDeepAVFusion.__qualname__}"}
        fusion = {"fusion_layers": "none"} if case.fusion == "none" else {"fusion": case.fusion}
        return instantiate(net | fusion)

    def autoencoder(self, case: Case) -> MaskedAutoencoder:
        kind = ReferenceMaskedAutoencoder if case.implementation == "reference" else MaskedAutoencoder
        return kind(self.encoder(case), self.decoder_embed_dim, self.decoder_depth, self.decoder_num_heads)


class Pass:
    """The network, input and optimizer of a case; each call runs the pass once.

    - `encoder_forward`: a frozen encoder, which keeps nothing for a backward pass.
    - `encoder_forward_backward`: gradients accumulate over calls, so that a call allocates only activations.
    - `train_step`: as in tasks/pretrain.py, with fresh masks, both decoders, backward and AdamW; frees its gradients.

    On the device "meta" nothing is computed.
    """

    def __init__(self, case: Case, recipe: Recipe, device: torch.device) -> None:
        self.case, self.recipe, self.device = case, recipe, device
        torch.manual_seed(recipe.seed)
        streams = [recipe.nets[case.size][name] for name in ("image", "audio")]
        self.patches = [prod(side // vit["patch_size"] for side in vit["input_size"]) for vit in streams]
        whole_step = case.passes == "train_step"
        with device:
            self.net: Any = recipe.autoencoder(case) if whole_step else recipe.encoder(case)
            shapes = [(case.batch, vit["in_chans"], *vit["input_size"]) for vit in streams]
            self.image, self.audio = (torch.randn(shape) for shape in shapes)
        if case.passes == "encoder_forward":
            self.net.requires_grad_(False)
        self.keep = [mask.keep for mask in self.masks(case.batch)] if case.masked else []
        if whole_step:
            encoder: Any = self.net.encoder
            branches = {"image_encoder": encoder.image, "audio_encoder": encoder.audio}
            groups = param_groups(self.net, recipe.weight_decay, branches)
            fused = device.type == "cuda"  # as tasks/base.py
            self.optimizer = torch.optim.AdamW(groups, lr=recipe.lr, betas=recipe.betas, fused=fused)
        if case.compiled:
            self.net.compile(dynamic=False)

    def masks(self, clips: int) -> list[PatchMask]:
        """Fresh random masks of image and audio."""
        ratios = (self.recipe.image_mask_ratio, self.recipe.audio_mask_ratio)
        sizes = zip(self.patches, ratios, strict=True)
        return [random_patch_mask(clips, patches, ratio, self.device) for patches, ratio in sizes]

    def __call__(self, clips: int | None = None) -> None:
        """Run on the first `clips` of the batch, or on all."""
        image, audio = self.image[:clips], self.audio[:clips]
        train, bf16 = self.case.passes == "train_step", self.case.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16) if bf16 else nullcontext():
            masks = self.masks(len(image)) if train else [keep[:clips] for keep in self.keep]
            out = self.net(image, audio, *masks)
        if train:
            out.loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        elif self.case.passes == "encoder_forward_backward":
            sum(tokens.float().square().mean() for tokens in (out.image, out.audio, out.fusion)).backward()
