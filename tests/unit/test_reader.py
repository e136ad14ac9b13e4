"""Reading blocks: at the same time, within bounds, ahead, and after packs have moved."""

from __future__ import annotations

import random
import threading
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from cas.errors import ChunkMissing, PackDamaged
from cas.ids import ChunkId
from cas.repository import Repository
from cas.store import block_reader
from cas.store.blocks import BlockCache, allocate
from cas.store.content import FileContent
from cas.store.formats import PackKind
from cas.store.layout import Layout
from cas.store.missing import SecondLook
from cas.store.reader import Reader
from cas.vault.base import Vault
from cas.vault.memory import MemoryVault
from mount.ahead import Prefetcher
from mount.files import LongFile, Windows
from tests.engine import World, cheap_keys, make_world
from tests.faults import CountingVault, WrappingVault, _Progress

_RNG = random.Random(11)


class _MeetingVault(WrappingVault):
    """Reads of packs end only when `readers` of them are under way at once."""

    def __init__(self, inner: Vault, readers: int) -> None:
        super().__init__(inner)
        self.barrier = threading.Barrier(readers)
        self.meet = False

    @contextmanager
    def _operation(self, op: str, name: str) -> Iterator[_Progress]:
        if self.meet and op == "get" and "/data/" in name:
            self.barrier.wait(timeout=60)
        yield _Progress()


class _WatchingVault(WrappingVault):
    """Notes what a reader holds while packs are read."""

    reader: Reader | None = None

    def __init__(self, inner: Vault) -> None:
        super().__init__(inner)
        self.lock = threading.Lock()
        self.under_way = 0
        self.most_under_way = 0
        self.most_held = 0

    @contextmanager
    def _operation(self, op: str, name: str) -> Iterator[_Progress]:
        with self.lock:
            self.under_way += op == "get"
            self.most_under_way = max(self.most_under_way, self.under_way)
            if self.reader is not None:
                held = sum(cache.size for cache in self.reader._blocks._caches.values())
                self.most_held = max(self.most_held, held)
        try:
            threading.Event().wait(0.001)
            yield _Progress()
        finally:
            with self.lock:
                self.under_way -= op == "get"


@dataclass
class _Shelf:
    """Chunks in a repository, with their bytes."""

    world: World
    chunks: dict[ChunkId, bytes]

    def by_block(self, repository: Repository) -> list[ChunkId]:
        """One chunk of each block, in the order of the packs."""
        found: dict[tuple[int, int], ChunkId] = {}
        for chunk in self.chunks:
            place = repository.index.find(chunk)
            assert place is not None
            found.setdefault((place.pack, place.block), chunk)
        return [found[key] for key in sorted(found)]


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> _Shelf:
    cheap_keys(monkeypatch)
    world = make_world(MemoryVault(), tmp_path / "cache")
    return _Shelf(world, _write(world, [_RNG.randbytes(_RNG.randrange(2000, 12_000)) for _ in range(150)]))


def _write(world: World, datas: Collection[bytes], cache: Path | None = None) -> dict[ChunkId, bytes]:
    with world.open(cache=cache) as repository, repository.writer() as writer:
        chunks = {writer.chunk(data): data for data in datas}
        writer.finish()
    return chunks


def _packs_and_segments(world: World) -> list[str]:
    layout = Layout(world.id)
    prefixes = [layout.index, *(layout.packs(kind) for kind in PackKind)]
    return [entry.name for prefix in prefixes for entry in world.vault.list(prefix)]


def _repack(shelf: _Shelf, cache: Path) -> None:
    """As a collect does in the end: the same chunks are in other packs, and the packs and segments of before are gone.

    The index in `cache` has never heard of them.
    """
    vault = shelf.world.vault
    before = _packs_and_segments(shelf.world)
    _write(shelf.world, list(shelf.chunks.values())[::-1], cache)
    for name in before:
        vault.delete(name)


# --- many at once -----------------------------------------------------------------------------------------------------


def test_readers_of_different_blocks_read_the_vault_at_the_same_time(shelf: _Shelf) -> None:
    vault = _MeetingVault(shelf.world.vault, 8)
    with shelf.world.open(vault) as repository:
        chunks = shelf.by_block(repository)[:8]
        reader = repository.reader()
        vault.meet = True
        with ThreadPoolExecutor(8) as pool:  # with one of them waiting for another, the barrier would break
            assert [bytes(data) for data in pool.map(reader.chunk, chunks)] == [shelf.chunks[c] for c in chunks]


def test_a_block_that_many_want_is_fetched_once(shelf: _Shelf) -> None:
    vault = CountingVault(shelf.world.vault)
    with shelf.world.open(vault) as repository:
        reader = repository.reader()
        vault.reset()
        start = threading.Barrier(8)
        chunk = next(iter(shelf.chunks))

        def read(_: int) -> bytes:
            start.wait()
            return bytes(reader.chunk(chunk))

        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(read, range(8))) == {shelf.chunks[chunk]}
        assert vault.count("get") == reader.counts.reads == 1
        assert reader.counts.hits + reader.counts.misses == 8


def test_what_is_opened_and_under_way_stays_within_the_bounds(shelf: _Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_reader, "_MOVING_MOST", 60_000)  # two blocks: each has 20 to 32 KiB
    vault = _WatchingVault(shelf.world.vault)
    with shelf.world.open(vault) as repository:
        vault.reader = reader = repository.reader(200 << 10)

        def read(seed: int) -> None:
            numbers = random.Random(seed)
            for chunk in numbers.sample(sorted(shelf.chunks), 60):
                assert reader.chunk(chunk) == shelf.chunks[chunk]

        with ThreadPoolExecutor(12) as pool:
            list(pool.map(read, range(12)))
    assert vault.most_under_way == 2
    assert 100 << 10 < vault.most_held <= 150 << 10  # three quarters of it are for data


def test_a_cache_smaller_than_a_block_reads_all_the_same(shelf: _Shelf) -> None:
    with shelf.world.open() as repository:
        reader = repository.reader(1)
        with ThreadPoolExecutor(4) as pool:
            assert [bytes(data) for data in pool.map(reader.chunk, shelf.chunks)] == list(shelf.chunks.values())


def test_bytes_that_somebody_holds_never_change(shelf: _Shelf) -> None:
    with shelf.world.open() as repository:
        reader = repository.reader(64 << 10)
        held = [reader.chunk(chunk)[10:20] for chunk in shelf.chunks]
        assert held == [data[10:20] for data in shelf.chunks.values()]


def test_the_block_cache_uses_buffers_again_but_not_those_that_are_seen() -> None:
    cache = BlockCache(4 * 16384)
    buffers = []
    for number in range(4):
        taken = cache.take(16_000)
        assert taken is not None
        buffer = allocate(taken, 16_000)
        buffer[:1] = bytes([number])
        cache.put((0, number), memoryview(buffer)[:16_000].toreadonly(), buffer)
        buffers.append(buffer)
    seen = cache.get((0, 1))
    assert seen is not None and len(seen) == 16_000 and seen.readonly
    assert cache.get((0, 0)) is not None  # now 2 was used longest ago, but 1 would be next
    again = [cache.take(16_000) for _ in range(3)]
    assert [buffer is buffers[number] for buffer, number in zip(again, (2, 3, 0), strict=True)] == [True] * 3
    assert cache.take(16_000) is None and cache.size == 4 * 16384
    assert seen[0] == 1 and (0, 1) in cache and len(cache) == 1
    assert again[0] is not None
    cache.give_back(16_000, again[0])
    assert cache.take(10_000) is buffers[2]
    with pytest.raises(TypeError):
        seen[0] = 2


def test_damage_hits_whoever_wants_the_block_and_no_other(shelf: _Shelf) -> None:
    with shelf.world.open() as repository:
        chunks = shelf.by_block(repository)
        place = repository.index.find(chunks[1])
        assert place is not None and place.block == 1
        where, info = repository.index.block(place.pack, 1), repository.index.pack(place.pack)
        memory = shelf.world.vault
        assert isinstance(memory, MemoryVault)
        name = repository.layout.pack(info.kind, info.id)
        pack = bytearray(memory._objects[name])
        pack[where.offset + 5] ^= 1
        memory._objects[name] = bytes(pack)
        reader = repository.reader()
        blocks = len(repository.index.blocks(place.pack))
        assert reader.open_ahead(place.pack, 0, blocks - 1) == blocks
        assert reader.counts.reads == 1
        for number in range(blocks):
            assert (reader.peek_block(place.pack, number) is None) == (number == 1)
        for _ in range(2):
            with pytest.raises(PackDamaged):
                reader.chunk(chunks[1])


def test_opening_ahead_leaves_out_what_is_open_and_stops_without_room(shelf: _Shelf) -> None:
    vault = CountingVault(shelf.world.vault)
    with shelf.world.open(vault) as repository:
        pack = next(number for number, info in repository.index.packs() if info.kind == PackKind.DATA)
        blocks = len(repository.index.blocks(pack))
        assert blocks >= 4
        reader = repository.reader()
        reader.block(pack, 1)
        vault.reset()
        assert reader.open_ahead(pack, 0, blocks - 1) == 1
        assert reader.open_ahead(pack, 1, blocks - 1) == blocks
        assert vault.count("get") == 2 and reader.counts.ahead == blocks - 1
        small = repository.reader(64 << 10)  # room for one block of data
        assert small.open_ahead(pack, 0, blocks - 1) == blocks
        assert small.counts.ahead == 1


def test_what_was_written_behind_a_block_goes_on_in_the_next_pack(shelf: _Shelf) -> None:
    with shelf.world.open() as repository:
        reader = repository.reader()
        packs = [number for number, info in repository.index.packs() if info.kind == PackKind.DATA]
        counts = [len(repository.index.blocks(number)) for number in packs]
        first, second = packs[:2]
        assert reader.following(first, counts[0] - 2, 1 << 30, 2) == [
            (first, counts[0] - 1, counts[0] - 1),
            (second, 0, 0),
        ]
        assert reader.following(first, 0, 1, 5) == [(first, 1, 1)]
        assert reader.following(packs[-1], counts[-1] - 1, 1 << 30, 5) == []


# --- what has moved ---------------------------------------------------------------------------------------------------


def test_chunks_are_found_again_where_a_collect_put_them(shelf: _Shelf, tmp_path: Path) -> None:
    with shelf.world.open() as repository:
        asked = 0

        def follow() -> Collection[bytes]:
            nonlocal asked
            asked += 1
            return repository.follow()

        arguments = (repository.vault, repository.layout, repository.keys, repository.index, 64 << 10)
        reader = Reader(*arguments, on_missing=follow)
        chunks = list(shelf.chunks)
        assert reader.chunk(chunks[0]) == shelf.chunks[chunks[0]]
        _repack(shelf, tmp_path / "other")
        with pytest.raises(ChunkMissing, match="is gone"):
            list(Reader(*arguments).chunks(chunks))
        with ThreadPoolExecutor(8) as pool:
            assert [bytes(data) for data in pool.map(reader.chunk, chunks)] == list(shelf.chunks.values())
        assert asked == 1


def test_an_open_file_is_found_again_too(shelf: _Shelf, tmp_path: Path) -> None:
    data = b"".join(shelf.chunks.values())
    with shelf.world.open() as repository:
        with repository.writer() as writer:
            position = 0

            def readinto(view: memoryview) -> int:
                nonlocal position
                part = data[position : position + len(view)]
                view[: len(part)] = part
                position += len(part)
                return len(part)

            content, depth, size = writer.file(readinto, len(data))
            writer.finish()
        reader = repository.reader(64 << 10)
        prefetcher = Prefetcher(reader)
        file = LongFile(reader, FileContent(reader.chunk, size, content, depth), depth, prefetcher, Windows())
        assert bytes(file.read(0, size)) == data
        pieces = list(FileContent(reader.chunk, size, content, depth).pieces())
        shelf.chunks = {piece.chunk: data[piece.offset : piece.offset + piece.length] for piece in pieces}
        lists = {bytes(reader.chunk(chunk)) for chunk in _lists(reader, content, depth)}
        before = _packs_and_segments(shelf.world)
        with shelf.world.open(cache=tmp_path / "other") as other, other.writer() as writer:
            assert {writer.chunk(piece) for piece in shelf.chunks.values()} == set(shelf.chunks)
            for each in lists:
                writer.meta(each)
            writer.finish()
        for name in before:
            repository.vault.delete(name)
        assert bytes(file.read(0, size)) == data
        prefetcher.close()


def _lists(reader: Reader, content: bytes, depth: int) -> Iterator[ChunkId]:
    if depth:
        for start in range(0, len(content), 40):
            chunk = ChunkId(content[start : start + 32])
            yield chunk
            yield from _lists(reader, bytes(reader.chunk(chunk)), depth - 1)


def test_what_is_lost_is_looked_for_once(shelf: _Shelf) -> None:
    with shelf.world.open() as repository:
        lost = [entry.name for entry in repository.vault.list(repository.layout.packs(PackKind.DATA))]
        for name in lost:
            repository.vault.delete(name)
        vault = CountingVault(repository.vault)
        asked = 0

        def follow() -> Collection[bytes]:
            nonlocal asked
            asked += 1
            return repository.follow()

        reader = Reader(vault, repository.layout, repository.keys, repository.index, 1 << 20, follow)
        for chunk in [*shelf.chunks, *shelf.chunks, ChunkId(bytes(32))]:
            with pytest.raises(ChunkMissing):
                reader.chunk(chunk)
        assert asked == 1


def test_readers_survive_an_index_made_anew(shelf: _Shelf) -> None:
    with shelf.world.open() as repository:
        reader = repository.reader(100 << 10)
        ended = threading.Event()

        def read(seed: int) -> int:
            count = 0
            while not ended.is_set() or not count:
                for chunk in random.Random(seed).sample(sorted(shelf.chunks), 40):
                    assert reader.chunk(chunk) == shelf.chunks[chunk]
                    count += 1
            return count

        with ThreadPoolExecutor(4) as pool:
            reading = [pool.submit(read, seed) for seed in range(4)]
            repository.rebuild()
            ended.set()
            assert all(each.result() for each in reading)


def test_a_block_in_the_cache_is_never_taken_for_another_of_the_same_number(shelf: _Shelf) -> None:
    more = _write(shelf.world, [_RNG.randbytes(9000) for _ in range(60)])
    with shelf.world.open() as repository:
        reader = repository.reader()
        before = {chunk: reader.find(chunk) for chunk in more}
        assert [bytes(data) for data in reader.chunks(more)] == list(more.values())
        names = sorted(repository.index.segments())
        repository.index.clear()
        for name in reversed(names):
            repository.index.load(name, repository.segment(name))
        everything = {**shelf.chunks, **more}
        assert [bytes(data) for data in reader.chunks(everything)] == list(everything.values())
        assert not {reader.find(chunk) for chunk in everything} & set(before.values())


def test_pack_numbers_go_on_where_another_version_left_its_index(
    shelf: _Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    with shelf.world.open() as repository:
        before = {number for number, _ in repository.index.packs()}
    monkeypatch.setattr("cas.store.index._LAYOUT", b"another")
    with shelf.world.open() as repository:
        repository.refresh()
        after = {number for number, _ in repository.index.packs()}
        assert [bytes(data) for data in repository.reader().chunks(shelf.chunks)] == list(shelf.chunks.values())
    assert len(after) == len(before) and min(after) > max(before)


class _Time:
    now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_the_index_is_not_brought_up_to_date_all_the_time() -> None:
    time, times, lost = _Time(), [], set[bytes]()

    def refresh() -> set[bytes]:
        times.append(time.now)
        return lost

    look = SecondLook(refresh, time, time.sleep)
    assert look.for_pack("aa", 0) and times == [0.0]
    assert look.for_pack("bb", 0) and times == [0.0]  # it was brought up to date since
    assert not look.for_chunk("cc", 1) and times == [0.0]  # no segment came since just now
    assert look.for_pack("bb", 1) and times == [0.0, 2.0]  # waited for its turn
    lost.add(b"\xdd")
    time.now = 10
    assert look.for_chunk("cc", 2) and times[-1] == 10
    assert not look.for_pack("dd", 3)
    look.was_in_vain("cc")
    time.now = 39
    assert not look.for_chunk("cc", 3)
    time.now = 41
    assert look.for_chunk("cc", 3)
    assert not SecondLook(None).for_pack("aa", 0)
