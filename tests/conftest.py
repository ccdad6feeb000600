"""Fixtures for every test."""

from __future__ import annotations

import gc
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Tests run side by side, and threads that share a core only wait for each other: each process has cores of its own, and
# so have the processes it starts. Before torch counts them.
if "PYTEST_XDIST_WORKER" in os.environ and hasattr(os, "sched_setaffinity"):
    cores = sorted(os.sched_getaffinity(0))
    number = int(os.environ["PYTEST_XDIST_WORKER"].removeprefix("gw"))
    count = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.sched_setaffinity(0, cores[number::count] or cores)

import pytest
import torch
from filelock import FileLock
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from omegaconf import OmegaConf

from deepavfusion.config.compose import CONFIG_DIR


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Training sets the number of threads for its process; the next test begins with one again."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of all processes of a test run."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session", autouse=True)
def own_state(shared: Path) -> None:
    """The key that signs records is one of the tests, also in the processes that they start."""
    os.environ["XDG_STATE_HOME"] = str(shared / "state")


@pytest.fixture(scope="session", autouse=True)
def config_files_are_parsed_once() -> Iterator[None]:
    """Many tests do little but compose configs, a third of which is parsing the same files."""
    load, known = OmegaConf.load, dict[tuple[int, ...], bytes]()

    def parsed(file: Any) -> Any:
        if not hasattr(file, "fileno"):
            return load(file)
        status = os.fstat(file.fileno())
        key = status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size
        if key not in known:
            known[key] = pickle.dumps(load(file))
        return pickle.loads(known[key])  # in less than half of the time of a deep copy

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OmegaConf, "load", staticmethod(parsed))
        yield


@pytest.fixture(scope="session", autouse=True)
def equal_configs_are_composed_once() -> Iterator[None]:
    """A quarter of all; only of the project's own files, which do not change meanwhile."""
    load, known = ConfigLoaderImpl.load_configuration, dict[tuple[Any, ...], bytes]()

    def composed(self: Any, config_name: Any, overrides: Any, *more: Any, **named: Any) -> Any:
        folders = [each.path for each in self.config_search_path.get_path()]
        if any("://" not in each and each != CONFIG_DIR for each in folders):
            return load(self, config_name, overrides, *more, **named)
        key = (Path.cwd(), config_name, *overrides, *folders, *more, *named.items())
        if key not in known:
            known[key] = pickle.dumps(load(self, config_name, overrides, *more, **named))
        return pickle.loads(known[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ConfigLoaderImpl, "load_configuration", composed)
        yield


@pytest.fixture(scope="session")
def real_clips() -> Path:
    """A folder of real clips beside the repository, where there is one; they are never committed."""
    folder = Path(__file__).resolve().parents[1] / ".." / "shared" / "clips"
    if not folder.is_dir():
        pytest.skip("no real clips beside the repository")
    return folder


def pytest_collection_finish() -> None:
    """Half a million objects of libraries and tests, which stay, are looked through no more."""
    gc.collect()
    gc.freeze()


def generated(folder: Path, *sets: str, **counts: int) -> Path:
    """The folder, with demo data. Tests that change the data copy them first."""
    from deepavfusion.demo import demo

    demo.ensure(folder, list(sets), workers=1, counts=demo.Counts(**counts))  # only one process works at a time
    return folder


@pytest.fixture(scope="session")
def data_root(shared: Path) -> Path:
    """16 clips for training and 8 for testing."""
    return generated(shared / "demo", "vggsound", vggsound_train=2, vggsound_test=1) / "vggsound"


@pytest.fixture(scope="session")
def music_root(shared: Path) -> Path:
    return generated(shared / "demo", "music", solos=10, duets=2) / "music"


@pytest.fixture(scope="session")
def avsbench_root(shared: Path) -> Path:
    counts = {"s4_train": 8, "s4_val": 4, "s4_test": 4, "ms3_train": 4, "ms3_val": 2, "ms3_test": 4}
    return generated(shared / "demo", "avsbench", **counts) / "avsbench"


@pytest.fixture(scope="session")
def classify_data(shared: Path) -> Path:
    """Demo data, and logs beside it."""
    counts = {"vggsound_train": 3, "vggsound_test": 1}
    counts |= {"audioset_balanced": 12, "audioset_unbalanced": 2, "audioset_eval": 8}
    return generated(shared / "classify", "vggsound", "audioset", **counts)


@pytest.fixture(scope="session")
def pretrained(classify_data: Path) -> Path:
    """A checkpoint as pre-training writes it."""
    from deepavfusion.config.compose import instantiate
    from helpers.runs import CLASSIFY, compose

    path = classify_data / "pretrained.ckpt"
    of_classification = ("model.warmup_epochs", "data.dense", "data.holdout", "~")
    given = (value for value in CLASSIFY if not value.startswith(of_classification))
    with FileLock(f"{path}.lock"):
        if not path.exists():
            torch.manual_seed(5)
            state = instantiate(compose("experiment=pretrain_vggsound", *given).model).state_dict()
            torch.save({"state_dict": state}, path)
    return path


def trained(logs: Path, name: str, *overrides: str) -> Path:
    """The directory of a finished run, which only one process trains; tests do not change it."""
    from helpers.runs import finished

    logs.mkdir(exist_ok=True)
    with FileLock(logs / f"{name}.lock"):
        for run_dir in logs.glob(f"*/runs/{name}"):
            if (run_dir / "metrics.json").exists():
                return run_dir
        return finished(logs, name, *overrides)


def classified(data: Path, experiment: str, name: str, pretrained: Path) -> Path:
    from helpers.runs import CLASSIFY

    given = [*CLASSIFY, f"experiment={experiment}", f"data.root={data / experiment.split('_')[0]}"]
    return trained(data / "logs", name, *given, f"model.pretrained={pretrained}")


@pytest.fixture(scope="session")
def finetuned(classify_data: Path, pretrained: Path) -> Path:
    return classified(classify_data, "vggsound_finetune", "finetuned", pretrained)


@pytest.fixture(scope="session")
def probed(classify_data: Path, pretrained: Path) -> Path:
    return classified(classify_data, "vggsound_linear_probe", "probed", pretrained)


@pytest.fixture(scope="session")
def several(classify_data: Path, pretrained: Path) -> Path:
    """Each clip has several labels."""
    return classified(classify_data, "audioset_finetune", "several", pretrained)


@pytest.fixture(scope="session")
def retrieved(classify_data: Path, pretrained: Path) -> Path:
    return classified(classify_data, "vggsound_retrieval", "retrieved", pretrained)


@pytest.fixture(scope="session")
def separated(shared: Path, music_root: Path) -> Path:
    from helpers.runs import SEPARATE

    return trained(shared / "logs", "separated", *SEPARATE, f"data.root={music_root}")


@pytest.fixture(scope="session")
def segmented(shared: Path, avsbench_root: Path) -> Path:
    from helpers.runs import SEGMENT

    return trained(shared / "logs", "segmented", *SEGMENT, f"data.root={avsbench_root}")


@pytest.fixture(scope="session")
def _service() -> Iterator[Any]:
    from helpers.storage import Service

    service = Service()
    yield service
    service.stop()


@pytest.fixture
def s3(_service: Any) -> Iterator[Any]:
    """An S3 service without faults, empty, and the environment variables that lead to it."""
    from helpers.storage import KEYS, environment

    _service.reset()
    with environment(**KEYS, AWS_ENDPOINT_URL=_service.url):
        yield _service
        _service.empty()
