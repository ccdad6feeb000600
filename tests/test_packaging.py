"""What is installed: the wheel's contents, the program `deepavfusion`, and what differs where there is no clone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import OmegaConf
from setuptools import Distribution

from deepavfusion import __main__ as program_main
from deepavfusion.cli import entry
from deepavfusion.cli import help as pages
from deepavfusion.commands.predict import check_task
from deepavfusion.config.compose import CONFIG_DIR, REPOSITORY, compose
from deepavfusion.config.overrides import quoted
from deepavfusion.doctor import software
from deepavfusion.runs import build
from deepavfusion.runs.provenance import code_state, short
from deepavfusion.utils import program
from deepavfusion.utils.commands import command
from deepavfusion.utils.errors import UserError
from deepavfusion.utils.launch import signals

COMMANDS = tuple(program.COMMANDS)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """As if there were no clone, in another folder; the program may be called."""
    monkeypatch.setattr(program, "IN_CLONE", False)
    monkeypatch.setattr(signals, "listen", lambda *_: None)  # the handlers of pytest stay
    monkeypatch.setenv(program.STARTED, "deepavfusion")  # undone afterwards
    monkeypatch.delenv(program.STARTED)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """The program with these words; its exit status."""
    monkeypatch.setattr(sys, "argv", ["/usr/bin/deepavfusion", *words])
    monkeypatch.setattr(sys, "orig_argv", ["/usr/bin/python3", "/usr/bin/deepavfusion", *words])
    monkeypatch.setattr(program.shutil, "which", lambda name: f"/usr/bin/{name}")
    try:
        program_main.main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else -1
    return 0


# ---------------------------------------------------------------- the wheel


@pytest.fixture(scope="module")
def wheel() -> Any:
    """What setup.cfg makes of the clone, and the names of the files, without building it."""
    folder = os.getcwd()
    os.chdir(REPOSITORY)
    try:
        found = Distribution({"script_name": "setup.py"})
        found.parse_config_files(["setup.cfg"])
        build_py: Any = found.get_command_obj("build_py")
        build_py.ensure_finalized()
        files = {
            str(Path(path).relative_to(build_py.build_lib)) for path in build_py.get_outputs(include_bytecode=False)
        }
    finally:
        os.chdir(folder)
    return found, files


def test_a_wheel_has_every_module_and_config_and_nothing_else(wheel: Any) -> None:
    package = REPOSITORY / "src" / "deepavfusion"
    expected = {f"deepavfusion/{path.relative_to(package)}" for path in package.rglob("*.py")}
    configs = {f"deepavfusion/configs/{p.relative_to(CONFIG_DIR)}" for p in Path(CONFIG_DIR).rglob("*") if p.is_file()}
    assert len(configs) > 80
    assert wheel[1] == expected | configs | {"deepavfusion/py.typed"}


def test_the_configs_exist_once() -> None:
    """In the package there is a link to them, so that an editable installation and a wheel find them alike."""
    link = REPOSITORY / "src" / "deepavfusion" / "configs"
    assert link.is_symlink()
    assert os.readlink(link) == "../../configs"
    assert Path(CONFIG_DIR) == (REPOSITORY / "configs").resolve()


def test_a_wheel_says_what_it_is_and_brings_the_program(wheel: Any) -> None:
    distribution, _ = wheel
    assert distribution.entry_points == {"console_scripts": ["deepavfusion = deepavfusion.__main__:main"]}
    about = distribution.metadata
    assert (about.name, about.version, about.license) == ("deepavfusion", "0.1.0", "Apache-2.0")
    assert about.license_files == ["LICENSE"]
    needs = " ".join(map(str, distribution.install_requires))
    assert all(name in needs for name in ("torch==", "lightning~=", "hydra-core", "av>="))


# ---------------------------------------------------------------- the program


def test_every_command_is_one_of_the_program() -> None:
    scripts = {path.stem for path in (REPOSITORY / "src").glob("*.py")}
    modules = {path.stem for path in (program.PACKAGE / "commands").glob("[!_]*.py")}
    assert set(COMMANDS) == scripts == modules == set(pages.PAGES)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("words", [(), ("--help",), ("-h",), ("help",)])
def test_it_lists_its_commands(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    assert call(monkeypatch, *words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line.startswith("  ")][2 : 2 + len(COMMANDS)] == [*COMMANDS]
    assert max(map(len, lines)) <= 90


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("word", "meant"),
    [("trian", "fusion train?"), ("predict.py", "fusion predict?"), ("", "--help"), ("a\x1b[31m\udcff", "--help")],
)
def test_an_unknown_command_gets_a_sentence(
    word: str, meant: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    assert call(monkeypatch, word, "x=1") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert err.startswith("there is no command ")
    assert meant in err
    assert err.strip().isprintable()


@pytest.mark.usefixtures("installed")
def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """As where only what `deepavfusion.load` needs was installed."""
    monkeypatch.setitem(sys.modules, "hydra", None)
    monkeypatch.delitem(sys.modules, "deepavfusion.commands.train", raising=False)
    for name in [name for name in sys.modules if name.startswith("deepavfusion.cli")]:
        monkeypatch.delitem(sys.modules, name)
    assert call(monkeypatch, "train", "seed=1") == 2
    err = capsys.readouterr().err
    assert "has no hydra" in err
    assert len(err.splitlines()) == 1


@pytest.mark.usefixtures("installed")
def test_the_first_thing_is_to_listen(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[int] = []

    def listen(status: int) -> None:
        heard.append(status)
        raise SystemExit(0)

    monkeypatch.setattr(signals, "listen", listen)
    for name in COMMANDS:
        call(monkeypatch, name)
    assert heard == [
        signals.STOPPED if name in ("train", "eval", "study") else signals.INTERRUPTED for name in COMMANDS
    ]


def test_it_says_what_is_typed(installed: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Hints, sentences, pages of help, commands to copy, records: nothing of scripts that are not there."""
    assert call(monkeypatch, "train", "epochs=3") == 2
    assert "Type: deepavfusion train trainer.max_epochs=3\n" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"^deepavfusion predict: no task .* e\.g\. deepavfusion predict task=separate"):
        check_task(OmegaConf.create({"task": None}))
    assert call(monkeypatch, "doctor", "--help") == 0
    for page in (capsys.readouterr().out, "\n".join(pages.header_lines("avsbench_s4"))):
        assert "deepavfusion " in page
        assert ".py" not in page
        assert max(map(len, page.splitlines())) <= 80
    assert str(UserError("run make doctor; or `python src/prepare.py command=demo`, as train.py does")) == (
        "run deepavfusion doctor; or `deepavfusion prepare command=demo`, as deepavfusion train does"
    )
    assert command("train.py resume={run_dir}", run_dir=installed / "a b") == "deepavfusion train 'resume=a b'"
    assert program.typed() == ["deepavfusion", "doctor", "--help"]


def test_files_of_the_user_keep_their_names() -> None:
    """Only where the program is meant."""
    os.environ[program.STARTED] = "deepavfusion"
    try:
        for text in ("/x/train.py", "my-train.py", "src/deepavfusion/tasks/eval.py", "train.pyc", "eval.py/x"):
            assert program.spoken(text) == text
        assert program.spoken("train.py: x, (eval.py)") == "deepavfusion train: x, (deepavfusion eval)"
    finally:
        del os.environ[program.STARTED]
    assert program.spoken("python src/train.py a=b") == "python src/train.py a=b"


@pytest.mark.parametrize(
    ("called", "words"),
    [
        (["/v/bin/python", "/v/bin/deepavfusion", "train", "a=b"], ["/v/bin/deepavfusion", "train", "a=b"]),
        (["python", "-m", "deepavfusion", "train", "a=b"], ["python", "-m", "deepavfusion", "train", "a=b"]),
        (["/v/bin/python", "-u", "-m", "deepavfusion", "eval"], ["/v/bin/python", "-m", "deepavfusion", "eval"]),
    ],
)
def test_the_command_is_recorded_as_it_was_typed(
    called: list[str], words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(program.STARTED, "")
    monkeypatch.delenv(program.STARTED)
    first = "deepavfusion" if called[1].endswith("/deepavfusion") else "__main__.py"
    monkeypatch.setattr(sys, "orig_argv", called)
    monkeypatch.setattr(sys, "argv", [f"/v/{first}", *called[-2:]])
    monkeypatch.setattr(program.shutil, "which", lambda _: None)  # its folder is not in PATH
    program.note_program()
    assert program.typed() == words


def test_processes_that_a_run_starts_are_told_the_command(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning starts them with sys.argv, from which Hydra must not take the name for an override."""
    seen: list[list[str]] = []
    monkeypatch.setenv(program.STARTED, "deepavfusion")
    monkeypatch.setattr(sys, "argv", ["/usr/bin/deepavfusion", "seed=3"])
    entry.entry("train")(lambda _: seen.append(sys.argv))()
    assert seen == [["/usr/bin/deepavfusion", "train", "seed=3"]]
    assert sys.argv == ["/usr/bin/deepavfusion", "seed=3"]


# ---------------------------------------------------------------- without a clone


def test_data_and_logs_are_those_of_the_current_folder(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in ("installed", "in a clone, called by its program"):
        cfg = OmegaConf.to_container(compose("train").paths, resolve=True)
        assert isinstance(cfg, dict)
        assert (cfg["data_dir"], cfg["log_dir"]) == (f"{installed}/data", f"{installed}/logs"), step
        monkeypatch.setattr(program, "IN_CLONE", True)
        monkeypatch.setenv(program.STARTED, "deepavfusion")
    monkeypatch.delenv(program.STARTED)  # by its scripts
    assert compose("train").paths.log_dir == f"{REPOSITORY}/logs"


def test_the_demo_is_made_by_the_package(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process of its own, which imports nothing that lies in the current folder."""
    (installed / "numpy.py").write_text("raise SystemExit('the wrong one')")
    commands: list[list[str]] = []
    start = subprocess.Popen

    def record(words: list[str], **_: Any) -> subprocess.Popen[bytes]:
        commands.append(words)
        return start(["true"])

    with monkeypatch.context() as patch:
        patch.setattr("deepavfusion.runs.build.subprocess.Popen", record)
        build.make_demo_data(Path("data/demo"), "vggsound")
    (words,) = commands
    assert words[3:] == ["prepare", "command=demo", f"root={quoted(f'{installed}/data/demo')}", "sets=[vggsound]"]
    path = str(REPOSITORY / "src")
    done = subprocess.run(
        [*words[:3], "prepare", "command=demon"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "Type: deepavfusion prepare command=demo" in done.stderr


def test_records_name_the_version(monkeypatch: pytest.MonkeyPatch) -> None:
    assert code_state(None) == {"commit": "version 0.1.0", "dirty": False}
    assert short("version 0.1.0") == "version 0.1.0"
    assert short("0123456789") == "0123456"
    assert software.code(None) == f"version 0.1.0, installed in {program.PACKAGE}"
    commit = {"vcs_info": {"vcs": "git", "commit_id": "ab" * 20}}
    for text, found in ((json.dumps(commit), "ab" * 20), ("[]", "version 0.1.0"), ("{", "version 0.1.0")):
        installed = SimpleNamespace(version="0.1.0", read_text=lambda _, text=text: text)
        monkeypatch.setattr("importlib.metadata.distribution", lambda _, installed=installed: installed)
        assert code_state(None)["commit"] == found


def test_packages_are_those_that_the_wheel_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    about = {
        "torch": "1",
        "needed": None,
    }
    lines = ["torch>=2", "needed==1", "elsewhere; sys_platform == 'no'", "more; extra == 'dev'"]

    class About(dict[str, str]):
        def get_all(self, _: str) -> list[str]:
            return lines

    monkeypatch.setattr(software.metadata, "metadata", lambda _: About({"Requires-Python": ">=3.10"}))

    def version(name: str) -> str:
        if about.get(name) is None:
            raise software.metadata.PackageNotFoundError(name)
        return str(about[name])

    monkeypatch.setattr(software.metadata, "version", version)
    with pytest.raises(UserError, match=r"torch is 1, expected >=2; needed==1 is not installed: pip install it"):
        software.packages(None)
    about |= {"torch": "2.1", "needed": "1"}
    assert software.packages(None).endswith("2 packages satisfy it")


# ---------------------------------------------------------------- the whole way


def clean() -> dict[str, str]:
    """Without what makes a clone visible, to pip also its metadata."""
    return {k: v for k, v in os.environ.items() if k != "PYTHONPATH" and not k.startswith("DEEPAVFUSION_")}


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment outside the clone, in which the wheel is installed; the dependencies are those of the tests.

    A path in a .pth file is added without the .pth files that lie there, so an editable installation is not seen.
    """
    folder = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "env"], check=True)
    source = folder / "source"
    ignored = {".git", ".venv", "data", "logs", "tests", "notebooks", "build"}
    subprocess.run(["mkdir", source], check=True)
    for path in REPOSITORY.iterdir():
        if path.name not in ignored and not path.name.startswith("."):
            subprocess.run(["cp", "-a", path, source], check=True)
    made = folder / "wheels"
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build_it = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", made, source]
    subprocess.run(build_it, check=True, env=clean())
    (wheel,) = made.iterdir()
    python = folder / "env" / "bin" / "python"
    subprocess.run([*pip, "--python", python, "install", "--no-deps", "--no-index", wheel], check=True, env=clean())
    (packages,) = (folder / "env" / "lib").glob("python*/site-packages")
    others = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "dependencies.pth").write_text("\n".join(others))
    return folder / "env" / "bin"


def run(environment: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A command in a folder, as from a shell in which the environment is active."""
    there = clean() | {"PATH": f"{environment}:{os.environ['PATH']}"}
    return subprocess.run(words, cwd=folder, env=there, capture_output=True, text=True, timeout=600)


TINY = (
    *("experiment=vggsound_finetune", "scale=demo", "trainer=ddp_sim", "trainer.max_epochs=1", "data.num_workers=1"),
    *("trainer.limit_train_batches=2", "trainer.limit_val_batches=1", "trainer.limit_test_batches=1"),
    *("model.net.image.embed_dim=32", "model.net.image.depth=2", "model.net.image.num_heads=2", "data.batch_size=2"),
    *("model.pretrained=null", "model.warmup_epochs=0", "data.holdout_share=0.2", "run.name=a"),
)


@pytest.mark.full
def test_an_installed_wheel_trains_and_classifies(environment: Path, data_root: Path, tmp_path: Path) -> None:
    """In a folder of its own: two processes, an interruption, a prediction by the shell and by Python."""
    work = tmp_path / "my work"
    work.mkdir()
    given = ("deepavfusion", "train", *TINY, f"data.root={data_root}")
    done = run(environment, work, *given)
    assert done.returncode == 0, done.stderr
    assert "deepavfusion predict task=classify" in done.stdout
    start = json.loads((work / "logs/classify/runs/a/provenance.json").read_text())["starts"][0]
    assert start["command"].startswith("deepavfusion train experiment=vggsound_finetune ")
    assert start["commit"] == "version 0.1.0"
    last = "logs/classify/latest/checkpoints/last.ckpt"
    video = next(data_root.rglob("*.mp4"))
    done = run(environment, work, "deepavfusion", "predict", "task=classify", f"video={video}", "output=found")
    assert done.returncode == 0, done.stderr
    assert (work / "found" / f"{video.stem}_classes.csv").is_file()
    code = (
        "import deepavfusion, sys; from importlib.util import find_spec\n"
        f"assert {str(environment.parent)!r} in deepavfusion.__file__, deepavfusion.__file__\n"
        f"deepavfusion.load({last!r}).classify({str(video)!r})\n"
        "assert not {'hydra', 'tensorboard'} & set(sys.modules)"
    )
    done = run(environment, work, "python", "-c", code)
    assert done.returncode == 0, done.stderr


@pytest.mark.full
def test_an_installed_wheel_is_stopped_and_continues(environment: Path, data_root: Path, tmp_path: Path) -> None:
    words = [str(environment / "deepavfusion"), "train", *TINY, "trainer=cpu", f"data.root={data_root}"]
    for seconds in (0.3, 3, 8):
        process = subprocess.Popen(words, cwd=tmp_path, env=clean(), stdout=-1, stderr=subprocess.STDOUT, text=True)
        time.sleep(seconds)
        process.send_signal(signal.SIGTERM)
        out = process.communicate(timeout=60)[0]
        assert process.returncode in (signals.STOPPED, 0), out
        assert "Traceback" not in out
    last = subprocess.run(words, cwd=tmp_path, env=clean(), capture_output=True)
    assert last.returncode == 0 or (process.returncode == 0 and last.returncode == 2)  # which says that it is finished
    assert (tmp_path / "logs/classify/runs/a/metrics.json").is_file()


@pytest.mark.full
def test_importing_takes_no_time(environment: Path, tmp_path: Path) -> None:
    code = "import time; a = time.process_time(); import deepavfusion; print(time.process_time() - a)"
    assert float(run(environment, tmp_path, "python", "-c", code).stdout) < 0.3
