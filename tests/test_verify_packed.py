"""Verifying packed data, in a folder and in object storage: what is missing or damaged is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from deepavfusion.data.storage import faults
from deepavfusion.data.storage.remote import Unreachable
from deepavfusion.data.storage.settings import StorageSettings
from deepavfusion.utils.errors import UserError
from deepavfusion.verify import packed as verify_module
from deepavfusion.verify.packed import verify_packed
from helpers.packs import small_pack
from helpers.storage import Service, put_folder

CHUNK = "train/chunk-00001.bin"


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two splits of four clips, in two chunks each."""
    return small_pack(tmp_path_factory.mktemp("verify") / "packed", per_chunk=2, train=4, test=4)


@pytest.fixture(params=["folder", "s3"])
def root(request: pytest.FixtureRequest, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Root:
    monkeypatch.setattr(faults, "PAUSES", (0.02, 0.05))
    monkeypatch.setattr(verify_module, "LOCAL_SECONDS", 0.1)
    if request.param == "s3":
        service = request.getfixturevalue("s3")
        put_folder(service, packed, "data", "packed")
        return Root("s3://data/packed", service, tmp_path)
    shutil.copytree(packed, tmp_path / "packed")
    return Root(str(tmp_path / "packed"), None, tmp_path)


class Root:
    """A copy of packed data that a test damages."""

    def __init__(self, address: str, service: Service | None, folder: Path) -> None:
        self.address, self.service, self.folder = address, service, folder

    def read(self, name: str) -> bytes:
        if self.service:
            return self.service.client.get_object(Bucket="data", Key=f"packed/{name}")["Body"].read()
        return Path(self.address, name).read_bytes()

    def write(self, name: str, content: bytes) -> None:
        if self.service:
            self.service.client.put_object(Bucket="data", Key=f"packed/{name}", Body=content)
        else:
            Path(self.address, name).write_bytes(content)

    def remove(self, name: str) -> None:
        if self.service:
            self.service.client.delete_object(Bucket="data", Key=f"packed/{name}")
        else:
            Path(self.address, name).unlink()

    def verify(self, *splits: str, name: str = "vggsound") -> None:
        verify_packed(self.address, name, splits or None, StorageSettings(patience_seconds=0.2), workers=2)


def test_intact(root: Root, capsys: pytest.CaptureFixture[str]) -> None:
    root.verify()
    out = capsys.readouterr().out
    assert f"{root.address}: 8 clips, " in out
    assert "all as they were packed" in out
    rows = [line.strip("│┃ ").split() for line in out.splitlines()]
    size = f"{2 * len(root.read(CHUNK)) / 1e9:.3g}"
    shown = [[cell for cell in row if cell != "│"] for row in rows]
    assert [row for row in shown if row[:1] in (["train"], ["test"])] == [
        ["train", "4", "2", size, "–"],
        ["test", "4", "2", size, "–"],
    ]


def test_damage_is_named(root: Root, capsys: pytest.CaptureFixture[str]) -> None:
    """The size, the content, what is missing, and lists that do not fit; other splits are not in the way."""
    content = root.read(CHUNK)
    root.write(CHUNK, content[:-1] + b"x")
    longer = root.read("train/chunk-00000.bin")
    root.write("train/chunk-00000.bin", longer + b"x")
    root.remove("test/chunk-00000.bin")
    root.write("test/clips.json", root.read("test/clips.json").replace(b'"test"', b'"train"'))
    root.remove("test/index.json")
    with pytest.raises(UserError, match=r" has 5 missing or damaged files: copy what is named again"):
        root.verify()
    said = capsys.readouterr().out
    for name, what in {
        CHUNK: "has another content",
        "train/chunk-00000.bin": f"has more than {len(longer)} bytes",
        "test/chunk-00000.bin": "is missing",
        "test/clips.json": "is damaged (test/clips.json and packed.json list other clips)",
        "test/index.json": "is missing",
    }.items():
        assert f"{root.address}/{name} {what}" in said
    with pytest.raises(UserError, match="2 missing or damaged files"):
        root.verify("train")


def test_what_is_no_packed_data(root: Root) -> None:
    with pytest.raises(UserError, match=r"without the split dev, it has train, test"):
        root.verify("dev")
    with pytest.raises(UserError, match=r"holds vggsound packed in format 1, expected y"):
        root.verify(name="y")
    manifest = json.loads(root.read("packed.json"))
    del manifest["splits"]["train"]["counts"]
    root.write("packed.json", json.dumps(manifest).encode())
    with pytest.raises(UserError, match=r"packed\.json is damaged \('counts'\)"):
        root.verify()
    root.remove("packed.json")
    with pytest.raises(UserError, match=r"packed\.json is not there; expected packed data"):
        root.verify()


def test_numbers_that_are_text_are_damage(root: Root, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = json.loads(root.read("packed.json"))
    manifest["splits"]["train"]["chunks"][0]["bytes"] = "10"
    manifest["splits"]["test"]["counts"]["packed"] = "4"
    root.write("packed.json", json.dumps(manifest).encode())
    with pytest.raises(UserError, match=r" has 1 missing or damaged file"):
        root.verify()
    assert capsys.readouterr().out.count("packed.json is damaged ('str' object cannot be interpreted") == 1


@pytest.mark.parametrize("root", ["folder"], indirect=True)
def test_a_list_that_cannot_be_read(root: Root, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(root.address, "train/clips.json")
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match=r" has 1 missing or damaged file"):
        root.verify()
    assert f"{path} cannot be read" in capsys.readouterr().out


@pytest.mark.parametrize("root", ["s3"], indirect=True)
def test_storage_that_fails_is_no_damage(root: Root) -> None:
    assert root.service
    left = ["cut", (500, "InternalError")]
    root.service.fault = lambda method, path: left.pop() if left and "chunk" in path else None
    root.verify()
    root.service.fault = lambda method, path: (500, "InternalError") if CHUNK in path else None
    with pytest.raises(Unreachable):
        root.verify()
