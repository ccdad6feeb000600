"""Pre-trains for two steps, from the command line to the finished run directory."""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from deepavfusion.runs.directory import CHECKPOINTS, CONFIG, LAST, METRICS, OVERRIDES
from deepavfusion.utils.errors import UserError
from deepavfusion.utils.launch.launcher import alone

TINY = (
    *("experiment=pretrain_vggsound", "scale=demo", "run.name=smoke", "run.latest=false", "validate_before=false"),
    *("trainer.devices=1", "trainer.max_epochs=1", "trainer.log_every_n_steps=1"),
    *("trainer.enable_progress_bar=false", "~callbacks.progress", "model.warmup_epochs=0"),
    *("model.net.image.embed_dim=32", "model.net.image.depth=2", "model.net.image.num_heads=2"),
    *("model.decoder_embed_dim=32", "model.decoder_depth=1", "model.decoder_num_heads=2"),
    *("data.batch_size=4", "data.num_workers=1", "data.image_size=64"),
)
LEFT = (METRICS, CONFIG, OVERRIDES, f"{CHECKPOINTS}/{LAST}", "tensorboard")  # files of a finished run


def smoke_train(train: Sequence[str], time_limit: float) -> str:
    """Training on a few generated clips ends in `time_limit` s with a finite loss and a complete run directory.

    `train`: the words that start src/train.py.
    """
    from deepavfusion.demo import demo

    begin = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="doctor_") as folder:
        counts = demo.Counts(vggsound_train=1, vggsound_test=1)
        (root,) = demo.ensure(Path(folder, "data"), ["vggsound"], workers=1, counts=counts)
        command = [*train, *TINY]
        command += [f"data.root={root}", f"paths.log_dir={folder}/logs"]
        again = "python src/train.py experiment=pretrain_vggsound scale=demo shows the whole output"
        try:
            done = subprocess.run(command, env=alone(), capture_output=True, text=True, timeout=time_limit)
        except subprocess.TimeoutExpired:
            raise UserError(f"two training steps were not finished after {time_limit:g} s: {again}.") from None
        if done.returncode:
            last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "no output")
            raise UserError(f"two training steps ended with status {done.returncode} ({last.strip()}): {again}.")
        run_dir = Path(folder, "logs", "pretrain", "runs", "smoke")
        missing = [name for name in LEFT if not (run_dir / name).exists()]
        if missing:
            raise UserError(f"two training steps left no {', '.join(missing)} in their run directory: {again}.")
        loss = json.loads((run_dir / METRICS).read_text()).get("train/loss_last")
    if loss is None:  # metrics.json omits values that are not finite
        raise UserError(f"two training steps ended with a loss that is not finite: {again}.")
    return f"two steps, loss {loss:.2f}, the run directory is complete, {time.perf_counter() - begin:.0f} s"
