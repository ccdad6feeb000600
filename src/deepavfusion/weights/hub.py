"""Networks on the Hugging Face Hub: hf://owner/name[@revision]. Two files are read there, safetensors and JSON.

They are kept in the cache of huggingface_hub, by commit, and are read there without asking again. A revision that may
change (a branch, a tag, or none) is resolved to its commit first, which is said and recorded.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepavfusion.utils.addresses import scrubbed
from deepavfusion.utils.console import say_once
from deepavfusion.utils.errors import DISK_FULL, TemporaryError, UserError
from deepavfusion.utils.files import no_file
from deepavfusion.weights.guard import COMMIT, Refused, guarded

MODEL, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
PICKLES = (".ckpt", ".pth", ".pt", ".bin", ".pkl", ".pickle")
MAX_CONFIG = 2**22  # bytes; that of 600 classes takes 30 000
MAX_MODEL = 2**34  # bytes; the published network takes 1.3 GB
SCHEME = re.compile(r"hf:/{1,2}(?=[^/]|$)")  # a `Path` has one slash of two
NAME = re.compile(r"[A-Za-z0-9](?:[\w.-]{0,94}\w)?", re.ASCII)
REVISION = re.compile(r"\w(?:[\w./-]{0,98}\w)?", re.ASCII)
EXPECTED = "hf://owner/name or hf://owner/name@revision, of a model"
SECONDS = 10.0  # until the head of an answer
INSTALL = "pip install huggingface_hub"


@dataclass(frozen=True)
class Address:
    """A model on the Hub.

    Args:
        repo: owner/name.
        revision: a branch, tag or commit; None: the default branch.
    """

    repo: str
    revision: str | None = None

    @property
    def pinned(self) -> bool:
        """Whether its revision is a commit, which cannot change."""
        return bool(self.revision and COMMIT.fullmatch(self.revision))

    def __str__(self) -> str:
        return f"hf://{self.repo}{f'@{self.revision}' if self.revision else ''}"


def address_of(source: object) -> Address | None:
    """The address that a source of weights is; None: it is a path.

    Raises:
        UserError: it begins like one, and is none.
    """
    text = str(source)
    if not (scheme := SCHEME.match(text)):
        return None
    repo, at, revision = text[scheme.end() :].partition("@")
    names = repo.split("/")
    fits = len(names) == 2 and all(NAME.fullmatch(name) and ".." not in name and "--" not in name for name in names)
    if not fits or names[1].endswith(".git") or names[0] in ("datasets", "spaces", "buckets"):
        raise UserError(f"{text!s:.200} is no address on the Hugging Face Hub: expected {EXPECTED}.")
    if at and (not REVISION.fullmatch(revision) or ".." in revision or "//" in revision):
        raise UserError(f"{text!s:.200} names no revision: expected a branch, a tag or a commit behind the @.")
    return Address(repo, revision or None)


def pinned(address: Address) -> Address:
    """The address with the commit that its revision is at now, or was when the Hub was last reached.

    Raises:
        UserError: there is none, or it may not be read, or huggingface_hub is not installed.
        TemporaryError: the Hub cannot be reached, and nothing is in the cache.
    """
    if address.pinned:
        return address
    hub = library(str(address))
    with asked(str(address)), guarded() as guard:
        api = hub.HfApi(endpoint=endpoint())
        found = api.resolve_revision(address.repo, revision=address.revision, cache_dir=cache())
    if not COMMIT.fullmatch(str(found.resolved)):  # also where it comes from a file of the cache
        raise UserError(f"{address} is said to be at commit {found.resolved!a:.60}: expected 40 hexadecimal digits.")
    when = "" if guard.heard else f", as far as the cache knows: {place()} does not answer"
    say_once(f"{address} is at commit {found.resolved}{when}")
    return Address(address.repo, found.resolved)


def local(source: str | Path) -> Path:
    """The path of a source of weights; of an address, the folder in the cache, into which it is fetched if need be.

    Raises:
        UserError: see `pinned`; or it has no weights that are read, or they are too large, or not those announced.
    """
    if (address := address_of(source)) is None:
        return Path(source)
    address = pinned(address)
    return cached(address) or _fetched(address)


def source_of(source: str | Path) -> str | Path:
    """What is read, for records: an address with its commit, see `pinned`, or the path as it is."""
    address = address_of(source)
    return source if address is None else str(pinned(address))


def is_folder(source: str | Path) -> bool:
    """Whether a source of weights is a folder or an address of one, not a file."""
    return address_of(source) is not None or os.path.isdir(source)


def missing(source: str | Path) -> str | None:
    """What is wrong with the path of a checkpoint, see `no_file`; None: nothing, or reading will tell."""
    return None if is_folder(source) else no_file(source)


def cached(address: Address) -> Path | None:
    """The folder of a commit in the cache; None: it is not there, or not whole."""
    hub = library(str(address))
    found = [
        hub.try_to_load_from_cache(address.repo, name, cache_dir=cache(), revision=address.revision)
        for name in (CONFIG, MODEL)
    ]
    return Path(found[1]).parent if all(isinstance(path, str) for path in found) else None


def _fetched(address: Address) -> Path:
    hub = library(str(address))
    with asked(str(address)), guarded():
        info = hub.HfApi(endpoint=endpoint()).model_info(
            address.repo, revision=address.revision, files_metadata=True, timeout=SECONDS
        )
        listed = {file.rfilename: (file.size, file.lfs and file.lfs.sha256, file.blob_id) for file in info.siblings}
        if info.sha != address.revision:
            raise Refused(f"answers for commit {info.sha!a:.60}")
    for name, most in ((CONFIG, MAX_CONFIG), (MODEL, MAX_MODEL)):
        if name not in listed:
            raise UserError(
                f"{address} has no {name}{_instead(listed)}: give another model, or write it with convert.py."
            )
        size = listed[name][0]
        if type(size) is not int or not 0 < size <= most:
            raise UserError(
                f"{address} has a {name} of {size!a:.30} bytes, expected at most {most}: it was not fetched."
            )
    sizes = [listed[name][0] for name in (CONFIG, MODEL)]
    _check_room(address, sum(sizes))
    say_once(f"fetching {address}: {CONFIG} and {MODEL}, {sum(sizes) / 1e6:.1f} MB", "dim")
    paths = [_file(hub, address, name, *listed[name]) for name in (CONFIG, MODEL)]
    return paths[1].parent


def _instead(listed: dict[str, Any]) -> str:
    pickles = sorted(str(name) for name in listed if str(name).endswith(PICKLES))
    return f", only {pickles[0]:.80}, a pickle, which is not read from there" if pickles else ""


def _check_room(address: Address, size: int) -> None:
    place = cache()
    while not place.exists():
        place = place.parent
    if (free := shutil.disk_usage(place).free) < size:
        raise UserError(
            f"{address} has {size / 1e6:.0f} MB, and the disk of {cache()} {free / 1e6:.0f} MB free: free some space, "
            "or set HF_HOME to another folder."
        )


def _file(hub: Any, address: Address, name: str, size: int, sha256: str | None, sha1: str | None) -> Path:
    """A file of a commit, fetched into the cache, and compared with its size and hash there."""
    with asked(f"{address}, {name},"), guarded(size):
        path = Path(
            hub.hf_hub_download(
                *(address.repo, name),
                revision=address.revision,
                endpoint=endpoint(),
                cache_dir=cache(),
                etag_timeout=SECONDS,
            )
        )
        place = path.resolve()
        if path.parent.name != address.revision:
            raise Refused("answers for another commit")
        if cache().resolve() not in place.parents:
            raise Refused("is kept outside of the cache")
        head = b"" if sha256 else f"blob {size}\0".encode()  # as git hashes what is no large file
        digest = hashlib.new("sha256" if sha256 else "sha1", head)
        with place.open("rb") as file:
            while part := file.read(2**22):
                digest.update(part)
        if place.stat().st_size != size or digest.hexdigest() != (sha256 or sha1):
            for each in (path, place):
                each.unlink(missing_ok=True)
            raise Refused("is not what the Hub announced, by its size and hash")
    return path


@contextmanager
def asked(what: str) -> Iterator[None]:
    """Turn every error of a request into a sentence: an answer of no Hub may raise nearly anything.

    Args:
        what: the address, and what is done there.
    """
    from huggingface_hub.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()  # what it warns of, such as another attempt, is said in the end
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise refusal(what, error) from error
    finally:
        logging.set_verbosity(before)


def refusal(what: str, error: BaseException) -> UserError:
    """One sentence for a request that failed, without secrets."""
    from huggingface_hub import errors, get_token

    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    found = next((each for each in chain if isinstance(each, Refused)), None)
    if found is not None:
        kind = TemporaryError if found.later else UserError
        again = "try again later" if found.later else "check the address and HF_ENDPOINT"
        return kind(f"{what} cannot be used, since {place()} {found}: {again}.")
    words = scrubbed(str(error), [get_token()])
    status = next(filter(None, map(_status, chain)), None)
    if any(isinstance(each, errors.OfflineModeIsEnabled) for each in chain):
        return UserError(f"{what} is not in the cache ({cache()}), and HF_HUB_OFFLINE is set: unset it once.")
    if any(isinstance(each, errors.GatedRepoError) for each in chain):
        return UserError(f"{what} has conditions that you have not accepted, see {place()}: accept them on its page.")
    if any(isinstance(each, errors.RevisionNotFoundError) for each in chain):
        return UserError(f"{what} has no such revision at {place()}: give one of its branches, tags or commits.")
    if status in (401, 403, 404):
        return UserError(
            f"{what} does not exist at {place()}, or is not open to you ({status}): check the address, and give a "
            "token that may do this (HF_TOKEN, or hf auth login)."
        )
    code = next((each.errno for each in chain if isinstance(each, OSError) and each.errno), None)
    if code in DISK_FULL:
        return UserError(f"{what} cannot be kept in {cache()} ({os.strerror(code)}): free some space, or set HF_HOME.")
    if status is None and any(isinstance(each, PermissionError) for each in chain):
        return UserError(f"{what} cannot be kept in {cache()} ({os.strerror(code or 13)}): set HF_HOME to your folder.")
    if status is not None and status < 500:
        return UserError(f"{what} was refused by {place()} ({status}: {words}): check the address.")
    if status is not None or any(isinstance(each, errors.HTTPError) for each in chain):
        return TemporaryError(f"{what} cannot be used, since {place()} does not answer ({words}): try again later.")
    return UserError(f"{what} cannot be used, since {place()} answers as no Hub does ({words}): check HF_ENDPOINT.")


def _status(error: BaseException) -> int | None:
    """The status of the answer that an error is about."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def library(what: str) -> Any:
    """huggingface_hub.

    Raises:
        UserError: it is not installed.
    """
    try:
        import huggingface_hub
    except ModuleNotFoundError:
        raise UserError(f"{what} needs a package that is not installed: {INSTALL}.") from None
    return huggingface_hub


def endpoint() -> str:
    """The Hub that is asked: HF_ENDPOINT, or the public one."""
    from huggingface_hub import constants

    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def place() -> str:
    """The Hub, for messages."""
    return scrubbed(endpoint(), [])


def cache() -> Path:
    """Where huggingface_hub keeps files."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)
