"""What torch.compile needs on a machine."""

from __future__ import annotations

from deepavfusion.utils.errors import UserError


def check_compiler(without: str) -> None:
    """Raise a `UserError` if inductor finds no C++ compiler; `without`: the override that switches compilation off."""
    from torch._inductor.cpp_builder import get_cpp_compiler  # here: takes seconds to import
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        raise UserError(
            "torch.compile finds no C++ compiler here: install one (on Debian and Ubuntu: apt install g++), or "
            f"switch compilation off: {without}."
        ) from None
