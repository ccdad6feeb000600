"""DeepAVFusion: a transformer that fuses audio and video from its first layer (Mo & Morgado, CVPR 2024)."""

from __future__ import annotations

import os

USER_VARIABLES = ("LOGNAME", "USER", "LNAME", "USERNAME")  # where Python looks for a name, before it asks the system


def name_user(environment: dict[str, str] | os._Environ[str] = os.environ) -> None:
    """A user id without a name or home, as in many containers, gets both: torch cannot be imported without."""
    if not any(environment.get(name) for name in USER_VARIABLES):
        import pwd  # here and below: hardly ever needed, and every command begins with this module

        try:
            pwd.getpwuid(os.getuid())
        except KeyError:
            environment["USER"] = f"uid{os.getuid()}"
    if os.path.expanduser("~") == "~":
        import tempfile

        environment["HOME"] = tempfile.gettempdir()


name_user()  # before anything imports torch
