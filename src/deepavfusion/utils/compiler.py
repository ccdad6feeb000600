"""What torch.compile needs of a machine."""

from __future__ import annotations

from deepavfusion.utils.errors import UserError


def check_compiler(without: str) -> None:
    """torch.compile's own backend, inductor, finds the C++ compiler that it needs.

    Args:
        without: the override that does without compiling.

    Raises:
        UserError: it finds none.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler  # here: takes seconds to import
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        raise UserError(
            "torch.compile finds no C++ compiler here: install one (on Debian and Ubuntu: apt install g++), or go on "
            f"without it: {without}."
        ) from None
