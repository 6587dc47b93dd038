"""Where a frontend's replicas in containers of its machine find it (docs/decisions/0015)."""

from typing import Final

#: The unix socket in the folder of `--link-folder`.
LINK_SOCKET: Final = "front.sock"
#: Where that folder is in a replica's container.
LINK_MOUNT: Final = "/run/tideserve"
