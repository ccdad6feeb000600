"""Answer a question by many runs: `python src/study.py study=<name>`. Keys: configs/study.yaml and configs/study/."""

from __future__ import annotations

if __name__ == "__main__":  # before anything else is imported, which takes seconds
    from deepavfusion.utils.launch.signals import STOPPED, listen

    listen(STOPPED)

from deepavfusion.commands.study import main, start

__all__ = ["main", "start"]

if __name__ == "__main__":
    start()
