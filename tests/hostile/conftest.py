"""What every hostile input must end in."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from deepavfusion.cli import entry

Refused = Callable[..., str]


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Refused:
    """Check that a call refuses its input: one line on stderr with these words, exit status 2, nothing left behind,
    nothing executed. The payloads of all tests write a file into the working directory or import `evil_module`."""
    monkeypatch.chdir(tmp_path)

    def check(call: Callable[[], object], *words: str, length: int = 600) -> str:
        before = sorted(tmp_path.rglob("*"))
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            entry.run(lambda: entry.run_and_report(lambda _: call())({}))
        assert end.value.code == 2
        (text,) = capsys.readouterr().err.splitlines()
        assert [word for word in words if word not in text] == [], text
        assert len(text) < length
        assert sorted(tmp_path.rglob("*")) == before
        assert "evil_module" not in sys.modules
        return text

    return check
