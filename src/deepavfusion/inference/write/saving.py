"""Writes results: figures and lists atomically, and one sentence where the output cannot be written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from deepavfusion.utils.errors import DecodeError, UserError
from deepavfusion.utils.files import whole, write_whole


@contextmanager
def saving(output: Path) -> Iterator[None]:
    """Turn the failures of writing to `output`, and of reading the video meanwhile, into `UserError`s."""
    try:
        yield
    except OSError as error:
        raise UserError(f"output {output} cannot be written: {error.strerror or error}; choose another.") from error
    except DecodeError as error:
        raise UserError(f"video {error.path} stops half-way: {error.detail}; fetch or copy it again.") from error


def write_figure(path: Path, figure: Figure) -> None:
    """Write a figure as PNG."""
    with whole(path) as partial:
        figure.savefig(partial, format="png")


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a list of results as indented JSON."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    # A file name that is not UTF-8 holds lone surrogates: escaped, they are valid JSON.
    write_whole(path, text.encode(errors="backslashreplace").decode())
