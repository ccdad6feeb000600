"""The files of a semantics run: tables, plots, sheets of nearest neighbours, and the report that leads through them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from lightning import Callback, LightningModule, Trainer

from deepavfusion.callbacks.evaluation import first_loader, read_again
from deepavfusion.callbacks.show.clips import shown_clips, unnormalised
from deepavfusion.callbacks.show.dashboard import last_start
from deepavfusion.callbacks.show.semantics.figures import (
    MATRICES,
    draw_agreement,
    draw_search,
    draw_streams,
    draw_tokens,
)
from deepavfusion.callbacks.show.semantics.sheets import JUDGED_BY, Shown, choose, draw_sheet
from deepavfusion.figures.style import save_figure, short
from deepavfusion.metrics.semantics import PAIR_MEASURES, SEARCH_MEASURES, STREAM_MEASURES, Findings
from deepavfusion.utils.console import say
from deepavfusion.utils.files import write_csv, write_whole
from deepavfusion.utils.names import code, printable

NETWORKS = ("", "untrained", "chance")
PASS = {"solo_image": "image", "solo_audio": "audio", "combined": "joint", "free_combined": "none"}
RIVALS = {  # what costs no network and has seen the same; of others, the best of all
    **dict.fromkeys(("solo_image", "fusion_of_image"), ("free_image",)),
    **dict.fromkeys(("solo_audio", "fusion_of_audio"), ("free_audio",)),
}
MEASURES = {
    "Of a stream": STREAM_MEASURES,
    "Of a stream that searches another": SEARCH_MEASURES,
    "Of two streams": PAIR_MEASURES,
}
FREE = ("free_image", "free_audio", "free_combined")
GLOSSARY = (
    ("image, audio, fusion", "mean tokens of the joint pass, in which every stream has seen both modalities"),
    ("combined", "the three together: the mean of their cosines"),
    ("solo_image, fusion_of_image", "mean image and fusion tokens of a pass that is given no audio"),
    ("solo_audio, fusion_of_audio", "mean audio and fusion tokens of a pass that is given no image"),
    ("mixed_group", "the fusion tokens that attend to pairs; `_of_image`, `_of_audio`: in such a pass"),
    ("image_group, audio_group", "the fusion tokens that aggregate one modality; constant where it is absent"),
    ("free_image", "the picture at 16 × 16 pixels: no network"),
    ("free_audio", "mean and deviation of each mel band over time: no network"),
    ("free_combined", "both of them"),
)  # fmt: skip


class SemanticsReport(Callback):
    """After a test: `report.md`, its plots, sheets of nearest neighbours, and three tables.

    - `semantics.csv`: a line for each stream, group and single token; a column for each measure, with `_untrained` and
      `_chance`
    - `semantics_pairs.csv`: the same for each query stream and searched stream; what does not depend on their order
      stands in the first of the two lines
    - `semantics_classes.csv`: the average precision of each class by each type of token
    - `semantics_*.png`: plots; `neighbours_{seed,best,worst}_<n>.png`: sheets

    Args:
        run_dir: where the files go.
        num_queries: sheets of clips that are chosen by the run's seed.
        num_extremes: sheets of the best clips, by the average precision of the fusion tokens, and of the worst.
    """

    def __init__(self, run_dir: str, num_queries: int = 3, num_extremes: int = 2) -> None:
        self.run_dir, self.num_queries, self.num_extremes = Path(run_dir), num_queries, num_extremes

    @torch.no_grad()
    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        module = cast(Any, pl_module)
        if not trainer.is_global_zero or module.found is None:
            return
        found: Findings = module.found
        loader = first_loader(trainer)
        clips = loader.dataset.list
        write_csv(self.run_dir / "semantics.csv", stream_lines(found))
        write_csv(self.run_dir / "semantics_pairs.csv", pair_lines(found))
        write_csv(self.run_dir / "semantics_classes.csv", class_lines(found, clips.classes))
        what = shown_clips(pl_module)
        save_figure(draw_streams(found, what), self.run_dir / "semantics_streams.png")
        sizes = module.net.encoder.num_fusion_tokens
        save_figure(draw_tokens(found, sizes, what), self.run_dir / "semantics_tokens.png")
        save_figure(draw_search(found, what), self.run_dir / "semantics_search.png")
        for measure in MATRICES:
            save_figure(draw_agreement(found, measure, what), self.run_dir / f"semantics_{measure}.png")
        sheets = self._draw_sheets(trainer, module, loader, found, what)
        starts = last_start(self.run_dir).get("weights", [])
        text = report(found, module.record, [str(each["checkpoint"]) for each in starts], clips, sheets)
        write_whole(self.run_dir / "report.md", text)
        say(f"report with plots and sheets: {self.run_dir / 'report.md'}")

    def _draw_sheets(
        self, trainer: Trainer, module: Any, loader: Any, found: Findings, what: str
    ) -> list[tuple[str, str]]:
        """File names and titles."""
        sheets, read = [], Clips(trainer, module, loader, found)
        chosen = choose(found, self.num_queries, self.num_extremes, module.hparams["seed"])
        for why, queries in chosen.items():
            for place, query in enumerate(queries, 1):
                near = {n for each in found.nearest.values() for n in each[query].tolist()}
                shown = {n: clip for n in sorted({query, *near}) if (clip := read(n)) is not None}
                if query not in shown:  # its files are gone by now
                    continue
                kind = f"chosen by seed {module.hparams['seed']}" if why == "seed" else f"{why} {place}"
                clip, score = shown[query], found.precision[JUDGED_BY][query]
                title = (
                    f"{short(clip.id, 24)} ({short(clip.classes, 28)}), {kind} of {len(found.items)} clips; "
                    f"average precision {score:.2f} by {JUDGED_BY}"
                )
                name = f"neighbours_{why}_{place}.png"
                save_figure(draw_sheet(found, query, shown, title, what), self.run_dir / name)
                sheets.append((name, title))
        return sheets


class Clips:
    """Reads clips again, each once. Called with a position in `found.items`."""

    def __init__(self, trainer: Trainer, module: Any, loader: Any, found: Findings) -> None:
        self.place, self.found = (trainer, module, loader), found
        self.read: dict[int, Shown | None] = {}

    def __call__(self, n: int) -> Shown | None:
        if n not in self.read:
            trainer, module, loader = self.place
            batch = read_again(trainer, module, loader, int(self.found.items[n]))
            self.read[n] = None
            if len(batch):
                assert batch.spectrogram is not None
                names = " + ".join(_class_names(self.found, n, loader.dataset.list.classes))
                names = names or short(Path(batch.id[0]).name.removesuffix("@0-end"), 20)
                mel = 10 * batch.spectrogram[0, 0].float().cpu()
                self.read[n] = Shown(unnormalised(batch.image[:1])[0], mel, names, batch.id[0])
        return self.read[n]


def _class_names(found: Findings, n: int, classes: Sequence[str]) -> list[str]:
    label = found.labels[n]
    if label.ndim == 0:
        return [classes[int(label)]] if label >= 0 else []
    return [classes[c] for c in label.nonzero()[:, 0].tolist()]


# ---- tables


def _columns(measures: Sequence[str]) -> list[str]:
    return [f"{measure}{f'_{network}' if network else ''}" for measure in measures for network in NETWORKS]


def _cells(values: dict[str, dict[str, float]], measures: Sequence[str]) -> list[str]:
    found = [values.get(measure, {}).get(network, math.nan) for measure in measures for network in NETWORKS]
    return ["" if math.isnan(value) else f"{value:.6g}" for value in found]


def stream_lines(found: Findings) -> Iterator[list[Any]]:
    """Of `semantics.csv`, the header first; what is not measured is empty."""
    yield ["stream", "kind", "pass", *_columns([*STREAM_MEASURES])]
    for stream, measures in found.streams.items():
        ending = next((name for name in ("image", "audio") if stream.endswith(f"_of_{name}")), "joint")
        given = PASS.get(stream, "none" if found.kinds[stream] == "free" else ending)
        yield [stream, found.kinds[stream], given, *_cells(measures, [*STREAM_MEASURES])]


def pair_lines(found: Findings) -> Iterator[list[Any]]:
    """Of `semantics_pairs.csv`, the header first."""
    measures = [*SEARCH_MEASURES, *PAIR_MEASURES]
    yield ["query", "searched", *_columns(measures)]
    for (one, other), values in found.pairs.items():
        yield [one, other, *_cells(values, measures)]


def class_lines(found: Findings, classes: Sequence[str]) -> Iterator[list[Any]]:
    """Of `semantics_classes.csv`, the header first: mean average precision of the clips of each class that occurs."""
    streams = [stream for stream in found.kinds if stream in found.precision]
    yield ["class", "clips", *(f"map_{stream}" for stream in streams)]
    for label, name in enumerate(classes):
        members = found.labels[:, label] if found.labels.ndim == 2 else found.labels == label
        if members.any():
            values = [found.precision[stream][members].nanmean().item() for stream in streams]
            yield [name, int(members.sum()), *("" if math.isnan(value) else f"{value:.6g}" for value in values)]


# ---- report


def report(
    found: Findings, record: dict[str, Any], weights: Sequence[str], clips: Any, sheets: Sequence[tuple[str, str]]
) -> str:
    """Markdown.

    Args:
        found: see `Findings`.
        record: of the task.
        weights: files that the network was loaded from.
        clips: the evaluated list.
        sheets: file names and titles.
    """
    data = record["data"]
    types = [stream for stream, kind in found.kinds.items() if kind in ("type", "free")]
    groups = [stream for stream, kind in found.kinds.items() if kind == "group"]
    parts = [
        f"# What the tokens know: {printable(data['name'])}{' (demo)' if data['demo'] else ''}",
        f"{len(found.items)} of {clips.listed} clips of the split {printable(clips.split)}, {len(clips.classes)} "
        f"classes; {found.train_clips} train clips for `knn_train`. Network: "
        f"{', '.join(map(code, weights)) or 'from scratch, not trained at all'}. Untrained: the same network with "
        "random weights. Chance: neighbours, clusters or pairs in random order.",
        *verdicts(found),
        "## Streams",
        "![1-NN and mean average precision of each stream](semantics_streams.png)",
        _table(found, types),
        "\n".join(f"- {name}: {words}" for name, words in GLOSSARY),
        "## Fusion tokens",
        "![1-NN by each fusion token](semantics_tokens.png)",
        _table(found, groups),
        "`semantics.csv` has each single token.",
        "## Which stream finds what",
        "![mean average precision by query and searched stream](semantics_search.png)",
        "The class is searched for, the query's own clip left out. On the diagonal a stream is searched by itself. "
        "Image and audio tokens of the joint pass have seen each other: what they find, they may have been shown. "
        "Those of the unimodal passes (solo) have not.",
        _pair_table(found),
        "## How alike the streams are",
        *(f"![{MATRICES[measure][0]}](semantics_{measure}.png)" for measure in MATRICES),
        "`semantics_pairs.csv` has all pairs.",
        "## Nearest neighbours",
        *(f"![{printable(title)}]({name})" for name, title in sheets),
        "## Measures",
        *(
            "\n".join([f"{title}:", "", *(f"- `{name}`: {words}" for name, words in measures.items())])
            for title, measures in MEASURES.items()
        ),
    ]
    return "\n\n".join(parts) + "\n"


def verdicts(found: Findings) -> Iterator[str]:
    """What the numbers say, good or bad."""

    def of(stream: str, network: str = "") -> float:
        return found.streams[stream]["knn"].get(network, math.nan)

    yield (
        f"1-NN by fusion tokens: {of('fusion'):.3f}; untrained network {of('fusion', 'untrained'):.3f}, chance "
        f"{of('fusion', 'chance'):.3f}. Without a network: {of('free_image'):.3f} by 16 × 16 pixels, "
        f"{of('free_audio'):.3f} by mean and deviation of the mel bands, {of('free_combined'):.3f} by both."
    )
    types = [stream for stream, kind in found.kinds.items() if kind == "type"]
    below = [f"{s} ({of(s):.3f}, untrained {of(s, 'untrained'):.3f})" for s in types if of(s) <= of(s, "untrained")]
    yield f"Not above the untrained network: {', '.join(below) or 'none'}."
    costly = [f"{s} ({of(s):.3f})" for s in types if of(s) <= max(map(of, RIVALS.get(s, FREE)))]
    yield f"Not above what costs no network, of the same modalities: {', '.join(costly) or 'none'}."


def _table(found: Findings, streams: Sequence[str]) -> str:
    measures = {"knn": "1-NN", "knn_train": "k-NN, train", "map": "mAP", "ami": "AMI", "rank_me": "RankMe"}
    shown = {name: words for name, words in measures.items() if any(name in found.streams[s] for s in streams)}
    heads = ["stream", *(f"{words} | untrained | chance" if name != "rank_me" else f"{words} | untrained"
                         for name, words in shown.items())]  # fmt: skip
    lines = [f"| {' | '.join(heads)} |"]
    lines.append("|---" * (lines[0].count("|") - 1) + "|")
    for stream in streams:
        values = [
            found.streams[stream].get(name, {}).get(network, math.nan)
            for name in shown
            for network in NETWORKS[: 2 if name == "rank_me" else 3]
        ]
        lines.append(f"| {' | '.join([stream, *map(_number, values)])} |")
    return "\n".join(lines)


def _pair_table(found: Findings) -> str:
    names = (("solo_audio", "solo_image"), ("fusion_of_audio", "fusion_of_image"), ("audio", "image"))
    columns = ["query → searched", *(f"{name} | untrained | chance" for name in ("mAP", "R@1")), "median rank | of"]
    lines = [f"| {' | '.join(columns)} |", "|---" * 9 + "|"]
    for one, other in (pair for both in names for pair in (both, both[::-1])):
        of = found.pairs[one, other]
        values = [of[name].get(network, math.nan) for name in ("map", "r1") for network in NETWORKS]
        values += [of["median_rank"][""], len(found.items)]
        lines.append(f"| {' | '.join([f'{one} → {other}', *map(_number, values)])} |")
    return "\n".join(lines)


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3f}" if abs(value) < 10 else f"{value:,.1f}".removesuffix(".0")
