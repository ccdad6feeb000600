"""Checks the values of a config: each against the table of `ranges`, and those that depend on each other."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from deepavfusion.config.loggers import missing_packages
from deepavfusion.config.lookup import ABSENT, node_at, value_at
from deepavfusion.config.ranges import CASE, RULES
from deepavfusion.utils.errors import UserError

SECTIONS = (
    *("data", "data.index", "data.samples", "data.storage", "model", "model.net", "model.net.image", "model.net.audio"),
    *("trainer", "callbacks", "logger", "run", "paths", "pack", "benchmark", "benchmark.recipe", "study"),
)
# Any text, since no object is built with it
OPENED_BY_SCRIPTS = ("ckpt_path", "video", "input", "output", "root", "index", "query", "check", "package")
MULTIPLES: list[tuple[str, str | int]] = [  # the first is a multiple of the second
    *((f"model.net.{stream}.input_size", f"model.net.{stream}.patch_size") for stream in ("image", "audio")),
    *((f"model.net.{stream}.embed_dim", f"model.net.{stream}.num_heads") for stream in ("image", "audio")),
    *((f"model.net.{stream}.embed_dim", 4) for stream in ("image", "audio")),  # sine and cosine of row and column
    ("model.net.image.embed_dim", "model.net.fusion_num_heads"),
    ("model.decoder_embed_dim", "model.decoder_num_heads"),
    ("model.decoder_embed_dim", 4),
]
SET_BY = {  # keys that are computed from others
    "model.net.image.input_size": "data.image_size",
    "model.net.audio.input_size": "data.audio_seconds (64 columns a second)",
}


def check_ranges(cfg: Mapping[str, Any]) -> None:
    """Check the values of a config, each by itself and those that depend on each other, before anything is built.

    Keys that the config lacks are skipped.

    Raises:
        UserError: names the first invalid value, its key, what was expected and how to fix it.
    """
    for key in SECTIONS:
        node = node_at(cfg, key)
        if node is not ABSENT and not isinstance(node, Mapping):
            raise UserError(f"{key} is {_shown(node)}, expected keys below it: set those, or omit {key}.")
    for group in ("callbacks", "logger"):
        found = node_at(cfg, group)
        for name, node in () if found is ABSENT else found.items():
            if not isinstance(node, Mapping) or "_target_" not in node:
                key = f"{group}.{name}"
                raise UserError(f"{key} is {_shown(node)}, expected a config with a _target_: ~{key} does without it.")
    for key, rule in RULES.items():
        value = value_at(cfg, key)
        if value is not ABSENT and not rule.holds(value):
            raise UserError(f"{key} is {_shown(value)}, expected {rule.expected}: give such a value, or omit the key.")
        if isinstance(value, str) and "${" in value and key not in OPENED_BY_SCRIPTS:
            raise UserError(
                f"{key} is {_shown(value)}, whose ${{ objects that are built from the config would take for the name "
                "of another key: rename the file or folder, or give a link to it."
            )
    for problem in _misfits(cfg):
        raise UserError(problem)


def _shown(value: Any) -> str:
    return textwrap.shorten(repr(value), 80, placeholder=" …")


def _misfits(cfg: Mapping[str, Any]) -> Iterator[str]:
    """Values that are valid alone, but not together."""
    for key, other in MULTIPLES:
        value, of = value_at(cfg, key), other if isinstance(other, int) else value_at(cfg, other)
        if ABSENT in (value, of) or of is None:
            continue
        for size in value if isinstance(value, list) else [value]:
            if size < of or size % of:
                name = other if of == other else f"{other}={of}"
                yield f"{key} is {value}, expected a multiple of {name}: change {SET_BY.get(key, key)}."
    if value_at(cfg, "model.compare_untrained") is True and value_at(cfg, "model.frozen") is not True:
        yield "model.compare_untrained is true, expected model.frozen=true with it: only probes have this comparison."
    for device in ("cpu", "cuda"):
        cases = value_at(cfg, f"benchmark.cases.{device}")
        for n, case in enumerate([] if cases is ABSENT else cases):
            where = f"benchmark.cases.{device}[{n}]"
            for key, value in case.items():
                if key not in CASE:
                    yield f"{where} has the unknown key {key!r}, expected one of {', '.join(CASE)}: change it."
                elif not CASE[key].holds(value):
                    yield f"{where}.{key} is {_shown(value)}, expected {CASE[key].expected}: change it."
            if case.get("passes", "train_step") == "train_step" and case.get("masked") is False:
                yield f"{where}.masked is false, but a train_step is always masked: set passes to encoder_forward."
    yield from missing_packages(value_at(cfg, "logger"))
    net = "model.net"
    dim, heads, ratio, layers = (
        value_at(cfg, f"{net}.{key}")
        for key in ("image.embed_dim", "fusion_num_heads", "fusion_attn_ratio", "fusion_layers")
    )
    if ABSENT not in (dim, heads, ratio, layers) and heads is not None and layers not in ("none", []):
        width = int(dim * ratio)
        if width < heads or width % heads:
            yield (
                f"{net}.fusion_attn_ratio is {ratio:g}, which makes {width} channels of {net}.image.embed_dim={dim}, "
                f"expected a multiple of {net}.fusion_num_heads={heads}: change {net}.fusion_attn_ratio."
            )
    for stream in ("image", "audio"):
        ratio, patch = value_at(cfg, f"model.{stream}_mask_ratio"), value_at(cfg, f"{net}.{stream}.patch_size")
        size = value_at(cfg, f"{net}.{stream}.input_size")
        if ABSENT not in (ratio, patch, size):
            patches = (size[0] // patch) * (size[1] // patch)
            if not 0 < int(patches * (1 - ratio)) < patches:
                yield (
                    f"model.{stream}_mask_ratio is {ratio:g} of {patches} patches, expected some of them hidden and "
                    f"some visible: change model.{stream}_mask_ratio."
                )
