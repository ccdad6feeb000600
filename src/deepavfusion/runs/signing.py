"""Marks what this user's own runs recorded, so that it can be told from the records of others."""

from __future__ import annotations

import hmac
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from deepavfusion.utils.files import regular_file

LENGTH = 32  # bytes of the key


def signed(texts: Sequence[str], *place: str) -> str | None:
    """A code for these texts, at this place, that only someone with the user's key can make; None without a key.

    The key is made when it is first needed and never leaves the user's state folder, so a record from elsewhere, or
    one that was changed, has no valid code. Where the home folder is another one, or read-only, there is none.
    """
    key = _key()
    return None if key is None else hmac.new(key, json.dumps([*place, *texts]).encode(), "sha256").hexdigest()


def is_signed(code: object, texts: Sequence[str], *place: str) -> bool:
    """Whether `signed` gave this code to these texts, at this place, to this user."""
    expected = signed(texts, *place)
    return expected is not None and isinstance(code, str) and hmac.compare_digest(code.encode(), expected.encode())


def _key() -> bytes | None:
    folder = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    path = Path(folder) / "deepavfusion" / "key"
    if not path.is_absolute():  # a user without a home
        return None
    with suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(FileExistsError):  # made before, or by another process at the same time
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                os.write(handle, os.urandom(LENGTH))
            except OSError:  # a full disk
                path.unlink()
                raise
            finally:
                os.close(handle)
    try:
        key = path.read_bytes() if regular_file(path).st_size == LENGTH else b""
    except OSError:
        return None
    return key if len(key) == LENGTH else None
