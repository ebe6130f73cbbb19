"""What `gg-ray keys add|list|revoke` does.

Flow:    cli -> [keys_command] -> serve.auth
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from gg_ray.config import ConfigError
from serve.auth import add_key, read_keys, revoke_key

ACTIONS = ("add", "list", "revoke")


def keys_command(action: str, path: Path, name: str | None = None, scopes: Sequence[str] = ("read",)) -> int:
    """Make a key (printed once, alone on standard output), list keys without their secrets, or revoke one.

    Raises: ConfigError for an unknown action, a missing or taken name, or a file that is no keys file.
    """
    if action not in ACTIONS:
        raise ConfigError(f"keys {action}: choose from {', '.join(ACTIONS)}")
    if action == "list":
        for entry in read_keys(path)[0]:
            sys.stdout.write(f"{entry.id}  {entry.created}  {entry.name}  {','.join(entry.scopes)}\n")
        return 0
    if not name:
        raise ConfigError(f"keys {action}: give the name of the key")
    if action == "add":
        sys.stdout.write(add_key(path, name, scopes) + "\n")
        sys.stderr.write(
            f"{path} holds its hash; the key is not shown again. Send it as X-API-Key or sign in with it.\n"
        )
    else:
        revoke_key(path, name)
    return 0
