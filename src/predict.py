"""Use a trained model on any video, e.g. `python src/predict.py task=separate video=clip.mp4`; configs/predict.yaml."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from deepavfusion.config.compose import CONFIG_DIR
from deepavfusion.config.ranges import check_ranges
from deepavfusion.runs.cli import run, run_and_report
from deepavfusion.runs.directory import BEST, CHECKPOINTS, LAST, choose_run_dir, link_latest, remove_if_empty
from deepavfusion.utils.errors import UserError

# What a task needs is imported in it: a missing key is told at once.


def separate(cfg: DictConfig, output: Path) -> None:
    """A WAV and an mp4 for each source of a video, in a folder."""
    from deepavfusion.inference.boxes import as_lists
    from deepavfusion.inference.separate import separate_video
    from deepavfusion.inference.tasks import load_task
    from deepavfusion.inference.write.separation import write_separation
    from deepavfusion.tasks.separate import Separate
    from deepavfusion.utils.console import say

    task = load_task(checkpoint(cfg), "separate", device(cfg))
    assert isinstance(task, Separate)
    boxes = OmegaConf.to_container(cfg.boxes) if OmegaConf.is_config(cfg.boxes) else cfg.boxes
    with progress("separating") as (bar,):
        separation = separate_video(task, str(cfg.video), boxes, cfg.sources, cfg.batch_size, on_progress=bar)
    names = write_separation(separation, output)
    found = as_lists(separation.boxes)
    say(f"Written to {output}; the mixture has {separation.mixture_level:.1f} dB:")
    for n, (box, level) in enumerate(zip(found, separation.levels, strict=True)):
        say(f"  source {n + 1}, {level:.1f} dB, box {box}: {names['wav'][n]}, {names['mp4'][n]}")
    say(f"  {names['picture'][0]}, {names['list'][0]}")
    if separation.chosen_by == "model":
        say(f"The model chose the boxes; to correct them: boxes='{found}'")


def segment(cfg: DictConfig, output: Path) -> None:
    """The pixels of a video that sound: masks, and the video with them in colour, in a folder."""
    from deepavfusion.inference.segment import segment_video
    from deepavfusion.inference.tasks import load_task
    from deepavfusion.inference.write.segmentation import shares, write_segmentation
    from deepavfusion.tasks.segment import Segment
    from deepavfusion.utils.console import say

    task = load_task(checkpoint(cfg), "segment", device(cfg))
    assert isinstance(task, Segment)
    with progress("segmenting", "writing the film") as (looking, writing):
        segmentation = segment_video(task, str(cfg.video), cfg.masks_per_second, cfg.batch_size, on_progress=looking)
        listed = write_segmentation(segmentation, output, writing)
    moments = listed["moments"]
    mean = sum(moment["share"] for moment in moments) / len(moments)
    say(f"Written to {output}; {mean:.1%} of the pixels are marked:")
    for name, share in shares(listed).items():
        say(f"  {name}, {share:.1%}")
    say(f"  {listed['film']}, {listed['picture']}, {listed['list']}")
    say(f"  {listed['masks']}/: {len(moments)} masks")


def classify(cfg: DictConfig, output: Path) -> None:
    """The classes of a video by picture, sound, both and all, over time, in a folder."""
    from rich import get_console

    from deepavfusion.inference.classify import classify_video
    from deepavfusion.inference.tasks import load_task
    from deepavfusion.inference.write.classification import as_table, check_top_k, write_classification
    from deepavfusion.tasks.classify import Classify
    from deepavfusion.utils.console import say

    check_top_k(cfg.top_k)
    ckpt = checkpoint(cfg)
    task = load_task(ckpt, "classify", device(cfg))
    assert isinstance(task, Classify)
    with progress("classifying") as (bar,):
        found = classify_video(task, str(cfg.video), cfg.hop_seconds, cfg.batch_size, on_progress=bar)
    listed = write_classification(found, output, cfg.top_k, ckpt)
    get_console().print(as_table(listed))
    say("Over time, by all:")
    for part in listed["parts"]:
        say(f"  {part['start']:.1f}–{part['end']:.1f} s  {part['class']} {part['probability']:.2f}")
    for note in listed["notes"]:
        say(f"Note: {note}.", "yellow")
    say(f"Written to {output}: {listed['table']}, {listed['picture']}, {listed['list']}")


def features(cfg: DictConfig, output: Path) -> None:
    """Embeddings of many videos, in one file."""
    from deepavfusion.inference.encoders import open_encoder
    from deepavfusion.inference.features import extract_features, summary, write_features
    from deepavfusion.utils.console import say
    from deepavfusion.utils.processes import decoding_workers

    ckpt = checkpoint(cfg)
    encoder, told = open_encoder(ckpt, device(cfg))
    say(told)
    workers = decoding_workers() if cfg.num_workers is None else cfg.num_workers
    scratch = output.parent if cfg.level == "tokens" else None
    with progress("encoding") as (bar,):
        found = extract_features(
            encoder, str(cfg.input), cfg.level, cfg.windows, cfg.batch_size, workers, scratch=scratch, on_progress=bar
        )
    failed = write_features(found, output, str(ckpt))
    for line in summary(found, output, failed):
        say(line)


TASKS = {"separate": separate, "segment": segment, "classify": classify, "features": features}
EXPERIMENTS = {  # that train a network for a task
    "separate": "music_separation",
    "segment": "avsbench_s4",
    "classify": "vggsound_finetune",
    "features": "pretrain_vggsound",
}
SUBJECTS = {  # what a task is about: key, what is expected, example
    **dict.fromkeys(TASKS, ("video", "file with picture and sound", "clip.mp4")),
    "features": ("input", "folder of videos, list of them or video", "videos/"),
}


def checkpoint(cfg: DictConfig) -> Path:
    """What is asked for, or of the newest run of the task: for segment the best, where there is one, else the last."""
    if cfg.ckpt_path:
        return Path(cfg.ckpt_path)
    trained = "pretrain" if cfg.task == "features" else cfg.task
    folder = Path(cfg.paths.log_dir, trained, "latest", CHECKPOINTS)
    best = cfg.task == "segment" and (folder / BEST).is_file()
    path = folder / (BEST if best else LAST)
    if not path.is_file():
        raise UserError(
            f"no network for task={cfg.task} was trained here, {path} does not exist: train one, "
            f"python src/train.py experiment={EXPERIMENTS[cfg.task]}, or give ckpt_path=<file.ckpt>."
        )
    return path.resolve()  # what is written says which run it was


def device(cfg: DictConfig) -> str:
    """cuda or cpu."""
    import torch

    if cfg.device == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda, but there is no such device here: leave it out, or set device=cpu.")
    return "cuda" if cfg.device != "cpu" and torch.cuda.is_available() else "cpu"


@contextmanager
def progress(*names: str) -> Iterator[list[Callable[[int, int], None]]]:
    """A bar for each name, which is gone in the end; to be called with what is done and how much there is."""
    from rich import get_console
    from rich.progress import Progress, TaskID

    with Progress(console=get_console(), transient=True) as bars:

        def reporter(bar: TaskID) -> Callable[[int, int], None]:
            def report(done: int, total: int) -> None:
                bars.start_task(bar)
                bars.update(bar, completed=done, total=total)

            return report

        yield [reporter(bars.add_task(name, start=n == 0)) for n, name in enumerate(names)]


def output_of(cfg: DictConfig) -> Path:
    """The folder to write to, for features the file: what is asked for, or in a new folder under logs/predict."""
    if not cfg.output:
        run_dir = choose_run_dir(cfg.paths.log_dir, "predict")
        return run_dir / "features.npz" if cfg.task == "features" else run_dir
    if cfg.task == "features":
        from deepavfusion.inference.features import check_output

        return check_output(cfg.output)
    try:
        Path(cfg.output).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output={cfg.output} cannot be made: {error.strerror}; give another folder.") from None
    return Path(cfg.output)


@hydra.main(version_base="1.3", config_path=CONFIG_DIR, config_name="predict")
@run_and_report
def main(cfg: DictConfig) -> None:
    check_ranges(cfg)
    task = cfg.task if cfg.task in TASKS else next(iter(TASKS))
    key, expected, some = SUBJECTS[task]
    example = f"e.g. python src/predict.py task={task} {key}={some}"
    if cfg.task not in TASKS:
        given = "no task was given" if cfg.task is None else f"there is no task {cfg.task!r}"
        raise UserError(f"predict.py: {given}; add task=<one of: {', '.join(TASKS)}>, {example}.")
    if cfg[key] is None:
        raise UserError(f"predict.py: no {key} was given; add {key}=<{expected}>, {example}.")
    output = output_of(cfg)
    folder = output.parent if task == "features" else output
    try:
        TASKS[task](cfg, output)
    except UserError:
        if not (cfg.output and task == "features"):  # the folder of a file that is asked for is not ours
            remove_if_empty(folder)
        raise
    if not cfg.output:
        link_latest(folder)


if __name__ == "__main__":
    run(main)
