"""What a checkpoint describes is compared with its size, and with one network, before anything is built."""

from __future__ import annotations

import copy
import math
import pickle
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from deepavfusion.inference.encoders import open_encoder
from deepavfusion.inference.tasks import load_task
from deepavfusion.models.deepavfusion import DeepAVFusion
from deepavfusion.models.vit import ViT
from deepavfusion.utils.errors import UserError
from deepavfusion.weights.file import read_file
from deepavfusion.weights.weights import check_network, load_encoder, read_weights, write_weights
from helpers.checkpoints import write_classifier
from helpers.damage import ask

FIELD = Path(__file__).parent / "field"


def opened(path: str) -> tuple[str, str]:
    try:
        read_file(Path(path))
        open_encoder(path)
    except UserError as error:
        return "refused", str(error)
    return "read", ""


# ---------------------------------------------------------------- pickles that grow


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


VIEW = (  # the arguments of a tensor of one of 100 values, as memo 2; memo 1 is the function
    b"ctorch._utils\n_rebuild_tensor_v2\nq\1((" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu")
    + b"KdtQK\0%s\x89ccollections\nOrderedDict\n)Rtq\2"
)  # fmt: skip
SET, COPIES = b"c__builtin__\nset\nq\1](" + b"K\1" * 10_000 + b"e\x85q\2(", b"h\1h\2R" * 1000
COLLIDING = b"".join(b"\x8a\x1f" + ((2**61 - 1) * n).to_bytes(31, "little") + b"N" for n in range(1, 30_000))
GROWING = {
    "set of a view": VIEW % b"K\5K\5\x86K\0K\0\x86" + b"c__builtin__\nset\nh\1h\2R\x85R",
    "values shown twice": VIEW % b"K\5K\5\x86K\1K\0\x86" + b"h\1h\2R",
    "values that overlap": VIEW % b"K\5K\5\x86K\1K\2\x86" + b"h\1h\2R",
    "one value in many tensors": VIEW % b"Kd\x85K\1\x85" + b"(" + COPIES + b"t",
    "copies of a set": SET + COPIES + b"t",
    "copies of a dict": b"ccollections\nOrderedDict\nq\1](" + b"K\1K\1\x86" * 9000 + b"e\x85q\2(" + COPIES + b"t",
    "copies of a text": b"c_codecs\nencode\nq\1" + text("a" * 10**6) + text("latin1") + b"\x86q\2(" + COPIES + b"t",
    "numbers that collide": b"}(" + COLLIDING + b"u",
    "tensor as key": VIEW % b"K\1\x85K\1\x85" + b"}h\1h\2RNs",
    "tuple as key": b"}K\1K\2\x86Ns",
    "more opcodes than a checkpoint has": b"(" + b"N" * 2_100_000 + b"t",
}  # fmt: skip


def archive(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as out:
        for name, data in members.items():
            out.writestr(name, data)
    return path


def of_torch(data_pkl: bytes) -> dict[str, bytes]:
    return {"a/data.pkl": b"\x80\x02" + data_pkl + b".", "a/data/0": bytes(400)}


def legacy(data_pkl: bytes, keys: bytes = b"](" + text("0") + b"e", length: int = 100) -> bytes:
    head = b"".join(pickle.dumps(v, 2) for v in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    return head + b"\x80\x02" + data_pkl + b".\x80\x02" + keys + b"." + struct.pack("<q", length) + bytes(400)


def test_nothing_grows_while_it_is_read(tmp_path: Path) -> None:
    """In both formats; a key is hashed only if that takes no time."""
    files = [FIELD / "set_of_view.ckpt"]
    for n, (name, body) in enumerate(GROWING.items()):
        files.append(archive(tmp_path / f"{n} {name}.ckpt", of_torch(body)))
        if "opcodes" not in name:  # which takes seconds
            files.append(tmp_path / f"{n} legacy {name}.pth")
            files[-1].write_bytes(legacy(body))
    shared = b"](K\1" + b"q\1h\1\x86" * 60 + b"e"
    (tmp_path / "keys.pth").write_bytes(legacy(VIEW % b"Kd\x85K\1\x85" + b"h\1h\2R", keys=shared))
    for path, answer in ask(opened, [*files, FIELD / "wide.safetensors", tmp_path / "keys.pth"]).items():
        assert answer.word == "refused", (path, answer)
        if "keys" not in path:
            words = "[1048576, 1, 0, 16]" if "wide" in path else "more memory than its size says"
            assert words in answer.detail, (path, answer)
        assert answer.seconds < 8, (path, answer)
        assert answer.peak_mb < 900, (path, answer)


def test_the_old_format_is_read_and_its_lengths_are_checked(tmp_path: Path) -> None:
    path, tensor = tmp_path / "a.pth", VIEW % b"Kd\x85K\1\x85" + b"h\1h\2R"
    path.write_bytes(legacy(tensor))
    assert torch.equal(read_file(path), torch.zeros(100))
    for wrong in (legacy(tensor, length=99), legacy(tensor) + b"x", legacy(tensor)[:-1], legacy(tensor, keys=b"]")):
        path.write_bytes(wrong)
        with pytest.raises(UserError, match=r"a\.pth"):
            read_file(path)


# ---------------------------------------------------------------- one archive, all of the file


def changed(data: bytes, where: bytes, offset: int, value: bytes, last: bool = False) -> bytes:
    at = (data.rindex(where) if last else data.index(where)) + offset
    return data[:at] + value + data[at + len(value) :]


def hidden(data: bytes, more: bytes) -> bytes:
    """The archive with bytes between its last member and its directory, whose place is corrected."""
    begin = data.index(b"PK\1\2")
    moved = data[:begin] + more + data[begin:]
    return changed(moved, b"PK\5\6", 16, struct.pack("<I", begin + len(more)), last=True)


LOCAL, CENTRAL, END = b"PK\3\4", b"PK\1\2", b"PK\5\6"
ARCHIVES: dict[str, Callable[[bytes, bytes], bytes]] = {
    "bytes in front": lambda data, _: b"PK\3\4junk" + data,
    "bytes behind": lambda data, _: data + b"\0",
    "a comment": lambda data, _: changed(data, END, 20, b"\4\0", last=True) + b"note",
    "another archive in front": lambda data, other: other + data,
    "another archive behind": lambda data, other: data + other,
    "another archive in the comment": lambda data, other: (
        changed(data, END, 20, len(other).to_bytes(2, "little"), last=True) + other
    ),
    "bytes between": lambda data, _: hidden(data, b"hidden"),
    "a member that no directory lists": lambda data, other: hidden(data, other[: other.index(CENTRAL)]),
    "another name in the local header": lambda data, _: changed(data, LOCAL, 30, b"b"),
    "another size in the local header": lambda data, _: changed(data, LOCAL, 22, b"\1\0\0\0"),
    "another checksum in the local header": lambda data, _: changed(data, LOCAL, 14, b"\1\2\3\4"),
    "compressed, says the local header": lambda data, _: changed(data, LOCAL, 8, b"\x08\0"),
    "encrypted": lambda data, _: changed(changed(data, LOCAL, 6, b"\1\0"), CENTRAL, 8, b"\1\0"),
    "two members in one place": lambda data, _: changed(data, CENTRAL, 42, b"\0\0\0\0", last=True),
    "a second disk": lambda data, _: changed(data, END, 4, b"\1\0", last=True),
    "a longer directory": lambda data, _: changed(data, END, 12, b"\xff\0\0\0", last=True),
}  # fmt: skip


@pytest.mark.parametrize("name", [*ARCHIVES, "field"])
def test_a_file_is_one_archive(tmp_path: Path, name: str) -> None:
    """Of two readers, each could take another one: what is checked is what is read."""
    data, other = (
        archive(tmp_path / f"{n}.ckpt", of_torch(b"}" + text("a") + bytes([75, n]) + b"s")).read_bytes() for n in (1, 2)
    )
    path = FIELD / "two_archives.ckpt" if name == "field" else tmp_path / "a.ckpt"
    if name != "field":
        path.write_bytes(data)
        assert read_file(path) == {"a": 1}
        path.write_bytes(ARCHIVES[name](data, other))
    with pytest.raises(UserError, match=r"\.ckpt"):
        read_file(path)


def test_archives_of_torch_are_read_with_their_descriptors(tmp_path: Path) -> None:
    """torch.save writes sizes behind the data, and a directory for large files."""
    path = tmp_path / "a.ckpt"
    torch.save({"a": torch.arange(5), "b": torch.zeros(0)}, path)
    data = path.read_bytes()
    assert b"PK\6\6" in data
    assert read_file(path)["a"].tolist() == [0, 1, 2, 3, 4]
    for where, offset in ((b"PK\6\6", 40), (b"PK\6\6", 48), (b"PK\6\7", 8), (b"PK\7\x08", 4), (b"PK\7\x08", 8)):
        path.write_bytes(changed(data, where, offset, b"\3", last=True))
        with pytest.raises(UserError, match="truncated, damaged"):
            read_file(path)


# ---------------------------------------------------------------- networks


def encoder_tensors(dim: int = 64) -> dict[str, Tensor]:
    vits = [ViT(size, in_chans=n, embed_dim=dim, depth=2, num_heads=1) for size, n in (((32, 32), 3), ((128, 64), 1))]
    state = DeepAVFusion(*vits, num_fusion_tokens=(4, 2, 2), fusion_num_heads=1).state_dict()
    return {f"encoder.{name}": tensor for name, tensor in state.items()}


def wide(tensors: dict[str, Tensor]) -> None:
    for stream, channels in (("image", 3), ("audio", 1)):
        tensors[f"encoder.{stream}.patch_embed.proj.weight"] = torch.zeros(65_536, channels, 1, 1)


IMPOSSIBLE: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str]] = {
    "scalar": (lambda t: t.update({"encoder.image.patch_embed.proj.weight": torch.tensor(1.0)}), "in 4 dimensions"),
    "patch of 0": (lambda t: t.update({"encoder.image.patch_embed.proj.weight": torch.zeros(64, 3, 16, 0)}), "16, 0"),
    "tokens of two dimensions": (lambda t: t.update({"encoder.fusion_tokens": torch.zeros(8, 64)}), "in 3 dimensions"),
    "complex": (lambda t: t.update({"encoder.fusion_tokens": torch.zeros(1, 8, 64, dtype=torch.complex64)}), "real"),
    "whole numbers": (lambda t: t.update({"encoder.fusion_tokens": torch.zeros(1, 8, 64).long()}), "torch.int64"),
    "wide": (wide, "tensors of a whole encoder"),
    "patch larger than the input": (
        lambda t: t.update({"encoder.audio.patch_embed.proj.weight": torch.zeros(64, 1, 300, 300)}),
        "tensors of a whole encoder",
    ),
    "a layer far away": (lambda t: t.update({"encoder.image.blocks.999.x": torch.zeros(1)}), "whole encoder"),
    "a fusion block far away": (lambda t: t.update({"encoder.fusion_blocks.999.norm2.weight": torch.zeros(64)}), "999"),
    "a fusion block without a width": (lambda t: t.pop("encoder.fusion_blocks.0.norm2.weight"), "whole encoder"),
    "NaN": (lambda t: t["encoder.image.norm.bias"].fill_(math.nan), "weights that are NaN or infinite, in image.norm"),
    "infinite": (lambda t: t["encoder.fusion_tokens"].fill_(-math.inf), "NaN or infinite, in fusion_tokens"),
    "a name of control characters": (lambda t: t.update({"encoder.\x1b[2J": torch.zeros(1)}), "truncated, damaged"),
    "a name of a page": (lambda t: t.update({"encoder." + "x" * 5000: torch.zeros(1)}), "truncated, damaged"),
}


@pytest.mark.parametrize("form", ["safetensors", "pth"])
@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_shapes_that_cannot_be_are_named_before_a_network_is_built(
    tmp_path: Path, name: str, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, words = IMPOSSIBLE[name]
    tensors = encoder_tensors()
    change(tensors)
    path = tmp_path / f"a.{form}"
    if form == "pth":
        torch.save({"state_dict": tensors}, path)
    else:
        save_file(tensors, path)
    built = []
    build = ViT.__init__

    def watched(self: ViT, *args: Any, **kwargs: Any) -> None:
        built.append(torch.get_default_device().type)
        build(self, *args, **kwargs)

    monkeypatch.setattr(ViT, "__init__", watched)
    with pytest.raises(UserError) as error:
        open_encoder(path)
    assert words in str(error.value)
    assert str(path) in str(error.value)
    assert len(str(error.value)) < 600 + len(str(path))
    assert set(built) <= {"meta"} or "infinite" in words


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"embed_dim": 65_536}, "fusion_tokens is [1, 8, 32] in the file and [1, 8, 65536] in the model"),
        ({"depth": 40}, "is in the model and not in the file"),
        ({"input_size": [16_384, 16_384]}, "pos_embed is"),
    ],
)
def test_a_record_of_a_larger_network_is_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    path = write_classifier(tmp_path / "a.ckpt")
    content = torch.load(path, weights_only=True)
    for stream in ("image", "audio"):
        content["record"]["model"]["net"][stream] |= change
    torch.save(content, path)
    with pytest.raises(UserError) as error:
        load_task(path)
    assert words in str(error.value)


def test_weights_that_are_not_finite_predict_nothing(tmp_path: Path) -> None:
    path = write_classifier(tmp_path / "a.ckpt")
    content = torch.load(path, weights_only=True)
    next(iter(content["state_dict"].values())).fill_(math.nan)
    torch.save(content, path)
    with pytest.raises(UserError, match=r"a\.ckpt has weights that are NaN or infinite, in net\."):
        load_task(path)


# ---------------------------------------------------------------- names


NAMES: dict[str, Callable[[str], str]] = {
    "compiled": lambda name: f"_orig_mod.{name}",
    "a compiled network in a task": lambda name: name.replace("encoder.", "encoder._orig_mod.", 1),
    "parallel and compiled": lambda name: f"module._orig_mod.{name}",
    "compiled and parallel": lambda name: f"_orig_mod.module.{name}",
    "compiled blocks": lambda name: re.sub(r"\.(attn|blocks)\.", r"._orig_mod.\1.", name),
    "checkpointed blocks": lambda name: name.replace(".mlp.", "._checkpoint_wrapped_module.mlp."),
    "sharded": lambda name: f"_forward_module._fsdp_wrapped_module.{name}",
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_wrappers_are_no_part_of_a_name(tmp_path: Path, name: str) -> None:
    """Theirs (.pth), ours (.ckpt: start weights, resume, prediction), and after conversion."""
    tensors, wrap = encoder_tensors(), NAMES[name]
    torch.save({"state_dict": {wrap(n): t for n, t in tensors.items()}}, tmp_path / "a.pth")
    encoder, _ = open_encoder(tmp_path / "a.pth")
    assert torch.equal(encoder.fusion_tokens, tensors["encoder.fusion_tokens"])
    write_weights(read_weights(tmp_path / "a.pth"), tmp_path / "a.safetensors")
    assert load_encoder(copy.deepcopy(encoder), tmp_path / "a.safetensors").new == []
    path = write_classifier(tmp_path / "last.ckpt")
    known = load_task(path).state_dict()
    content = torch.load(path, weights_only=True)
    content["state_dict"] = {f"net.{wrap(n.removeprefix('net.'))}": t for n, t in content["state_dict"].items()}
    torch.save(content, path)
    task = load_task(path)
    assert all(torch.equal(tensor, known[n]) for n, tensor in task.state_dict().items())
    check_network(task.net, path, read_file(path))
    assert list(read_file(path)["state_dict"]) == list(known)


def test_two_tensors_of_one_name_are_refused(tmp_path: Path) -> None:
    tensors = encoder_tensors()
    tensors["_orig_mod.encoder.fusion_tokens"] = torch.zeros(1, 8, 64)
    torch.save({"state_dict": tensors}, tmp_path / "a.pth")
    with pytest.raises(UserError, match="truncated, damaged or something else"):
        read_weights(tmp_path / "a.pth")


def test_weights_that_share_memory_are_converted(tmp_path: Path) -> None:
    tensors = encoder_tensors()
    tensors["encoder.image.norm.weight"] = tensors["encoder.image.norm.bias"]
    torch.save({"state_dict": tensors}, tmp_path / "a.pth")
    path = write_weights(read_weights(tmp_path / "a.pth"), tmp_path / "a.safetensors")
    assert torch.equal(read_weights(path).tensors["encoder.image.norm.weight"], tensors["encoder.image.norm.bias"])


def test_a_path_that_cannot_be_opened_is_not_called_damaged(tmp_path: Path) -> None:
    for path, words in (
        (tmp_path, "it is a folder, not a regular file.*expected a checkpoint of this project"),
        (tmp_path / "a.ckpt", "does not exist"),
        (tmp_path / ("x" * 300 + ".ckpt"), "File name too long"),
    ):
        with pytest.raises(UserError, match=words) as error:
            read_file(path)
        assert "truncated" not in str(error.value)
