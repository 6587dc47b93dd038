"""What goes wrong inside the native front and is answered inside it."""

from tideserve.server.errors import TideserveError
from tideserve.server.front import Status


class ProtocolError(TideserveError):
    """The client broke HTTP/2 (RFC 9113), which ends its connection: `code` goes into the GOAWAY."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class RefusedMessageError(TideserveError):
    """A message that ends its call with `status`."""

    def __init__(self, status: Status) -> None:
        super().__init__(status.message)
        self.status = status
