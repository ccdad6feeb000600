"""The command line of prepare.py: verify and pack from config to files, and what it says of mistakes."""

from __future__ import annotations

import csv
import inspect
import json
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra.utils import get_method
from omegaconf import OmegaConf
from PIL import Image

from deepavfusion.commands import prepare
from deepavfusion.config.compose import CONFIG_DIR, REPOSITORY
from deepavfusion.data.stores.packed import MANIFEST
from deepavfusion.demo import demo
from deepavfusion.utils.errors import UserError
from helpers.runs import call, read_table
from helpers.runs import compose as compose_config

SCRIPT = REPOSITORY / "src" / "prepare.py"
DATASETS = sorted(path.stem for path in Path(CONFIG_DIR, "data").glob("[!_]*.yaml"))


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight train and eight test clips of the demo, the first test clip cut in half."""
    folder = tmp_path_factory.mktemp("demo")
    counts = demo.Counts(vggsound_train=1, vggsound_test=1)
    root = demo.ensure(folder, ["vggsound"], workers=1, counts=counts)[0]
    with (root / "annotations/vggsound.csv").open(newline="") as file:
        video, start, label, _ = next(row for row in csv.reader(file) if row[3] == "test")
    name = f"{video}_{int(start):06d}_{int(start) + 10:06d}.mp4"
    path = root / "clips" / label.translate(str.maketrans(" (),", "____")) / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return root


compose = partial(compose_config, config="prepare")


def test_verify_then_pack(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Relative paths are those of the working directory; pack leaves out what verify found."""
    monkeypatch.chdir(raw.parent)
    call(monkeypatch, "prepare", "command=verify", "data=vggsound", f"data.root={raw.name}")
    assert f"{raw.name}/verify.csv has a row for every clip" in capsys.readouterr().out
    rows = read_table(raw / "verify.csv")
    assert [row["split"] for row in rows] == ["test"] * 8 + ["train"] * 8
    (bad,) = (row for row in rows if row["usable"] == "no")
    assert (bad["split"], bad["status"]) == ("test", "truncated")
    assert (raw / bad["path"]).is_file()

    output = tmp_path / "packed"
    overrides = ["command=pack", "data=vggsound", f"data.root={raw}", f"output={output}", "splits=[test]"]
    call(monkeypatch, "prepare", *overrides, "workers=1", "pack.short_side=64")
    assert f"data=vggsound data.root={output}" in capsys.readouterr().out
    manifest = json.loads((output / MANIFEST).read_text())
    counts = {"listed": 8, "packed": 7, "missing": 0, "excluded": 1}
    assert {split: found["counts"] for split, found in manifest["splits"].items()} == {"test": counts}
    assert manifest["settings"] == {"short_side": 64, "quality": 90, "clips_per_chunk": 64}
    assert json.loads((output / "test/clips.json").read_text())["excluded"]["id"] == [bad["id"]]
    prepare.verify_data(compose("command=verify", "data=vggsound", f"data.root={output}"))
    assert f"{output}: 7 clips, " in capsys.readouterr().out
    with pytest.raises(UserError, match=r"packed is packed; command=pack expects the files as published"):
        prepare.pack_data(compose("command=pack", "data=vggsound", f"data.root={output}"))


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["command=verify"], r"command=verify has no dataset; add data=<one of: audioset, .*vggsound"),
        (["command=verify", "data=vggsound", "data.root=/nowhere"], r"The data folder /nowhere does not exist"),
        (
            ["command=pack", "data=vggsound", "data.root=s3://bucket/x"],
            r"only packed data is read; command=pack expects",
        ),
        (["command=verify", "data=vggsound", "data.root={raw}", "splits=[dev]"], r"'dev'; expected one of train, test"),
        (["command=verify", "data=vggsound", "data.root={raw}", "splits=[]"], r"splits is empty"),
        (["command=verify", "data=vggsound", "data.root={raw}", "data.exclude=[mute]"], r"\['mute'\], expected .*hung"),
        (["command=verify", "data=vggsound", "data.root={raw}", "data.verify_report=null"], r"verify_report is null"),
        (["command=pack", "data=vggsound", "data.root={raw}"], r"no place to write to; .* add output=<folder>"),
        (["command=pack", "data=vggsound", "data.root={raw}", "output={raw}"], r"holds no packed data"),
        (["command=demo", "root={tmp}/x", "sets=[vgg]"], r"There is no demo set 'vgg'"),
        ([], r"no command was given"),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_nothing(
    overrides: list[str], sentence: str, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    files = sorted(raw.rglob("*"))
    with pytest.raises(SystemExit) as end:
        call(monkeypatch, "prepare", *(override.format(raw=raw, tmp=tmp_path) for override in overrides))
    out, error = capsys.readouterr()
    assert (end.value.code, len(error.splitlines())) == (2, 1)
    assert out == "" or "command=pack" in overrides
    assert re.search(sentence, error)
    assert sorted(raw.rglob("*")) == files
    assert not list(tmp_path.iterdir())


OF_DATASETS = {  # name, splits, and arguments that are not the reader's defaults
    "vggsound": ("vggsound", "train", "test", "test", {}),
    "vggsound_music": ("vggsound_music", "train", "holdout", "test", {}),
    "music": ("music", "train", "holdout", "test", {"lists": ["MUSIC_solo_videos"]}),
    "audioset": ("audioset", "unbalanced", "holdout", "eval", {}),
    "avsbench_s4": ("avsbench", "train", "val", "test", {"subset": "s4", "train_frames": "first"}),
    "avsbench_ms3": ("avsbench", "train", "val", "test", {"subset": "ms3"}),
    "avsbench_avss": ("avsbench", "train", "val", "test", {"subset": "avss"}),
}


@pytest.mark.parametrize("name", DATASETS)
def test_every_dataset_config_names_every_argument_of_its_reader(name: str) -> None:
    given, defaults = reader_arguments(name)
    assert defaults.keys() <= given.keys()


@pytest.mark.parametrize("name", OF_DATASETS)
def test_dataset_configs_have_the_published_splits_and_the_defaults_of_their_readers(name: str) -> None:
    data = compose(f"data={name}").data
    *common, changed = OF_DATASETS[name]
    assert [data[key] for key in ("name", "train_split", "val_split", "eval_split")] == common
    given, defaults = reader_arguments(name)
    assert given == defaults | changed


def reader_arguments(name: str) -> tuple[dict, dict]:
    """In a dataset's config, and with the default values of its reader."""
    index = compose(f"data={name}").data.index
    parameters = inspect.signature(get_method(index._target_)).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    return {key: value for key, value in index.items() if key[0] != "_"}, defaults


@pytest.mark.parametrize("name", DATASETS)
def test_every_dataset_composes(name: str, tmp_path: Path) -> None:
    cfg = compose("command=verify", f"data={name}", f"data.root={tmp_path}")
    data, packed = prepare.datamodule(cfg)
    assert (data.root, data.verify_report, packed) == (str(tmp_path), f"{tmp_path}/verify.csv", False)
    assert prepare.splits(cfg, data) == list(
        dict.fromkeys(split for split in data.split_of.values() if split != "holdout")
    )
    assert prepare.splits(compose("splits=[a,b,a]"), data) == ["a", "b"]
    OmegaConf.to_container(cfg, resolve=True)


def test_help_names_every_command_and_dataset() -> None:
    command = [sys.executable, str(SCRIPT), "--help"]
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, check=True, timeout=120)
    for word in (*(f"command={name}" for name in prepare.COMMANDS), *DATASETS, "  time_limit ", "  output "):
        assert word in done.stdout


def test_the_demo_does_without_the_heavy_libraries() -> None:
    """Its workers import the script, and so do those of verify."""
    code = "import sys, prepare; print(*{'torch', 'lightning', 'litdata', 'decord'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=SCRIPT.parent, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize(("config", "status"), [("avsbench_s4", "ok"), ("avsbench_avss", "bad_mask")])
def test_masks_of_0_and_255_are_fine_where_classes_do_not_matter(tmp_path: Path, config: str, status: str) -> None:
    counts = demo.Counts(s4_train=2, s4_val=1, s4_test=1, ms3_train=0, ms3_val=0, ms3_test=0)
    (root,) = demo.ensure(tmp_path, ["avsbench"], workers=1, counts=counts)
    for path in root.rglob("labels_semantic/*.png"):
        Image.fromarray((np.asarray(Image.open(path)) > 0).astype(np.uint8) * 255).save(path)
    prepare.verify_data(compose("command=verify", f"data={config}", f"data.root={root}", "workers=1"))
    with (root / "verify.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    assert len(found) == 4
    assert {row["status"] for row in found} == {status}
    assert all("value 255" in row["detail"] for row in found if status == "bad_mask")
