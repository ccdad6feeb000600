"""What torch.compile needs of a machine."""

from __future__ import annotations

from deepavfusion.utils.errors import UserError


def check_compiler(without: str) -> None:
    """Raise a `UserError` if torch.compile's own backend, inductor, finds no C++ compiler; `without`: the override that
    turns compiling off."""
    from torch._inductor.cpp_builder import get_cpp_compiler  # here: takes seconds to import
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        raise UserError(
            "torch.compile finds no C++ compiler here: install one (on Debian and Ubuntu: apt install g++), or go on "
            f"without it: {without}."
        ) from None
