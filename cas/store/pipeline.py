"""The threads behind a writer: whole blocks in, packs and index segments in the vault out.

Sealing threads compress and encrypt blocks straight into pack buffers; uploading threads hash packs and hand them to
the vault. All buffers come from pools of fixed size, so a slow vault slows the producer down and memory stays bounded.

Order of commitment: a pack is durable before a segment names it, and a segment before the local index, or any recovery
point, relies on it.
"""

from __future__ import annotations

import queue
import threading
from dataclasses import dataclass
from typing import Final

import zstandard

from cas.ids import Bytes, PackId
from cas.store.formats import PACK_HEADER_BYTES, TAG_BYTES, BlockRecord, Codec, ObjectKind, PackKind, PackRecord, encode
from cas.store.index import Index
from cas.store.keys import RepositoryKeys
from cas.store.layout import Layout
from cas.store.pack import PackBuilder
from cas.store.parameters import Parameters
from cas.store.sealer import PackSealer, seal_object, toc_opener
from cas.vault.base import Vault

_PACK_BUFFERS: Final = 2  # of each kind: one being filled, one being uploaded
_SEGMENT_CHUNKS: Final = 200_000  # a segment is written at the latest after so many chunks, or so many packs
_SEGMENT_PACKS: Final = 64
WORTH_COMPRESSING: Final = 0.97  # of its size, or less: else data is kept as it is


@dataclass(slots=True)
class WriterCounts:
    """Bytes and objects of one writer."""

    added: int = 0  # bytes of packs that reached the vault
    added_plain: int = 0  # bytes of new chunks
    packs: int = 0
    chunks: int = 0  # new ones
    segments: int = 0


class Block:
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


Pool = queue.SimpleQueue["Block | None"]
"""Where a block goes back to when it is sealed. None stands for one that is still to be made."""


class _Stream:
    """The packs of one kind: the one being filled, and the pool of buffers. `ready` guards all of it."""

    def __init__(self, capacity: int) -> None:
        self.ready = threading.Condition()
        self.capacity: Final = capacity
        self.buffers: list[bytearray] = []
        self.made = 0
        self.pack: PackBuilder | None = None


class Pipeline:
    """Takes blocks from one producer thread. What goes wrong in a thread is raised by the producer's next call."""

    def __init__(
        self,
        vault: Vault,
        layout: Layout,
        keys: RepositoryKeys,
        parameters: Parameters,
        index: Index,
        *,
        sealers: int,
        uploaders: int,
        session: str = "",
    ) -> None:
        """`sealers` threads compress and encrypt, `uploaders` put packs into the vault. Segments are named after
        `session`, so that a collect knows whose they are."""
        self._session = session
        self.counts = WriterCounts()
        self.loaded: queue.SimpleQueue[list[PackRecord]] = queue.SimpleQueue()  # what the index has come to know
        self._vault = vault
        self._layout = layout
        self._keys = keys
        self._open_toc = toc_opener(keys)
        self._index = index
        self._level = parameters.level
        self._streams = {
            PackKind.DATA: _Stream(max(parameters.pack, parameters.small_block + TAG_BYTES) + PACK_HEADER_BYTES),
            PackKind.TREE: _Stream(max(parameters.pack // 4, parameters.tree_block + TAG_BYTES) + PACK_HEADER_BYTES),
        }
        self._failure: BaseException | None = None
        self._records: list[PackRecord] = []  # durable packs that no segment names yet
        self._records_lock = threading.Lock()
        self._segment_lock = threading.Lock()
        self._jobs: queue.Queue[tuple[PackKind, Block, Pool] | None] = queue.Queue(maxsize=sealers)
        self._uploads: queue.Queue[tuple[_Stream, PackBuilder] | None] = queue.Queue()
        self._sealers = [threading.Thread(target=self._seal_loop, name="seal", daemon=True) for _ in range(sealers)]
        self._uploaders = [
            threading.Thread(target=self._upload_loop, name="put", daemon=True) for _ in range(uploaders)
        ]
        for thread in self._sealers + self._uploaders:
            thread.start()

    # --- the producer's calls ---

    def submit(self, kind: PackKind, block: Block, pool: Pool) -> None:
        """Seal a block into a pack of its kind; it returns to its pool afterwards. Waits while much is to do."""
        self._put_job((kind, block, pool))

    def take(self, pool: Pool) -> Block | None:
        """A free block, as soon as there is one."""
        while True:
            self.check()
            try:
                return pool.get(timeout=1)
            except queue.Empty:
                continue

    def check(self) -> None:
        """Raise what went wrong in a thread."""
        if self._failure is not None:
            raise self._failure

    def finish(self) -> None:
        """Seal and store what was submitted and write the last segment: when it returns, all of it is durable."""
        for _ in self._sealers:
            self._put_job(None)
        for thread in self._sealers:
            thread.join()
        self.check()
        for stream in self._streams.values():
            with stream.ready:
                if stream.pack is not None:
                    self._close_pack(stream)
        for _ in self._uploaders:
            self._uploads.put(None)
        for thread in self._uploaders:
            thread.join()
        self.check()
        self._write_segment()

    def abandon(self, error: BaseException | None) -> None:
        """End the threads if `finish` has not. Packs that reached the vault are named, so that the next run need not
        send them again."""
        if not any(thread.is_alive() for thread in self._sealers + self._uploaders):
            return
        self._fail(error or RuntimeError("the writer was left without finish"))
        for _ in self._sealers:
            self._put_job(None)
        for _ in self._uploaders:
            self._uploads.put(None)
        for thread in self._sealers + self._uploaders:
            thread.join()
        try:
            self._write_segment()
        except Exception:  # noqa: BLE001, S110 - the error that ended the run is the one to report
            pass

    def _put_job(self, job: tuple[PackKind, Block, Pool] | None) -> None:
        while True:
            if job is not None:
                self.check()
            try:
                self._jobs.put(job, timeout=1)
            except queue.Full:
                continue
            return

    def _fail(self, error: BaseException) -> None:
        if self._failure is None:
            self._failure = error
        for stream in self._streams.values():
            with stream.ready:
                stream.ready.notify_all()

    # --- sealing threads ---

    def _seal_loop(self) -> None:
        compressor = zstandard.ZstdCompressor(level=self._level)
        while (job := self._jobs.get()) is not None:
            kind, block, pool = job
            if self._failure is None:
                try:
                    self._seal(kind, block, compressor)
                except BaseException as error:  # noqa: BLE001 - handed to the producer
                    self._fail(error)
            block.reset()
            pool.put(block)

    def _seal(self, kind: PackKind, block: Block, compressor: zstandard.ZstdCompressor) -> None:
        plain = block.end
        payload: Bytes = memoryview(block.buffer)[:plain]
        codec = Codec.RAW
        frame = compressor.compress(payload)
        if len(frame) < plain * WORTH_COMPRESSING:
            payload, codec = frame, Codec.ZSTD
        size = len(frame) if codec == Codec.ZSTD else plain
        stream = self._streams[kind]
        placed = self._reserve(stream, kind, size)
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
            name = self._layout.segment(self._session)
            self._vault.put(name, seal_object(self._keys, ObjectKind.INDEX, name, encode(records)))
            self.counts.segments += 1
            self._index.load(name, records)
            self.loaded.put(records)
