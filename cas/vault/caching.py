"""A cache on this machine's disk for a vault that is far away: pieces of packs, sealed exactly as in the vault.

Packs are named by the hash of their bytes, so a piece once fetched is right for good. It is kept in a file of its own,
which starts with a checksum over the pack's name, the piece's place and its bytes: a file that was cut, mixed up or
changed is thrown away and fetched anew. Several processes may share the directory; files get their names whole, and
are forgotten by age of use. Nothing is lost with the directory, and nothing in it is readable without the passphrase.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from blake3 import blake3
from typing_extensions import Buffer

from cas.vault.base import Vault, VaultEntry
from cas.vault.names import check_name, check_range

_log = logging.getLogger("backdrive.vault")

PIECE: Final = 256 << 10  # bytes: about half a block, so that little is fetched that nobody asked for
_WHOLE: Final = 8 << 20  # bytes; who reads more at once reads everything, once
_PACK: Final = re.compile(r"repositories/[^/]+/(?:data|tree)/.+")
_CHECKSUM_BYTES: Final = 32
_FILE: Final = re.compile(r"[0-9a-f]{40}\.[0-9]+")
_TEMPORARY: Final = re.compile(r"tmp-[0-9]+-[0-9a-f]{16}")
_STALE: Final = 3600.0  # seconds; a temporary file this old belongs to a killed process
_REST: Final = 60.0  # seconds for which nothing is kept after the disk refused
_TOUCH: Final = 300.0  # seconds; how exactly it is known when a piece was last used


def _checksum(name: str, piece: int, data: Buffer) -> bytes:
    return blake3(b"%s\0%d\0" % (name.encode(), piece)).update(data).digest()


class CachingVault:
    """The vault protocol over another vault, and parts of packs from a directory where they are there.

    Everything but ranged reads of packs goes through. An unusable directory makes it slower, never wrong, and is no
    error.
    """

    def __init__(self, vault: Vault, directory: Path, limit: int, clock: Callable[[], float] = time.time) -> None:
        """`limit` bounds the files in `directory`, in bytes. `clock` gives the time of day in seconds."""
        self._vault = vault
        self._directory = directory
        self._limit = limit
        self._clock = clock
        self._lock = threading.Lock()
        self._size = -1  # bytes in the directory, as far as this process knows; -1: nobody has looked yet
        self._added = 0  # of these, since the directory was looked through
        self._rest_until = 0.0
        self._told = False
        self.hits = 0  # pieces
        self.misses = 0

    @property
    def url(self) -> str:
        return self._vault.url

    def put(self, name: str, parts: Sequence[Buffer]) -> None:
        self._vault.put(name, parts)

    def size(self, name: str) -> int:
        return self._vault.size(name)

    def list(self, prefix: str) -> Iterator[VaultEntry]:
        return self._vault.list(prefix)

    def delete(self, name: str) -> None:
        self._vault.delete(name)
        self.forget(name)

    def close(self) -> None:
        """Close the vault below. What is cached stays for the next time."""
        self._vault.close()

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        check_name(name)
        check_range(offset, length)
        if not length or length > _WHOLE or not _PACK.fullmatch(name):
            return self._vault.get(name, offset, length)
        first, last = offset // PIECE, (offset + length - 1) // PIECE
        pieces = self._pieces(name, first, last)
        start = offset - first * PIECE
        return b"".join(pieces)[start : start + length]

    def forget(self, name: str) -> None:
        """Throw away what is cached of a pack: it was not what it should be, or is gone."""
        path = self._path(name, 0)
        with suppress(OSError), os.scandir(path.parent) as entries:
            for entry in entries:
                if entry.name.startswith(path.stem + "."):
                    with suppress(OSError):
                        os.unlink(entry.path)

    # --- pieces ---

    def _pieces(self, name: str, first: int, last: int) -> Sequence[bytes]:
        """Pieces `first` to `last` of a pack, fewer where it ends."""
        found = {number: self._kept(name, number) for number in range(first, last + 1)}
        with self._lock:
            missing = sum(piece is None for piece in found.values())
            self.misses += missing
            self.hits += len(found) - missing
        pieces: list[bytes] = []
        number = first
        while number <= last:
            piece = found[number]
            if piece is not None:
                pieces.append(piece)
                number += 1
                continue
            after = number + 1
            while after <= last and found[after] is None:
                after += 1
            data = self._vault.get(name, number * PIECE, (after - number) * PIECE)
            pieces.append(data)
            self._keep(name, number, data)
            if len(data) < (after - number) * PIECE:
                break  # the pack ends here
            number = after
        return pieces

    def _path(self, name: str, piece: int) -> Path:
        key = hashlib.blake2b(name.encode(), digest_size=20).hexdigest()
        return self._directory / key[:2] / f"{key}.{piece}"

    def _kept(self, name: str, piece: int) -> bytes | None:
        """A whole piece from the directory."""
        path = self._path(name, piece)
        try:
            with open(path, "rb", buffering=0) as file:
                checksum = file.read(_CHECKSUM_BYTES)
                data = file.read(PIECE + 1)
                used = os.fstat(file.fileno()).st_mtime
        except OSError:
            return None
        if len(data) != PIECE or checksum != _checksum(name, piece, data):
            with suppress(OSError):
                path.unlink()
            return None
        if abs(self._clock() - used) > _TOUCH:
            with suppress(OSError):
                os.utime(path, (self._clock(),) * 2)
        return data

    def _keep(self, name: str, first: int, data: bytes) -> None:
        """Keep the whole pieces of what was fetched; the last part of a pack is never kept, for it tells no length."""
        if self._clock() < self._rest_until:
            return
        view = memoryview(data)
        try:
            for start in range(0, len(data) - PIECE + 1, PIECE):
                number = first + start // PIECE
                self._make_room(PIECE + _CHECKSUM_BYTES)
                self._write(self._path(name, number), name, number, view[start : start + PIECE])
        except OSError as error:
            self._rest_until = self._clock() + _REST
            if not self._told:
                self._told = True
                _log.warning("the cache in %s cannot be written, reading goes on without: %s", self._directory, error)

    def _write(self, path: Path, name: str, piece: int, data: memoryview) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary = path.parent / f"tmp-{os.getpid()}-{os.urandom(8).hex()}"
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
            with open(descriptor, "wb", buffering=0) as file:
                file.write(_checksum(name, piece, data))
                file.write(data)  # where it is cut short, its checksum tells
            used = self._clock()
            os.utime(temporary, (used, used))
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise

    # --- room ---

    def _make_room(self, size: int) -> None:
        """See that `size` more bytes fit; forget what was used longest ago. Raises OSError where nothing would fit."""
        with self._lock:
            if size > self._limit:
                raise OSError(f"a limit of {self._limit} bytes has no room for anything")
            often = max(self._limit // 16, size)  # others write too
            if self._size < 0 or self._size + size > self._limit or self._added > often:
                self._size = self._sweep(max(self._limit - self._limit // 8 - size, 0))
                self._added = 0
            self._size += size
            self._added += size

    def _sweep(self, most: int) -> int:
        """Look through the directory; where there is more than the limit, leave no more than `most`. The bytes left."""
        files: list[tuple[float, int, str]] = []
        now = self._clock()
        for folder in self._folders():
            with suppress(OSError), os.scandir(folder) as entries:
                for entry in entries:
                    with suppress(OSError):  # another process sweeps as well
                        status = entry.stat(follow_symlinks=False)
                        if _FILE.fullmatch(entry.name):
                            files.append((status.st_mtime, status.st_size, entry.path))
                        elif _TEMPORARY.fullmatch(entry.name) and now - status.st_mtime > _STALE:
                            os.unlink(entry.path)
        size = sum(each for _, each, _ in files)
        if size <= self._limit - PIECE - _CHECKSUM_BYTES:
            return size
        files.sort()
        for _, each, path in files:
            if size <= most:
                break
            with suppress(FileNotFoundError):
                os.unlink(path)
            size -= each
        return size

    def _folders(self) -> Sequence[str]:
        try:
            with os.scandir(self._directory) as entries:
                return [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
        except FileNotFoundError:
            return []
