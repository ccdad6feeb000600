"""Datasets as plain torch Datasets: `deepavfusion.datasets.open("vggsound", root="data/vggsound", split="train")`."""

from deepavfusion.api.datasets import ClipSample, FrameSample, MixtureSample, Samples, names, open, splits

__all__ = ["ClipSample", "FrameSample", "MixtureSample", "Samples", "names", "open", "splits"]
