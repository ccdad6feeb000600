"""Bounds what a Hub may answer, whoever it is: what huggingface_hub would believe is checked before it sees it."""

from __future__ import annotations

import importlib
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urljoin, urlsplit

ANSWER = 2**24  # bytes of an answer that is not a file
TIMEOUTS = {"connect": 10.0, "read": 30.0, "write": 60.0, "pool": 10.0}  # s, where the library sets none
PATIENCE = 60.0  # s without an answer until nothing is asked again
MOST_REFUSALS = 20  # the library asks again without end after some
GRACE, SLOWEST = 30.0, 10_000  # an answer takes at most so many s, and one more for so many bytes
COMMIT = re.compile(r"[0-9a-f]{40}")
ETAG = re.compile(r"[0-9A-Za-z]{1,128}")  # SHA-1 or SHA-256; the library names files by it
XET = "x-xet-hash"  # would let another program fetch the file, without these bounds


class Refused(Exception):
    """An answer that no Hub gives, or only one that wants something else; the message is a clause.

    Args:
        words: the clause.
        later: whether the same request may be answered later.
    """

    def __init__(self, words: str, later: bool = False) -> None:
        super().__init__(words)
        self.later = later


@contextmanager
def guarded(most: int = ANSWER) -> Iterator[Guard]:
    """Every request that huggingface_hub makes in this block is bounded in size and time, see `Guard`.

    Args:
        most: bytes of an answer.
    """
    import huggingface_hub
    from huggingface_hub.utils import _http

    before = _http._GLOBAL_CLIENT_FACTORY  # perhaps the user's, for a proxy; there is no public way to read it
    guard = Guard(most)

    def factory() -> Any:
        client = before()
        hooks = client.event_hooks
        client.event_hooks = {
            "request": [*hooks.get("request", []), guard.request],
            "response": [*hooks.get("response", []), guard.response],
        }
        return client

    huggingface_hub.set_client_factory(factory)
    try:
        yield guard
    finally:
        huggingface_hub.set_client_factory(before)


class Guard:
    """The hooks of a client: called before a request is sent, and when the head of its answer is there.

    Attributes:
        heard: whether there was an answer.
    """

    def __init__(self, most: int) -> None:
        from huggingface_hub.errors import HTTPError

        http: Any = importlib.import_module(HTTPError.__module__.partition(".")[0])  # httpx, or its successor
        self.most, self.heard, self.answered = most, False, time.monotonic()
        self.refusals = 0  # in a row
        self.stream: Any = type("Bounded", (_Bounded, http.SyncByteStream), {})

    def request(self, request: Any) -> None:
        if time.monotonic() - self.answered > PATIENCE:
            raise Refused(f"has not answered for {PATIENCE:g} s", later=True)
        request.headers["Accept-Encoding"] = "identity"  # the size of what is packed would not be known
        limits = request.extensions.get("timeout", {})
        request.extensions["timeout"] = {key: limits.get(key) or limit for key, limit in TIMEOUTS.items()}

    def response(self, response: Any) -> None:
        headers, status = response.headers, response.status_code
        if status == 429:
            wait = headers.get("Retry-After", "")
            raise Refused(f"has had too many requests (429{f', again in {wait:.10} s' if wait else ''})", later=True)
        self.refusals = self.refusals + 1 if status >= 400 else 0
        if self.refusals > MOST_REFUSALS:
            raise Refused(f"has refused {self.refusals} requests in a row ({status})", later=True)
        if status < 500:
            self.heard, self.answered = True, time.monotonic()
        if headers.get("Content-Encoding", "identity").lower() != "identity":
            raise Refused("packs its answer, though it was asked not to")
        if (commit := headers.get("X-Repo-Commit")) is not None and not COMMIT.fullmatch(commit):
            raise Refused(f"names the commit {commit!a:.60}, expected 40 hexadecimal digits")
        if response.request.method == "HEAD":
            for etag in filter(None, (headers.get(name) for name in ("ETag", "X-Linked-Etag"))):
                if not ETAG.fullmatch(etag.removeprefix("W/").strip('"')):
                    raise Refused(f"names the file {etag!a:.60}, expected its hash")
        self._check_redirect(str(response.request.url), headers.get("Location"))
        size = headers.get("Content-Length", "0")
        if not size.isascii() or not size.isdecimal() or len(size) > 18 or int(size) > self.most:
            raise Refused(f"sends {size!a:.30} bytes, expected at most {self.most}")
        if XET in headers:
            del headers[XET]
        response.stream = self.stream(response.stream, self)

    def _check_redirect(self, url: str, target: str | None) -> None:
        if target is None:
            return
        asked, led = urlsplit(url), urlsplit(urljoin(url, target))
        if led.scheme not in ("https", asked.scheme) or not led.hostname:
            raise Refused(f"leads to {led.scheme}://{led.hostname or ''!s:.60}, expected https")


class _Bounded:
    """The body of an answer."""

    def __init__(self, stream: Any, guard: Guard) -> None:
        self.inner, self.guard = stream, guard

    def __iter__(self) -> Iterator[bytes]:
        began, size = time.monotonic(), 0
        for part in self.inner:
            size += len(part)
            if size > self.guard.most:
                raise Refused(f"sends more than {self.guard.most} bytes")
            self.guard.answered = time.monotonic()
            if self.guard.answered - began > GRACE + size / SLOWEST:
                raise Refused(f"sends {size / (self.guard.answered - began):.0f} bytes a second", later=True)
            yield part

    def close(self) -> None:
        self.inner.close()
