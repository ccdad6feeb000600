"""The words of a command line: Hydra's flags, overrides, and what is written in another project's way."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from deepavfusion.cli.unread import TASKS
from deepavfusion.config.compose import choices

SWITCHES = {"-m", "--multirun", "-r", "--run", "--resolve", "--hydra-help", "--version", "-sc", "--shell-completion"}
VALUED = {"-p", "--package", "-cd", "--config-dir", "--experimental-rerun"}
LISTED = {
    **dict.fromkeys(("-c", "--cfg"), ("job", "hydra", "all")),
    **dict.fromkeys(("-i", "--info"), ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")),
}
MEDIA = (".mp4", ".mkv", ".webm", ".mov", ".avi", ".m4v", ".mpg", ".wmv", ".flv", ".ts")
WEIGHTS = (".ckpt", ".pth", ".pt", ".safetensors", ".bin")
OVERRIDE = re.compile(r"(\+{0,2}[^\s=~+-][^\s=]*=|~[^\s=]+)", re.DOTALL)


@dataclass(frozen=True)
class Word:
    """One setting: as it was typed, perhaps in several words, and as an override, "" if none can be made of it."""

    typed: str
    override: str


def parse(script: str, words: list[str], known: Callable[[str], bool]) -> tuple[list[str], list[Word]]:
    """Tell the flags of Hydra from the settings.

    Args:
        script: the name of the script.
        words: of its command line.
        known: whether a name is a key or means one.
    """
    flags, found, rest = list[str](), list[Word](), list(words)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if word in SWITCHES:
            flags.append(word)
        elif (name in VALUED and (equals or rest)) or _is_listed(name, value if equals else "".join(rest[:1])):
            flags += [word] if equals else [word, rest.pop(0)]
        elif word in ("-i", "--info") and not (rest and _is_plain(rest[0])):
            flags.append(word)
        elif OVERRIDE.match(word) and not (rest and value == "" and equals and _is_plain(rest[0])):
            found.append(Word(word, word))
        elif word.startswith("-"):
            found.append(_option(word, rest, known))
        else:
            found.append(_stray(script, word, rest, known, found))
    return flags, found


def _is_listed(flag: str, value: str) -> bool:
    return value in LISTED.get(flag, ())


def _is_plain(word: str) -> bool:
    """A word that may be the value of the one before."""
    return not word.startswith("-") and not OVERRIDE.match(word)


def _option(word: str, rest: list[str], known: Callable[[str], bool]) -> Word:
    """--key value, --key=value, --flag, --no-flag, -k value, -k5."""
    name, equals, value = word.lstrip("-").partition("=")
    short = re.fullmatch(r"-([a-zA-Z])(\d+)", word)
    if short:
        return Word(word, f"{short[1]}={short[2]}")
    if not name:
        return Word(word, "")
    if equals:
        return Word(word, f"{name}={value}")
    if rest and (_is_plain(rest[0]) or re.fullmatch(r"-\d[\d.e-]*", rest[0])):
        value = rest.pop(0)
        return Word(f"{word} {value}", f"{name}={value}")
    off = re.match(r"no[-_]", name)
    if off and not known(name):
        return Word(word, f"{name[3:]}=false")
    return Word(word, f"{name}=true")


def _stray(script: str, word: str, rest: list[str], known: Callable[[str], bool], before: list[Word]) -> Word:
    """key value, key: value, key:value, key = value, key= value; a choice, a file, the end of a file's name."""
    name = word.rstrip(":= ")
    if rest and rest[0] in ("=", ":"):
        rest.pop(0)
        value = rest.pop(0) if rest else ""
        return Word(f"{word} = {value}", f"{name}={value}")
    if rest and rest[0].startswith("=") and len(rest[0]) > 1:
        value = rest.pop(0)
        return Word(f"{word} {value}", f"{name}{value}")
    if word != name and rest:
        value = rest.pop(0)
        return Word(f"{word} {value}", f"{name}={value}")
    spaced = re.fullmatch(r"([\w./@+-]+)\s*[=:]\s*(.*)", word, re.DOTALL)
    if spaced and known(spaced[1]):
        return Word(word, f"{spaced[1]}={spaced[2]}")
    if before and before[-1].override and (more := _end_of_name(before[-1].override, [word, *rest])):
        last, end = before.pop(), " ".join([word, *rest[: more - 1]])
        del rest[: more - 1]
        return Word(f"{last.typed} {end}", f"{last.override} {end}")
    if override := next(_meant(script, word), ""):
        return Word(word, override)
    if known(name) and rest and _is_plain(rest[0]):
        value = rest.pop(0)
        return Word(f"{word} {value}", f"{name}={value}")
    if known(name) and not known(f"{name}."):
        return Word(word, f"{name}=true")
    return Word(word, "")


def _end_of_name(override: str, words: list[str]) -> int:
    """How many words continue the name of a file that the shell has cut at its blanks."""
    key, _, value = override.partition("=")
    plain = list(itertools.takewhile(_is_plain, words))
    for n in range(1, len(plain) + 1):
        if Path(" ".join([value, *plain[:n]])).exists():
            return n
    if (
        key in ("video", "input", "index", "query", "ckpt_path")
        and value
        and not value.lower().endswith((*MEDIA, *WEIGHTS))
    ):
        ends = [n for n, word in enumerate(plain, 1) if word.lower().endswith((*MEDIA, *WEIGHTS))]
        if ends and not ("/" in plain[ends[0] - 1] or value.endswith("/") or Path(value).exists()):
            return ends[0]
    return 0


def _meant(script: str, word: str) -> Iterator[str]:
    """What a lone word may be: a task, an experiment, a benchmark, a dataset, a file."""
    stem = Path(word.lower()).name.removesuffix(".yaml").replace("-", "_")
    if script in ("train", "eval") and stem in choices("experiment"):
        yield f"experiment={stem}"
    for (name, chooser), names in TASKS.items():
        if script == name and stem in names:
            yield f"{chooser}={stem}"
    if script in ("benchmark", "study") and stem in choices(script):
        yield f"{script}={stem}"
    if script in ("prepare", "doctor") and stem in choices("data"):
        yield f"data={stem}"
    if script == "predict" and word.lower().endswith(MEDIA):
        yield f"video={word}"
    if word.lower().endswith(WEIGHTS):
        keys = {"train": "model.pretrained", "eval": "ckpt_path", "predict": "ckpt_path", "convert": "input"}
        if script == "convert" and word.lower().endswith(".safetensors"):
            keys["convert"] = "output"
        if script in keys:
            yield f"{keys[script]}={word}"
