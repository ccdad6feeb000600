"""Use a trained model on any video, e.g. `python src/predict.py task=separate video=clip.mp4`; configs/predict.yaml."""

from __future__ import annotations

if __name__ == "__main__":  # before anything else is imported, which takes seconds
    from deepavfusion.utils.launch.signals import INTERRUPTED, listen

    listen(INTERRUPTED)

from deepavfusion.commands.predict import main, start

__all__ = ["main", "start"]

if __name__ == "__main__":
    start()
