"""Prepare data: `python src/prepare.py command=demo | verify | pack`. Keys, and times: configs/prepare.yaml."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from deepavfusion.cli.entry import entry, run
from deepavfusion.config.compose import choices, instantiate, root_folder
from deepavfusion.utils.addresses import is_remote
from deepavfusion.utils.errors import UserError
from deepavfusion.utils.launch.cores import cores

if TYPE_CHECKING:
    from deepavfusion.data.datamodule import ClipDataModule

# Each command imports what it needs: the demo needs no torch, and every worker imports this file.


def make_demo(cfg: DictConfig) -> None:
    """Generate the demo datasets that are missing; with `force=true` all of them."""
    from deepavfusion.demo import demo

    root = root_folder() / cfg.root  # an absolute root stays as it is
    sets = [cfg.sets] if isinstance(cfg.sets, str) else cfg.sets
    chosen = demo.SETS if sets is None else list(sets)
    if cfg.package is not None and "stamps" not in chosen:
        raise UserError(f"package={cfg.package} is for the set stamps, which is not chosen; add sets=[stamps].")
    demo.ensure(root, chosen, cfg.seed, workers(cfg), force=cfg.force, package=cfg.package)


def verify_data(cfg: DictConfig) -> None:
    """Decode every clip once and write the report that runs read; of packed data, compare each byte with its record."""
    data, packed = datamodule(cfg)
    if packed:
        from deepavfusion.verify.packed import verify_packed

        chosen = None if cfg.splits is None else splits(cfg, data)
        verify_packed(data.root, data.dataset_name, chosen, data.kept.storage, workers(cfg))
        return
    from deepavfusion.verify.verify import verify

    if not data.verify_report:
        raise UserError("data.verify_report is null; expected the file to write the report to: leave the key out.")
    kind = getattr(data.samples, "keywords", {})  # of samples
    verify(
        [data.read(split, known_bad=False)[0] for split in splits(cfg, data)],
        data.root,
        Path(data.verify_report),
        data.exclude,
        data.audio_seconds,
        kind.get("label_offset", 0),
        workers(cfg),
        cfg.time_limit,
        cfg.force,
        semantic=kind.get("semantic", True),
    )


def pack_data(cfg: DictConfig) -> None:
    """Write the clips, without those that a report excludes, in the packed format."""
    from rich import get_console
    from rich.table import Column, Table

    from deepavfusion.data.lists.clip_list import say_lists
    from deepavfusion.data.stores.pack import PackSettings, pack
    from deepavfusion.utils.commands import command
    from deepavfusion.utils.console import cell, say

    data, packed = datamodule(cfg)
    if packed:
        what = "an address, where only packed data is read" if is_remote(data.root) else "packed"
        raise UserError(
            f"data.root={data.root} is {what}; command=pack expects the files as published: set data.root to their "
            "folder on this machine."
        )
    if data.reader.get("retrieval_list"):
        raise UserError(
            "data.index.retrieval_list is set, but packed data holds whole splits: leave it out, and give it with the "
            "commands that read them."
        )
    if not cfg.output:
        raise UserError(
            "command=pack has no place to write to; expected a new folder: add output=<folder>, or s3://<bucket>/<folder>."
        )
    lists = {split: data.read(split)[0] for split in splits(cfg, data)}
    say_lists(lists.values())
    settings, most = PackSettings(**cfg.pack), cfg.time_limit
    name, count = data.dataset_name, workers(cfg)
    counts = pack(lists, cfg.output, name, settings, count, data.reader, most, data.kept.storage)
    names = ("listed", "packed", "missing", "excluded")
    table = Table("split", *(Column(name, justify="right") for name in names), title=cell(f"Packed in {cfg.output}"))
    for split, found in counts.items():
        table.add_row(cell(split), *(str(found[name]) for name in names))
    get_console().print(table)
    choice = HydraConfig.get().runtime.choices["data"]
    use = command("train.py data={data} data.root={root}", data=choice, root=cfg.output)
    say(f"Use it: {use} experiment=<name>")


def datamodule(cfg: DictConfig) -> tuple[ClipDataModule, bool]:
    """The datamodule of `cfg.data`, and whether its root holds packed data."""
    if cfg.get("data") is None:
        raise UserError(f"command={cfg.command} has no dataset; add data=<one of: {', '.join(choices('data'))}>.")
    from deepavfusion.data.stores.packed import is_packed

    data: ClipDataModule = instantiate(cfg.data)
    return data, is_packed(data.root)


def splits(cfg: DictConfig, data: ClipDataModule) -> list[str]:
    """Names of the splits to work on."""
    if cfg.splits is None:
        return data.splits
    chosen = [cfg.splits] if isinstance(cfg.splits, str) else list(cfg.splits)
    if not chosen:
        raise UserError("splits is empty; expected names like splits=[train,test], or null for those in use.")
    return list(dict.fromkeys(chosen))


def workers(cfg: DictConfig) -> int:
    """How many processes."""
    return cores() if cfg.workers == "auto" else int(cfg.workers)


COMMANDS = {"demo": make_demo, "verify": verify_data, "pack": pack_data}


@entry("prepare")
def main(cfg: DictConfig) -> None:
    if cfg.command not in COMMANDS:
        given = "no command was given" if cfg.command is None else f"there is no command {cfg.command!r}"
        raise UserError(f"prepare.py: {given}; add command=<one of: {', '.join(COMMANDS)}>.")
    try:
        COMMANDS[cfg.command](cfg)
    except KeyboardInterrupt:
        print("Interrupted. What is done is kept; run the same command to resume.", file=sys.stderr)
        sys.exit(130)


def start() -> None:
    """What the shell calls."""
    run(main)
