"""Checks of Python, packages, GPUs and decoders."""

from __future__ import annotations

import configparser
import importlib
import os
import platform
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

from deepavfusion.runs.provenance import UNKNOWN, code_state, short, version_of
from deepavfusion.utils.errors import DecodeError, UserError
from deepavfusion.utils.program import CLONE, PACKAGE

# Torch and what needs it are imported by the checks, whose lines then report a broken installation.

REINSTALL = "pip install it in a new environment"
ANEW = "rm -rf .venv && make setup reinstalls requirements.lock" if CLONE else REINSTALL
MODULES = (
    *("torch", "torchvision", "torchaudio", "lightning", "timm", "torchmetrics", "tensorboard", "decord", "av"),
    *("litdata", "boto3", "matplotlib", "PIL", "safetensors"),
)
GIB = 2**30


def code(repository: Path | None) -> str:
    """The commit that runs, if there is git, or the version that is installed."""
    state = code_state(repository)
    if state["commit"] == UNKNOWN:
        return "no git, or no repository: provenance.json of a run will not name the commit"
    if repository is None:
        return f"{short(str(state['commit']))}, installed in {PACKAGE}"
    return f"commit {short(str(state['commit']))}{', with changes' if state['dirty'] else ''}"


def packages(repository: Path | None) -> str:
    """Python and the installed packages satisfy setup.cfg, or what an installed package says that it needs."""
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    if repository is None:
        about = metadata.metadata("deepavfusion")
        expected, lines, where, anew = about["Requires-Python"], about.get_all("Requires-Dist") or [], "it", REINSTALL
    else:
        setup = configparser.ConfigParser()
        setup.read(repository / "setup.cfg")
        expected, lines = setup["options"]["python_requires"], setup["options"]["install_requires"].splitlines()
        where, anew = "setup.cfg", ANEW
    found = platform.python_version()
    if not SpecifierSet(expected).contains(found, prereleases=True):
        raise UserError(
            f"Python at {sys.executable} is {found}, expected {expected}: "
            f"{'rm -rf .venv && make setup PYTHON=python3.11' if repository else anew}."
        )
    needs = [Requirement(line) for line in lines if line.strip()]
    needs = [need for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
    wrong = []
    for need in needs:
        try:
            version = metadata.version(need.name)
            if not need.specifier.contains(version, prereleases=True):
                wrong.append(f"{need.name} is {version}, expected {need.specifier}")
        except metadata.PackageNotFoundError:
            wrong.append(f"{need} is not installed")
    if wrong:
        raise UserError(f"{'; '.join(wrong)}: {anew}.")
    return f"Python {found} at {sys.executable}, {len(needs)} packages satisfy {where}"


def imports(modules: Iterable[str] = MODULES) -> str:
    """Everything imports, and torchvision's compiled operators match torch."""
    broken = []
    with _temporary_files():
        for name in modules:
            if name == "decord" and version_of(name) == UNKNOWN:  # there are not wheels for every machine
                continue
            try:
                importlib.import_module(name)
            except BaseException as error:  # a broken library may raise anything
                broken.append(f"{name} ({type(error).__name__}: {error})")
    if broken:
        raise UserError(f"cannot be imported: {'; '.join(broken)}: {ANEW}.")
    import torch
    import torchvision

    boxes = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 2], [5, 5, 6, 6]])
    try:
        torchvision.ops.nms(boxes, torch.tensor([0.5, 0.9, 0.1]), 0.5)
    except (RuntimeError, NotImplementedError, AttributeError) as error:
        raise UserError(
            f"torchvision {torchvision.__version__} does not match torch {torch.__version__} "
            f"({str(error)[:200]}); expected both of one release: {ANEW}."
        ) from None
    return f"torch {torch.__version__}, torchvision {torchvision.__version__}, and the rest"


@contextmanager
def _temporary_files() -> Iterator[None]:
    """Remove what libraries make as they are imported, as wandb does: their own way comes too late in a process that is
    ended by `examine`."""
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory() as folder:
        tempfile.tempdir = folder
        try:
            yield
        finally:
            tempfile.tempdir = before


# ---- GPUs


def gpus() -> str:
    """Each GPU multiplies correctly; if torch cannot use one, why."""
    import torch

    if torch.cuda.is_available():
        return "; ".join(_gpu(n) for n in range(torch.cuda.device_count()))
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if has_nvidia() and not hidden:
        raise UserError(
            f"this machine has an NVIDIA GPU that torch {torch.__version__} cannot use; expected a driver for CUDA "
            f"{torch.version.cuda or '(none in this build)'}: install or update it, in a container start with --gpus "
            "all, or type export CUDA_VISIBLE_DEVICES= to run without."
        )
    return f"none{', CUDA_VISIBLE_DEVICES hides them' if hidden else ''}; runs use the CPU"


def _gpu(number: int) -> str:
    import torch

    name = torch.cuda.get_device_name(number)
    try:
        with torch.cuda.device(number):
            bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
            eye = torch.eye(64, dtype=torch.bfloat16 if bf16 else torch.float32, device="cuda")
            trace = (eye @ eye).sum().item()
            free, total = torch.cuda.mem_get_info()
    except RuntimeError as error:
        raise UserError(
            f"GPU {number}, {name}, cannot be used ({str(error).strip().splitlines()[0]}): end the programs that hold "
            "it, or choose others with CUDA_VISIBLE_DEVICES=<numbers>."
        ) from None
    if trace != 64:
        raise UserError(f"GPU {number}, {name}, multiplies wrongly: choose others with CUDA_VISIBLE_DEVICES=<numbers>.")
    return f"{name}, {free / GIB:.1f} of {total / GIB:.1f} GiB free, {'bf16' if bf16 else 'no bf16: 32 bits'}"


def has_nvidia(devices: Path = Path("/dev"), pci: Path = Path("/sys/bus/pci/devices")) -> bool:
    """Whether there is an NVIDIA GPU, with or without a driver."""
    cards = [path.parent for path in pci.glob("*/vendor") if path.read_text().strip() == "0x10de"]
    displays = any((card / "class").read_text().startswith("0x03") for card in cards)  # or 3D controllers
    return displays or any(devices.glob("nvidia[0-9]*"))


# ---- decoders


def decoders() -> str:
    """PyAV, and decord where there is one, read an mp4 of grey frames and a tone as it was written."""
    import numpy as np

    from deepavfusion.media import Media
    from deepavfusion.media.encode import write_mp4
    from deepavfusion.media.frames import decord, decord_frames

    fps, rate, levels = 10, 16_000, np.arange(40, 220, 9)
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(rate * len(levels) // fps) / rate)
    frames = np.broadcast_to(levels[:, None, None, None], (len(levels), 64, 64, 3)).astype(np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "grey.mp4")
        try:
            write_mp4(path, frames, fps, tone, rate)
            # Not `Media.frames`, which falls back to PyAV where decord fails.
            seen = decord_frames(str(path), list(range(len(levels))), len(levels))
            with Media(path) as media:
                alone = [media.frames([n / fps])[0] for n in range(len(levels))]
                heard = media.audio(0.0, len(tone) / rate, rate).numpy()
        except (DecodeError, UserError, OSError) as error:
            raise UserError(f"PyAV cannot write and read an mp4 ({error}): {ANEW}.") from None
    if decord is not None and seen is None:
        raise UserError(f"decord cannot read an mp4 that was just written: {ANEW}.")
    for name, read in {"PyAV": np.stack(alone), **({} if seen is None else {"decord": seen})}.items():
        worst = np.abs(read.mean(axis=(1, 2, 3)) - levels).max()
        if worst > 4:
            raise UserError(f"{name} reads other frames than were written, off by {worst:.0f} of 255: {ANEW}.")
    correlation = np.corrcoef(heard, tone)[0, 1] if heard.shape == tone.shape and heard.std() else 0.0
    if correlation < 0.99:
        raise UserError(f"PyAV reads other audio than was written (correlation {correlation:.2f}): {ANEW}.")
    by = "decord and from PyAV" if seen is not None else "PyAV"
    absent = "" if seen is not None else "; decord is not installed here, PyAV reads all frames"
    return f"{len(levels)} frames from {by}, and {len(tone) / rate:g} s of audio, as they were written{absent}"
