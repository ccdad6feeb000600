"""Convert checkpoints, `python src/convert.py input=<checkpoint> output=<file.safetensors or folder>`, or to ONNX."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from deepavfusion.cli.entry import entry, run
from deepavfusion.utils.console import say
from deepavfusion.utils.errors import UserError

KINDS = {"ours": "this project's", "original": "a published DeepAVFusion", "vit": "an MAE or AudioMAE ViT"}
WITHOUT_EXPORT = {"modality": "both", "head": True, "preprocess": True, "check": None}


@entry("convert")
def main(cfg: DictConfig) -> None:
    for key in ("input", "output"):
        if not cfg[key]:
            raise UserError(f"convert.py: no {key} was given; add {key}=<file>, see configs/convert.yaml.")
    options = {key: cfg[key] for key in ("modality", "head", "preprocess", "check")}
    if cfg.export:
        if given := [key for key in ("card", "license", "push", "private") if cfg[key]]:
            raise UserError(f"convert.py: {given[0]} is for a folder, not for export={cfg.export}: omit one of them.")
        from deepavfusion.export.export import export_checkpoint

        for line in export_checkpoint(cfg.input, cfg.output, cfg.export, **options).lines():
            say(line)
        return
    if unread := [key for key, value in options.items() if value != WITHOUT_EXPORT[key]]:
        raise UserError(f"convert.py: only an export reads {unread[0]}: add export=onnx or export=torch, or omit it.")
    from deepavfusion.sharing.share import is_folder_name, share  # takes seconds
    from deepavfusion.weights.weights import describe, read_weights, write_weights

    shares = {key: cfg[key] for key in ("card", "license", "push", "private")}
    if is_folder_name(cfg.output):
        for line in share(cfg.input, cfg.output, **shares):
            say(line)
        return
    if given := [key for key, value in shares.items() if value]:
        raise UserError(f"convert.py: {given[0]} is for a folder: add output=<folder>, or omit {given[0]}.")
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
