"""The check that `prepare.py command=verify` makes of one clip: all of it decodes, and masks fit their images."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deepavfusion.data.lists.verified import STATUSES
from deepavfusion.media import scan
from deepavfusion.media.stills import check_sums, is_named_like, read_image, read_mask, read_mask_of
from deepavfusion.transforms.audio import SAMPLE_RATE
from deepavfusion.types import Clip
from deepavfusion.utils.errors import DecodeError

SILENCE = 10 ** (-60 / 20)  # −60 dBFS: audio that never gets louder is silent
STILL = 12.0  # of 255, see Scan.movement: encoded stills move by up to 6, the calmest demo clip by 37


@dataclass(frozen=True)
class Verdict:
    """The result for a clip."""

    status: str  # the first of `STATUSES` that applies
    detail: str = ""  # a clause that explains it
    also: tuple[str, ...] = ()  # the other statuses that apply
    mask_values: tuple[int, ...] = ()  # other than 0


Finding = tuple[str, str]  # status and detail


def check_clip(clip: Clip, audio_seconds: float, classes: int | None, label_offset: int = 0) -> Verdict:
    """Decode all of a clip.

    Args:
        clip: a media file, or a folder of annotated images if it has `frames`.
        audio_seconds: length of the window that training reads.
        classes: number of classes, with background; None: masks may hold any value.
        label_offset: a mask's value plus this is a class.
    """
    if clip.frames:
        return _check_folder(clip, classes, label_offset)
    try:
        found = scan(clip.path)
    except DecodeError as error:
        return verdict([_finding(error)])
    findings = _audio(found.peak, found.audio_end, audio_seconds)
    if found.movement < STILL:
        many = f"{found.frames} frames" if found.frames > 1 else "one frame"
        findings.append(("still", f"{many} that move by {found.movement:.0f} of 255 at most"))
    return verdict(findings)


def verdict(findings: Iterable[Finding], mask_values: Iterable[int] = ()) -> Verdict:
    """The finding of the highest rank, with the others; none: ok."""
    ordered = sorted(findings, key=lambda finding: STATUSES.index(finding[0])) or [("ok", "")]
    also = list(dict.fromkeys(word for word, _ in ordered))[1:]
    return Verdict(*ordered[0], also=tuple(also), mask_values=tuple(sorted(mask_values)))


def _audio(peak: float, end: float, audio_seconds: float) -> list[Finding]:
    findings = []
    if peak < SILENCE:
        decibels = f"{20 * np.log10(peak):.0f} dBFS" if peak else "0"
        findings.append(("silent", f"the loudest sample is {decibels}"))
    if not round(end * SAMPLE_RATE):
        findings.append(("no_audio", "the audio stream holds less than a sample"))
    elif round(end * SAMPLE_RATE) < round(audio_seconds * SAMPLE_RATE):
        findings.append(("too_short", f"{end:.2f} s of audio, the window is {audio_seconds:g} s"))
    return findings


def _finding(error: DecodeError, name: str = "", missing: str = "missing") -> Finding:
    """A failure as a status of the report, whose `too_short` means audio that training can extend."""
    status = {"too_short": f"no_{error.stream}", "missing": missing}.get(error.reason, error.reason)
    return status, f"{name}: {error.detail}" if name else error.detail


def _check_folder(clip: Clip, classes: int | None, label_offset: int) -> Verdict:
    """Check audio.wav, and the image and mask of each annotated second."""
    folder, findings, values = Path(clip.path), list[Finding](), set[int]()
    try:
        audio = scan(folder / "audio.wav", video=False)
        findings += _audio(audio.peak, audio.audio_end, audio_seconds=0.0)
    except DecodeError as error:
        findings.append(_finding(error, "audio.wav", missing="no_audio"))
    for second in clip.frames:
        image, mask = f"frames/{second}.jpg", f"labels_semantic/{second}.png"
        readable = False
        try:
            read_image(folder / image)
            readable = True
            if is_named_like(folder / image):
                scan(folder / image, audio=False)  # finds damage that libjpeg hides
        except DecodeError as error:
            findings.append(_finding(error, image, missing="no_video"))
        try:
            annotation = read_mask(folder / mask)
            check_sums(folder / mask)
        except DecodeError as error:
            findings.append(("bad_mask", f"{mask}: {error.detail}"))
            continue
        if readable:
            try:
                read_mask_of(folder / image, folder / mask)
            except DecodeError as error:
                findings.append(("bad_mask", error.detail))
        found = [int(value) for value in np.unique(np.asarray(annotation)) if value]
        values.update(found)
        strange = [value for value in found if classes is not None and not 0 <= value + label_offset < classes]
        if strange:
            offset = f"data.samples.label_offset is {label_offset}"
            what = f"{mask} holds the value {strange[0]}, which is none of the {classes} classes ({offset})"
            findings.append(("bad_mask", what))
    return verdict(findings, values)
