"""Errors that a user can fix; every other exception is a bug and keeps its traceback."""

from __future__ import annotations


class UserError(Exception):
    """One sentence: what is wrong, where, what was expected, and the command or key that fixes it.

    The entry points print it and exit with status 2. One string, so that it can be pickled in a DataLoader worker.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class DecodeError(Exception):
    """A clip that cannot be used; datasets count and report these, and the run continues.

    Args:
        path: the media file.
        reason: one of `DecodeError.REASONS`, as used in reports and tables.
        detail: one clause of explanation.
        stream: "video" or "audio" if only that one is affected, else None.
    """

    REASONS = ("missing", "no_video", "no_audio", "too_short", "truncated", "undecodable", "bad_mask")

    def __init__(self, path: str, reason: str, detail: str, stream: str | None = None) -> None:
        assert reason in self.REASONS, reason
        super().__init__(path, reason, detail, stream)
        self.path, self.reason, self.detail, self.stream = path, reason, detail, stream

    def __str__(self) -> str:
        return f"{self.path}: {self.reason.replace('_', ' ')}: {self.detail}"
