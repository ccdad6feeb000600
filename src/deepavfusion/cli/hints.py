"""Wrong keys and choices of a command line: what was meant, and the line that works.

A command is checked against the config of its script before anything is imported for it: keys have to be in the
config, choices in their group. For what is not, the nearest names of that config are looked up, and the table of what
other projects call things (elsewhere.py).
"""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, ListConfig, OmegaConf

from deepavfusion.cli import elsewhere
from deepavfusion.cli.fixes import Fix, Hint
from deepavfusion.cli.keys import Keys, alike, nearest_keys, picked
from deepavfusion.cli.targets import parameters_of
from deepavfusion.cli.unread import TASKS, fix_unread
from deepavfusion.cli.words import Word
from deepavfusion.config.compose import choices
from deepavfusion.config.overrides import literal, split_override
from deepavfusion.config.ranges import RULES
from deepavfusion.utils.program import called

KINDS = ("music_separation", "music_duet_separation", "avsbench_s4", "vggsound_finetune", "vggsound_linear_probe")
NEAR_WORD = 0.84  # how alike two names are, from 0 to 1
NEEDED = ("data", "model", "model/net", "trainer", "callbacks", "logger", "paths", "benchmark", "study", "data/samples")
OPEN = ("callbacks", "logger")  # sections that take further entries
NOTHING = ("null", "none", "false", "no", "off", "")
OFF = (*NOTHING, "0")
MEANINGLESS = (*OFF, "1", "true", "yes", "on")  # they say nothing about which group was meant


def check(script: str, flags: list[str], words: Sequence[Word], recorded: Sequence[str] = ()) -> None:
    """Check that every word of a command sets a key, or picks a choice, that its script has.

    Args:
        script: the name of the script and of its config.
        flags: words for Hydra, such as -m.
        words: the others.
        recorded: overrides that the command takes from an earlier run.

    Raises:
        Hint: some do not.
    """
    given = [word.override for word in words if word.override]
    added = {split_override(override)[1] for override in [*recorded, *given] if override.startswith("+")}
    many = bool({"-m", "--multirun"} & set(flags))
    keys, meant = Keys(script, [*recorded, *given]), list[str]()
    for override in given:
        fix = _fix(keys, override, added, many)
        meant += fix.better if fix else [override]
    if meant != given:  # choices that are put right bring further keys
        keys = Keys(script, [*recorded, *meant])
    given_keys = [split_override(word.override)[1] for word in words]
    clauses, line, runs = list[str](), list[str](), False
    for n, word in enumerate(words):
        fix = _fix(keys, word.override, added, many) if word.override else Fix("it is no key=value")
        fix = fix_unread(script, fix.better if fix else [word.override], meant) or fix
        key = split_override(word.override)[1]
        if script == "predict" and key in ("video", "input", "index", "query") and key in given_keys[n + 1 :]:
            why = f"-m {key}=a.mp4,b.mp4 takes one after the other"
            fix = Fix(f"{word.override!r}: {key} is given again, and only the last one would be read", why=why)
        if fix is None and word.typed == word.override:
            line.append(word.override)
            continue
        fix = fix or Fix("it is written key=value here", [word.override])
        if word.typed != word.override:
            fix.problem = f"{word.typed!r}: {fix.problem}"
        clauses.append(str(fix))
        line += [*fix.experiment, *fix.better]
        runs |= fix.runs
    if clauses:
        raise Hint(script, clauses, [*flags, *(["-m"] if runs else []), *line])


def _fix(keys: Keys, override: str, added: set[str], many: bool) -> Fix | None:
    sign, key, value = split_override(override)
    if key.startswith("hydra") or "@" in key:
        return None
    if sign == "~":
        return None if key in keys or keys.group(key) or key in added else _fix_removal(keys, key)
    if group := keys.group(key):
        if sign:
            return Fix(f"{override} adds to a choice of which there is one", [f"{group}={value}"])
        return _fix_choice(keys, key, group, value, many)
    if key in keys or (_takes(keys, key, added) if sign else key in added):
        return _fix_value(keys, key, value, many)
    return _fix_key(keys, override, key, value)


# ---------------------------------------------------------------- keys


def _fix_removal(keys: Keys, key: str) -> Fix:
    near = [name for name in nearest_keys(keys, key) if name in keys]
    return Fix(f"there is no {key} to remove", [f"~{near[0]}"] if near else [])


def _takes(keys: Keys, key: str, added: set[str]) -> bool:
    """Whether something reads a key that is added with `+`."""
    section, _, name = key.rpartition(".")
    entry = ".".join(key.split(".")[:2])
    if entry.startswith(tuple(f"{each}." for each in OPEN)) and entry not in keys:
        return key in (entry, f"{entry}._target_") or bool({entry, f"{entry}._target_"} & added)
    node = keys.node(section) if section else Keys
    target = node.get("_target_") if isinstance(node, DictConfig) else None
    if target is None:
        return False
    parameters = parameters_of(str(target))
    return name in (*parameters, "_convert_", "_recursive_", "_partial_", "_args_") or "**" in parameters


def _fix_key(keys: Keys, override: str, key: str, value: str) -> Fix:
    shown = override if override.startswith("+") else key
    fix = Fix(f"there is no key {shown}")
    plain = re.sub(r"[-\s]", "_", key.strip().lower()).replace("/", ".")
    others = override.startswith("+") and plain.startswith(tuple(f"{each}." for each in OPEN))  # with own names
    if keys.script == "study" and plain.startswith(("study.axes.", "study.baseline.")):  # their keys have dots
        fix.why = "what a study compares is changed in a study of your own, docs/studies.md"
        return fix
    if plain in keys.names:
        fix.better = [f"{plain}={value}"]
        return fix
    if stage := re.fullmatch(r"study\.stages\.(\w+)\.overrides", plain):  # of one that has none
        given = _parsed(f"{key}={value}")
        texts = [f'"{stage[1]}: {text}"' for text in (given if isinstance(given, list) else [given])]
        fix.better = [f"study.stage_overrides=[{','.join(texts)}]"]
        return fix
    section, _, last = plain.rpartition(".")
    if not others and (known := _elsewhere(keys, section, last, value)):
        fix.better = known
        return fix
    for why, theirs in elsewhere.UNUSED.items():
        if last in theirs.split():
            fix.why = why
            return fix
    if experiments := [
        name for name in KINDS if keys.script == "train" and key in Keys("train", [f"experiment={name}"])
    ]:
        fix.problem = f"experiment={keys.chosen['experiment']} has no key {shown}, experiment={experiments[0]} has it"
        if "experiment" not in keys.given:
            fix.experiment, fix.better = [f"experiment={experiments[0]}"], [f"{key}={value}"]
        return fix
    near = nearest_keys(keys, plain)
    if not others and (not near or alike(plain, near[0]) < NEAR_WORD):  # a misspelt word of the table?
        table = elsewhere.words(keys.script)
        for word in difflib.get_close_matches(last, table, 1, NEAR_WORD):
            if known := _elsewhere(keys, section, word, value):
                fix.better = known
                return fix
    found = [_fitting(keys, f"{name}={value}") for name in near]
    fix.better, fix.others = next(iter(found), []), near[1:]
    if not near:
        fix.why = f"{shlex.join(called(keys.script))} --help lists the usual ones, --cfg job all of them"
    return fix


def _elsewhere(keys: Keys, section: str, word: str, value: str) -> list[str]:
    """What another project's word means here, in this section of the config rather than in others."""
    meanings = [(template.split(), _names_in(template)) for template in elsewhere.words(keys.script).get(word, [])]
    for parts, names in sorted(meanings, key=lambda meaning: meaning[1][0].rpartition(".")[0] != section):
        template = " ".join(parts)
        if not all(name in keys or keys.group(name) for name in names):
            continue
        if "{" not in template:
            return [] if value.lower() in OFF else parts
        if "trainer.devices={}" in parts:
            return _devices(value)
        found = []
        for part, name in zip(parts, names, strict=True):
            now = keys.node(name) if not keys.group(name) else None
            found += _fitting(keys, part.replace("{now}", str(now)).replace("{}", value))
        if found or keys.group(names[0]) is None:
            return found
    return []


def _names_in(template: str) -> list[str]:
    return [split_override(part)[1] for part in template.split()]


def _devices(value: str) -> list[str]:
    """`gpus=2` and the like, which are a number, a list or a switch."""
    if value.lower() in OFF or value == "cpu":
        return ["trainer=cpu"]
    if value in ("1", "true"):
        return ["trainer=gpu"]
    if re.fullmatch(r"\d+(,\d+)+", value):
        return ["trainer=ddp", f"trainer.devices=[{value}]"]
    return ["trainer=ddp", *([f"trainer.devices={value}"] if value.isdecimal() else [])]


def _fitting(keys: Keys, override: str) -> list[str]:
    """An override with its choice or value put right; with our own value, if nothing is near."""
    _, key, value = split_override(override)
    if group := keys.group(key):
        near = nearest(group, value, choices(group))
        return [f"{group}={near[0]}"] if near else []
    rule = RULES.get(key)
    if OmegaConf.is_config(keys.node(key)) and not isinstance(keys.node(key), ListConfig):
        return []
    if rule is None or rule.holds(_parsed(override)):
        return [override]
    near = nearest(key, value, [str(choice) for choice in _choices(keys, key)])
    now = keys.node(key)
    return [f"{key}={near[0]}"] if near else [f"{key}={now}"] if type(now) in (int, float, bool) else []


# ---------------------------------------------------------------- choices and values


def nearest(group: str, value: str, names: Sequence[str]) -> list[str]:
    """The names that may be meant by a value, the likeliest first; `group` selects what other projects call them."""
    plain = PurePath(value.lower().removesuffix(".yaml")).name.replace("-", "_") if value else ""
    for name, theirs in elsewhere.CHOICES.get(group, {}).items():
        if plain in theirs.split() or any(plain.startswith(f"{word}_") and len(word) > 4 for word in theirs.split()):
            return [name]
    if plain in names:
        return [plain]
    holding = [name for name in names if len(plain) > 2 and (plain in name or name in plain)]
    holding.sort(key=lambda name: (not name.startswith(plain), -difflib.SequenceMatcher(None, plain, name).ratio()))
    return list(dict.fromkeys([*holding, *difflib.get_close_matches(plain, names, 3, 0.6)]))


def _fix_choice(keys: Keys, key: str, group: str, value: str, many: bool) -> Fix | None:
    names = choices(group)
    parts = value.split(",") if many else [value]
    if all(part in names for part in parts):
        if key == group:
            return None
        return Fix(f"{key}={value} would replace a config with a word", [f"{group}={value}"])
    several = picked(value)
    if value.lower() in NOTHING or (several != [value] and any(part.lower() in NOTHING for part in several)):
        if group not in NEEDED or (keys.chosen.get(group) is None and value == "null"):
            return None if value == "null" else Fix(f"there is no {group}={value}", [f"{group}=null"])
        if "none" in names:
            return Fix(f"there is no {group}={value}", [f"{group}=none"])
        why = "every run needs it; ~callbacks.<name> does without one of them" if group == "callbacks" else ""
        return Fix(f"there is no {group}={value}", why=why or "it is needed")
    if re.search(r"[(${]", value):  # a function or an interpolation
        return None
    if value.startswith("["):
        if several != [value]:
            return _fix_choices(group, several, names)
        flat = ",".join(re.findall(r"[^\[\],\s]+", value))
        return None if many else Fix(f"{group}={value} is no plain list", [f"{group}=[{flat}]"])
    if group == "logger" and "," in value and all(part in names for part in value.split(",")):
        return Fix("several loggers are a list", [f"{group}=[{value}]"])
    if "," in value and all(part in names for part in value.split(",")):
        return Fix(f"{key}={value} are several runs, which need -m", [f"{key}={value}"], runs=True)
    near = nearest(group, value, names)
    if near:
        others = [f"{group}={name}" for name in near[1:]]
        return Fix(f"there is no {group}={value}", [f"{group}={near[0]}"], others)
    for other in keys.chosen:
        if other != group and value in choices(other):
            return Fix(f"there is no {group}={value}", [f"{other}={value}"])
    for other in keys.chosen:  # model=vit_b
        if other != group and value.lower() not in MEANINGLESS and (found := nearest(other, value, [])):
            return Fix(f"there is no {group}={value}", [f"{other}={found[0]}"])
    return Fix(f"there is no {group}={value}", others=[f"{group}={name}" for name in names])


def _fix_choices(group: str, parts: Sequence[str], names: Sequence[str]) -> Fix | None:
    """Of several at once, as in `logger=[csv,wandb]`."""
    wrong = [part for part in parts if part not in names]
    if not wrong:
        return None
    near = [[part] if part in names else nearest(group, part, names) for part in parts]
    if all(near):
        return Fix(f"there is no {group}={wrong[0]}", [f"{group}=[{','.join(found[0] for found in near)}]"])
    return Fix(f"there is no {group}={wrong[0]}", others=[f"{group}={name}" for name in names])


def _choices(keys: Keys, key: str) -> Sequence[Any]:
    return TASKS.get((keys.script, key)) or (RULES[key].choices if key in RULES else ())


def _fix_value(keys: Keys, key: str, value: str, many: bool) -> Fix | None:
    if value.lower() in NOTHING and key.startswith(tuple(f"{name}." for name in OPEN)) and key.count(".") == 1:
        return Fix(f"{key}={value} is no config with a _target_", [f"~{key}"])
    if key == "resume" and value.endswith(".ckpt"):
        path = PurePath(value)
        better = f"resume={path.parent.parent}" if path.parent.name == "checkpoints" else f"ckpt_path={value}"
        return Fix("resume takes the directory of a run", [better])
    override = f"{key}={value}"
    parsed = OverridesParser.create().parse_override(literal([override], many)[0])
    rule, allowed = RULES.get(key), _choices(keys, key)
    if parsed.is_sweep_override():
        if many:
            return None
        if rule and rule.holds(_parsed(f"{key}=[{value}]")):
            return Fix(f"{override} is no list", [f"{key}=[{value}]"])
        return Fix(f"{override} are several runs, which need -m", [override], runs=True)
    if (keys.script, key) in TASKS:
        fits = value in allowed or value == "null"
    else:
        fits = rule is None or "${" in value or rule.holds(parsed.value())
    if fits:
        return None
    words = [str(choice) for choice in allowed if isinstance(choice, str)]
    near = nearest(key, value, words)
    if near:
        return Fix(f"{key} is {value!r}, expected {' or '.join(words)}", [f"{key}={near[0]}"])
    if (keys.script, key) in TASKS:
        return Fix(f"there is no {key}={value}", [f"{key}={words[0]}"], [f"{key}={name}" for name in words[1:]])
    return None  # check_ranges says what is expected


def _parsed(override: str) -> Any:
    parsed = OverridesParser.create().parse_override(literal([override])[0])
    return None if parsed.is_sweep_override() else parsed.value()
