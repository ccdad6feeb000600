"""What is full is named, and what a run did not write is left as it is."""

import errno
import os

import pytest
from omegaconf import OmegaConf

from deepavfusion.config.check import check_ranges
from deepavfusion.config.overrides import merged
from deepavfusion.config.records import accepted
from deepavfusion.runs.directory import OVERRIDES, choose_run_dir, link_latest
from deepavfusion.utils import errors
from deepavfusion.utils.errors import UserError, explained
from deepavfusion.utils.files import write_whole


@pytest.fixture
def fresh(monkeypatch):
    monkeypatch.delenv("DEEPAVFUSION_RUN_DIR", raising=False)


@pytest.mark.parametrize("name", ["results.csv", "provenance.json", "checkpoints", OVERRIDES])
def test_a_folder_of_something_else_is_no_run_directory(tmp_path, fresh, name):
    folder = tmp_path / "pretrain" / "runs" / "x"
    folder.mkdir(parents=True)
    (folder / name).write_text("mine")
    with pytest.raises(UserError, match=f"x has a {name}, but no {OVERRIDES} of a run, .*: choose another run.name"):
        choose_run_dir(tmp_path, "pretrain", "x")
    assert [(path.name, path.read_text()) for path in folder.iterdir()] == [(name, "mine")]


def test_what_a_start_leaves_before_its_record_is_no_obstacle(tmp_path, fresh):
    folder = tmp_path / "pretrain" / "runs" / "x"
    (folder / "tensorboard").mkdir(parents=True)
    (folder / ".running").write_text("{}")
    assert choose_run_dir(tmp_path, "pretrain", "x") == folder


def test_latest_of_someone_else_stays(tmp_path, capsys):
    latest = tmp_path / "latest"
    latest.write_text("mine")
    link_latest(tmp_path / "runs" / "x")
    assert latest.read_text() == "mine"
    assert "is no link, and is left as it is" in capsys.readouterr().out


def test_a_full_disk_is_named_with_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(errors, "full_disk", lambda place: f"{tmp_path}, 0 MB free" if tmp_path == place else "")
    monkeypatch.setattr(type(tmp_path), "write_text", _full)
    with pytest.raises(OSError, match=f"full: {tmp_path}") as caught:
        write_whole(tmp_path / "list.csv", "…")
    sentence = explained(caught.value)
    assert sentence == (
        f"{tmp_path}/list.csv could not be written (No space left on device; full: {tmp_path}, 0 MB free): free some "
        "space and run the same command again."
    )


def _full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_where_a_quota_ends_and_no_file_is_named_the_places_are():
    error = OSError(errno.EDQUOT, "Disk quota exceeded")
    assert "; the command writes to /nowhere/out" in str(explained(error, {}, ["/nowhere/out"]))


def test_a_name_that_looks_like_an_interpolation_is_refused_by_its_key():
    cfg = OmegaConf.create({"data": {"root": r"/x/\${HOME}"}})
    with pytest.raises(UserError, match=r"^data.root is '/x/\$\{HOME\}', whose .*: rename the file or folder"):
        check_ranges(cfg)
    check_ranges(OmegaConf.create({"video": r"/x/\${HOME}.mp4"}))


def test_a_group_without_a_choice():
    assert merged(["debug=overfit", "seed=1"], ["debug=null", "model.lr=null"]) == ["seed=1", "model.lr=null"]
    with pytest.raises(UserError, match="callbacks=null"):
        accepted(["seed=1", "callbacks=null"], [], "a record")
