"""Networks on the Hugging Face Hub: pushed and read through huggingface_hub, whatever the Hub answers."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from deepavfusion.cli.complete import pinned_sources
from deepavfusion.config.records import accepted, shareable
from deepavfusion.inference.encoders import open_network
from deepavfusion.inference.tasks import load_task
from deepavfusion.sharing.share import share
from deepavfusion.utils.errors import TemporaryError, UserError
from deepavfusion.weights import guard
from deepavfusion.weights.hub import Address, address_of, local, pinned
from deepavfusion.weights.weights import read_weights
from helpers.checkpoints import write_classifier
from helpers.hub import TOKEN, Hub, running

NAME = "someone/clips"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[Hub]:
    with running(monkeypatch, cache) as hub:
        yield hub


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classifier(tmp_path_factory.mktemp("network") / "last.ckpt")


@pytest.fixture(scope="module")
def folder(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shared") / "folder"
    list(share(str(checkpoint), str(folder), card=True))
    return folder


def same(one: Any, other: Any) -> bool:
    mine, yours = one.state_dict(), other.state_dict()
    return list(mine) == list(yours) and all(torch.equal(mine[name], yours[name]) for name in mine)


def test_a_network_goes_there_and_back(
    hub: Hub, cache: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    options: Any = {"card": True, "license": "cc-by-4.0", "push": f"hf://{NAME}", "private": True}
    lines = list(share(str(checkpoint), str(tmp_path / "out"), **options))
    repo = hub.repos[NAME]
    commit = repo.refs["main"]
    assert lines[-1] == f"uploaded to {hub.url}/{NAME}, as hf://{NAME}@{commit}"
    assert repo.private
    assert set(repo.commits[commit]) == {
        "README.md",
        "config.json",
        "model.safetensors",
        ".gitattributes",
    }
    task = load_task(f"hf://{NAME}")
    assert same(task, load_task(checkpoint))
    assert task.record["classes"]
    assert task.origin.described()["checkpoint"] == f"hf://{NAME}@{commit}"
    assert f"hf://{NAME} is at commit {commit}" in capsys.readouterr().out
    assert {token for host, token in hub.tokens if host == "localhost"} == {None}
    assert ("127.0.0.1", f"Bearer {TOKEN}") in hub.tokens
    whole = "".join(path.read_text(errors="replace") for path in tmp_path.rglob("*") if path.is_file())
    assert TOKEN not in whole + "".join(lines)
    assert not [path for path in cache.rglob("*") if path.name.endswith((".incomplete", ".bin"))]
    again = list(share(f"hf://{NAME}", str(tmp_path / "again")))  # a folder of what is there
    assert same(load_task(tmp_path / "again"), task)
    assert commit in again[0]


def test_a_pinned_commit_in_the_cache_asks_nobody(hub: Hub, folder: Path, capsys: Any) -> None:
    commit = hub.add(NAME, folder)
    source = f"hf://{NAME}@{commit}"
    first = load_task(source)
    hub.asked.clear()
    assert same(load_task(Path(source)), first)
    assert not hub.asked
    network, summary = open_network(source)
    assert same(network, first)
    assert source in summary
    weights = read_weights(source)
    assert weights.path == source
    assert weights.origin
    assert str(weights.origin.path) == source
    hub.stop()
    assert same(load_task(source), first)
    assert same(load_task(local(source)), first)  # the folder in the cache, whose files are links


def test_a_branch_is_followed_and_offline_as_it_was(hub: Hub, folder: Path, tmp_path: Path, capsys: Any) -> None:
    first = hub.add(NAME, folder)
    hub.repos[NAME].refs["v1.0"] = first
    other = shutil.copytree(folder, tmp_path / "other")
    list(share(str(write_classifier(tmp_path / "b.ckpt", ["one", "two"])), str(other)))
    second = hub.add(NAME, other)
    assert load_task(f"hf://{NAME}").record["classes"] == ["one", "two"]
    assert len(load_task(f"hf://{NAME}@v1.0").record["classes"]) == 3
    assert pinned(Address(NAME)) == Address(NAME, second)
    assert pinned(Address(NAME, "v1.0")) == Address(NAME, first)
    hub.stop()
    capsys.readouterr()
    assert pinned(Address(NAME, "v1.0")) == Address(NAME, first)
    assert f"hf://{NAME}@v1.0 is at commit {first}, as far as the cache knows" in capsys.readouterr().out
    assert load_task(f"hf://{NAME}").record["classes"] == ["one", "two"]
    with pytest.raises(TemporaryError, match="does not answer"):
        local(f"hf://{NAME}@v2")


def test_the_command_of_a_run_names_the_commit(hub: Hub, folder: Path) -> None:
    """So the record, a resumed run and the other processes read the same."""
    commit = hub.add(NAME, folder)
    given = ["experiment=vggsound_finetune", f"model.pretrained=hf://{NAME}", "data.root=hf://datasets/a/b/c"]
    found = pinned_sources(given)
    assert found == [given[0], f"model.pretrained='hf://{NAME}@{commit}'", given[2]]
    assert pinned_sources(found) == found


def test_a_record_of_another_user_may_name_a_commit_that_is_not_read_again() -> None:
    commit = f"model.pretrained='hf://{NAME}@{C}'"
    assert accepted([commit], [], "x.ckpt") == [commit]
    assert shareable([commit, "seed=1", f"ckpt_path=hf://{NAME}@{C}"]) == ["seed=1"]
    for text in (f"hf://{NAME}", f"hf://{NAME}@main", f"https://{NAME}@{C}"):
        with pytest.raises(UserError, match="records the override"):
            accepted([f"model.pretrained='{text}'"], [], "x.ckpt")


@pytest.mark.parametrize(
    "text",
    [
        *("hf://", "hf://name", "hf://a/b/c", "hf://../x", "hf://a/..", "hf://a/b--c", "hf://datasets/name"),
        *("hf://a/b@", "hf://a/b@../../x", "hf://a/b@-x", "hf://a/b@x y", "hf://a/b@x\n", "hf://a/b.git", "hf://a b/c"),
        *("hf://a/b@a//b", "hf://é/b", "hf://a/b@" + "x" * 101, "hf://" + "a" * 97 + "/b", "hf://a/b?x=y", "hf:/a"),
    ],
)
def test_what_is_no_address_is_refused_before_anything_is_asked(text: str) -> None:
    with pytest.raises(UserError, match="expected"):
        address_of(text)


def test_paths_are_no_addresses() -> None:
    for path in ("hf", "hf/a/b", "./hf:/a/b", "/hf://a/b", "x.ckpt", "s3://a/b"):
        assert address_of(path) is None
    assert address_of("hf://a/b@refs/pr/1") == Address("a/b", "refs/pr/1")


def head(commit: str | None, etag: str, size: object, **more: str) -> dict[str, str]:
    named = {} if commit is None else {"X-Repo-Commit": commit}
    return {**named, "ETag": f'"{etag}"', "Content-Length": str(size), **more}


def endless(file: Any) -> None:
    while True:
        file.write(b"[" * 65536)


def dripping(file: Any) -> None:
    for _ in range(200):
        file.write(b" ")
        file.flush()
        threading.Event().wait(0.02)  # sleep returns at once here


C = "c" * 40
HOSTILE: dict[str, tuple[str, Any, str]] = {
    # path of the request, the answer, words of the sentence
    "html": (f"/api/models/{NAME}", (200, {"Content-Type": "text/html"}, b"<html>login</html>"), "answers as no Hub"),
    "list": (f"/api/models/{NAME}", (200, {}, b"[1]"), "answers as no Hub"),
    "deep": (f"/api/models/{NAME}", (200, {}, b"[" * 200_000), "answers as no Hub"),
    "endless": (f"/api/models/{NAME}", (200, {}, endless), "sends more than"),
    "dripping": (f"/api/models/{NAME}", (200, {}, dripping), "bytes a second"),
    "packed": (f"/api/models/{NAME}", (200, {"Content-Encoding": "gzip"}, b"\x1f\x8b"), "packs its answer"),
    "no commit": (f"/api/models/{NAME}", (200, {}, {"id": NAME, "sha": "../../x", "siblings": []}), "commit '../../x'"),
    "private": (f"/api/models/{NAME}", (401, {"X-Error-Code": "RepoNotFound"}), "HF_TOKEN"),
    "gated": (f"/api/models/{NAME}", (403, {"X-Error-Code": "GatedRepo"}), "conditions"),
    "nowhere": (f"/api/models/{NAME}", (404, {}), "does not exist"),
    "too many": (f"/api/models/{NAME}", (429, {"Retry-After": "3600"}), "429, again in 3600 s"),
    "down": (f"/api/models/{NAME}", (503, {}), "503|does not answer"),
    "dropped": (f"/api/models/{NAME}", "drop", "does not answer"),
    "http": (f"/api/models/{NAME}", (302, {"Location": "ftp://elsewhere/x"}), "leads to ftp://elsewhere"),
    "loop": (f"/api/models/{NAME}", (302, {"Location": f"/api/models/{NAME}"}), "redirects"),
    "etag": ("resolve", (200, head("COMMIT", "../../../../evil", 1), b"x"), "expected its hash"),
    "path commit": ("resolve", (200, head("../../../evil", "a" * 40, 1), b"x"), "expected 40 hexadecimal digits"),
    "missing, path commit": (
        "resolve",
        (404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": "../../../e"}),
        "40 hex",
    ),
    "other commit": ("resolve", (200, head(C, "a" * 40, "SIZE"), b"SIZE"), "another commit"),
    "too large": ("resolve", (200, head("COMMIT", "a" * 40, 10**15), b"x"), "expected at most"),
    "elsewhere": ("resolve", (302, head("COMMIT", "a" * 40, 0, Location="ftp://elsewhere/x")), "leads to ftp"),
    "other content": ("store", (200, {"ETag": '"x"'}, b"evil" * 10_000), "bytes|not what|size"),
    "file gone": ("store", (404, {}), "does not exist"),
    "file dropped": ("store", "drop", "does not answer|answers as no Hub"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_hub_gives_one_sentence(
    name: str, hub: Hub, cache: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is kept outside of the cache, the token goes nowhere else, and nobody waits for long."""
    monkeypatch.setattr(guard, "GRACE", 0.5)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    commit = hub.add(NAME, folder)
    where, answer, words = HOSTILE[name]
    if isinstance(answer, tuple) and len(answer) > 1:
        config = (folder / "config.json").read_bytes()
        headers = {
            key: value.replace("COMMIT", commit).replace("SIZE", str(len(config))) for key, value in answer[1].items()
        }
        answer = (answer[0], headers, *(config if each == b"SIZE" else each for each in answer[2:]))
    hub.twist = lambda method, path: answer if where in path else None
    before = set(tmp_path.rglob("*"))
    began = time.monotonic()
    with pytest.raises(UserError, match=words) as error:
        local(f"hf://{NAME}")
    assert time.monotonic() - began < 10
    assert str(error.value).count("\n") == 0
    assert len(str(error.value)) < 800
    outside = {path for path in set(tmp_path.rglob("*")) - before if cache not in (path, *path.parents)}
    assert not outside
    assert not [path for path in cache.rglob("*") if path.name == "model.safetensors"]


def test_what_the_hub_lists_is_bounded(hub: Hub, folder: Path, tmp_path: Path) -> None:
    def listing(*siblings: dict[str, Any]) -> None:
        commit = hub.repos[NAME].refs["main"]
        answer = (200, {}, {"id": NAME, "sha": commit, "siblings": list(siblings)})
        hub.twist = lambda method, path: answer if "/api/models" in path else None

    hub.add(NAME, folder)
    config = {"rfilename": "config.json", "size": 10, "blobId": "0" * 40}
    listing(config, {"rfilename": "pytorch_model.bin", "size": 5}, {"rfilename": "../../model.safetensors", "size": 5})
    with pytest.raises(UserError, match=r"has no model.safetensors, only pytorch_model.bin, a pickle"):
        local(f"hf://{NAME}")
    for size in (2**40, -1, "7", None, 1.5):
        listing(config, {"rfilename": "model.safetensors", "size": size})
        with pytest.raises(UserError, match="expected at most"):
            local(f"hf://{NAME}")
    assert not any("resolve" in each for each in hub.asked)


def test_only_two_files_are_fetched(hub: Hub, cache: Path, folder: Path, tmp_path: Path) -> None:
    other = shutil.copytree(folder, tmp_path / "other")
    (other / "pytorch_model.bin").write_bytes(b"evil")
    (other / "modeling.py").write_bytes(b"evil")
    hub.add(NAME, other)
    place = local(f"hf://{NAME}")
    assert {path.name for path in place.iterdir()} == {"config.json", "model.safetensors"}
    fetched = {each.rpartition("/")[2] for each in hub.asked if "/resolve/" in each}
    assert fetched == {"config.json", "model.safetensors"}


def test_pushing_needs_a_token_and_keeps_private_what_is_private(
    hub: Hub, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"needs a token.*HF_TOKEN"):
        list(share(str(checkpoint), str(out), push=f"hf://{NAME}"))
    for text in ("someone/clips", f"hf://{NAME}@main", "hf://datasets/a/b"):
        with pytest.raises(UserError, match="hf://owner/name"):
            list(share(str(checkpoint), str(out), push=text))
    assert not out.exists()
    monkeypatch.setenv("HF_TOKEN", "hf_wrong_token_of_someone")
    with pytest.raises(UserError, match="401") as error:
        list(share(str(checkpoint), str(out), push=f"hf://{NAME}"))
    assert "hf_wrong" not in str(error.value)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.add(NAME, out)  # a public one
    commits = len(hub.repos[NAME].commits)
    with pytest.raises(UserError, match="is a public repository"):
        list(share(str(checkpoint), str(out), push=f"hf://{NAME}", private=True))
    assert len(hub.repos[NAME].commits) == commits
    assert not hub.large
    busy = {"error": "Cannot create repo: another conflicting operation is in progress"}
    hub.twist = lambda method, path: (409, {}, busy) if "create" in path else None
    with pytest.raises(TemporaryError, match="refused 21 requests in a row"):  # asked again without end
        list(share(str(checkpoint), str(out), push=f"hf://{NAME}"))
    hub.twist = lambda method, path: (400, {}, {"errors": [{"message": "bad"}]}) if "yaml" in path else None
    with pytest.raises(UserError, match="Invalid metadata"):
        list(share(str(checkpoint), str(out), card=True, push=f"hf://{NAME}"))


def test_without_the_package_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for call in (lambda: local("hf://a/b"), lambda: pinned(Address("a/b"))):
        with pytest.raises(UserError, match="pip install huggingface_hub"):
            call()


def test_offline_says_so(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        local(f"hf://{NAME}@{C}")
    assert not hub.asked
