"""The keys of opened updates on this node's disk, so that its own store can be audited without a private key.

One file a round beside the blobs, never served to anyone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from folkmoot.node.home import replace_file
from folkmoot.node.protocol import canonical


def keys_folder(store: Path) -> Path:
    """Where the update keys lie in a blob store's folder."""
    return store / "update-keys"


class UpdateKeys:
    """Keys by task, round and member under one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, task: int, round_: int) -> Path:
        return self._folder / f"{task}-{round_}"

    def save(self, task: int, round_: int, keys: Mapping[int, bytes]) -> None:
        """Keep the keys (32 bytes each) by member index. Raises OSError."""
        self._folder.mkdir(parents=True, exist_ok=True)
        content = canonical.encode([[member, key] for member, key in sorted(keys.items())])
        replace_file(self.path(task, round_), content)

    def load(self, task: int, round_: int) -> dict[int, bytes]:
        """The keys of a round; empty when there are none. Raises MalformedError for a damaged file."""
        path = self.path(task, round_)
        if not path.exists():
            return {}
        keys = {}
        for item in canonical.sequence(canonical.decode(path.read_bytes()), str(path.name), 256):
            member, key = canonical.sequence(item, "key", 2, length=2)
            keys[canonical.integer(member, "member", 8)] = canonical.octets(key, "key", 32)
        return keys
