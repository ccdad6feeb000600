"""Load the weights that a new run starts from, which the hyperparameters of its task name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deepavfusion.tasks.base import Task
from deepavfusion.tasks.pretrain import Pretrain
from deepavfusion.utils.console import say_once
from deepavfusion.utils.errors import UserError
from deepavfusion.weights.weights import Weights, load_encoder, load_mae, load_vit, read_weights


def load_start_weights(task: Task, latest: Path) -> list[dict[str, Any]]:
    """Load what `pretrained`, `image_weights` and `audio_weights` name, and print where the weights come from.

    Pre-training takes all weights of `pretrained`, every other task those of the encoder.

    Args:
        task: whose network is filled; its record says what data the run uses.
        latest: checkpoint of the newest pre-training, for `pretrained: auto`.

    Returns:
        For provenance: the origin of each file, see `weights.origin.Origin.described`.

    Raises:
        UserError: a file does not exist, cannot be read or does not fit.
    """
    if not isinstance(task, Pretrain):
        return _load_encoder(task, task.hparams["pretrained"], latest)
    origins = []
    if path := task.hparams["pretrained"]:
        weights = read_weights(path)
        say_once(f"weights from {load_mae(task.net, weights)}")
        origins.append(_origin(weights))
    for stream in ("image", "audio"):
        if path := task.hparams[f"{stream}_weights"]:
            weights = read_weights(path)
            say_once(f"{stream} encoder from {load_vit(getattr(task.net.encoder, stream), weights)}")
            origins.append(_origin(weights))
    return origins


def _load_encoder(task: Task, pretrained: str | None, latest: Path) -> list[dict[str, Any]]:
    if pretrained is None:
        say_once("encoder from scratch (model.pretrained=null)")
        return []
    auto = pretrained == "auto"
    if auto and not latest.is_file():
        raise UserError(
            f"model.pretrained=auto, but nothing was pre-trained here ({latest} does not exist): pre-train (make "
            "pretrain), give model.pretrained=<checkpoint>, or start from scratch with model.pretrained=null."
        )
    weights = read_weights(latest.resolve() if auto else pretrained)
    try:
        report = load_encoder(task.net.encoder, weights)
    except UserError as error:
        raise UserError(f"{error} model.pretrained=null starts from scratch.") from None
    say_once(f"encoder from {'the latest pre-training, ' if auto else ''}{report}")
    data = task.record.get("data", {})
    for doubt in weights.origin.doubts(data.get("name"), data.get("demo", False)) if weights.origin else []:
        hint = "; run.latest=false keeps a trial from becoming the latest" if auto else ""
        say_once(f"note: {doubt}{hint}", "yellow")
    return [_origin(weights)]


def _origin(weights: Weights) -> dict[str, Any]:
    return weights.origin.described() if weights.origin else {"checkpoint": weights.path}
