"""What a person, a path or a checkpoint writes into a config stays text: no shell, no server for others, no crash."""

from __future__ import annotations

import json
import random
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.errors import HydraException
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from deepavfusion.config.compose import REPOSITORY
from deepavfusion.config.overrides import quoted, with_scale
from deepavfusion.inference.tasks import load_task
from deepavfusion.runs import build
from deepavfusion.runs.directory import choose_run_dir
from deepavfusion.utils.errors import UserError
from helpers.checkpoints import SEPARATOR, write_separator
from helpers.examples import examples
from helpers.runs import compose, leaves
from hostile.conftest import Refused

HOSTILE = ["$(touch x)", "`touch x`", "a;touch x", "a|touch x", "it's", 'say "x"', "a b", "-rf", "a\\", "{a: 1}", "a,b"]
QUICK = ("$(touch x)", "it's", "a b", "a\\", "{a: 1}")


# ---------------------------------------------------------------- no shell


def test_nothing_is_given_to_a_shell() -> None:
    shell = re.compile(
        r"shell\s*=\s*True|os\.(system|popen|exec|spawn)\w*\(|getoutput|getstatusoutput|create_subprocess_shell"
    )
    notebooks = list(REPOSITORY.glob("notebooks/*.ipynb"))
    texts = {path: path.read_text() for path in [*REPOSITORY.glob("src/**/*.py"), *notebooks]}
    assert any("subprocess.run(" in text for text in texts.values())  # it is our code that was searched
    assert [str(path) for path, text in texts.items() if shell.search(text)] == []
    assert [path.name for path in notebooks if re.search(r'"\s*[!%]', texts[path])] == []


@pytest.mark.parametrize(
    "text", [text if text in QUICK else pytest.param(text, marks=pytest.mark.full) for text in HOSTILE]
)
def test_names_and_roots_are_taken_literally(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DEEPAVFUSION_RUN_DIR", raising=False)
    monkeypatch.setenv("DEEPAVFUSION_RUN_DIR", "")  # set by what follows, and taken back after the test
    root = tmp_path / "data" / text
    overrides = [f"run.name={quoted(text)}", f"data.root={quoted(str(root))}"]
    with pytest.raises(UserError, match="is not a folder") as error:
        with_scale("train", overrides)
    assert str(root) in str(error.value)
    root.mkdir(parents=True)
    assert with_scale("train", overrides) == (overrides, None)
    cfg = compose(*overrides)
    assert cfg.data.root == str(root)
    run_dir = choose_run_dir(tmp_path / "logs", cfg.task, cfg.run.name)
    assert [path.name for path in run_dir.parent.iterdir()] == [text]
    assert sorted(path.name for path in tmp_path.rglob("*") if path.name in ("x", text)) == [text, text]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.text(st.characters(blacklist_categories=["Cs", "Cc"]), min_size=1, max_size=12)
    | st.text("\\'${}:\" ", min_size=1)
)
@example("it's")
@example("a\\")
@example("a\\'")
@example("${oc.env:HOME}")
@example("\\${oc.env:HOME}'\\")
def test_quoted_text_comes_through(text: str) -> None:
    assert compose(f"root={quoted(text)}", config="prepare").root == text


@pytest.mark.parametrize("text", HOSTILE)
def test_the_demo_is_made_where_it_is_asked_for(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """src/train.py names the folder to src/prepare.py on its command line."""
    commands: list[list[str]] = []
    start = subprocess.Popen

    def record(command: list[Any], **_: Any) -> subprocess.Popen[bytes]:
        commands.append([str(word) for word in command])
        return start(["true"])

    monkeypatch.setattr("deepavfusion.runs.build.subprocess.Popen", record)
    build.make_demo_data(tmp_path / text, "vggsound")
    ((_, script, *overrides),) = commands
    assert Path(script) == REPOSITORY / "src" / "prepare.py"
    cfg = compose(*overrides, config="prepare")
    assert (cfg.command, cfg.root, list(cfg.sets)) == ("demo", str(tmp_path / text), ["vggsound"])


# ---------------------------------------------------------------- no server for others


def test_tensorboard_listens_to_this_machine_alone() -> None:
    done = subprocess.run(["make", "-n", "tensorboard"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    lines = [line for line in done.stdout.splitlines() if "bin/tensorboard " in line]
    assert len(lines) == 1
    assert re.search(r"--host (localhost|127\.0\.0\.1)( |$)", lines[0])
    assert "bind_all" not in lines[0]


def test_nothing_listens_to_every_address() -> None:
    texts = [*REPOSITORY.glob("src/**/*.py"), *REPOSITORY.glob("configs/**/*.yaml"), REPOSITORY / "Makefile"]
    notebooks = list(REPOSITORY.glob("notebooks/*.ipynb"))
    assert notebooks
    for notebook in notebooks:
        cells = json.loads(notebook.read_text())["cells"]
        code = "".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
        assert not re.search(r"0\.0\.0\.0|bind_all|serve_forever|HTTPServer|launch\(|%tensorboard", code), notebook
    found = [path for path in texts if re.search(r"0\.0\.0\.0|bind_all|HTTPServer", path.read_text())]
    assert found == []


# ---------------------------------------------------------------- checkpoints that are opened to be used


def other_contents(whole: dict[str, Any]) -> dict[str, Any]:
    """Files that torch reads, whose content is not what train.py writes."""
    record, state = whole["record"], whole["state_dict"]
    first = next(iter(state))

    def model(**keys: Any) -> dict[str, Any]:
        return {**whole, "record": {**record, "model": {**SEPARATOR, **keys}}}

    def net(**keys: Any) -> dict[str, Any]:
        return model(net={**SEPARATOR["net"], **keys})

    def image(**keys: Any) -> dict[str, Any]:
        return net(image={**SEPARATOR["net"]["image"], **keys})

    return {
        "no record": {"state_dict": state},
        "record of text": {**whole, "record": "separate"},
        "record without model": {**whole, "record": {"task": "separate"}},
        "model of text": {**whole, "record": {**record, "model": "deepavfusion.tasks.separate.Separate"}},
        "model of nothing": {**whole, "record": {**record, "model": {}}},
        "no state": {"record": record},
        "state of text": {**whole, "state_dict": "weights"},
        "state of a list": {**whole, "state_dict": list(state.values())},
        "state of numbers": {**whole, "state_dict": dict.fromkeys(state, 1.0)},
        "numbered state": {**whole, "state_dict": dict(enumerate(state.values()))},
        "another shape": {**whole, "state_dict": {**state, first: torch.zeros(3, 5, 7)}},
        "another tensor": {**whole, "state_dict": {**state, "more": torch.zeros(1)}},
        "unknown mask": model(mask=5),
        "unknown key": model(nothing=1),
        "no net": model(net=None),
        "net of text": model(net="tiny"),
        "net of one encoder": model(net=SEPARATOR["net"]["image"]),
        "head of nothing": model(head_dim=0),
        "head of text": model(head_dim="wide"),
        "two groups": net(num_fusion_tokens=[1, 2]),
        "group of text": net(num_fusion_tokens=["a", 2, 2]),
        "layers": net(fusion_layers=7),
        "embed_dim": image(embed_dim=-16),
        "odd embed_dim": image(embed_dim=17),
        "depth": image(depth="two"),
        "no heads": image(num_heads=0),
        "no patches": image(patch_size=0),
        "endless": image(mlp_ratio=float("inf")),
        "nothing": image(mlp_ratio=float("nan")),
        "interpolation": image(embed_dim="${nothing}"),
        "missing": image(embed_dim="???"),
        "environment": image(embed_dim="${oc.env:HOME}"),
    }


def test_a_damaged_checkpoint_is_told_where_it_is_to_be_used(tmp_path: Path) -> None:
    whole = write_separator(tmp_path / "whole.ckpt")
    assert type(load_task(whole, "separate")).__name__ == "Separate"
    data, files, rng = whole.read_bytes(), list[Path](), random.Random(0)
    for n in range(12):
        files.append(tmp_path / f"damaged {n}.ckpt")
        flipped = bytearray(data)
        for _ in range(20):
            flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        files[-1].write_bytes(data[: len(data) * n // 12] if n % 2 else flipped)
    for name, content in other_contents(torch.load(whole, weights_only=True)).items():
        files.append(tmp_path / f"{name}.ckpt")
        torch.save(content, files[-1])
    assert len(files) >= 40
    reasons: dict[str, str] = {}
    for path in files:
        try:
            load_task(path, "separate")
        except UserError as error:
            reasons[path.stem] = str(error)
    assert [path.stem for path in files if path.stem not in reasons] == []


@pytest.mark.parametrize(
    "text",
    [
        "${oc.create:{_target_: evil_module.run}}",
        "${oc.decode:'{_target_: evil_module.run}'}",
        "a ${oc.env:HOME}",
        "\\\\${oc.create:{_target_: evil_module.run}}",
    ],
)
@pytest.mark.parametrize("where", ["net", "value", "key", "list"])
def test_no_resolver_makes_a_config_of_a_record(
    text: str, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    """Hydra would build what `oc.create` returns, whose target nobody has looked at."""
    (tmp_path / "evil_module.py").write_text("open('ran', 'w')\ndef run(**_): open('ran', 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    changed = {"net": {"net": text}, "value": {"mask": text}, "key": {text: 1}, "list": {"betas": [{"a": (text,)}]}}
    path = write_separator(tmp_path / "a.ckpt", {**SEPARATOR, **changed[where]})
    refused(lambda: load_task(path, "separate"), "has ${…} in its record", "was not loaded")


# ---------------------------------------------------------------- overrides


SHELL = ["$(touch exploded)", "`touch exploded`", ";touch exploded", "|touch exploded", "${oc.env:HOME}", "${"]
SHELL += ["${a", "${oc.decode:'__import__(\"os\")'}", "${spectrogram_frames:x}", "${auto_precision:}", "a\nb", "'"]
SHELL += ['"', "\\", "-1", "0", "1e400", "nan", "inf", "1" + "0" * 400, "[1,2", "{a:1}", "null", "true", "''", "a=b"]
SHELL += ["@x", "!!python", "${data}", "${.}", "${hydra:runtime.cwd}"]
SHELL += ["!!python/object/apply:os.system [touch exploded]", "a,b", "range(1,9)", "\0", "\ud800", "🎻", "x" * 10_000]
SHELL += ["(" * 1000, "[" * 500]
PLAIN = ("experiment=pretrain_vggsound", "scale=demo")


@pytest.mark.parametrize("count", [25, pytest.param(300, marks=pytest.mark.full)])
def test_overrides_compose_or_are_refused(count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    keys = [key for key, _ in leaves(OmegaConf.to_container(compose(*PLAIN), resolve=False))]
    assert len(keys) > 50

    def one(key: str, value: str, quote: str, sign: str) -> None:
        try:
            cfg = compose(*PLAIN, f"{sign}{key}={quote}{value}{quote}")
            OmegaConf.to_container(cfg, resolve=True)
        except (HydraException, OmegaConfBaseException, UserError):
            pass

    text = st.one_of(st.sampled_from(SHELL), st.text(max_size=9))
    quotes, signs = st.sampled_from(["", "", "'", '"']), st.sampled_from(["", "++", "+", "~"])
    examples(one, count, st.sampled_from(keys), text, quotes, signs)
    assert not (tmp_path / "exploded").exists()
