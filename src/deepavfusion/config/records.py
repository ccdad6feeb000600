"""What a record of overrides may choose: those of a checkpoint, and of a run directory.

A record may come from anyone. What this user's own runs wrote is taken as it is (runs/signing.py); of any other, only
what is listed here: choices of config groups by name, and keys with numbers, switches and plain words. It never chooses
what is called, where something is written, what is read outside the data folder, or whom the network asks. What is
typed with the command is not checked, and replaces what a record has for the same key.
"""

from __future__ import annotations

import re
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from deepavfusion.config.compose import choices
from deepavfusion.config.overrides import renamed, split_override
from deepavfusion.config.ranges import INDEX_TEXTS, NULL, RULES
from deepavfusion.config.rules import Rule, whole
from deepavfusion.utils.errors import UserError
from deepavfusion.utils.launch.cores import MAX_WORKERS

MOST, LONGEST = 1000, 4096  # overrides of a record, and characters of each
GROUPS = (
    *("experiment", "scale", "data", "data/samples", "model", "model/net"),
    *("callbacks", "trainer", "logger", "debug"),
)
OPTIONAL = ("experiment", "debug")  # groups that a run does without
LOCAL_LOGGERS = ("tensorboard", "csv", "none")  # those that ask nobody
SECTIONS = re.compile(r"(data|model|trainer|callbacks)\..*|seed|test|validate_before|matmul_precision|compile")
OF_THE_MACHINE = re.compile(
    r"trainer\.(devices|num_nodes|strategy|accelerator|profiler)|data\.(storage\..*|cache_size)"
)
# Of the keys that take any text, those for which a plain word is only a name: a split, a list below the data folder.
WORDS = {
    *("data.train_split", "data.val_split", "data.eval_split", "data.index.lists", "model.net.fusion"),
    *(f"data.index.{key}" for key in INDEX_TEXTS),
}
# Start weights, which are not read again when a run is resumed or evaluated.
UNREAD = ("model.pretrained", "model.image_weights", "model.audio_weights", "ckpt_path")
PROCESSES = dict.fromkeys(("data.num_workers", "model.metric_workers"), whole(0, MAX_WORKERS) | NULL)
PLAIN = re.compile(r"[\w.,:+\-'\" ]*|\[[\w.,:+\-'\" ]*\]", re.ASCII)
WORD = re.compile(r"\w[\w.+-]{0,79}|\d+(:\d\d){1,3}", re.ASCII)
FILE = re.compile(r"'[^\n]*'|[^\n'\"(){}\[\]]*")
HUB = re.compile(r"hf://[\w.-]+/[\w.-]+@[0-9a-f]{40}", re.ASCII)  # a commit of start weights, which are not read again
ADDRESS = re.compile(r"[A-Za-z0-9+.-]{2,}:")  # http://…, tcp:…


def accepted(found: object, given: list[str], source: str, own: bool = False, name: str | None = None) -> list[str]:
    """Recorded overrides, under today's keys.

    Args:
        found: the record, whatever it holds.
        given: overrides of the command.
        source: where the record was found, for messages.
        own: whether this user's run wrote it here.
        name: of the run directory it was found in.

    Raises:
        UserError: it is no list of overrides, or has some that only a command may have.
    """
    fits = isinstance(found, list) and len(found) <= MOST
    if not fits or not all(isinstance(value, str) and len(value) <= LONGEST for value in found):  # type: ignore
        raise UserError(f"{source} records {found!r:.80}, expected a list of overrides, as train.py writes it.")
    overrides = renamed(found)  # type: ignore[arg-type]
    typed = {split_override(override)[1] for override in given if not override.startswith("~")}
    refused = [
        override
        for override in overrides
        if not own and override not in given and (override.startswith("~") or split_override(override)[1] not in typed)
        if not _may_choose(override, name)
    ]
    if refused:
        shown = ", ".join(f"{override!a:.80}" for override in refused[:3]) + (", …" if len(refused) > 3 else "")
        raise UserError(
            f"{source} records the override{'s' * (len(refused) > 1)} {shown}; a record that no run of yours wrote "
            "here may not choose what is called, read or written, nor remove keys; nothing was run: if you want that, "
            "give it again with the command, or another value of the key."
        )
    return overrides


def shareable(found: object) -> list[str]:
    """Of recorded overrides those that another user's record may choose, without the files that were read.

    Args:
        found: the record, whatever it holds.
    """
    listed = found[:MOST] if isinstance(found, list) else []
    texts = [each for each in listed if isinstance(each, str) and len(each) <= LONGEST]
    overrides = [each for each in renamed(texts) if split_override(each)[1] not in (*UNREAD, "run.name")]
    return [override for override in overrides if _may_choose(override, None)]


def _may_choose(override: str, name: str | None) -> bool:
    sign, key, text = split_override(override)
    if key == "logger":
        return not sign and all(
            name.strip() in LOCAL_LOGGERS for name in text.removeprefix("[").removesuffix("]").split(",")
        )
    if key in GROUPS:
        return not sign and (text in choices(key) or (text == "null" and key in OPTIONAL))
    if sign == "~":
        return False
    if key in UNREAD:
        return bool(FILE.fullmatch(text)) and _is_file(_value(override))
    if not PLAIN.fullmatch(text):
        return False
    value = _value(override)
    if key == "run.name":
        return value == name  # it is there already
    if key == "run.latest":
        return isinstance(value, bool)
    if key in PROCESSES:
        return PROCESSES[key].holds(value)
    rule = RULES.get(key)
    if rule is None or not SECTIONS.fullmatch(key) or OF_THE_MACHINE.fullmatch(key):
        return False
    words = key in WORDS or not _takes_any_text(rule)
    return all(_is_plain(part, words) for part in (value if isinstance(value, list) else [value]))


def _value(override: str) -> Any:
    """What Hydra reads; `Ellipsis`, which nothing takes, for what it cannot read or takes for several runs."""
    try:
        parsed = OverridesParser.create().parse_override(override)
        return ... if parsed.is_sweep_override() else parsed.value()
    except (HydraException, ValueError, RecursionError):
        return ...


def _takes_any_text(rule: Rule) -> bool:
    return any(rule.holds(value) for value in ("any text", ["any text"]))


def _is_plain(value: Any, words: bool) -> bool:
    if isinstance(value, str):
        return words and ".." not in value and bool(WORD.fullmatch(value))
    return value is None or isinstance(value, (bool, int, float))


def _is_file(value: Any) -> bool:
    if not isinstance(value, str):
        return value is None
    return "${" not in value and not (ADDRESS.match(value) and not HUB.fullmatch(value))
