"""The model card of a folder, README.md, as the Hugging Face Hub shows it: what is not known is "not recorded".

Every name and text that comes from a file is shown as it is: it cannot end a line, a table or the YAML in front.
"""

from __future__ import annotations

import re
import zlib
from pathlib import Path
from typing import Any

import yaml

from deepavfusion.callbacks.terminal.results import RESULT, TITLES, number, row_of
from deepavfusion.sharing.facts import Facts, facts_of
from deepavfusion.sharing.folder import Shared
from deepavfusion.utils.errors import UserError
from deepavfusion.utils.files import regular_file, write_whole
from deepavfusion.utils.names import code, escaped, printable
from deepavfusion.weights.hub import CARD, Address

UNKNOWN = "not recorded"
SHOWN_CLASSES = 50
MAX_CARD = 2**20  # bytes
OWN = re.compile(r"\A(.*\n)<!-- written by convert\.py, crc32 (\d+) -->\n\Z", re.DOTALL)
TASKS = {  # of a record: pipeline tag of the Hub, what the network does, the task of predict.py
    "pretrain": ("feature-extraction", "an encoder, pre-trained without labels", "features"),
    "semantics": ("feature-extraction", "an encoder, pre-trained without labels", "features"),
    "classify": ("video-classification", "a classifier of video clips", "classify"),
    "retrieve": ("feature-extraction", "embeddings of images and sounds in one space, for retrieval", "search"),
    "separate": ("audio-to-audio", "a separator of the sounds of visible objects", "separate"),
    "segment": ("image-segmentation", "a segmenter of the pixels that sound", "segment"),
}
ENCODER = ("feature-extraction", "an encoder", "features")
INPUTS = {"features": "input=<folder>", "search": "index=<folder> query=clip.mp4"}
METRICS = {"top1": "accuracy", "top5": "accuracy", "map": "mean_average_precision", "miou": "mean_iou", "sdr": "sdr"}
LICENSES = (  # that the Hub knows, of those that are common for weights
    *("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "gpl-3.0", "agpl-3.0", "lgpl-3.0", "mpl-2.0", "openrail"),
    *("cc0-1.0", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0"),
    *("cc-by-nc-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "unlicense"),
    *("isc", "eupl-1.2", "creativeml-openrail-m", "bigscience-openrail-m"),
)
CITATION = """```bibtex
@inproceedings{mo2024deepavfusion,
  title     = {Unveiling the Power of Audio-Visual Early Fusion Transformers with Dense Interactions through Masked Modeling},
  author    = {Mo, Shentong and Morgado, Pedro},
  booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  year      = {2024},
  note      = {arXiv:2312.01017}
}
```"""  # noqa: E501


def write_card(shared: Shared, folder: Path, license: str | None = None, address: Address | None = None) -> Path:
    """Write README.md into a folder.

    Args:
        shared: the checkpoint.
        folder: of `write_folder`.
        license: of the weights, an SPDX identifier in lower case; None: not recorded.
        address: where it will be found.

    Raises:
        UserError: there is another README.md, or it cannot be written.
    """
    path, text = folder / CARD, card(shared, license, address)
    try:
        _check_own(path)
        write_whole(path, f"{text}<!-- written by convert.py, crc32 {zlib.crc32(text.encode())} -->\n")
    except OSError as error:
        raise UserError(f"output {path} cannot be written ({error.strerror or error}): choose another.") from error
    return path


def _check_own(path: Path) -> None:
    """Raise a `UserError` if there is a card that was not written here, or was changed since."""
    if not path.exists() and not path.is_symlink():
        return
    found = None
    if not path.is_symlink() and regular_file(path).st_size <= MAX_CARD:
        found = OWN.fullmatch(path.read_bytes().decode(errors="replace"))
    if not found or zlib.crc32(found[1].encode()) != int(found[2]):
        raise UserError(
            f"output {path} is there, and was not written by convert.py, or changed since: it is left as it is; leave "
            "out card=true, or move it."
        )


def card(shared: Shared, license: str | None = None, address: Address | None = None) -> str:
    """The text of a card, see `write_card`."""
    facts, record = facts_of(shared), shared.record
    tag, what, task = TASKS.get(str(record.get("task")), ENCODER)
    sections = {
        "Use": _use(task, what, address),
        "Data": _data(shared, facts),
        "Training": _training(shared, facts),
        "Results": _results(shared, facts),
        "Limits": _limits(shared, task),
        "Licence": _licence(license),
        "Citation": f"The method:\n\n{CITATION}",
    }
    front = yaml.safe_dump(_front(shared, facts, tag, license), allow_unicode=True, sort_keys=False, width=2**20)
    title = f"# DeepAVFusion: {what}\n\n{_lead(shared, what)}"
    return f"---\n{front}---\n{title}\n" + "".join(f"\n## {name}\n\n{text}\n" for name, text in sections.items())


def _front(shared: Shared, facts: Facts, tag: str, license: str | None) -> dict[str, Any]:
    demo = ["demo"] if shared.origin.demo else []
    front: dict[str, Any] = {"license": "unknown" if license is None else license}
    if license is not None and license not in LICENSES:
        front = {"license": "other", "license_name": license}
    front |= {
        "library_name": "deepavfusion",
        "pipeline_tag": tag,
        "tags": ["deepavfusion", "audio-visual", "audio", "video", "masked-autoencoder", *demo, "arxiv:2312.01017"],
    }
    if facts.base:
        front["base_model"] = sorted({address.repo for address in facts.base})
    shown = {name: value for name, value in facts.metrics.items() if name in facts.headline and _is_score(name)}
    if shown:
        data = _printable(shared.origin.data or UNKNOWN)
        dataset = {"type": data, "name": data}
        if shared.origin.demo:  # no result on the dataset of that name
            dataset = {"type": "generated", "name": f"generated demo clips in the layout of {data}"}
        metrics = [
            {"type": _type(name), "name": _printable(facts.headline[name]), "value": round(value, 6)}
            for name, value in shown.items()
        ]
        results = [{"task": {"type": tag}, "dataset": dataset, "metrics": metrics}]
        front["model-index"] = [{"name": f"DeepAVFusion {record_task(shared)}", "results": results}]
    return front


def record_task(shared: Shared) -> str:
    """The task of a record, if it is one of ours."""
    task = str(shared.record.get("task"))
    return task if task in TASKS else "encoder"


def _lead(shared: Shared, what: str) -> str:
    data = _named(shared)
    words = f"A [DeepAVFusion](https://arxiv.org/abs/2312.01017) network: {what}, trained on {data}."
    if shared.origin.caveat:
        words += f"\n\n> **Note:** {escaped(shared.origin.caveat)}."
    return words


def _named(shared: Shared) -> str:
    if shared.origin.data == "folder":  # the name of a kind of data
        return "a folder of videos (`data=folder`)"
    data = code(shared.origin.data) if shared.origin.data else f"data that is {UNKNOWN}"
    return f"generated demo clips in the layout of {data}" if shared.origin.demo else data


def _use(task: str, what: str, address: Address | None) -> str:
    place = str(address) if address else "<this folder>"
    pinned = f" (`{address}@<commit>` stays the same)" if address else ""
    given = INPUTS.get(task, "video=clip.mp4")
    return (
        f"With the code of DeepAVFusion{pinned}:\n\n```python\nimport deepavfusion\n\n"
        f'model = deepavfusion.load("{place}")\n```\n```bash\n'
        f"deepavfusion predict task={task} {given} ckpt_path={place}\n```\n\n"
        "`config.json` says how the network is built, and `model.safetensors` holds its weights: neither can run code."
    )


def _data(shared: Shared, facts: Facts) -> str:
    lines = [f"- Trained on: {_named(shared)}"]
    for split, title in (("train", "Training"), ("val", "Validation"), ("test", "Test")):
        if split in facts.coverage:
            name, present, listed = facts.coverage[split]
            there = f"{present} of {listed} listed clips were there and not known to be damaged"
            lines.append(f"- {title}: {there} (split {code(name)})")
        else:
            lines.append(f"- {title}: number and coverage of clips {UNKNOWN}")
    data = shared.record.get("data")
    data = data if isinstance(data, dict) else {}
    size, seconds = (data.get(key) for key in ("image_size", "audio_seconds"))
    numbers = all(isinstance(each, (int, float)) for each in (size, seconds))
    inputs = f"one image of {size:g} × {size:g} pixels and {seconds:g} s of sound, mono at 16 kHz" if numbers else ""
    lines.append(f"- Input: {inputs or UNKNOWN}")
    classes = shared.record.get("classes")
    classes = [str(each) for each in classes] if isinstance(classes, list) else []
    if classes:
        more = ", … (all are in `config.json`)" if len(classes) > SHOWN_CLASSES else ""
        shown = ", ".join(code(_short(each)) for each in classes[:SHOWN_CLASSES])
        used = "" if record_task(shared) in ("classify", "segment") else ", which training did not see as labels"
        lines.append(f"- {len(classes)} classes{used}: {shown}{more}")
    return "\n".join(lines)


def _training(shared: Shared, facts: Facts) -> str:
    origin = shared.origin
    steps = UNKNOWN if origin.steps is None else f"{origin.steps}{f' of {origin.planned}' if origin.planned else ''}"
    changed = " (with changes that were not committed)" if facts.dirty else ""
    commit = f"`{facts.commit}`{changed}" if facts.commit else UNKNOWN
    versions = ", ".join(f"{name} {version}" for name, version in facts.versions.items())
    started = "; ".join(escaped(each) for each in facts.started_from)
    lines = {
        "Optimizer steps": steps,
        "Written": origin.date if shared.record else UNKNOWN,
        "Started from": started or ("nothing, from scratch" if facts.scratch else UNKNOWN),
        "Seed": UNKNOWN if facts.seed is None else str(facts.seed),
        "Commit of the code": commit,
        "Versions": versions or UNKNOWN,
        "Hardware": ", ".join(escaped(each) for each in facts.hardware) or UNKNOWN,
    }
    text = "\n".join(f"- {name}: {value}" for name, value in lines.items())
    if shared.record:
        text += "\n\nThe settings of network and optimizer are in `config.json`, under `record.model`."
    return text


def _results(shared: Shared, facts: Facts) -> str:
    shown = [name for name in facts.headline if name in facts.metrics and name != "clips_per_second"]
    if not shown:
        return f"Metrics of these weights: {UNKNOWN}."
    rows = {name: row_of(name, facts.metrics, facts.chance) for name in shown}
    titles = [title for title in TITLES if any(title in row for row in rows.values())]
    heads = ["", "metric", *(" ".join(title.split()) for title in titles)]
    lines = [heads, ["---", "---", *("---:" for _ in titles)]]
    for name, row in rows.items():
        cells = [number(row[title]) if title in row else "–" for title in titles]
        lines.append([escaped(facts.headline[name]), code(name), *cells])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    used, listed = (facts.metrics.get(f"data/{key}") for key in ("used", "listed"))
    known = used is not None and listed is not None
    coverage = f"{used:.0f} of {listed:.0f} items were evaluated" if known else f"Coverage of the evaluation: {UNKNOWN}"
    words = [
        f"{coverage}, with {'seed ' + str(facts.seed) if facts.seed is not None else f'a seed that is {UNKNOWN}'}.",
        "One run; the spread over seeds is not recorded.",
    ]
    bounds = [title for title in titles if title != RESULT]
    beside = "The columns beside the result are what it has to be compared with."
    words.append(beside if bounds else f"Bounds to compare it with: {UNKNOWN}.")
    if any(title == "chance" for title in titles) and facts.chance:
        shares = ", and is the share of positive labels for mAP" if "map" in facts.chance else ""
        words.append(f"Chance takes classes to be equally frequent{shares}.")
    return f"{table}\n\n{' '.join(words)}"


def _limits(shared: Shared, task: str) -> str:
    lines = ["Input of another size is scaled, and sound above 8 kHz is not heard."]
    if shared.origin.caveat:
        lines.append(f"Treat with caution: {escaped(shared.origin.caveat)}.")
    if task in ("classify", "segment"):
        lines.append("It knows the classes above and no others: whatever it is shown is said to be of these.")
    lines.append("Results on other data, and differences between groups of people, places or recordings: not recorded.")
    return "\n".join(f"- {line}" for line in lines)


def _licence(license: str | None) -> str:
    weights = f"Weights: {code(license) if license else UNKNOWN}."
    return f"{weights} Data that they were trained on: {UNKNOWN}. The code of this project: Apache-2.0."


def _is_score(name: str) -> bool:
    return not name.startswith(("train/", "val/", "clips_per_second", "lr/", "data/")) and not name.endswith("loss")


def _type(name: str) -> str:
    """The Hub's name of a metric, if it has one."""
    last = name.rpartition("/")[2]
    return next((there for here, there in METRICS.items() if last == here or last.startswith(f"{here}_")), last)


def _printable(text: str) -> str:
    return printable(_short(text))


def _short(text: str) -> str:
    return text if len(text) <= 100 else f"{text[:99]}…"
