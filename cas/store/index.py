"""The machine's index: where every chunk is, in an LMDB file that is only a cache of the vault's index segments.

Five tables: `chunks` (chunk id -> pack number, block number, offset and length in the plain block), `packs` (number ->
id, kind, size, salt), `blocks` (pack number, block number -> offset, sealed and plain bytes, codec), `segments` (the
names of those loaded) and `others` (further places of chunks that are in several packs), besides `objects` (small
sealed vault objects) and `about` (this file itself, and marks). LMDB maps the file into memory: ten million chunks are
looked up without being resident.
"""

from __future__ import annotations

import os
import shutil
import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final, NamedTuple, TypeVar
from weakref import WeakSet

import lmdb

from cas.errors import CacheUnusable, NoSpace
from cas.ids import CHUNK_ID_BYTES, ChunkId, PackId
from cas.store.formats import PACK_HEADER_BYTES, PackKind, PackRecord
from cas.store.index_file import Gate, Membership, cut_short
from cas.store.index_settle import RETIRED, State, condemned_in, keep_others, settle

_CHUNK: Final = struct.Struct("<IHII")  # pack number, block number, offset in the plain block, length
_PACK: Final = struct.Struct("<32sBQ32s")  # id, kind (with RETIRED in it where the pack is gone), size, salt
_KIND_AT: Final = 32  # in such a row
_BLOCK_KEY: Final = struct.Struct(">IH")
_BLOCK: Final = struct.Struct("<QIIB")  # offset, sealed, plain, codec
_NUMBER: Final = struct.Struct(">I")
_LEAST_FREE_BYTES: Final = 1 << 20
_NEXT_PACK: Final = b"next pack"
_LAYOUT: Final = b"2"  # of this file; another layout is rebuilt from the vault
# Address space, not disk: the file grows as it fills. Where that much cannot be mapped, less is tried.
_MAP_BYTES: Final = 1 << 36 if os.name != "nt" else 1 << 28
_LEAST_MAP_BYTES: Final = 1 << 26

T = TypeVar("T")


class Location(NamedTuple):
    """Where a chunk is. `pack` and `block` are numbers of this index, meaningless elsewhere."""

    pack: int
    block: int
    offset: int
    length: int


class PackInfo(NamedTuple):
    """What the index knows of a pack."""

    id: PackId
    kind: PackKind
    size: int
    salt: bytes


class BlockInfo(NamedTuple):
    """Where a block lies in its pack, in bytes."""

    offset: int
    sealed: int
    plain: int
    codec: int


def _free_bytes(path: Path) -> int:
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return _LEAST_FREE_BYTES


def _translate(error: lmdb.Error | OSError, path: Path) -> CacheUnusable | NoSpace:
    text = str(error)
    # LMDB calls a write that came up short an input/output error, which a full disk causes.
    full = "Input/output error" in text and _free_bytes(path) < _LEAST_FREE_BYTES
    if isinstance(error, lmdb.DiskError) or "No space left" in text or full:
        return NoSpace("cache", str(path))
    return CacheUnusable(f"The index cache {path} cannot be used: {text.rstrip('.')}.")


class Index:
    """The chunk index of one repository on this machine. Thread safe; several processes may share the file."""

    def __init__(self, directory: Path) -> None:
        """Open or create it in `directory`. A file that LMDB refuses is thrown away: it is only a cache.

        Raises CacheUnusable, NoSpace.
        """
        self._directory = directory
        self._write_lock = threading.Lock()
        self._gate = Gate()
        self._members: WeakSet[Membership] = WeakSet()
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            try:
                self._open()
            except (lmdb.InvalidError, lmdb.CorruptedError, lmdb.VersionMismatchError):
                shutil.rmtree(directory)
                directory.mkdir(mode=0o700)
                self._open()
        except (lmdb.Error, OSError) as error:
            raise _translate(error, directory) from None

    def _open(self) -> None:
        if cut_short(self._directory / "data.mdb"):
            raise lmdb.CorruptedError("it is cut short")
        size = _MAP_BYTES
        while True:
            try:
                self._environment = lmdb.open(
                    str(self._directory), map_size=size, max_dbs=7, metasync=False, max_readers=512, mode=0o600
                )
                break
            except (lmdb.MemoryError, MemoryError):
                if size <= _LEAST_MAP_BYTES:
                    raise
                size //= 4
        env = self._environment
        while True:
            try:
                self._open_tables(env)
                return
            except lmdb.MapResizedError:  # another process has grown it since
                env.set_mapsize(0)

    def _open_tables(self, env: lmdb.Environment) -> None:
        self._about = env.open_db(b"about")
        self._chunks = env.open_db(b"chunks")
        self._packs = env.open_db(b"packs")
        self._blocks = env.open_db(b"blocks")
        self._segments = env.open_db(b"segments")
        self._objects = env.open_db(b"objects")
        self._others = env.open_db(b"others")
        with env.begin(write=True) as txn:
            if txn.get(b"layout", db=self._about) != _LAYOUT:
                self._empty(txn)

    def _empty(self, txn: lmdb.Transaction) -> None:
        """Forget everything, but never give a pack number twice: readers that are open remember blocks by it."""
        next_number = txn.get(_NEXT_PACK, db=self._about)
        for table in self._tables():
            txn.drop(table, delete=False)
        txn.put(b"layout", _LAYOUT, db=self._about)
        if next_number is not None:
            txn.put(_NEXT_PACK, bytes(next_number), db=self._about)

    def _tables(self) -> list[lmdb._Database]:
        return [
            self._chunks,
            self._packs,
            self._blocks,
            self._segments,
            self._objects,
            self._others,
            self._about,
        ]

    def close(self) -> None:
        """Give back the map. The index is not used afterwards."""
        self._environment.close()

    # --- reading ---

    def _resize(self, size: int) -> None:
        """Change the size of the map; 0 takes what another process has made it. Ends every read transaction."""
        with self._gate.alone(), ExitStack() as stack:
            for member in list(self._members):
                stack.enter_context(member.lock)
            self._environment.set_mapsize(size)

    def _translated(self, error: lmdb.Error | OSError) -> CacheUnusable | NoSpace:
        return _translate(error, self._directory)

    @contextmanager
    def _reading(self) -> Iterator[lmdb.Transaction]:
        try:
            while True:
                with self._gate:
                    try:
                        txn = self._environment.begin()
                    except lmdb.MapResizedError:  # another process has grown it
                        pass
                    else:
                        with txn:
                            yield txn
                        return
                self._resize(0)
        except lmdb.Error as error:
            raise self._translated(error) from None

    def find(self, chunk: ChunkId) -> Location | None:
        """Where the chunk is, or None."""
        with self._reading() as txn:
            value = txn.get(chunk, db=self._chunks)
        return None if value is None else Location._make(_CHUNK.unpack(value))

    def find_many(self, chunks: Iterable[ChunkId]) -> list[Location | None]:
        """As `find`, in one transaction."""
        unpack = _CHUNK.unpack
        with self._reading() as txn:
            get = txn.get
            values = [get(chunk, db=self._chunks) for chunk in chunks]
        return [None if value is None else Location._make(unpack(value)) for value in values]

    def pack(self, number: int) -> PackInfo:
        """The pack of a number that `find` gave."""
        with self._reading() as txn:
            value = txn.get(_NUMBER.pack(number), db=self._packs)
        if value is None:
            raise CacheUnusable(f"The index cache {self._directory} contradicts itself.")
        pack, kind, size, salt = _PACK.unpack(value)
        return PackInfo(PackId(pack), PackKind(kind & ~RETIRED), size, salt)

    def block(self, pack: int, block: int) -> BlockInfo:
        """The block of numbers that `find` gave."""
        with self._reading() as txn:
            value = txn.get(_BLOCK_KEY.pack(pack, block), db=self._blocks)
        if value is None:
            raise CacheUnusable(f"The index cache {self._directory} contradicts itself.")
        return BlockInfo._make(_BLOCK.unpack(value))

    def blocks(self, pack: int) -> list[BlockInfo]:
        """All blocks of a pack, in the order in which they lie in it."""
        prefix = _NUMBER.pack(pack)
        found = []
        with self._reading() as txn, txn.cursor(db=self._blocks) as cursor:
            if cursor.set_range(prefix):
                for key, value in cursor:
                    if key[:4] != prefix:
                        break
                    found.append(BlockInfo._make(_BLOCK.unpack(value)))
        return found

    def packs(self) -> list[tuple[int, PackInfo]]:
        """Every pack with its number."""
        found = []
        with self._reading() as txn, txn.cursor(db=self._packs) as cursor:
            for key, value in cursor:
                pack, kind, size, salt = _PACK.unpack(value)
                if kind & RETIRED:
                    continue
                found.append((_NUMBER.unpack(key)[0], PackInfo(PackId(pack), PackKind(kind), size, salt)))
        return found

    def chunk_count(self) -> int:
        """How many chunks are known."""
        with self._reading() as txn:
            return int(txn.stat(db=self._chunks)["entries"])

    def segments(self) -> set[str]:
        """The names of the index segments that are loaded."""
        with self._reading() as txn, txn.cursor(db=self._segments) as cursor:
            return {bytes(key).decode() for key in cursor.iternext(values=False)}

    def places(self) -> Iterator[Location]:
        """Where each chunk is, in the order of their ids, from one state of the index. Read it to its end."""
        unpack = _CHUNK.unpack
        with self._reading() as txn, txn.cursor(db=self._chunks) as cursor:
            for value in cursor.iternext(keys=False):
                yield Location._make(unpack(value))

    def condemned(self) -> set[bytes]:
        """The ids of the packs that `settle` was told are condemned."""
        with self._reading() as txn:
            return condemned_in(txn, self._about)

    def membership(self, absent: frozenset[bytes] = frozenset()) -> Membership:
        """A quick test whether chunks are known, for one thread, over a state that can be renewed. Close it.

        Chunks in the packs `absent`, by their ids, count as unknown.
        """

        def absent_rows(txn: lmdb.Transaction) -> frozenset[bytes]:
            numbers = (txn.get(b"pack " + pack, db=self._about) for pack in absent)
            return frozenset(bytes(number)[::-1] for number in numbers if number is not None)

        member = Membership(self._environment, self._chunks, self._resize, self._translated, absent_rows)
        self._members.add(member)
        return member

    # --- sealed objects and notes ---

    def recall(self, name: str) -> bytes | None:
        """The bytes of a vault object that `remember` was given, still sealed."""
        with self._reading() as txn:
            value = txn.get(name.encode(), db=self._objects)
        return None if value is None else bytes(value)

    def remember(self, objects: dict[str, bytes]) -> None:
        """Keep small immutable vault objects, sealed as they are, so that they need not be fetched again."""
        rows = sorted((name.encode(), data) for name, data in objects.items())
        self._writing(lambda txn: [txn.put(key, data, db=self._objects) for key, data in rows])

    def remembered(self, prefix: str) -> list[str]:
        """The names of the objects kept that start with `prefix`."""
        start = prefix.encode()
        found = []
        with self._reading() as txn, txn.cursor(db=self._objects) as cursor:
            if cursor.set_range(start):
                for key in map(bytes, cursor.iternext(values=False)):
                    if not key.startswith(start):
                        break
                    found.append(key.decode())
        return found

    def note(self, key: str) -> None:
        """Set a mark that outlives the process."""
        self._writing(lambda txn: txn.put(b"note " + key.encode(), b"", db=self._about))

    def forget_note(self, key: str) -> None:
        """Remove a mark; one that is not there is no error."""
        self._writing(lambda txn: txn.delete(b"note " + key.encode(), db=self._about))

    def notes(self, prefix: str) -> list[str]:
        """The marks that start with `prefix`."""
        start = b"note " + prefix.encode()
        found = []
        with self._reading() as txn, txn.cursor(db=self._about) as cursor:
            if cursor.set_range(start):
                for key in map(bytes, cursor.iternext(values=False)):
                    if not key.startswith(start):
                        break
                    found.append(key[5:].decode())
        return found

    # --- writing ---

    def _writing(self, work: Callable[[lmdb.Transaction], T]) -> T:
        """Run `work` in a write transaction; grow the map and run it again where it is full."""
        with self._write_lock:
            while True:
                try:
                    with self._environment.begin(write=True) as txn:
                        return work(txn)
                except lmdb.MapResizedError:
                    self._resize(0)
                except lmdb.MapFullError:
                    self._resize(self._environment.info()["map_size"] * 2)
                except (lmdb.Error, OSError) as error:
                    raise self._translated(error) from None

    def load(self, segment: str, records: list[PackRecord]) -> None:
        """Take in the packs of one index segment, whole or not at all. A chunk that is known stays where it was, unless
        that pack is condemned.

        Raises CacheUnusable, NoSpace.
        """

        def work(txn: lmdb.Transaction) -> None:
            next_number = txn.get(_NEXT_PACK, db=self._about)
            free = 0 if next_number is None else _NUMBER.unpack(next_number)[0]
            known_packs = self._known_packs(txn, records)
            chunks: list[tuple[bytes, bytes]] = []
            blocks: list[tuple[bytes, bytes]] = []
            for record in records:
                if record.id in known_packs:
                    continue
                known_packs.add(record.id)
                retired = txn.get(b"pack " + record.id, db=self._about)
                number = free if retired is None else _NUMBER.unpack(retired)[0]
                free += retired is None
                txn.put(
                    _NUMBER.pack(number), _PACK.pack(record.id, record.kind, record.size, record.salt), db=self._packs
                )
                txn.put(b"pack " + record.id, _NUMBER.pack(number), db=self._about)
                _entries(number, record, chunks, blocks)
            txn.put(_NEXT_PACK, _NUMBER.pack(free), db=self._about)
            chunks.sort()  # LMDB fills pages from sorted keys several times faster
            with txn.cursor(db=self._chunks) as cursor:
                consumed, added = cursor.putmulti(chunks, overwrite=False)
            if added < consumed:
                keep_others(self._state(txn), chunks)
            with txn.cursor(db=self._blocks) as cursor:
                cursor.putmulti(blocks)
            txn.put(segment.encode(), b"", db=self._segments)

        self._writing(work)

    def _known_packs(self, txn: lmdb.Transaction, records: list[PackRecord]) -> set[bytes]:
        known = set()
        for record in records:
            number = txn.get(b"pack " + record.id, db=self._about)
            row = None if number is None else txn.get(number, db=self._packs)
            if row is not None and not row[_KIND_AT] & RETIRED:
                known.add(record.id)
        return known

    def _state(self, txn: lmdb.Transaction) -> State:
        return State(txn, self._chunks, self._others, self._packs, self._blocks, self._about)

    def settle(self, condemned: set[bytes], keep: set[bytes] | None, segments: set[str] | None) -> None:
        """Follow what a collect did, in one step, so that nobody who reads meanwhile misses a chunk.

        Chunks in packs of `condemned` are from now on looked for elsewhere, where they are elsewhere too. Packs that
        are not in `keep` (None: all are) are forgotten; their numbers can be used until the next call. Segments that
        are not in `segments` (None: all are) are forgotten. Raises CacheUnusable, NoSpace.
        """

        def work(txn: lmdb.Transaction) -> None:
            settle(self._state(txn), condemned, keep)
            if segments is not None:
                with txn.cursor(db=self._segments) as cursor:
                    gone = [key for key in map(bytes, cursor.iternext(values=False)) if key.decode() not in segments]
                for key in gone:
                    txn.delete(key, db=self._segments)

        self._writing(work)

    def clear(self) -> None:
        """Forget everything but which pack numbers were given."""
        self._writing(self._empty)


def _entries(
    number: int, record: PackRecord, chunks: list[tuple[bytes, bytes]], blocks: list[tuple[bytes, bytes]]
) -> None:
    """Append the table rows of one pack."""
    place = PACK_HEADER_BYTES
    pack_chunk = _CHUNK.pack
    for position, block in enumerate(record.blocks):
        blocks.append((_BLOCK_KEY.pack(number, position), _BLOCK.pack(place, block.sealed, block.plain, block.codec)))
        place += block.sealed
        offset = start = 0
        for length in block.lengths:
            chunks.append((block.ids[start : start + CHUNK_ID_BYTES], pack_chunk(number, position, offset, length)))
            start += CHUNK_ID_BYTES
            offset += length
