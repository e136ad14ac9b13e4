"""The data of files on their way back: which bytes of which blocks go where, fetched ahead, written and compared."""

from __future__ import annotations

import errno
import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import repeat
from typing import Final

from cas.errors import ChunkMissing, ObjectMissing, PackDamaged, TreeDamaged
from cas.model import Node
from cas.store.content import Piece
from cas.store.index import Location
from cas.store.reader import Reader

Block = tuple[int, int]
"""(pack number, block number) of the index."""

Run = tuple[int, int, int, int, int]
"""(offset in the file, pack number, block number, offset in the plain block, length): bytes that lie in one block."""

OpenBlock = Callable[[int, int], memoryview]
"""The plain block of a pack number and a block number. Raises as the reader does."""

_COMPARE_BYTES: Final = 1 << 20


def runs_of(pieces: Iterable[Piece], locations: Iterable[Location | None]) -> Iterator[Run]:
    """The runs of a file. Pieces that are neighbours in the file and in a block are one run.

    Raises ChunkMissing, and TreeDamaged where a chunk has another length than the file says.
    """
    at = pack = block = start = length = -1
    for piece, location in zip(pieces, locations, strict=True):
        if location is None:
            raise ChunkMissing(piece.chunk)
        if location.length != piece.chunk_length:
            raise TreeDamaged(piece.chunk, "a chunk of the file has another length than recorded")
        offset = location.offset + piece.skip
        if (
            location.block == block
            and location.pack == pack
            and offset == start + length
            and piece.offset == at + length
        ):
            length += piece.length
            continue
        if length > 0:
            yield at, pack, block, start, length
        at, pack, block, start, length = piece.offset, location.pack, location.block, offset, piece.length
    if length > 0:
        yield at, pack, block, start, length


def find_runs(reader: Reader, node: Node) -> Iterator[Run]:
    """The runs of a whole file, looked up one content list after the other. Raises as `runs_of` and the reader do."""
    pieces: list[Piece] = []
    for piece in reader.content(node).pieces():
        pieces.append(piece)
        if len(pieces) == 4096:
            yield from runs_of(pieces, reader.find_many([piece.chunk for piece in pieces]))
            pieces.clear()
    yield from runs_of(pieces, reader.find_many([piece.chunk for piece in pieces]))


class LastBlock:
    """The plain blocks of a reader, for one thread. The last one needs no lock: the next run is often in it."""

    __slots__ = ("_block", "_data", "_pack", "_reader")

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._pack = self._block = -1
        self._data = memoryview(b"")

    def __call__(self, pack: int, block: int) -> memoryview:
        """The plain block. Raises PackDamaged where its pack is gone, and as the reader does."""
        if block != self._block or pack != self._pack:
            try:
                self._data = memoryview(self._reader.block(pack, block))
            except ObjectMissing as error:
                raise PackDamaged(error.name.rsplit("/", 1)[-1], 0, "it is missing from the vault") from None
            self._pack, self._block = pack, block
        return self._data


def write_runs(blocks: OpenBlock, fd: int, runs: Iterable[Run]) -> None:
    """Write each run at its place. Raises OSError, and as the reader does."""
    pwrite = os.pwrite
    for at, pack, block, start, length in runs:
        data = blocks(pack, block)[start : start + length]
        written = pwrite(fd, data, at)
        while written < length:  # a signal, or a device that takes less at once
            written += pwrite(fd, data[written:], at + written)


def equals(reader: Reader, fd: int, node: Node) -> bool:
    """Whether the open file holds what the node says, holes being zeros. Raises OSError, and as the reader does."""
    if os.fstat(fd).st_size != node.size:
        return False
    blocks = LastBlock(reader)
    end = 0
    for at, pack, block, start, length in find_runs(reader, node):
        if not _is_zero(fd, end, at):
            return False
        data = blocks(pack, block)[start : start + length]
        for position in range(0, length, _COMPARE_BYTES):
            part = data[position : position + _COMPARE_BYTES]
            if os.pread(fd, len(part), at + position) != part:
                return False
        end = at + length
    return _is_zero(fd, end, node.size)


def _is_zero(fd: int, start: int, end: int) -> bool:
    """Whether the file is a hole, or zeros, from `start` to `end`."""
    while start < end:
        try:
            start = os.lseek(fd, start, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # no data from here on
                return True
            raise
        if start >= end:
            return True
        part = os.pread(fd, min(end - start, _COMPARE_BYTES), start)
        if not part or any(part):
            return False
        start += len(part)
    return True


class Prefetch:
    """Threads that open blocks into the reader's cache, in the order in which they will be wanted."""

    def __init__(self, reader: Reader, threads: int, stopped: Callable[[], bool]) -> None:
        """`stopped` tells that nothing more is wanted."""
        self._reader = reader
        self._stopped = stopped
        self._wanted: queue.SimpleQueue[Block | None] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=self._loop, name="fetch", daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def want(self, blocks: Sequence[Block]) -> None:
        """Open these soon."""
        for block in blocks:
            self._wanted.put(block)

    def close(self) -> None:
        """Wait until the threads have ended."""
        for _ in repeat(None, len(self._threads)):
            self._wanted.put(None)
        for thread in self._threads:
            thread.join()

    def _loop(self) -> None:
        while (wanted := self._wanted.get()) is not None:
            if self._stopped():
                continue
            try:
                self._reader.block(*wanted)
            except Exception:  # noqa: BLE001, S110 - whoever needs the block will meet the error and tell the file
                pass
