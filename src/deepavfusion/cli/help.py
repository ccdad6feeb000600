"""The pages of `--help`: one for each script, and one for each experiment. Explanations come from the config files."""

from __future__ import annotations

import os
import re
import shlex
import sys
import textwrap
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import OmegaConf

from deepavfusion.cli.hints import check
from deepavfusion.cli.keys import Keys
from deepavfusion.cli.words import parse
from deepavfusion.config.compose import CONFIG_DIR, choices, compose
from deepavfusion.utils.program import called, spoken

WIDTH = 80
FILES = {  # where the keys of a section are explained
    "data": "data/_clips",
    "model": "model/_recipe",
    "model.net": "model/net/_backbone",
    "trainer": "trainer/auto",
    "paths": "paths/default",
    "benchmark": "benchmark/data",
    "study": "study/_study",
}


@dataclass(frozen=True)
class Page:
    """What a script is for, how it is called, its groups of choices, its usual keys, and examples with comments."""

    what: str
    usage: list[str]
    groups: dict[str, str] = field(default_factory=dict)
    keys: list[str] = field(default_factory=list)
    examples: dict[str, str] = field(default_factory=dict)


DATA_KEYS = ["data.root", "data.batch_size", "data.num_workers"]
PAGES = {
    "train": Page(
        "Train a network, see it learn, and evaluate it.",
        ["experiment=<name> [key=value …]", "experiment=<name> --help", "resume=<run directory>"],
        {
            "experiment": "a whole run",
            "scale": "its size; auto: the demo where there is no data",
            "trainer": "what it runs on",
            "model/net": "size of the network",
            "data": "another dataset",
            "debug": "a trial",
        },
        [
            *("run.name", "run.latest", "resume", "ckpt_path", "test", *DATA_KEYS, "data.image_size"),
            *("model.pretrained", "model.blr", "model.lr", "model.warmup_epochs", "model.net.fusion"),
            *("trainer.max_epochs", "trainer.max_steps", "trainer.accumulate_grad_batches", "trainer.precision"),
            *("trainer.gradient_clip_val", "trainer.limit_train_batches", "compile", "paths.log_dir"),
        ],
        {
            "experiment=pretrain_vggsound": "pre-train; the demo where data/vggsound is missing",
            "experiment=music_separation data.root=/datasets/music trainer=ddp": "on all GPUs",
            "experiment=avsbench_s4 trainer.max_epochs=20 model.lr=1e-4 run.name=short": "other values",
        },
    ),
    "eval": Page(
        "Evaluate a checkpoint of train.py, with the settings of its run.",
        ["ckpt_path=<file.ckpt> [key=value …]"],
        {"trainer": "what it runs on"},
        ["ckpt_path", "run.name", *DATA_KEYS, "data.eval_split", "data.dense_windows", "data.min_coverage"],
        {
            "ckpt_path=logs/separate/latest/checkpoints/last.ckpt": "the newest run",
            "ckpt_path=logs/segment/latest/checkpoints/best.ckpt data.eval_split=val": "on another split",
            "ckpt_path=last.ckpt data.root=/datasets/music data.batch_size=8": "data elsewhere",
        },
    ),
    "predict": Page(
        "Use a trained network: separate, segment, classify, features, or search.",
        [
            "task=<task> video=<file> [key=value …]",
            "task=features input=<folder, list or file> [key=value …]",
            "task=search index=<folder, list or .npz> query=<file> [key=value …]",
        ],
        {},
        [
            *("task", "video", "input", "index", "query", "ckpt_path", "output", "device", "batch_size", "boxes"),
            *("sources", "masks_per_second", "hop_seconds", "top_k", "match", "level", "passes", "windows"),
            *("num_workers", "time_limit"),
        ],
        {
            "task=segment video='my clip (1).mp4' output=masks": "single quotes for any name",
            "task=features input=videos/ output=features.npz level=tokens": "embeddings of a folder",
            "task=search index=videos/ query=bell.wav match=audio_to_image": "images that go with an audio file",
        },
    ),
    "prepare": Page(
        "Prepare data: generate the demo, check a dataset's clips, or pack them.",
        [
            "command=demo [key=value …]",
            "command=verify data=<name> data.root=<folder> [key=value …]",
            "command=pack data=<name> data.root=<folder> output=<folder> [key=value …]",
        ],
        {"data": "layout of the dataset"},
        [
            *("command", "root", "sets", "package", "data.root", "splits", "time_limit", "output", "workers", "force"),
            *("pack.short_side", "pack.quality", "pack.clips_per_chunk"),
        ],
        {
            "command=demo": "about 3 minutes on two cores",
            "command=verify data=vggsound data.root=/datasets/vggsound": "writes verify.csv, which runs read",
            "command=pack data=music data.root=/datasets/music output=/datasets/packed": "for training to stream",
        },
    ),
    "study": Page(
        "Answer a question by many runs with several seeds, and report it.",
        ["study=<name> [study.<key>=value …]", "study=<name> study.list=true"],
        {"study": "the question"},
        [
            *("study.seeds", "study.scale", "study.quick", "study.list", "study.processes", "study.keep_checkpoints"),
            *("study.overrides", "paths.log_dir"),
        ],
        {
            "study=fusion_depth study.list=true": "what would run, with time and disk",
            "study=fusion_depth study.seeds=1 study.quick=true": "a first look, in minutes",
            "study=fusion_depth 'study.seeds=[1,2,3,4,5]'": "the same question with more seeds",
        },
    ),
    "benchmark": Page(
        "Measure this machine: reading clips, the networks, the training loop.",
        ["benchmark=<name> [benchmark.<key>=value …]"],
        {"benchmark": "what to measure"},
        ["reference", "run.name", "benchmark.clips", "benchmark.rounds", "paths.log_dir"],
        {
            "benchmark=data": "clips/s from raw and packed files",
            "benchmark=model reference=true": "time and memory beside the plain reference",
            "benchmark=step benchmark.steps=20": "the training loop",
        },
    ),
    "convert": Page(
        "Convert a checkpoint: to weights, to a folder to share, or to run elsewhere.",
        [
            "input=<checkpoint> output=<file.safetensors>",
            "input=<checkpoint> output=<folder> card=true [push=hf://<owner>/<name>]",
            "export=onnx input=<checkpoint> output=<file.onnx> [key=value …]",
            "export=torch input=<checkpoint> output=<file.pt2> [key=value …]",
        ],
        {},
        ["input", "output", "card", "license", "push", "private", "export", "modality", "head", "preprocess", "check"],
        {
            "input=deepavfusion.pth output=deepavfusion.safetensors": "the authors' weights",
            "input=logs/classify/latest/checkpoints/last.ckpt output=shared card=true": "a network, to share",
            "export=onnx input=logs/classify/latest/checkpoints/last.ckpt output=c.onnx": "for onnxruntime",
        },
    ),
    "doctor": Page(
        "Check whether this machine can train: packages, GPUs, decoders, disks, data.",
        ["[data=<name> data.root=<folder>] [key=value …]"],
        {"data": "dataset to look for"},
        ["data.root", "paths.log_dir", "smoke_train", "time_limit", "free_gb", "write_mb", "least_mb_per_s"],
        {
            "": "exit status 0 if all is ok, else 1",
            "data=music data.root=/datasets/music": "and a dataset outside of data/",
            "smoke_train=false": "without the training steps",
        },
    ),
}


def print_help(script: str, words: list[str]) -> None:
    """Print the page of a script, or that of the experiment that the words name."""
    keys = Keys(script, [])
    flags, given = parse(script, [word for word in words if word not in ("-h", "--help", "help")], keys.knows)
    check(script, flags, given)
    chosen = [word.override.partition("=")[2] for word in given if word.override.startswith("experiment=")]
    try:
        print("\n".join(of_experiment(chosen[-1]) if script == "train" and chosen else of_script(script)), flush=True)
    except BrokenPipeError:  # e.g. `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def of_script(script: str) -> list[str]:
    """The lines of its page."""
    page, command = PAGES[script], shlex.join(called(script))
    lines = [page.what, "", "Usage"]
    for usage in page.usage:
        lines += _wrapped(f"  {command} {usage}", 6)
    for group, what in page.groups.items():
        lines += ["", f"{group}=…  {what}"]
        files = {name: Path(CONFIG_DIR, group, f"{name}.yaml") for name in choices(group)}
        for name, file in files.items():
            lines.append(f"  {name:<28}{textwrap.shorten(_first_sentence(file), WIDTH - 30, placeholder=' …')}")
    lines += ["", "Keys" + " " * 22 + "(--cfg job prints all of them, with their values)"]
    for key in page.keys:
        lines += _wrapped(f"  {key:<32} {explanation(script, key)}", 35)
    lines += ["", "Examples"]
    for words, what in page.examples.items():
        lines += [f"  # {what}", *_command(f"{command} {words}".rstrip())]
    return lines


def explanation(script: str, key: str) -> str:
    """The comment behind a key in the config files."""
    section, _, name = key.rpartition(".")
    for file, wanted in ((script, key), ("train", key), (FILES.get(section, script), name)):
        found = _comments(Path(CONFIG_DIR, f"{file}.yaml")).get(wanted)
        if found:
            return found
    return ""


def of_experiment(name: str) -> list[str]:
    """What it is, needs, costs and gives: the comment of its file, and the values of its recipe and of the demo."""
    lines = header_lines(name)
    cfgs = [compose("train", [f"experiment={name}", f"scale={scale}"]) for scale in ("paper", "demo")]
    lines += ["", "  " + "key".ljust(33) + "scale=paper".ljust(16) + "scale=demo"]
    shown = ("batch_size", "image_size", "audio_seconds"), ("blr", "warmup_epochs"), ("max_epochs",)
    for section, names in zip(("data", "model", "trainer"), shown, strict=True):
        for key in (f"{section}.{each}" for each in names):
            values = [str(OmegaConf.select(cfg, key)) for cfg in cfgs]
            lines.append("  " + key.ljust(33) + values[0].ljust(16) + values[1])
    cfg = cfgs[0]
    root = re.sub(r".*/data/", "data/", str(cfg.data.root))
    needs = f"the clips and lists of docs/datasets.md in {root} or data.root=<folder>"
    needs += "; without them, demo data are generated"
    gives = f"logs/{cfg.task}/latest: checkpoints, TensorBoard, metrics.json"
    if first := list(cfg.callbacks.run_summary.get("headline", []))[:3]:
        gives += f" with {', '.join(first)}"
    lines += ["", *_labelled("needs", needs), *_labelled("gives", gives)]
    lines += ["", spoken("Keys: python src/train.py --help. All values: the same command with --cfg job.")]
    return lines


def header_lines(name: str) -> list[str]:
    """The comment of an experiment's file: paragraphs, and lines with a label."""
    lines = list[str]()
    for paragraph in _header(Path(CONFIG_DIR, "experiment", f"{name}.yaml")):
        if lines:
            lines.append("")
        label, text, plain = "", "", list[str]()
        for line in [*paragraph, "end  "]:
            start = re.match(r"(\w+)  +(.*)", line)
            if start:
                lines += _labelled(label, text)
                label, text = start[1], start[2]
            elif label:
                text += f" {line.strip()}"
            elif line != "end  ":
                plain.append(line)
        lines += _wrapped(" ".join(plain), 0)
    return lines


def _labelled(label: str, text: str) -> list[str]:
    if not label:
        return []
    if text.startswith("python "):
        first, *rest = _command(text, " " * 11)
        return [label.ljust(11) + first.strip(), *rest]
    return _wrapped(label.ljust(11) + text, 11)


def _command(text: str, indent: str = "  ") -> list[str]:
    """A command on several lines, which can be copied as they are."""
    lines = textwrap.wrap(spoken(text), WIDTH - len(indent) - 4, break_long_words=False, break_on_hyphens=False)
    return [
        indent + ("  " if n else "") + line + (" \\" if line is not lines[-1] else "") for n, line in enumerate(lines)
    ]


def _wrapped(text: str, indent: int) -> list[str]:
    return textwrap.wrap(
        spoken(text), WIDTH, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False
    )


def _header(path: Path) -> list[list[str]]:
    """The paragraphs of the comment a file begins with."""
    paragraphs: list[list[str]] = [[]]
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        text = line[1:].removeprefix(" ").rstrip()
        if text.startswith("@package"):
            continue
        if text:
            paragraphs[-1].append(text)
        else:
            paragraphs.append([])
    return [paragraph for paragraph in paragraphs if paragraph]


def _first_sentence(path: Path) -> str:
    text = " ".join(next(iter(_header(path)), []))
    return re.split(r"(?<=[.:;])(?<!al\.) ", text)[0].rstrip(".:;")


def _comments(path: Path) -> dict[str, str]:
    """Dotted key -> the comment behind it, of a YAML file."""
    found: dict[str, str] = {}
    parents: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        key = re.match(r"( *)(\w+):(?:.*?\s# +(.*))?", line)
        more = re.match(r" {8,}# +(.*)", line)
        if key:
            parents = [*parents[: len(key[1]) // 2], key[2]]
            found[".".join(parents)] = key[3] or ""
        elif more and parents:
            found[".".join(parents)] += f" {more[1]}"
    return found
