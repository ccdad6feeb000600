"""`prepare.py command=verify`: which word each kind of file gets, and what a run leaves when clips or it itself die."""

from __future__ import annotations

import csv
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from multiprocessing import forkserver
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from deepavfusion.config.ranges import DEFECTS
from deepavfusion.data.datamodule import ClipDataModule
from deepavfusion.data.lists.clip_list import ClipList
from deepavfusion.data.lists.verified import STATUSES, USABLE, bad_clips, read_report
from deepavfusion.data.lists.vggsound import vggsound
from deepavfusion.media import Media, scan
from deepavfusion.media.encode import write_mp4, write_wav
from deepavfusion.types import Clip
from deepavfusion.utils.errors import UserError
from deepavfusion.utils.pool import CALLS, Lost, call_apart
from deepavfusion.verify.report import Journal
from deepavfusion.verify.verify import verify
from helpers.errors import decode_error
from helpers.media import clicks, copy_from, numbered, read_audio, write_stream
from helpers.verify import listed, logged, pid, scripted

EXCLUDE = ["no_video", "no_audio", "truncated", "undecodable", "hung", "bad_mask"]
TONE = 0.3 * np.sin(np.arange(4 * 16_000) / 16_000 * 2 * np.pi * 440)


def film(seconds: float = 4.0, fps: int = 10, seed: int = 0) -> np.ndarray:
    """A textured square that moves; uint8 [N, 64, 64, 3]."""
    count = round(seconds * fps)
    noise = np.random.default_rng(seed).integers(0, 256, (12, 20, 3), dtype=np.uint8)
    base = np.asarray(Image.fromarray(noise).resize((2 * count + 80, 64)))
    return np.stack([base[:, 2 * n : 2 * n + 64] for n in range(count)])


def rows(report: Path) -> dict[str, dict[str, str]]:
    with report.open(newline="") as file:
        return {row["id"]: row for row in csv.DictReader(file)}


def run(lists: Sequence[ClipList], root: Path, **options: object) -> Counter[str]:
    return verify(lists, root, root / "verify.csv", EXCLUDE, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "a.mp4"
    write_mp4(path, film(), 10, TONE)
    return path


# ---------------------------------------------------------------- one file


def test_scan_tells_what_is_in_a_file(whole: Path) -> None:
    found = scan(whole)
    assert (found.frames, found.video_end, found.audio_end) == (40, 4.0, 4.0)
    assert found.peak == pytest.approx(0.3, abs=0.02)
    assert found.movement > 10
    with Media(whole) as media:
        assert (media.info.frames, media.info.sample_rate) == (40, 16_000)


def healthy(name: str, path: Path) -> None:
    """One of many kinds of whole files."""
    if name.startswith("aac"):
        _, rate, layout = name.split()
        wave = clicks(int(rate), 6 if layout == "5.1" else 1 + (layout == "stereo"))
        return write_stream(path, wave, int(rate), layout, numbered(100))
    if name == "late sound":
        return write_stream(path, TONE[None, :16_000], frames=film(), late=1.5)
    if name == "variable rate":
        times = np.cumsum([0, *np.linspace(0.01, 0.3, 39)]).tolist()
        return write_stream(path, TONE[None], frames=film(), times=times)
    if name == "one frame":
        return write_mp4(path, film()[:1], 10, TONE)
    if "cut" in name:
        long, x264 = path.with_name("long.mp4"), "open-gop=1:bframes=3:scenecut=0" if "open" in name else "bframes=2"
        write_stream(long, frames=numbered(100), x264=x264)
        return copy_from(long, path, start=38 / 25)
    x264 = "open-gop=1:bframes=3:b-pyramid=normal:scenecut=0"
    return write_stream(path, clicks(16_000), frames=numbered(100), x264=x264)


@pytest.mark.parametrize(
    "name",
    [f"aac {rate} {layout}" for rate in (16_000, 44_100, 48_000) for layout in ("mono", "stereo", "5.1")]
    + ["late sound", "variable rate", "one frame", "cut closed", "cut open", "open.mkv", "open.ts", "open.mp4"],
)
def test_no_false_alarm(tmp_path: Path, name: str) -> None:
    path = tmp_path / (name if "." in name[-4:] and " " not in name else "a.mp4")
    healthy(name, path)
    found = scan(path, audio="cut" not in name)
    expected = {"late sound": 40, "variable rate": 40, "one frame": 1, "cut closed": 62, "cut open": 62}
    assert found.frames == expected.get(name, 100)
    assert (found.audio_end == 0.0) == ("cut" in name)


def test_no_false_alarm_on_real_clips(real_clips: Path) -> None:
    film_, duets = scan(real_clips / "bigbuckbunny.mp4"), [scan(real_clips / f"music_duet_{n}.mp4") for n in (1, 2)]
    assert (film_.frames, film_.audio_end) == (132, pytest.approx(5.312))
    assert [(duet.frames, duet.movement, duet.audio_end) for duet in duets] == [(1, 0.0, 3.0)] * 2
    assert scan(real_clips / "bikes.mp4", audio=False).frames == 250


def test_concealed_damage_is_found(whole: Path, tmp_path: Path) -> None:
    data, path = whole.read_bytes(), tmp_path / "a.mp4"
    begin, end = data.find(b"mdat") + 4, data.find(b"moov") - 4
    assert 0 < begin < end
    for at in range(begin + 1500, end - 300, (end - begin) // 12):
        path.write_bytes(data[:at] + bytes(200) + data[at + 200 :])
        assert decode_error(scan, path).reason == "undecodable", at
        path.write_bytes(data[:at])
        assert decode_error(scan, path).reason == "truncated", at


def test_eight_channels_do_not_crash(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=48_000, layout="7.1")
        widen = av.AudioResampler(format="fltp", layout="7.1", rate=48_000)
        tone = (0.3 * np.sin(np.arange(48_000) / 20)).astype(np.float32)[None]
        frame = av.AudioFrame.from_ndarray(tone, format="fltp", layout="mono")
        frame.sample_rate = 48_000
        for wide in (*widen.resample(frame), *widen.resample(None)):
            container.mux(stream.encode(wide))
        container.mux(stream.encode(None))
    assert scan(tmp_path / "a.mp4", video=False).audio_end == pytest.approx(1.0, abs=0.05)
    assert read_audio(tmp_path / "a.mp4", 0.2, 0.5).abs().max() > 0.01


# ---------------------------------------------------------------- the words


@pytest.fixture
def every_kind(whole: Path, tmp_path: Path) -> dict[str, Path]:
    """A file for each word but hung and bad_mask; its id is the word."""
    names = ("ok", "missing", "no_video", "no_audio", "silent", "still", "too_short", "truncated", "undecodable")
    files = {name: tmp_path / f"{name}.mp4" for name in (*names, "silent_still")}
    data = whole.read_bytes()
    shutil.copy(whole, files["ok"])
    write_stream(files["no_video"], clicks(16_000))
    write_mp4(files["no_audio"], film(), 10)
    write_mp4(files["silent"], film(), 10, 0.0005 * np.sign(TONE))
    write_mp4(files["still"], np.broadcast_to(film()[:1], (40, 64, 64, 3)), 10, TONE)
    write_mp4(files["too_short"], film(), 10, TONE[:32_000])
    write_mp4(files["silent_still"], film()[:1], 10, 0.0 * TONE[:16_000])
    files["truncated"].write_bytes(data[: len(data) // 2])
    files["undecodable"].write_bytes(random.Random(0).randbytes(9999))
    return files


def test_every_word(every_kind: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    counts = run([listed(every_kind)], tmp_path)
    found = rows(tmp_path / "verify.csv")
    assert {name: row["status"] for name, row in found.items()} == {name: name for name in every_kind} | {
        "silent_still": "silent"
    }
    assert {name for name, row in found.items() if row["usable"] == "yes"} == {*USABLE, "silent_still"}
    assert found["silent_still"]["also"] == "still too_short"
    assert counts == {name: 1 + (name == "silent") for name in every_kind if name != "silent_still"}
    assert found["too_short"]["detail"] == "2.00 s of audio, the window is 3 s"
    assert (found["ok"]["path"], found["ok"]["bytes"]) == ("ok.mp4", str(every_kind["ok"].stat().st_size))
    assert found["missing"]["modified"] == found["missing"]["bytes"] == ""
    assert list(found) == sorted(every_kind)
    out = capsys.readouterr().out
    assert "runs exclude 4 of them (data.exclude)" in out
    assert str(tmp_path / "verify.csv") in out
    with (tmp_path / "verify_classes.csv").open() as file:
        lines = list(csv.reader(file))
    assert lines[0] == ["split", "class", "listed", "present", "usable"]
    assert [line[:3] for line in lines[1:]] == [["train", "drum", "5"], ["train", "flute", "5"]]
    assert sum(int(line[3]) for line in lines[1:]) == 9
    assert sum(int(line[4]) for line in lines[1:]) == 5


def test_real_clips(real_clips: Path, tmp_path: Path) -> None:
    run([listed({path.stem: path for path in real_clips.glob("*.mp4")})], tmp_path)
    found = {name: (row["status"], row["path"]) for name, row in rows(tmp_path / "verify.csv").items()}
    expected = {"bigbuckbunny": "ok", "bikes": "no_audio", "music_duet_1": "still", "music_duet_2": "still"}
    assert {name: status for name, (status, _) in found.items()} == expected
    assert all(Path(path).is_absolute() for _, path in found.values())  # the report lies elsewhere


def annotated(folder: Path, values: Sequence[int], labels: tuple[int, ...]) -> Clip:
    """A clip as AVSBench has it, whose masks hold these values."""
    for part in ("frames", "labels_semantic"):
        (folder / part).mkdir(parents=True)
    write_wav(folder / "audio.wav", TONE, 16_000)
    for n, value in enumerate(values):
        Image.fromarray(film(seed=n)[0]).save(folder / "frames" / f"{n}.jpg")
        mask = np.zeros((64, 64), np.uint8)
        mask[10:20] = value
        Image.fromarray(mask).save(folder / "labels_semantic" / f"{n}.png")
    return Clip(folder.name, str(folder), labels[0], labels=labels, frames=tuple(range(len(values))))


def test_annotated_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["whole", "cut_sound", "cut_picture", "cut_mask", "odd_size", "strange_value", "gone_picture"]
    clips = {name: annotated(tmp_path / name, [1, 3, 3], (2, 4)) for name in names}
    for name in ("cut_sound/audio.wav", "cut_picture/frames/1.jpg", "cut_mask/labels_semantic/1.png"):
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[: len(data) * 2 // 3])
    Image.new("L", (32, 32), 1).save(tmp_path / "odd_size/labels_semantic/2.png")
    Image.new("L", (64, 64), 7).save(tmp_path / "strange_value/labels_semantic/0.png")
    (tmp_path / "gone_picture/frames/1.jpg").unlink()
    clip_list = ClipList("val", list(clips.values()), ["background", "a", "b", "c", "d"])
    run([clip_list], tmp_path, label_offset=0)
    found = {name: (row["status"], row["detail"]) for name, row in rows(tmp_path / "verify.csv").items()}
    assert found["whole"] == ("ok", "")
    assert found["cut_sound"][0] == "truncated"
    assert found["cut_sound"][1].startswith("audio.wav: ")
    assert found["cut_picture"][0] == "undecodable"
    assert found["cut_picture"][1].startswith("frames/1.jpg: ")
    assert found["cut_mask"][0] == "bad_mask"
    assert found["odd_size"] == ("bad_mask", "labels_semantic/2.png has 32 × 32 pixels, frames/2.jpg has 64 × 64")
    assert found["strange_value"] == (
        "bad_mask",
        "labels_semantic/0.png holds the value 7, which is none of the 5 classes (data.samples.label_offset is 0)",
    )
    assert found["gone_picture"] == ("no_video", "frames/1.jpg: there is no such file")
    # 1 and 3 in all clips (cut_mask loses a 3 of two), and the 7, which no offset explains
    assert (
        "data.samples.label_offset=1 fits the masks: 13 of 14 values are annotated classes; with 0, its present value"
        in (capsys.readouterr().out).replace("\n", " ")
    )
    assert rows(tmp_path / "verify.csv")["whole"]["mask_values"] == "1 3"


def test_masks_are_judged_anew_for_another_task(tmp_path: Path) -> None:
    """S4 takes any value but 0 as sounding; AVSS, with the same folder and report, wants classes."""
    clips = ClipList("train", [annotated(tmp_path / "a", [1, 255], (1,))], ["background", "a"])
    assert run([clips], tmp_path, semantic=False) == {"ok": 1}
    for _ in range(2):
        assert run([clips], tmp_path, semantic=True) == {"bad_mask": 1}
    report = (tmp_path / "verify.csv").read_bytes()
    assert run([clips], tmp_path, semantic=True, check=scripted) == {"bad_mask": 1}
    assert (tmp_path / "verify.csv").read_bytes() == report
    assert run([clips], tmp_path, semantic=False) == {"ok": 1}


# ---------------------------------------------------------------- clips that take the process with them


def test_hung_and_crashing_decoders(tmp_path: Path) -> None:
    words = ["crash", "hang", "leave", "raise", *(f"ok{k}" for k in range(9))]
    names = [f"{word}_{n}" for n in range(2) for word in words]
    for name in names:
        (tmp_path / name).write_text(name)
    start = time.monotonic()
    counts = run([listed({name: tmp_path / name for name in names})], tmp_path, check=scripted, time_limit=1, workers=2)
    assert time.monotonic() - start < 40
    assert counts == {"ok": 18, "hung": 2, "undecodable": 6}
    found = {name: (row["status"], row["detail"]) for name, row in rows(tmp_path / "verify.csv").items()}
    for n in range(2):
        assert found[f"hang_{n}"] == ("hung", "not done after 1 s")
        assert found[f"crash_{n}"] == ("undecodable", "the decoding process was killed by SIGSEGV")
        assert found[f"leave_{n}"] == ("undecodable", "the decoding process ended with status 3")
        assert found[f"raise_{n}"] == ("undecodable", f"KeyError: 'raise_{n}'")
    time.sleep(0.2)
    server = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(server)], capture_output=True, text=True)
    assert found.stdout.split() == []  # no worker outlives its verification


def test_workers_are_short_lived() -> None:
    results = list(call_apart(pid, range(2 * CALLS + 10), workers=1, time_limit=10))
    assert sorted(item for item, _ in results) == list(range(2 * CALLS + 10))
    assert sorted(Counter(result for _, result in results).values()) == [10, CALLS, CALLS]
    assert not any(isinstance(result, Lost) or result == os.getpid() for _, result in results)


# ---------------------------------------------------------------- the report


def test_second_call_looks_at_what_is_new(every_kind: dict[str, Path], tmp_path: Path, whole: Path) -> None:
    run([listed(every_kind)], tmp_path)
    first = (tmp_path / "verify.csv").read_bytes()
    assert run([listed(every_kind)], tmp_path, check=scripted)["ok"] == 1
    assert (tmp_path / "verify.csv").read_bytes() == first
    shutil.copy(whole, every_kind["missing"])
    os.utime(every_kind["silent"], ns=(0, 10**18 + 7))
    every_kind["no_audio"].write_bytes(whole.read_bytes())
    every_kind["new"] = tmp_path / "new.mp4"
    shutil.copy(whole, every_kind["new"])
    assert run([listed(every_kind)], tmp_path, check=scripted)["ok"] == 5
    changed = {name for name, row in rows(tmp_path / "verify.csv").items() if row["detail"].isdigit()}
    assert changed == {"missing", "silent", "no_audio", "new"}
    every_kind["new"].unlink()
    run([listed(every_kind)], tmp_path, check=scripted)
    assert rows(tmp_path / "verify.csv")["new"]["status"] == "missing"
    assert run([listed(every_kind)], tmp_path, check=scripted, force=True)["ok"] == len(every_kind) - 1


KILLED = """
import sys
from pathlib import Path
from deepavfusion.verify.verify import verify
from helpers.verify import listed, logged

if __name__ == "__main__":
    root = Path(sys.argv[1])
    clips = listed({f"{n:03d}": root / f"{n:03d}" for n in range(100)})
    verify([clips], root, root / "verify.csv", workers=2, check=logged)
"""


@pytest.mark.full
def test_killed_run_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """kill -9 in the middle, half a line at the end: the second run looks at the rest only."""
    script = tmp_path / "run.py"
    script.write_text(KILLED)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
    for n in range(100):
        (tmp_path / f"{n:03d}").write_text("x")
    report, journal = tmp_path / "verify.csv", tmp_path / "verify.csv.partial.jsonl"
    process = subprocess.Popen([sys.executable, script, tmp_path], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while (journal.read_text().count("\n") if journal.exists() else 0) < 25:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.wait()
    before = {json.loads(line)["id"] for line in journal.read_text().splitlines()}
    assert 20 <= len(before) < 90
    with journal.open("a") as file:
        file.write('{"id": "099", "split": "tr')
    assert not report.exists()  # runs read whole reports only
    time.sleep(0.3)  # the old workers end by themselves
    (tmp_path / "log").unlink()
    run([listed({f"{n:03d}": tmp_path / f"{n:03d}" for n in range(100)})], tmp_path, workers=2, check=logged)
    looked_at = (tmp_path / "log").read_text().split()
    assert sorted(looked_at) == sorted({f"{n:03d}" for n in range(100)} - before)
    assert list(rows(report)) == [f"{n:03d}" for n in range(100)]
    assert not journal.exists()
    assert {row["status"] for row in rows(report).values()} == {"ok"}


def test_runs_exclude_what_the_report_names(tmp_path: Path, whole: Path) -> None:
    (tmp_path / "annotations").mkdir()
    lines = [f"{name},0,playing flute,{split}" for name, split in [("aa", "train"), ("bb", "train"), ("cc", "test")]]
    (tmp_path / "annotations/vggsound.csv").write_text("\n".join(lines) + "\n")
    folder = tmp_path / "clips/playing_flute"
    folder.mkdir(parents=True)
    for name in ("aa", "bb", "cc"):
        shutil.copy(whole, folder / f"{name}_000000_000010.mp4")
    bad = folder / "bb_000000_000010.mp4"
    bad.write_bytes(whole.read_bytes()[:5000])

    data = ClipDataModule(
        vggsound, str(tmp_path), "vggsound", verify_report=str(tmp_path / "verify.csv"), exclude=EXCLUDE
    )
    assert [clip.id for clip in data.read("train")[0].clips] == ["aa_000000", "bb_000000"]  # no report, no matter
    run([data.read(split, known_bad=False)[0] for split in ("train", "test")], tmp_path)
    clips = data.read("train")[0]
    assert [clip.id for clip in clips.clips] == ["aa_000000"]
    assert [(clip.id, why) for clip, why in clips.excluded] == [("bb_000000", "truncated")]
    data.exclude = ("still",)
    assert len(data.read("train")[0]) == 2
    assert {*DEFECTS} == {*STATUSES} - {"ok", "missing"}  # what data.exclude may name
    data.exclude = tuple(EXCLUDE)
    moved = tmp_path.with_name("moved")
    tmp_path.rename(moved)
    data.root, data.verify_report = str(moved), str(moved / "verify.csv")
    assert len(data.read("train")[0]) == 1  # paths are relative
    shutil.copy(whole, moved / bad.relative_to(tmp_path))
    assert len(data.read("train")[0]) == 2  # fixed since
    moved.rename(tmp_path)


def test_a_clip_of_two_splits_is_looked_at_once(tmp_path: Path, whole: Path) -> None:
    write_mp4(tmp_path / "mute.mp4", film(), 10)
    files = {"same": tmp_path / "mute.mp4"}
    lists = [listed(files, "balanced"), listed(files, "full")]
    assert run(lists, tmp_path) == {"no_audio": 2}
    report = tmp_path / "verify.csv"
    with report.open() as file:
        assert [row[:2] for row in csv.reader(file)][1:] == [["same", "balanced"], ["same", "full"]]
    assert run([listed(files, "third")], tmp_path, check=scripted) == {"no_audio": 1}  # known by its file
    assert bad_clips(report, EXCLUDE) == {"same": "no_audio"}
    shutil.copy(whole, tmp_path / "good.mp4")
    run([listed({"same": tmp_path / "good.mp4"}, "other")], tmp_path)
    assert bad_clips(report, EXCLUDE) == {}  # the same id, another file, whole


CHANGED = (  # by a spreadsheet program
    {"bytes": "2,06E+04"},
    {"modified": "28.11.2026 18:05"},
    {"bytes": ""},
    {"usable": "WAHR"},
    {"id": "#NAME?"},
)


def test_what_is_no_report(tmp_path: Path, whole: Path) -> None:
    report = tmp_path / "verify.csv"
    assert bad_clips(report, EXCLUDE) == {}
    with pytest.raises(UserError, match="'mute'; expected some of hung, no_video, no_audio, truncated"):
        bad_clips(report, ["mute"])
    clips = listed({"a": whole})
    run([clips], tmp_path)
    good = report.read_text()
    report.write_text(good + "what,is,this\n" + good.splitlines()[1] + "\n")
    for call in (lambda: bad_clips(report, EXCLUDE), lambda: run([clips], tmp_path)):
        with pytest.raises(UserError, match=r"is damaged: line 3, reads `what,is,this`; expected `id,split,"):
            call()
    assert run([clips], tmp_path, force=True) == {"ok": 1}
    assert report.read_text() == good
    mine = ["my notes", good.replace("mask_values", "mask_values,mine", 1), good.replace("id", "Id", 1), " " + good]
    for name, texts in (
        ("verify.csv", mine),
        ("verify_classes.csv", ["split,class\n", "my notes"]),
        ("verify.csv.partial.jsonl", ['{"mine": 1}\n', "my notes", "\n"]),
    ):
        for text, force in itertools.product(texts, (False, True)):
            (tmp_path / name).write_text(text)
            with pytest.raises(UserError, match="is not what this command writes, and is left as it is"):
                run([clips], tmp_path, force=force)
            assert (tmp_path / name).read_text() == text
        (tmp_path / name).unlink()
        os.mkfifo(tmp_path / name)
        with pytest.raises(UserError, match="it is a named pipe, not a regular file"):
            run([clips], tmp_path, force=True)
        (tmp_path / name).unlink()
    assert not list(tmp_path.glob("verify*"))
    report.write_text(good)
    lines, row = good.splitlines(), next(iter(read_report(report)))
    for change in (
        {"frames": "a"},
        {"mask_values": "1" * 30},
        {"also": "rm"},
        {"frames": "1-2"},
        {"status": "fine"},
        *CHANGED,
    ):
        report.write_text(f"{lines[0]}\n{','.join(row._replace(**change))}\n")
        with pytest.raises(UserError, match="is damaged: line 2"):
            bad_clips(report, EXCLUDE)
    report.write_text(f"{lines[0]}\n")
    os.truncate(report, 2**40)  # takes no place on the disk
    with pytest.raises(UserError, match="line 2, has more than 1048576 characters"):
        bad_clips(report, EXCLUDE)
    with pytest.raises(UserError, match="more than this command writes"):
        run([clips], tmp_path, force=True)
    report.unlink()
    with pytest.raises(UserError, match=r"cannot be written .*set data.verify_report=<file>"):
        verify([clips], tmp_path, tmp_path / "gone" / "verify.csv")


def test_a_report_that_an_older_version_left_half_written(tmp_path: Path, whole: Path) -> None:
    """It appended to the report itself: unsorted, and cut off by a kill."""
    clips = listed({name: Path(shutil.copy(whole, tmp_path / f"{name}.mp4")) for name in ("a", "b")})
    run([clips], tmp_path)
    good = (tmp_path / "verify.csv").read_text()
    head, first, second = good.splitlines(keepends=True)
    (tmp_path / "verify.csv").write_text(head + second + first[:20])
    assert bad_clips(tmp_path / "verify.csv", EXCLUDE) == {}
    assert run([clips], tmp_path) == {"ok": 2}
    assert (tmp_path / "verify.csv").read_text() == good


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    with Journal(tmp_path / "verify.csv"), pytest.raises(UserError, match="Another process is writing"):
        Journal(tmp_path / "verify.csv")
    with Journal(tmp_path / "verify.csv") as journal:
        assert not journal.rows


# ---------------------------------------------------------------- random damage


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Cut, with flipped bits, or with a block of zeros; in the header or anywhere."""
    out = bytearray(data)
    kind = rng.choice(["cut", "flips", "zeros"])
    if kind == "cut":
        del out[rng.randrange(1, len(out)) :]
    elif kind == "flips":
        for _ in range(rng.choice([1, 4, 30, 200])):
            out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    else:
        begin, size = rng.randrange(len(out)), rng.choice([16, 512, 4096])
        out[begin : begin + size] = bytes(len(out[begin : begin + size]))
    return bytes(out)


def sources(folder: Path) -> list[Path]:
    """Clips of several kinds to damage."""
    paths = [folder / f"source_{n}.mp4" for n in range(4)]
    for n, rate in enumerate((16_000, 44_100, 48_000)):
        wave = 0.1 * np.random.default_rng(n).standard_normal((1 + n % 2, 4 * rate))
        write_mp4(paths[n], film(seed=n, fps=25), 25, wave, rate, keyframe_interval=(16, 60, 250)[n])
    x264 = "open-gop=1:bframes=3:scenecut=0"
    write_stream(paths[3], clicks(16_000), frames=numbered(100), x264=x264, movflags="faststart")
    return paths


@pytest.mark.parametrize("count", [60, pytest.param(300, marks=pytest.mark.full)])
def test_damaged_files_are_all_named(tmp_path: Path, whole: Path, count: int) -> None:
    files = {f"{n:03d}": tmp_path / f"{n:03d}.mp4" for n in range(count)}
    intact = [path.read_bytes() for path in ([whole] if count == 60 else sources(tmp_path))]
    for n, path in enumerate(files.values()):
        path.write_bytes(damaged(intact[n % len(intact)], random.Random(n)))
    run([listed(files)], tmp_path, workers=2, time_limit=30)
    found = rows(tmp_path / "verify.csv")
    assert list(found) == sorted(files)
    assert "hung" not in {row["status"] for row in found.values()}
    assert sum(row["usable"] == "no" for row in found.values()) >= 0.9 * count
