"""The style and the parts that all figures share, and figures of pre-training and separation, by what they say."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb

from deepavfusion.callbacks.show.clips import shown_clips
from deepavfusion.callbacks.show.pretraining import ReconstructionImages
from deepavfusion.callbacks.show.pretraining_figures import class_names, draw_attention, draw_reconstruction
from deepavfusion.callbacks.show.separation import ROWS, class_figure, draw_mixture
from deepavfusion.figures.panels import band_of, grid, show_mel
from deepavfusion.figures.pixels import CORRECT, MISSED, TOO_MUCH, checkered
from deepavfusion.figures.style import LINES, SMALL, STREAMS, STYLE, ink, new_figure, short, styled
from deepavfusion.transforms.audio import N_MELS, LogMel
from deepavfusion.types import Batch, SeparationOutput
from deepavfusion.utils.errors import UserError

CLASSES = ["playing accordion", "playing violin, fiddle", "drum $1"]


def rendered(figure) -> np.ndarray:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def cut_off(figure) -> list[str]:
    """Texts that reach beyond the figure."""
    rendered(figure)
    width, height = figure.bbox.width, figure.bbox.height
    texts = [text for text in figure.findobj(matplotlib.text.Text) if text.get_text() and text.get_visible()]
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts]
    return [text for text, b in boxes if b.x0 < -1 or b.y0 < -1 or b.x1 > width + 1 or b.y1 > height + 1]


def clips(count: int = 2) -> Batch:
    zeros = torch.zeros(count)
    return Batch(
        torch.randn(count, 3, 32, 32), torch.randn(count, 16_000), torch.arange(count),
        [f"ABCDEFGHIJK_{n:06d}" for n in range(count)], zeros, zeros, zeros, torch.arange(count),
        spectrogram=torch.randn(count, 1, N_MELS, 64),
    )  # fmt: skip


# ---- style


def test_the_callers_settings_stay_and_figures_have_the_style_when_they_are_rendered():
    before = dict(matplotlib.rcParams)

    @styled
    def draw():
        figure = new_figure(3, 2)
        figure.subplots().set(title="t", xlim=(0, 1), ylim=(0, 1))
        return figure

    figure = draw()
    rendered(figure)
    assert dict(matplotlib.rcParams) == before
    (axis,) = figure.axes
    assert {label.get_fontsize() for label in axis.get_xticklabels()} == {SMALL}  # made while rendering
    assert axis.title.get_fontsize() == STYLE["axes.titlesize"]
    assert min(size for name, size in STYLE.items() if name.endswith("size") and size != "figure") >= 9
    assert STYLE["figure.dpi"] >= 100


def luminance(colour) -> float:
    return float(np.dot(to_rgb(colour), (0.2126, 0.7152, 0.0722)))


def deuteranope(colour) -> np.ndarray:
    """How it looks without green cones (Viénot, Brettel & Mollon, 1999), RGB."""
    red, green, blue = np.array(to_rgb(colour)) ** 2.2
    mixed = 0.29275 * red + 0.70725 * green
    return np.array([mixed, mixed, -0.02234 * red + 0.02234 * green + blue]).clip(0, 1) ** (1 / 2.2)


@pytest.mark.parametrize(
    "colours",
    [LINES, [colour for _, colour in STREAMS.values()], [np.divide(c, 255) for c in (CORRECT, TOO_MUCH, MISSED)]],
)
def test_colours_differ_for_people_without_green_cones(colours):
    for one, other in combinations(colours, 2):
        assert np.abs(deuteranope(one) - deuteranope(other)).max() > 0.15


@pytest.mark.parametrize("colours", ["viridis", "Blues", "magma"])
def test_numbers_are_readable_on_every_cell(colours):
    for value in np.linspace(0, 1, 21):
        fill = matplotlib.colormaps[colours](value)[:3]
        assert abs(luminance(ink(fill)) - luminance(fill)) > 0.35
    assert ink(matplotlib.colormaps["viridis"](1.0)) == "black"  # not white on yellow


def test_names_are_shortened_in_the_middle():
    assert short("v1s_2jvv1uiFuMI_247000_252000", 17) == "v1s_2jvv1ui…52000"
    assert short("flute", 5) == "flute"


# ---- parts


def test_a_grid_has_the_places_that_were_asked_for():
    figure, axes = grid(2, (1, 2), left=1.0, right=0.5, top=0.5, bottom=0.25, gaps=0.5, down=0.1, width=8.0)
    assert figure.get_size_inches().tolist() == pytest.approx([8, 0.5 + 2 * 2 + 0.1 + 0.25])
    box = axes[1][1].get_position()  # (8 − 1 − 0.5 − 0.5) / 3 = 2 inches a row
    assert [box.x0 * 8, box.width * 8, box.y0 * 4.85, box.height * 4.85] == pytest.approx([3.5, 4, 0.25, 2])


def test_a_tone_is_drawn_at_its_frequency():
    times = torch.arange(16_000) / 16_000
    for kilohertz in (0.5, 2, 4):
        mel = LogMel()(torch.sin(2 * torch.pi * 1000 * kilohertz * times).unsqueeze(0))[0, 0]
        assert abs(mel.mean(dim=1).argmax().item() + 0.5 - band_of(kilohertz)) <= 1


def test_spectrograms_have_seconds_and_kilohertz():
    figure, ((axis,),) = grid(1, (2,))
    show_mel(axis, np.zeros((N_MELS, 192)))
    rendered(figure)
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("time (s)", "kHz")
    assert [label.get_text() for label in axis.get_xticklabels()] == ["0", "1", "2", "3"]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["0.5", "2", "8"]
    assert axis.get_xlim() == (0, 3)


def test_a_checkerboard_is_seen_on_any_ground():
    hidden = np.zeros((56, 56), bool)
    hidden[:28] = True
    layer = checkered(hidden)
    assert set(np.unique(layer[:28, :, 3])) == {255}
    assert set(np.unique(layer[28:, :, 3])) == {0}
    greys = np.unique(layer[:28, :, 0]).astype(int)
    assert len(greys) == 2
    assert np.diff(greys) > 50


# ---- pre-training


@pytest.mark.parametrize(("stream", "left"), [("image", "25 % kept"), ("audio", "25 % kept")])
def test_a_reconstruction_says_what_its_columns_are(stream, left):
    batch = clips()
    shape = (2, 1, 32, 32) if stream == "image" else (2, 1, N_MELS, 64)
    hidden = torch.ones(shape, dtype=torch.bool)
    hidden[..., : shape[-1] // 4] = False
    original = batch.image if stream == "image" else batch.spectrogram
    figure = draw_reconstruction(stream, batch, class_names(batch, CLASSES), hidden, 0 * original)
    assert [axis.get_title() for axis in figure.axes[:3]] == ["original", f"masked\n{left}", "reconstruction"]
    first, second = (figure.axes[n].texts[0].get_text().split("\n") for n in (0, 3))
    assert first == ["playing accordion", "ABCDEFGHIJK…00000"]
    assert second == ["playing violin,", "fiddle", "ABCDEFGHIJK…00001"]
    layers = figure.axes[1].images
    assert len(layers) == 2  # the original below a checkerboard
    assert (layers[1].get_array()[..., 3] > 0).mean() == 0.75
    assert "Checkered" in figure.texts[-1].get_text()
    assert cut_off(figure) == []
    if stream == "audio":
        assert np.allclose(figure.axes[0].images[0].get_array(), 10 * batch.spectrogram[0, 0])
        assert figure.axes[-1].get_xlabel() == "mel power (dB re 1)"


def test_attention_is_drawn_above_the_frame_and_the_spectrogram():
    batch, grids = clips(), {"image": (2, 2), "audio": (8, 4)}
    maps = {"image": torch.tensor([[4.0, 0, 0, 0], [1, 1, 1, 1]]), "audio": torch.ones(2, 32)}
    figure = draw_attention(batch, ["a", "b"], grids, maps, "test clips")
    assert [axis.get_title() for axis in figure.axes[:4]] == ["frame", "attention", "spectrogram", "attention"]
    below, above = figure.axes[1].images
    assert below.get_array().shape == (32, 32)
    assert above.get_array().tolist() == [[4, 0], [0, 0]]
    assert above.get_extent() == below.get_extent() or set(above.get_extent()) == {0, 32}
    assert figure.axes[3].images[1].get_array().shape == (8, 4)
    assert figure.axes[-1].get_xlabel().startswith("attention relative to an even spread")
    assert cut_off(figure) == []


class Writer:
    def __init__(self):
        self.figures = []

    def figure(self, tag, figure, step):
        self.figures.append(tag)


def test_a_network_without_attention_of_fusion_tokens_is_said_once(monkeypatch, capsys):
    class Task:
        def __init__(self):
            self.net, self.record = self, {}
            self.encoder = self

        def draw(self, batch):
            hidden = torch.zeros(2, 1, 32, 32, dtype=torch.bool)
            return {"image": {"hidden": hidden, "reconstructed": batch.image}}

        def attention_maps(self, image, audio):
            raise UserError("there is no attention of fusion tokens: model.net.fusion_layers is none.")

    writer, callback = Writer(), ReconstructionImages()
    for name in ("board_of", "step_of", "classes_of"):
        value = {"board_of": writer, "step_of": 0, "classes_of": CLASSES}[name]
        monkeypatch.setattr(f"deepavfusion.callbacks.show.pretraining.{name}", lambda trainer, value=value: value)
    callback.clips = clips()
    for _ in range(2):
        callback.on_validation_epoch_end(None, Task())
    assert writer.figures == ["reconstruction/image"] * 2
    assert capsys.readouterr().out.count("attention/fusion is not drawn: there is no attention") == 1


def test_generated_clips_are_said_to_be():
    class Task:
        record = {"data": {"demo": True}}  # noqa: RUF012

    assert shown_clips(Task()) == "generated test clips (demo)"
    assert shown_clips(object()) == "test clips"


def test_classes_of_clips_with_several():
    batch = replace(clips(), labels=torch.tensor([[1.0, 0, 1], [0, 0, 0]]))
    assert class_names(batch, CLASSES) == ["playing accordion + drum $1", ""]


# ---- separation


@pytest.mark.parametrize("sources", [2, 3])
def test_a_mixture_has_a_column_for_each_source(sources):
    batch = replace(clips(sources), group=sources)
    mel, mask = torch.rand(1, 1, N_MELS, 64), torch.rand(sources, 1, N_MELS, 64)
    out = SeparationOutput(torch.zeros(1, 9), torch.zeros(sources, 9), mel, mask, mask)
    figure = draw_mixture(batch, out, 0, CLASSES[:sources], "test clips")
    assert len(figure.axes) == len(ROWS) * sources + 2
    assert [axis.get_title() for axis in figure.axes[:2]] == [f"{CLASSES[n]}\n{batch.id[n]}" for n in range(2)]
    assert [figure.axes[sources * n].texts[-1].get_text() for n in range(len(ROWS))] == list(ROWS)
    assert np.allclose(figure.axes[sources].images[0].get_array(), 10 * (mel[0, 0] + 1e-7).log10(), atol=1e-4)
    assert [axis.get_xlabel() for axis in figure.axes[-2:]] == ["mel power (dB re 1)", "mask: 0 removes, 1 keeps"]
    assert cut_off(figure) == []


def test_sdr_by_class_has_numbers_and_of_many_classes_the_ends():
    rows = [{"label": 0, "others": [1], "sdr": -0.04}, {"label": 1, "others": [0], "sdr": 7.25}]
    figure = class_figure(rows, ["flute", "drum"])
    assert {text.get_position(): text.get_text() for text in figure.axes[0].texts} == {(1, 0): "0.0", (0, 1): "7.2"}
    assert figure.axes[1].get_ylabel() == "SDR (dB)"
    rows = [{"label": n, "others": [(n + 1) % 40], "sdr": n - 5.0} for n in range(40)]
    names = [f"class {n}" for n in range(40)]
    (axis,) = class_figure(rows, names).axes
    labels = [label.get_text() for label in axis.get_yticklabels()]
    assert (labels[0], labels[-1], len(labels)) == ("class 39", "class 0", 20)
    assert axis.get_xlabel() == "SDR (dB)"
    assert len(class_figure(rows, names, everything=True).axes[0].get_yticklabels()) == 40
