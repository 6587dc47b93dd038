"""The Python client of Tideserve and of every Open Inference Protocol server.

`Client` is synchronous; `tideserve.client.aio.Client` is its asyncio twin.
"""

from tideserve.client.client import Client
from tideserve.client.connection import TlsOptions
from tideserve.client.errors import (
    Cancelled,
    ClientClosed,
    DeadlineExceeded,
    Disconnected,
    FailedPrecondition,
    InvalidArgument,
    InvalidResponse,
    ModelError,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    StreamRequestError,
    TideserveClientError,
    TlsError,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)
from tideserve.client.retry import NO_RETRY, RetryPolicy
from tideserve.client.stream import InferStream
from tideserve.client.stream_order import StreamResult
from tideserve.client.views import (
    BatchStatistics,
    ConfiguredTensor,
    Duration,
    ModelConfiguration,
    ModelIndexEntry,
    ModelMetadata,
    ModelStatistics,
    ModelStatus,
    ReplicaInfo,
    ServerMetadata,
    ServerStatus,
    TensorMetadata,
)

__all__ = [
    "Client",
    "TlsOptions",
    "RetryPolicy",
    "NO_RETRY",
    "InferStream",
    "StreamResult",
    # errors
    "TideserveClientError",
    "InvalidArgument",
    "NotFound",
    "ResourceExhausted",
    "DeadlineExceeded",
    "Unavailable",
    "Disconnected",
    "Cancelled",
    "ModelError",
    "Unimplemented",
    "Unauthenticated",
    "PermissionDenied",
    "FailedPrecondition",
    "InvalidResponse",
    "StreamRequestError",
    "ClientClosed",
    "TlsError",
    # views
    "ServerMetadata",
    "ModelMetadata",
    "TensorMetadata",
    "ModelConfiguration",
    "ConfiguredTensor",
    "ModelStatistics",
    "BatchStatistics",
    "Duration",
    "ModelIndexEntry",
    "ReplicaInfo",
    "ServerStatus",
    "ModelStatus",
]
