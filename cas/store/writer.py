"""The writing way: chunks in, packs and index segments in the vault out.

One producer thread calls `chunk`, `meta` and `file`; sealing threads compress and encrypt whole blocks straight into
pack buffers; uploading threads hash packs and hand them to the vault. All buffers come from pools of fixed size, so a
slow vault slows the producer down and memory stays bounded.

Order of commitment: a pack is durable before a segment names it, and a segment before the local index, or any recovery
point, relies on it.
"""

from __future__ import annotations

import os
import queue
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Final

import zstandard
from blake3 import blake3

from cas.ids import Bytes, ChunkId, PackId
from cas.store.chunker import Chunker
from cas.store.content import ContentBuilder
from cas.store.formats import PACK_HEADER_BYTES, TAG_BYTES, BlockRecord, Codec, ObjectKind, PackKind, PackRecord, encode
from cas.store.index import Index
from cas.store.keys import RepositoryKeys
from cas.store.layout import Layout
from cas.store.pack import PackBuilder
from cas.store.parameters import Parameters
from cas.store.sealer import PackSealer, seal_object, toc_opener
from cas.vault.base import Vault

_PACK_BUFFERS: Final = 2  # of each kind: one being filled, one being uploaded
_BLOCK_CHUNKS_MOST: Final = 8192
_SEGMENT_CHUNKS: Final = 200_000  # a segment is written at the latest after so many chunks, or so many packs
_SEGMENT_PACKS: Final = 64
_READ_BYTES: Final = 2 << 20
_PROBE_BYTES: Final = 16 << 10
_WORTH_COMPRESSING: Final = 0.97

ReadInto = Callable[[memoryview], int]


@dataclass(slots=True)
class WriterCounts:
    """Bytes and objects of one writer."""

    added: int = 0  # bytes of packs that reached the vault
    added_plain: int = 0  # bytes of new chunks
    packs: int = 0
    chunks: int = 0  # new ones
    segments: int = 0


def _fill(readinto: ReadInto, view: memoryview, filled: int) -> tuple[int, bool]:
    """Fill `view` from `filled` on: how far it is filled then, and whether the file ended before it was full."""
    while filled < len(view):
        count = readinto(view[filled:])
        if count == 0:
            return filled, True
        filled += count
    return filled, False


class _Block:
    """A block being collected: a buffer and the ids and lengths of the chunks in it."""

    __slots__ = ("buffer", "end", "ids", "lengths")

    def __init__(self, capacity: int) -> None:
        self.buffer = bytearray(capacity)
        self.end = 0
        self.ids: list[bytes] = []
        self.lengths: list[int] = []

    def reset(self) -> None:
        self.end = 0
        self.ids = []
        self.lengths = []


class _Assembler:
    """Collects chunks of one class into blocks of up to `target` bytes. Producer thread only, but for the pool."""

    def __init__(self, kind: PackKind, target: int, blocks: int) -> None:
        self.kind: Final = kind
        self.target = target
        self.capacity: Final = target
        self.free: queue.SimpleQueue[_Block | None] = queue.SimpleQueue()
        for _ in range(blocks):
            self.free.put(None)  # made when first needed
        self.block: _Block | None = None


class _Stream:
    """The packs of one kind: the one being filled, and the pool of buffers. `ready` guards all of it."""

    def __init__(self, capacity: int) -> None:
        self.ready = threading.Condition()
        self.capacity: Final = capacity
        self.buffers: list[bytearray] = []
        self.made = 0
        self.pack: PackBuilder | None = None


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
    ) -> None:
        """`sealers` threads compress and encrypt; 0 takes one for each processor, four at most."""
        self.counts = WriterCounts()
        self._vault = vault
        self._layout = layout
        self._keys = keys
        self._open_toc = toc_opener(keys)
        self._index = index
        self._parameters = parameters
        self._chunkers: dict[int, Chunker] = {}  # by average size
        sealers = sealers or min(os.cpu_count() or 1, 4)

        blocks = sealers + 1
        self._small = _Assembler(PackKind.DATA, parameters.small_block, blocks)
        self._large = _Assembler(PackKind.DATA, parameters.large_block, blocks)
        self._meta = _Assembler(PackKind.TREE, parameters.tree_block, 2)
        self._large_target = parameters.large_block
        self._dense_target = min(parameters.dense_block, parameters.large_block)
        self._streams = {
            PackKind.DATA: _Stream(max(parameters.pack, parameters.small_block + TAG_BYTES) + PACK_HEADER_BYTES),
            PackKind.TREE: _Stream(max(parameters.pack // 4, parameters.tree_block + TAG_BYTES) + PACK_HEADER_BYTES),
        }
        self._probe = zstandard.ZstdCompressor(level=1)
        self._read_buffer = bytearray()

        self._pending: set[bytes] = set()  # ids this writer has taken in and the index does not know yet
        self._known = index.membership()
        self._loaded: queue.SimpleQueue[list[PackRecord]] = queue.SimpleQueue()  # segments since `_known` was renewed

        self._failure: BaseException | None = None
        self._records: list[PackRecord] = []  # durable packs that no segment names yet
        self._records_lock = threading.Lock()
        self._segment_lock = threading.Lock()
        self._jobs: queue.Queue[tuple[_Assembler, _Block] | None] = queue.Queue(maxsize=sealers)
        self._uploads: queue.Queue[tuple[_Stream, PackBuilder] | None] = queue.Queue()
        self._sealers = [threading.Thread(target=self._seal_loop, name="seal", daemon=True) for _ in range(sealers)]
        self._uploaders = [
            threading.Thread(target=self._upload_loop, name="put", daemon=True) for _ in range(uploaders)
        ]
        for thread in self._sealers + self._uploaders:
            thread.start()

    # --- the producer's calls ---

    def chunk(self, data: Bytes) -> ChunkId:
        """Take in the whole content of a small file as one chunk. `data` may be reused when this returns."""
        return self._take(data, self._small, self._keys.chunk_id)

    def meta(self, data: bytes) -> ChunkId:
        """Take in one piece of metadata: a tree, a page list, a content list."""
        return self._take(data, self._meta, self._keys.meta_id)

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
        return sum(len(self._probe.compress(sample)) for sample in samples) > _WORTH_COMPRESSING * sum(
            map(len, samples)
        )

    def finish(self) -> WriterCounts:
        """Seal and store what is left and write the last segment. When it returns, every chunk taken in is durable."""
        for assembler in (self._small, self._large, self._meta):
            self._hand_off(assembler)
        for _ in self._sealers:
            self._put_job(None)
        for thread in self._sealers:
            thread.join()
        self._check()
        for stream in self._streams.values():
            with stream.ready:
                if stream.pack is not None:
                    self._close_pack(stream)
        for _ in self._uploaders:
            self._uploads.put(None)
        for thread in self._uploaders:
            thread.join()
        self._check()
        self._write_segment()
        return self.counts

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if any(thread.is_alive() for thread in self._sealers + self._uploaders):
            self._fail(error or RuntimeError("the writer was left without finish"))
            for _ in self._sealers:
                self._put_job(None)
            for _ in self._uploaders:
                self._uploads.put(None)
            for thread in self._sealers + self._uploaders:
                thread.join()
            self._salvage()
        self._known.close()

    def _salvage(self) -> None:
        """An interrupted run names the packs that did reach the vault: the next run need not send them again."""
        try:
            self._write_segment()
        except Exception:  # noqa: BLE001, S110 - the error that ended the run is the one to report
            pass

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

    def _next_block(self, assembler: _Assembler, data: Bytes, length: int) -> _Block:
        """An empty block from the pool; for chunks of large files its size follows from how well they compress."""
        if not self._loaded.empty():
            self._renew()
        if assembler is self._large:
            assembler.target = self._dense_target if self._dense(memoryview(data)) else self._large_target
        block = self._free_block(assembler)
        if block is None:
            block = _Block(max(assembler.capacity, length))
        elif len(block.buffer) < length:
            block.buffer = bytearray(length)
        assembler.block = block
        return block

    def _free_block(self, assembler: _Assembler) -> _Block | None:
        while True:
            self._check()
            try:
                return assembler.free.get(timeout=1)
            except queue.Empty:
                continue

    def _hand_off(self, assembler: _Assembler) -> None:
        block = assembler.block
        if block is not None and block.ids:
            assembler.block = None
            self._put_job((assembler, block))

    def _put_job(self, job: tuple[_Assembler, _Block] | None) -> None:
        while True:
            if job is not None:
                self._check()
            try:
                self._jobs.put(job, timeout=1)
            except queue.Full:
                continue
            return

    def _renew(self) -> None:
        """Let go of the ids that the index knows by now."""
        while not self._loaded.empty():
            for record in self._loaded.get():
                for block in record.blocks:
                    ids = block.ids
                    self._pending.difference_update([ids[at : at + 32] for at in range(0, len(ids), 32)])
        self._known.renew()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _fail(self, error: BaseException) -> None:
        if self._failure is None:
            self._failure = error
        for stream in self._streams.values():
            with stream.ready:
                stream.ready.notify_all()

    # --- sealing threads ---

    def _seal_loop(self) -> None:
        compressor = zstandard.ZstdCompressor(level=self._parameters.level)
        while (job := self._jobs.get()) is not None:
            assembler, block = job
            if self._failure is None:
                try:
                    self._seal(assembler, block, compressor)
                except BaseException as error:  # noqa: BLE001 - handed to the producer
                    self._fail(error)
            block.reset()
            assembler.free.put(block)

    def _seal(self, assembler: _Assembler, block: _Block, compressor: zstandard.ZstdCompressor) -> None:
        plain = block.end
        payload: Bytes = memoryview(block.buffer)[:plain]
        codec = Codec.RAW
        frame = compressor.compress(payload)
        if len(frame) < plain * _WORTH_COMPRESSING:
            payload, codec = frame, Codec.ZSTD
        size = len(frame) if codec == Codec.ZSTD else plain
        stream = self._streams[assembler.kind]
        placed = self._reserve(stream, assembler.kind, size)
        if placed is None:
            return
        pack, number, out = placed
        pack.sealer.seal_block(number, codec, plain, payload, out)
        record = BlockRecord(size + TAG_BYTES, plain, codec, b"".join(block.ids), block.lengths)
        with stream.ready:
            pack.record(number, record)
            if pack.closed and not pack.pending:
                self._uploads.put((stream, pack))

    def _reserve(self, stream: _Stream, kind: PackKind, size: int) -> tuple[PackBuilder, int, memoryview] | None:
        """Room in the current pack, or in a new one. None where the writer has failed meanwhile."""
        with stream.ready:
            while self._failure is None:
                if stream.pack is not None:
                    reserved = stream.pack.reserve(size)
                    if reserved is not None:
                        return stream.pack, *reserved
                    self._close_pack(stream)
                # One huge tree page may need more than packs usually have.
                capacity = max(stream.capacity, size + TAG_BYTES + PACK_HEADER_BYTES)
                if stream.buffers:
                    buffer = stream.buffers.pop()
                    buffer = buffer if len(buffer) >= capacity else bytearray(capacity)
                    stream.pack = self._new_pack(kind, buffer)
                elif stream.made < _PACK_BUFFERS:
                    stream.made += 1
                    stream.pack = self._new_pack(kind, bytearray(capacity))
                else:
                    stream.ready.wait()
        return None

    def _new_pack(self, kind: PackKind, buffer: bytearray) -> PackBuilder:
        return PackBuilder(kind, PackSealer(self._keys, kind), self._open_toc, buffer)

    def _close_pack(self, stream: _Stream) -> None:
        """Under the stream's lock: no more blocks; upload it as soon as the last one is sealed."""
        pack = stream.pack
        assert pack is not None
        stream.pack = None
        pack.closed = True
        if not pack.pending:
            self._uploads.put((stream, pack))

    # --- uploading threads ---

    def _upload_loop(self) -> None:
        while (upload := self._uploads.get()) is not None:
            stream, pack = upload
            if self._failure is None:
                try:
                    self._upload(pack)
                except BaseException as error:  # noqa: BLE001 - handed to the producer
                    self._fail(error)
            with stream.ready:
                stream.buffers.append(pack.buffer)
                stream.ready.notify_all()

    def _upload(self, pack: PackBuilder) -> None:
        record, parts = pack.finish()
        self._vault.put(self._layout.pack(pack.kind, PackId(record.id)), parts)
        with self._records_lock:
            self._records.append(record)
            self.counts.added += record.size
            self.counts.packs += 1
            chunks = sum(len(block.lengths) for packed in self._records for block in packed.blocks)
            due = chunks >= _SEGMENT_CHUNKS or len(self._records) >= _SEGMENT_PACKS
        if due:
            self._write_segment()

    def _write_segment(self) -> None:
        """Name the durable packs in a segment in the vault, then in the local index."""
        with self._segment_lock:
            with self._records_lock:
                records, self._records = self._records, []
            if not records:
                return
            name = self._layout.index + secrets.token_hex(16)
            self._vault.put(name, seal_object(self._keys, ObjectKind.INDEX, name, encode(records)))
            self.counts.segments += 1
            self._index.load(name, records)
            self._loaded.put(records)
