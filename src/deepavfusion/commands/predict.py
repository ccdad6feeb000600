"""Use a trained model on any video, e.g. `python src/predict.py task=separate video=clip.mp4`; configs/predict.yaml."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from deepavfusion.cli.entry import entry, run
from deepavfusion.cli.guard import guarded
from deepavfusion.inference import EXPERIMENTS
from deepavfusion.runs.directory import BEST, CHECKPOINTS, LAST, choose_run_dir, link_latest, remove_if_empty
from deepavfusion.utils.console import Bars, say
from deepavfusion.utils.errors import UserError
from deepavfusion.weights.hub import address_of, source_of

SHOWN = 8  # classes in a line

# Each task imports what it needs, so that a missing key is reported at once: torch and Lightning take seconds.


def separate(cfg: DictConfig, output: Path) -> None:
    """A WAV and an mp4 for each source of a video, in a folder."""
    from deepavfusion.inference.separate import separate_video
    from deepavfusion.inference.tasks import load_task
    from deepavfusion.inference.write.separation import write_separation

    task = introduced(load_task(checkpoint(cfg), "separate", device(cfg)))
    boxes: Any = OmegaConf.to_container(cfg.boxes) if OmegaConf.is_config(cfg.boxes) else cfg.boxes
    with progress("separating") as (bar,):
        separation = separate_video(
            task, str(cfg.video), boxes, cfg.sources, cfg.batch_size, on_progress=bar, scratch=output
        )
    listed = write_separation(separation, output, task.origin)
    say(f"Written to {output}; the mixture has {separation.mixture_level:.1f} dB:")
    for n, (source, level) in enumerate(zip(listed["sources"], separation.levels, strict=True), 1):
        say(f"  source {n}, {level:.1f} dB, box {source['box']}: {source['wav']}, {source['mp4']}")
    say(f"  {listed['picture']}, {listed['list']}")
    if separation.chosen_by == "model":
        say(f"The model chose the boxes; to correct them: boxes='{[source['box'] for source in listed['sources']]}'")


def segment(cfg: DictConfig, output: Path) -> None:
    """The sounding pixels of a video: masks, and the video with them in colour, in a folder."""
    from deepavfusion.inference.segment import segment_video
    from deepavfusion.inference.tasks import load_task
    from deepavfusion.inference.write.segmentation import shares, write_segmentation

    task = introduced(load_task(checkpoint(cfg), "segment", device(cfg)))
    with progress("segmenting", "writing the film") as (masks, film):
        segmentation = segment_video(task, str(cfg.video), cfg.masks_per_second, cfg.batch_size, masks, output)
        listed = write_segmentation(segmentation, output, film, task.origin)
    entries = listed["moments"]
    say(f"Written to {output}; {sum(entry['share'] for entry in entries) / len(entries):.1%} of the pixels are marked:")
    for name, share in shares(listed).items():
        say(f"  {name}, {share:.1%}")
    say(f"  {listed['film']}, {listed['picture']}, {listed['list']}")
    say(f"  {listed['masks']}/: {len(entries)} masks")


def classify(cfg: DictConfig, output: Path) -> None:
    """The classes of a video by image, audio and fusion tokens and by all of them, over time, in a folder."""
    from rich import get_console

    from deepavfusion.inference.classify import classify_video
    from deepavfusion.inference.tasks import load_task
    from deepavfusion.inference.write.classification import as_table, write_classification

    task = introduced(load_task(checkpoint(cfg), "classify", device(cfg)))
    with progress("classifying") as (bar,):
        found = classify_video(task, str(cfg.video), cfg.hop_seconds, cfg.batch_size, on_progress=bar)
    listed = write_classification(found, output, cfg.top_k, task.origin)
    get_console().print(as_table(listed))
    say("Over time, by all:")
    for part in listed["parts"]:
        unlike = "  (unlike the training clips)" if part["novel"] else ""
        say(f"  {part['start']:.1f}–{part['end']:.1f} s  {part['class']} {part['probability']:.2f}{unlike}")
    for note in listed["notes"]:
        say(f"Note: {note}.", "yellow")
    say(f"Written to {output}: {listed['table']}, {listed['picture']}, {listed['list']}")


def features(cfg: DictConfig, output: Path) -> None:
    """Embeddings of many files, in one file."""
    from deepavfusion.inference.encoders import open_encoder
    from deepavfusion.inference.features import extract_features
    from deepavfusion.inference.search.index import hash_of
    from deepavfusion.inference.write.features import summary, write_features

    ckpt = checkpoint(cfg)
    encoder, description = open_encoder(ckpt, device(cfg))
    digest = hash_of(ckpt)
    say(description)
    with progress("encoding") as (bar,):
        more: Any = {**reading(cfg, output.parent), "level": cfg.level, "windows": cfg.windows, "passes": cfg.passes}
        found = extract_features(encoder, str(cfg.input), on_progress=bar, **more)
    failed = write_features(found, output, str(ckpt), digest)
    for line in summary(found, output, failed):
        say(line)


def search(cfg: DictConfig, output: Path) -> None:
    """The clips of an index that are nearest to a video, an audio file or an image."""
    from rich import get_console

    from deepavfusion.inference.encoders import open_network, sizes_of
    from deepavfusion.inference.search.index import checkpoint_of, folder_index, hash_of, matching, read_index
    from deepavfusion.inference.search.nearest import embed_query, search_clips
    from deepavfusion.inference.write.saving import made
    from deepavfusion.inference.write.search import as_table, write_search
    from deepavfusion.tasks.base import Task

    is_file = str(cfg.index).endswith(".npz") and not Path(cfg.index).is_dir()
    given = read_index(cfg.index) if is_file else None
    ckpt = checkpoint(cfg) if given is None or cfg.ckpt_path else checkpoint_of(given)
    index, line = (None, "") if given is None else (matching(given, ckpt), f"index {given.path}")
    network, description = open_network(ckpt, device(cfg))
    say(description)
    asked = embed_query(network, str(cfg.query), index.features.windows if index else cfg.windows, cfg.batch_size)
    with progress("indexing") as (bar,):
        if index is None:
            kept_in = made(Path(cfg.paths.log_dir, "search"))
            more: Any = {**reading(cfg, kept_in), "on_progress": bar, "windows": cfg.windows}
            index, line = folder_index(network, str(cfg.index), kept_in, ckpt, hash_of(ckpt), **more)
    found = search_clips(network, index.features, asked, cfg.match, cfg.top_k)
    say(f"{line}; compared by cosines of {found.embedding}")
    encoder: Any = network.net if isinstance(network, Task) else network
    seconds = sizes_of(encoder.encoder if isinstance(network, Task) else encoder)[1]
    origin = network.origin if isinstance(network, Task) else None
    listed = write_search(found, output, str(index.path), seconds, origin)
    get_console().print(as_table(found))
    if found.own_rank:
        say(f"The query is in the index, too: its own place is {found.own_rank} of {found.candidates}.")
    for note in found.notes:
        say(f"Note: {note}.", "yellow")
    say(f"Written to {output}: {listed['picture']}, {listed['list']}")


def reading(cfg: DictConfig, scratch: Path) -> dict[str, Any]:
    """How many files are read."""
    from deepavfusion.utils.launch.cores import decoding_workers

    workers = decoding_workers() if cfg.num_workers is None else cfg.num_workers
    return {
        "batch_size": cfg.batch_size, "num_workers": workers, "time_limit": cfg.time_limit, "scratch": scratch,
    }  # fmt: skip


def introduced(task: Any) -> Any:
    """The task, after a line on where its network comes from, and one on what it can know."""
    say(f"network {task.origin}")
    classes = [str(name) for name in task.record.get("classes", []) if name != "background"]
    if classes:
        shown = " · ".join(f"{name[:77]}…" if len(name) > 78 else name for name in classes[:SHOWN]) + (
            " · …" if len(classes) > SHOWN else ""
        )
        say(f"  trained on {len(classes)} classes: {shown}")
    if task.origin.caveat:
        say(f"  caution: {task.origin.caveat}", "yellow")
    return task


TASKS = {"separate": separate, "segment": segment, "classify": classify, "features": features, "search": search}


def checkpoint(cfg: DictConfig) -> str | Path:
    """The given checkpoint, or that of the task's newest run: its last; for segment its best, if there is one.

    A search takes that of a retrieval, if there is one.
    """
    if cfg.ckpt_path:
        if address_of(cfg.ckpt_path):
            return source_of(cfg.ckpt_path)
        given = Path(cfg.ckpt_path)
        return (
            given.resolve() if given.is_symlink() else given
        )  # while a run trains, its last.ckpt names file after file
    trained = {"features": ("pretrain",), "search": ("retrieve", "pretrain")}.get(cfg.task, (cfg.task,))
    folders = [Path(cfg.paths.log_dir, each, "latest", CHECKPOINTS) for each in trained]
    folder = next((folder for folder in folders if (folder / LAST).is_file()), folders[-1])
    best = cfg.task == "segment" and (folder / BEST).is_file()
    path = folder / (BEST if best else LAST)
    if not path.is_file():
        raise UserError(
            f"no network for task={cfg.task} was trained here, {path} does not exist: train one, "
            f"python src/train.py experiment={EXPERIMENTS[cfg.task]}, or give ckpt_path=<file.ckpt>."
        )
    return path.resolve()  # the written files name the run, not `latest`


def device(cfg: DictConfig) -> Any:
    """cuda or cpu."""
    from deepavfusion.inference.encoders import choose_device

    return choose_device(cfg.device)


@contextmanager
def progress(*names: str) -> Iterator[list[Callable[[int, int], None]]]:
    """A transient progress bar for each name, as functions to be called with what is done and the total."""
    from rich import get_console

    with Bars(get_console(), transient=True) as bars:

        def report(bar: Any, done: int, total: int) -> None:
            bars.start_task(bar)
            bars.update(bar, completed=done, total=total)

        yield [partial(report, bars.add_task(name, start=n == 0)) for n, name in enumerate(names)]


def output_of(cfg: DictConfig) -> Path:
    """The folder to write to, for features the file: the given one, or in a new folder under logs/predict."""
    if not cfg.output:
        run_dir = choose_run_dir(cfg.paths.log_dir, "predict")
        return run_dir / "features.npz" if cfg.task == "features" else run_dir
    if cfg.task == "features":
        from deepavfusion.inference.write.features import check_output

        return check_output(cfg.output)
    from deepavfusion.inference.write.saving import made

    return made(Path(cfg.output))


NEEDS = {  # what a task is about: key -> what is expected, and an example
    "features": {"input": ("folder of videos, list of them or video", "videos/")},
    "search": {
        "index": ("folder of videos, list of them or features.npz", "videos/"),
        "query": ("video, audio file or image", "clip.mp4"),
    },
    "classify": {"video": ("file with frames, audio or both, or image", "clip.mp4")},
}
VIDEO = {"video": ("file with frames and audio", "clip.mp4")}


def check_task(cfg: DictConfig) -> None:
    """Raise a `UserError` where the task, or what it is about, is missing."""
    needs = NEEDS.get(cfg.task, VIDEO)
    task = cfg.task if cfg.task in TASKS else next(iter(TASKS))
    example = (
        f"e.g. python src/predict.py {' '.join([f'task={task}', *(f'{key}={e}' for key, (_, e) in needs.items())])}"
    )
    if cfg.task not in TASKS:
        given = "no task was given" if cfg.task is None else f"there is no task {cfg.task!r}"
        raise UserError(f"predict.py: {given}; add task=<one of: {', '.join(TASKS)}>, {example}.")
    for key, (expected, _) in needs.items():
        if not cfg[key]:
            raise UserError(f"predict.py: no {key} was given; add {key}=<{expected}>, {example}.")


@entry("predict")
def main(cfg: DictConfig) -> None:
    check_task(cfg)
    output = output_of(cfg)
    folder = output.parent if cfg.task == "features" else output
    try:
        TASKS[cfg.task](cfg, output)
    except UserError:
        if not (cfg.output and cfg.task == "features"):  # the folder of a given file is not ours
            remove_if_empty(folder)
        raise
    if not cfg.output:
        link_latest(folder)


def start() -> None:
    """What the shell calls."""
    guarded(lambda: run(main), ("video", "input", "index", "query"))
