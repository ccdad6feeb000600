"""Overrides, before Hydra composes: from records of earlier runs, under their present keys, with `scale` decided."""

from __future__ import annotations

import itertools
import re
import zlib
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf

from deepavfusion.config.compose import CONFIG_DIR, compose
from deepavfusion.config.ranges import RULES
from deepavfusion.config.renamed import renamed_key
from deepavfusion.utils.addresses import is_remote
from deepavfusion.utils.console import from_here
from deepavfusion.utils.errors import UserError

OF_ONE_RUN = ("resume=", "run.", "ckpt_path=", "compile=")  # overrides that do not affect an evaluation
LONGEST_PART = 60  # characters of a name that the values of a sweep take
PACKED = "packed"  # folder in that of the demo data
DECIDING = ("experiment", "data", "paths", "scale")  # keys that begin so decide the scale


def quoted(text: str) -> str:
    """Text as the value of an override, taken literally: quotes, backslashes, `${…}`."""
    text = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)  # no interpolation
    text = re.sub(r"(\\*)('|$)", lambda m: 2 * m[1] + (m[2] and r"\'"), text)  # no early end of the quotes
    return f"'{text}'"


def written(value: Any) -> str:
    """A value in the grammar of overrides; texts are taken literally."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{written(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(written, value)) + "]"
    return quoted(value) if isinstance(value, str) else str(value)


def split_override(override: str) -> tuple[str, str, str]:
    """The signs before the key (`+`, `++`, `~`), the key, and the value as it is written."""
    return re.fullmatch(r"([+~]*)([^=]*)=?(.*)", override, re.DOTALL).groups()  # type: ignore[union-attr,return-value]


def literal(overrides: list[str], sweeps: bool = False) -> list[str]:
    """Overrides whose values are quoted where Hydra's grammar would refuse them, or read text as something else.

    So names of files need no second quotes, inside of the shell's: blanks, brackets, umlauts, `=`, commas. A value that
    is quoted already, null, an interpolation, or a list where one is expected stays as it is.

    Args:
        overrides: as they were typed.
        sweeps: whether `a,b` are values for several runs.
    """
    parser, found = OverridesParser.create(), []
    for override in overrides:
        sign, key, value = split_override(override)
        rule = RULES.get(key)
        try:
            parsed = parser.parse_override(override)
            text = rule is not None and rule.literal and sign != "~"
            if parsed.is_sweep_override():
                as_it_stands = text and not sweeps
            else:
                as_it_stands = text and not isinstance(parsed.value(), str | None)
        except HydraException:
            as_it_stands = "=" in override
        found.append(f"{sign}{key}={quoted(value)}" if as_it_stands else override)
    return found


def value_of(overrides: list[str], key: str) -> Any:
    """The value that overrides give to a key, without its quotes; None if they do not."""
    found = [each for each in overrides if split_override(each)[1] == key and not each.startswith("~")]
    return OverridesParser.create().parse_override(found[-1]).value() if found else None


def merged(*parts: list[str]) -> list[str]:
    """One list of overrides, in which the last one of each key stays.

    Hydra accepts some repetitions (`a=1 a=2`), but not others (`~a ~a`, `+a=1 +a=2`). `+key=` becomes `++key=`, which
    also sets a key that the config has, as many have by now that a record adds. `group=null` chooses none, which Hydra
    knows in configs only: it is left out.
    """
    last: dict[str, str] = {}
    for override in itertools.chain(*parts):
        sign, key, value = split_override(override)
        if not sign and value == "null" and key and Path(CONFIG_DIR, key).is_dir():
            last.pop(key, None)
            continue
        if sign == "+" and not Path(CONFIG_DIR, key).is_dir() and "@" not in key:
            override, sign = f"++{key}={value}", "++"
        if not sign and last.get(key, "").startswith("++"):
            override = f"++{override}"
        elif not sign:
            _restore(last, key)
        name = sign * (sign == "~") + key
        last.pop(name, None)  # to move it to the end
        last[name] = override
    return list(last.values())


def _restore(overrides: dict[str, str], key: str) -> None:
    """Forget that a key, or a section it is in, was removed: it is set again."""
    for name in [name for name in overrides if name.startswith("~")]:
        removed = name[1:]
        added = any(value.startswith(f"++{removed}") for value in overrides.values())
        if (key == removed or key.startswith(f"{removed}.")) and not added:
            del overrides[name]


def renamed(overrides: list[str]) -> list[str]:
    """Recorded overrides under today's keys."""
    keys = [split_override(override)[1] for override in overrides]
    return [
        o.replace(key, new, 1) for o, key in zip(overrides, keys, strict=True) if (new := renamed_key(key)) is not None
    ]


def with_scale(name: str, overrides: list[str]) -> tuple[list[str], str | None]:
    """Decide scale=auto: the demo where no data root is given and the default one does not exist, else the paper.

    Args:
        name: of the config, train or eval.
        overrides: of the command; with sweeps (`a=1,2`), the decision has to be the same for all their runs.

    Returns:
        The overrides, with scale=demo if that was chosen, and the reason for it.

    Raises:
        UserError: the given data root does not exist, or sweeps disagree.
    """
    choices: list[list[str]] = []
    for override in OverridesParser.create().parse_overrides(overrides):
        values = [override.input_line or ""]
        if override.is_sweep_override():
            values = [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
            values = values if override.key_or_group.startswith(DECIDING) else values[:1]
        choices.append(values)
    reasons = [_demo_reason(name, list(run)) for run in itertools.product(*choices)]
    if None in reasons and any(reasons):
        raise UserError(
            f"of these runs, some have data and some do not ({next(filter(None, reasons))}): add scale=paper or "
            "scale=demo."
        )
    return (merged(overrides, ["scale=demo"]) if reasons[0] else overrides), reasons[0]


def named_apart(overrides: list[str]) -> list[str]:
    """The overrides of a sweep, with a run.name for each of its jobs if there is one for all.

    It names the values that differ (`x_seed=0`), so that the same command finds the directory of each again, in
    whichever order or number.
    """
    parsed = OverridesParser.create().parse_overrides(overrides)
    name = next((each for each in parsed if each.key_or_group == "run.name" and not each.is_delete()), None)
    swept = [each.key_or_group for each in parsed if each.is_sweep_override() and each is not name]
    if name is None or name.value() is None or not swept:
        return overrides
    names = [str(value) for value in name.sweep_iterator()] if name.is_sweep_override() else [str(name.value())]
    apart = []
    for text in names:
        keys = [key for key in swept if f"${{{key}}}" not in text]
        inner = text if "${" in text else quoted(text)[1:-1]
        apart.append(f"'{inner}_${{swept:{','.join(keys)}}}'" if keys else f"'{inner}'")
    return [each for each in overrides if split_override(each)[1] != "run.name"] + [f"run.name={','.join(apart)}"]


def values_in_job(*keys: str) -> str:
    """What a job of a sweep has for some keys, as a part of a name: `seed=0_lr=0.1`. Resolves `${swept:keys}`."""
    given = {split_override(override)[1]: split_override(override)[2].strip("'\"") for override in overrides_of_job()}
    last = [re.split(r"[./]", key)[-1] for key in keys]
    shown = [key if last.count(short) > 1 else short for key, short in zip(keys, last, strict=True)]
    whole = "_".join(f"{short}={given.get(key, '')}" for key, short in zip(keys, shown, strict=True))
    plain = re.sub(r"[^\w.+=-]+", "-", whole)
    if plain == whole and len(plain) <= LONGEST_PART:
        return plain
    return f"{plain[: LONGEST_PART - 9]}-{zlib.crc32(whole.encode()):08x}"  # what was left out may be what differs


def overrides_of_job() -> list[str]:
    """The overrides of this job of Hydra, as they were given: read one by one, their `${…}` would be resolved."""
    found: Any = OmegaConf.to_container(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []
    return list(found)


def without_sweep(override: str) -> str:
    """An override of a job, with what `${swept:…}` is in this job: for its record, which another command reads."""
    return re.sub(r"\$\{swept:([^}]*)\}", lambda found: values_in_job(*found[1].split(",")), override)


OmegaConf.register_new_resolver("swept", values_in_job, replace=True)


def _demo_reason(name: str, overrides: list[str]) -> str | None:
    """Why a run with scale=auto uses the demo; None if it does not."""
    keys = {key for sign, key, _ in map(split_override, overrides) if sign != "~"}
    auto = (value_of(overrides, "scale") or "auto") == "auto" and "paths.data_dir" not in keys
    if not auto and "data.root" not in keys:
        return None
    cfg = compose(name, overrides)
    data = cfg.data
    if is_remote(data.root) or Path(str(data.root)).is_dir():  # check_ranges has not seen it yet
        return None
    if "data.root" in keys:
        if in_demo_data(str(data.root), cfg.paths.data_dir):
            return None  # it is generated, or refused, where the run is built
        if data.name == "folder":
            raise UserError(f"data.root={data.root} is not a folder: give one that has videos in it, or below it.")
        raise UserError(
            f"data.root={data.root} is not a folder: expected a dataset in the {data.name} layout; give its folder, or "
            f"omit data.root to use generated demo data."
        )
    return f"no data.root was given and {from_here(str(data.root))} does not exist"


def in_demo_data(root: str, data_dir: str) -> bool:
    """Whether a root is that of a demo set, or of a packed one."""
    demos = Path(data_dir, "demo").absolute()
    return Path(root).absolute().parent in (demos, demos / PACKED)
