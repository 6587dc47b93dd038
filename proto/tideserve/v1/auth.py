"""How the token of the replica and control planes travels: one metadata entry."""

from typing import Final

TOKEN_METADATA_KEY: Final = "tideserve-token"  # noqa: S105 - the key, not a token
