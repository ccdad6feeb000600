"""Kinds of samples: dense windows, mixtures of sources, annotated frames; and how an epoch orders them."""

from __future__ import annotations

import shutil
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deepavfusion.config.compose import instantiate
from deepavfusion.data.collate import Collate
from deepavfusion.data.datamodule import ClipDataModule
from deepavfusion.data.lists.clip_list import ClipList
from deepavfusion.data.loading.loader import ResumableLoader
from deepavfusion.data.loading.sampler import SHUFFLED_TOGETHER, ClipSampler, balanced_weights
from deepavfusion.data.samples import FrameDataset, MixtureDataset, SampleSpec, WindowDataset
from deepavfusion.data.stores.raw import RawStore
from deepavfusion.demo import demo
from deepavfusion.media.encode import write_mp4, write_wav
from deepavfusion.types import Clip, Problem
from deepavfusion.utils.errors import UserError
from helpers.runs import compose

SIZE = 32
SPEC, TRAIN = SampleSpec(SIZE), SampleSpec(SIZE, train=True)


def write_steps(path: Path, seconds: float, pitch: float = 1000.0, sound: bool = True) -> None:
    """The grey level rises by 20 every second; the tone's amplitude by 0.05."""
    frames = np.stack([np.full((48, 64, 3), 20 + 20 * int(n / 10), np.uint8) for n in range(int(seconds * 10))])
    time = np.arange(int(seconds * 16_000)) / 16_000
    tone = (0.1 + 0.05 * time.astype(int)) * np.sin(2 * np.pi * pitch * time)
    write_mp4(path, frames, 10, tone.astype(np.float32) if sound else None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("samples")
    write_steps(root / "long.mp4", 10.0)
    write_steps(root / "short.mp4", 2.0)
    write_steps(root / "mute.mp4", 4.0, sound=False)
    for n in range(4):
        write_steps(root / f"tone{n}.mp4", 3.5, pitch=400.0 * (n + 1))
    return root


def clip_list(folder: Path, *clips: tuple[str, int, str], **options) -> ClipList:
    """Clips of (file, label, video)."""
    listed = [Clip(name, str(folder / f"{name}.mp4"), label, video) for name, label, video in clips]
    return ClipList("test", listed, ["a", "b", "c"], **options)


# ---------------------------------------------------------------- dense windows


def test_dense_windows_are_evenly_spaced_and_span_the_clip(folder):
    clips = WindowDataset(clip_list(folder, ("long", 1, "v")), RawStore(), SPEC, windows=8)
    samples = clips[0, 0]
    starts = [sample.window_start for sample in samples]
    assert starts == pytest.approx(list(range(8)), abs=0.02)
    assert [sample.frame_time for sample in samples] == [1.5 + n for n in range(8)]
    for sample in samples:
        assert sample.waveform.shape == (48_000,)
        assert sample.image.float().mean() == pytest.approx(20 + 20 * int(sample.frame_time), abs=4)
        second = sample.waveform[:14_000].abs().max()
        assert second == pytest.approx(0.1 + 0.05 * round(sample.window_start), abs=0.02)
    batch = Collate(clips)([samples, samples])
    assert (len(batch), batch.items, batch.group) == (16, 2, 8)
    assert batch.id == ["long"] * 16
    assert batch.window_start.unflatten(0, (-1, batch.group)).shape == (2, 8)


def test_a_dense_window_equals_the_single_one(folder):
    single = WindowDataset(clip_list(folder, ("long", 1, "v")), RawStore(), SPEC)[0, 0]
    dense = WindowDataset(clip_list(folder, ("long", 1, "v")), RawStore(), SPEC, windows=3)[0, 0]
    assert dense[1].window_start == single[0].window_start
    assert dense[1].frame_time == single[0].frame_time
    assert torch.equal(dense[1].image, single[0].image)
    torch.testing.assert_close(dense[1].waveform, single[0].waveform, atol=1e-3, rtol=0)


def test_dense_windows_of_a_short_clip_are_reported_once(folder):
    clips = WindowDataset(clip_list(folder, ("short", 0, "v"), ("mute", 0, "w")), RawStore(), SPEC, windows=4)
    samples = clips[0, 0]
    assert [sample.window_start for sample in samples] == [0.0] * 4
    batch = Collate(clips)([samples, clips[1, 0]])
    assert (len(batch), batch.items) == (4, 1)
    assert [(p.id, p.reason, p.used) for p in batch.problems] == [
        ("mute", "no_audio", False),
        ("short", "too_short", True),
    ]


# ---------------------------------------------------------------- mixtures

TONES = [("tone0", 0, "v"), ("tone1", 0, "w"), ("tone2", 1, "v"), ("tone3", 2, "x")]


def test_partners_are_of_another_video_and_class(folder):
    clips = MixtureDataset(clip_list(folder, *TONES), RawStore(), TRAIN)
    partners = Counter(clips[0, seed][1].clip.id for seed in range(12))
    # tone1 has the same class, tone2 the same video
    assert set(partners) == {"tone3"}
    clips = MixtureDataset(clip_list(folder, *TONES), RawStore(), TRAIN, different_class=False)
    assert {clips[0, seed][1].clip.id for seed in range(12)} == {"tone1", "tone3"}
    samples = clips[2, 5]
    again = clips[2, 5]
    assert [s.clip.id for s in samples] == [s.clip.id for s in again]
    assert all(torch.equal(a.waveform, b.waveform) for a, b in zip(samples, again, strict=True))


def test_evaluation_mixtures_are_the_same_in_every_run(folder):
    tones = clip_list(folder, *TONES)
    first, second = (MixtureDataset(tones, RawStore(), SPEC, seed=3).mixtures for _ in range(2))
    assert first == second
    assert [mixture[0] for mixture in first] == [0, 1, 2, 3]
    many = clip_list(folder, *[(f"n{n}", n % 3, f"v{n}") for n in range(60)])
    assert MixtureDataset(many, RawStore(), SPEC, seed=3).mixtures != MixtureDataset(many, RawStore(), SPEC).mixtures
    for three in MixtureDataset(many, RawStore(), SPEC, sources=3).mixtures:
        assert len({many.clips[n].label for n in three}) == 3


def test_mixtures_fixed_by_the_protocol(folder):
    pairs = [("tone0", "tone1"), ("tone3", "gone"), ("tone2", "tone0"), ("tone2", "tone0")]
    clips = clip_list(folder, *TONES, missing=[Clip("gone", "gone.mp4")], mixtures=pairs)
    dataset = MixtureDataset(clips, RawStore(), SPEC)
    assert dataset.mixtures == [(0, 1), (2, 0), (2, 0)]  # same class, twice the same: as listed
    assert (len(dataset), dataset.listed) == (3, 4)
    batch = Collate(dataset)([dataset[n, 0] for n in range(3)])
    assert batch.id == ["tone0", "tone1", "tone2", "tone0", "tone2", "tone0"]
    assert batch.waveform.unflatten(0, (-1, batch.group)).sum(1).shape == (3, 48_000)
    with pytest.raises(UserError, match=r"fixes mixtures of 2 clips.*data\.samples\.sources=2"):
        MixtureDataset(clips, RawStore(), SPEC, sources=3)


def test_a_mixture_with_a_broken_clip_is_left_out_not_mended(folder):
    pairs = [("tone0", "mute"), ("tone0", "tone3")]
    clips = clip_list(folder, *TONES, ("mute", 1, "y"), mixtures=pairs)
    dataset = MixtureDataset(clips, RawStore(), SPEC)
    batch = Collate(dataset)([dataset[n, 0] for n in range(2)])
    assert batch.id == ["tone0", "tone3"]
    assert [(p.id, p.reason, p.used) for p in batch.problems] == [("mute", "no_audio", False)]


@pytest.mark.parametrize("label", [0, -1])  # -1: a clip without a class
def test_a_list_without_partners_is_an_error(folder, label):
    lonely = clip_list(folder, ("tone0", 0, "v"), ("tone1", label, "w"))
    with pytest.raises(UserError, match=r"another video and class.*data\.samples\.different_class=false"):
        MixtureDataset(lonely, RawStore(), SPEC)
    assert MixtureDataset(lonely, RawStore(), SPEC, different_class=False).mixtures == [(0, 1), (1, 0)]


# ---------------------------------------------------------------- annotated frames


@pytest.fixture(scope="module")
def annotated(tmp_path_factory):
    """Five seconds; frame n is red to the left of column 20 + 4 n, and so is its mask, with value 3."""
    root = tmp_path_factory.mktemp("avs") / "clip"
    (root / "frames").mkdir(parents=True)
    (root / "labels_semantic").mkdir()
    time = np.arange(80_000) / 16_000
    write_wav(root / "audio.wav", 0.1 * (1 + time.astype(int)) * np.sin(2 * np.pi * 500 * time), 16_000)
    for n in range(5):
        edge = 20 + 4 * n
        image = np.zeros((48, 64, 3), np.uint8)
        image[:, :edge, 0] = 255
        mask = np.zeros((48, 64), np.uint8)
        mask[:, :edge] = 3
        mask[:10, 60:] = 5
        Image.fromarray(image).save(root / "frames" / f"{n}.jpg", quality=95)
        Image.fromarray(mask).save(root / "labels_semantic" / f"{n}.png")
    return root


def frames(annotated: Path, seconds: tuple[int, ...] = (0, 2, 4), labels=(3,), train=False, **options) -> FrameDataset:
    clip = Clip("u", str(annotated), labels[0], "v", labels, seconds)
    names = ["background", "a", "b", "c", "d", "e"]
    return FrameDataset(ClipList("test", [clip], names), RawStore(), SampleSpec(SIZE, train=train), **options)


def test_frames_come_with_mask_and_the_sound_around_them(annotated):
    clips = frames(annotated)
    assert len(clips) == 3
    samples = [clips[n, 0][0] for n in range(3)]
    assert [s.frame_time for s in samples] == [0.5, 2.5, 4.5]
    assert [s.window_start for s in samples] == [0.0, 1.0, 2.0]  # three seconds inside the five
    for sample, edge in zip(samples, (20, 28, 36), strict=True):
        column = (edge - 8) / 48 * SIZE  # the centre square of 48 × 64 begins at column 8
        assert sample.mask.unique().tolist() == [0, 1]
        assert int((sample.mask[SIZE - 1] == 1).sum()) == pytest.approx(column, abs=1)
        agree = (sample.image[0] > 127) == (sample.mask == 1)
        assert agree[SIZE // 2 :].float().mean() > 0.95
    batch = Collate(clips)([[s] for s in samples])
    assert batch.mask.shape == (3, SIZE, SIZE)
    assert batch.id == ["u"] * 3


def test_picture_and_mask_are_cropped_together_in_training(annotated):
    clips = frames(annotated, train=True)
    starts = set()
    for seed in range(20):
        (sample,) = clips[1, seed]
        agree = (sample.image[0] > 127) == (sample.mask == 1)
        assert agree[SIZE // 2 :].float().mean() > 0.9
        starts.add(sample.window_start)
        assert 0 <= sample.window_start <= 2.0
    assert max(starts) - min(starts) > 1.0


def test_the_whole_picture_squeezed(annotated):
    (sample,) = frames(annotated, zoom=None)[0, 0]
    assert int((sample.mask[SIZE - 1] == 1).sum()) == 20 / 64 * SIZE


def test_semantic_masks_keep_the_annotated_classes(annotated):
    (sample,) = frames(annotated, semantic=True)[0, 0]
    assert sample.mask.unique().tolist() == [0, 3]  # 5 is no sound of this clip
    (sample,) = frames(annotated, labels=(3, 5), semantic=True, zoom=None)[0, 0]
    assert sample.mask.unique().tolist() == [0, 3, 5]
    (sample,) = frames(annotated, labels=(2,), semantic=True, label_offset=-1)[0, 0]
    assert sample.mask.unique().tolist() == [0, 2]


def test_bad_masks_are_named_with_file_and_value(annotated, tmp_path):
    problem = frames(annotated, semantic=True, label_offset=1)[0, 0]  # 5 lies outside what is shown
    assert isinstance(problem, Problem)
    assert problem.reason == "bad_mask"
    assert "value 5" in problem.detail
    assert "data.samples.label_offset" in problem.detail
    missing = frames(annotated, seconds=(7,))[0, 0]
    assert isinstance(missing, Problem)
    assert "labels_semantic/7.png" in missing.detail + missing.path
    shutil.copytree(annotated, tmp_path / "c")
    Image.new("L", (60, 48)).save(tmp_path / "c" / "labels_semantic" / "0.png")
    Image.new("RGB", (64, 48)).save(tmp_path / "c" / "labels_semantic" / "2.png")
    (tmp_path / "c" / "frames" / "4.jpg").write_bytes(b"no image")
    clips = frames(tmp_path / "c")
    problems = [clips[n, 0] for n in range(3)]
    assert all(isinstance(p, Problem) for p in problems)
    assert "labels_semantic/0.png has 60 × 48 pixels, frames/0.jpg has 64 × 48" in problems[0].detail
    assert (problems[1].reason, problems[2].reason) == ("bad_mask", "undecodable")
    assert problems[1].path.endswith("labels_semantic/2.png")
    assert problems[2].path.endswith("frames/4.jpg")


def test_coverage_counts_frames(annotated):
    clip = Clip("u", str(annotated), 3, "v", (3,), (0, 1))
    lost = [Clip("w", "w", 3, "w", (3,), (0, 1, 2))]
    assert FrameDataset(ClipList("test", [clip], ["a"] * 6, missing=lost), RawStore(), SPEC).listed == 5


# ---------------------------------------------------------------- several labels


def test_several_labels_become_a_row_of_ones(folder):
    clips = ClipList(
        "test",
        [Clip("a", str(folder / "long.mp4"), 2, labels=(0, 2)), Clip("b", str(folder / "long.mp4"), 1, labels=(1,))],
        ["x", "y", "z"],
        multi_label=True,
    )
    dataset = WindowDataset(clips, RawStore(), SPEC)
    batch = Collate(dataset)([dataset[0, 0], dataset[1, 0]])
    assert batch.labels.tolist() == [[1, 0, 1], [0, 1, 0]]
    assert batch.label.tolist() == [2, 1]


def test_balanced_sampling_draws_classes_alike():
    clips = [Clip(f"c{n}", "", 0 if n < 90 else 1 + n % 2) for n in range(100)]
    weights = balanced_weights(clips)
    assert weights.sum() == pytest.approx(1)
    sampler = ClipSampler(100, True, seed=1, weights=weights)
    drawn: Counter[int] = Counter()
    seeds = set()
    for epoch in range(60):
        sampler.set_epoch(epoch)
        draws = list(sampler)
        assert len(draws) == 100
        drawn.update(clips[item].label for item, _ in draws)
        seeds.update(seed for _, seed in draws)
    assert [drawn[label] / 6000 for label in range(3)] == pytest.approx([1 / 3] * 3, abs=0.03)
    assert len(seeds) == 6000  # a clip that comes twice is cropped anew
    both = balanced_weights([Clip("a", "", labels=(0, 1)), Clip("b", "", labels=(0,)), Clip("c", "", labels=(2,))])
    assert both.tolist() == pytest.approx([0.5, 0.5 / 3, 1 / 3])


# ---------------------------------------------------------------- hold-out, repeats, order of blocks


def test_holdout_goes_by_video_and_not_by_what_is_on_disk():
    clips = [Clip(f"v{n // 2}_{n % 2}", "", 0, f"v{n // 2}") for n in range(400)]
    whole = ClipList("train", clips, ["a"])
    rest, held = whole.held_out(0.1, seed=0)
    assert len(rest) + len(held) == 400
    assert 20 <= len(held) <= 60
    assert {c.video for c in rest.clips}.isdisjoint(c.video for c in held.clips)
    partial = ClipList("train", clips[:100], ["a"], missing=clips[100:300]).without({"v2_0": "no_audio"})
    partial_rest, partial_held = partial.held_out(0.1, seed=0)
    assert {c.id for c in partial_held.clips} == {c.id for c in held.clips} & {c.id for c in clips[:100]} - {"v2_0"}
    assert {c.id for c in partial_held.missing} == {c.id for c in held.clips} & {c.id for c in clips[100:300]}
    assert partial_rest.listed + partial_held.listed == partial.listed == 300
    assert {c.id for c in whole.held_out(0.1, seed=1)[1].clips} != {c.id for c in held.clips}


def test_blocks_are_shuffled_and_every_item_comes_once():
    blocks = [list(range(n, n + 5)) for n in range(0, 100, 5)]
    orders = []
    for epoch in (0, 1):
        sampler = ClipSampler(100, True, blocks=blocks)
        sampler.set_epoch(epoch)
        orders.append([item for item, _ in sampler])
        assert sorted(orders[-1]) == list(range(100))
        # a window of blocks is finished before the next begins
        first = {item // 5 for item in orders[-1][: 5 * SHUFFLED_TOGETHER]}
        assert len(first) == SHUFFLED_TOGETHER
        assert [item // 5 for item in orders[-1][:5]] != [orders[-1][0] // 5] * 5
    assert orders[0] != orders[1]
    stored = [blocks[n] for n in (3, 0, 1, 2)]
    assert [item for item, _ in ClipSampler(20, False, blocks=stored)] == [item for block in stored for item in block]


@pytest.mark.parametrize("even", [True, False])
def test_ranks_take_neighbouring_blocks(even):
    blocks = [list(range(n, min(n + 5, 23))) for n in range(0, 23, 5)]
    shares = [
        [item for item, _ in ClipSampler(23, True, rank=r, world_size=4, even=even, blocks=blocks)] for r in range(4)
    ]
    assert sorted(map(len, shares)) == ([5, 5, 5, 5] if even else [5, 6, 6, 6])
    assert len({item for share in shares for item in share}) == sum(map(len, shares))
    sampler = ClipSampler(23, True, rank=0, world_size=4, even=even, blocks=blocks)
    assert len(sampler) == len(shares[0])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_goes_on_in_the_middle_of_an_epoch(folder, workers):
    clips = WindowDataset(clip_list(folder, *[(f"tone{n % 4}", n, str(n)) for n in range(4)]), RawStore(), SPEC)

    def loader() -> ResumableLoader:
        sampler = ClipSampler(4, True, seed=7)
        sampler.set_epoch(2)
        return ResumableLoader(clips, batch_size=1, sampler=sampler, collate_fn=Collate(clips), num_workers=workers)

    whole = [batch.id for batch in loader()]
    interrupted = loader()
    iterator = iter(interrupted)
    begun = [next(iterator).id for _ in range(3)]
    state = interrupted.state_dict()
    assert state == {"delivered": 3}  # although workers have read ahead
    resumed = loader()
    resumed.load_state_dict(state)
    assert begun + [batch.id for batch in resumed] == whole
    assert resumed.state_dict() == {"delivered": 4}
    assert [batch.id for batch in resumed] == whole  # the next epoch is a whole one
    resumed.load_state_dict({"delivered": 4})
    assert len(list(resumed)) == 4


def test_an_epoch_may_pass_over_the_clips_several_times(folder):
    tones = clip_list(folder, *TONES)
    data = ClipDataModule(
        lambda root, split: tones, str(folder), "x", batch_size=4, image_size=SIZE, num_workers=0, repeats=3
    )
    data.setup()
    ids = [i for batch in data.train_dataloader() for i in batch.id]
    assert Counter(ids) == {name: 3 for name, _, _ in TONES}


def test_too_little_coverage_is_an_error_before_anything_runs(folder):
    tones = clip_list(folder, *TONES, missing=[Clip(f"m{n}", "") for n in range(3)])
    data = ClipDataModule(lambda root, split: tones, str(folder), "x", image_size=SIZE, min_coverage=0.9)
    with pytest.raises(UserError, match=r"only 4 of 7 clips of the test split.*57\.1%.*data\.min_coverage=0\.57"):
        data.setup()
    ClipDataModule(lambda root, split: tones, str(folder), "x", image_size=SIZE, min_coverage=0.57).setup()


@pytest.mark.parametrize(
    ("lost", "split", "stage", "words"),
    [
        ("missing", "test", "fit", "0 of 4 clips of the test split are on disk.*val_split"),
        ("excluded", "test", "fit", "4 of 4 clips of the test split are on disk, 4 of them .*val_split"),
        ("excluded", "test", "test", "4 of 4 clips of the test split are on disk, 4 of them .*eval_split"),
        ("excluded", "train", "fit", "4 of 4 clips of the train split .*train_split"),
        ("excluded", "train", "test", None),
        ("pairs", "test", "fit", "4 of 4 clips of the test split .*val_split"),
        ("nothing", "train", "fit", "the train split lists no clip.*train_split"),
        ("nothing", "test", "fit", None),
        ("nothing", "test", "test", "the test split lists no clip.*eval_split"),
    ],
)
def test_a_split_without_a_usable_clip_is_an_error_before_anything_runs(folder, lost, split, stage, words):
    tones = clip_list(folder, *TONES)
    lists = {name: replace(tones, split=name) for name in ("train", "test")}
    lists[split] = {
        "missing": replace(lists[split], clips=[], missing=tones.clips),
        "excluded": lists[split].without({clip.id: "silent" for clip in tones.clips}),
        "pairs": replace(lists[split], mixtures=[(tones.clips[0].id, "gone")]),
        "nothing": replace(lists[split], clips=[]),
    }[lost]
    kind = MixtureDataset if lost == "pairs" else WindowDataset
    data = ClipDataModule(lambda root, split: lists[split], str(folder), "x", kind, image_size=SIZE)
    match = words and f"nothing of the {split} split under .* can be used .{words}"
    with pytest.raises(UserError, match=match) if match else nullcontext():
        data.setup(stage)


# ---------------------------------------------------------------- every dataset config


@pytest.fixture
def demo_folder(config, request, shared):
    """Of the dataset that the config reads."""
    if config == "vggsound_music":
        counts = demo.Counts(vggsound_music_train=2, vggsound_music_test=2)
        return demo.ensure(shared / "demo", ["vggsound_music"], workers=1, counts=counts)[0]
    return request.getfixturevalue({"vggsound": "data_root", "music": "music_root"}.get(config, "avsbench_root"))


@pytest.mark.parametrize(
    ("config", "kind", "train", "test"),
    [
        ("vggsound", "windows", 16, 8),
        ("vggsound_music", "mixtures", 8, 8),
        ("music", "mixtures", 36, 4),
        ("avsbench_s4", "frames", 8 * 10, 4 * 5),
        ("avsbench_ms3", "frames", 4 * 5 * 100, 4 * 5),
        ("avsbench_avss", "semantic_frames", (8 + 4 * 5) * 5, 8 * 5),
    ],
)
def test_every_dataset_config_streams(demo_folder, config, kind, train, test):
    group = 2 if kind == "mixtures" else 1
    of_data, of_kind = (compose(f"data={config}", *more, config="prepare") for more in ([], [f"data/samples={kind}"]))
    assert of_data.data.samples == of_kind.data.samples  # the pre-training experiment takes windows of any dataset
    small = ["data.holdout_share=0", "data.image_size=32", "data.num_workers=0", "data.batch_size=3"]
    cfg = compose(f"data={config}", f"data/samples={kind}", f"data.root={demo_folder}", "scale=paper", *small)
    data = instantiate(cfg.data)
    data.setup()
    loader = data.train_dataloader()
    assert len(loader.sampler) == train
    assert len(data.test_dataloader()[0].dataset) == test
    batch = next(iter(loader))
    assert (batch.items, batch.group, len(batch)) == (3, group, 3 * group)
    assert batch.item.unflatten(0, (-1, group)).eq(batch.item[::group, None]).all()
    assert (batch.mask is not None) == config.startswith("avsbench")
    if config == "avsbench_avss":
        assert int(batch.mask.max()) < len(data.classes)
    whole = list(data.test_dataloader()[0])
    assert [int(n) for b in whole for n in b.item[::group]] == list(range(test))
    assert [p for b in whole for p in b.problems if not p.used] == []
