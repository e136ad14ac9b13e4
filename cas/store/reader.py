"""The reading way: a chunk id in, its bytes out. Nobody above knows of packs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from blake3 import blake3

from cas.errors import CacheUnusable, ChunkMissing, ObjectMissing, PackDamaged
from cas.ids import ChunkId
from cas.model import Node, Owner, Stream, Tree
from cas.store import trees
from cas.store.block_reader import BlockReader, ReaderCounts
from cas.store.content import FileContent, ListCache
from cas.store.formats import PackKind
from cas.store.index import Index, Location
from cas.store.keys import RepositoryKeys
from cas.store.layout import Layout
from cas.store.missing import LOOKS, Refresh, SecondLook
from cas.vault.base import Vault

_DEFAULT_CACHE: Final = 64 << 20


class Reader:
    """Reads chunks of one repository. Thread safe."""

    def __init__(
        self,
        vault: Vault,
        layout: Layout,
        keys: RepositoryKeys,
        index: Index,
        cache_bytes: int = _DEFAULT_CACHE,
        on_missing: Refresh | None = None,
    ) -> None:
        """`cache_bytes` bounds the opened blocks and those about to be, as in `BlockReader`.

        `on_missing` brings the index up to date, and returns the ids of the packs that it still names though they are
        gone, where it knows them. It is called when something is not where the index says, by one thread at a time,
        with no lock held that other readers need, and at most every few seconds; then what was missing is looked for
        again. Without it, what is missing is an error at once.
        """
        self.cache_bytes: Final = cache_bytes
        self._keys = keys
        self._index = index
        self._blocks = BlockReader(vault, layout, keys, index, cache_bytes)
        self.counts: Final = self._blocks.counts
        self._lists = ListCache()
        self._second_look = SecondLook(on_missing)

    # --- chunks ---

    def chunk(self, chunk: ChunkId) -> memoryview:
        """The chunk's bytes, authenticated. Raises ChunkMissing, PackDamaged, VaultUnavailable."""
        return self._found(chunk)[0]

    def peek(self, chunk: ChunkId) -> memoryview | None:
        """The chunk's bytes where its block is open already, else None: for those who must not wait for the vault."""
        location = self._index.find(chunk)
        if location is None:
            return None
        number, block_number, offset, length = location
        try:
            block = self.peek_block(number, block_number)
        except CacheUnusable:
            return None  # the index was made anew just now
        return None if block is None else block[offset : offset + length]

    def chunks(self, ids: Iterable[ChunkId]) -> Iterator[memoryview]:
        """As `chunk`, one after the other; looks all of them up at once."""
        ids = list(ids)
        for chunk, location in zip(ids, self._index.find_many(ids), strict=True):
            yield self._found(chunk, location)[0]

    def find(self, chunk: ChunkId) -> Location | None:
        """Where a chunk is."""
        return self._index.find(chunk)

    def find_many(self, ids: list[ChunkId]) -> list[Location | None]:
        """Where chunks are, for callers that want to read in the order of the packs."""
        return self._index.find_many(ids)

    def verified(self, chunk: ChunkId) -> memoryview:
        """As `chunk`, and its bytes are hashed and compared with the id. Raises PackDamaged besides."""
        data, location = self._found(chunk)
        info = self._blocks.info(location.pack)
        key = self._keys.meta_id if info.kind == PackKind.TREE else self._keys.chunk_id
        if blake3(data, key=key).digest() != chunk:
            raise PackDamaged(info.id.hex(), 0, f"the chunk {chunk.hex()[:16]} is not what its id promises")
        return data

    def _found(self, chunk: ChunkId, location: Location | None = None) -> tuple[memoryview, Location]:
        """The chunk's bytes, and where they are. `location` is where they were a moment ago."""
        if location is not None:
            try:
                return self._at(chunk, location), location
            except (ChunkMissing, CacheUnusable):
                pass  # it may have moved since
        error: ChunkMissing | CacheUnusable
        for _ in range(LOOKS):
            generation = self.generation
            location = self._index.find(chunk)
            try:
                if location is None:
                    raise ChunkMissing(chunk)
                return self._at(chunk, location), location
            except (ChunkMissing, CacheUnusable) as caught:
                error = caught
            if not self.look_again(error, generation):
                raise error
        self.looked_in_vain(error)
        raise error

    def _at(self, chunk: ChunkId, location: Location) -> memoryview:
        number, block_number, offset, length = location
        try:
            block = self.block(number, block_number)
        except ObjectMissing as error:
            raise ChunkMissing(chunk, f"its pack {error.name} is gone") from error
        return block[offset : offset + length]

    # --- what has moved ---

    @property
    def generation(self) -> int:
        """Read it before looking chunks up; `look_again` wants to know."""
        return self._second_look.generation

    def look_again(self, error: ChunkMissing | CacheUnusable, generation: int) -> bool:
        """Whether what was missing may be found now, having been looked up at `generation`. May take long.

        Look no more than LOOKS times, then say `looked_in_vain`. Raises what bringing the index up to date does.
        """
        if isinstance(error, CacheUnusable):
            return True  # the numbers of an index that was made anew meanwhile
        pack = _gone_pack(error)
        if pack is not None:
            return self._second_look.for_pack(pack, generation)
        return self._second_look.for_chunk(error.chunk.hex(), generation)

    def looked_in_vain(self, error: ChunkMissing | CacheUnusable) -> None:
        """What was missing is missing for good: do not look for it again soon."""
        if isinstance(error, ChunkMissing):
            self._second_look.was_in_vain(_gone_pack(error) or error.chunk.hex())

    # --- blocks ---

    def peek_block(self, pack: int, block: int) -> memoryview | None:
        """An opened block where it is in the cache, else None. Raises CacheUnusable for numbers out of date."""
        return self._blocks.peek(pack, block)

    def block(self, pack: int, block: int) -> memoryview:
        """An opened block by the numbers of the index; from the cache, or fetched by whoever comes first.

        Raises ObjectMissing, PackDamaged, VaultUnavailable, and CacheUnusable for numbers out of date.
        """
        return self._blocks.block(pack, block)

    def open_ahead(self, pack: int, first: int, last: int) -> int:
        """As `BlockReader.open_ahead`."""
        return self._blocks.open_ahead(pack, first, last)

    def following(self, pack: int, block: int, size: int, most: int) -> Sequence[tuple[int, int, int]]:
        """As `BlockReader.following`."""
        return self._blocks.following(pack, block, size, most)

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
        return FileContent(self.chunk, node.size, node.content, node.depth, extents, self._lists)

    def stream_content(self, stream: Stream) -> FileContent:
        """The chunks of an alternate data stream."""
        return FileContent(self.chunk, stream.size, stream.content, stream.depth, lists=self._lists)


def _gone_pack(error: ChunkMissing) -> str | None:
    """The id, in hex, of the pack that is gone; None where no index segment knows the chunk."""
    cause = error.__cause__
    return cause.name.rsplit("/", 1)[-1] if isinstance(cause, ObjectMissing) else None


__all__ = ["Reader", "ReaderCounts"]
