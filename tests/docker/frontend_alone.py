"""`python -m tests.docker.frontend_alone REPOSITORY STATE`: a frontend without an autoscaler.

A test launches the replicas itself; an autoscaler of the frontend's own would end them.
"""

import os
import signal
import sys
import time
from pathlib import Path

from tideserve.server.app import App
from tideserve.server.autoscaler_child import AutoscalerChild
from tideserve.server.config import ServeSettings
from tideserve.server.front import FrontSettings


class FrontendAlone(App):
    """Its child does nothing."""

    def _make_autoscaler(self, token: str) -> AutoscalerChild:
        return AutoscalerChild(["sleep", "infinity"], os.environ, time.monotonic)


def main(repository: Path, state: Path) -> None:
    settings = ServeSettings(
        repository=repository,
        # Of all addresses: containers come in by the bridge's.
        front=FrontSettings(host="0.0.0.0", port=0, own_folder=state),
        http_port=0,
    )
    app = FrontendAlone(
        settings,
        state_folder=state,
        environment=os.environ,
        token=os.environ["TIDESERVE_TOKEN"],
        version="0",
        on_ready=lambda line: None,
    )
    signal.signal(signal.SIGTERM, lambda *_: app.request_stop())
    app.start()
    (state / "port.draft").write_text(str(app._front.port))
    (state / "port.draft").rename(state / "port")
    app.serve()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
