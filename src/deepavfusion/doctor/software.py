"""Python, packages, processors and decoders."""

from __future__ import annotations

import configparser
import importlib
import os
import platform
import sys
import tempfile
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from deepavfusion.utils.errors import UserError

# Torch and what needs it is imported in the checks: where it is broken, their lines tell.

ANEW = "run make setup, which installs requirements.lock anew"
TRIO = ("torch", "torchvision", "torchaudio")  # released together
MODULES = (
    *TRIO,
    *("lightning", "timm", "torchmetrics", "hydra", "tensorboard", "decord", "av", "litdata", "boto3"),
    *("matplotlib", "PIL", "rich", "safetensors"),
)
LEAST_MEMORY = 2 * 2**30  # bytes: a demo run with its decoding processes
GIB = 2**30


def python(repository: Path) -> str:
    """The interpreter is as new as setup.cfg asks."""
    from packaging.specifiers import SpecifierSet

    expected, found = _setup(repository)["python_requires"], platform.python_version()
    if not SpecifierSet(expected).contains(found, prereleases=True):
        raise UserError(
            f"Python at {sys.executable} is {found}, expected {expected}: "
            "make .venv with another, make setup PYTHON=python3.11."
        )
    return f"{found} at {sys.executable}"


def packages(repository: Path) -> str:
    """What is installed is what setup.cfg asks for, and torch, torchvision and torchaudio are of one build."""
    from packaging.requirements import Requirement
    from packaging.version import Version

    wrong, found = [], {}
    for line in _setup(repository)["install_requires"].split("\n"):
        if not line.strip():
            continue
        need = Requirement(line)
        try:
            found[need.name] = version = metadata.version(need.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{need} is not installed")
            continue
        if not need.specifier.contains(version, prereleases=True):
            wrong.append(f"{need.name} is {version}, expected {need.specifier}")
    builds = {name: Version(found[name]).local for name in TRIO if name in found}
    if not wrong and len(set(builds.values())) > 1:
        wrong.append(f"{', '.join(f'{name} {found[name]}' for name in builds)} are of different builds")
    if wrong:
        raise UserError(f"{'; '.join(wrong)}: {ANEW}.")
    other = [f"{name} {found[name]} (lock: {locked})" for name, locked in _lock(repository, found)]
    said = f"; other than in requirements.lock: {', '.join(other)}" if other else ", as in requirements.lock"
    return f"{len(found)} packages as setup.cfg asks{said}"


def _setup(repository: Path) -> configparser.SectionProxy:
    path = repository / "setup.cfg"
    setup = configparser.ConfigParser()
    if not setup.read(path):
        raise UserError(f"{path} does not exist; expected the project's file: get the repository anew.")
    return setup["options"]


def _lock(repository: Path, found: dict[str, str]) -> Iterable[tuple[str, str]]:
    """Packages whose version is another than the locked one."""
    from packaging.requirements import InvalidRequirement, Requirement

    path = repository / "requirements.lock"
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            pin = Requirement(line)
        except InvalidRequirement:  # a comment
            continue
        here = pin.marker is None or pin.marker.evaluate()
        if here and pin.name in found and not pin.specifier.contains(found[pin.name], prereleases=True):
            yield pin.name, str(pin.specifier).removeprefix("==")


def imports(modules: Iterable[str] = MODULES) -> str:
    """Everything imports, and torchvision's compiled operations fit torch."""
    broken = []
    for name in modules:
        try:
            importlib.import_module(name)
        except BaseException as error:  # a library that does not load may raise anything
            broken.append(f"{name} ({type(error).__name__}: {' '.join(str(error).split())})")
    if broken:
        raise UserError(f"not to be imported: {'; '.join(broken)}: {ANEW}.")
    import torch
    import torchvision

    boxes = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 2], [5, 5, 6, 6]])
    try:
        kept = torchvision.ops.nms(boxes, torch.tensor([0.5, 0.9, 0.1]), 0.5).tolist()
    except (RuntimeError, NotImplementedError, AttributeError) as error:
        raise UserError(
            f"torchvision {torchvision.__version__} has no working torchvision::nms for torch {torch.__version__} "
            f"({' '.join(str(error).split())}); expected torch, torchvision and torchaudio of one release: {ANEW}."
        ) from None
    if kept != [1, 2]:
        raise UserError(f"torchvision::nms keeps boxes {kept}, expected [1, 2]: {ANEW}.")
    return f"torch {torch.__version__}, torchvision {torchvision.__version__} with torchvision::nms, and the rest"


# ---- processors


def cores_and_memory() -> str:
    """The cores that this process may use, and free memory; a container's limits count."""
    cores, all_cores = len(os.sched_getaffinity(0)), os.cpu_count() or 1
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    free = int(lines["MemAvailable"].split()[0]) * 1024
    group = Path("/sys/fs/cgroup")
    limit, used, quota = (_first_word(group / name) for name in ("memory.max", "memory.current", "cpu.max"))
    if limit.isdigit() and used.isdigit():
        free = min(free, int(limit) - int(used))
    if free < LEAST_MEMORY:
        raise UserError(
            f"{free / GIB:.1f} GiB of memory are free, a demo run needs {LEAST_MEMORY / GIB:.0f}: end other programs, or "
            "raise the limit of the container (docker run --memory)."
        )
    held = ""
    if quota.isdigit():
        period = float((group / "cpu.max").read_text().split()[1])
        held = f", of which the container may use {int(quota) / period:g} at a time"
    return f"{cores} of {all_cores} cores{held}, {free / GIB:.1f} GiB of memory free"


def _first_word(path: Path) -> str:
    return path.read_text().split()[0] if path.is_file() else ""


def gpus() -> str:
    """Each GPU multiplies; without one that could be used, why not."""
    import torch

    if torch.backends.mps.is_available():
        return "Apple GPU"
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    there = not hidden and has_nvidia()
    none = "none" + (", CUDA_VISIBLE_DEVICES hides them" if hidden else "") + "; runs use the CPU"
    if not torch.backends.cuda.is_built():
        if there:
            raise UserError(f"this machine has an NVIDIA GPU, but torch {torch.__version__} is built without CUDA: {ANEW}.")
        return none
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        if there:
            raise UserError(
                f"this machine has an NVIDIA GPU, but CUDA does not start ({' '.join(str(error).split())}); expected a "
                f"driver for CUDA {torch.version.cuda}: install or update it (nvidia-smi names it), in a container "
                "start with --gpus all, or set CUDA_VISIBLE_DEVICES= to go on without."
            ) from None
        return none
    return "; ".join(_gpu(n) for n in range(torch.cuda.device_count()))


def _gpu(number: int) -> str:
    import torch

    name = torch.cuda.get_device_name(number)
    with torch.cuda.device(number):
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        try:
            eye = torch.eye(64, dtype=torch.bfloat16 if bf16 else torch.float32, device="cuda")
            found = (eye @ eye).sum().item()
            free, total = torch.cuda.mem_get_info()
        except RuntimeError as error:
            raise UserError(
                f"GPU {number}, {name}, cannot be used ({str(error).strip().splitlines()[0]}): end the programs that "
                "hold it, or choose others with CUDA_VISIBLE_DEVICES=<numbers>."
            ) from None
    if found != 64:
        raise UserError(f"GPU {number}, {name}, multiplies wrongly: choose others with CUDA_VISIBLE_DEVICES=<numbers>.")
    return f"{name}, {free / GIB:.1f} of {total / GIB:.1f} GiB free, {'bf16' if bf16 else 'no bf16: 32 bits'}"


def has_nvidia() -> bool:
    """Whether there is such a GPU, with a driver or without."""
    if any(Path("/dev").glob("nvidia[0-9]*")):
        return True
    cards = [path.parent for path in Path("/sys/bus/pci/devices").glob("*/vendor") if path.read_text().strip() == "0x10de"]
    return any((card / "class").read_text().startswith("0x03") for card in cards)  # display and 3D controllers


# ---- decoders


def decoders() -> str:
    """An mp4 of grey pictures and a tone comes back as it was written: pictures from decord, sound from PyAV."""
    import numpy as np

    from deepavfusion.data.decode import pictures, read_audio, read_frames
    from deepavfusion.data.encode import write_mp4

    fps, rate, levels = 10, 16_000, np.arange(40, 220, 9)
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(rate * len(levels) // fps) / rate)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "grey.mp4")
        frames = np.broadcast_to(levels[:, None, None, None], (len(levels), 64, 64, 3)).astype(np.uint8)
        write_mp4(path, frames, fps, tone, rate)
        by_decord = pictures._decord_frames(str(path), list(range(len(levels))), len(levels))
        seen = read_frames(path, [(n + 0.5) / fps for n in range(len(levels))])
        heard = read_audio(path, 0.0, len(tone) / rate, rate).numpy()
    if by_decord is None:
        raise UserError(f"decord cannot read an mp4 that was just written; expected {len(levels)} pictures: {ANEW}.")
    for name, found in (("decord", by_decord), ("the reader", seen)):
        worst = np.abs(found.mean(axis=(1, 2, 3)) - levels).max()
        if worst > 4:
            raise UserError(f"{name} gives other pictures than were written, {worst:.0f} of 255 apart: {ANEW}.")
    alike = np.corrcoef(heard, tone)[0, 1] if heard.shape == tone.shape and heard.std() else 0.0
    if alike < 0.99:
        raise UserError(f"PyAV gives another sound than was written, their correlation is {alike:.2f}: {ANEW}.")
    return f"{len(levels)} pictures from decord and {len(tone) / rate:g} s of sound from PyAV as they were written"
