"""Figures of a pre-training run: reconstructions, and what the fusion tokens attend to."""

from __future__ import annotations

from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from torch import Tensor

from deepavfusion.callbacks.show.clips import unnormalised
from deepavfusion.figures.panels import (
    CAPTION_WIDTH,
    DECIBELS,
    LOUDNESS,
    caption,
    colour_bar,
    grid,
    head,
    show_image,
    show_mel,
)
from deepavfusion.figures.pixels import checkered
from deepavfusion.figures.style import POWER, VALUE, WIDTH, styled
from deepavfusion.transforms.audio import FRAMES_PER_SECOND
from deepavfusion.types import Batch

TICKS = 0.42  # inches, for kHz
TIMES = LogNorm(1 / 4, 4, clip=True)  # attention
VEIL = 0.62  # opacity of attention above a grey image


def class_names(batch: Batch, classes: list[str]) -> list[str]:
    """Of each clip; empty where the dataset has none."""
    if batch.labels is not None:
        found = [row.nonzero().flatten().tolist() for row in batch.labels]
    else:
        found = [[label] if label >= 0 else [] for label in batch.label.tolist()]
    return [" + ".join(classes[n] for n in row if n < len(classes)) for row in found]


@styled
def draw_reconstruction(
    stream: str, clips: Batch, names: list[str], hidden: Tensor, reconstructed: Tensor, what: str = "test clips"
) -> Figure:
    """A row for each clip: original, what the encoder gets of it, and the reconstruction.

    Args:
        stream: "image" or "audio".
        clips: to draw.
        names: of their classes.
        hidden: bool [B, 1, rows, columns], the pixels of masked patches.
        reconstructed: shaped like the clips' images or spectrograms.
        what: they are, for the title.
    """
    images, audio = stream == "image", stream == "audio"
    figure, axes = grid(len(clips), (1, 1, 1) if images else (1.6, 1.6, 1.6), left=CAPTION_WIDTH + TICKS * audio,
                        bottom=0.5 if images else 1.3, down=0.06, top=0.75, width=5.2 if images else WIDTH)  # fmt: skip
    kept = 100 * (1 - hidden.float().mean().item())
    for axis, title in zip(axes[0], ("original", f"masked\n{kept:.0f} % kept", "reconstruction"), strict=True):
        axis.set_title(title, pad=4)
    original = clips.image if images else clips.spectrogram
    assert original is not None
    last = len(axes) - 1
    for row, line in enumerate(axes):
        layer = checkered(hidden[row, 0].cpu().numpy())
        for axis, values in zip(line, (original[row], original[row], reconstructed[row]), strict=True):
            if images:
                show_image(axis, unnormalised(values[None])[0].permute(1, 2, 0))
            else:
                show_mel(axis, 10 * values[0].float().cpu(), labels="x" * (row == last) + "y" * (axis is line[0]))
        if images:
            show_image(line[1], layer)
        else:
            show_mel(line[1], layer, labels="x" * (row == last))
        caption(line[0], names[row], clips.id[row], clear=72 * TICKS * audio)
    if audio:
        colour_bar(figure, POWER, LOUDNESS, DECIBELS, left=CAPTION_WIDTH + TICKS, bottom=0.78, width=4.2)
    note = "Checkered: patches the network did not get. Predicted ones are drawn with their true mean and contrast."
    head(figure, f"Masked {'frames' if images else 'spectrograms'} of {what}, reconstructed", note)
    return figure


@styled
def draw_attention(
    clips: Batch, names: list[str], grids: dict[str, tuple[int, int]], maps: dict[str, Tensor], what: str = "test clips"
) -> Figure:
    """A row for each clip: its frame and its spectrogram, plain and under the attention of the fusion tokens.

    Args:
        clips: to draw.
        names: of their classes.
        grids: "image" and "audio" -> rows and columns of patches.
        maps: "image" [B, N] and "audio" [B, M], see `DeepAVFusion.attention_maps`.
        what: the clips are, for the title.
    """
    figure, axes = grid(len(clips), (1, 1, 1.5, 1.5), bottom=1.55, gaps=(0.06, 0.5, 0.06), down=0.06)
    titles = ("frame", "attention", "spectrogram", "attention")
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, pad=4)
    assert clips.spectrogram is not None
    frames = unnormalised(clips.image).permute(0, 2, 3, 1).numpy()
    for row, line in enumerate(axes):
        mel = 10 * clips.spectrogram[row, 0].float().cpu().numpy()
        seconds, labels = mel.shape[1] / FRAMES_PER_SECOND, "x" * (row + 1 == len(axes))
        image, audio = (maps[name][row].reshape(grids[name]).float().cpu().numpy() for name in ("image", "audio"))
        height, width = frames.shape[1:3]
        show_image(line[0], frames[row])
        show_image(line[1], frames[row].mean(axis=2), cmap="gray", vmin=0, vmax=1, extent=(0, width, height, 0))
        show_image(
            line[1], image, alpha=VEIL, extent=(0, width, height, 0), interpolation="nearest", cmap=VALUE, norm=TIMES
        )
        show_mel(line[2], mel, labels=labels + "y")
        show_mel(line[3], mel, "gray", labels=labels)
        # Row 0 of a grid of patches has the lowest bands, as the spectrogram has.
        show_mel(line[3], audio, VALUE, TIMES, seconds=seconds, labels=labels, alpha=VEIL)
        caption(line[0], names[row], clips.id[row])
    label = "attention relative to an even spread over all patches (1 ×)"
    ticks = {"ticks": [1 / 4, 1 / 2, 1, 2, 4], "format": "%g ×", "extend": "both"}
    colour_bar(figure, VALUE, TIMES, label, left=CAPTION_WIDTH, bottom=0.85, width=4.5, **ticks)
    figure.axes[-1].minorticks_off()
    note = "Mean over the fusion tokens and heads of the last fusion layer. The network gets all patches, none masked."
    head(figure, f"What the fusion tokens attend to in {what}", note)
    return figure
