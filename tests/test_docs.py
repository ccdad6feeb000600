"""README and docs: their links, paths, commands and imports are right."""

from __future__ import annotations

import importlib
import re
import runpy
import shlex
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from safetensors.torch import save_file

from deepavfusion.cli.hints import check
from deepavfusion.cli.words import Word
from deepavfusion.config.check import check_ranges
from deepavfusion.config.compose import CONFIG_DIR, REPOSITORY, compose, instantiate
from helpers.checkpoints import write_classifier, write_segmenter, write_separator
from helpers.media import noise, write_video
from helpers.runs import read_table

README = REPOSITORY / "README.md"
PAGES = [README, REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
COMMAND = re.compile(r"^(?:\$ )?python src/(\w+)\.py (.*?)(?: +#.*)?$", re.MULTILINE)
COMMANDS = sorted(
    {match.groups() for page in PAGES for match in COMMAND.finditer(page.read_text().replace("\\\n", " "))}
)
IMPORTS = sorted(
    {line for page in PAGES for line in re.findall(r"^from (deepavfusion\S+) import (.+)$", page.read_text(), re.M)}
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    headings = {path: re.findall(r"^#+ (.+)$", path.read_text(), re.M) for path in PAGES}
    for target in re.findall(r"\]\((?!http)([^)]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert not anchor or anchor in {h.lower().replace(" ", "-") for h in headings[file]}, target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pictures_are_small(page: Path) -> None:
    for target in re.findall(r"!\[[^]]*\]\(([^)]+)\)", page.read_text()):
        assert (page.parent / target).stat().st_size < 150_000, target


def test_training_costs_three_times_what_probing_does() -> None:
    """As the script counts it that made the table in docs/speed.md: a probe only needs the encoder's forward pass."""
    script = runpy.run_path(str(REPOSITORY / "notebooks" / "recipe_costs.py"))
    names = ("vggsound_linear_probe", "vggsound_finetune")
    probe, finetune = (script["gflop"](compose("train", [f"experiment={name}", "scale=demo"]), 8) for name in names)
    assert finetune / probe == pytest.approx(3, rel=0.1)


STUDIES = REPOSITORY / "docs" / "studies"


@pytest.mark.parametrize("name", sorted({path.parent.name for path in STUDIES.glob("*/summary.csv")} - {"demos"}))
def test_what_is_said_of_a_study_is_in_its_table(name: str) -> None:
    """Every "mean ± deviation" and "difference [low, high]", to the digits given."""
    page = (REPOSITORY / "docs" / "studies.md").read_text().replace("−", "-")
    (section,) = re.findall(rf"^### {name}\n(.*?)(?=^##)", page, re.M | re.S)
    section = " ".join(section.split())
    rows = [row for file in ("summary.csv", "pairs.csv") for row in read_table(STUDIES / name / file)]
    number = r"([+-]?\d+\.\d+)"
    means = re.findall(rf"{number} ± {number}", section)
    differences = re.findall(rf"{number} \[{number}, {number}\]", section)
    assert len(means) + len(differences) > 3
    for values in means:
        assert is_in(rows, values, "mean", "deviation"), values
    for values in differences:
        assert is_in(rows, values, "difference", "low_seeds", "high_seeds"), values


def test_what_is_said_of_costs_is_in_their_table() -> None:
    """Every time, and every ratio: measured to theory, or of a network to that without fusion."""
    page = (REPOSITORY / "docs" / "studies.md").read_text()
    (section,) = re.findall(r"^Tiny network, forward and backward.*?(?=^##)", page, re.M | re.S)
    rows = read_table(REPOSITORY / "notebooks" / "results" / "cost_cpu.csv")
    (plain,) = (row for row in rows if row["fusion_layers"] == "none")
    keys = ("median_s", "bound_s")
    ratios = [float(row[key]) / float(plain[key]) for row in rows for key in keys]
    ratios += [float(row[key]) for row in rows for key in ("time_ratio", "memory_ratio")]
    times, said = re.findall(r"(\d\.\d+) s\b", section), re.findall(r"(\d\.\d+)\s+(?:×|to)", section)
    assert len(times) >= 5
    assert len(said) >= 7
    assert set(times) <= {f"{float(row['median_s']):.3f}" for row in rows}
    assert set(said) <= {f"{ratio:.2f}" for ratio in ratios}
    assert f"commit {rows[0]['commit']}" in section
    assert {"1": "one thread", "2": "two threads"}[rows[0]["threads"]] in section
    assert sorted(rows, key=lambda row: float(row["median_s"])) == sorted(rows, key=lambda row: float(row["bound_s"]))


def is_in(rows: list[dict[str, str]], values: tuple[str, ...], *keys: str, scale: int = 1) -> bool:
    """Whether a row has these values, to the digits given."""
    digits = len(values[0].partition(".")[2])
    found = [[round(scale * float(row[key]), digits) for key in keys] for row in rows if row.get(keys[-1])]
    return [float(value) for value in values] in found


OF_DEMOS = [README, *(REPOSITORY / "docs" / name for name in ("results.md", "python.md"))]
OF_DEMOS += sorted((REPOSITORY / "configs" / "experiment").glob("*.yaml"))


def test_what_is_said_of_the_demos_is_in_their_table() -> None:
    """Every "mean ± deviation", to the digits given; the stamps in docs/results.md are none of them."""
    rows, count = read_table(STUDIES / "demos" / "summary.csv"), 0
    for page in OF_DEMOS:
        text = page.read_text().partition("\n## Stamps")[0].replace("−", "-")
        for mean, deviation, percent in re.findall(r"(-?\d+(?:\.\d+)?) ± (\d+(?:\.\d+)?)( %)?", text):
            scale, count = 100 if percent else 1, count + 1
            said = f"{page}: {mean} ± {deviation}{percent}"
            assert is_in(rows, (mean, deviation), "mean", "deviation", scale=scale), said
    assert count > 100


def test_every_room_is_on_the_map() -> None:
    """A newcomer finds it in a README that fits a few screens."""
    text = README.read_text()
    package = REPOSITORY / "src" / "deepavfusion"
    rooms = {f"{path.relative_to(package)}/" for path in package.rglob("*") if list(path.glob("[!_]*.py"))} - {"./"}
    assert rooms <= set(re.findall(r"`([a-z/]+/)`", text))
    assert len(text.splitlines()) <= 200


def test_code_that_is_named_exists() -> None:
    """`path.py`: `name`, `name` in the tables."""
    package = REPOSITORY / "src" / "deepavfusion"
    named = re.findall(r"`([\w/]+\.(?:py|yaml))`: ((?:`\w+`(?:, )?)+)", README.read_text())
    assert len(named) > 5
    for path, names in named:
        source = (package / path if path.endswith(".py") else REPOSITORY / path).read_text()
        for name in re.findall(r"\w+", names):
            assert re.search(rf"\b{name}\b", source), f"{path}: {name}"


@pytest.mark.parametrize(("script", "arguments"), COMMANDS, ids=[" ".join(c) for c in COMMANDS])
def test_commands_compose(script: str, arguments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With names of files in place of `<root>` and the like; of a sweep the first job."""
    words = shlex.split(re.sub(r"<[^>]+>", "name", arguments))
    overrides = [word for word in words if "=" in word]
    check(script, [word for word in words if word == "-m"], [Word(override, override) for override in overrides])
    overrides = [first_of(override) for override in overrides] if "-m" in words else overrides
    with hydra.initialize_config_dir(CONFIG_DIR, version_base="1.3"):
        check_ranges(hydra.compose(script, overrides=[o.replace("scale=auto", "scale=paper") for o in overrides]))


def first_of(override: str) -> str:
    parsed = OverridesParser.create().parse_override(override)
    if not parsed.is_sweep_override():
        return override
    return f"{parsed.get_key_element()}={next(iter(parsed.sweep_string_iterator()))}"


PYTHON = {page: re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S) for page in PAGES}
EXPORTED = ("classifier.onnx", "segmenter.pt2")  # blocks that read these are run by test_export.py


@pytest.fixture
def workplace(data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the lines of Python of the pages name: a clip, checkpoints, weights, demo data."""
    for task, write, name in (
        ("pretrain", write_classifier, "last"), ("classify", write_classifier, "last"),
        ("separate", write_separator, "last"), ("segment", write_segmenter, "best"),
    ):  # fmt: skip
        (checkpoints := tmp_path / "logs" / task / "latest" / "checkpoints").mkdir(parents=True)
        write(checkpoints / f"{name}.ckpt")
    vit = {"_target_": "deepavfusion.models.vit.ViT", "embed_dim": 128, "depth": 4, "num_heads": 4}
    sizes = {"image": {**vit, "input_size": [112, 112]}, "audio": {**vit, "input_size": [128, 192], "in_chans": 1}}
    fusion = {"num_fusion_tokens": [8, 4, 4], "fusion_attn_ratio": 1.0}
    demo = instantiate({"_target_": "deepavfusion.models.deepavfusion.DeepAVFusion", **sizes, **fusion})
    save_file({f"encoder.{name}": value for name, value in demo.state_dict().items()}, tmp_path / "weights.safetensors")
    write_video(tmp_path / "clip.mp4", noise(4.0), frames=8)
    (tmp_path / "data" / "demo").mkdir(parents=True)
    (tmp_path / "data" / "demo" / "vggsound").symlink_to(data_root)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", [page for page in PAGES if PYTHON[page]], ids=lambda page: page.name)
def test_python_runs_from_top_to_bottom(page: Path, workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    for block in (block for block in PYTHON[page] if not any(name in block for name in EXPORTED)):
        exec(compile(block, f"{page.name}: {block[:60]!r}", "exec"), names)
    if page.name == "python.md":
        out = capsys.readouterr().out
        assert "of the pixels sound" in out
        assert re.search(r"^(recording|clip\.mp4) \[\('", out, re.M)
        assert "tensors loaded" in out
        assert {path.name for path in (workplace / "results").iterdir()} >= {"clip_classes.csv", "clip_timeline.png"}
        assert len(np.load("embeddings.npz")["path"]) == 24
        assert len(PYTHON[page]) > 8


@pytest.mark.parametrize(("module", "names"), IMPORTS)
def test_imports(module: str, names: str) -> None:
    for name in names.split(", "):
        assert hasattr(importlib.import_module(module), name), name
