"""Reading weights: our own checkpoints, the published DeepAVFusion ones, MAE and AudioMAE.

Every file is read with `weights_only=True`: nothing in it can run. Before that its checksums are compared and its
pickle is looked through, so that damage is named and no file takes more memory than its size says. What is inside is
recognised by its keys:

| kind     | file                                             | keys                                                 |
|----------|--------------------------------------------------|------------------------------------------------------|
| ours     | Lightning `.ckpt`, or `.safetensors` by convert.py | `net.encoder.…` or `encoder.…`, `image_decoder.…`    |
| original | published DeepAVFusion `.pth`                    | `state_dict`: `encoder.image.…`, `image_decoder_…`   |
| vit      | MAE (ImageNet), AudioMAE (AudioSet) `.pth`       | `model`: `cls_token`, `patch_embed.…`, `blocks.…`    |
"""

from __future__ import annotations

import argparse
import io
import pickle
import pickletools
import re
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from deepavfusion.models.deepavfusion import DeepAVFusion
from deepavfusion.models.mae import MaskedAutoencoder
from deepavfusion.models.vit import ViT
from deepavfusion.utils.errors import UserError

EXPECTED = (
    "a checkpoint of this project (.ckpt or .safetensors), a published DeepAVFusion checkpoint, "
    "or an MAE or AudioMAE ViT checkpoint (.pth)"
)
# What the pickle of a checkpoint may name, besides dtypes; torch's own list is longer, and some of it fills memory.
GLOBALS = re.compile(
    r"torch\._utils\._rebuild_(tensor|tensor_v2|parameter)|torch\.([A-Z][a-z0-9]+)?Storage|"
    r"torch\.storage\.(Typed|Untyped)Storage|torch\.(Size|device)|torch\.nn\.parameter\.Parameter|"
    r"collections\.(OrderedDict|Counter)|argparse\.Namespace|_codecs\.encode|(builtins|__builtin__)\.(set|complex)"
)
DTYPES = frozenset(str(value) for value in vars(torch).values() if isinstance(value, torch.dtype))
OPCODES = re.compile(  # those that torch reads with weights_only=True
    r"PROTO|STOP|MARK|GLOBAL|REDUCE|NEWOBJ|BUILD|BINPERSID|(LONG_)?BIN(PUT|GET)|NONE|NEWTRUE|NEWFALSE|BININT[12]?|LONG1|"
    r"BINFLOAT|BINUNICODE|SHORT_BINSTRING|EMPTY_(DICT|LIST|TUPLE|SET)|APPENDS?|SETITEMS?|TUPLE[123]?"
)
PLAIN = (str, bytes, int, float, complex, type(None), torch.dtype, torch.device, torch.UntypedStorage)
MOST_NESTED, MOST_VALUES = 100, 10_000_000  # in a checkpoint's containers, each value counted wherever it stands


@dataclass
class LoadReport:
    """What became of a file's tensors: names that were loaded, that the file lacks, that the model has no use for."""

    path: str
    loaded: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        parts = [f"{len(self.loaded)} tensors loaded"]
        for names, words in ((self.new, "left at their start values"), (self.left_out, "in the file not used")):
            if names:
                tops = sorted({".".join(name.split(".")[:2]) for name in names})
                shown = ", ".join(tops[:4]) + (", …" if len(tops) > 4 else "")
                parts.append(f"{len(names)} {words} ({shown})")
        return f"{self.path}: " + "; ".join(parts)


def original_name(name: str) -> str:
    """Our name of a masked autoencoder's parameter, as the original code calls it."""
    return re.sub(r"^(image|audio)_decoder\.", r"\1_decoder_", name)


def our_name(name: str) -> str:
    """The original code's name of a masked autoencoder's parameter, as we call it."""
    return re.sub(r"^(image|audio)_decoder_(?=\w)", r"\1_decoder.", name)


@dataclass
class Weights:
    """The tensors of a file, under our names, and where they come from ("ours", "original" or "vit")."""

    path: str
    kind: str
    tensors: dict[str, Tensor]


def read_weights(path: str | Path) -> Weights:
    """Read and recognise a checkpoint.

    Raises:
        UserError: the file is missing, truncated, not a checkpoint, wants to run code, or holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist: expected {EXPECTED}.")
    tensors = _tensors(read_file(path), path)
    tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    if any(name.startswith("net.") for name in tensors):
        inside = {name.removeprefix("net."): t for name, t in tensors.items() if name.startswith("net.")}
        return Weights(str(path), "ours", inside)
    if any(name.startswith(("image_decoder_", "audio_decoder_")) for name in tensors):
        return Weights(str(path), "original", {our_name(name): t for name, t in tensors.items()})
    if "encoder.fusion_tokens" in tensors:
        return Weights(str(path), "ours", tensors)
    if "patch_embed.proj.weight" in tensors:
        # The class token and its row of the (fixed) position embedding have no place here, nor has the decoder.
        keep = ("patch_embed.", "blocks.", "norm.")
        return Weights(str(path), "vit", {name: t for name, t in tensors.items() if name.startswith(keep)})
    shown = ", ".join(list(tensors)[:3]) or "no tensor"
    raise UserError(f"{path} holds {shown} …, which is none of ours: expected {EXPECTED}.")


def read_record(path: str | Path) -> dict[str, Any]:
    """What one of our .ckpt files says about its run (see `tasks.base.Task.record`); empty for any other file.

    Raises:
        UserError: see `read_weights`.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist: expected {EXPECTED}.")
    content = read_file(path)
    record = content.get("record", {}) if isinstance(content, dict) else {}
    return record if isinstance(record, dict) else {}


def write_weights(weights: Weights, path: Path) -> Path:
    """Write the tensors alone, as safetensors; `read_weights` reads the file again.

    Raises:
        UserError: the name does not end in .safetensors, or the file cannot be written.
    """
    if path.suffix != ".safetensors":
        raise UserError(f"output {path}: expected a name that ends in .safetensors.")
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.contiguous() for name, tensor in weights.tensors.items()}
        save_file(tensors, partial, metadata={"crc32": _checksum(tensors)})
        partial.replace(path)
    except OSError as error:
        raise UserError(
            f"output {path} cannot be written: {error.strerror or error}; choose another output."
        ) from error
    return path


def read_file(path: Path) -> object:
    """The content of a checkpoint file; see `read_weights` for what is raised."""
    size = path.stat().st_size
    broken = UserError(
        f"checkpoint {path} ({size} bytes) cannot be read: it is truncated, damaged or something else; "
        f"expected {EXPECTED}; fetch or copy it again."
    )
    try:
        if path.suffix == ".safetensors":
            return _read_safetensors(path, broken)
        with path.open("rb") as file:
            head = file.read(4)
            if head == b"PK\3\4":
                _check_archive(file, path, broken)
            elif head[:1] == b"\x80":  # before PyTorch 1.6: five pickles, then the tensors, and no checksum
                file.seek(0)
                for _ in range(5):
                    _check_pickle(file, path)
            else:
                raise broken
        # A Namespace is a bag of values: MAE's own training code stores its arguments as one.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        raise (_runs_code(path) if "weights_only" in str(error) or "Unsupported" in str(error) else broken) from error
    except Exception as error:  # a damaged archive raises nearly anything: RuntimeError, EOFError, KeyError, …
        raise broken from error
    _check_values(content, path, size)
    return content


def _runs_code(path: Path) -> UserError:
    return UserError(
        f"checkpoint {path} holds more than tensors and plain values, and reading it would run its code; it "
        f"was not loaded: expected {EXPECTED}."
    )


def _grows(path: Path) -> UserError:
    return UserError(
        f"checkpoint {path} would take more memory than its size says (it is compressed, nested too deeply, or has "
        f"tensors larger than the file); it was not loaded: expected {EXPECTED}, as torch.save writes it."
    )


def _read_safetensors(path: Path, broken: UserError) -> dict[str, Tensor]:
    """The tensors; compared with the checksum of `write_weights`, which files of other programs lack."""
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        expected = (file.metadata() or {}).get("crc32")
    if expected not in (None, _checksum(tensors)):
        raise broken
    return tensors


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    """CRC-32 of names, types, shapes and values."""
    crc = 0
    for name, tensor in sorted(tensors.items()):
        crc = zlib.crc32(f"{name} {tensor.dtype} {list(tensor.shape)}".encode(), crc)
        crc = zlib.crc32(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data, crc)
    return str(crc)


def _check_archive(file: IO[bytes], path: Path, broken: UserError) -> None:
    """Compare the checksums of a zip archive, which torch.load does not, and look through its pickle."""
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        names = {member.filename.lower() for member in members}  # torch.load does not tell cases apart
        if len(names) < len(members):
            raise broken
        stored = all(member.compress_type == zipfile.ZIP_STORED for member in members)
        if not stored or sum(member.file_size for member in members) > path.stat().st_size:
            raise _grows(path)
        if archive.testzip() is not None:
            raise broken
        if any(name.endswith("/constants.pkl") for name in names):
            raise _runs_code(path)  # TorchScript
        for member in members:
            if member.filename.lower().endswith("data.pkl"):
                _check_pickle(io.BytesIO(archive.read(member)), path)


def _check_pickle(file: IO[bytes], path: Path) -> None:
    """Look through a pickle without running it: what it names, and tuples, whose hash takes time by what they hold."""
    leaf = (0, 1)
    stack: list[tuple[int, int]] = []  # depth and number of values of each object, 0 and 1 unless it is a tuple
    marks: list[int] = []
    memo: dict[int, tuple[int, int]] = {}
    for opcode, argument, _ in pickletools.genops(file):
        name = opcode.name
        named = str(argument).replace(" ", ".") if name == "GLOBAL" else ""
        if not OPCODES.fullmatch(name) or (named and not GLOBALS.fullmatch(named) and named not in DTYPES):
            raise _runs_code(path)
        if name == "MARK":
            marks.append(len(stack))
        elif name.endswith("BINPUT"):
            memo[int(argument or 0)] = stack[-1]
        elif name.endswith("BINGET"):
            stack.append(memo[int(argument or 0)])
        else:
            before = opcode.stack_before
            begin = marks.pop() if pickletools.markobject in before else len(stack) - len(before)
            items = stack[begin:]
            del stack[begin - (before.index(pickletools.markobject) if pickletools.markobject in before else 0) :]
            made = leaf
            if name.startswith("TUPLE"):
                made = (1 + max((d for d, _ in items), default=0), 1 + sum(n for _, n in items))
                if made[0] > MOST_NESTED or made[1] > MOST_VALUES:
                    raise _grows(path)
            stack += [made] * len(opcode.stack_after)


def _check_values(content: object, path: Path, size: int) -> None:
    """See that a file holds plain containers, values and tensors, none of which grows when it is used."""
    todo, seen = [(content, 0)], 0
    while todo:
        value, depth = todo.pop()
        if isinstance(value, Tensor):
            dense = value.layout is torch.strided and value.device.type == "cpu" and not value.is_nested
            if not dense or value.nbytes > value.untyped_storage().nbytes() or value.untyped_storage().nbytes() > size:
                raise _grows(path)
        elif isinstance(value, (dict, list, tuple, set, argparse.Namespace)):
            if not isinstance(value, argparse.Namespace):
                getattr(value, "__dict__", {}).clear()  # of an OrderedDict: it could stand in for its methods
            inside = list(vars(value).values()) if isinstance(value, argparse.Namespace) else list(value)
            inside += value.values() if isinstance(value, dict) else ()
            seen += 50 + len(inside)  # containers cost more
            if depth > MOST_NESTED or seen > MOST_VALUES:
                raise _grows(path)
            todo += [(item, depth + 1) for item in inside if type(item) not in PLAIN]
        elif not isinstance(value, (*PLAIN, torch.storage.TypedStorage)):
            raise _runs_code(path)


def _tensors(content: object, path: Path) -> dict[str, Tensor]:
    if isinstance(content, dict):
        for key in ("state_dict", "model"):
            if isinstance(content.get(key), dict):
                content = content[key]
                break
        tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}  # type: ignore
        if tensors:
            return tensors
    raise UserError(f"{path} holds no tensors under state_dict or model: expected {EXPECTED}.")


def load_mae(model: MaskedAutoencoder, path: str | Path) -> LoadReport:
    """Load encoder, fusion and decoders from one of our checkpoints or a published one.

    Raises:
        UserError: see `read_weights`; or the sizes do not fit, told with the config values that would.
    """
    weights = read_weights(path)
    if weights.kind == "vit":
        raise UserError(
            f"{path} is an MAE or AudioMAE checkpoint, a single ViT: give it as model.image_weights or "
            f"model.audio_weights."
        )
    return _load(model, weights, describe(weights.tensors))


def load_encoder(encoder: DeepAVFusion, path: str | Path) -> LoadReport:
    """Load image, audio and fusion streams from one of our checkpoints or a published one; heads are left out.

    Raises:
        UserError: see `load_mae`.
    """
    weights = read_weights(path)
    if weights.kind == "vit":
        raise UserError(f"{path} is an MAE or AudioMAE checkpoint, a single ViT: a DeepAVFusion encoder was expected.")
    inside = {n.removeprefix("encoder."): t for n, t in weights.tensors.items() if n.startswith("encoder.")}
    report = _load(encoder, Weights(weights.path, weights.kind, inside), describe(weights.tensors))
    report.left_out += [name for name in weights.tensors if not name.startswith("encoder.")]
    return report


def load_vit(vit: ViT, path: str | Path) -> LoadReport:
    """Load one encoder from an MAE or AudioMAE checkpoint.

    Raises:
        UserError: see `read_weights`; or the sizes do not fit.
    """
    weights = read_weights(path)
    if weights.kind != "vit":
        raise UserError(
            f"{path} is a DeepAVFusion checkpoint: give it as model.pretrained; an MAE or AudioMAE ViT checkpoint was "
            f"expected here."
        )
    return _load(vit, weights, describe(weights.tensors))


def check_resumable(net: nn.Module, path: str | Path) -> None:
    """See that a run can go on from a checkpoint, before Lightning tries.

    Args:
        net: the network of the run, `net.` in the checkpoint.
        path: a .ckpt file.

    Raises:
        UserError: see `read_weights`; or the file holds weights and no run, or another network's.
    """
    weights = read_weights(path)
    if weights.kind != "ours" or Path(path).suffix != ".ckpt":
        raise UserError(f"{path} holds weights and not the state of a run: give it as model.pretrained, not ckpt_path.")
    own = {name: tensor.shape for name, tensor in net.state_dict().items()}
    found = {name: tensor.shape for name, tensor in weights.tensors.items()}
    if own != found:
        name = next(iter(sorted(set(own.items()) ^ set(found.items()))))[0]
        values = ", ".join(f"model.{key}={value}" for key, value in describe(weights.tensors).items())
        raise UserError(
            f"checkpoint {path} is of another network: {name} is {list(found.get(name, []))} in the file and "
            f"{list(own.get(name, []))} in the model; the file fits {values}."
        )


def _load(module: nn.Module, weights: Weights, fitting: dict[str, object]) -> LoadReport:
    own = module.state_dict()
    # The encoders' position embedding is fixed and follows from the input size, which may differ from the file's.
    fixed = {name for name in own if name.endswith(("image.pos_embed", "audio.pos_embed")) or name == "pos_embed"}
    wrong = [
        f"{name} is {list(tensor.shape)} in the file and {list(own[name].shape)} in the model"
        for name, tensor in weights.tensors.items()
        if name in own and name not in fixed and tensor.shape != own[name].shape
    ]
    missing_blocks = [name for name in own if name not in weights.tensors and "blocks." in name]
    surplus_blocks = [name for name in weights.tensors if name not in own and "blocks." in name]
    if wrong or missing_blocks or surplus_blocks:
        first = (
            wrong
            or [f"{name} is in the model and not in the file" for name in missing_blocks]
            or [f"{name} is in the file and not in the model" for name in surplus_blocks]
        )
        values = ", ".join(f"model.{name}={value}" for name, value in fitting.items())
        raise UserError(
            f"checkpoint {weights.path} does not fit the model: {first[0]} "
            f"({len(wrong) + len(missing_blocks) + len(surplus_blocks)} differences); the file fits {values}."
        )
    usable = {name: t for name, t in weights.tensors.items() if name in own and name not in fixed}
    module.load_state_dict(usable, strict=False)
    return LoadReport(
        weights.path,
        loaded=list(usable),
        new=[name for name in own if name not in usable and name not in fixed],
        left_out=[name for name in weights.tensors if name not in own],
    )


def describe(tensors: dict[str, Tensor]) -> dict[str, object]:
    """The config values under `model` that fit these tensors, as far as shapes tell them (heads do not show).

    A single ViT is described as the encoder it has the channels for.
    """
    found: dict[str, object] = {}
    if "patch_embed.proj.weight" in tensors:
        stream = "audio" if tensors["patch_embed.proj.weight"].shape[1] == 1 else "image"
        tensors = {f"encoder.{stream}.{name}": tensor for name, tensor in tensors.items()}
    for stream in ("image", "audio"):
        prefix = f"encoder.{stream}."
        blocks = [int(m[1]) for n in tensors if (m := re.match(re.escape(prefix) + r"blocks\.(\d+)\.", n))]
        patch = tensors.get(prefix + "patch_embed.proj.weight")
        if patch is None or not blocks:
            continue
        found[f"net.{stream}.embed_dim"] = patch.shape[0]
        found[f"net.{stream}.patch_size"] = patch.shape[-1]
        found[f"net.{stream}.depth"] = max(blocks) + 1
    layers = sorted({int(m[1]) for n in tensors if (m := re.match(r"encoder\.fusion_blocks\.(\d+)\.", n))})
    if "encoder.fusion_tokens" in tensors:
        found["net.num_fusion_tokens"] = f"<three numbers of sum {tensors['encoder.fusion_tokens'].shape[1]}>"
        found["net.fusion_layers"] = layers or "none"
    if layers:
        block = f"encoder.fusion_blocks.{layers[0]}."
        dim = tensors[block + "norm2.weight"].shape[0]
        kind = "factorized"
        if block + "attn.kv.weight" in tensors:
            kind = "dense" if tensors[block + "attn.kv.weight"].shape[1] == 2 * dim else "token"
        found["net.fusion"] = kind
        found["net.fusion_attn_ratio"] = tensors[block + "attn.q.weight"].shape[0] / dim
        found["net.fusion_mlp_ratio"] = tensors[block + "mlp.fc1.weight"].shape[0] / dim
    if "image_decoder.embed.weight" in tensors:
        found["decoder_embed_dim"] = tensors["image_decoder.embed.weight"].shape[0]
        found["decoder_depth"] = len({n.split(".")[2] for n in tensors if n.startswith("image_decoder.blocks.")})
    return found
