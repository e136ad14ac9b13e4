"""What a file consists of: content references, built while a file is read and walked when it is given back.

A reference is `(content, depth)`. At depth 0 `content` is empty (no bytes), one bare chunk id (the whole data is that
chunk), or entries of 40 bytes: chunk id, u64 LE bytes. At depth n the entries name content lists of depth n-1 and the
bytes they cover. A list ends after an entry whose id is divisible, so that a change in the middle of a terabyte
rewrites one list and the lists above it. References cover a file's data only; the holes of a sparse file are in
`Extra.extents`.
"""

from __future__ import annotations

import struct
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from cas.errors import TreeDamaged
from cas.ids import CHUNK_ID_BYTES, ChunkId

ENTRY: Final = struct.Struct("<32sQ")
INLINE_MOST: Final = 8  # entries that a node itself holds
LIST_LEAST: Final = 8
LIST_MOST: Final = 128
_LIST_MASK: Final = 31  # 1 in 32 ids ends a list: a small change in place costs a short list
_MOST_DEPTH: Final = 16
_CACHED_ENTRIES: Final = 1 << 15  # of decoded content lists; about 200 bytes each

Store = Callable[[bytes], ChunkId]
Load = Callable[[ChunkId], "bytes | memoryview"]


class ContentBuilder:
    """Collects the chunks of one file in order. Memory is bounded however long the file is."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._levels: list[list[tuple[ChunkId, int]]] = [[]]

    def add(self, chunk: ChunkId, length: int) -> None:
        """The next chunk of the file, of `length` bytes."""
        self._push(0, chunk, length)

    def _push(self, level: int, chunk: ChunkId, length: int) -> None:
        entries = self._levels[level]
        entries.append((chunk, length))
        count = len(entries)
        if count < LIST_LEAST:
            return
        if count >= LIST_MOST or int.from_bytes(chunk[:2], "little") & _LIST_MASK == 0:
            self._close(level)

    def _close(self, level: int) -> None:
        entries = self._levels[level]
        listed = self._store(b"".join([ENTRY.pack(chunk, length) for chunk, length in entries]))
        covered = sum(length for _, length in entries)
        entries.clear()
        if level + 1 == len(self._levels):
            self._levels.append([])
        self._push(level + 1, listed, covered)

    def finish(self) -> tuple[bytes, int]:
        """The file's `(content, depth)`."""
        level = 0
        while level + 1 < len(self._levels) or len(self._levels[level]) > INLINE_MOST:
            if self._levels[level]:
                self._close(level)
            level += 1
        entries = self._levels[level]
        if level == 0 and len(entries) == 1:
            return bytes(entries[0][0]), 0
        return b"".join([ENTRY.pack(chunk, length) for chunk, length in entries]), level


class Piece(NamedTuple):
    """A run of a file's bytes that lies in one chunk."""

    offset: int  # in the file
    chunk: ChunkId
    chunk_length: int
    skip: int  # bytes of the chunk before the run
    length: int


class _List:
    """A decoded content list: where each entry starts, in bytes of data."""

    __slots__ = ("chunks", "starts", "total")

    def __init__(self, content: bytes | memoryview, where: bytes) -> None:
        if len(content) % ENTRY.size:
            raise TreeDamaged(where, "a content list has an odd length")
        self.chunks: list[ChunkId] = []
        self.starts: list[int] = []
        position = 0
        for chunk, length in ENTRY.iter_unpack(content):
            self.chunks.append(ChunkId(chunk))
            self.starts.append(position)
            position += length
        self.total = position


class ListCache:
    """Decoded content lists of any number of files, bounded. Thread safe."""

    def __init__(self, most: int = _CACHED_ENTRIES) -> None:
        """`most` bounds the entries of all lists."""
        self._most = most
        self._lock = threading.Lock()
        self._lists: OrderedDict[ChunkId, _List] = OrderedDict()
        self._entries = 0

    @property
    def entries(self) -> int:
        """Of all lists that are kept, and one more for each."""
        return self._entries

    def get(self, chunk: ChunkId) -> _List | None:
        """The list that the chunk is, where it is kept."""
        with self._lock:
            known = self._lists.get(chunk)
            if known is not None:
                self._lists.move_to_end(chunk)
            return known

    def add(self, chunk: ChunkId, decoded: _List) -> None:
        """Keep a list; those used longest ago go."""
        with self._lock:
            if chunk in self._lists:
                return
            self._lists[chunk] = decoded
            self._entries += len(decoded.chunks) + 1
            while self._entries > self._most and len(self._lists) > 1:
                self._entries -= len(self._lists.popitem(last=False)[1].chunks) + 1


class FileContent:
    """Random and sequential access to one file's chunks. Thread safe: what it remembers is only a cache."""

    def __init__(
        self,
        load: Load,
        size: int,
        content: bytes,
        depth: int,
        extents: list[tuple[int, int]] | None = None,
        lists: ListCache | None = None,
    ) -> None:
        """`load` gives content lists, `lists` keeps those of many files; the rest as in a node. Raises TreeDamaged."""
        self._load = load
        self.size = size
        self._depth = depth
        self._extents = [(0, size)] if extents is None else extents
        self._data_starts: list[int] = []
        position = end = 0
        for offset, length in self._extents:
            if offset < end or length < 0 or offset + length > size:
                raise TreeDamaged(content[:CHUNK_ID_BYTES], "the extents of a sparse file are not in order")
            self._data_starts.append(position)
            position += length
            end = offset + length
        self._data_size = position
        if not 0 <= depth <= _MOST_DEPTH:
            raise TreeDamaged(content[:CHUNK_ID_BYTES], "its content is nested too deeply")
        if depth == 0 and len(content) == CHUNK_ID_BYTES:
            content = ENTRY.pack(content, position)
        self._root = _List(content, content[:CHUNK_ID_BYTES])
        if self._root.total != self._data_size:
            raise TreeDamaged(content[:CHUNK_ID_BYTES], "its content does not add up to its size")
        self._lists = lists or (ListCache() if depth else None)

    def _list(self, chunk: ChunkId) -> _List:
        assert self._lists is not None
        known = self._lists.get(chunk)
        if known is None:
            known = _List(self._load(chunk), chunk)
            self._lists.add(chunk, known)
        return known

    def _data(self, entries: _List, depth: int, base: int, start: int, end: int) -> Iterator[Piece]:
        """Pieces of the data bytes [start, end); `base` is where `entries` starts; offsets count in data bytes."""
        index = max(bisect_right(entries.starts, start - base) - 1, 0)
        while index < len(entries.chunks):
            first = base + entries.starts[index]
            if first >= end:
                return
            last = base + (entries.starts[index + 1] if index + 1 < len(entries.starts) else entries.total)
            chunk = entries.chunks[index]
            if depth:
                below = self._list(chunk)
                if below.total != last - first:
                    raise TreeDamaged(chunk, "a content list covers another length than recorded")
                yield from self._data(below, depth - 1, first, start, end)
            else:
                skip = max(start - first, 0)
                yield Piece(first + skip, chunk, last - first, skip, min(end, last) - first - skip)
            index += 1

    def pieces(self, start: int = 0, end: int | None = None) -> Iterator[Piece]:
        """The pieces that hold the file's bytes [start, end), in order; what no piece covers is a hole (zeros)."""
        end = self.size if end is None else min(end, self.size)
        index = max(bisect_right(self._extents, (start, 1 << 63)) - 1, 0)
        for number in range(index, len(self._extents)):
            offset, length = self._extents[number]
            if offset >= end:
                return
            data_start = self._data_starts[number]
            low, high = max(start, offset), min(end, offset + length)
            if low >= high:
                continue
            shift = offset - data_start
            for piece in self._data(self._root, self._depth, 0, low - shift, high - shift):
                if piece.length:
                    yield piece._replace(offset=piece.offset + shift)

    @property
    def extents(self) -> list[tuple[int, int]]:
        """(offset, length) of the parts that hold data."""
        return self._extents
