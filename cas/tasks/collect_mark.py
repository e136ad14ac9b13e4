"""The mark of a collect: which places of chunks are needed, and how much of each pack that is.

Every chunk has one place in the machine's index, and only that counts: a second copy is garbage. Memory is five bytes a
chunk: the offsets of each block's chunks, and a mark for each.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from cas.errors import ChunkMissing, Damaged, FormatTooNew, TreeDamaged
from cas.ids import CHUNK_ID_BYTES, ChunkId
from cas.model import NodeKind, Tree
from cas.repository import Repository
from cas.store import trees
from cas.store.content import ENTRY
from cas.store.index import Location
from cas.tasks.reach import contents

_CACHE_BYTES: Final = 32 << 20
_BATCH: Final = 16384  # chunks looked up together
_MOST_DEPTH: Final = 16  # of content lists

Tell = Callable[[int], None]
"""Hears how many entries were looked at."""


class _Block:
    """Which chunks of a block are needed."""

    __slots__ = ("marks", "offsets", "used")

    def __init__(self) -> None:
        self.offsets = array("I")
        self.marks = bytearray()
        self.used = 0  # plain bytes


class Mark:
    """Marks what roots reach. Trees and content lists that were marked are not looked at again."""

    def __init__(self, repository: Repository, present: set[bytes], tell: Tell) -> None:
        """`present` are the ids of the packs that are in the vault: what is in another one is missing.

        The index must have been brought up to date after the roots were listed.
        """
        self.missing = 0  # chunks of files that are in no pack
        self.entries = 0
        self._reader = repository.reader(_CACHE_BYTES)
        self._tell = tell
        self._blocks: dict[int, _Block] = {}
        self._extra: set[tuple[int, int, int]] = set()  # places that were not there when the blocks were numbered
        self._lost = {number for number, info in repository.index.packs() if info.id not in present}
        self._ids: list[ChunkId] = []
        for place in repository.index.places():
            key = place.pack << 16 | place.block
            block = self._blocks.get(key)
            if block is None:
                block = self._blocks[key] = _Block()
            block.offsets.append(place.offset)
        for block in self._blocks.values():
            block.offsets = array("I", sorted(block.offsets))
            block.marks = bytearray(len(block.offsets))

    # --- what was found ---

    def used(self, pack: int) -> dict[int, int]:
        """Plain bytes needed of a pack, by the number of the block: only of blocks that are needed at all."""
        return self._by_pack().get(pack, {})

    def _by_pack(self) -> dict[int, dict[int, int]]:
        if self._found is None:
            self._found = {}
            for key, block in self._blocks.items():
                if block.used:
                    self._found.setdefault(key >> 16, {})[key & 0xFFFF] = block.used
            for pack, number, _ in self._extra:
                self._found.setdefault(pack, {}).setdefault(number, 1)
        return self._found

    _found: dict[int, dict[int, int]] | None = None

    def needs(self, pack: int, block: int, offset: int) -> bool:
        """Whether the chunk at this place is needed."""
        known = self._blocks.get(pack << 16 | block)
        if known is not None:
            position = bisect_left(known.offsets, offset)
            if position < len(known.offsets) and known.offsets[position] == offset and known.marks[position]:
                return True
        return (pack, block, offset) in self._extra

    # --- marking ---

    def points(self, roots: Iterable[bytes]) -> None:
        """Mark everything below the trees of points.

        Raises Damaged where a tree or content list is missing or damaged, for nobody knows what is below it; a chunk of
        a file that is missing is only counted. Raises the vault's errors.
        """
        self._all(roots, strict=True)

    def announced(self, roots: Iterable[bytes]) -> None:
        """Mark what is there below trees that sessions have announced: it may be that they came too late, and know it.

        Raises the vault's errors.
        """
        missing = self.missing
        self._all(roots, strict=False)
        self.missing = missing

    def _all(self, roots: Iterable[bytes], *, strict: bool) -> None:
        self._found = None
        for root in roots:
            stack = [ChunkId(root)]
            while stack:
                try:
                    self._tree(stack.pop(), stack)
                except (Damaged, FormatTooNew):
                    if strict:
                        raise
                if len(self._ids) >= _BATCH:
                    self._flush()
        self._flush()

    def _tree(self, tree: ChunkId, stack: list[ChunkId]) -> None:
        if not self._first(tree):
            return
        decoded = trees.read(self._reader.chunk, tree)
        if not isinstance(decoded, Tree):
            stack.extend(page.tree for page in decoded)
            return
        for node in decoded.nodes:
            if node.kind == NodeKind.DIRECTORY:
                stack.append(ChunkId(node.content))
            elif node.kind == NodeKind.FILE:
                for _, content, depth in contents(node):
                    self._content(content, depth)
        self.entries += len(decoded.nodes)

    def _content(self, content: bytes | memoryview, depth: int) -> None:
        if depth == 0 and len(content) == CHUNK_ID_BYTES:
            self._ids.append(ChunkId(bytes(content)))
            return
        if len(content) % ENTRY.size or not 0 <= depth <= _MOST_DEPTH:
            raise TreeDamaged(bytes(content[:CHUNK_ID_BYTES]), "a content list does not parse")
        for chunk in _chunks_of(content):
            if depth == 0:
                self._ids.append(chunk)
            elif self._first(chunk):
                self._content(self._reader.chunk(chunk), depth - 1)

    def _first(self, chunk: ChunkId) -> bool:
        """Mark a tree or a list; whether it was not marked before."""
        location = self._find(chunk)
        if location is None:
            self._reader.chunk(chunk)  # which looks again, or says what is wrong
            location = self._find(chunk)
            if location is None:
                raise ChunkMissing(chunk)
        return self._use(location)

    def _find(self, chunk: ChunkId) -> Location | None:
        location = self._reader.find_many([chunk])[0]
        return None if location is None or location.pack in self._lost else location

    def _flush(self) -> None:
        for location in self._reader.find_many(self._ids):
            if location is None or location.pack in self._lost:
                self.missing += 1
            else:
                self._use(location)
        self._ids.clear()
        self._tell(self.entries)

    def _use(self, location: Location) -> bool:
        pack, block, offset, length = location
        known = self._blocks.get(pack << 16 | block)
        if known is not None:
            position = bisect_left(known.offsets, offset)
            if position < len(known.offsets) and known.offsets[position] == offset:
                if known.marks[position]:
                    return False
                known.marks[position] = 1
                known.used += length
                return True
        place = (pack, block, offset)  # another process has brought the index further since
        if place in self._extra:
            return False
        self._extra.add(place)
        return True


def _chunks_of(content: bytes | memoryview) -> Iterator[ChunkId]:
    for chunk, _ in ENTRY.iter_unpack(content):
        yield ChunkId(chunk)
