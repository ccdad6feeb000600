"""Use a trained model: `python src/predict.py task=separate video=clip.mp4`, or task=segment; configs/predict.yaml."""

from __future__ import annotations

from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from deepavfusion.utils.cli import run, run_and_report
from deepavfusion.utils.configs import CONFIG_DIR, register_resolvers
from deepavfusion.utils.errors import UserError
from deepavfusion.utils.run_dir import BEST, CHECKPOINTS, LAST, choose_run_dir, link_latest, remove_if_empty

# What a task needs is imported in it: a missing key is told at once.


def separate(cfg: DictConfig, folder: Path) -> None:
    """A WAV and an mp4 for each source of a video, in a folder."""
    from rich import get_console
    from rich.progress import Progress

    from deepavfusion.inference.boxes import as_lists
    from deepavfusion.inference.checkpoint import load_task
    from deepavfusion.inference.files import write_separation
    from deepavfusion.inference.separate import separate_video
    from deepavfusion.tasks.separate import Separate
    from deepavfusion.utils.console import say

    task = load_task(checkpoint(cfg), "separate", device(cfg))
    assert isinstance(task, Separate)
    with Progress(console=get_console(), transient=True) as progress:
        bar = progress.add_task("separating")
        separation = separate_video(
            task,
            str(cfg.video),
            OmegaConf.to_container(cfg.boxes) if OmegaConf.is_config(cfg.boxes) else cfg.boxes,
            cfg.sources,
            cfg.batch_size,
            on_progress=lambda done, total: progress.update(bar, completed=done, total=total),
        )
    names = write_separation(separation, folder)
    boxes = as_lists(separation.boxes)
    say(f"Written to {folder}; the mixture has {separation.mixture_level:.1f} dB:")
    for n, (box, level) in enumerate(zip(boxes, separation.levels, strict=True)):
        say(f"  source {n + 1}, {level:.1f} dB, box {box}: {names['wav'][n]}, {names['mp4'][n]}")
    say(f"  {names['picture'][0]}, {names['list'][0]}")
    if separation.chosen_by == "model":
        say(f"The model chose the boxes; to correct them: boxes='{boxes}'")


def segment(cfg: DictConfig, folder: Path) -> None:
    """The pixels of a video that sound: masks, and the video with them in colour, in a folder."""
    from rich import get_console
    from rich.progress import Progress

    from deepavfusion.inference.checkpoint import load_task
    from deepavfusion.inference.overlays import shares, write_segmentation
    from deepavfusion.inference.segment import segment_video
    from deepavfusion.tasks.segment import Segment
    from deepavfusion.utils.console import say

    task = load_task(checkpoint(cfg), "segment", device(cfg))
    assert isinstance(task, Segment)
    with Progress(console=get_console(), transient=True) as progress:
        looking, writing = progress.add_task("segmenting"), progress.add_task("writing the film", start=False)

        def on_film(done: int, total: int) -> None:
            progress.start_task(writing)
            progress.update(writing, completed=done, total=total)

        segmentation = segment_video(
            task,
            str(cfg.video),
            cfg.masks_per_second,
            cfg.batch_size,
            on_progress=lambda done, total: progress.update(looking, completed=done, total=total),
        )
        listed = write_segmentation(segmentation, folder, on_film)
    moments = listed["moments"]
    mean = sum(moment["share"] for moment in moments) / len(moments)
    say(f"Written to {folder}; {mean:.1%} of the pixels are marked:")
    for name, share in shares(listed).items():
        say(f"  {name}, {share:.1%}")
    say(f"  {listed['film']}, {listed['picture']}, {listed['list']}")
    say(f"  {listed['masks']}/: {len(moments)} masks")


TASKS = {"separate": separate, "segment": segment}
EXPERIMENTS = {"separate": "music_separation", "segment": "avsbench_s4"}  # that train a network for a task
register_resolvers()


def checkpoint(cfg: DictConfig) -> Path:
    """What is asked for, or of the newest run of the task: for segment the best, where there is one, else the last."""
    if cfg.ckpt_path:
        return Path(cfg.ckpt_path)
    folder = Path(cfg.paths.log_dir, cfg.task, "latest", CHECKPOINTS)
    best = cfg.task == "segment" and (folder / BEST).is_file()
    path = folder / (BEST if best else LAST)
    if not path.is_file():
        raise UserError(
            f"no network for task={cfg.task} was trained here, {path} does not exist: train one, "
            f"python src/train.py experiment={EXPERIMENTS[cfg.task]}, or give ckpt_path=<file.ckpt>."
        )
    return path


def device(cfg: DictConfig) -> str:
    """cuda or cpu."""
    import torch

    if cfg.device not in ("auto", "cpu", "cuda"):
        raise UserError(f"device is {cfg.device!r}, expected auto, cpu or cuda.")
    if cfg.device == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda, but there is no such device here: leave it out, or set device=cpu.")
    return "cuda" if cfg.device != "cpu" and torch.cuda.is_available() else "cpu"


def output(cfg: DictConfig) -> Path:
    """The folder that is asked for, or a new one under logs/predict."""
    if not cfg.output:
        return choose_run_dir(cfg.paths.log_dir, "predict")
    try:
        Path(cfg.output).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output={cfg.output} cannot be made: {error.strerror}; give another folder.") from None
    return Path(cfg.output)


@hydra.main(version_base="1.3", config_path=CONFIG_DIR, config_name="predict")
@run_and_report
def main(cfg: DictConfig) -> None:
    task = cfg.task if cfg.task in TASKS else next(iter(TASKS))
    example = f"e.g. python src/predict.py task={task} video=clip.mp4"
    if cfg.task not in TASKS:
        given = "no task was given" if cfg.task is None else f"there is no task {cfg.task!r}"
        raise UserError(f"predict.py: {given}; add task=<one of: {', '.join(TASKS)}>, {example}.")
    if cfg.video is None:
        raise UserError(f"predict.py: no video was given; add video=<file with picture and sound>, {example}.")
    folder = output(cfg)
    try:
        TASKS[cfg.task](cfg, folder)
    except UserError:
        remove_if_empty(folder)
        raise
    if not cfg.output:
        link_latest(folder)


if __name__ == "__main__":
    run(main)
