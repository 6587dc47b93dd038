"""Names beside the messages that mean something on this wire."""

from typing import Final

# On replica and control calls: the server's token.
TOKEN_METADATA_KEY: Final = "tideserve-token"  # noqa: S105 - the key, not a token
# In the trailers of a refusal: milliseconds until the next try, negative for never (gRFC A6). Under
# our own key as well, which no gRPC library reads for itself.
PUSHBACK_METADATA_KEY: Final = "tideserve-retry-pushback-ms"
GRPC_PUSHBACK_METADATA_KEY: Final = "grpc-retry-pushback-ms"
NEVER_AGAIN_MS: Final = -1
# Beside the sentence of a stream's failed request: the number of its gRPC status.
STREAM_STATUS_PARAMETER: Final = "grpc_status"
