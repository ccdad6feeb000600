"""What a `_target_` takes, read from its source: importing it may take seconds."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
from pathlib import Path


def parameters_of(target: str) -> list[str]:
    """Names of the parameters of a class or function; `**` for those that take any."""
    found = _from_source(*target.rpartition(".")[::2])
    return _imported(target) if found is None else found


def _imported(target: str) -> list[str]:
    module, _, name = target.rpartition(".")
    parameters = inspect.signature(getattr(importlib.import_module(module), name)).parameters
    return ["**" if p.kind is p.VAR_KEYWORD else p.name for p in parameters.values()]


def _from_source(module: str, name: str) -> list[str] | None:
    """None where the source does not say, e.g. of a dataclass."""
    file = _file(module)
    if file is None:
        return None
    for node in ast.parse(file.read_bytes()).body:
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                if name == (alias.asname or alias.name):
                    return _from_source(node.module, alias.name)
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return _names(node.args)
        if isinstance(node, ast.ClassDef) and node.name == name:
            inits = [f.args for f in node.body if isinstance(f, ast.FunctionDef) and f.name == "__init__"]
            found = _names(inits[0])[1:] if inits else ["**"]
            if "**" not in found:
                return found
            bases = [_from_source(module, base.id) if isinstance(base, ast.Name) else None for base in node.bases]
            if not bases or None in bases:
                return found if inits else None
            return [*found[:-1], *(parameter for base in bases for parameter in base or [])]
    return None


def _names(arguments: ast.arguments) -> list[str]:
    names = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    return [*names, *(["**"] if arguments.kwarg else [])]


def _file(module: str) -> Path | None:
    """The source of a module; nothing is imported."""
    top, *below = module.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent.joinpath(*below) if below else Path(spec.origin).with_suffix("")
    paths = [folder.with_suffix(".py"), folder / "__init__.py"]
    return next((path for path in paths if path.is_file()), None)
