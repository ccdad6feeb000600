"""Reads weights: our own checkpoints, the published DeepAVFusion ones, MAE and AudioMAE.

file.py opens them safely. What is inside is recognised by its keys:

| kind     | file                                             | keys                                                 |
|----------|--------------------------------------------------|------------------------------------------------------|
| ours     | Lightning `.ckpt`, or what convert.py wrote      | `net.encoder.…` or `encoder.…`, `image_decoder.…`    |
| original | published DeepAVFusion `.pth`                    | `state_dict`: `encoder.image.…`, `image_decoder_…`   |
| vit      | MAE (ImageNet), AudioMAE (AudioSet) `.pth`       | `model`: `cls_token`, `patch_embed.…`, `blocks.…`    |
"""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from deepavfusion.models.deepavfusion import DeepAVFusion
from deepavfusion.models.fusion import FUSION_ATTENTION
from deepavfusion.models.mae import MaskedAutoencoder
from deepavfusion.models.vit import ViT
from deepavfusion.utils.errors import UserError
from deepavfusion.utils.files import regular_file, whole
from deepavfusion.weights.compare import check_finite, differences
from deepavfusion.weights.file import EXPECTED, OPTIMIZER, checksum, read_file
from deepavfusion.weights.hub import is_folder, source_of
from deepavfusion.weights.origin import Origin, origin_of

# Dimensions of the tensors that sizes are derived from, by the end of their names.
DIMS = {"patch_embed.proj.weight": 4, "fusion_tokens": 3, "pos_embed": 3, "norm2.weight": 1, "attn.q.weight": 2}
DIMS |= {"mlp.fc1.weight": 2, "_decoder.embed.weight": 2}
LAYER = r"blocks\.(\d{1,3})\."


@dataclass
class LoadReport:
    """The names of tensors that were loaded, that the file lacks (`new`), and that the model has no use for."""

    path: str
    loaded: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        parts = [f"{len(self.loaded)} tensors loaded"]
        for names, words in ((self.new, "left at their initial values"), (self.unused, "in the file unused")):
            if names:
                tops = sorted({".".join(name.split(".")[:2]) for name in names})
                shown = ", ".join(tops[:4]) + (", …" if len(tops) > 4 else "")
                parts.append(f"{len(names)} {words} ({shown})")
        return f"{self.path}: " + "; ".join(parts)


def our_name(name: str) -> str:
    """The original code's name of a masked autoencoder's parameter, as we call it."""
    return re.sub(r"^(image|audio)_decoder_(?=\w)", r"\1_decoder.", name)


@dataclass
class Weights:
    """The tensors of a file, under our names, and its kind: "ours", "original" or "vit".

    Of our .ckpt files also the record of the run, see `tasks.base.Task.record`, and the origin; others have none.
    """

    path: str
    kind: str
    tensors: dict[str, Tensor]
    record: dict[str, Any] = field(default_factory=dict)
    origin: Origin | None = None


def read_weights(path: Weights | str | Path) -> Weights:
    """Read and recognise a checkpoint, see `read_file`; what was read already is returned as it is.

    Raises:
        UserError: the file is missing, truncated, not a checkpoint, contains code, or holds something else.
    """
    if isinstance(path, Weights):
        return path
    path = source_of(path)
    return recognise(read_file(path, without=OPTIMIZER), path)


def recognise(content: object, path: str | Path) -> Weights:
    """The weights in the content of a file, see `read_weights`."""
    tensors = _tensors(content, path)
    if any(name.startswith("net.") for name in tensors):
        inside = {name.removeprefix("net."): t for name, t in tensors.items() if name.startswith("net.")}
        return Weights(str(path), "ours", inside, _record(content), origin_of(path, content))
    if any(name.startswith(("image_decoder_", "audio_decoder_")) for name in tensors):
        return Weights(str(path), "original", {our_name(name): t for name, t in tensors.items()})
    if "encoder.fusion_tokens" in tensors:
        return Weights(str(path), "ours", tensors)
    if "patch_embed.proj.weight" in tensors:
        # Our ViT has no class token, and so no row for it in the (fixed) position embedding, and no decoder here.
        keep = ("patch_embed.", "blocks.", "norm.")
        return Weights(str(path), "vit", {name: t for name, t in tensors.items() if name.startswith(keep)})
    shown = ", ".join(list(tensors)[:3]) or "no tensor"
    raise UserError(f"{path} holds {shown} …, which fit no known model: expected {EXPECTED}.")


def read_record(path: str | Path) -> dict[str, Any]:
    """The record alone, see `Weights`, even of a file that `read_weights` does not recognise.

    Raises:
        UserError: the file cannot be read, see `read_weights`.
    """
    return _record(read_file(path, without=(*OPTIMIZER, "state_dict")))


def _record(content: object) -> dict[str, Any]:
    record = content.get("record") if isinstance(content, dict) else None
    return record if isinstance(record, dict) else {}


def write_weights(weights: Weights, path: Path) -> Path:
    """Write the tensors alone, as safetensors; `read_weights` reads the file again.

    Raises:
        UserError: the name does not end in .safetensors, there is a file of that name that this function has not
            written, or the file cannot be written.
    """
    if path.suffix != ".safetensors":
        raise UserError(f"output {path}: expected a name that ends in .safetensors.")
    if os.path.lexists(path) and not _is_converted(path):
        raise UserError(
            f"output {path} is there, and convert.py has not written it: it is left as it is; choose another output."
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Tensors that share memory cannot be saved.
        shared = Counter(tensor.untyped_storage().data_ptr() for tensor in weights.tensors.values())
        tensors = {
            name: tensor.clone() if shared[tensor.untyped_storage().data_ptr()] > 1 else tensor.contiguous()
            for name, tensor in weights.tensors.items()
        }
        with whole(path) as partial:
            try:
                save_file(tensors, partial, metadata={"crc32": checksum(tensors)})
            except SafetensorError as error:  # its text ends with (os error 28)
                code = int((re.search(r"os error (\d+)", str(error)) or ["0", "0"])[1])
                raise OSError(code, os.strerror(code) if code else str(error)) from error
    except OSError as error:
        raise UserError(
            f"output {path} cannot be written: {error.strerror or error}; choose another output."
        ) from error
    return path


def _is_converted(path: Path) -> bool:
    """Whether a file is what `write_weights` wrote: a checksum leads its header, after 8 bytes for its length."""
    try:
        regular_file(path)
        with path.open("rb") as file:
            return file.read(64)[8:].startswith(b'{"__metadata__":{"crc32":"')
    except OSError:
        return False


def _tensors(content: object, path: str | Path) -> dict[str, Tensor]:
    if isinstance(content, dict):
        inside = next((content[key] for key in ("state_dict", "model") if isinstance(content.get(key), dict)), content)
        if tensors := {str(name): value for name, value in inside.items() if isinstance(value, Tensor)}:
            for name, tensor in tensors.items():
                dims = next((dims for end, dims in DIMS.items() if name.endswith(end)), tensor.ndim)
                if tensor.ndim != dims or not tensor.numel() or tensor.is_complex():
                    raise UserError(
                        f"{path} holds {name}, {tensor.dtype} of the shape {list(tensor.shape)}, expected real numbers "
                        f"in {dims} dimensions: fetch or copy the file again, or give another one."
                    )
            return tensors
    raise UserError(f"{path} holds no tensors under state_dict or model: expected {EXPECTED}.")


def load_mae(model: MaskedAutoencoder, weights: Weights | str | Path) -> LoadReport:
    """Load encoder, fusion and decoders from one of our checkpoints or a published one.

    Raises:
        UserError: see `read_weights`; or the sizes do not fit; the message gives the config values that would.
    """
    weights = read_weights(weights)
    if weights.kind == "vit":
        raise UserError(
            f"{weights.path} is an MAE or AudioMAE checkpoint, a single ViT: give it as model.image_weights or "
            f"model.audio_weights."
        )
    return _load(model, weights)


def load_encoder(encoder: DeepAVFusion, weights: Weights | str | Path) -> LoadReport:
    """Load image, audio and fusion streams from one of our checkpoints or a published one; heads are ignored.

    Raises:
        UserError: see `load_mae`.
    """
    weights = read_weights(weights)
    if weights.kind == "vit":
        raise UserError(
            f"{weights.path} is an MAE or AudioMAE checkpoint, a single ViT: a DeepAVFusion encoder was expected."
        )
    return _load(encoder, weights, "encoder.")


def load_vit(vit: ViT, weights: Weights | str | Path) -> LoadReport:
    """Load one encoder from an MAE or AudioMAE checkpoint.

    Raises:
        UserError: see `read_weights`; or the sizes do not fit.
    """
    weights = read_weights(weights)
    if weights.kind != "vit":
        raise UserError(
            f"{weights.path} is a DeepAVFusion checkpoint: give it as model.pretrained; expected here is an MAE or "
            f"AudioMAE ViT checkpoint."
        )
    return _load(vit, weights)


def check_network(net: nn.Module, path: str | Path, content: object) -> Origin:
    """Check that the content of a .ckpt file is of a run with the network `net`, before Lightning loads it.

    Returns:
        The origin of the file.

    Raises:
        UserError: see `read_weights`; or the file holds weights without a run, or of another network.
    """
    weights = recognise(content, path)
    if weights.origin is None or not (is_folder(path) or Path(path).suffix == ".ckpt"):
        raise UserError(f"{path} holds weights but no state of a run: give it as model.pretrained, not ckpt_path.")
    own = net.state_dict()
    if wrong := differences(own, weights.tensors):
        raise UserError(f"checkpoint {path} is of another network: {_difference(own, weights) or wrong[0]}.")
    check_finite(weights.tensors, path)
    return weights.origin


def _difference(own: dict[str, Tensor], weights: Weights) -> str:
    """The config values that differ between the model and a file, and how to fix that; "" if shapes show none."""
    here, there = describe(own), describe(weights.tensors)
    keys = [key for key in there if key in here and there[key] != here[key]]
    values = " and ".join(f"model.{key} is {there[key]} in the file and {here[key]} here" for key in keys)
    return values and f"{values}: set {' '.join(f'model.{key}={there[key]}' for key in keys)}, or give another file"


def _load(module: nn.Module, weights: Weights, prefix: str = "") -> LoadReport:
    """Fill a module with the tensors whose names begin with `prefix`."""
    own = module.state_dict()
    tensors = {n.removeprefix(prefix): t for n, t in weights.tensors.items() if n.startswith(prefix)}
    # The encoders' position embedding is fixed and follows from the input size, which may differ from the file's.
    fixed = {name for name in own if name.endswith(("image.pos_embed", "audio.pos_embed")) or name == "pos_embed"}
    # Heads may be missing in the file, or be unused; layers may not.
    shared = {name for name in {*own, *tensors} - fixed if name in own.keys() & tensors.keys() or "blocks." in name}
    wrong = differences(*({name: t for name, t in side.items() if name in shared} for side in (own, tensors)))
    if wrong:
        why = _difference({prefix + name: tensor for name, tensor in own.items()}, weights)
        raise UserError(
            f"checkpoint {weights.path} does not fit the model: {why or f'{wrong[0]} ({len(wrong)} differences)'}."
        )
    usable = {name: t for name, t in tensors.items() if name in own and name not in fixed}
    check_finite(usable, weights.path)
    module.load_state_dict(usable, strict=False)
    return LoadReport(
        str(weights.origin or weights.path),
        loaded=list(usable),
        new=[name for name in own if name not in usable and name not in fixed],
        unused=[name for name in tensors if name not in own]
        + [name for name in weights.tensors if not name.startswith(prefix)],
    )


def describe(tensors: dict[str, Tensor]) -> dict[str, object]:
    """The config values under `model` that fit these tensors, as far as shapes show them (numbers of heads do not).

    A single ViT is described as the encoder it has the channels for.
    """
    found: dict[str, object] = {}
    if "patch_embed.proj.weight" in tensors:
        stream = "audio" if tensors["patch_embed.proj.weight"].shape[1] == 1 else "image"
        tensors = {f"encoder.{stream}.{name}": tensor for name, tensor in tensors.items()}
    for stream in ("image", "audio"):
        prefix = f"encoder.{stream}."
        blocks = {int(m[1]) for n in tensors if (m := re.match(re.escape(prefix) + LAYER, n))}
        patch = tensors.get(prefix + "patch_embed.proj.weight")
        if patch is None or not blocks:
            continue
        found[f"net.{stream}.embed_dim"] = patch.shape[0]
        found[f"net.{stream}.patch_size"] = patch.shape[-1]
        found[f"net.{stream}.depth"] = len(blocks)
    layers = sorted({int(m[1]) for n in tensors if (m := re.match(r"encoder\.fusion_" + LAYER, n))})
    if "encoder.fusion_tokens" in tensors:
        found["net.num_fusion_tokens"] = f"<three numbers of sum {tensors['encoder.fusion_tokens'].shape[1]}>"
        found["net.fusion_layers"] = layers or "none"
    block = f"encoder.fusion_blocks.{layers[0]}." if layers else ""
    if layers and {block + "norm2.weight", block + "mlp.fc1.weight"} <= tensors.keys():
        dim = tensors[block + "norm2.weight"].shape[0]
        query = tensors.get(block + "attn.q.weight")
        width = dim if query is None else len(query)
        prefix = block + "attn."
        shapes = {n.removeprefix(prefix): t.shape for n, t in tensors.items() if n.startswith(prefix)}
        ratio = (width + 0.5) / dim  # int(dim · ratio) is width, whatever rounding does
        with torch.device("meta"):  # a kind of fusion is recognised by the names and shapes of its parameters
            made = {kind: attention(dim, 1, ratio, (1, 1, 1)) for kind, attention in FUSION_ATTENTION.items()}
        kinds = [k for k, module in made.items() if {n: t.shape for n, t in module.state_dict().items()} == shapes]
        found["net.fusion"] = kinds[0] if kinds else "<unknown>"
        found["net.fusion_attn_ratio"] = width / dim
        found["net.fusion_mlp_ratio"] = tensors[block + "mlp.fc1.weight"].shape[0] / dim
    if "image_decoder.embed.weight" in tensors:
        found["decoder_embed_dim"] = tensors["image_decoder.embed.weight"].shape[0]
        found["decoder_depth"] = len({n.split(".")[2] for n in tensors if n.startswith("image_decoder.blocks.")})
    return found
