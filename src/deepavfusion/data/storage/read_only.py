"""Storages that are read with their own libraries, and not written: Google Cloud Storage and the Hugging Face Hub."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from deepavfusion.data.storage.faults import Answer
from deepavfusion.data.storage.settings import StorageSettings
from deepavfusion.data.storage.transfer import Transfer
from deepavfusion.utils.addresses import scrubbed
from deepavfusion.utils.errors import DISK_FULL, UserError

BLOCK = 2**20  # bytes
MOST = 2**30  # bytes of an object that is only probed
LATER = 408, 425, 429
GOOGLE = (
    "or read the bucket through its S3 interface: data.root=s3://<bucket>/<folder> "
    "data.storage.endpoint_url=https://storage.googleapis.com, with HMAC keys as AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY"
)


def read_only(root: str) -> UserError:
    """Nothing can be stored there."""
    return UserError(
        f"{root} can be read, but not written to; expected a folder or s3://<bucket>/<folder>: pack into a folder and "
        "upload it with the tools of the storage."
    )


class ReadOnly:
    """The root of such a storage."""

    def __init__(self, root: str, settings: StorageSettings) -> None:
        self.root, self.settings, self.endpoint = root, settings, settings.endpoint_url or ""

    def fetch(self, name: str, transfer: Transfer) -> None:
        raise NotImplementedError

    def probe(self, name: str) -> None:
        self.fetch(name, Transfer(io.BytesIO(), MOST, exact=False, progress=lambda done: None))

    def put(self, name: str, path: Path) -> None:
        self._refuse()

    def write(self, name: str, content: bytes, new: bool = False) -> None:
        self._refuse()

    def sizes(self, prefix: str) -> Iterator[tuple[str, int]]:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise read_only(self.root)


class Google(ReadOnly):
    """gs://bucket/folder, with litdata's downloader and the credentials that Google's library finds."""

    def __init__(self, root: str, settings: StorageSettings) -> None:
        from litdata.streaming.downloader import GCPDownloader  # here: it takes a second

        super().__init__(root, settings)
        if settings.anonymous:
            raise UserError(f"data.storage.anonymous is not for {root}: leave it out, {GOOGLE}; public ones need none.")
        options = {"client_options": {"api_endpoint": settings.endpoint_url}} if settings.endpoint_url else {}
        try:
            self.downloader = GCPDownloader(root, tempfile.gettempdir(), [], options)
        except ModuleNotFoundError:
            raise UserError(
                f"{root} needs a package that is not installed: pip install google-cloud-storage, {GOOGLE}."
            ) from None

    def fetch(self, name: str, transfer: Transfer) -> None:
        transfer.restart()
        self.downloader.download_fileobj(f"{self.root}/{name}", _Sink(transfer))

    @classmethod
    def explain(cls, error: BaseException) -> Answer | None:
        kind, words = type(error), scrubbed(str(error), [])
        status = getattr(error, "code", None)
        if kind.__module__.startswith("google.api_core") and isinstance(status, int):
            return _of_status(int(status), words, "check the address and GOOGLE_APPLICATION_CREDENTIALS")
        if kind.__module__.startswith("google.auth") and kind.__name__ != "TransportError":
            return Answer("refused", words, f"set GOOGLE_APPLICATION_CREDENTIALS=<file of a key>, {GOOGLE}")
        if kind.__module__.partition(".")[0] in ("google", "requests", "urllib3"):
            return Answer("fault", words)
        return None


class HuggingFace(ReadOnly):
    """hf://datasets/user/name/folder, also name@revision.

    With the library that litdata uses, but not with its downloader, which takes a connection that fails for success.
    """

    def __init__(self, root: str, settings: StorageSettings) -> None:
        try:
            from huggingface_hub.utils import disable_progress_bars
        except ModuleNotFoundError:
            raise UserError(f"{root} needs a package that is not installed: pip install huggingface_hub.") from None
        super().__init__(root, settings)
        if not root.startswith("hf://datasets/") or len(root.split("/")) < 5:
            raise UserError(
                f"{root} is no dataset of the Hub; expected hf://datasets/<user>/<name>/<folder>: set it so."
            )
        disable_progress_bars()

    def fetch(self, name: str, transfer: Transfer) -> None:
        from huggingface_hub import hf_hub_download
        from litdata.utilities.hf_fs import parse_hf_url

        repository, revision, path = parse_hf_url(f"{self.root}/{name}")
        with tempfile.TemporaryDirectory() as folder:
            try:
                found = hf_hub_download(
                    repository,
                    path,
                    cache_dir=folder,
                    repo_type="dataset",
                    revision=revision,
                    endpoint=self.settings.endpoint_url,
                    token=False if self.settings.anonymous else None,
                )
            except OSError as error:
                if error.errno not in DISK_FULL:
                    raise
                raise UserError(
                    f"{self.root}/{name} is downloaded into {folder}, whose disk is full: free space there, or set "
                    "TMPDIR to another folder."
                ) from error
            transfer.restart()
            with open(found, "rb") as file:
                while block := file.read(BLOCK):
                    transfer.take(block)

    @classmethod
    def explain(cls, error: BaseException) -> Answer | None:
        from huggingface_hub import errors

        words, remedy = scrubbed(str(error), []), "check the address, and set HF_TOKEN if it is not public"
        if isinstance(error, errors.RemoteEntryNotFoundError):
            return Answer("missing", words, remedy)
        if isinstance(error, errors.LocalEntryNotFoundError):  # what it looked for when nothing answered
            return Answer("fault", words)
        if isinstance(error, errors.OfflineModeIsEnabled):
            return Answer("refused", words, "unset HF_HUB_OFFLINE")
        if isinstance(error, errors.HfHubHTTPError):
            status = error.response.status_code if error.response is not None else 500
            return Answer("refused", words, remedy) if status == 404 else _of_status(status, words, remedy)
        if isinstance(error, (errors.HTTPError, errors.FileMetadataError)):  # the former is of its HTTP library
            return Answer("fault", words)
        return None


def _of_status(status: int, words: str, remedy: str) -> Answer:
    if status == 404:
        return Answer("missing", words, remedy)
    if status == 403:
        return Answer("denied", words, remedy)
    return Answer("refused" if 400 <= status < 500 and status not in LATER else "fault", words, remedy)


class _Sink:
    """The open file that a library writes a download to; some begin anew in it after a fault."""

    def __init__(self, transfer: Transfer) -> None:
        self.transfer = transfer

    def write(self, block: bytes) -> int:
        self.transfer.take(bytes(block))
        return len(block)

    def seek(self, offset: int, whence: int = 0) -> int:
        if (offset, whence) == (0, 0):
            self.transfer.restart()
        return self.transfer.done

    def tell(self) -> int:
        return self.transfer.done

    def flush(self) -> None:
        pass
