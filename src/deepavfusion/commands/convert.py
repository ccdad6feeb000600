"""Convert checkpoints to weights: `python src/convert.py input=<checkpoint> output=<file.safetensors>`."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from deepavfusion.cli.entry import entry, run
from deepavfusion.utils.console import say
from deepavfusion.utils.errors import UserError

KINDS = {"ours": "this project's", "original": "a published DeepAVFusion", "vit": "an MAE or AudioMAE ViT"}


@entry("convert")
def main(cfg: DictConfig) -> None:
    for key in ("input", "output"):
        if not cfg[key]:
            raise UserError(f"convert.py: no {key} was given; add {key}=<file>, see configs/convert.yaml.")
    from deepavfusion.weights.weights import describe, read_weights, write_weights  # takes seconds

    weights = read_weights(cfg.input)
    path = write_weights(weights, Path(cfg.output))
    count = sum(tensor.numel() for tensor in weights.tensors.values())
    say(f"{cfg.input}: {KINDS[weights.kind]} checkpoint, {len(weights.tensors)} tensors, {count / 1e6:.1f} M values")
    for name, value in describe(weights.tensors).items():
        say(f"  model.{name} = {value}")
    say(f"written to {path}")


def start() -> None:
    """What the shell calls."""
    run(main)
