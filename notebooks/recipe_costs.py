"""Estimate what training by each published recipe takes: `python notebooks/recipe_costs.py` prints a Markdown table.

The operations of a training step are counted on networks without data (device "meta"); the rest is arithmetic. Nothing
here was measured on a GPU: `UTILISATION` is an assumption. Evaluation is not included.
"""

from __future__ import annotations

from typing import Any

import torch
from omegaconf import DictConfig
from torch.utils.flop_counter import FlopCounterMode

from deepavfusion.benchmarks.flops import peak
from deepavfusion.config.compose import compose, instantiate
from deepavfusion.models.mae import random_patch_mask

DEVICE, UTILISATION = "NVIDIA A100-SXM4-80GB", 0.3  # of the peak in bf16
RAW, PACKED = 55, 422  # clips/s that one process reads on one core, as measured in docs/speed.md
BATCH = 8  # items whose operations are counted

AUDIOSET = 2_041_789 + 22_160  # unbalanced and balanced
AS_PUBLISHED = [
    "data=audioset",
    "data.train_split=full",
    "model.net.fusion_attn_ratio=1.0",
    "model.net.fusion_mlp_ratio=4.0",
]
# Experiment, overrides, items that its train list holds, classes. Frames of AVSBench: one mask a clip in S4, 5 in MS3,
# and 10 in the clips that AVSS adds.
RECIPES: list[tuple[str, list[str], int, int | None]] = [
    ("pretrain_vggsound", [], 183_730, None),
    ("pretrain_vggsound", AS_PUBLISHED, AUDIOSET, None),
    ("vggsound_linear_probe", [], 183_730, 309),
    ("vggsound_finetune", [], 183_730, 309),
    ("vggsound_retrieval", [], 183_730, 309),
    ("audioset_linear_probe", [], 22_160, 527),
    ("audioset_finetune", [], 22_160, 527),
    ("audioset_2m_linear_probe", [], AUDIOSET, 527),
    ("audioset_2m_finetune", [], AUDIOSET, 527),
    ("music_separation", [], 536 - 134, None),
    ("vggsound_music_separation", [], 38_704, None),
    ("avsbench_s4", [], 3_452, 1),
    ("avsbench_ms3", [], 296 * 5, 1),
    ("avsbench_avss", [], 3_452 + 296 * 5 + (8_498 - 3_452 - 296) * 10, 71),
]


def gflop(cfg: DictConfig, classes: int | None) -> float:
    """Of the forward and backward pass of one clip, mixture or annotated frame."""
    from_data = {"num_classes": classes, "multi_label": classes == 527}
    pretraining, sources = cfg.task == "pretrain", cfg.data.samples.get("sources", 1)
    with torch.device("meta"):
        net: Any = instantiate(cfg.model, **{key: from_data[key] for key in from_data if key in cfg.model}).net.train()
        vits = {stream: getattr(net.encoder, stream) for stream in ("image", "audio")}
        image, audio = (torch.randn(BATCH, vit.in_chans, *vit.patch_embed.input_size) for vit in vits.values())
        ratios = [cfg.model[f"{stream}_mask_ratio"] for stream in vits] if pretraining else []
        masks = [
            random_patch_mask(BATCH, v.num_patches, ratio) for v, ratio in zip(vits.values(), ratios, strict=False)
        ]
        with FlopCounterMode(display=False) as counter:
            out = net(image.repeat_interleave(sources, dim=0), audio, *masks)
            logits = list(out.values()) if isinstance(out, dict) else [out.loss if pretraining else out]
            torch.stack([x.sum() for x in logits]).sum().backward()
    return counter.get_total_flops() / 1e9 / BATCH


def rounded(x: float) -> str:
    """Two digits that count, such as "1 200", "31" or "0.19"."""
    return f"{float(f'{x:.2g}'):,.10g}".replace(",", " ")


def main() -> None:
    tflops = UTILISATION * (peak(DEVICE, "bf16") or 0)
    print("| recipe | items trained on | GFLOP per item | EFLOP | A100-hours | core-hours to read them, raw / packed |")
    print("|---|---|---|---|---|---|")
    for experiment, overrides, listed, classes in RECIPES:
        cfg = compose("train", [f"experiment={experiment}", "scale=paper", *overrides])
        kept = 1 - cfg.data.holdout_share if cfg.data.val_split == "holdout" else 1
        items, each = listed * kept * cfg.data.repeats * cfg.trainer.max_epochs, gflop(cfg, classes)
        read = items * cfg.data.samples.get("sources", 1) / 3600
        reading = f"{rounded(read / RAW)} / {rounded(read / PACKED)}"
        name = " ".join([f"`{experiment}`", *(f"`{word}`" for word in overrides[:1])])
        cells = [
            name, f"{rounded(items / 1e6)} M", f"{each:.0f}", rounded(items * each / 1e9),
            rounded(items * each / 1e3 / tflops / 3600), "–" if cfg.task == "segment" else reading,
        ]  # fmt: skip
        print("|", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
