"""Reads and writes media files. No other room imports a decoder or an encoder.

Frames and audio share one clock: second 0 is where the file starts to play. Audio comes from PyAV (audio.py); frames
come from PyAV, or from decord where several are wanted at once (frames.py). Every failure of a file is a `DecodeError`.
"""

from deepavfusion.media.media import Media, MediaInfo
from deepavfusion.media.recording import Recording
from deepavfusion.media.scan import Scan, scan
from deepavfusion.media.stills import Source, Still, open_media

__all__ = ["Media", "MediaInfo", "Recording", "Scan", "Source", "Still", "open_media", "scan"]
