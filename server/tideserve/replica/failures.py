"""What kind of failure an exception of a model or its runtime is.

Runtimes report memory and device trouble in exceptions of many types, some of which cannot
be imported without the runtime; their names and sentences are what they share.
"""

import re
from typing import Final

from tideserve.replica.errors import (
    BatchError,
    DeviceLostError,
    ModelMemoryError,
    ModelRaisedError,
)

_MEMORY_TYPES: Final = frozenset({"MemoryError", "OutOfMemoryError"})
# ONNX Runtime's arena and CUDA's own wording, torch's CPU allocator, numpy, std::bad_alloc.
_MEMORY: Final = re.compile(
    r"failed to allocate memory|out of memory|bad[_ ]alloc|unable to allocate|"
    r"can't allocate memory|not enough memory|CUBLAS_STATUS_ALLOC_FAILED|"
    r"CUDNN_STATUS_ALLOC_FAILED",
    re.IGNORECASE,
)
# After these a CUDA context answers every call with the same error (CUDA Runtime API,
# "Data types used by CUDA Runtime", the errors that leave "the process in an inconsistent
# state"): 700 illegal address, 710 assert, 714-719 launch failures, 214 ECC, 46/100/101 no device.
_DEVICE: Final = re.compile(
    r"illegal memory access|device-side assert|unspecified launch failure|misaligned address|"
    r"illegal instruction was encountered|invalid program counter|hardware stack error|"
    r"uncorrectable ECC error|devices? (?:is|are) (?:busy or )?unavailable|"
    r"GPU has fallen off the bus|invalid device ordinal|no CUDA-capable device|"
    r"CUDA (?:failure|error):? (?:700|710|714|715|716|717|718|719|214)\b",
    re.IGNORECASE,
)
MAX_MESSAGE_CHARS: Final = 2000


def classify(error: BaseException) -> BatchError:
    """The batch error that stands for what the model raised: its type and message."""
    if isinstance(error, BatchError):
        return error
    name = type(error).__name__
    text = str(error)
    message = f"{name}: {text}" if text else name
    if len(message) > MAX_MESSAGE_CHARS:
        message = message[:MAX_MESSAGE_CHARS] + "..."
    if _DEVICE.search(text) and "cuda" in text.lower():
        return DeviceLostError(message)
    if name in _MEMORY_TYPES or _MEMORY.search(text):
        return ModelMemoryError(message)
    return ModelRaisedError(message)
