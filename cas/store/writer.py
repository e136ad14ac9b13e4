"""The writing way: chunks in, packs and index segments in the vault out.

One producer thread calls `chunk`, `meta` and `file`. Here bytes are cut, named, looked up and collected into blocks;
the pipeline's threads do the rest.
"""

from __future__ import annotations

import os
import queue
from collections.abc import Callable
from types import TracebackType
from typing import Final

import zstandard
from blake3 import blake3

from cas.ids import Bytes, ChunkId
from cas.store.chunker import Chunker
from cas.store.content import ContentBuilder
from cas.store.formats import PackKind
from cas.store.index import Index
from cas.store.keys import RepositoryKeys
from cas.store.layout import Layout
from cas.store.parameters import Parameters
from cas.store.pipeline import WORTH_COMPRESSING, Block, Pipeline, Pool, WriterCounts
from cas.vault.base import Vault

_BLOCK_CHUNKS_MOST: Final = 8192
_READ_BYTES: Final = 2 << 20
_PROBE_BYTES: Final = 16 << 10

ReadInto = Callable[[memoryview], int]


def _fill(readinto: ReadInto, view: memoryview, filled: int) -> tuple[int, bool]:
    """Fill `view` from `filled` on: how far it is filled then, and whether the file ended before it was full."""
    while filled < len(view):
        count = readinto(view[filled:])
        if count == 0:
            return filled, True
        filled += count
    return filled, False


class _Assembler:
    """Collects chunks of one class into blocks of up to `target` bytes."""

    def __init__(self, kind: PackKind, target: int, blocks: int) -> None:
        self.kind: Final = kind
        self.target = target
        self.capacity: Final = target
        self.pool: Pool = queue.SimpleQueue()
        for _ in range(blocks):
            self.pool.put(None)
        self.block: Block | None = None


class Writer:
    """Writes chunks into one repository. Use as a context manager; `finish` before leaving, or nothing refers to them.

    Raises the errors of the vault and of the index from any call, whichever thread met them.
    """

    def __init__(
        self,
        vault: Vault,
        layout: Layout,
        keys: RepositoryKeys,
        parameters: Parameters,
        index: Index,
        *,
        sealers: int = 0,
        uploaders: int = 1,
        session: str = "",
        absent: frozenset[bytes] = frozenset(),
    ) -> None:
        """`sealers` threads compress and encrypt; 0 takes one for each processor, four at most. Segments are named
        after `session`. Chunks that are only in packs of `absent` are written again."""
        sealers = sealers or min(os.cpu_count() or 1, 4)
        self._pipeline = Pipeline(
            vault, layout, keys, parameters, index, sealers=sealers, uploaders=uploaders, session=session
        )
        self.counts = self._pipeline.counts
        self._keys = keys
        self._parameters = parameters
        self._chunkers: dict[int, Chunker] = {}  # by average size
        self._small = _Assembler(PackKind.DATA, parameters.small_block, sealers + 1)
        self._large = _Assembler(PackKind.DATA, parameters.large_block, sealers + 1)
        self._meta = _Assembler(PackKind.TREE, parameters.tree_block, 2)
        self._large_target = parameters.large_block
        self._dense_target = min(parameters.dense_block, parameters.large_block)
        self._probe = zstandard.ZstdCompressor(level=1)
        self._read_buffer = bytearray()
        self._pending: set[bytes] = set()  # ids this writer has taken in and the index does not know yet
        self._known = index.membership(absent)

    # --- the producer's calls ---

    def chunk(self, data: Bytes) -> ChunkId:
        """Take in the whole content of a small file as one chunk. `data` may be reused when this returns."""
        return self._take(data, self._small, self._keys.chunk_id)

    def meta(self, data: bytes) -> ChunkId:
        """Take in one piece of metadata: a tree, a page list, a content list."""
        return self._take(data, self._meta, self._keys.meta_id)

    def copy(self, data: Bytes, kind: PackKind, block: int) -> ChunkId:
        """Take in a chunk as it is, out of a block of `block` plain bytes: blocks stay about as long as they are."""
        if kind == PackKind.TREE:
            return self._take(data, self._meta, self._keys.meta_id)
        long = block > self._parameters.large_block
        return self._take(data, self._small if long else self._large, self._keys.chunk_id)

    def file(self, readinto: ReadInto, size: int) -> tuple[bytes, int, int]:
        """Take in a file through `readinto` until that returns 0: its content reference, depth, and bytes read.

        `size` is how long it is thought to be: it decides how finely a long file is cut, nothing else.
        """
        parameters, key = self._parameters, self._keys.chunk_id
        view = self._reading(_READ_BYTES)
        filled, ended = _fill(readinto, view, 0)
        if ended and filled <= parameters.single_most:
            return (bytes(self.chunk(view[:filled])) if filled else b""), 0, filled
        chunker = self._chunker(parameters.average(size, self._dense(view[:filled])))
        if not ended:
            longer = self._reading(_READ_BYTES + chunker.sizes.maximum)
            longer[:filled] = view[:filled]
            view = longer
        # A file that fits the buffer goes to the small files: its neighbours compress together with it.
        assembler = self._small if ended else self._large
        builder = ContentBuilder(self.meta)
        total = 0
        while True:
            start = 0
            for end in chunker.cuts(view[:filled], final=ended):
                builder.add(self._take(view[start:end], assembler, key), end - start)
                start = end
            total += start
            if ended:
                return *builder.finish(), total
            view[: filled - start] = view[start:filled]  # the start of the next chunk moves to the front
            filled, ended = _fill(readinto, view, filled - start)

    def _reading(self, size: int) -> memoryview:
        """The reading buffer, `size` bytes of it; one buffer serves all files."""
        if len(self._read_buffer) < size:
            self._read_buffer = bytearray(size)
        return memoryview(self._read_buffer)[:size]

    def _chunker(self, average: int) -> Chunker:
        chunker = self._chunkers.get(average)
        if chunker is None:
            chunker = Chunker(self._parameters.chunk_sizes(average), self._keys.chunker_seed)
            self._chunkers[average] = chunker
        return chunker

    def _dense(self, data: memoryview) -> bool:
        """Whether data does not compress, judged by four samples."""
        step = max(len(data) // 4, 1)
        samples = [data[start : start + _PROBE_BYTES // 4] for start in range(0, len(data), step)]
        return sum(len(self._probe.compress(sample)) for sample in samples) > WORTH_COMPRESSING * sum(map(len, samples))

    def finish(self) -> WriterCounts:
        """Seal and store what is left and write the last segment. When it returns, every chunk taken in is durable."""
        for assembler in (self._small, self._large, self._meta):
            self._hand_off(assembler)
        self._pipeline.finish()
        return self.counts

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._pipeline.abandon(error)
        self._known.close()

    # --- inside ---

    def _take(self, data: Bytes, assembler: _Assembler, key: bytes) -> ChunkId:
        chunk = ChunkId(blake3(data, key=key).digest())
        if chunk in self._pending or chunk in self._known:
            return chunk
        length = memoryview(data).nbytes
        block = assembler.block
        if block is not None and (block.end + length > assembler.target or len(block.ids) >= _BLOCK_CHUNKS_MOST):
            self._hand_off(assembler)
            block = None
        if block is None:
            block = self._next_block(assembler, data, length)
        end = block.end + length
        block.buffer[block.end : end] = data
        block.end = end
        block.ids.append(chunk)
        block.lengths.append(length)
        self._pending.add(chunk)
        self.counts.added_plain += length
        self.counts.chunks += 1
        return chunk

    def _next_block(self, assembler: _Assembler, data: Bytes, length: int) -> Block:
        """An empty block from the pool; for chunks of large files its size follows from how well they compress."""
        if not self._pipeline.loaded.empty():
            self._renew()
        if assembler is self._large:
            assembler.target = self._dense_target if self._dense(memoryview(data)) else self._large_target
        block = self._pipeline.take(assembler.pool)
        if block is None:
            block = Block(max(assembler.capacity, length))
        elif len(block.buffer) < length:
            block.buffer = bytearray(length)
        assembler.block = block
        return block

    def _hand_off(self, assembler: _Assembler) -> None:
        block = assembler.block
        if block is not None and block.ids:
            assembler.block = None
            self._pipeline.submit(assembler.kind, block, assembler.pool)

    def _renew(self) -> None:
        """Let go of the ids that the index knows by now."""
        while not self._pipeline.loaded.empty():
            for record in self._pipeline.loaded.get():
                for block in record.blocks:
                    ids = block.ids
                    self._pending.difference_update([ids[at : at + 32] for at in range(0, len(ids), 32)])
        self._known.renew()
