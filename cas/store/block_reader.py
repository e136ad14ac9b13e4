"""Opening blocks: fetched from the vault, authenticated, decompressed, and kept for a while.

Opened blocks are kept in two caches bounded in bytes, one for metadata and one for data, so that reading a large file
does not throw out the directories. A block that several threads want at once is fetched and opened once. What is on
its way from the vault is bounded as well: who would exceed it waits. No lock is held while the vault is read.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from cas.errors import CacheUnusable, PackDamaged
from cas.store.blocks import BlockCache, Key, Memory, allocate
from cas.store.formats import Codec, PackKind
from cas.store.index import BlockInfo, Index, PackInfo
from cas.store.keys import RepositoryKeys
from cas.store.layout import Layout
from cas.store.sealer import PackOpener
from cas.vault.base import Forgetful, Vault

_MOVING_MOST: Final = 24 << 20  # bytes fetched and not opened yet, decrypted and not decompressed yet
_PACKS_MOST: Final = 2048  # whose keys are remembered


@dataclass(slots=True)
class ReaderCounts:
    """What a reader has cost."""

    reads: int = 0  # vault operations
    read_bytes: int = 0
    hits: int = 0  # blocks wanted that were open already
    misses: int = 0  # blocks wanted that had to be waited for
    ahead: int = 0  # blocks opened before anybody wanted them


class _Pending:
    """A block that one thread is opening while others wait for it."""

    __slots__ = ("block", "done", "error")

    def __init__(self) -> None:
        self.done = threading.Event()
        self.block: memoryview | None = None
        self.error: BaseException | None = None


class _Pack(NamedTuple):
    """A pack that was read from."""

    info: PackInfo
    name: str
    opener: PackOpener
    cache: BlockCache


class BlockReader:
    """The blocks of one repository, by the numbers of the index. Thread safe."""

    def __init__(self, vault: Vault, layout: Layout, keys: RepositoryKeys, index: Index, cache_bytes: int) -> None:
        """`cache_bytes` bounds the opened blocks and those about to be; a quarter of it is for metadata."""
        self.counts = ReaderCounts()
        self._vault = vault
        self._layout = layout
        self._keys = keys
        self._index = index
        self._lock = threading.Lock()
        self._room = threading.Condition(self._lock)
        self._waiting = 0  # threads, for room
        self._caches = {
            PackKind.TREE: BlockCache(cache_bytes // 4),
            PackKind.DATA: BlockCache(cache_bytes - cache_bytes // 4),
        }
        self._moving = 0  # bytes
        self._pending: dict[Key, _Pending] = {}
        self._packs: dict[int, _Pack] = {}

    def info(self, number: int) -> PackInfo:
        """What the index knows of a pack. Raises CacheUnusable for a number that is out of date."""
        return self._pack(number).info

    def _pack(self, number: int) -> _Pack:
        known = self._packs.get(number)
        if known is None:
            info = self._index.pack(number)
            opener = PackOpener(self._keys, info.kind, info.id, info.salt)
            known = _Pack(info, self._layout.pack(info.kind, info.id), opener, self._caches[info.kind])
            if len(self._packs) >= _PACKS_MOST:
                self._packs = {}
            self._packs[number] = known
        return known

    def peek(self, pack: int, block: int) -> memoryview | None:
        """An opened block where it is in the cache, else None. Raises CacheUnusable for numbers out of date."""
        cache = self._pack(pack).cache
        with self._lock:
            opened = cache.get((pack, block))
            if opened is not None:
                self.counts.hits += 1
            return opened

    def block(self, pack: int, block: int) -> memoryview:
        """An opened block by the numbers of the index; from the cache, or fetched by whoever comes first.

        Raises ObjectMissing, PackDamaged, VaultUnavailable, and CacheUnusable for a number that is out of date.
        """
        key = (pack, block)
        known = self._pack(pack)
        with self._lock:
            opened = known.cache.get(key)
            if opened is not None:
                self.counts.hits += 1
                return opened
            self.counts.misses += 1
            pending = self._pending.get(key)
            mine = pending is None
            if pending is None:
                pending = self._pending[key] = _Pending()
        if mine:
            self._open(known, key, pending)
        else:
            pending.done.wait()
        if pending.block is None:
            assert pending.error is not None
            raise pending.error
        return pending.block

    def _open(self, known: _Pack, key: Key, pending: _Pending) -> None:
        """Open a block for which nobody else is at work, when there is room for it."""
        try:
            where = self._index.block(*key)
            weight = _weight(where)
            with self._lock:
                buffer = self._take(known.cache, where.plain, weight, _MOVING_MOST)
                while buffer is None:
                    self._waiting += 1
                    self._room.wait()
                    self._waiting -= 1
                    buffer = self._take(known.cache, where.plain, weight, _MOVING_MOST)
        except BaseException as error:
            self._publish(key, pending, error)
            raise
        self._fetch(known, key, [where], [pending], [buffer])

    def _take(self, cache: BlockCache, plain: int, weight: int, most: int) -> Memory | None:
        """Room for a block, and for what it takes to open it; None where there is none now. Under the lock."""
        if self._moving and self._moving + weight > most:
            return None
        buffer = cache.take(plain)
        if buffer is not None:
            self._moving += weight
        return buffer

    def open_ahead(self, pack: int, first: int, last: int) -> int:
        """Open blocks `first` to `last`, which lie side by side, with one read of the vault.

        Returns the next block to ask for: a block that is open, or about to be, ends a read; without room, which is
        never waited for and of which no more than half is taken, all of them are done with. Raises CacheUnusable for
        numbers that are out of date; other faults are left to whoever wants the block.
        """
        known = self._pack(pack)
        wheres = [self._index.block(pack, number) for number in range(first, last + 1)]
        pendings: list[_Pending] = []
        buffers: list[Memory] = []
        after = last + 1
        with self._lock:
            while wheres and self._is_known(known, (pack, first)):
                first += 1
                del wheres[0]
            for number, where in enumerate(wheres, first):
                key = (pack, number)
                if self._is_known(known, key):
                    after = number
                    break
                buffer = self._take(known.cache, where.plain, _weight(where), _MOVING_MOST // 2)
                if buffer is None:
                    break
                pending = self._pending[key] = _Pending()
                pendings.append(pending)
                buffers.append(buffer)
            self.counts.ahead += len(pendings)
        if pendings:
            self._fetch(known, (pack, first), wheres[: len(pendings)], pendings, buffers)
        return after

    def _is_known(self, known: _Pack, key: Key) -> bool:
        """Whether a block is open, or about to be. Under the lock."""
        return key in known.cache or key in self._pending

    def _fetch(
        self, known: _Pack, key: Key, wheres: list[BlockInfo], pendings: list[_Pending], buffers: list[Memory]
    ) -> None:
        """Read blocks that lie side by side, from that of `key` on, and open them. What fails is in their pendings."""
        pack, first = key
        failure: BaseException | None = None
        sealed = memoryview(b"")
        try:
            start = wheres[0].offset
            sealed = memoryview(self._vault.get(known.name, start, sum(where.sealed for where in wheres)))
            with self._lock:
                self.counts.reads += 1
                self.counts.read_bytes += len(sealed)
        except BaseException as error:  # noqa: BLE001 - raised by whoever wants a block
            failure = error
        place = 0
        for number, where, pending, buffer in zip(range(first, 1 << 16), wheres, pendings, buffers, strict=False):
            failed = failure
            view: memoryview | None = None
            if failed is None:
                try:
                    buffer = allocate(buffer, where.plain)
                    view = self._unseal(known, number, where, sealed[place : place + where.sealed], buffer)
                except BaseException as error:  # noqa: BLE001 - as above
                    failed = error
            place += where.sealed
            with self._lock:
                self._moving -= _weight(where)
                if view is None:
                    known.cache.give_back(where.plain, buffer)
                else:
                    pending.block = known.cache.put((pack, number), view, buffer)
            self._publish((pack, number), pending, failed)

    def _unseal(self, known: _Pack, number: int, where: BlockInfo, sealed: memoryview, buffer: Memory) -> memoryview:
        """Open a block into a buffer; a read-only view of it. Raises PackDamaged, and the vault's errors."""
        try:
            return _unseal(known, number, where, sealed, buffer)
        except PackDamaged:
            if not isinstance(self._vault, Forgetful):
                raise
        self._vault.forget(known.name)  # what is damaged may be a copy on this machine, or a copy of old damage
        again = memoryview(self._vault.get(known.name, where.offset, where.sealed))
        return _unseal(known, number, where, again, buffer)

    def _publish(self, key: Key, pending: _Pending, error: BaseException | None) -> None:
        """Tell those who wait for a block, and those who wait for room."""
        with self._lock:
            pending.error = error
            del self._pending[key]
            if self._waiting:
                self._room.notify_all()
        pending.done.set()

    def following(self, pack: int, block: int, size: int, most: int) -> Sequence[tuple[int, int, int]]:
        """Where data goes on behind a block, in the order in which it was written: (pack, first block, last block).

        As many blocks as have `size` bytes, `most` of them at the most, and one even if it is larger.
        """
        found: list[tuple[int, int, int]] = []
        for number in range(pack, pack + 3):
            try:
                if self._pack(number).info.kind != PackKind.DATA:
                    continue
                plains = [where.plain for where in self._index.blocks(number)]
            except CacheUnusable:
                break  # the last pack
            first = last = block + 1
            while last < len(plains) and most > 0 and size > 0:
                size -= plains[last]
                most -= 1
                last += 1
            if last > first:
                found.append((number, first, last - 1))
            if size <= 0 or most <= 0:
                break
            block = -1
        return found


def _weight(where: BlockInfo) -> int:
    """Bytes of memory that opening a block takes besides the block itself."""
    return where.sealed if where.codec == Codec.RAW else 2 * where.sealed


def _unseal(known: _Pack, number: int, where: BlockInfo, sealed: memoryview, buffer: Memory) -> memoryview:
    """Open a block into a buffer; a read-only view of it."""
    if len(sealed) != where.sealed:
        raise PackDamaged(known.info.id.hex(), where.offset, "it is cut short")
    out = memoryview(buffer)[: where.plain]
    known.opener.open_block_into(number, where.codec, where.plain, sealed, where.offset, out)
    return out.toreadonly()
