"""What the loggers of other services take, and need."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from typing import Any

from deepavfusion.config.rules import Rule, is_text, list_of, number, one_of

LABEL = Rule(
    "text of 1 to 128 characters", lambda v: is_text(v) and 0 < len(v) <= 128 and v.isprintable(), literal=True
)
NULL = one_of(None)
LOGGER_RULES: dict[str, Rule] = {
    **{f"logger.{key}": LABEL for key in ("wandb.project", "mlflow.experiment")},
    **{f"logger.{key}": LABEL | NULL for key in ("wandb.entity", "wandb.name", "wandb.group", "mlflow.name")},
    "logger.wandb.tags": list_of(LABEL),
    "logger.wandb.offline": one_of(True, False, None),
    "logger.mlflow.tracking_uri": LABEL | NULL,
    **{f"logger.{name}.finish_seconds": number(0, 86_400) for name in ("wandb", "mlflow")},
}
LOGGERS = {  # name below `logger` -> the packages of its extra in setup.cfg: what is installed, and what is imported
    "wandb": {"wandb": "wandb"},
    "mlflow": {"mlflow-skinny": "mlflow", "SQLAlchemy": "sqlalchemy", "alembic": "alembic"},
}


def missing_packages(loggers: Any) -> Iterator[str]:
    """What to install for the loggers of a config, in a sentence each."""
    for name in loggers if isinstance(loggers, dict) else ():
        missing = [package for package, module in LOGGERS.get(name, {}).items() if not _is_installed(module)]
        if missing:
            yield (
                f"logger={name} needs packages that are not installed ({', '.join(missing)}): "
                f"{sys.executable} -m pip install {' '.join(LOGGERS[name])} (the extra {name} of this project)."
            )


def _is_installed(module: str) -> bool:
    """Not a folder of that name, as W&B leaves them where it runs."""
    spec = importlib.util.find_spec(module)
    return spec is not None and spec.origin is not None
