"""A Hugging Face Hub on 127.0.0.1: the routes that huggingface_hub needs for models, and answers that a test twists.

It keeps commits in memory, files of more than `SMALL` bytes as LFS does. `asked` are the requests, and `twist` is asked
for each before it is answered: (status, headers, body), "drop" (the connection ends), a number (seconds to wait), or
None.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from huggingface_hub import constants

SMALL = 20_000
TOKEN = "hf_testing_token_of_the_hub"
LICENSES = {"unknown", "other", "apache-2.0", "mit", "cc-by-4.0"}
Twist = Callable[[str, str], Any]


@dataclass
class Repo:
    """A repository: commits in order, each with its files; and names of revisions."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes]) -> str:
        last = list(self.commits.values())[-1:] or [{}]
        whole = {**last[0], **files}
        sha = hashlib.sha1(b"".join(name.encode() + whole[name] for name in sorted(whole))).hexdigest()
        self.commits[sha] = whole
        self.refs["main"] = sha
        return sha

    def find(self, revision: str) -> str | None:
        return revision if revision in self.commits else self.refs.get(revision)


class Hub:
    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.large: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.tokens: set[tuple[str, str | None]] = set()  # host that was asked, and what it was given
        self.twist: Twist = lambda method, path: None
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    @property
    def store_url(self) -> str:
        """Of the service that large files are kept by: another host, which gets no token."""
        return self.url.replace("127.0.0.1", "localhost")

    def add(self, name: str, folder: Path) -> str:
        """Commit the files of a folder; gives the commit."""
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
        return self.repos.setdefault(name, Repo()).commit(files)

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        self.hub.tokens.add((self.headers["Host"].partition(":")[0], self.headers.get("Authorization")))
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        twisted = self.hub.twist(self.command, path)
        if twisted == "drop":
            self.close_connection = True
            return
        if isinstance(twisted, (int, float)):
            time.sleep(twisted)
        if isinstance(twisted, tuple):
            self.send(*twisted)
            return
        for method, pattern, answer in ROUTES:
            if (method == self.command or (method, self.command) == ("GET", "HEAD")) and (
                found := re.fullmatch(pattern, path)
            ):
                answer(self, *found.groups())
                return
        self.send(404)

    def send(self, status: int = 200, headers: dict[str, str] | None = None, body: Any = b"") -> None:
        body = body if isinstance(body, bytes) or callable(body) else json.dumps(body).encode()
        self.send_response(status)
        headers = headers or {}
        if not callable(body) and "Content-Length" not in headers:
            headers = {**headers, "Content-Length": str(len(body))}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        try:
            if callable(body):
                self.close_connection = True
                body(self.wfile)
            else:
                self.wfile.write(body)
        except OSError:
            self.close_connection = True

    def may(self, name: str) -> bool:
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and self.headers.get("Authorization") != f"Bearer {TOKEN}"):
            self.send(401, {"X-Error-Code": "RepoNotFound"})
            return False
        return True

    def signed_in(self) -> bool:
        if self.headers.get("Authorization") == f"Bearer {TOKEN}":
            return True
        self.send(401, {}, {"error": "Invalid credentials"})
        return False

    # ---- routes

    def create(self) -> None:
        if self.signed_in():
            given = json.loads(self.body)
            name = f"{given.get('organization') or 'user'}/{given['name']}"
            if name in self.hub.repos:
                self.send(409, {}, {"error": "You already created this model repo", "url": f"{self.hub.url}/{name}"})
                return
            private = given.get("private") is True or given.get("visibility") == "private"
            self.hub.repos[name] = Repo(private)
            self.hub.repos[name].commit({".gitattributes": b""})
            self.send(200, {}, {"url": f"{self.hub.url}/{name}"})

    def info(self, name: str, revision: str | None) -> None:
        if not self.may(name):
            return
        repo = self.hub.repos[name]
        sha = repo.find(revision or "main")
        if sha is None:
            self.send(404, {"X-Error-Code": "RevisionNotFound"})
            return
        siblings = [{"rfilename": each, **_listed(data)} for each, data in repo.commits[sha].items()]
        self.send(200, {}, {"id": name, "sha": sha, "private": repo.private, "siblings": siblings})

    def validate(self) -> None:
        text = json.loads(self.body)["content"]
        errors = [{"message": each} for each in invalid(text)]
        self.send(400 if errors else 200, {}, {"errors": errors, "warnings": []})

    def preupload(self, name: str) -> None:
        if self.signed_in() and self.may(name):
            files = json.loads(self.body)["files"]
            modes = [
                {
                    "path": each["path"],
                    "uploadMode": "lfs" if each["size"] > SMALL else "regular",
                    "shouldIgnore": False,
                }
                for each in files
            ]
            self.send(200, {}, {"files": modes})

    def batch(self, name: str) -> None:
        if self.signed_in() and self.may(name):
            objects = [
                {**each, "actions": {"upload": {"href": f"{self.hub.url}/store/{each['oid']}"}}}
                for each in json.loads(self.body)["objects"]
            ]
            self.send(200, {"Content-Type": "application/vnd.git-lfs+json"}, {"transfer": "basic", "objects": objects})

    def store(self, oid: str) -> None:
        assert hashlib.sha256(self.body).hexdigest() == oid
        self.hub.large[oid] = self.body
        self.send(200)

    def commit(self, name: str) -> None:
        if self.signed_in() and self.may(name):
            files = {}
            for line in map(json.loads, self.body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = self.hub.large[value["oid"]]
            sha = self.hub.repos[name].commit(files)
            self.send(200, {}, {"commitUrl": f"{self.hub.url}/{name}/commit/{sha}", "commitOid": sha})

    def resolve(self, name: str, revision: str, file: str) -> None:
        if not self.may(name):
            return
        repo = self.hub.repos[name]
        sha = repo.find(revision)
        if sha is None:
            self.send(404, {"X-Error-Code": "RevisionNotFound"})
            return
        head = {"X-Repo-Commit": sha}
        if file not in repo.commits[sha]:
            self.send(404, {**head, "X-Error-Code": "EntryNotFound"})
            return
        data = repo.commits[sha][file]
        found = _listed(data)
        if "lfs" in found:
            oid = found["lfs"]["sha256"]
            self.hub.large[oid] = data
            linked = {"X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(len(data))}
            self.send(302, {**head, **linked, "Location": f"{self.hub.store_url}/store/{oid}"})
            return
        self.send(200, {**head, "ETag": f'"{found["blobId"]}"'}, data)

    def stored(self, oid: str) -> None:
        self.send(200, {"ETag": '"part-1"'} if self.command == "GET" else {"ETag": f'"{oid}"'}, self.hub.large[oid])


ROUTES: list[tuple[str, str, Any]] = [
    ("POST", "/api/repos/create", _Handler.create),
    ("POST", "/api/validate-yaml", _Handler.validate),
    ("GET", r"/api/models/([\w.-]+/[\w.-]+)(?:/revision/(.+))?", _Handler.info),
    ("POST", r"/api/models/([\w.-]+/[\w.-]+)/preupload/main", _Handler.preupload),
    ("POST", r"/([\w.-]+/[\w.-]+)\.git/info/lfs/objects/batch", _Handler.batch),
    ("PUT", r"/store/(\w+)", _Handler.store),
    ("GET", r"/store/(\w+)", _Handler.stored),
    ("POST", r"/api/models/([\w.-]+/[\w.-]+)/commit/main", _Handler.commit),
    ("GET", r"/([\w.-]+/[\w.-]+)/resolve/([^/]+)/(.+)", _Handler.resolve),
]


def _listed(data: bytes) -> dict[str, Any]:
    """A file as the API lists it."""
    sha1 = hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
    found: dict[str, Any] = {"size": len(data), "blobId": sha1}
    if len(data) > SMALL:
        found["lfs"] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest(), "pointerSize": 134}
    return found


def invalid(text: str) -> list[str]:
    """What the Hub's validator would find in the metadata of a card (hub-docs: modelcard.md), as far as it is known."""
    found = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    if not found:
        return ["no metadata"]
    data = yaml.safe_load(found[1])
    errors = []
    if data.get("license") not in LICENSES:
        errors.append('"license" must be one of those known')
    if data.get("license") == "other" and not re.fullmatch(r"[a-z0-9-.]+", data.get("license_name", "")):
        errors.append('"license_name" is missing')
    tags = data.get("tags", [])
    if not all(isinstance(tag, str) and 0 < len(tag) <= 50 for tag in tags):
        errors.append('"tags" must be texts')
    known = ("video-classification", "audio-to-audio", "image-segmentation", "feature-extraction")
    if data.get("pipeline_tag") not in known:
        errors.append('"pipeline_tag" is unknown')
    for model in data.get("model-index", []):
        if not isinstance(model.get("name"), str):
            errors.append('"model-index[0].name" is missing')
        for result in model["results"]:
            texts = (result["task"]["type"], result["dataset"]["type"], result["dataset"]["name"])
            if not all(isinstance(each, str) and each for each in texts):
                errors.append('"results" lack a type or a name')
            errors += ['"metrics" lack a value' for each in result["metrics"] if type(each.get("value")) is not float]
    return errors


@contextmanager
def running(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[Hub]:
    """A Hub that huggingface_hub asks, with an empty cache and without a token."""
    hub = Hub()
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "no_token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # it would need another service
    try:
        yield hub
    finally:
        hub.stop()
