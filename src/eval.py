"""Evaluate a checkpoint: `python src/eval.py ckpt_path=<file>`. Keys: configs/eval.yaml."""

from __future__ import annotations

if __name__ == "__main__":  # before anything else is imported, which takes seconds
    from deepavfusion.utils.launch.signals import listen

    listen()

from deepavfusion.commands.eval import main, start

__all__ = ["main", "start"]

if __name__ == "__main__":
    start()
