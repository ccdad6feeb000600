"""Packed data: the same samples as raw, the same bytes after a kill, every clip once after a resume."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deepavfusion.data.datamodule import ClipDataModule
from deepavfusion.data.lists.clip_list import ClipList
from deepavfusion.data.lists.vggsound import vggsound
from deepavfusion.data.samples import FrameDataset, SampleSpec
from deepavfusion.data.stores.pack import PackSettings, pack
from deepavfusion.data.stores.packed import is_packed
from deepavfusion.data.stores.packed_list import packed_list
from deepavfusion.data.stores.raw import RawStore
from deepavfusion.media.encode import write_mp4, write_wav
from deepavfusion.types import Clip
from deepavfusion.utils.errors import UserError
from deepavfusion.verify.verify import verify
from helpers.runs import PRETRAIN
from helpers.verify import Trap

SMALL = PackSettings(clips_per_chunk=5)


@pytest.fixture(scope="module")
def raw_root(tmp_path_factory, data_root):
    """16 train and 8 test clips of the demo, one large and textured clip, one without sound, one listed but absent."""
    root = shutil.copytree(data_root, tmp_path_factory.mktemp("demo") / "vggsound")
    rng = np.random.default_rng(0)
    base = np.asarray(Image.fromarray(rng.integers(0, 256, (40, 70, 3), dtype=np.uint8)).resize((700, 400)))
    frames = [base[n : n + 360, n : n + 640] for n in range(40)]
    wave = 0.4 * np.sin(np.arange(4 * 44_100) / 44_100 * 2 * np.pi * np.array([[440.0], [1200.0]]))
    folder = root / "clips" / "playing_flute"
    write_mp4(folder / "-textured_1_000000_000010.mp4", frames, 10, wave, 44_100, audio_bit_rate=128_000)
    write_mp4(folder / "mute________000000_000010.mp4", frames[:20], 10)
    with (root / "annotations" / "vggsound.csv").open("a") as file:
        file.write("-textured_1,0,playing flute,train\nmute_______,0,playing flute,train\n")
        file.write("gone_______,0,playing flute,test\n")
    return root


@pytest.fixture(scope="module")
def packed_root(raw_root, tmp_path_factory):
    root = tmp_path_factory.mktemp("packed") / "vggsound"
    counts = pack(read(raw_root), root, "vggsound", SMALL, workers=1)
    assert counts == {
        "train": {"listed": 18, "packed": 17, "missing": 0, "excluded": 1},
        "test": {"listed": 9, "packed": 8, "missing": 1, "excluded": 0},
    }
    return root


def read(root: Path) -> dict[str, ClipList]:
    return {split: vggsound(root, split) for split in ("train", "test")}


def data(root: Path | str, **options) -> ClipDataModule:
    module = ClipDataModule(vggsound, str(root), "vggsound", num_workers=0, **options)
    module.setup()
    return module


# ---------------------------------------------------------------- raw and packed


def test_the_list_is_the_same(raw_root, packed_root):
    raw, packed = data(raw_root), data(packed_root)
    for role in ("train", "test"):
        before, after = raw.lists[role], packed.lists[role]
        assert [(c.id, c.label, c.video) for c in after.clips] == [
            (c.id, c.label, c.video) for c in before.clips if not c.id.startswith("mute")
        ]
        assert (after.classes, after.listed) == (before.classes, before.listed)
        assert [c.id for c in after.missing] == [c.id for c in before.missing]
    assert [(c.id, why) for c, why in packed.lists["train"].excluded] == [("mute________000000", "no_audio")]
    assert packed.lists["test"].coverage == "8 of 9 clips of the test split are on disk"


@pytest.mark.parametrize("train", [True, False])
def test_a_sample_is_the_same_within_coding_error(raw_root, packed_root, train):
    modules = data(raw_root), data(packed_root)
    raw, packed = (module._dataset("train", train=train) for module in modules)
    position = {clip.id: n for n, clip in enumerate(raw.clips)}
    loud = 0
    for n, clip in enumerate(packed.clips):
        for seed in (1, 2) if train else (0,):
            (b,), (a,) = packed[n, seed], raw[position[clip.id], seed]
            assert (a.clip.id, a.window_start, a.frame_time) == (b.clip.id, b.window_start, b.frame_time)
            assert a.gain_db == b.gain_db
            error = (a.image.float() - b.image.float()).square().mean()
            assert 10 * torch.log10(255**2 / error) >= 34, clip.id
            if a.waveform.abs().max() > 0.25:
                loud += 1
                noise = (a.waveform - b.waveform).square().mean()
                assert 10 * torch.log10(a.waveform.square().mean() / noise) >= 60, clip.id
    assert loud > 5


def test_dense_windows_of_packed_clips(raw_root, packed_root):
    raw, packed = (module._dataset("test", windows=4) for module in (data(raw_root), data(packed_root)))
    for n in (0, 3):
        for a, b in zip(raw[n, 0], packed[n, 0], strict=True):
            assert (a.window_start, a.frame_time) == (b.window_start, b.frame_time)
            assert (a.waveform - b.waveform).abs().max() < 1e-3


def test_a_still_is_stored_once(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (1, 300, 400, 3), dtype=np.uint8)
    write_mp4(tmp_path / "still.mp4", pixels, 10, 0.5 * np.sin(np.arange(80_000) / 3))
    moving = np.random.default_rng(1).integers(0, 256, (50, 300, 400, 3), dtype=np.uint8)
    write_mp4(tmp_path / "moving.mp4", moving, 10, 0.5 * np.sin(np.arange(80_000) / 3))
    sizes = {}
    for name in ("still", "moving"):
        clips = ClipList("train", [Clip(name, str(tmp_path / f"{name}.mp4"), 0)], ["a"])
        pack({"train": clips}, tmp_path / name, "x", SMALL, workers=1)
        found, source = packed_list(str(tmp_path / name), "train", "x")
        with source.open(found.clips[0]) as opened:
            assert opened.audio_end == pytest.approx(5.0, abs=0.01)
            early, late = opened.frames([0.0, 4.5])
            assert min(early.pixels.size) == 256
            assert (early.height, early.width) == (300, 400)
            assert (early.pixels.tobytes() == late.pixels.tobytes()) == (name == "still")
        sizes[name] = (tmp_path / name / "train" / "chunk-00000.bin").stat().st_size
    assert sizes["moving"] > 4 * sizes["still"]


def test_annotated_frames_keep_their_masks_exactly(tmp_path):
    folder = tmp_path / "v1s" / "u"
    (folder / "frames").mkdir(parents=True)
    (folder / "labels_semantic").mkdir()
    write_wav(folder / "audio.wav", 0.5 * np.sin(np.arange(80_000) / 3), 16_000)
    rng = np.random.default_rng(0)
    for n in range(5):
        Image.fromarray(np.full((400, 600, 3), 40 * n, np.uint8)).save(folder / "frames" / f"{n}.jpg")
        Image.fromarray(rng.integers(0, 4, (400, 600), dtype=np.uint8)).save(folder / "labels_semantic" / f"{n}.png")
    clip = Clip("u", str(folder), 1, "v", (1, 3), (0, 2))
    clips = ClipList("train", [clip], ["background", "a", "b", "c"], lost_frames=3)
    pack({"train": clips}, tmp_path / "packed", "avsbench", SMALL, workers=1)
    found, source = packed_list(str(tmp_path / "packed"), "train", "avsbench")
    assert found.lost_frames == 3
    assert [(c.id, c.labels, c.frames, c.video) for c in found.clips] == [("u", (1, 3), (0, 2), "v")]
    raw = FrameDataset(clips, RawStore(), SampleSpec(112, train=True), semantic=True)
    packed = FrameDataset(found, source, SampleSpec(112, train=True), semantic=True)
    for item in range(2):
        (a,), (b,) = raw[item, 7], packed[item, 7]
        assert torch.equal(a.mask, b.mask)
        assert (a.image.int() - b.image.int()).abs().max() <= 3
        assert (a.waveform - b.waveform).abs().max() < 1e-4


# ---------------------------------------------------------------- packing


def content(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_workers_do_not_change_a_byte(raw_root, packed_root, tmp_path):
    pack(read(raw_root), tmp_path / "two", "vggsound", SMALL, workers=2)
    assert content(tmp_path / "two") == content(packed_root)
    manifest = json.loads((packed_root / "packed.json").read_text())
    assert [chunk["items"] for chunk in manifest["splits"]["train"]["chunks"]] == [5, 4, 5, 3]
    assert not list(packed_root.rglob("*.partial"))


@pytest.mark.full
def test_clips_that_kill_or_hang_a_worker_are_named_and_left_out(tmp_path, capsys):
    """Twice, that is; what another program ends is no clip's fault. The rest has the bytes it always has."""
    film = tmp_path / "film.mp4"
    write_mp4(film, np.zeros((30, 32, 32, 3), np.uint8), 10, np.full(48_000, 0.1))
    kinds = ["crash", "hang", "memory", "crash-once", "end-once", "memory-once"]
    traps = []
    for kind in kinds:
        shutil.copy(film, tmp_path / f"{kind}.mp4")
        traps.append(Trap(kind, str(tmp_path / f"{kind}.mp4"), 0))
    good = [Clip(name, str(film), 0) for name in ("a", "b", *kinds[3:])]
    one, other = ClipList("train", [*good[:2], *traps], ["x"]), ClipList("train", good, ["x"])
    counts = pack({"train": one}, tmp_path / "out", "x", PackSettings(), 2, time_limit=2.0)
    assert counts == {"train": {"listed": 8, "packed": 5, "missing": 0, "excluded": 3}}
    pack({"train": other}, tmp_path / "good", "x", PackSettings(), 2)
    chunk = "train/chunk-00000.bin"
    assert (tmp_path / "out" / chunk).read_bytes() == (tmp_path / "good" / chunk).read_bytes()
    excluded = packed_list(str(tmp_path / "out"), "train", "x")[0].excluded
    assert {clip.id: why for clip, why in excluded} == {"crash": "undecodable", "hang": "hung", "memory": "undecodable"}
    said = [line for line in capsys.readouterr().out.splitlines() if "is left out" in line]
    assert {line.partition(".mp4) is left out, ")[2] for line in said} == {
        "undecodable: the decoding process was killed by SIGSEGV, 2 times",
        "undecodable: the decoding process was killed by SIGKILL (out of memory?), 2 times",
        "hung: not done after 2 s, 2 times",
    }


@pytest.mark.full
def test_a_killed_pack_goes_on_to_the_same_bytes(raw_root, packed_root, tmp_path):
    """SIGKILL to the whole of it while chunks are being written, several times."""
    script = f"""
import sys
from pathlib import Path
from deepavfusion.data.stores.pack import PackSettings, pack
from deepavfusion.data.lists.vggsound import vggsound
if __name__ == "__main__":
    lists = {{split: vggsound({str(raw_root)!r}, split) for split in ("train", "test")}}
    pack(lists, Path({str(tmp_path / "out")!r}), "vggsound", PackSettings(clips_per_chunk=5), workers=2)
"""
    (tmp_path / "run.py").write_text(script)
    kills = 0
    for wanted in (1, 3):  # killed when so many chunks are there
        process = subprocess.Popen([sys.executable, tmp_path / "run.py"], stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if len(list((tmp_path / "out").glob("*/chunk-*.bin"))) >= wanted:
                os.kill(process.pid, signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.002)
        process.wait()
    assert kills == 2
    assert not is_packed(tmp_path / "out")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("*/chunk-*.bin")}
    subprocess.run([sys.executable, tmp_path / "run.py"], check=True, capture_output=True, timeout=120)
    assert content(tmp_path / "out") == content(packed_root)
    kept = [p for p, written in before.items() if p.stat().st_mtime_ns == written]
    assert len(kept) >= 1  # whole chunks are not packed again


def test_an_output_of_something_else_is_left_alone(raw_root, packed_root, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(UserError, match=r"mine exists and holds no packed data"):
        pack(read(raw_root), tmp_path / "mine", "vggsound", SMALL, 1)
    shutil.copytree(packed_root, tmp_path / "other")
    with pytest.raises(UserError, match=r"another settings"):
        pack(read(raw_root), tmp_path / "other", "vggsound", PackSettings(quality=50), 1)
    lists = read(raw_root)
    fewer = {**lists, "test": replace(lists["test"], clips=lists["test"].clips[1:])}
    with pytest.raises(UserError, match=r"another lists"):
        pack(fewer, tmp_path / "other", "vggsound", SMALL, 1)


# ---------------------------------------------------------------- reading


def test_damaged_and_unfit_packed_data_are_named(packed_root, tmp_path):
    shutil.copytree(packed_root, tmp_path / "p")
    with pytest.raises(UserError, match=r"holds vggsound packed in format 1, expected music"):
        packed_list(str(tmp_path / "p"), "train", "music")
    with pytest.raises(UserError, match=r"without the split val, it has train, test.*splits=\[val\]"):
        packed_list(str(tmp_path / "p"), "val", "vggsound")
    chunk = tmp_path / "p" / "train" / "chunk-00001.bin"
    chunk.write_bytes(chunk.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"chunk-00001\.bin has \d+ bytes, expected \d+"):
        data(tmp_path / "p")
    chunk.unlink()
    with pytest.raises(UserError, match=r"chunk-00001\.bin is missing"):
        data(tmp_path / "p")
    with pytest.raises(UserError, match=r"local:.*nowhere refuses .*expected a folder"):
        packed_list(f"local:{tmp_path}/nowhere", "train", "vggsound")


def test_another_choice_of_clips_is_not_taken_for_the_one_asked_for(tmp_path):
    write_mp4(tmp_path / "a.mp4", np.zeros((30, 32, 32, 3), np.uint8), 10, np.full(48_000, 0.1))
    clips = ClipList("train", [Clip("a", str(tmp_path / "a.mp4"), 0)], ["x"])
    pack({"train": clips}, tmp_path / "out", "avsbench", SMALL, 1, reader={"subset": "s4"})
    assert len(packed_list(str(tmp_path / "out"), "train", "avsbench", {"subset": "s4"})[0]) == 1
    with pytest.raises(UserError, match=r"packed with data\.index\.subset=s4, expected ms3"):
        packed_list(str(tmp_path / "out"), "train", "avsbench", {"subset": "ms3"})


def ids(module: ClipDataModule, epoch: int = 0) -> list[str]:
    loader = module.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return [i for batch in loader for i in batch.id]


def test_epochs_are_shuffled_and_complete(packed_root):
    module = data(packed_root, batch_size=1, image_size=32)
    everything = sorted(clip.id for clip in module.lists["train"].clips)
    first, second = ids(module, 0), ids(module, 1)
    assert sorted(first) == sorted(second) == everything
    assert first != second
    assert ids(module, 0) == first


def test_a_remote_root_streams_through_a_cache(packed_root, tmp_path):
    """litdata's `local:` address is read as s3:// is: chunk by chunk into a cache."""
    cache = tmp_path / "cache"
    module = ClipDataModule(
        vggsound, f"local:{packed_root}", "vggsound", batch_size=3, image_size=32, num_workers=2, cache_dir=str(cache)
    )
    module.setup()
    local = data(packed_root, batch_size=3, image_size=32)
    assert ids(module) == ids(local)
    assert len(list(cache.rglob("chunk-*.bin"))) == 4
    (test, *_) = module.val_dataloader()
    assert sorted(i for batch in test for i in batch.id) == [clip.id for clip in local.lists["test"].clips]


# ---------------------------------------------------------------- a run


def run(root: Path | str, logs: Path, *more: str) -> None:
    command = [sys.executable, "src/train.py", *PRETRAIN]
    command += [f"data.root={root}", f"paths.log_dir={logs}", "run.latest=false", "run.name=x", "data.num_workers=2"]
    command += ["trainer.max_epochs=2", "data.batch_size=2", "validate_before=false", "data.gallery_clips=0"]
    command += ["+callbacks.recorder._target_=helpers.runs.Recorder"]
    environment = {**os.environ, "PYTHONPATH": "tests"}
    done = subprocess.run(
        [*command, f"+callbacks.recorder.path={logs / 'order.jsonl'}", *more],
        cwd=Path(__file__).parents[1],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.full
def test_an_address_gives_the_steps_of_a_folder(packed_root, tmp_path):
    steps = []
    for name, root in (("folder", packed_root), ("address", f"local:{packed_root}")):
        (tmp_path / name).mkdir()
        run(root, tmp_path / name, f"data.cache_dir={tmp_path / 'cache'}")
        steps.append([json.loads(line) for line in (tmp_path / name / "order.jsonl").open()])
    assert steps[0] == steps[1]


def test_links_in_a_data_folder_are_followed(raw_root, packed_root, tmp_path):
    """To another disk, or into a download cache: a folder, a list, a clip, a chunk; in reading, verifying, packing."""
    linked, packed = tmp_path / "vggsound", tmp_path / "linked"
    for name in ("annotations", "clips"):
        (linked / name).mkdir(parents=True)
    (linked / "annotations" / "vggsound.csv").symlink_to(raw_root / "annotations" / "vggsound.csv")
    for folder in (raw_root / "clips").iterdir():
        (linked / "clips" / folder.name).symlink_to(folder)
    flutes = linked / "clips" / "playing_flute"
    flutes.unlink()
    flutes.mkdir()
    for clip in (raw_root / "clips" / "playing_flute").iterdir():
        (flutes / clip.name).symlink_to(clip)
    assert [clip.id for clip in read(linked)["train"].clips] == [clip.id for clip in read(raw_root)["train"].clips]
    assert verify([read(linked)["test"]], linked, tmp_path / "verify.csv") == {"ok": 8, "missing": 1}
    pack({"test": read(linked)["test"]}, packed, "vggsound", SMALL, workers=1)
    for chunk in (packed / "test").glob("chunk*"):
        assert chunk.read_bytes() == (packed_root / "test" / chunk.name).read_bytes()
        chunk.unlink()
        chunk.symlink_to(packed_root / "test" / chunk.name)
    clips, store = packed_list(str(packed), "test", "vggsound")
    with store.open(clips.clips[0]) as opened:
        assert opened.frame_times()[0] == 0.0
