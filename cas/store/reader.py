"""The reading way: a chunk id in, its bytes out. Nobody above knows of packs.

Opened blocks are kept in two caches bounded in bytes, one for metadata and one for data, so that reading a large file
does not throw out the directories. A block that several threads want at once is fetched and opened once.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from blake3 import blake3

from cas.errors import ChunkMissing, ObjectMissing, PackDamaged
from cas.ids import ChunkId
from cas.model import Node, Owner, Stream, Tree
from cas.store import trees
from cas.store.content import FileContent
from cas.store.formats import PackKind
from cas.store.index import Index, Location, PackInfo
from cas.store.keys import RepositoryKeys
from cas.store.layout import Layout
from cas.store.sealer import PackOpener
from cas.vault.base import Vault

_DEFAULT_CACHE: Final = 64 << 20


@dataclass(slots=True)
class ReaderCounts:
    """What a reader has cost."""

    reads: int = 0  # vault operations
    read_bytes: int = 0
    hits: int = 0  # chunks found in an opened block
    misses: int = 0


class _Pending:
    """A block that one thread is opening while others wait for it."""

    __slots__ = ("block", "done", "error")

    def __init__(self) -> None:
        self.done = threading.Event()
        self.block: bytes | None = None
        self.error: BaseException | None = None


class _BlockCache:
    """Opened blocks, least recently used first, bounded in bytes. The reader's lock guards it."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._size = 0
        self._blocks: OrderedDict[tuple[int, int], bytes] = OrderedDict()

    def get(self, key: tuple[int, int]) -> bytes | None:
        block = self._blocks.get(key)
        if block is not None:
            self._blocks.move_to_end(key)
        return block

    def put(self, key: tuple[int, int], block: bytes) -> None:
        if key in self._blocks:
            return
        self._blocks[key] = block
        self._size += len(block)
        while self._size > self._limit and len(self._blocks) > 1:
            _, old = self._blocks.popitem(last=False)
            self._size -= len(old)


class Reader:
    """Reads chunks of one repository. Thread safe."""

    def __init__(
        self, vault: Vault, layout: Layout, keys: RepositoryKeys, index: Index, cache_bytes: int = _DEFAULT_CACHE
    ) -> None:
        """`cache_bytes` bounds the opened blocks that are kept; a quarter of it is for metadata."""
        self.counts = ReaderCounts()
        self._vault = vault
        self._layout = layout
        self._keys = keys
        self._index = index
        self._lock = threading.Lock()
        self._caches = {
            PackKind.TREE: _BlockCache(cache_bytes // 4),
            PackKind.DATA: _BlockCache(cache_bytes - cache_bytes // 4),
        }
        self._pending: dict[tuple[int, int], _Pending] = {}
        self._packs: dict[int, tuple[PackInfo, str, PackOpener]] = {}

    # --- chunks ---

    def chunk(self, chunk: ChunkId) -> memoryview:
        """The chunk's bytes, authenticated. Raises ChunkMissing, PackDamaged, VaultUnavailable."""
        return self._at(chunk, self._index.find(chunk))

    def peek(self, chunk: ChunkId) -> memoryview | None:
        """The chunk's bytes where its block is open already, else None: for those who must not wait for the vault."""
        location = self._index.find(chunk)
        if location is None:
            return None
        number, block_number, offset, length = location
        block = self.peek_block(number, block_number)
        return None if block is None else memoryview(block)[offset : offset + length]

    def chunks(self, ids: Iterable[ChunkId]) -> Iterator[memoryview]:
        """As `chunk`, one after the other; looks all of them up at once."""
        ids = list(ids)
        for chunk, location in zip(ids, self._index.find_many(ids), strict=True):
            yield self._at(chunk, location)

    def find_many(self, ids: list[ChunkId]) -> list[Location | None]:
        """Where chunks are, for callers that want to read in the order of the packs."""
        return self._index.find_many(ids)

    def verified(self, chunk: ChunkId) -> memoryview:
        """As `chunk`, and its bytes are hashed and compared with the id. Raises PackDamaged besides."""
        location = self._index.find(chunk)
        data = self._at(chunk, location)
        assert location is not None
        info, _, _ = self._pack(location.pack)
        key = self._keys.meta_id if info.kind == PackKind.TREE else self._keys.chunk_id
        if blake3(data, key=key).digest() != chunk:
            raise PackDamaged(info.id.hex(), 0, f"the chunk {chunk.hex()[:16]} is not what its id promises")
        return data

    def _at(self, chunk: ChunkId, location: Location | None) -> memoryview:
        if location is None:
            raise ChunkMissing(chunk)
        number, block_number, offset, length = location
        try:
            block = self.block(number, block_number)
        except ObjectMissing as error:
            raise ChunkMissing(chunk, f"its pack {error.name} is gone") from None
        return memoryview(block)[offset : offset + length]

    # --- blocks ---

    def _pack(self, number: int) -> tuple[PackInfo, str, PackOpener]:
        known = self._packs.get(number)
        if known is None:
            info = self._index.pack(number)
            opener = PackOpener(self._keys, info.kind, info.id, info.salt)
            known = self._packs[number] = (info, self._layout.pack(info.kind, info.id), opener)
        return known

    def peek_block(self, pack: int, block: int) -> bytes | None:
        """An opened block where it is in the cache, else None."""
        cache = self._caches[self._pack(pack)[0].kind]
        with self._lock:
            opened = cache.get((pack, block))
            if opened is not None:
                self.counts.hits += 1
            return opened

    def block(self, pack: int, block: int) -> bytes:
        """An opened block by the numbers of the index; from the cache, or fetched by whoever comes first.

        Raises ObjectMissing, PackDamaged, VaultUnavailable.
        """
        key = (pack, block)
        info, name, opener = self._pack(pack)
        cache = self._caches[info.kind]
        with self._lock:
            opened = cache.get(key)
            if opened is not None:
                self.counts.hits += 1
                return opened
            pending = self._pending.get(key)
            mine = pending is None
            if pending is None:
                pending = self._pending[key] = _Pending()
                self.counts.misses += 1
        if not mine:
            pending.done.wait()
            if pending.error is not None:
                raise pending.error
            assert pending.block is not None
            return pending.block
        try:
            opened = self._fetch(pack, block, info, name, opener)
            pending.block = opened
        except BaseException as error:
            pending.error = error
            raise
        finally:
            with self._lock:
                if pending.block is not None:
                    cache.put(key, pending.block)
                del self._pending[key]
            pending.done.set()
        return opened

    def _fetch(self, pack: int, block: int, info: PackInfo, name: str, opener: PackOpener) -> bytes:
        where = self._index.block(pack, block)
        sealed = self._vault.get(name, where.offset, where.sealed)
        self.counts.reads += 1
        self.counts.read_bytes += len(sealed)
        if len(sealed) != where.sealed:
            raise PackDamaged(info.id.hex(), where.offset, "it is cut short")
        return opener.open_block(block, where.codec, where.plain, sealed, where.offset)

    # --- trees and files ---

    def pages(self, tree: ChunkId) -> Iterator[Tree]:
        """A directory's entries, page by page in the order of their names. Raises TreeDamaged and as `chunk`."""
        return trees.pages(self.chunk, tree)

    def entries(self, tree: ChunkId) -> Iterator[tuple[Node, Owner]]:
        """A directory's entries with their owners, in the order of their names."""
        for page in trees.pages(self.chunk, tree):
            owners = page.owners
            for node in page.nodes:
                yield node, owners[node.owner]

    def lookup(self, tree: ChunkId, name: bytes) -> tuple[Node, Owner] | None:
        """One entry of a directory, or None. Of a large directory only the pages on the way are read."""
        return trees.lookup(self.chunk, tree, name)

    def content(self, node: Node) -> FileContent:
        """The chunks of a file node. Raises TreeDamaged and as `chunk`."""
        extents = None if node.extra is None else node.extra.extents
        return FileContent(self.chunk, node.size, node.content, node.depth, extents)

    def stream_content(self, stream: Stream) -> FileContent:
        """The chunks of an alternate data stream."""
        return FileContent(self.chunk, stream.size, stream.content, stream.depth)
