"""Real duets, for which no ground truth exists: separated at the end of a run, to listen to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer

from deepavfusion.loggers.board import board_of, step_of
from deepavfusion.utils.console import say
from deepavfusion.utils.errors import UserError
from deepavfusion.utils.names import file_names, printable


class SeparateDuets(Callback):
    """After a test, separates videos of duets and writes audio, videos and figures to `<run_dir>/duets/<id>/`.

    Args:
        clips: called without arguments, returns the list of the videos.
        separate: called as separate(task, video, folder); writes to the folder and returns the waveforms [sources, T]
            and their sample rate.
        run_dir: of the run.
        limit: at most so many videos, the first of the list.
    """

    def __init__(self, clips: Callable[[], Any], separate: Callable[..., Any], run_dir: str, limit: int = 8) -> None:
        self.clips, self.separate, self.folder, self.limit = clips, separate, Path(run_dir) / "duets", limit

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        try:
            clips = self.clips()
        except UserError as error:
            say(f"duets: none separated: {error}", "yellow")
            return
        done, board = 0, board_of(trainer)
        some = clips.clips[: self.limit]
        for clip, name in zip(some, file_names(clip.id for clip in some), strict=True):
            try:
                waveforms, rate = self.separate(pl_module, clip.path, self.folder / name)
            except UserError as error:
                say(f"duets: {clip.id} skipped: {error}", "yellow")
                continue
            done += 1
            if board is not None:
                tag = f"duet_{printable(clip.id)}"
                for n, waveform in enumerate(waveforms, 1):
                    board.audio(f"{tag}/source{n}", waveform, step_of(trainer), rate)
                for video in sorted((self.folder / name).glob("*.mp4")):
                    board.video(f"{tag}/{video.stem}", video, step_of(trainer))
        say(f"duets: {done} of {len(clips.clips)} separated, see {self.folder}")
