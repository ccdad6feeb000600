"""Clips become samples and batches: right window, right frame, every clip once, nothing lost."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch

from deepavfusion.data.collate import Collate
from deepavfusion.data.datamodule import ClipDataModule
from deepavfusion.data.lists.clip_list import ClipList
from deepavfusion.data.lists.vggsound import vggsound
from deepavfusion.data.loading.sampler import ClipSampler
from deepavfusion.data.samples import SampleSpec, WindowDataset
from deepavfusion.data.stores.raw import RawStore
from deepavfusion.data.stores.store import on_grid
from deepavfusion.media.encode import write_mp4
from deepavfusion.types import Clip, Problem

FPS = 10
SIZE = 32


def level_of(second: float) -> int:
    return 40 + 30 * int(second)


def write_clip(path, seconds: float = 6.0, sound_seconds: float | None = None, sound: bool = True) -> None:
    """The frames' grey level rises by 30 every second; a 1 kHz tone from second 3 on."""
    frames = np.stack([np.full((48, 64, 3), level_of(i / FPS), np.uint8) for i in range(int(seconds * FPS))])
    time = np.arange(int((sound_seconds or seconds) * 16000)) / 16000
    tone = (0.5 * np.sin(2 * np.pi * 1000 * time) * (time >= 3)).astype(np.float32)
    write_mp4(path, frames, FPS, tone if sound else None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("clips")
    write_clip(root / "good.mp4")
    write_clip(root / "short.mp4", seconds=1.0)
    write_clip(root / "mute.mp4", sound=False)
    (root / "cut.mp4").write_bytes((root / "good.mp4").read_bytes()[:4000])
    return root


def dataset(folder, *names: str, train: bool = False, **options: int) -> WindowDataset:
    clips = [Clip(n, str(folder / f"{n}.mp4"), i) for i, n in enumerate(names)]
    return WindowDataset(ClipList("test", clips, list(names)), RawStore(), SampleSpec(SIZE, 3.0, train), **options)


def test_evaluation_takes_the_centre(folder):
    (sample,) = dataset(folder, "good")[0, 0]
    assert sample.window_start == pytest.approx(1.5, abs=0.05)
    assert sample.frame_time == 3.0
    assert sample.image.shape == (3, SIZE, SIZE)
    assert sample.image.dtype == torch.uint8
    assert sample.image.float().mean() == pytest.approx(level_of(3.0), abs=4)
    assert sample.waveform.shape == (48000,)
    onset = (sample.waveform.abs() > 0.1).nonzero()[0].item() / 16000 + sample.window_start
    assert onset == pytest.approx(3.0, abs=0.02)
    assert (sample.clip.id, sample.clip.label, sample.gain_db, sample.problems) == ("good", 0, 0.0, [])


def test_training_draws_windows_and_frames_from_the_seed(folder):
    clips = dataset(folder, "good", train=True)
    samples = [clips[0, seed][0] for seed in range(12)]
    (again,) = clips[0, 3]
    assert torch.equal(again.waveform, samples[3].waveform)
    assert torch.equal(again.image, samples[3].image)
    gains = [s.gain_db for s in samples]
    assert -6 <= min(gains) < -2
    assert 2 < max(gains) <= 6
    starts = [s.window_start for s in samples]
    assert len(set(starts)) == 12
    assert 0 <= min(starts) < 1
    assert 2 < max(starts) <= 3.1
    for s in samples:
        assert s.window_start <= s.frame_time <= s.window_start + 3
        assert s.frame_time % 0.5 == 0
        assert s.image.float().mean() == pytest.approx(level_of(s.frame_time), abs=4)


def test_drawing_leaves_the_global_generator_alone(folder):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    dataset(folder, "good", train=True)[0, 1]
    assert torch.equal(torch.rand(3), expected)


def test_short_sound_is_extended_and_reported(folder):
    (sample,) = dataset(folder, "short")[0, 0]
    assert sample.waveform.shape == (48000,)
    assert torch.equal(sample.waveform[:16000], sample.waveform[16000:32000].flip(0))
    (problem,) = sample.problems
    assert problem.used
    assert problem.reason == "too_short"
    assert "1.00 s of audio, the window is 3 s" in problem.detail


def test_what_does_not_decode_is_a_problem_and_no_other_clip(folder):
    clips = dataset(folder, "good", "mute", "cut", "gone")
    items = [clips[i, 0] for i in range(4)]
    assert [type(item) is Problem for item in items] == [False, True, True, True]
    assert [item.reason for item in items[1:]] == ["no_audio", "truncated", "missing"]
    batch = Collate(clips)(items)
    assert batch.id == ["good"]
    assert batch.image.shape == (1, 3, SIZE, SIZE)
    assert [(p.id, p.used) for p in batch.problems] == [("mute", False), ("cut", False), ("gone", False)]


def test_a_batch_of_problems_is_empty_but_whole(folder):
    clips = dataset(folder, "mute")
    batch = Collate(clips)([clips[0, 0]])
    assert len(batch) == 0
    assert batch.image.shape == (0, 3, SIZE, SIZE)
    assert batch.waveform.shape == (0, 48000)
    assert [p.id for p in batch.problems] == ["mute"]


@pytest.mark.parametrize(
    ("moment", "earliest", "latest", "expected"),
    [(1.2, 0.0, 3.0, 1.0), (1.3, 0.0, 3.0, 1.5), (0.1, 0.2, 3.2, 0.5), (3.1, 0.2, 3.2, 3.0), (2.0, 0.0, 0.04, 0.0)],
)
def test_frames_lie_on_the_grid_inside_the_window(moment, earliest, latest, expected):
    assert on_grid(moment, earliest, latest) == expected


def draws(**kwargs) -> list[list[tuple[int, int]]]:
    """Two epochs of a sampler."""
    sampler = ClipSampler(**kwargs)
    epochs = []
    for epoch in (0, 1):
        sampler.set_epoch(epoch)
        epochs.append(list(sampler))
        assert len(epochs[-1]) == len(sampler)
    return epochs


def test_training_order_is_new_each_epoch_and_complete():
    first, second = draws(num_items=10, shuffle=True, seed=3)
    assert sorted(i for i, _ in first) == sorted(i for i, _ in second) == list(range(10))
    assert [i for i, _ in first] != [i for i, _ in second]
    assert draws(num_items=10, shuffle=True, seed=3) == [first, second]
    assert draws(num_items=10, shuffle=True, seed=4) != [first, second]


@pytest.mark.parametrize("epoch", [0, 1])
def test_ranks_share_an_epoch_without_overlap_and_with_the_same_crops(epoch):
    alone = dict(draws(num_items=12, shuffle=True)[epoch])
    shares = [dict(draws(num_items=12, shuffle=True, rank=r, world_size=3, even=True)[epoch]) for r in range(3)]
    assert [len(s) for s in shares] == [4, 4, 4]
    assert {k: v for share in shares for k, v in share.items()} == alone


def test_evaluation_shares_are_never_padded():
    shares = [draws(num_items=11, shuffle=False, rank=r, world_size=3)[0] for r in range(3)]
    assert sorted(i for share in shares for i, _ in share) == list(range(11))
    even = [draws(num_items=11, shuffle=True, rank=r, world_size=3, even=True)[0] for r in range(3)]
    assert [len(share) for share in even] == [3, 3, 3]
    assert len({i for share in even for i, _ in share}) == 9


@pytest.fixture(scope="module")
def vggsound_root(tmp_path_factory):
    """Five train and three test clips; one train clip has no sound."""
    root = tmp_path_factory.mktemp("vggsound")
    (root / "annotations").mkdir()
    (root / "clips" / "playing_flute").mkdir(parents=True)
    with (root / "annotations" / "vggsound.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        for i in range(8):
            rows.writerow([f"clip{i}", 30, "playing flute", "train" if i < 5 else "test"])
            write_clip(root / f"clips/playing_flute/clip{i}_000030_000040.mp4", seconds=3.2, sound=i != 2)
    return root


@pytest.mark.parametrize("workers", [0, 2])
def test_datamodule_gives_every_clip_once(vggsound_root, workers):
    data = ClipDataModule(
        vggsound, str(vggsound_root), "vggsound", batch_size=2, image_size=SIZE, num_workers=workers, gallery_clips=9
    )
    data.setup()
    loader = data.train_dataloader()
    batches = list(loader)
    # five clips in batches of two: the last, smaller one is dropped
    assert [len(b) + sum(not p.used for p in b.problems) for b in batches] == [2, 2]
    tests, gallery = ([i for b in loader for i in b.id] for loader in data.val_dataloader())
    assert tests == ["clip5_000030", "clip6_000030", "clip7_000030"]
    assert gallery == [f"clip{i}_000030" for i in (0, 1, 3, 4)]
    everything = ClipDataModule(vggsound, str(vggsound_root), "vggsound", batch_size=8, image_size=SIZE, num_workers=0)
    everything.setup()
    (batch,) = list(everything.train_dataloader())
    assert sorted(batch.id) == [f"clip{i}_000030" for i in (0, 1, 3, 4)]
    assert [p.id for p in batch.problems] == ["clip2_000030"]


def share_of(count: int, share: float, seed: int = 0) -> dict[int, set[str]]:
    """Class -> clips of a thinned list; every class has twice as many as the one before."""
    clips = [Clip(f"{label}_{n}", "", label) for label in range(4) for n in range(count * 2**label)]
    thin = ClipList("train", clips, list("abcd")).thinned(share, seed)
    assert [clip for clip in clips if clip in thin.clips] == thin.clips
    assert (thin.split, thin.classes) == ("train", list("abcd"))
    return {label: {clip.id for clip in thin.clips if clip.label == label} for label in range(4)}


@pytest.mark.parametrize(("share", "counts"), [(0.05, [1, 2, 4, 8]), (0.2, [4, 8, 16, 32]), (0.001, [1, 1, 1, 1])])
def test_a_share_of_the_clips_is_that_of_each_class_and_at_least_one(share, counts):
    assert [len(clips) for clips in share_of(20, share).values()] == counts


def test_the_clips_of_a_share_follow_from_the_seed_and_are_among_those_of_a_larger_one():
    small, large, whole = (share_of(20, share) for share in (0.1, 0.3, 1.0))
    assert small == share_of(20, 0.1) != share_of(20, 0.1, seed=1)
    assert all(small[label] < large[label] < whole[label] for label in whole)


def test_a_clip_of_several_classes_counts_for_the_first():
    clips = [Clip(str(n), "", labels=(n % 2, 2)) for n in range(20)]
    thin = ClipList("train", clips, list("abc"), multi_label=True).thinned(0.2, seed=0)
    assert sorted(clip.labels[0] for clip in thin.clips) == [0, 0, 1, 1]


def test_an_epoch_of_a_share_of_the_clips_is_as_long(vggsound_root):
    def data(**more: float) -> ClipDataModule:
        found = ClipDataModule(
            vggsound, str(vggsound_root), "vggsound", batch_size=1, image_size=SIZE, num_workers=0, **more
        )
        found.setup()
        return found

    whole, share = data(), data(train_share=0.4, repeats=2)
    clips = share.lists["train"].clips
    assert 0 < len(clips) < len(whole.lists["train"].clips)
    assert len({clip.label for clip in clips}) == len({clip.label for clip in whole.lists["train"].clips})
    passes = len(whole.train_dataloader()) * 2 / len(clips)
    assert len(share.train_dataloader()) == round(passes) * len(clips)
    assert share.lists["test"].clips == whole.lists["test"].clips


def test_gallery_is_spread_over_the_list(vggsound_root):
    data = ClipDataModule(vggsound, str(vggsound_root), "vggsound", image_size=SIZE, num_workers=0, gallery_clips=2)
    data.setup()
    assert [c.id for c in data.val_dataloader()[1].dataset.clips] == ["clip0_000030", "clip3_000030"]
