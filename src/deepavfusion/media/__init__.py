"""Reads media: the frames on screen at given times, and windows of sound. No other folder imports a decoder.

One clock for picture and sound: second 0 is where the file starts to play. Frames come from decord where it can be
trusted (pictures.py), sound from PyAV (sound.py). Every failure of a file is a `DecodeError`.
"""

from deepavfusion.media.media import Media, MediaInfo, probe, read_audio, read_frames
from deepavfusion.media.scan import Scan, scan

__all__ = ["Media", "MediaInfo", "Scan", "probe", "read_audio", "read_frames", "scan"]
