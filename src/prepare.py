"""Prepare data: `python src/prepare.py command=demo | verify | pack`. Keys, and times: configs/prepare.yaml."""

from __future__ import annotations

if __name__ == "__main__":  # before anything else is imported, which takes seconds
    from deepavfusion.utils.launch.signals import INTERRUPTED, listen

    listen(INTERRUPTED)

from deepavfusion.commands.prepare import main, start

__all__ = ["main", "start"]

if __name__ == "__main__":
    start()
