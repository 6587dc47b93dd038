"""How an error of the client becomes an exit code. Apart from `exits`, so that commands without a
client do not import grpcio."""

from collections.abc import Iterator
from contextlib import contextmanager

from tideserve.cli.exits import INTERRUPTED, REFUSED, UNREACHABLE, USAGE, UsageFault, fail
from tideserve.client import (
    ClientClosed,
    Disconnected,
    TideserveClientError,
    TlsError,
    Unauthenticated,
)


@contextmanager
def errors_as_exit_codes() -> Iterator[None]:
    """What the client raises inside, as one line on stderr and an exit code."""
    try:
        yield
    except UsageFault as error:
        fail(str(error), USAGE)
    except (ClientClosed, TlsError) as error:
        fail(str(error), USAGE)
    except Disconnected as error:
        fail(f"cannot reach the server: {error}", UNREACHABLE)
    except Unauthenticated as error:
        fail(f"{error} (give --token-file or set TIDESERVE_TOKEN)", REFUSED)
    except TideserveClientError as error:
        fail(str(error), REFUSED)
    except KeyboardInterrupt:
        fail("interrupted", INTERRUPTED)
