"""Train: `python src/train.py experiment=<name>`. Keys: configs/train.yaml; runs: configs/experiment."""

from __future__ import annotations

if __name__ == "__main__":  # before anything else is imported, which takes seconds
    from deepavfusion.utils.launch.signals import listen

    listen()

from deepavfusion.commands.train import main, start

__all__ = ["main", "start"]

if __name__ == "__main__":
    start()
