"""The storage client: what heals, what is refused, and what is missing."""

from __future__ import annotations

import io
import os
import pickle
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import HTTPClientError
from omegaconf import open_dict
from werkzeug.serving import make_server

from deepavfusion.config.compose import compose
from deepavfusion.config.secrets import refuse_secrets, refuse_secrets_in
from deepavfusion.data.storage import faults
from deepavfusion.data.storage import remote as remote_module
from deepavfusion.data.storage import s3 as s3_module
from deepavfusion.data.storage.remote import Differs, Missing, Remote, Unreachable, remote
from deepavfusion.data.storage.settings import StorageSettings
from deepavfusion.utils.addresses import is_remote
from deepavfusion.utils.errors import UserError
from helpers.packs import small_pack
from helpers.runs import PRETRAIN, call, finished
from helpers.storage import KEYS, Service, environment, own_certificate, put_folder, stored

ROOT = "s3://data/packed"
CHUNK = os.urandom(300_000)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "PAUSES", (0.02, 0.05))


@pytest.fixture
def bucket(s3: Service) -> Service:
    """A bucket with a folder of packed data."""
    names = s3.client
    names.create_bucket(Bucket="data")
    names.put_object(Bucket="data", Key="packed/packed.json", Body=b"{}")
    names.put_object(Bucket="data", Key="packed/train/chunk-00000.bin", Body=CHUNK)
    s3.asked.clear()
    return s3


def opened(patience: float = 5.0, **settings: Any) -> Remote:
    return remote("s3://data/packed", StorageSettings(patience_seconds=patience, **settings))


def download(root: Remote, name: str = "train/chunk-00000.bin", size: int = len(CHUNK)) -> bytes:
    file = io.BytesIO()
    root.download(name, file, size)
    return file.getvalue()


def test_reads_and_writes(bucket: Service, tmp_path: Path) -> None:
    root = opened()
    assert root.read("packed.json", 100) == b"{}"
    assert download(root) == CHUNK
    (tmp_path / "file").write_bytes(CHUNK)
    root.upload(tmp_path / "file", "test/chunk-00000.bin")
    root.write("test/index.json", b"[]")
    assert root.sizes("test/") == {"test/chunk-00000.bin": len(CHUNK), "test/index.json": 2}
    assert stored(bucket, "data", "packed")["test/chunk-00000.bin"] == CHUNK
    with pytest.raises(UserError, match="has more than 1 bytes"):
        root.read("packed.json", 1)
    for size in (len(CHUNK) - 1, len(CHUNK) + 1):
        with pytest.raises(Differs):
            download(root, size=size)


def test_pickled_and_forked(bucket: Service) -> None:
    """A client belongs to the process that made it."""
    root = opened()
    root.read("packed.json", 100)
    assert download(pickle.loads(pickle.dumps(root))) == CHUNK
    mine = root._made
    child = os.fork()
    if not child:
        os._exit(0 if download(root) == CHUNK and root._made is not mine else 1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize(
    "fault",
    [
        "cut",
        "drop",
        (503, "SlowDown"),
        (500, "InternalError"),
        (429, "TooMany"),
        (403, "ExpiredToken"),
        (400, "RequestTimeout"),
    ],
)
def test_heals(bucket: Service, fault: object, capsys: pytest.CaptureFixture[str]) -> None:
    """Said once when it begins, once when it ends; the content is right."""
    root = opened()
    if fault != (400, "RequestTimeout"):  # which is no refusal at the start, either
        root.read("packed.json", 100)
    left = [fault] * 3
    bucket.fault = lambda method, path: left.pop() if left else None
    assert download(root) == CHUNK
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2, said
    assert said[0].startswith("storage s3://data/packed does not answer (")
    assert "trying for 5 s" in said[0]
    assert "answers again after" in said[1]


def test_a_broken_download_is_continued(bucket: Service) -> None:
    """By the bytes that are left, of the same version; another version is read from its beginning."""
    root = opened()
    left = ["cut"]
    bucket.fault = lambda method, path: left.pop() if left else None
    assert download(root) == CHUNK
    ranges = [headers.get("RANGE") for headers in bucket.headers[-2:]]
    assert ranges[0] is None
    assert 0 < int(ranges[1].removeprefix("bytes=").rstrip("-")) < len(CHUNK)

    other, left = CHUNK[::-1], ["cut"]

    def replaced(method: str, path: str) -> object:
        if left:
            return left.pop()
        bucket.fault = lambda method, path: None
        bucket.client.put_object(Bucket="data", Key="packed/train/chunk-00000.bin", Body=other)
        return None

    bucket.fault = replaced
    assert download(root) == other


def test_down_at_the_start(bucket: Service) -> None:
    bucket.stop()
    try:
        threading.Timer(0.3, bucket.start).start()
        assert opened().read("packed.json", 100) == b"{}"
    finally:
        time.sleep(0.3)


def test_down_for_long(bucket: Service) -> None:
    root = opened(patience=0.3)
    bucket.fault = lambda method, path: (503, "SlowDown")
    with pytest.raises(Unreachable) as error:
        root.read("packed.json", 100)
    assert str(error.value).startswith("storage s3://data/packed has not answered for 0.3 s (503 SlowDown: ")
    assert "data.storage.patience_seconds" in str(error.value)


def test_missing(bucket: Service) -> None:
    """Asked twice; where objects may not be listed, a missing one is denied while others are read."""
    root = opened()
    root.read("packed.json", 100)
    bucket.asked.clear()
    with pytest.raises(Missing, match=r"chunk-00001\.bin"):
        download(root, "train/chunk-00001.bin")
    assert bucket.asked == ["GET /data/packed/train/chunk-00001.bin"] * 2
    bucket.fault = lambda method, path: (403, "AccessDenied") if "chunk-00001" in path else None
    with pytest.raises(Missing, match="AccessDenied"):
        download(root, "train/chunk-00001.bin")
    bucket.fault = lambda method, path: (403, "AccessDenied")
    root.settings = StorageSettings(patience_seconds=0.2)
    with pytest.raises(Unreachable, match="AccessDenied"):
        download(root)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("InvalidAccessKeyId", "AWS_ACCESS_KEY_ID"),
        ("SignatureDoesNotMatch", "AWS_SECRET_ACCESS_KEY"),
        ("AccessDenied", "the right to read"),
        ("ExpiredToken", "new credentials"),
        ("RequestTimeTooSkewed", "clock"),
    ],
)
def test_refused_at_once(bucket: Service, code: str, words: str) -> None:
    bucket.fault = lambda method, path: (403, code)
    with pytest.raises(UserError, match=f"refuses .*{code}.*: .*{words}") as error:
        opened().read("packed.json", 100)
    assert not isinstance(error.value, Unreachable)
    assert len(bucket.asked) == 1


def test_a_redirection_without_end_while_a_request_is_sent() -> None:
    """botocore follows it until Python stops it, wherever that happens."""
    for error in (RecursionError("maximum"), HTTPClientError(error=RecursionError("maximum"))):
        found = s3_module.explain(error, [])
        assert found is not None
        assert (found.kind, "a redirection without end" in found.words) == ("refused", True)


@pytest.mark.parametrize(
    ("status", "headers", "words"),
    [
        ("200 OK", [("Content-Type", "text/html")], "a web page"),
        ("302 Found", [("Location", "http://127.0.0.1:1/login")], "a redirection"),
        ("200 OK", [("Last-Modified", "yesterday")], "yesterday"),
    ],
)
def test_what_is_no_service_is_named(
    bucket: Service, monkeypatch: pytest.MonkeyPatch, status: str, headers: list[tuple[str, str]], words: str
) -> None:
    """As a proxy, a login page or the console of a service: neither read nor taken for a success, later waited for."""

    def answer(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        start_response(status, headers)
        return [b"<html/>"]

    known = opened(0.05)
    known.read("packed.json", 100)
    with monkeypatch.context() as patch:
        patch.setattr(bucket, "moto", answer)
        with pytest.raises(UserError, match=rf"no S3 service: .*{words}.*: check data\.storage\.endpoint_url"):
            opened().read("packed.json", 100)
        with pytest.raises(Unreachable, match=f"no S3 service: .*{words}"):
            known.read("packed.json", 100)
        if words != "yesterday":
            with pytest.raises(UserError, match=words):
                opened().upload(Path(__file__), "packed.json")


def test_no_bucket_no_keys(bucket: Service) -> None:
    with pytest.raises(UserError, match=r"NoSuchBucket.*name of the bucket"):
        remote("s3://other/packed", StorageSettings()).read("packed.json", 100)
    with environment(AWS_ENDPOINT_URL=bucket.url, AWS_PROFILE="none"), pytest.raises(UserError, match=r"none.*~/\.aws"):
        opened().read("packed.json", 100)
    with pytest.raises(UserError, match="check the name of the bucket"):
        remote("s3://no bucket/packed", StorageSettings()).read("packed.json", 100)
    with (
        environment(AWS_ENDPOINT_URL=bucket.url),
        pytest.raises(UserError, match=r"no credentials were found.*data\.storage\.anonymous=true"),
    ):
        opened().read("packed.json", 100)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("credential_process = /no/such/tool", "No such file"),
        ("credential_process = echo", "Expecting value"),
        ("s3 = path", "attribute"),
        ("region = eu west", "eu west"),
        ("endpoint_url = http://host/?key=hidden", r"http://host/\?…"),
    ],
)
def test_what_files_of_aws_say_is_named(config: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "config").write_text(f"[default]\n{config}\n")
    with environment(AWS_CONFIG_FILE=str(tmp_path / "config")), pytest.raises(UserError, match=words) as error:
        opened().read("packed.json", 100)
    assert "data.storage.endpoint_url" in str(error.value)
    assert "hidden" not in str(error.value)


def test_a_tool_for_keys_that_fails_later_is_waited_for(bucket: Service, tmp_path: Path) -> None:
    tool = tmp_path / "tool"
    tool.write_text("""#!/bin/sh\necho '{"Version": 1, "AccessKeyId": "a", "SecretAccessKey": "b"}'\n""")
    tool.chmod(0o755)
    (tmp_path / "config").write_text(f"[default]\ncredential_process = {tool}\n")
    with environment(AWS_CONFIG_FILE=str(tmp_path / "config"), AWS_ENDPOINT_URL=bucket.url):
        root = opened(0.05)
        assert root.read("packed.json", 100) == b"{}"
        tool.unlink()
        root._made = None
        with pytest.raises(Unreachable, match="No such file"):
            root.read("packed.json", 100)


def test_a_line_break_in_a_key(bucket: Service) -> None:
    with (
        environment(**KEYS, AWS_SESSION_TOKEN="token-hidden\n", AWS_ENDPOINT_URL=bucket.url),
        pytest.raises(UserError, match="line break") as error,
    ):
        opened().read("packed.json", 100)
    assert "hidden" not in str(error.value)


def test_signs_of_life(bucket: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller is called while a request blocks."""
    assert remote_module.TICK < 1
    monkeypatch.setattr(remote_module, "TICK", 0.05)
    seen: list[float] = []
    root = remote("s3://data/packed", StorageSettings(), lambda: seen.append(time.monotonic()))
    bucket.fault = lambda method, path: 0.3
    root.read("packed.json", 100)
    assert len(seen) >= 3


def test_a_full_disk_is_no_fault_of_the_storage(bucket: Service) -> None:
    class Full(io.BytesIO):
        def write(self, _: Any) -> int:
            raise OSError(28, "No space left on device", "chunk")

    with pytest.raises(OSError, match="No space left"):
        opened().download("train/chunk-00000.bin", Full(), len(CHUNK))


def test_a_folder(tmp_path: Path) -> None:
    root = remote(f"local:{tmp_path}/data", StorageSettings(patience_seconds=0.2))
    with pytest.raises(UserError, match="expected a folder that can be read"):
        root.read("packed.json", 100)
    root.write("train/index.json", b"[]")
    assert root.read("train/index.json", 10) == b"[]"
    assert root.sizes("train/") == {"train/index.json": 2}
    with pytest.raises(Missing):
        root.read("packed.json", 10)
    (tmp_path / "data").rename(tmp_path / "unmounted")
    with pytest.raises(Unreachable):
        root.read("train/index.json", 10)


# ---- endpoints


def test_anonymous(bucket: Service) -> None:
    opened().read("packed.json", 100)
    assert KEYS["AWS_ACCESS_KEY_ID"] in bucket.headers[-1]["AUTHORIZATION"]
    bucket.client.put_object_acl(Bucket="data", Key="packed/packed.json", ACL="public-read")
    with environment(AWS_ENDPOINT_URL=bucket.url):
        opened(anonymous=True).read("packed.json", 100)
    assert "AUTHORIZATION" not in bucket.headers[-1]


def test_renewed_by_hand(bucket: Service, tmp_path: Path) -> None:
    """A profile with a session token, which expires and is replaced in its file while the process runs."""
    profile = "[default]\naws_access_key_id = {0}\naws_secret_access_key = secret\naws_session_token = {0}-token\n"
    (tmp_path / "credentials").write_text(profile.format("old"))
    with environment(AWS_ENDPOINT_URL=bucket.url, AWS_SHARED_CREDENTIALS_FILE=str(tmp_path / "credentials")):
        root = opened()
        root.read("packed.json", 100)
        assert bucket.headers[-1]["X_AMZ_SECURITY_TOKEN"] == "old-token"

        def expired(method: str, path: str) -> object:
            if bucket.headers[-1]["X_AMZ_SECURITY_TOKEN"] == "new-token":
                return None
            (tmp_path / "credentials").write_text(profile.format("new"))
            return 403, "ExpiredToken"

        bucket.fault = expired
        assert download(root) == CHUNK


@pytest.fixture(scope="module")
def https(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, str]]:
    """A service with a certificate of its own, and the file of that."""
    folder = tmp_path_factory.mktemp("tls")
    service = Service(own_certificate(folder))
    yield service, str(folder / "certificate.pem")
    service.stop()


def test_own_certificates(bucket: Service, https: tuple[Service, str], tmp_path: Path) -> None:
    """The content is that of the other service, which moto keeps in one place."""
    service, bundle = https
    with environment(**KEYS):
        with pytest.raises(UserError, match=r"refuses .*certificate verify failed.*data\.storage\.ca_bundle"):
            opened(endpoint_url=service.url).read("packed.json", 100)
        assert opened(endpoint_url=service.url, ca_bundle=bundle).read("packed.json", 100) == b"{}"
        with environment(**KEYS, AWS_CA_BUNDLE=bundle, AWS_ENDPOINT_URL_S3=service.url):
            assert download(opened()) == CHUNK
        with pytest.raises(UserError, match=r"refuses .*the right address"):
            opened(endpoint_url=bucket.url.replace("http:", "https:")).read("packed.json", 100)
        (tmp_path / "empty.pem").write_text("")
        for wrong, words in (("empty.pem", "holds no certificate"), ("none.pem", "does not exist")):
            with pytest.raises(UserError, match=words):
                opened(endpoint_url=service.url, ca_bundle=str(tmp_path / wrong)).read("packed.json", 100)


@pytest.mark.parametrize(
    "given",
    [
        "data.root=s3://key:hidden@bucket/folder",
        "output='s3://key:hidden@bucket'",
        "data.storage.endpoint_url=http://user:hidden@host:9000",
        "+data.storage.secret_key=hidden",
        "data.storage.aws_session_token=hidden",
        "++data.aws_secret_access_key=hidden",
        "data.root=s3://key:hid/hidden@bucket",
        "data.root=hf://hidden@datasets/user/name",
        "data.root=https://bucket.host/folder?X-Amz-Signature=hidden",
        "s3://key:hidden@bucket/folder",
        "data.root=s3:/key:hidden@bucket/folder",
        "data.storage.endpoint_url=user:hidden@host:9000",
        "+hydra.job.env_set={A:b, AWS_SECRET_ACCESS_KEY:hidden}",
        "+data.storage={'secret_key': hidden}",
        "+x=[{token:hidden}]",
        "run.name=x${oc.env:HF_TOKEN}",
        "--aws-secret-access-key=hidden",
    ],
)
def test_secrets_are_no_part_of_a_command(given: str) -> None:
    with pytest.raises(UserError, match="in the environment") as error:
        refuse_secrets(["experiment=pretrain_vggsound", given])
    assert "hidden" not in str(error.value)
    refuse_secrets(["data.root=s3://bucket/folder", "data.storage.region=eu", "~data.storage.token", "resume=a@b?c"])
    refuse_secrets(
        ["data.root=hf://datasets/user/name@v1/folder", "run.name=${oc.env:USER}", "x=[a,token]", "y={a:token}"]
    )


def test_a_key_that_storage_has_not_is_named_without_its_value() -> None:
    words = r"no key data\.storage\.patience; expected data\.storage\.<one of: endpoint_url, .*patience_seconds"
    with pytest.raises(UserError, match=words) as error:
        refuse_secrets(["+data.storage.patience=hidden"])
    assert "hidden" not in str(error.value)


def test_secrets_are_no_part_of_a_config() -> None:
    cfg = compose("train", ["experiment=pretrain_vggsound", "data.root=s3://bucket/folder"])
    refuse_secrets_in(cfg)
    with open_dict(cfg):
        cfg.data.storage.token = "hidden"
    with pytest.raises(UserError, match=r"data\.storage\.token would be recorded"):
        refuse_secrets_in(cfg)


def test_secrets_of_endpoints_are_not_shown(bucket: Service, capsys: pytest.CaptureFixture[str]) -> None:
    with environment(**KEYS, AWS_ENDPOINT_URL="http://user:hidden@127.0.0.1:1"), pytest.raises(UserError) as error:
        opened().read("packed.json", 100)
    assert "hidden" not in str(error.value)
    with environment(**KEYS, HTTP_PROXY="http://user:hidden@127.0.0.1:1"), pytest.raises(Unreachable) as error:
        opened(patience=0.1, endpoint_url="http://storage.test").read("packed.json", 100)
    assert "proxy" in str(error.value)
    assert "hidden" not in str(error.value) + capsys.readouterr().out


@pytest.mark.parametrize("endpoint", ["host:9000", "ftp://host", "http://", "http://host:port", "http://host/?a=b"])
def test_endpoints_that_are_none(endpoint: str) -> None:
    with pytest.raises(UserError, match="expected http"):
        opened(endpoint_url=endpoint)


# ---- other kinds of storage


@pytest.mark.parametrize(
    ("root", "words"),
    [
        ("r2://bucket/folder", r"s3://<bucket>/<folder> with data\.storage\.endpoint_url=https://<account>\.r2"),
        ("azure://container/folder", "a gateway with this interface"),
        ("https://host/folder", "expected s3://<bucket>/<folder>, gs://, hf://, or a folder"),
        ("S3://bucket/folder", "expected s3://"),
        ("s3:///folder", "no address of a folder in a bucket"),
        ("s3://bucket//folder", "no address of a folder in a bucket"),
        ("gs://bucket/folder", r"pip install google-cloud-storage, or .*https://storage\.googleapis\.com"),
        ("hf://user/name", r"expected hf://datasets/<user>/<name>/<folder>"),
    ],
)
def test_addresses_that_are_not_read(root: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Among them those of a package that is missing."""
    monkeypatch.setattr("litdata.streaming.downloader._GOOGLE_STORAGE_AVAILABLE", False)
    assert is_remote(root)
    with pytest.raises(UserError, match=words):
        remote(root, StorageSettings(patience_seconds=0.1)).read("packed.json", 10)


class Hub:
    """Answers as the Hugging Face Hub does, with a fault once."""

    def __init__(self) -> None:
        self.server = make_server("127.0.0.1", 0, self.answer, threaded=True)
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        self.left: list[str] = []

    def answer(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        path = environ["PATH_INFO"]
        headers = [("X-Repo-Commit", "0" * 40), ("ETag", '"1"'), ("Content-Type", "application/octet-stream")]
        if self.left:
            start_response(self.left.pop(), [])
        elif path == "/datasets/user/name/resolve/v1/packed/packed.json":
            start_response("200 OK", [*headers, ("Content-Length", "2")])
            return [b"{}"]
        else:
            start_response("404 Not Found", [*headers[:1], ("X-Error-Code", "EntryNotFound")])
        return [b""]


def test_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hub = Hub()
    settings = StorageSettings(f"http://127.0.0.1:{hub.server.server_port}", patience_seconds=3)
    root = remote("hf://datasets/user/name@v1/packed", settings)
    try:
        hub.left = ["503 Service Unavailable"]
        assert root.read("packed.json", 10) == b"{}"
        with pytest.raises(Missing):
            root.read("train/index.json", 10)
        with pytest.raises(UserError, match="can be read, but not written to"):
            root.upload(tmp_path, "packed.json")
        other = remote("hf://datasets/user/private/packed", settings)
        hub.left = ["401 Unauthorized"] * 9
        with pytest.raises(UserError, match="HF_TOKEN"):
            other.read("packed.json", 10)
    finally:
        hub.server.shutdown()
        hub.server.server_close()


def test_what_a_storage_repeats_is_not_shown(bucket: Service, capsys: pytest.CaptureFixture[str]) -> None:
    keys = {"AWS_ACCESS_KEY_ID": "AKIDhidden", "AWS_SECRET_ACCESS_KEY": "s", "AWS_SESSION_TOKEN": "token/hidden+=="}
    with environment(**keys, AWS_ENDPOINT_URL=bucket.url):
        root = opened(patience=0.1)
        root.read("packed.json", 100)

        def repeats(method: str, path: str) -> object:
            sent = bucket.headers[-1]
            return 403, f"{sent['AUTHORIZATION']} {sent['X_AMZ_SECURITY_TOKEN']}"

        bucket.fault = repeats
        with pytest.raises(Unreachable) as error:
            root.read("packed.json", 100)
    printed = capsys.readouterr().out + str(error.value)
    assert "Credential=…/" in printed
    assert "hidden" not in printed


@pytest.mark.full
def test_no_secret_is_left_behind(
    s3: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """In what a run writes and prints, checkpoints included, also if the storage fails and repeats what it was sent."""
    secrets = {"AWS_ACCESS_KEY_ID": "AKIDofthetest", "AWS_SECRET_ACCESS_KEY": "secret/of+the+test"}
    secrets["AWS_SESSION_TOKEN"] = "token/of+the+test"
    put_folder(s3, small_pack(tmp_path / "packed", train=12, test=4), "data", "packed")
    left = 4

    def fault(method: str, path: str) -> object:
        nonlocal left
        left -= "chunk" in path
        sent = s3.headers[-1]
        assert sent["X_AMZ_SECURITY_TOKEN"] == secrets["AWS_SESSION_TOKEN"]
        return (403, f"Expired {sent['AUTHORIZATION']} {sent['X_AMZ_SECURITY_TOKEN']}") if 0 < left < 4 else None

    s3.fault = fault
    overrides = [*PRETRAIN, "experiment=pretrain_vggsound", "trainer.max_epochs=1", "model.warmup_epochs=0"]
    overrides += ["validate_before=false", "trainer.limit_train_batches=1", "trainer.limit_val_batches=1"]
    where = [f"data.root={ROOT}", f"data.cache_dir={tmp_path}/cache", "data.num_workers=0"]
    with environment(**secrets, AWS_ENDPOINT_URL=s3.url):
        run_dir = finished(tmp_path / "logs", "x", *overrides, *where)
        s3.fault = lambda method, path: None
        with pytest.raises(SystemExit):
            call(monkeypatch, "train", *overrides, f"data.root=s3://{secrets['AWS_SECRET_ACCESS_KEY']}@bucket/folder")
        with pytest.raises(SystemExit):
            call(monkeypatch, "train", *overrides, f"data.storage.token={secrets['AWS_SESSION_TOKEN']}")
    printed = "".join(capfd.readouterr())
    assert f"storage {ROOT} does not answer (403 Expired" in printed
    written = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert {run_dir / name for name in ("config.yaml", "overrides.yaml", "provenance.json")} < set(written)
    assert any(path.suffix == ".ckpt" for path in written)
    for secret in secrets.values():
        assert secret not in printed
        assert [path for path, content in written.items() if secret.encode() in content] == []
