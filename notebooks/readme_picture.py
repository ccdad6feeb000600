"""Draw the README's picture with trained demo networks: `make readme-picture`, after pretrain, separate and segment.

Three tasks, a row each: what goes in, what comes out, the truth. The clips are generated here, from another seed than
the demo data. The picture is not a selection: of `CLIPS` clips a row shows the one with the median score.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

from deepavfusion.demo.plans import NAMES, STAGE, rng_of
from deepavfusion.demo.scenes import Scene
from deepavfusion.demo.sounds import OWN_REGISTER, REGISTER, SAMPLE_RATE, Signal, melody, mix, perform
from deepavfusion.figures.pixels import colour_of, highlight
from deepavfusion.inference import load_task, segment_video, separate_video
from deepavfusion.inference.video import VideoReader, open_video, whole_waveform
from deepavfusion.media.encode import write_mp4
from deepavfusion.metrics.separation import bss_eval
from deepavfusion.models.layers import unpatchify
from deepavfusion.models.mae import random_patch_mask
from deepavfusion.transforms.audio import LogMel
from deepavfusion.transforms.image import Normalise, centre_view

REPOSITORY = Path(__file__).resolve().parents[1]
SEED = 2024  # of the clips; that of the demo data is 0
CLIPS = 9
FPS, SECONDS = 10.0, 4.0
SHAPE = (1.15, 1.4)  # width / height of the frames that are shown
RANGE = 6.0  # of a spectrogram's colours, powers of ten below the loudest
WIDE = 0.55  # height / width of the cells of a wide frame
HIDDEN = 0.85  # grey of hidden patches
COLOURS = [colour_of(source) for source in range(2)]
CAPTION = (
    "Demo networks, trained for minutes on two CPU cores, and generated clips that they have not seen; of "
    f"{CLIPS} clips per task,\n"
    "the one with the median score. Spectrograms: 0 to 8 kHz (mel) upwards, time to the right."
)

Cell = Callable[[Any], None]  # draws into axes


@dataclass
class Row:
    """A task on one clip: the score by which clips are ranked, a heading, height / width and content of six cells."""

    score: float
    heading: str
    shape: float
    cells: Sequence[tuple[str, Cell]]


@dataclass
class Generated:
    """A clip in a file: its instruments, and for each what it plays, as loud as in the mixture."""

    path: Path
    names: list[str]
    scenes: list[Scene]
    waveforms: list[Signal]


def generate(
    folder: Path, key: str, instruments: int, stage: bool, heard: Sequence[int], together: bool = True
) -> Generated:
    """A clip like those of the demo; the same key gives the same instruments, scenes and tunes.

    Args:
        folder: for the file.
        key: with `SEED`, decides everything.
        instruments: how many are seen.
        stage: they look and sound as in the demos of separation and segmentation, otherwise as in that of VGGSound.
        heard: which of them.
        together: they are in one scene, at rest; otherwise each in its own, side by side, moving as it plays.
    """
    rng = rng_of(SEED, key)
    names = [str(name) for name in rng.choice(STAGE if stage else NAMES, instruments, replace=False)]
    tunes = [melody(rng, SECONDS, OWN_REGISTER[name] if stage else REGISTER) for name in names]
    waveforms = [
        mix([perform(name, tune, rng, SECONDS)], rng) / instruments for name, tune in zip(names, tunes, strict=True)
    ]
    onsets = [[note.start for note in tune] for tune in tunes]
    if together:
        scenes = [_landscape(rng, names, [[] for _ in names], stage)]
    else:
        scenes = [_landscape(rng, [name], [starts], stage) for name, starts in zip(names, onsets, strict=True)]
    path = folder / f"{key}.mp4"
    frames = (_beside(scenes, n / FPS) for n in range(round(SECONDS * FPS)))
    write_mp4(path, frames, FPS, np.sum([waveforms[n] for n in heard], axis=0), SAMPLE_RATE)
    return Generated(path, names, scenes, waveforms)


def _landscape(rng: Generator, names: list[str], onsets: list[list[float]], stage: bool) -> Scene:
    while True:
        scene = Scene(rng, names, onsets, stage)
        if SHAPE[0] <= scene.width / scene.height <= SHAPE[1]:
            return scene


def _beside(scenes: Sequence[Scene], time: float) -> NDArray[np.uint8]:
    """Their frames side by side, cut to the size of the smallest."""
    frames = [scene.frame(time) for scene in scenes]
    height, width = (min(frame.shape[side] for frame in frames) for side in (0, 1))
    crops = [(frame.shape[0] - height, frame.shape[1] - width) for frame in frames]
    return np.concatenate(
        [f[y // 2 : y // 2 + height, x // 2 : x // 2 + width] for f, (y, x) in zip(frames, crops, strict=True)], axis=1
    )


# ---- the tasks


@torch.inference_mode()
def pretraining(checkpoint: Path, folder: Path) -> list[Row]:
    """A frame and a spectrogram of which most is hidden, reconstructed; the score is the loss."""
    task = load_task(checkpoint, "pretrain")
    encoders = {stream: getattr(task.net.encoder, stream) for stream in ("image", "audio")}
    ratios = {stream: task.hparams[f"{stream}_mask_ratio"] for stream in encoders}
    rows = []
    for n in range(CLIPS):
        clip = generate(folder, f"hidden{n}", 1, False, [0])
        with open_video(clip.path, "read") as media:
            reader = VideoReader(task, media, whole_waveform(media))
            image = reader.images((frame, centre_view(*frame.shape[:2])) for frame in reader.frames([0]))
            audio = reader.log_mel(reader.windows([0]))
        rng = torch.Generator().manual_seed(n)
        masks = {s: random_patch_mask(1, vit.num_patches, ratios[s], generator=rng) for s, vit in encoders.items()}
        out = task.net(image, audio, masks["image"], masks["audio"])
        made = task.net.reconstruct(out, image, audio)
        hidden = {}
        for stream, vit in encoders.items():
            patches = torch.zeros(1, vit.num_patches, 1, vit.patch_size, vit.patch_size)
            patches[0, masks[stream].masked[0]] = 1
            hidden[stream] = unpatchify(patches, vit.grid)[0, 0].bool().numpy()
        truth, filled = (
            Normalise().reverse(x)[0].permute(1, 2, 0).clamp(0, 1).numpy()
            for x in (image, made["image"]["reconstructed"])
        )
        level, filled_level = (x[0, 0].numpy() for x in (audio, made["audio"]["reconstructed"]))
        shown, top = [f"{1 - ratios[stream]:.0%}".replace("%", " %") for stream in encoders], level.max()
        rows.append(Row(
            out.loss.item(), "Pre-training: fill in what is hidden", 1.0,
            [
                (f"{shown[0]} of a frame", picture(np.where(hidden["image"][..., None], HIDDEN, truth))),
                (f"{shown[1]} of the audio", spectrogram(np.where(hidden["audio"], np.nan, level), top)),
                ("the whole frame", picture(filled)), ("the whole audio", spectrogram(filled_level, top)),
                (f"frame: {clip.names[0]}", picture(truth)), ("audio", spectrogram(level, top)),
            ],
        ))  # fmt: skip
    return rows


def separation(checkpoint: Path, folder: Path) -> list[Row]:
    """Two videos side by side, their audio mixed, separated by the halves of the frame; the score is the mean SDR."""
    task = load_task(checkpoint, "separate")
    rows = []
    for n in range(CLIPS):
        clip = generate(folder, f"duet{n}", 2, True, [0, 1], together=False)
        found = separate_video(task, clip.path, boxes=[[0, 0, 0.5, 1], [0.5, 0, 1, 1]])
        length = min(found.waveforms.shape[1], len(clip.waveforms[0]))
        estimates, truths = found.waveforms[:, :length], torch.from_numpy(np.stack(clip.waveforms))[:, :length]
        mixture = truths.sum(dim=0, keepdim=True)
        before, after = bss_eval(truths, torch.stack([mixture.expand(2, -1), estimates])).sdr.mean(dim=1).tolist()
        mixed, *levels = LogMel()(torch.cat([mixture, estimates, truths]))[:, 0].numpy()
        framed = [spectrogram(level, mixed.max(), COLOURS[n % 2]) for n, level in enumerate(levels)]
        scores = f"SDR {after:.1f} dB, unprocessed {before:.1f} dB".replace("-", "−")
        rows.append(Row(
            after, f"Separation: split a sound by what is seen ({scores})", WIDE,
            [
                ("frame", boxed(found.frame, found.boxes)), ("both instruments", spectrogram(mixed)),
                ("left half", framed[0]), ("right half", framed[1]),
                *zip(clip.names, framed[2:], strict=True),
            ],
        ))  # fmt: skip
    return rows


def segmentation(checkpoint: Path, folder: Path) -> list[Row]:
    """The same frame with the audio of one of its instruments, then of the other; the score is the mean IoU."""
    task = load_task(checkpoint, "segment")
    rows = []
    for n in range(CLIPS):
        masks, levels = [], []
        for heard in range(2):
            clip = generate(folder, f"stage{n}", 2, True, [heard])
            found = segment_video(task, clip.path, masks_per_second=1)
            masks.append(list(found.masks)[2] > 0)  # at 2 s, of the audio from 1.5 to 2.5 s
            window = clip.waveforms[heard][int(1.5 * SAMPLE_RATE) : int(2.5 * SAMPLE_RATE)]
            levels.append(LogMel()(torch.from_numpy(window)[None])[0, 0].numpy())
        frame, truths = clip.scenes[0].frame(0), clip.scenes[0].masks(0)
        iou = np.mean([(a & b).sum() / (a | b).sum() for a, b in zip(masks, truths, strict=True)])
        rows.append(Row(
            float(iou), f"Segmentation: mark what is heard, here either instrument (IoU {iou:.2f})",
            frame.shape[0] / frame.shape[1],
            [
                ("frame", picture(frame)), (f"{clip.names[0]}, or {clip.names[1]}", two_spectrograms(levels)),
                *((f"heard: {name}", marked(frame, masks, n)) for n, name in enumerate(clip.names)),
                *((name, marked(frame, truths, n)) for n, name in enumerate(clip.names)),
            ],
        ))  # fmt: skip
    return rows


def median(rows: list[Row]) -> Row:
    ranked = sorted(rows, key=lambda row: row.score)
    print(f"{ranked[len(rows) // 2].heading}; all: {', '.join(f'{row.score:.2f}' for row in ranked)}")
    return ranked[len(rows) // 2]


# ---- drawing


def picture(pixels: NDArray[Any]) -> Cell:
    return lambda axes: axes.imshow(pixels)


def marked(frame: NDArray[np.uint8], masks: Sequence[NDArray[np.bool_]], source: int) -> Cell:
    colours = np.array([[0, 0, 0], 255 * COLOURS[source]]).astype(np.uint8)
    return picture(highlight(frame, masks[source].astype(np.uint8), colours))


def boxed(frame: NDArray[np.uint8], boxes: Sequence[Any]) -> Cell:
    def draw(axes: Any) -> None:
        axes.imshow(frame)
        for box, colour in zip(boxes, COLOURS, strict=True):
            size = (box.right - box.left, box.bottom - box.top)
            axes.add_patch(Rectangle((box.left, box.top), *size, fill=False, linewidth=4, color=colour, clip_on=False))

    return draw


def spectrogram(level: NDArray[np.floating], loudest: float | None = None, frame: Any = None) -> Cell:
    """log10 power mel; nan is hidden. `frame`: a colour."""

    def draw(axes: Any) -> None:
        top = level.max() if loudest is None else loudest
        axes.imshow(
            level, cmap="magma", vmin=top - RANGE, vmax=top, origin="lower", aspect="auto", interpolation="nearest"
        )
        axes.set_facecolor(str(HIDDEN))
        if frame is not None:
            axes.spines[:].set(visible=True, color=frame, linewidth=4)

    return draw


def two_spectrograms(levels: Sequence[NDArray[np.floating]]) -> Cell:
    def draw(axes: Any) -> None:
        axes.set_axis_off()
        for level, colour, bottom in zip(levels, COLOURS, (0.52, 0.0), strict=True):
            part = axes.inset_axes((0, bottom, 1, 0.48), xticks=[], yticks=[])
            spectrogram(level, frame=colour)(part)

    return draw


def draw(rows: Sequence[Row]) -> Figure:
    heights = [row.shape for row in rows]
    figure = Figure(figsize=(12, 1.95 * sum(heights) + 0.55 * len(rows) + 0.85), layout="constrained")
    caption, *parts = figure.subfigures(
        len(rows) + 1, 1, height_ratios=[0.3, *(1.95 * height + 0.55 for height in heights)]
    )
    figure.get_layout_engine().set(rect=(0.01, 0.01, 0.98, 0.98))
    for place, text in zip((1, 3, 5), ("what goes in", "what comes out", "truth"), strict=True):
        caption.text(place / 6, 0.3, text, ha="center", fontsize=15, weight="bold")
    for row, part in zip(rows, parts, strict=True):
        part.suptitle(row.heading, fontsize=14, x=0.01, ha="left")
        grid = part.subplots(1, 6)
        for axes, (title, content) in zip(grid, row.cells, strict=True):
            axes.set(xticks=[], yticks=[], box_aspect=row.shape)
            axes.spines[:].set_visible(False)
            axes.set_title(title, fontsize=12)
            content(axes)
    figure.supxlabel(CAPTION, fontsize=11.5, color="0.25")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tasks = {"pretrain": pretraining, "separate": separation, "segment": segmentation}
    for task in tasks:
        file = f"{'best' if task == 'segment' else 'last'}.ckpt"
        default = REPOSITORY / "logs" / task / "latest" / "checkpoints" / file
        parser.add_argument(f"--{task}", type=Path, default=default, help="checkpoint of a demo network")
    parser.add_argument("--output", type=Path, default=REPOSITORY / "docs" / "tasks.webp")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [median(made(getattr(args, task), Path(folder))) for task, made in tasks.items()]
    figure = draw(rows)
    figure.set_dpi(140)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    image.save(args.output, quality=80, method=6)
    print(f"{args.output}: {args.output.stat().st_size / 1e3:.0f} kB, {image.width} × {image.height} pixels")


if __name__ == "__main__":
    main()
