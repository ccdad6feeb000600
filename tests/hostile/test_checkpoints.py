"""Damaged and malicious checkpoints: refused in one sentence, in bounded memory, and nothing in them runs."""

from __future__ import annotations

import argparse
import io
import os
import pickle
import random
import struct
import subprocess
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from deepavfusion.weights.weights import Weights, read_weights, write_weights
from helpers.damage import ask, open_checkpoint, small_network, summary
from hostile.conftest import Refused

RECORD = {"task": "pretrain", "model": {"_target_": "deepavfusion.tasks.pretrain.Pretrain", "sizes": [1, 2.5, None]}}


def content() -> dict[str, object]:
    """A run's state in Lightning's layout, after a step of AdamW."""
    net = small_network()
    optimizer = torch.optim.AdamW(net.encoder.image.parameters())
    sum((parameter**2).sum() for parameter in net.parameters() if parameter.requires_grad).backward()
    optimizer.step()
    state = OrderedDict((f"net.{name}", tensor) for name, tensor in net.state_dict().items())
    return {"state_dict": state, "epoch": 3, "optimizer_states": [optimizer.state_dict()], "record": RECORD}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An undamaged file of each format."""
    folder = tmp_path_factory.mktemp("whole")
    files = {name: folder / name for name in ("zip.ckpt", "legacy.ckpt", "ours.safetensors", "foreign.safetensors")}
    torch.save(content(), files["zip.ckpt"])
    torch.save(content(), files["legacy.ckpt"], _use_new_zipfile_serialization=False)
    tensors = read_weights(files["zip.ckpt"]).tensors
    write_weights(Weights("", "ours", tensors), files["ours.safetensors"])
    save_file(tensors, files["foreign.safetensors"])
    return files


def accepted(answer: object, whole: str, exactly: bool = True) -> bool:
    """Whether a file was refused, or read as the undamaged one is; where nothing has checksums, read at all."""
    word, detail, *_ = answer
    return word == "refused" or (word == "read" and (detail == whole or not exactly))


# ---------------------------------------------------------------- damage


def damaged(data: bytes, rng: random.Random) -> dict[str, bytes]:
    """24 truncations, 24 files with flipped bits, 10 with zeros, 6 with blocks that changed places, 1 with a tail."""
    made = {f"cut{n}": data[: len(data) * n // 24 + (n > 12) * 7] for n in range(24)} | {"tail": data + b"PK" * 99}
    for n in range(24):
        flipped = bytearray(data)
        for _ in range(1 + 9 * (n % 2)):
            flipped[rng.randrange(len(data) // (1 + n % 4) - 1)] ^= 1 << rng.randrange(8)
        made[f"flip{n}"] = bytes(flipped)
    for n in range(10):
        at, size = rng.randrange(len(data)), (1, 64, 4096)[n % 3]
        made[f"zero{n}"] = data[:at] + bytes(min(size, len(data) - at)) + data[at + size :]
    for n in range(6):
        a, b, c = sorted(rng.sample(range(len(data)), 3))
        made[f"swap{n}"] = data[:a] + data[b:c] + data[a:b] + data[c:]
    return made


@pytest.mark.parametrize("name", ["zip.ckpt", "legacy.ckpt", "ours.safetensors", "foreign.safetensors"])
def test_damage_is_named_or_harmless(whole: dict[str, Path], tmp_path: Path, name: str) -> None:
    data = whole[name].read_bytes()
    files = [whole[name]]
    for kind, content_ in damaged(data, random.Random(name)).items():
        files.append(tmp_path / f"{kind}-{name}")
        files[-1].write_bytes(content_)
    found = ask(open_checkpoint, files)
    print(name, summary(found))
    undamaged = found.pop(str(whole[name]))
    assert undamaged.word == "read", undamaged
    checked = name in ("zip.ckpt", "ours.safetensors")
    for path, answer in found.items():
        assert accepted(answer, undamaged.detail, exactly=checked), (path, answer)
        assert answer.word == "read" or path in answer.detail
        assert answer.peak_mb < 900, (path, answer)
    cut = [answer for path, answer in found.items() if Path(path).name.startswith("cut")]
    assert {answer.word for answer in cut} == {"refused"}


def test_every_flipped_bit_of_the_values_is_found(whole: dict[str, Path], tmp_path: Path, refused: Refused) -> None:
    """torch.load alone reads the damaged values without a word."""
    data, path = whole["zip.ckpt"].read_bytes(), tmp_path / "a.ckpt"
    with zipfile.ZipFile(whole["zip.ckpt"]) as archive:
        member = next(m for m in archive.infolist() if m.filename.endswith("data/0"))
    at = member.header_offset + 30 + len(member.filename) + 100
    path.write_bytes(data[:at] + bytes([data[at] ^ 64]) + data[at + 1 :])
    torch.load(path, weights_only=True)
    refused(lambda: read_weights(path), "a.ckpt", "damaged")


# ---------------------------------------------------------------- archives that claim too much


def archive(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as out:
        for name, data in members.items():
            out.writestr(name, data)


def rewritten(whole: Path, change: Callable[[dict[str, bytes]], dict[str, bytes]]) -> dict[str, bytes]:
    with zipfile.ZipFile(whole) as source:
        return change({name: source.read(name) for name in source.namelist()})


def pickled(*operations: bytes) -> bytes:
    return b"\x80\x02" + b"".join(operations) + b"."


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def tensor(numel: int, size: tuple[int, ...], stride: tuple[int, ...], key: str = "0") -> bytes:
    """The opcodes of a tensor of torch's format."""

    def long(n: int) -> bytes:
        return b"\x8a\x09" + n.to_bytes(9, "little", signed=True)

    def numbers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(map(long, values)) + b"t"

    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu") + long(numel) + b"tQ"
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\0" + numbers(size) + numbers(stride) + b"\x89"
        b"ccollections\nOrderedDict\n)RtR"
    )


def state(value: bytes, name: str = "net.encoder.fusion_tokens") -> bytes:
    return pickled(b"}", text("state_dict"), b"}", text(name), value, b"ss")


def of_torch(data_pkl: bytes, values: bytes = bytes(400)) -> dict[str, bytes]:
    return {"a/data.pkl": data_pkl, "a/byteorder": b"little", "a/data/0": values, "a/version": b"3\n"}


DEEP, SHARED = b"\x85" * 200_000, b"q\1h\1\x86" * 60
BOMBS = {
    "view of more values than there are": state(tensor(100, (10**5, 10**5), (0, 0))),
    "storage of more values than there are": state(tensor(10**8, (10,), (1,))),
    "negative size": state(tensor(100, (-5, 2), (1, 1))),
    "offsets beyond the storage": state(tensor(100, (10**6,), (1,))),
    "no such member": state(tensor(100, (10,), (1,), key="7")),
    "member outside": state(tensor(100, (10,), (1,), key="../data.pkl")),
    "no numbers": state(b"ctorch\nFloatTensor\n\x8a\x05\0\0\0\0\x10\x85R"),
    "bytes": state(b"c__builtin__\nbytearray\n\x8a\x05\0\0\0\0\x10\x85R"),
    "moved": state(
        b"ctorch._utils\n_rebuild_device_tensor_from_cpu_tensor\n("
        + tensor(100, (10**6, 10**6), (0, 0))
        + b"ctorch\nfloat64\n"
        + text("cpu")
        + b"\x89tR"
    ),
    "meta": state(b"ctorch._utils\n_rebuild_meta_tensor_no_storage\n(ctorch\nfloat32\n(K\x05t(K\x01t\x89tR"),
    "deep key": pickled(b"}K\0", DEEP, b"K\0s"),
    "shared key": pickled(b"}K\0", SHARED, b"K\0s"),
    "shared set": pickled(b"c__builtin__\nset\n(]K\0", SHARED, b"atR"),
    "deep list": pickled(b"]" * 50_000 + b"a" * 49_999),
    "list in itself": pickled(b"]q\1h\1a"),
    "dict in itself": pickled(b"}q\1", text("record"), b"h\1s"),
    "shared lists": pickled(b"](K\0e" + b"".join(b"q\1](h\1h\1e" for _ in range(60))),
    "shadowed methods": pickled(
        b"ccollections\nOrderedDict\n)R",
        text("state_dict"),
        b"}s}",
        text("get"),
        text("x"),
        b"s",
        text("items"),
        b"Nsb",
    ),
    "a function": pickled(b"}", text("record"), b"ctorch._utils\n_rebuild_tensor_v2\ns"),
    "a memo of nothing": pickled(b"h\1"),
    "too few marks": pickled(b"K\0K\1te"),
    "huge text": b"\x80\x02X\xff\xff\xff\xffa.",
    "huge number": pickled(b"\x8b\xff\xff\xff\x7f1"),
}


def claim(whole: Path, offset: int, size: int, format_: str = "<I") -> bytes:
    """The archive with another size in its central directory, of the first member with values."""
    data = bytearray(whole.read_bytes())
    at = data.index(b"PK\1\2")
    while b"data/0" not in data[at : at + 80]:
        at = data.index(b"PK\1\2", at + 4)
    struct.pack_into(format_, data, at + offset, size)
    return bytes(data)


def overblown(whole: dict[str, Path], folder: Path) -> list[Path]:
    """Archives and headers that claim more than they hold, of every kind."""
    files = []

    def new(name: str) -> Path:
        files.append(folder / f"{len(files)}-{name}")
        return files[-1]

    for name, data in BOMBS.items():
        archive(new(f"{name}.ckpt"), of_torch(data))
        new(f"bare {name}.ckpt").write_bytes(data)
    members = rewritten(whole["zip.ckpt"], dict)
    for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        archive(new("compressed.ckpt"), members, method)
        archive(new("compressed zeros.ckpt"), of_torch(state(tensor(10**6, (10**6,), (1,))), bytes(4 * 10**6)), method)
        archive(new("compressed pickle.ckpt"), of_torch(pickled(b"]", b"0]" * 10**6)), method)
    folder_name = next(iter(members)).partition("/")[0]
    for wrong in ("DATA.pkl", "Data.Pkl", "data.pkl/../data.pkl"):
        archive(new("two pickles.ckpt"), members | {f"{folder_name}/{wrong}": pickled(b"}")})
    first = f"{folder_name}/data/0"  # and one of another size
    second = next(n for n in members if "/data/" in n and len(members[n]) != len(members[first]))
    swap = {first: second, second: first}
    archive(new("swapped.ckpt"), {swap.get(name, name): data for name, data in members.items()})
    for missing in ("data.pkl", "data/0", "version"):
        archive(new("lacking.ckpt"), {n: data for n, data in members.items() if not n.endswith(f"/{missing}")})
    for offset, format_ in ((20, "<I"), (24, "<I"), (28, "<H"), (30, "<H"), (42, "<I"), (10, "<H"), (8, "<H")):
        for size in (0, 1, 2**16 - 1 if format_ == "<H" else 2**32 - 1):
            new("claim.ckpt").write_bytes(claim(whole["zip.ckpt"], offset, size, format_))
    archive(new("many.ckpt"), of_torch(pickled(b"}")) | {f"a/{n}": b"" for n in range(5000)})
    archive(new("nothing.ckpt"), {})
    for size in (0, 1, 7, 2**31, 2**63, 2**64 - 1, 10**8):
        new("header.safetensors").write_bytes(struct.pack("<Q", size) + b'{"a":{}}')
    for header in (
        '{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}',
        '{"a":{"dtype":"F32","shape":[4294967296,4294967296,4294967296],"data_offsets":[0,0]}}',
        '{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}',
        '{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}',
        '{"a":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}',
        '{"a":{"dtype":"F4","shape":[2],"data_offsets":[0,1]}}',
        '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        '{"__metadata__":{"crc32":5},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        "[" * 10_000,
        '{"a":' * 5_000,
    ):
        new("header.safetensors").write_bytes(struct.pack("<Q", len(header)) + header.encode() + bytes(4))
    new("empty.ckpt").touch()
    new("empty.safetensors").touch()
    new("text.ckpt").write_text("PK\3\4 this is no checkpoint\n" * 99)
    new("text.safetensors").write_text("this is no checkpoint\n" * 99)
    new("folder.ckpt").mkdir()
    new("folder.safetensors").mkdir()
    os.mkfifo(new("pipe.ckpt"))
    new("loop.ckpt").symlink_to("loop.ckpt")
    new("zeros.ckpt").write_bytes(bytes(10**6))
    return files


@pytest.mark.full
def test_what_claims_too_much_is_refused_in_little_memory(whole: dict[str, Path], tmp_path: Path) -> None:
    files = overblown(whole, tmp_path)
    found = ask(open_checkpoint, [*files, whole["zip.ckpt"]])
    print(summary(found))
    undamaged = found.pop(str(whole["zip.ckpt"]))
    assert len(found) == len(files)
    for path, answer in found.items():
        assert accepted(answer, undamaged.detail), (path, answer)
        assert answer.word == "read" or path in answer.detail
        assert answer.seconds < 5, (path, answer)
        assert answer.peak_mb < 900, (path, answer)
    for path, answer in found.items():
        if "compressed" in path or "view of more" in path or "shared" in path:
            assert "more memory than its size says" in answer.detail or "bare" in path, (path, answer)


# ---------------------------------------------------------------- code


class Payload:
    """Reduces to a call of a function with arguments."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> object:
        return self.call

    def __call__(self) -> None:
        """Pickle wants to see what it could call."""


def calls(marker: Path) -> dict[str, bytes]:
    """Pickles of protocol 2 that would make the file `marker` where they run."""
    touch, python = f"touch {marker}", f"open({str(marker)!r}, 'w')"
    nested = pickle.dumps(Payload(os.system, touch), 2)
    call: dict[str, object] = {
        "system": Payload(os.system, touch),
        "popen": Payload(os.popen, touch),
        "subprocess": Payload(subprocess.Popen, ["touch", str(marker)]),
        "eval": Payload(eval, python),
        "exec": Payload(exec, python),
        "compile": Payload(eval, Payload(compile, python, "a", "eval")),
        "open": Payload(io.open, str(marker), "w"),
        "getattr": Payload(Payload(getattr, Payload(__import__, "os"), "system"), touch),
        "import": Payload(__import__, "antigravity"),
        "nested": Payload(pickle.loads, nested),
        "torch.load": Payload(torch.load, str(marker.with_name("inner.pt")), "cpu", None),
        "storage": Payload(torch.storage._load_from_bytes, nested),
        "path": Payload(Path.touch, marker),
        "state": argparse.Namespace(args=Payload(os.system, touch)),
        "state_dict": {"state_dict": {"net.a": Payload(os.system, touch)}, "record": RECORD},
        "among tensors": {"state_dict": {"net.a": torch.zeros(0).tolist(), "net.b": [Payload(eval, python)]}},
        "key": {"record": {Payload(eval, python): 1}},
    }
    made = {name: pickle.dumps(value, 2) for name, value in call.items()}
    made |= {
        "hooks": state(tensor(100, (10,), (1,))[:-2] + b"0ccollections\nOrderedDict\n(](K\0cos\nsystem\netRtR"),
        "persistent": pickled(b"(", text("module"), b"cos\nsystem\n", text("a"), text("b"), b"tQ"),
        "inst": b"\x80\x02(" + text(touch) + b"ios\nsystem\n.",
        "obj": b"\x80\x02(cos\nsystem\n" + text(touch) + b"o.",
        "extension": pickled(b"\x82\1", text(touch), b"\x85R"),
        "newobj": pickled(b"cos\nsystem\n", text(touch), b"\x85\x81"),
        "dotted": pickled(b"cargparse\nNamespace.__init__.__globals__\n"),
        "torch.os": pickled(b"ctorch.serialization\nos.system\n", text(touch), b"\x85R"),
    }
    return made


def malicious(whole: dict[str, Path], folder: Path, marker: Path) -> list[Path]:
    """Each call bare, as a member of an archive, and in each place of the old format; and other formats with code."""
    files = []
    members = rewritten(whole["zip.ckpt"], dict)
    data_pkl = next(name for name in members if name.endswith("data.pkl"))
    stages = [pickle.dumps(stage, 2) for stage in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, {}, [])]
    for n, (name, data) in enumerate(calls(marker).items()):
        forms: dict[str, bytes] = {"bare": data, "old": b"".join([*stages[: n % 5], data, *stages[n % 5 + 1 :]])}
        for form, written in forms.items():
            files.append(folder / f"{form} {name}.ckpt")
            files[-1].write_bytes(written)
        files.append(folder / f"archive {name}.pth")
        archive(files[-1], members | {data_pkl: data})
    for protocol in (0, 1, 3, 4, 5):
        files.append(folder / f"protocol {protocol}.pth")
        files[-1].write_bytes(pickle.dumps({"state_dict": Payload(os.system, f"touch {marker}")}, protocol))
    files.append(folder / "script.pt")
    script = {"a/constants.pkl": pickled(b")"), "a/code/__torch__.py": b"import os\n", "a/data.pkl": pickled(b"}")}
    archive(files[-1], script)
    files.append(folder / "module.pt")
    torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)).save(str(files[-1]))
    for first in ("storages", "PK\3\4", "\x80"):  # the first bytes of a tar file are a name
        files.append(folder / f"tar {ord(first[0])}.tar")
        with tarfile.open(files[-1], "w", encoding="latin-1") as tar:
            for name in (first, "storages", "tensors", "pickle", "../../escaped"):
                info = tarfile.TarInfo(name)
                info.size = len(data := calls(marker)["system"])
                tar.addfile(info, io.BytesIO(data))
    return files


def test_nothing_in_a_checkpoint_runs(whole: dict[str, Path], tmp_path: Path) -> None:
    marker = tmp_path / "exploded"
    torch.save(Payload(os.system, f"touch {marker}"), tmp_path / "inner.pt")
    files = malicious(whole, tmp_path, marker)
    found = ask(open_checkpoint, files)
    print(summary(found))
    assert len(found) == len(files) >= 80
    for path, answer in found.items():
        assert answer.word == "refused", (path, answer)
        assert path in answer.detail
        if "archive" in path:
            assert "it was not loaded" in answer.detail, answer
    assert not marker.exists()
    assert not (tmp_path.parent / "escaped").exists()
    pickle.loads(calls(marker)["system"])  # the payloads are live
    assert marker.exists()
