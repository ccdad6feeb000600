"""`src/doctor.py`: what is broken on purpose has its line, with how to fix it; what is well is ok."""

from __future__ import annotations

import faulthandler
import os
import pwd
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import namedtuple
from importlib import metadata
from pathlib import Path

import pytest

from deepavfusion import name_user
from deepavfusion.cli import entry
from deepavfusion.commands import doctor as entry_point
from deepavfusion.config.compose import REPOSITORY
from deepavfusion.demo import demo
from deepavfusion.doctor import machine, smoke, software, storage
from deepavfusion.doctor.examine import Found, examine
from deepavfusion.media import Media
from deepavfusion.media import frames as frame_reader
from deepavfusion.utils.errors import UserError
from helpers.errors import refusal
from helpers.packs import small_pack
from helpers.runs import compose
from helpers.storage import Service, environment, put_folder

Usage = namedtuple("Usage", "total used free")
GB = 10**9


# ---- a check is a line, whatever it does


def test_a_check_that_is_well_that_raises_that_crashes_and_that_leaves():
    assert examine("a", lambda: "fine", 60) == Found("a", True, "fine")

    def wrong() -> str:
        raise UserError("it is broken: fix it.")

    assert examine("a", wrong, 60) == Found("a", False, "it is broken: fix it.")
    assert examine("a", lambda: str(1 / 0), 60) == Found("a", False, "ZeroDivisionError: division by zero")

    def crash() -> str:
        faulthandler.disable()  # pytest's would print
        os.kill(os.getpid(), signal.SIGSEGV)
        return ""

    crashed = examine("a", crash, 60)
    assert not crashed.ok
    assert "ended by SIGSEGV" in crashed.text
    assert "make setup" in crashed.text
    assert "ended by status 3" in examine("a", lambda: os._exit(3), 60).text


def test_a_check_that_hangs_is_ended_with_what_it_started(tmp_path: Path):
    def hang() -> str:
        child = subprocess.Popen(["sleep", "100"])
        (tmp_path / "pid").write_text(str(child.pid))
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(100)
        return ""

    begin = time.monotonic()
    found = examine("a", hang, 0.5)
    assert time.monotonic() - begin < 20
    assert not found.ok
    assert "not finished after 0.5 s" in found.text
    assert "time_limit=" in found.text
    assert ended(int((tmp_path / "pid").read_text()))


def ended(pid: int) -> bool:
    """Whether a process is gone, or dead and not yet collected by whoever inherited it."""
    for _ in range(100):
        status = Path(f"/proc/{pid}/stat")
        if not status.exists() or status.read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return True
        time.sleep(0.1)
    return False


def test_what_libraries_print_is_not_in_the_table(capfd):
    assert examine("a", lambda: str(os.system("echo noise; echo noise >&2")), 60).text == "0"
    assert "noise" not in "".join(capfd.readouterr())


@pytest.mark.parametrize("broken", [False, True])
def test_each_line_is_ok_or_fix_and_the_status_tells(broken, monkeypatch, capsys):
    checks = {"disk": lambda: "20 GB free", "decoders": lambda: "fine" if not broken else str(1 / 0)}
    monkeypatch.setattr(entry_point, "checks", lambda *_: checks)
    monkeypatch.setattr(sys, "argv", ["doctor.py"])
    if broken:
        with pytest.raises(SystemExit) as end:
            entry.run(entry_point.main)
        assert end.value.code == 1
    else:
        entry.run(entry_point.main)
    lines = [line.rstrip() for line in capsys.readouterr().out.strip().splitlines()]
    assert lines[0] == "disk      ok 20 GB free"
    assert lines[1:] == (
        ["decoders  fix: ZeroDivisionError: division by zero", "to fix: decoders"]
        if broken
        else ["decoders  ok fine", "all 2 checks are ok"]
    )


# ---- the way in


def test_a_python_without_the_packages_gets_one_sentence():
    done = subprocess.run(
        [sys.executable, "-S", "-E", REPOSITORY / "src/doctor.py"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.strip().splitlines()
    assert "cannot import hydra" in line
    assert "make doctor" in line


def test_torch_is_imported_by_checks_only():
    """Where torch is broken, all other lines are still there."""
    code = "import doctor, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY / "src", timeout=60).returncode == 0


def test_what_is_looked_at_follows_from_the_config(tmp_path: Path):
    given = ["data=music", f"paths.data_dir={tmp_path}", "data.num_workers=4", "data.batch_size=10"]
    cfg = compose(*given, config="doctor")
    (tmp_path / "avsbench").mkdir()
    found = entry_point.checks(cfg, "music", ["data=music", f"paths.data_dir={tmp_path}"])
    datasets = [name for name in found if name.startswith("data=")]
    assert datasets == ["data=avsbench_avss", "data=avsbench_ms3", "data=avsbench_s4", "data=music"]
    assert "runs use the demo" in found["data=music"]()
    assert "avsbench" in refusal(found["data=avsbench_s4"])  # an empty folder is no dataset
    assert found["shared memory"].args == (10 * (3 * 224**2 + 4 * round(16_000 * cfg.data.audio_seconds)), 4)
    assert list(found)[-1] == "smoke train"


@pytest.mark.parametrize("name", ["WORLD_SIZE", pytest.param("SLURM_NTASKS", marks=pytest.mark.full)])
def test_nothing_of_the_surroundings_stops_it(name, tmp_path, monkeypatch, capsys):
    """Each is a line, beside all others."""
    monkeypatch.setenv(name, "x")
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    monkeypatch.setattr(entry_point, "STARTED_WITH", dict(os.environ))
    monkeypatch.setattr(entry_point, "MISSED", [])
    gone.rmdir()
    given = ["smoke_train=false", "free_gb=0", f"paths.data_dir={tmp_path}", f"data.root=/{'x' * 300}"]
    monkeypatch.setattr(sys, "argv", ["doctor.py", *given])
    checks = entry_point.checks
    names = ("variables", "current folder", "open files", "data=vggsound")
    monkeypatch.setattr(entry_point, "checks", lambda *_: {each: checks(*_)[each] for each in names})
    entry_point.settle()
    with pytest.raises(SystemExit) as end:
        entry.run(entry_point.main)
    assert end.value.code == 1
    out = capsys.readouterr().out
    assert f"the environment variable {name} is 'x', expected a whole number" in " ".join(out.split())
    assert "is not there any more" in out
    assert "open files      ok" in out
    assert out.splitlines()[-1] == "to fix: variables, current folder, data=vggsound"


# ---- software


def test_packages_are_those_of_setup_cfg(tmp_path: Path, monkeypatch):
    assert "packages satisfy setup.cfg" in software.packages(REPOSITORY)
    version = metadata.version

    def fake(name: str) -> str:
        if name == "timm":
            raise metadata.PackageNotFoundError(name)
        return "0.0.1" if name == "torch" else version(name)

    monkeypatch.setattr(metadata, "version", fake)
    text = refusal(software.packages, REPOSITORY)
    assert "timm~=1.0.0 is not installed" in text
    assert "torch is 0.0.1, expected ==" in text
    assert "make setup" in text
    monkeypatch.setattr(software.platform, "python_version", lambda: "3.9.1")
    assert "is 3.9.1, expected >=3.10" in refusal(software.packages, REPOSITORY)


def test_a_module_that_does_not_load_is_named(tmp_path: Path, monkeypatch):
    (tmp_path / "broken_library.py").write_text("raise OSError('libfoo.so: undefined symbol')")
    monkeypatch.syspath_prepend(str(tmp_path))
    text = refusal(software.imports, ["json", "broken_library", "absent_library"])
    assert "broken_library (OSError: libfoo.so: undefined symbol)" in text
    assert "absent_library (ModuleNotFoundError" in text
    assert "json" not in text


def test_a_torchvision_of_another_release_is_named(monkeypatch):
    def nms(*_):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr("torchvision.ops.nms", nms)
    text = refusal(software.imports, [])
    assert "torchvision::nms does not exist" in text
    assert "make setup" in text


def test_decoders_that_are_well_and_broken(monkeypatch):
    assert "20 frames from decord" in software.decoders()
    reader = frame_reader.decord.VideoReader

    def broken(*_, **__):
        raise RuntimeError("no")

    with monkeypatch.context() as patch:
        patch.setattr(frame_reader.decord, "VideoReader", broken)
        assert "decord cannot read" in refusal(software.decoders)

    class Shifted:
        def __init__(self, *args, **kwargs):
            self.reader = reader(*args, **kwargs)

        def __len__(self):
            return len(self.reader)

        def get_batch(self, wanted):
            return self.reader.get_batch([0 for _ in wanted])

    with monkeypatch.context() as patch:
        patch.setattr(frame_reader.decord, "VideoReader", Shifted)
        assert "decord reads other frames" in refusal(software.decoders)
    with monkeypatch.context() as patch:
        whole = Media.audio
        patch.setattr(Media, "audio", lambda *args: whole(*args) * 0)
        assert "PyAV reads other audio" in refusal(software.decoders)
    with monkeypatch.context() as patch:
        patch.setattr("av.open", broken)
        found = examine("decoders", software.decoders, 60)
    assert not found.ok


def test_a_gpu_without_a_driver_is_not_passed_over(tmp_path: Path, monkeypatch):
    for name, vendor, kind in (("a", "0x8086", "0x030000"), ("b", "0x10de", "0x040300")):  # Intel; NVIDIA's sound
        card(tmp_path, name, vendor, kind)
    assert not software.has_nvidia(tmp_path, tmp_path)
    card(tmp_path, "c", "0x10de", "0x030200")
    assert software.has_nvidia(tmp_path, tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(software, "has_nvidia", lambda: True)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    text = refusal(software.gpus)
    assert "--gpus all" in text
    assert "export CUDA_VISIBLE_DEVICES=" in text
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert software.gpus() == "none, CUDA_VISIBLE_DEVICES hides them; runs use the CPU"


def card(folder: Path, name: str, vendor: str, kind: str) -> None:
    (folder / name).mkdir()
    (folder / name / "vendor").write_text(f"{vendor}\n")
    (folder / name / "class").write_text(f"{kind}\n")


def test_without_git_there_is_no_commit_to_name(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert software.code(REPOSITORY).startswith("no git,")


# ---- the machine


def test_a_folder_that_cannot_be_written_to(tmp_path: Path):
    (tmp_path / "file").touch()
    places = {"paths.log_dir=<folder>": tmp_path / "file" / "logs", "TMPDIR": tmp_path / "made" / "when" / "needed"}
    text = refusal(machine.writing, places)
    assert f"{tmp_path}/file/logs cannot be written to (Not a directory): set paths.log_dir=<folder>" in text
    assert "needed" not in text
    assert "cannot be written to" in refusal(machine.log_disk, tmp_path / "file" / "logs", 0, 1, 0)
    del places["paths.log_dir=<folder>"]
    assert machine.writing(places) == str(tmp_path / "made/when/needed")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_disk_that_is_full_or_slow(tmp_path: Path, monkeypatch):
    assert "MB/s" in machine.log_disk(tmp_path / "logs", 0, 1, 0)
    assert list(tmp_path.iterdir()) == []
    text = refusal(machine.log_disk, tmp_path, 0, 1, 1e9)
    assert "expected 1e+09 or more" in text
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(100 * GB, 97 * GB, 3 * GB))
    text = refusal(machine.log_disk, tmp_path, 17, 1, 0)
    assert "3.0 GB free, the published recipe needs 17" in text
    assert "paths.log_dir=" in text


def test_shared_memory_holds_two_batches_a_worker(monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, 64 * 10**6))
    assert machine.shared_memory(8 * 10**6, 4).endswith("0.1 GB free, workers need 0.06")
    text = refusal(machine.shared_memory, 8 * 10**6 + 1, 4)
    assert "64 MB free, 4 workers need 64" in text
    assert "--shm-size" in text


def test_memory_of_a_container_counts(tmp_path: Path):
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("1000\n")
    assert "GiB of memory free" in machine.cores_and_memory(tmp_path)
    (tmp_path / "memory.max").write_text(f"{2**30}\n")
    assert "1.0 GiB of memory are free, a demo run needs 2" in refusal(machine.cores_and_memory, tmp_path)


def test_few_open_files(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 256))
    assert "may open 256 files at a time" in refusal(machine.open_files)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert machine.open_files() == "no limit"


@pytest.mark.parametrize(("name", "value"), [("WORLD_SIZE", "2"), ("SLURM_STEP_NUM_TASKS", "8"), ("RANK", "1")])
def test_variables_that_make_a_run_wait(name, value):
    assert f"type unset {name}" in refusal(machine.variables, {name: value, "SLURM_PROCID": "0"})
    assert machine.variables({"WORLD_SIZE": "1", "LOCAL_RANK": "0"}).startswith("none")
    assert machine.variables({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}).startswith("none")  # a batch script


def test_a_disk_for_logs_replaces_creates_and_links(tmp_path, monkeypatch):
    assert "links" not in machine.log_disk(tmp_path, 0, 1, 0)
    monkeypatch.setattr(machine, "link", lambda *_: False)
    assert "last.ckpt is a copy" in machine.log_disk(tmp_path, 0, 1, 0)
    shared = os.open
    monkeypatch.setattr(os, "open", lambda path, flags, *mode, **at: shared(path, flags & ~os.O_EXCL, *mode, **at))
    assert "cannot be replaced or locked" in refusal(machine.log_disk, tmp_path, 0, 1, 0)
    assert [*tmp_path.iterdir()] == []


def test_temporary_files_need_room_and_a_name_for_sockets(tmp_path, monkeypatch):
    assert machine.temporary_files(tmp_path, 0).startswith(str(tmp_path))
    assert "TMPDIR=" in refusal(machine.temporary_files, tmp_path, 1e6)

    def unwritable(**_: str):
        raise OSError(13, "Permission denied")

    long = tmp_path / ("x" * 80)
    assert str(long) in machine.temporary_files(long, 0)
    monkeypatch.setattr(machine.tempfile, "TemporaryFile", unwritable)
    assert "too long for sockets" in refusal(machine.temporary_files, long, 0)


def test_a_user_without_a_name_is_given_one(monkeypatch):
    def nameless(_: int):
        raise KeyError("getpwuid(): uid not found: 12345")

    environment = {}
    monkeypatch.setattr(pwd, "getpwuid", nameless)
    monkeypatch.setattr(os, "environ", environment)
    name_user(environment)
    assert environment == {"USER": f"uid{os.getuid()}", "HOME": tempfile.gettempdir()}
    assert "without a name" in machine.user()


def test_data_that_are_there_absent_and_in_another_layout(data_root: Path, tmp_path: Path):
    root = shutil.copytree(data_root, tmp_path / "vggsound")
    next((root / "clips").rglob("*.mp4")).unlink()
    config = compose(f"data.root={root}", config="doctor").data
    text = machine.dataset(config, True, 0.0)
    assert "of 16 clips" in text
    assert "of 8 clips" in text
    assert ("15 of" in text) != ("7 of" in text)
    assert text.endswith("MB/s")
    assert "command=pack" in refusal(machine.dataset, config, True, 1e9)
    config.root = str(tmp_path / "nowhere")
    assert "does not exist: runs use the demo" in machine.dataset(config, False, 0.0)
    assert "data.root=" in refusal(machine.dataset, config, True, 0.0)
    config.root = str(root / "clips")  # one folder too deep
    text = refusal(machine.dataset, config, True, 0.0)
    assert f"{root}/clips/annotations/vggsound.csv does not exist" in text
    (tmp_path / "file").touch()
    config.root = str(tmp_path / "file")
    assert "is not a folder" in refusal(machine.dataset, config, False, 0.0)


def test_packed_data_in_object_storage(s3: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What is there and how fast it comes; storage, credentials, chunks and room for the cache that are wanting."""
    monkeypatch.setattr(storage, "PATIENCE", 0.1)
    root = small_pack(tmp_path / "packed", per_chunk=1, train=5, test=3)
    put_folder(s3, root, "data", "packed")
    cache = tmp_path / "cache"
    config = compose("data.root=s3://data/packed", f"data.cache_dir={cache}", config="doctor").data
    text = machine.dataset(config, True, 0.001)
    assert text.startswith("s3://data/packed: train 5 of 5 clips, test 3 of 3 clips, 0.00109 GB; a chunk comes at ")
    assert f"; cache {cache}/" in text
    assert not cache.exists()

    free = namedtuple("Usage", "free")(10**6)
    with monkeypatch.context() as patch:
        patch.setattr(storage.shutil, "disk_usage", lambda _: free)
        assert "data.cache_dir=<folder on another disk>" in refusal(machine.dataset, config, True, 0.0)
        cached = compose(
            "data.root=s3://data/packed", f"data.cache_dir={cache}", "data.cache_size=900000", config="doctor"
        )
        assert machine.dataset(cached.data, True, 0.0)
    s3.client.put_object(Bucket="data", Key="packed/train/chunk-00000.bin", Body=b"cut")
    assert "packed/train/chunk-00000.bin has 3 bytes" in (said := refusal(machine.dataset, config, True, 0.0)), said
    s3.client.delete_object(Bucket="data", Key="packed/train/chunk-00000.bin")
    assert "command=verify" in refusal(machine.dataset, config, True, 0.0)
    with environment(AWS_ENDPOINT_URL=s3.url):
        assert "no credentials were found" in refusal(machine.dataset, config, True, 0.0)
    s3.fault = lambda method, path: (503, "SlowDown")
    begin = time.monotonic()
    assert "has not answered for 0.1 s" in refusal(machine.dataset, config, True, 0.0)
    assert time.monotonic() - begin < 5
    config.root = "s3://data/other"
    s3.fault = lambda method, path: None
    assert "s3://data/other/packed.json" in refusal(machine.dataset, config, True, 0.0)


# ---- a training

NO_LOSS = """
import sys, pathlib
logs = next(word for word in sys.argv if word.startswith('paths.log_dir=')).split('=')[1]
for name in ('metrics.json', 'config.yaml', 'overrides.yaml', 'checkpoints/last.ckpt', 'tensorboard/x'):
    path = pathlib.Path(logs, 'pretrain/runs/smoke', name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('{}')
"""


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("raise SystemExit('no such thing')", ["status 1 (no such thing)"]),
        ("import os; os.kill(os.getpid(), 11)", ["status -11 (no output)"]),
        ("import time; time.sleep(60)", ["not finished after 2 s"]),
        ("", ["left no metrics.json, config.yaml", "checkpoints/last.ckpt"]),
        (NO_LOSS, ["a loss that is not finite"]),
    ],
)
def test_a_training_that_fails(script, words, tmp_path: Path, monkeypatch):
    (tmp_path / "src").mkdir()
    (tmp_path / "src/train.py").write_text(script)
    monkeypatch.setattr(demo, "ensure", lambda root, *_, **__: [root])
    text = refusal(
        smoke.smoke_train, [sys.executable, str(tmp_path / "src" / "train.py")], 2 if "sleep" in script else 60
    )
    assert all(word in text for word in [*words, "python src/train.py"])


@pytest.mark.full
def test_this_machine_is_fit(tmp_path: Path):
    """The whole command, as a person types it; it leaves nothing."""
    done = subprocess.run(
        [sys.executable, REPOSITORY / "src/doctor.py", f"paths.log_dir={tmp_path}/logs", "free_gb=1", "write_mb=16"],
        env={**os.environ, "TMPDIR": str(tmp_path), "WORLD_SIZE": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the run directory is complete" in " ".join(done.stdout.split())
    assert list(tmp_path.iterdir()) == []
