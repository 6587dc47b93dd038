"""What a server's log says of mistakes."""

import re
from typing import Final

# grpcio's own record of an answer that found its caller gone, with a traceback of its inside.
_CALLER_GONE: Final = re.compile(
    r"^.* ERROR grpc\._cython\.cygrpc: ExecuteBatchError raised in core .*\nTraceback",
    re.MULTILINE,
)


def mistakes(log: str) -> list[str]:
    """The lines at which something failed that should not have."""
    lines = _CALLER_GONE.sub("", log).splitlines()
    return [line for line in lines if "failed inside the server" in line or "Traceback" in line]
