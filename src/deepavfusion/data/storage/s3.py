"""Objects of an S3 service: AWS, or another with its interface."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

from deepavfusion.data.storage.faults import Answer, Exists
from deepavfusion.data.storage.settings import StorageSettings
from deepavfusion.data.storage.transfer import Transfer
from deepavfusion.utils.addresses import SIGNED, scrubbed
from deepavfusion.utils.errors import UserError
from deepavfusion.utils.files import no_file

CONNECT_SECONDS, READ_SECONDS = 10.0, 20.0  # without an answer, until a connection counts as broken
BLOCK = 2**15  # bytes; a connection that gives less in `READ_SECONDS` is broken
KEYS = "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and, if there is one, AWS_SESSION_TOKEN, or AWS_PROFILE"
SETTINGS = (
    "check ~/.aws/config and ~/.aws/credentials, data.storage.endpoint_url (http(s)://<host>:<port>) and "
    f"data.storage.region, or set {KEYS}"
)
ACCESS = f"set {KEYS}, or data.storage.anonymous=true for a public bucket"
REMEDIES = {  # of codes of S3
    "NoSuchBucket": "check the name of the bucket, data.storage.endpoint_url and data.storage.region",
    "InvalidAccessKeyId": f"set the right {KEYS}",
    "SignatureDoesNotMatch": f"set the right {KEYS}",
    "ExpiredToken": f"get new credentials and set {KEYS}",
    "InvalidToken": f"get new credentials and set {KEYS}",
    "AccessDenied": f"ask for the right to read and list it (to pack, also to write), or set {KEYS} of one who has it",
    "RequestTimeTooSkewed": "set the clock of this machine",
}
WITHOUT = "NoSuchKey", "404"
CHANGED = 412, 416  # the object is not the one whose beginning was read
LATER = 408, 425, 429, *CHANGED
PASSING = "RequestTimeout", "SlowDown", "OperationAborted", "IncompleteBody", "InternalError"  # whatever their status
ENDPOINTS = "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"


class _SettingsError(Exception):
    """Of what the settings, the environment or the files of AWS say."""


@contextmanager
def _settings_named() -> Iterator[None]:
    try:
        yield
    except RecursionError:
        raise
    except (ValueError, TypeError, LookupError, AttributeError, OSError, RuntimeError) as error:
        raise _SettingsError(str(error)) from error


class S3:
    """A bucket, or a folder in it; the client belongs to one process.

    Args:
        root: s3://bucket/folder.
        settings: of the storage.
    """

    session: ClassVar[Any] = None  # the last one of this process

    @_settings_named()
    def __init__(self, root: str, settings: StorageSettings) -> None:
        from botocore import UNSIGNED  # here: it takes a while, and nothing else needs it
        from botocore.config import Config

        for name in ENDPOINTS:
            check_endpoint(os.environ.get(name))
        self.bucket, self.prefix = parts(root)
        session = S3.session = _session()
        shared = Config(
            connect_timeout=CONNECT_SECONDS,
            read_timeout=READ_SECONDS,
            max_pool_connections=64,  # for the threads of verifying and packing: more would be made for each request
            retries={"total_max_attempts": 1},  # `Remote` asks again
            # Checksums that AWS introduced in 2025 are unknown to other services; ours are in packed.json.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            **({"signature_version": UNSIGNED} if settings.anonymous else {}),
        )
        bundle = settings.ca_bundle or session.get_config_variable("ca_bundle")
        given = {
            "endpoint_url": settings.endpoint_url,
            "region_name": settings.region or session.get_config_variable("region") or "us-east-1",
            "verify": _checked_bundle(bundle) if bundle else None,
        }
        self.client: Any = session.create_client("s3", config=shared, **given)
        check_endpoint(self.client.meta.endpoint_url)
        if not _is_aws(self.client.meta.endpoint_url) and not _style(session):
            # Most other services, and those on a numeric address, know buckets only in the path.
            self.client = session.create_client(
                "s3", config=shared.merge(Config(s3={"addressing_style": "path"})), **given
            )
        self.client.meta.events.register("before-sign.s3", _renew)
        self.client.meta.events.register("after-call.s3", _refuse_page)

    # ---- requests

    def fetch(self, name: str, transfer: Transfer) -> None:
        """Give the content of an object to `transfer`, from where it is."""
        from botocore.exceptions import ClientError

        rest = {"Range": f"bytes={transfer.done}-"} if transfer.done else {}
        if transfer.done and transfer.version:
            rest["IfMatch"] = transfer.version
        try:
            answer = self.client.get_object(Bucket=self.bucket, Key=self._key(name), **rest)
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] in CHANGED:
                transfer.restart()
            raise
        with closing(answer["Body"]) as body:
            if answer["ResponseMetadata"]["HTTPStatusCode"] != 206:  # all of it
                transfer.restart(answer.get("ETag", ""))
            for block in body.iter_chunks(BLOCK):
                transfer.take(block)

    def put(self, name: str, path: Path) -> None:
        """Upload a file; large ones in parts, several at a time."""
        from boto3.s3.transfer import TransferConfig, create_transfer_manager

        with create_transfer_manager(self.client, TransferConfig(max_concurrency=4)) as manager:
            manager.upload(str(path), self.bucket, self._key(name)).result()

    def write(self, name: str, content: bytes, new: bool = False) -> None:
        from botocore.exceptions import ClientError

        wanted = {"Bucket": self.bucket, "Key": self._key(name), "Body": content}
        try:
            self.client.put_object(**wanted, **({"IfNoneMatch": "*"} if new else {}))
        except ClientError as error:
            status = error.response["ResponseMetadata"]["HTTPStatusCode"]
            if not new or status not in (400, 412, 501):
                raise
            if status == 412:
                raise Exists from None
            self.client.put_object(**wanted)  # a service that knows no conditions

    def sizes(self, prefix: str) -> Iterator[tuple[str, int]]:
        """Names below the root that begin so, and their bytes."""
        start = len(self._key(""))
        for page in self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self._key(prefix)):
            for found in page.get("Contents", ()):
                yield found["Key"][start:], found["Size"]

    @property
    def endpoint(self) -> str:
        """Of a service other than AWS."""
        url: str = self.client.meta.endpoint_url
        return "" if _is_aws(url) else url

    def probe(self, name: str) -> None:
        """Ask whether an object may be read."""
        self.client.head_object(Bucket=self.bucket, Key=self._key(name))

    def _key(self, name: str) -> str:
        return f"{self.prefix}/{name}" if self.prefix else name

    # ---- what went wrong

    @classmethod
    def explain(cls, error: BaseException) -> Answer | None:
        """What an error of a request, or of making the client, means; None if it is none of the storage."""
        return explain(error, cls.secrets())

    @classmethod
    def secrets(cls) -> list[str | None]:
        """What messages must not have."""
        found = [os.environ.get(name) for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")]
        try:
            credentials = cls.session.get_credentials()
            frozen = credentials.get_frozen_credentials() if credentials else None
            return [*found, *(frozen or ())]
        except Exception:  # a provider that fails has no secrets
            return found


def explain(error: BaseException, secrets: list[str | None]) -> Answer | None:
    """What an error of boto3 means; None if it is a bug, or of a local file."""
    from botocore import exceptions
    from botocore.parsers import ResponseParserError
    from urllib3.exceptions import HTTPError

    words = scrubbed(str(error), secrets)
    if isinstance(error, exceptions.ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        code, said = (str(error.response.get("Error", {}).get(key, "")) for key in ("Code", "Message"))
        name = code if code == str(status) else f"{status} {code}"
        words = scrubbed(f"{name.strip()}: {said}".removesuffix(": "), secrets)
        remedy = REMEDIES.get(code, "check the storage, data.storage.endpoint_url and data.storage.region")
        if code in WITHOUT:
            return Answer("missing", words, remedy)
        if code in ("AccessDenied", "403"):
            return Answer("denied", words, REMEDIES["AccessDenied"])
        heals = not 300 <= status < 500 or status in LATER or code in PASSING
        return Answer("fault" if heals else "refused", words, remedy)
    if isinstance(error, exceptions.NoCredentialsError):
        return Answer("refused", "no credentials were found", ACCESS)
    if isinstance(error, _SettingsError):
        return Answer("refused", words, SETTINGS)
    if "Invalid header value" in words:  # which it repeats
        return Answer("refused", "a key or token has a line break in it", f"set the right {KEYS}")
    if isinstance(error, exceptions.HTTPClientError):  # which it makes of any error while a request is sent
        inner = error.kwargs.get("error")
        error = inner if isinstance(inner, RecursionError) else error
    broken = exceptions.HTTPClientError, exceptions.ConnectionError, exceptions.IncompleteReadError, HTTPError
    if isinstance(error, broken):
        if _untrusted(error):
            remedy = "set data.storage.ca_bundle=<file of its certificates> or AWS_CA_BUNDLE, or the right address"
            return Answer("refused", words, remedy)
        return Answer("fault", words, "check the network, data.storage.endpoint_url and the storage")
    if isinstance(error, exceptions.ParamValidationError):
        return Answer("refused", words, "check the name of the bucket")
    if isinstance(error, exceptions.BotoCoreError):
        return Answer("refused", words, f"check ~/.aws/config and ~/.aws/credentials, or set {KEYS}")
    if isinstance(error, (ResponseParserError, ValueError, KeyError, RecursionError)):  # the last: of redirections
        words = "a redirection without end" if isinstance(error, RecursionError) else words
        return Answer(
            "refused", f"what answers is no S3 service: {words}", "check data.storage.endpoint_url and proxies"
        )
    return None


@_settings_named()
def _renew(request_signer: Any, **_: object) -> None:
    """Renew keys that end now, where an error is known to be one of what gives them."""
    if request_signer._credentials:
        request_signer._credentials.get_frozen_credentials()


def _refuse_page(http_response: Any, **_: object) -> None:
    """What a proxy, the login of a network or the console of a service answers is no object, and stores none."""
    headers = http_response.headers
    if http_response.status_code < 300 and "html" in headers.get("Content-Type", "") and "ETag" not in headers:
        raise ValueError(f"it gives a web page ({headers['Content-Type']})")


def _untrusted(error: BaseException | None) -> bool:
    """Whether the server's certificate, or that it has none, is the reason."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        if isinstance(error, ssl.SSLCertVerificationError):
            return True
        if isinstance(error, ssl.SSLError) and error.reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST"):
            return True
        inner = getattr(error, "kwargs", {}).get("error") or next(
            (each for each in error.args if isinstance(each, BaseException)), None
        )
        error = inner or error.__cause__ or error.__context__
    return False


# ---- addresses and files


def parts(root: str) -> tuple[str, str]:
    """Bucket and folder of an address."""
    address = urlsplit(root)
    bucket, prefix = address.netloc, address.path.strip("/")
    if not bucket or "//" in address.path or address.query or address.fragment:
        raise UserError(f"{root} is no address of a folder in a bucket; expected {address.scheme}://<bucket>/<folder>.")
    return bucket, prefix


def check_endpoint(url: str | None) -> None:
    """Refuse what is no address of a server, or has a password in it."""
    if url is None:
        return
    try:
        address = urlsplit(url)
        fits = address.scheme in ("http", "https") and address.hostname and not (address.query or address.fragment)
        _ = address.port
    except ValueError:
        fits = False
    if "@" in url:
        raise UserError(
            "data.storage.endpoint_url (or AWS_ENDPOINT_URL) has a user or password in it; expected "
            f"http(s)://<host>:<port>: give secrets in the environment, {KEYS}."
        )
    if not fits:
        raise UserError(
            f"data.storage.endpoint_url (or AWS_ENDPOINT_URL) is {SIGNED.sub('?…', url)}; expected "
            "http(s)://<host>:<port>: set it so."
        )


def _session() -> Any:
    """Reads the environment and ~/.aws anew."""
    import botocore.session

    session = botocore.session.get_session()
    session.register_component("data_loader", _descriptions())
    return session


@cache
def _descriptions() -> Any:
    """Of the services, which take most of the time to make a client."""
    from botocore.loaders import create_loader

    return create_loader()


def _style(session: Any) -> str | None:
    """How ~/.aws/config says that buckets are addressed."""
    given = session.get_scoped_config().get("s3")
    return given.get("addressing_style") if isinstance(given, dict) else None


def _is_aws(endpoint: str) -> bool:
    return (urlsplit(endpoint).hostname or "").endswith((".amazonaws.com", ".amazonaws.com.cn"))


def _checked_bundle(path: str) -> str:
    """A file of certificates that can be read."""
    wrong = no_file(path)
    try:
        if not wrong:
            ssl.create_default_context(cafile=path)
    except (ssl.SSLError, OSError):
        wrong = "holds no certificate in PEM"
    if wrong:
        raise UserError(
            f"the file of certificates {path} {wrong}: set data.storage.ca_bundle (or AWS_CA_BUNDLE) to the one of the "
            "storage."
        )
    return path
