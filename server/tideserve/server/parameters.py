"""A request's parameters, which clients send in more than one form, as values."""

from typing import Final

from tideserve.server.errors import InvalidRequestError
from tideserve.v1.inference_pb2 import InferParameter

MAX_NUMBER: Final = (1 << 64) - 1


def whole_number(parameter: InferParameter, name: str) -> int:
    """Raises `InvalidRequestError` for what is not from 0 to 2**64 - 1."""
    choice = parameter.WhichOneof("parameter_choice")
    value = None if choice is None else getattr(parameter, choice)
    # Triton's HTTP bridge and some clients send numbers as text.
    if isinstance(value, str) and len(value) <= len(str(MAX_NUMBER)):
        value = int(value) if value.isascii() and value.isdecimal() else value
    if type(value) is not int or not 0 <= value <= MAX_NUMBER:
        raise InvalidRequestError(
            f"parameter '{name}': expected a whole number from 0 to {MAX_NUMBER} in int64_param, "
            f"got {value!r} in {choice or 'none'}"
        )
    return value
