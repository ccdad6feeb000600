"""What a record of someone else may choose: values. Not what is called, read or written, nor whom the network asks."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from deepavfusion.cli.complete import evaluation_overrides, training_overrides
from deepavfusion.config.ranges import RULES
from deepavfusion.config.records import UNREAD, accepted
from deepavfusion.data.lists.text import read_object
from deepavfusion.runs.directory import choose_run_dir, write_record
from deepavfusion.runs.signing import is_signed, signed
from helpers.errors import refusal
from hostile.conftest import Refused

FROM_THE_FIELD = Path(__file__).with_name("target_overrides.yaml")
CALLED = (
    *("model._target_=os.system", "+callbacks.a={_target_: os.system, command: touch x}", "data.index._target_=a.b"),
    *("+callbacks.a={'_target_':os.system}", "trainer.strategy={_target_: a.b}", "trainer.plugins=[{_target_: a.b}]"),
    *("model.net=${oc.create:{_target_:os.system}}", "seed=${oc.env:HOME}", "model.pretrained='${oc.env:HOME}'"),
    *("data=../../../tmp/a", "data=/tmp/a", "+model@callbacks.a=pretrain", "model/net=_backbone", "debug=fast/../fast"),
    *("hydra.searchpath=[file:///tmp]", "+hydra.searchpath=[file:///tmp]", "hydra/launcher=slurm", "compile=tvm"),
    *("data.index={_target_: os.system}", "model.blr=json_str(1)", "seed=choice(1,2)", "seed=1,2"),
)
WRITTEN = (
    *("callbacks.data_report.path=/etc/x", "callbacks.best.dirpath=x", "callbacks.checkpoints.dirpath=/tmp"),
    *("paths.log_dir=/tmp", "paths=default", "run.name=other", "run.name=../other", "logger.tensorboard.save_dir=x"),
    *("trainer.default_root_dir=x", "data.cache_dir=x", "data.verify_report=x", "task=other", "+hydra.run.dir=x"),
)
ASKED = (
    *("data.root=s3://evil/a", "data.root=local:x", "data.root=x", "data.name=x", "model.pretrained=http://evil/a"),
    *("data.storage.endpoint_url=http://evil", "data.storage.region=evil", "data.storage.ca_bundle=x"),
    *("data.storage.anonymous=true", "data.storage.patience_seconds=9", "data.cache_size=1", "data.cache_size=1TB"),
    *("model.image_weights=tcp:1.2.3.4", "data.val_split=http:x", "data.index.annotations=../x.csv"),
)
STARTED = ("trainer.devices=64", "trainer.num_nodes=9", "data.num_workers=1000", "model.metric_workers=999")
MISSING = (
    "~callbacks.step_guard",
    "~data.index.annotations",
    "~callbacks",
    "+data.index.cmd=[touch, x]",
    "",
    "=",
    " seed=1",
)
USUAL = [
    *(
        "experiment=music_separation",
        "model/net=tiny",
        "trainer=gpu",
        "scale=demo",
        "debug=null",
        "trainer.max_epochs=3",
    ),
    *("+trainer.limit_train_batches=3", "model.betas=[0.9,0.95]", "model.pretrained='/a b/c (d).ckpt'", "seed=7"),
    *("data.exclude=[still,silent]", "model.net.fusion_layers=[0,1]", "trainer.max_time=00:12:00:00", "compile=true"),
    *("data.val_split=holdout", "data.index.annotations=vgg.csv", "trainer.precision=bf16-mixed", "data.num_workers=4"),
    *("trainer.gradient_clip_val=null", "test=true", "callbacks.report.num_examples=3", "model.mask='ratio'"),
]


@pytest.mark.parametrize("override", [*CALLED, *WRITTEN, *ASKED, *STARTED, *MISSING])
def test_a_record_of_others_chooses_values_only(override: str) -> None:
    text = refusal(accepted, ["trainer=cpu", override], ["ckpt_path=a.ckpt"], "checkpoint a.ckpt", name="mine")
    assert f"records the override {override!a:.80}; a record that no run of yours wrote here may not choose" in text
    assert accepted([override], [override], "a.ckpt") == [override]  # what is typed is not theirs
    assert accepted([override], [], "a.ckpt", own=True) == [override]


def test_a_record_of_others_keeps_its_values() -> None:
    assert accepted(USUAL, [], "a.ckpt") == USUAL
    assert accepted(["run.name=mine", "run.latest=false"], [], "a.ckpt", name="mine")[0] == "run.name=mine"
    assert accepted(["data.root=/a"], ["data.root=/b"], "a.ckpt") == ["data.root=/a"]  # for `merged`, where /b wins
    assert "data.root=/a" in refusal(accepted, ["data.root=/a"], ["~data.root"], "a.ckpt")


def test_new_keys_that_take_any_text_are_not_a_records_to_choose() -> None:
    keys = [key for key, rule in RULES.items() if rule.holds("any/path") and key not in UNREAD]
    assert len(keys) > 20
    for key in keys:
        assert f"{key}=any/path" in refusal(accepted, [f"{key}=any/path"], [], "a.ckpt")


@pytest.mark.parametrize("wrong", [5, "seed=1", [5], {"a": 1}, None, ["seed=1"] * 2000, ["seed=" + "1" * 5000]])
def test_what_is_no_list_of_overrides_is_refused(wrong: Any) -> None:
    assert "expected a list of overrides, as train.py writes it" in refusal(accepted, wrong, [], "a.ckpt")


# ---------------------------------------------------------------- run directories


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of an interrupted run with settings that a record of others may not have."""
    monkeypatch.setenv("DEEPAVFUSION_RUN_DIR", "")  # set by what follows, and taken back after the test
    folder = tmp_path / "runs" / "mine"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "last.ckpt").write_bytes(b"")
    write_record(folder, "", ["scale=demo", f"paths.log_dir={tmp_path}", "~callbacks.progress"])
    return folder


def test_a_run_of_this_machine_resumes_with_all_its_overrides(run_dir: Path) -> None:
    (run_dir / "tensorboard").symlink_to("/tmp")  # his own business
    expected = [*yaml.safe_load((run_dir / "overrides.yaml").read_text()), f"resume={run_dir}"]
    assert training_overrides([f"resume={run_dir}"]) == (expected, None)
    assert training_overrides(expected) == (expected, None)  # as the other processes of the run do
    assert choose_run_dir(run_dir, "x", resume=str(run_dir)) == run_dir
    moved = run_dir.rename(run_dir.with_name("moved"))
    assert training_overrides([f"resume={moved}"]) == ([*expected[:-1], f"resume={moved}"], None)


@pytest.mark.parametrize("change", ["copied", "edited", "unsigned", "other user", "no home"])
def test_any_other_run_directory_is_anyones(change: str, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, path = run_dir, run_dir / "overrides.yaml"
    if change == "copied":
        place = shutil.copytree(run_dir, run_dir.with_name("theirs"))
    elif change == "edited":
        path.write_text(path.read_text().replace("callbacks.progress", "callbacks.step_guard"))
    elif change == "unsigned":
        path.write_text(path.read_text().partition("# made here")[0])
    elif change == "other user":
        monkeypatch.setenv("XDG_STATE_HOME", str(run_dir / "state"))
    else:
        monkeypatch.setenv("XDG_STATE_HOME", "/proc/nowhere")
    text = refusal(training_overrides, [f"resume={place}"])
    assert f"{place / 'overrides.yaml'} records the overrides 'paths.log_dir=" in text
    given = [f"resume={place}", *yaml.safe_load((place / "overrides.yaml").read_text())]
    assert training_overrides(given) == (given, None)


def test_old_run_directories_resume(run_dir: Path) -> None:
    old = ["experiment=avsbench_s4", "run.name=mine", "trainer.max_epochs=2", "test=true", "scale=demo"]
    (run_dir / "overrides.yaml").write_text(yaml.safe_dump(old))
    assert training_overrides([f"resume={run_dir}"]) == ([*old, f"resume={run_dir}"], None)
    (run_dir / "overrides.yaml").unlink()
    assert training_overrides([f"resume={run_dir}", "scale=demo"])[0] == [f"resume={run_dir}", "scale=demo"]


@pytest.mark.parametrize(
    "content",
    [
        FROM_THE_FIELD.read_bytes(),
        b"- !!python/object/apply:os.system ['touch x']",
        b"- !!python/name:os.system",
        b"a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]",
        b"- &a [x]\n- *a",
        b"- {seed: 1}",
        b"[" * 5000,
        b"- seed=\xff",
        b"seed=1",
        b"- seed=1\n" * 40_000,
        None,
    ],
)
def test_hostile_overrides_of_a_run_directory(content: bytes | None, run_dir: Path, refused: Refused) -> None:
    path = run_dir / "overrides.yaml"
    if content is None:
        path.unlink()
        os.mkfifo(path)
    else:
        path.write_bytes(content)
    refused(lambda: training_overrides([f"resume={run_dir}"]), str(path))


@pytest.mark.parametrize("name", ["data_problems.csv", "checkpoints/step_00000001.ckpt", "tensorboard", "a/b/../c"])
def test_no_link_of_others_leads_out_of_a_run_directory(name: str, run_dir: Path, refused: Refused) -> None:
    (run_dir / "overrides.yaml").write_text("[]\n")
    (run_dir / "a" / "b").mkdir(parents=True)
    (run_dir / "last").symlink_to("checkpoints/last.ckpt")  # within it
    (run_dir / name).symlink_to("../" * 20 + "tmp/x")
    refused(lambda: choose_run_dir(run_dir.parents[1], "x", resume=str(run_dir)), "leads to ", "replace the link")
    refused(lambda: choose_run_dir(run_dir.parents[2], run_dir.parents[1].name, name="mine"), "leads to ")


# ---------------------------------------------------------------- checkpoints


def test_the_record_of_a_checkpoint(tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint, overrides = tmp_path / "last.ckpt", ["scale=demo", "paths.log_dir=/x", "run.name=a", "ckpt_path=b"]
    given = [f"ckpt_path={checkpoint}"]

    def save(**record: Any) -> None:
        torch.save({"record": record, "state_dict": {}}, checkpoint)

    save(overrides=overrides, made_here=signed(overrides))
    assert evaluation_overrides(given) == ([*overrides[:2], *given], None)
    for record in (
        {"overrides": overrides},
        {"overrides": overrides, "made_here": True},
        {"overrides": [*overrides, "seed=1"], "made_here": signed(overrides)},
        {"overrides": yaml.safe_load(FROM_THE_FIELD.read_text())},
    ):
        save(**record)
        refused(lambda: evaluation_overrides(given), f"checkpoint {checkpoint} records the override", "nothing was run")
    for wrong in (5, [5], {"a": 1}):
        save(overrides=wrong, made_here=signed(overrides))
        refused(lambda: evaluation_overrides(given), "expected a list of overrides")


def test_a_list_in_json_is_not_read_without_end(tmp_path: Path) -> None:
    (tmp_path / "a.json").touch()
    os.truncate(tmp_path / "a.json", 2**40)  # takes no place on the disk
    assert "a.json has 1099511627776 bytes" in refusal(read_object, tmp_path, "a.json", "x", "data.index.lists")


# ---------------------------------------------------------------- the key


def full_disk(*_: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_only_the_users_key_signs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    code = signed(["a=1", "b=2"], "here")
    key = tmp_path / "deepavfusion" / "key"
    assert (key.stat().st_mode & 0o777, key.stat().st_size) == (0o600, 32)
    assert is_signed(code, ["a=1", "b=2"], "here")
    for other in (["a=1"], ["a=1", "b=3"], ["here", "a=1", "b=2"]):
        assert not is_signed(code, other, "here")
    assert not is_signed(code, ["a=1", "b=2"], "there")
    for wrong in (None, "", code[:-1], "ß", 5):  # type: ignore[index]
        assert not is_signed(wrong, ["a=1", "b=2"], "here")
    key.write_bytes(b"")  # damaged: nothing is signed
    assert signed(["a=1"]) is None
    assert not is_signed(None, ["a=1"])
    shutil.rmtree(key.parent)
    assert signed(["a=1", "b=2"], "here") != code
    key.unlink()
    with monkeypatch.context() as full:
        full.setattr(os, "write", full_disk)
        assert signed(["a=1"]) is None
    assert not key.exists()  # so that it is made later
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    assert signed(["a=1"]) is None
    assert not Path("relative").exists()
