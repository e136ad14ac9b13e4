"""A vault in memory, for tests and simulations. It lasts as long as the process, and keeps every other promise."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

from typing_extensions import Buffer

from cas.errors import ObjectExists, ObjectMissing
from cas.vault.base import VaultEntry
from cas.vault.names import check_name, check_prefix, check_range


class MemoryVault:
    """The vault protocol over a dict. Every client shares the one instance."""

    def __init__(self, url: str = "memory://") -> None:
        self._url = url
        self._objects: dict[str, bytes] = {}
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return self._url

    def put(self, name: str, parts: Sequence[Buffer]) -> None:
        check_name(name)
        data = b"".join(parts)
        with self._lock:
            kept = self._objects.setdefault(name, data)
        if kept != data:
            raise ObjectExists(self._url, name)

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        check_name(name)
        check_range(offset, length)
        data = self._find(name)
        return data[offset:] if length is None else data[offset : offset + length]

    def size(self, name: str) -> int:
        check_name(name)
        return len(self._find(name))

    def list(self, prefix: str) -> Iterator[VaultEntry]:
        check_prefix(prefix)
        with self._lock:
            found = [VaultEntry(name, len(data)) for name, data in self._objects.items() if name.startswith(prefix)]
        return iter(found)

    def delete(self, name: str) -> None:
        check_name(name)
        with self._lock:
            self._objects.pop(name, None)

    def close(self) -> None:
        """Nothing to give back: the objects stay for whoever still holds the vault."""

    def _find(self, name: str) -> bytes:
        with self._lock:
            data = self._objects.get(name)
        if data is None:
            raise ObjectMissing(self._url, name)
        return data
