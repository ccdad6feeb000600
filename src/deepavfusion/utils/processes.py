"""Worker processes that end with their parent, and one look for every progress bar."""

from __future__ import annotations

import multiprocessing
import os
import threading


def die_with_parent() -> None:
    """End this worker when the main process is killed: it would wait for work for ever."""

    def watch() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
