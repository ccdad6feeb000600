"""Which clips are mixed: fixed by the protocol, seeded for evaluation, drawn anew in training."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from itertools import chain, repeat

import torch

from deepavfusion.data.lists.clip_list import ClipList
from deepavfusion.types import Clip
from deepavfusion.utils.errors import UserError

TRIES = 1000  # draws from `near`, and then from the whole list, before a partner is called impossible


def evaluation_mixtures(clips: ClipList, sources: int, different_class: bool, seed: int) -> list[tuple[int, ...]]:
    """The mixtures of an evaluation as positions in `clips.clips`, the same in every run.

    Where the list fixes them: the protocol's, except those with a missing clip. Else one for each clip, with partners
    drawn from the seed and the list alone.

    Raises:
        UserError: the protocol mixes another number of clips, or a clip has no partner.
    """
    if not clips.mixtures:
        everything = range(len(clips.clips))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return [draw_partners(clips.clips, n, everything, sources, different_class) for n in everything]
    other = next((ids for ids in clips.mixtures if len(ids) != sources), None)
    if other is not None:
        raise UserError(
            f"the {clips.split} split fixes mixtures of {len(other)} clips, data.samples.sources is {sources}: set "
            f"data.samples.sources={len(other)}."
        )
    position = {clip.id: n for n, clip in enumerate(clips.clips)}
    return [tuple(position[i] for i in ids) for ids in clips.mixtures if all(i in position for i in ids)]


def other_class_partners(clips: Sequence[Clip]) -> list[int] | None:
    """For each clip the position of a clip of another video and other classes; None if a clip has no such partner.

    It is the next clip without a common class, in an order that follows from the ids alone; if all share one, the
    clip with the fewest in common.
    """
    order = sorted(range(len(clips)), key=lambda n: zlib.crc32(clips[n].id.encode()))
    classes = [frozenset(clip.classes) for clip in clips]
    found = [-1] * len(clips)
    for place, n in enumerate(order):
        least = len(classes[n])
        for m in (*order[place + 1 :], *order[:place]):
            common = len(classes[m] & classes[n])
            if common < least and clips[m].video_id != clips[n].video_id:
                found[n], least = m, common
                if not common:
                    break
    return None if -1 in found else found


def draw_partners(
    clips: Sequence[Clip], first: int, near: Sequence[int], sources: int, different_class: bool
) -> tuple[int, ...]:
    """A clip and `sources` − 1 others of different videos (and classes), from torch's global generator.

    Args:
        clips: the list.
        first: position of the clip that is mixed with others.
        near: positions that the partners come from; the whole list when these offer none.
        sources: clips a mixture, the first one included.
        different_class: no class occurs twice.

    Raises:
        UserError: the list offers no such partner.
    """
    chosen = [first]
    while len(chosen) < sources:
        partner = _partner(clips, chosen, near, different_class)
        if partner is None:
            kind = "another video and class" if different_class else "another video"
            raise UserError(
                f"no clip of {kind} was found to mix with {', '.join(clips[n].id for n in chosen)} among "
                f"{len(clips)} clips: give more clips, or set data.samples.sources lower"
                + (" or data.samples.different_class=false." if different_class else ".")
            )
        chosen.append(partner)
    return tuple(chosen)


def _partner(clips: Sequence[Clip], chosen: list[int], near: Sequence[int], different_class: bool) -> int | None:
    videos = {clips[n].video_id for n in chosen}
    classes = {label for n in chosen for label in clips[n].classes} if different_class else set()
    for pool in chain(repeat(near, TRIES), repeat(range(len(clips)), TRIES)):
        candidate = pool[int(torch.randint(len(pool), ()).item())]
        clip = clips[candidate]
        # A clip without a class is not known to be of another one.
        if clip.video_id not in videos and (not different_class or (clip.classes and classes.isdisjoint(clip.classes))):
            return candidate
    return None
