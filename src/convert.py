"""Convert checkpoints to weights: `python src/convert.py input=<checkpoint> output=<file.safetensors>`."""

from __future__ import annotations

if __name__ == "__main__":  # before anything else is imported, which takes seconds
    from deepavfusion.utils.launch.signals import INTERRUPTED, listen

    listen(INTERRUPTED)

from deepavfusion.commands.convert import main, start

__all__ = ["main", "start"]

if __name__ == "__main__":
    start()
