"""An S3 service on 127.0.0.1 (moto) whose faults a test chooses."""

from __future__ import annotations

import gc
import os
import ssl
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import boto3
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server

KEYS = {"AWS_ACCESS_KEY_ID": "testing-key-id", "AWS_SECRET_ACCESS_KEY": "testing-secret-of-the-storage"}
ERROR = "<?xml version='1.0'?><Error><Code>{}</Code><Message>{}</Message></Error>"

Fault = Callable[[str, str], object]
"""Of a request: method and path -> None: it is answered; (status, code): that error; "cut": half of the body; "drop":
the connection is closed; seconds: it is answered after them."""


class Service:
    """A running service. `fault` is asked for every request; `asked` are the requests, as "GET /bucket/key"."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.moto = DomainDispatcherApplication(create_backend_app)
        self.fault: Fault = lambda method, path: None
        self.asked: list[str] = []
        self.headers: list[dict[str, str]] = []  # of the requests
        self.tls, self.port = tls, 0
        self.start()
        self.client = boto3.session.Session().client(  # to look at what is stored
            "s3",
            endpoint_url=self.url,
            region_name="us-east-1",
            verify=False,
            aws_access_key_id="a",
            aws_secret_access_key="b",
        )

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Listen; after `stop` on the same port, with the same content."""
        self.server = make_server(
            "127.0.0.1", self.port, self._answer, threaded=True, request_handler=_Quiet, ssl_context=self.tls
        )
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self) -> None:
        """Refuse connections."""
        gc.collect()  # decoding processes that were forked meanwhile have the socket, too, until their loader goes
        self.server.shutdown()
        self.server.server_close()

    def reset(self) -> None:
        self.fault = lambda method, path: None
        self.asked.clear()
        self.headers.clear()

    def empty(self) -> None:
        """Without faults, and without a bucket."""
        self.reset()
        urllib.request.urlopen(urllib.request.Request(f"{self.url}/moto-api/reset", method="POST")).close()

    def _answer(self, environ: dict[str, Any], start_response: Any) -> Any:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        self.asked.append(f"{method} {path}")
        self.headers.append({key[5:]: str(value) for key, value in environ.items() if key.startswith("HTTP_")})
        fault = self.fault(method, path)
        if isinstance(fault, (int, float)):
            time.sleep(fault)
        elif fault == "drop":
            environ["werkzeug.socket"].shutdown(2)
            return []
        elif isinstance(fault, tuple):
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            body = ERROR.format(fault[1], f"injected for {path}").encode()
            start_response(f"{fault[0]} Injected", [("Content-Type", "text/xml"), ("Content-Length", str(len(body)))])
            return [] if method == "HEAD" else [body]
        body = self.moto(environ, start_response)
        if fault == "cut":
            whole = b"".join(body)
            return _cut(whole, environ["werkzeug.socket"])
        return body


def _cut(body: bytes, socket: Any) -> Iterator[bytes]:
    yield body[: len(body) // 2]
    socket.shutdown(2)


class _Quiet(MotoRequestHandler):
    def log(self, *_: object) -> None:
        pass


@contextmanager
def environment(**values: str) -> Iterator[None]:
    """Only these variables of AWS, and no files of this user."""
    before = dict(os.environ)
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        del os.environ[name]
    os.environ |= {"AWS_EC2_METADATA_DISABLED": "true", "NO_PROXY": "127.0.0.1", **values}
    os.environ |= {
        name: os.environ.get(name, os.devnull) for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE")
    }
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def put_folder(service: Service, folder: Path, bucket: str, prefix: str) -> None:
    """Upload the files below a folder, as `aws s3 cp --recursive` does."""
    s3 = service.client
    if bucket not in [each["Name"] for each in s3.list_buckets()["Buckets"]]:
        s3.create_bucket(Bucket=bucket)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            s3.upload_file(str(path), bucket, f"{prefix}/{path.relative_to(folder).as_posix()}")


def stored(service: Service, bucket: str, prefix: str = "") -> dict[str, bytes]:
    """The objects of a bucket below a prefix."""
    s3 = service.client
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    keys = [found["Key"] for page in pages for found in page.get("Contents", ())]
    return {key[len(prefix) :].lstrip("/"): s3.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys}


def own_certificate(folder: Path) -> ssl.SSLContext:
    """A server's context with a certificate that it signed itself; certificate.pem in the folder is what to trust."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "storage")])
    now = datetime.now(timezone.utc)
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (folder / "certificate.pem").write_bytes(signed.public_bytes(pem))
    (folder / "key.pem").write_bytes(key.private_bytes(pem, *plain))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "certificate.pem", folder / "key.pem")
    return context
