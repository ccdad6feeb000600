"""`deepavfusion.datasets`: what configs/data says, as plain torch Datasets."""

from __future__ import annotations

import shutil
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from deepavfusion import ArgumentError, UserError, datasets
from deepavfusion.api.datasets import EXCLUDE, IMAGE_SIZE, KNOWN
from deepavfusion.config.compose import choices, instantiate
from deepavfusion.data.datamodule import ClipDataModule
from deepavfusion.transforms.audio import CLIP_SECONDS
from deepavfusion.transforms.device import DeviceTransform
from deepavfusion.types import Batch, Problem
from helpers.runs import compose

SMALL: dict[str, Any] = {"image_size": 32, "audio_seconds": 1.0}


def defaults(function: Any) -> dict[str, Any]:
    """The arguments of a partial function, with those that it leaves at their defaults; of lists, tuples."""
    given = {name: each.default for name, each in signature(function.func).parameters.items()}
    values = {**given, **function.keywords}
    plain = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return {name: plain[name] for name in plain if name not in ("root", "split", "clips", "store", "spec")}


def test_every_dataset_is_what_its_config_says() -> None:
    """One of them wrong, and others would read other clips than the runs of this project."""
    assert datasets.names() == choices("data")
    for name in datasets.names():
        cfg, known = compose(f"data={name}", "data.root=x", config="prepare").data, KNOWN[name]
        data: ClipDataModule = instantiate(cfg)
        assert defaults(data.index) == defaults(partial(known.reader, **known.index)), name
        assert data.index.func is known.reader
        assert defaults(data.samples) == defaults(partial(known.kind, **known.samples)), name
        assert data.samples.func is known.kind
        assert (known.max_gain_db, EXCLUDE) == (cfg.max_gain_db, tuple(cfg.exclude)), name
        assert (cfg.image_size, cfg.audio_seconds) == (IMAGE_SIZE, CLIP_SECONDS)
        assert known.splits[0] == cfg.train_split
        assert cfg.eval_split in datasets.splits(name)


def test_samples_are_those_of_the_data_module(data_root: Path) -> None:
    data = datasets.open("vggsound", data_root, "test", **SMALL)
    module: ClipDataModule = instantiate(
        compose("data=vggsound", f"data.root={data_root}", "data.image_size=32", "data.audio_seconds=1.0").data
    )
    module.setup()
    reference = module._dataset("test")
    assert len(data) == len(reference) == 8
    assert data.classes == module.classes
    for number in (0, 7, -1):
        sample, (expected,) = data[number], reference[number % 8, 0]
        assert isinstance(sample, datasets.ClipSample)
        assert torch.equal(sample.image, expected.image)
        assert torch.equal(sample.waveform, expected.waveform)
        assert (sample.id, sample.label) == (expected.clip.id, expected.clip.label)
        assert sample.labels.nonzero().flatten().tolist() == [sample.label]
        assert sample.item == number % 8
    with pytest.raises(IndexError):
        data[8]
    assert len(list(data)) == 8  # type: ignore[call-overload]  # as Python iterates over what has items by number


def test_loaders_with_the_default_collate_and_with_ours(data_root: Path) -> None:
    data = datasets.open("vggsound", str(data_root), "test", **SMALL)
    (default,) = DataLoader(data, batch_size=8, num_workers=1)
    (ours,) = DataLoader(data, batch_size=8, collate_fn=data.collate)
    assert isinstance(default, datasets.ClipSample)
    assert isinstance(ours, Batch)
    assert torch.equal(default.image, ours.image)
    assert torch.equal(default.waveform, ours.waveform)
    assert default.label.tolist() == ours.label.tolist()  # type: ignore[attr-defined]
    assert list(default.id) == ours.id == [clip.id for clip in data.clips]
    ready = DeviceTransform()(ours)
    assert ready.spectrogram is not None
    assert (ready.image.shape, ready.spectrogram.shape) == ((8, 3, 32, 32), (8, 1, 128, 64))


def test_augmentation_is_drawn_from_the_generator_of_torch(data_root: Path) -> None:
    data = datasets.open("vggsound", data_root, augment=True, **SMALL)
    assert len(data) == 16  # split: train
    torch.manual_seed(3)
    first, second = data[0], data[0]
    torch.manual_seed(3)
    again = data[0]
    assert torch.equal(first.waveform, again.waveform)
    assert not torch.equal(first.waveform, second.waveform)
    plain = datasets.open("vggsound", data_root, **SMALL)
    state = torch.get_rng_state()
    assert torch.equal(plain[0].image, plain[0].image)
    assert torch.equal(torch.get_rng_state(), state)


def test_mixtures_and_frames(music_root: Path, avsbench_root: Path) -> None:
    mixtures = datasets.open("music", music_root, sources=3, different_class=False, **SMALL)
    mixture = datasets.open("music", music_root, "train", **SMALL)[0]
    assert isinstance(mixture, datasets.MixtureSample)
    assert mixture.image.shape == (2, 3, 32, 32)
    assert (mixture.waveform.shape, mixture.labels.shape[0], len(set(mixture.id))) == ((2, 16_000), 2, 2)
    assert mixtures[0].image.shape[0] == 3
    (batch,) = DataLoader(mixtures, batch_size=len(mixtures), collate_fn=mixtures.collate)
    assert (batch.group, len(batch), batch.items) == (3, 3 * len(mixtures), len(mixtures))
    assert batch.item.tolist() == [n for n in range(len(mixtures)) for _ in range(3)]

    frames = datasets.open("avsbench_s4", avsbench_root, "test", **SMALL)
    assert len(frames) == 4 * 5
    assert isinstance(frames[3], datasets.FrameSample)
    assert set(frames[3].mask.unique().tolist()) == {0, 1}
    (batch,) = DataLoader(frames, batch_size=20, collate_fn=frames.collate)
    assert batch.mask is not None
    assert torch.equal(batch.mask[3], frames[3].mask)
    assert next(iter(DataLoader(frames, batch_size=2))).mask.shape == (2, 32, 32)


def test_a_clip_that_does_not_decode_is_named(data_root: Path, tmp_path: Path) -> None:
    root = shutil.copytree(data_root, tmp_path / "vggsound")
    data = datasets.open("vggsound", root, "test", **SMALL)
    Path(data.clips[2].path).write_bytes(b"no video")
    with pytest.raises(UserError, match=rf"clip {data.clips[2].id} .* cannot be used, undecodable: .*errors=.return"):
        data[2]
    with pytest.raises(UserError, match=data.clips[2].id):
        list(DataLoader(data, batch_size=4, num_workers=1))
    data = datasets.open("vggsound", root, "test", errors="return", **SMALL)
    assert isinstance(data[2], Problem)
    batches = list(DataLoader(data, batch_size=1, collate_fn=data.collate))
    assert [len(batch) for batch in batches] == [1, 1, 0, 1, 1, 1, 1, 1]
    assert batches[2].image.shape == (0, 3, 32, 32)
    assert [problem.id for problem in batches[2].problems] == [data.clips[2].id]


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("vggsound", {"split": 3}, "split is 3, expected one of train, test of vggsound."),
        ("vggsound", {"image_size": 0}, "image_size is 0, expected a whole number from 1 to 4096."),
        ("vggsound", {"audio_seconds": "3"}, "audio_seconds is '3', expected a number above 0 and at most 600."),
        ("vggsound", {"augment": "no"}, "augment is 'no', expected True or False."),
        ("vggsound", {"exclude": "no_audio"}, "exclude is 'no_audio', expected a list, each item hung or "),
        ("vggsound", {"exclude": None}, "exclude is None, expected a list"),
        ("vggsound", {"annotations": 3}, "annotations is 3, expected text"),
        ("vggsound", {"annotations": "no.csv"}, "or set annotations to its place under "),
        ("vggsound", {"clip_pattern": "{x}"}, ": fix clip_pattern."),
        ("vggsound", {"verify_report": "/no.csv"}, "verify_report /no.csv does not exist: expected the CSV file"),
        ("music", {"sources": 1}, "sources is 1, expected a whole number from 2 to 64."),
        ("music", {"seed": None}, "seed is None, expected a whole number from 0"),
        ("music", {"sources": 64}, "or set sources lower or different_class=false."),
        ("folder", {"split": "foo"}, ": set split."),
        ("folder", {"classes": "x"}, "classes is 'x', expected auto or folder or none."),
        ("folder", {"seconds": 0.5}, "seconds is 0.5, expected 1 or more, as of a window: change it."),
        ("folder", {"test_share": 1}, "test_share is 1, expected a number of at least 0 and below 1."),
        ("folder", {"max_windows": 0}, "max_windows is 0, expected a whole number from 1 to 100000 or None."),
    ],
)
def test_a_wrong_argument_is_named_as_python_has_it(
    name: str, options: dict[str, Any], said: str, data_root: Path, music_root: Path
) -> None:
    with pytest.raises(UserError) as error:
        datasets.open(name, music_root if name == "music" else data_root, **{"split": "test", **options})
    assert said in str(error.value)
    assert "data." not in str(error.value).replace(str(data_root), "")


def test_what_a_remote_root_needs_are_options(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []

    def read(data: ClipDataModule, split: str) -> Any:
        given.extend([data.kept.storage.anonymous, data.kept.cache_size, split])
        raise UserError("storage s3://a/b refuses: or set data.storage.anonymous=true, or data.cache_size")

    monkeypatch.setattr(ClipDataModule, "read", read)
    with pytest.raises(UserError, match=r"refuses: or set anonymous=true, or cache_size$"):
        datasets.open("vggsound", "s3://a/b", anonymous=True, cache_size="1GB")
    assert given == [True, "1GB", "train"]
    with pytest.raises(ArgumentError, match="anonymous is 'x', expected True or False"):
        datasets.open("vggsound", "s3://a/b", anonymous="x")
    for root in (None, 3, "", b"x"):
        with pytest.raises(ArgumentError, match=f"root is {root!r}, expected text or a path"):
            datasets.open("vggsound", root)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r"there is no dataset \['music'\]"):
        datasets.open(["music"], "x")  # type: ignore[arg-type]


def test_what_is_not_there_is_said_in_a_sentence(data_root: Path, tmp_path: Path) -> None:
    for arguments, said in (
        (("vgg", data_root), "there is no dataset 'vgg', expected one of audioset, avsbench_avss,"),
        (("vggsound", data_root, "val"), "split is 'val', expected one of train, test of vggsound"),
        (("music", data_root, "val"), "expected one of train, test of music"),
    ):
        with pytest.raises(ArgumentError, match=said):
            datasets.open(*arguments)
    with pytest.raises(ArgumentError, match=r"expected some of annotations, anonymous, .*clip_pattern"):
        datasets.open("vggsound", data_root, annotation="x")
    with pytest.raises(ArgumentError, match="errors is 'skip'"):
        datasets.open("vggsound", data_root, errors="skip")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="does not exist"):
        datasets.open("vggsound", tmp_path / "nowhere")
