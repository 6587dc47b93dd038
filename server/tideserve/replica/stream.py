"""One gRPC call that is answered with messages for as long as it lasts, read by its thread."""

import os
import threading
from collections.abc import Iterator, Sequence
from typing import Final

from tideserve.replica.errors import CallBrokenError, Http2Error
from tideserve.replica.http2 import Ending, request_block
from tideserve.replica.messages import MessageReader
from tideserve.replica.sockets import CallSocket, authority_of, open_socket

# For the server's settings; and, later, for it to take what is sent, the answers to its pings.
_OPEN_TIMEOUT_S: Final = 10


class MessageStream:
    """Owns the connection of the one call. `messages` once; `close` from any thread ends it.

    `ending` is there when the server has ended the call. A file that the server passes is there
    (`take_file`) before the message that is sent after it.
    """

    def __init__(self, address: str, path: str, metadata: Sequence[tuple[str, str]]) -> None:
        self._address = address
        self._request_headers = request_block(path, authority_of(address), None, metadata)
        self._lock = threading.Lock()  # guards the three below
        self._socket: CallSocket | None = None
        self._file: int | None = None
        self._closed = False
        self.ending: Ending | None = None

    def messages(self, request: bytes) -> Iterator[bytes]:
        """Yields until the server ends the call. Raises `CallBrokenError` where it does not end
        it: the connection breaks, or `close` ended it."""
        try:
            connection = self._connect()
        except OSError as error:
            raise CallBrokenError(f"cannot connect to {self._address}: {error}") from error
        try:
            connection.open(_OPEN_TIMEOUT_S)
            connection.limit(0)  # there may be nothing to say for days
            connection.protocol.begin(request)
            yield from self._read(connection)
        except (OSError, Http2Error) as error:
            if self._closed:
                raise CallBrokenError("the life is closed") from error
            raise CallBrokenError(f"{self._address}: {error}") from error
        finally:
            with self._lock:
                self._socket = None
                connection.close()

    def take_file(self) -> int | None:
        """The latest open file that came; the caller's to close. Any thread."""
        with self._lock:
            file, self._file = self._file, None
            return file

    def close(self) -> None:
        """Ends the call, now or when it begins."""
        with self._lock:
            self._closed = True
            if self._socket is not None:
                self._socket.shut_down()
        file = self.take_file()
        if file is not None:
            os.close(file)

    def _keep(self, file: int) -> None:
        with self._lock:
            unwanted: int | None = file
            if not self._closed:
                unwanted, self._file = self._file, file
        if unwanted is not None:
            os.close(unwanted)

    def _connect(self) -> CallSocket:
        connection = CallSocket(open_socket(self._address), self._request_headers, takes_files=True)
        with self._lock:
            if self._closed:
                connection.close()
                raise CallBrokenError("the life is closed")
            self._socket = connection
        return connection

    def _read(self, connection: CallSocket) -> Iterator[bytes]:
        protocol = connection.protocol
        reader = MessageReader()
        while protocol.ending is None:
            broken: OSError | Http2Error | None = None
            try:
                connection.turn()
            except (OSError, Http2Error) as error:
                broken = error
            file = connection.take_file()
            if file is not None:
                self._keep(file)
            # What came before the break was said.
            yield from reader.read(protocol.take_body())
            if broken is not None:
                raise broken
        if protocol.ending.status == 0 and reader.within_message:
            raise Http2Error("the server ended the call within a message")
        self.ending = protocol.ending
