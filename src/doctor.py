"""Is this machine fit for a run? `python src/doctor.py`. Keys: configs/doctor.yaml."""

from __future__ import annotations

if __name__ == "__main__":  # before anything else is imported, which takes seconds
    from deepavfusion.utils.launch.signals import INTERRUPTED, listen

    listen(INTERRUPTED)

from deepavfusion.commands.doctor import main, start

__all__ = ["main", "start"]

if __name__ == "__main__":
    start()
