"""Load the weights that a new run starts from, which the hyperparameters of its task name."""

from __future__ import annotations

from pathlib import Path

from deepavfusion.models.deepavfusion import DeepAVFusion
from deepavfusion.tasks.base import Task
from deepavfusion.tasks.pretrain import Pretrain
from deepavfusion.utils.console import say_once
from deepavfusion.utils.errors import UserError
from deepavfusion.weights.weights import load_encoder, load_mae, load_vit


def load_start_weights(task: Task, latest: Path) -> None:
    """Load what `pretrained`, `image_weights` and `audio_weights` name, and print where the weights come from.

    Pre-training takes all weights of `pretrained`, every other task those of the encoder.

    Args:
        task: whose network is filled.
        latest: checkpoint of the newest pre-training; `pretrained: auto` takes it if it exists and fits.

    Raises:
        UserError: a given file cannot be read or does not fit.
    """
    if not isinstance(task, Pretrain):
        return _load_encoder(task.net.encoder, task.hparams["pretrained"], latest)
    if task.hparams["pretrained"]:
        say_once(str(load_mae(task.net, task.hparams["pretrained"])))
    for stream in ("image", "audio"):
        if path := task.hparams[f"{stream}_weights"]:
            say_once(str(load_vit(getattr(task.net.encoder, stream), path)))


def _load_encoder(encoder: DeepAVFusion, pretrained: str | None, latest: Path) -> None:
    if pretrained is None:
        say_once("encoder from scratch")
    elif pretrained != "auto":
        say_once(f"encoder from {load_encoder(encoder, pretrained)}")
    elif not latest.is_file():
        say_once("encoder from scratch: nothing was pre-trained here yet (model.pretrained=<checkpoint> gives one)")
    else:
        try:
            say_once(f"encoder from {load_encoder(encoder, latest)}")
        except UserError as error:
            say_once(f"encoder from scratch: {error}", "yellow")
