"""What kind of failure an exception is, told by its type and its words."""

import pytest

from tideserve.replica.errors import (
    BadOutputError,
    BatchError,
    DeviceLostError,
    ModelMemoryError,
    ModelRaisedError,
)
from tideserve.replica.failures import MAX_MESSAGE_CHARS, classify


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ValueError("shapes differ"), ModelRaisedError),
        (SystemExit(3), ModelRaisedError),
        (MemoryError(), ModelMemoryError),
        (OutOfMemoryError("tried"), ModelMemoryError),
        (RuntimeError("std::bad_alloc"), ModelMemoryError),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory"), ModelMemoryError),
        (RuntimeError("BFCArena: Failed to allocate memory for 9 bytes"), ModelMemoryError),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), ModelMemoryError),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), ModelMemoryError),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), DeviceLostError),
        (RuntimeError("CUDA error: device-side assert triggered"), DeviceLostError),
        (RuntimeError("CUDA failure 700: whatever follows"), DeviceLostError),
        (ValueError("illegal memory access to a plan that is none"), ModelRaisedError),
        (RuntimeError("CUDA error: invalid argument"), ModelRaisedError),
    ],
    ids=str,
)
def test_the_kind_is_told(error: BaseException, kind: type[BatchError]) -> None:
    classified = classify(error)
    assert type(classified) is kind
    assert str(classified).startswith(type(error).__name__)
    assert str(error) in str(classified)


def test_what_is_a_batch_error_stays_itself() -> None:
    error = BadOutputError("out of memory is only a word here")
    assert classify(error) is error


def test_long_messages_are_cut() -> None:
    message = str(classify(ValueError("x" * 10 * MAX_MESSAGE_CHARS)))
    assert len(message) == MAX_MESSAGE_CHARS + len("...")
    assert message.endswith("x...")
