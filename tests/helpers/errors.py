"""What a function refuses its input with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from deepavfusion.utils.errors import DecodeError, UserError


def refusal(function: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    """The sentence of the `UserError` that a call ends with."""
    with pytest.raises(UserError) as error:
        function(*args, **kwargs)
    return str(error.value)


def decode_error(function: Callable[..., Any], *args: Any, **kwargs: Any) -> DecodeError:
    """The `DecodeError` that a call ends with."""
    with pytest.raises(DecodeError) as error:
        function(*args, **kwargs)
    return error.value
