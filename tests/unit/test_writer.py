"""Chunks in, packs out and back: deduplication, bounded memory, and a vault that fails half-way."""

from __future__ import annotations

import io
import random
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pyfastcdc
import pytest
from typing_extensions import Buffer

from cas.errors import BackdriveError, ChunkMissing, NoSpace, PackDamaged, VaultUnavailable
from cas.ids import ChunkId
from cas.repository import Repository, pack_of_name
from cas.store.chunker import Chunker, ChunkSizes
from cas.store.content import FileContent
from cas.store.formats import PackKind
from cas.vault.memory import MemoryVault
from tests.engine import SMALL, World
from tests.faults import CountingVault, Fault, FaultyVault, WrappingVault

RNG = random.Random(12)
SIZES = ChunkSizes(1 << 9, 1 << 12, 1 << 15, 2)


def our_threads() -> set[str]:
    return {thread.name for thread in threading.enumerate()} & {"seal", "put"}


def put_file(repository: Repository, data: bytes) -> tuple[bytes, int]:
    with repository.writer() as writer:
        content, depth, total = writer.file(io.BytesIO(data).readinto, len(data))
        writer.finish()
    assert total == len(data)
    return content, depth


def get_file(repository: Repository, size: int, content: bytes, depth: int) -> bytes:
    reader = repository.reader()
    opened = FileContent(reader.chunk, size, content, depth)
    return b"".join(bytes(reader.verified(piece.chunk)) for piece in opened.pieces())


# --- cutting ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_cutting_a_stream_is_cutting_the_whole(seed: int) -> None:
    rng = random.Random(seed)
    data = rng.randbytes(300_000) + bytes(100_000) + rng.randbytes(50_000)
    chunker = Chunker(SIZES, 12345)
    whole = chunker.cuts(data, final=True)
    assert whole[-1] == len(data)
    assert all(end - start <= SIZES.maximum for start, end in zip([0, *whole], whole, strict=False))
    cuts: list[int] = []
    position, buffer = 0, b""
    given = 0
    while given < len(data):
        step = rng.randint(1, 90_000)
        buffer += data[given : given + step]
        given += step
        ends = chunker.cuts(buffer, final=given >= len(data))
        cuts += [position + end for end in ends]
        if ends:
            position += ends[-1]
            buffer = buffer[ends[-1] :]
    assert cuts == whole


def test_another_seed_cuts_elsewhere() -> None:
    data = RNG.randbytes(500_000)
    one, two = (set(Chunker(SIZES, seed).cuts(data, final=True)) for seed in (1, 3))
    assert len(one & two) < len(one) // 10
    assert Chunker(SIZES, 1).cuts(b"", final=True) == []


def test_the_slow_fallback_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class FastCDC:
        __module__ = "pyfastcdc.py.fastcdc"

    monkeypatch.setattr(pyfastcdc, "FastCDC", FastCDC)
    with pytest.raises(BackdriveError, match="compiled"):
        Chunker(SIZES, 1)


# --- there and back ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, SMALL.single_most, SMALL.single_most + 1, 300_000, 3_000_000])
def test_files_come_back(world: World, size: int) -> None:
    data = RNG.randbytes(size)
    with world.open() as repository:
        content, depth = put_file(repository, data)
        assert get_file(repository, size, content, depth) == data
        before = repository.index.chunk_count()
        assert put_file(repository, data) == (content, depth)
        assert repository.index.chunk_count() == before
    with world.open(cache=world.cache / "other") as repository:
        repository.refresh()
        assert get_file(repository, size, content, depth) == data


def test_short_reads_cut_the_same(world: World) -> None:
    data = RNG.randbytes(400_000)
    stream = io.BytesIO(data)
    with world.open() as repository:
        expected = put_file(repository, data)
        with repository.writer() as writer:
            found = writer.file(
                lambda view: stream.readinto(view[: random.Random(len(view)).randint(1, 5000)]), 400_000
            )
            writer.finish()
    assert found == (*expected, len(data))


def test_equal_chunks_are_stored_once(world: World) -> None:
    with world.open() as repository:
        with repository.writer() as writer:
            ids = {writer.chunk(b"again" * 100) for _ in range(50)}
            meta = writer.meta(b"again" * 100)
            counts = writer.finish()
        assert len(ids) == 1
        assert meta not in ids  # no file can pose as a directory
        assert counts.chunks == 2
        with repository.writer() as writer:
            assert {writer.chunk(b"again" * 100)} == ids
            assert writer.finish().added == 0


def test_kinds_go_to_packs_of_their_own(world: World) -> None:
    with world.open() as repository:
        with repository.writer() as writer:
            data, meta = writer.chunk(RNG.randbytes(100)), writer.meta(RNG.randbytes(100))
            writer.finish()
        kinds = [repository.index.pack(found.pack).kind for found in repository.index.find_many([data, meta]) if found]
        assert kinds == [PackKind.DATA, PackKind.TREE]
        for kind in PackKind:
            for entry in world.vault.list(repository.layout.packs(kind)):
                record = repository.read_record(pack_of_name(entry.name), entry.name, entry.size)
                assert record.kind == kind


def test_what_compresses_is_compressed(world: World) -> None:
    with world.open() as repository, repository.writer() as writer:
        for number in range(200):
            writer.chunk(b"%d line\n" % number * 500)
        counts = writer.finish()
    assert counts.added < counts.added_plain // 5


# --- reading ----------------------------------------------------------------------------------------------------------


def test_a_block_is_fetched_once_for_many_threads(world: World) -> None:
    with world.open() as repository, repository.writer() as writer:
        ids = [writer.chunk(b"%d" % number * 10) for number in range(100)]
        writer.finish()
    counting = CountingVault(world.vault)
    with world.open(counting) as repository:
        reader = repository.reader()
        counting.reset()
        results: list[list[bytes]] = []

        def read() -> None:
            results.append([bytes(data) for data in reader.chunks(ids)])

        threads = [threading.Thread(target=read) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == [[b"%d" % number * 10 for number in range(100)]] * 8
        assert counting.count("get") == reader.counts.reads == 1


def test_the_cache_is_bounded(world: World) -> None:
    datas = [RNG.randbytes(10_000) for _ in range(60)]
    with world.open() as repository:
        with repository.writer() as writer:
            ids = [writer.chunk(data) for data in datas]
            writer.finish()
        reader = repository.reader(cache_bytes=100_000)
        for _ in range(2):
            assert [bytes(data) for data in reader.chunks(ids)] == datas
        assert 0 < reader._blocks._caches[PackKind.DATA].size <= 75_000
        assert reader.counts.misses > 20


def test_reading_what_is_not_there(world: World) -> None:
    with world.open() as repository:
        with repository.writer() as writer:
            chunk = writer.chunk(b"x" * 100)
            writer.finish()
        reader = repository.reader()
        with pytest.raises(ChunkMissing):
            reader.chunk(ChunkId(bytes(32)))
        (name,) = [entry.name for entry in world.vault.list(repository.layout.packs(PackKind.DATA))]
        data = world.vault.get(name)
        world.vault.delete(name)
        with pytest.raises(ChunkMissing):
            reader.chunk(chunk)
        world.vault.put(name, [data[:60]])
        with pytest.raises(PackDamaged):
            reader.chunk(chunk)
        world.vault.delete(name)
        world.vault.put(name, [data])  # a failure is not remembered
        assert reader.verified(chunk) == b"x" * 100


# --- a vault that fails -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["data/", "tree/", "index/"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_failing_vault_ends_the_run(world: World, prefix: str, when: str) -> None:
    with world.open() as repository:
        root = repository.layout.root
    error = NoSpace("vault", "/full")
    plan = [
        Fault(1, error, ops={"put"}, prefix=root + prefix, when="before" if when == "before" else "after", times=99)
    ]
    datas = [RNG.randbytes(3000) for _ in range(400)]
    with world.open(FaultyVault(world.vault, plan)) as repository:
        with pytest.raises(NoSpace), repository.writer() as writer:
            for data in datas:
                writer.chunk(data)
                writer.meta(data)
            writer.finish()
        assert our_threads() == set()
    with world.open() as repository:
        repository.rebuild()
        with repository.writer() as writer:
            ids = [writer.chunk(data) for data in datas]
            writer.finish()
        assert [bytes(data) for data in repository.reader().chunks(ids)] == datas


def test_the_producer_hears_of_it_soon(world: World) -> None:
    """Not at the end of a terabyte."""
    with world.open() as repository:
        prefix = repository.layout.packs(PackKind.DATA)
    error = VaultUnavailable("memory://", "gone")
    taken = 0
    vault = FaultyVault(world.vault, [Fault(1, error, prefix=prefix, times=99)])
    with world.open(vault) as repository, pytest.raises(VaultUnavailable), repository.writer() as writer:
        while taken < 10_000:
            writer.chunk(RNG.randbytes(3000))
            taken += 1
    assert taken * 3000 < 10 * SMALL.pack


class SlowVault(WrappingVault):
    """Takes its time to store anything, and tells how much was handed over meanwhile."""

    def put(self, name: str, parts: Sequence[Buffer]) -> None:
        time.sleep(0.05)
        super().put(name, parts)


def test_a_slow_vault_slows_the_producer(world: World) -> None:
    """What was taken in and is not stored yet fits a few packs and blocks."""
    with world.open(SlowVault(world.vault)) as repository, repository.writer() as writer:
        most = 0
        for _ in range(1000):
            writer.chunk(RNG.randbytes(3000))
            most = max(most, writer.counts.added_plain - writer.counts.added)
        writer.finish()
    assert most < 4 * SMALL.pack + 8 * SMALL.small_block


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("a fault of ours"), None])
def test_an_interrupted_run_keeps_what_it_sent(world: World, error: BaseException | None) -> None:
    datas = [RNG.randbytes(3000) for _ in range(300)]
    with world.open() as repository:
        try:
            with repository.writer() as writer:
                for data in datas:
                    writer.chunk(data)
                while writer.counts.packs < 3:
                    time.sleep(0.01)
                if error is not None:
                    raise error
        except (KeyboardInterrupt, ValueError) as raised:
            assert raised is error
        assert our_threads() == set()
        assert len(repository.index.packs()) >= 3
        with repository.writer() as writer:
            for data in datas:
                writer.chunk(data)
            assert writer.finish().added_plain <= len(datas) * 3000 - 2 * SMALL.pack


def test_two_writers_at_once(world: World, tmp_path: Path) -> None:
    """Two machines: nothing breaks, whoever is first, and both read everything."""
    datas = [RNG.randbytes(2000) for _ in range(300)]
    failures: list[BaseException] = []

    def write(cache: Path, order: list[bytes]) -> None:
        try:
            with world.open(cache=cache) as repository, repository.writer() as writer:
                for data in order:
                    writer.chunk(data)
                writer.finish()
        except BaseException as error:  # noqa: BLE001 - told to the test
            failures.append(error)

    orders = (datas, datas[::-1])
    threads = [threading.Thread(target=write, args=(tmp_path / str(n), order)) for n, order in enumerate(orders)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    for cache in ("0", "1", "new"):
        with world.open(cache=tmp_path / cache) as repository:
            repository.refresh()
            with repository.writer() as writer:
                ids = [writer.chunk(data) for data in datas]
                assert writer.finish().chunks == 0
            assert [bytes(data) for data in repository.reader().chunks(ids)] == datas


def test_many_segments(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ids that wait for their segment are let go as segments are written."""
    monkeypatch.setattr("cas.store.pipeline._SEGMENT_PACKS", 1)
    datas = [RNG.randbytes(2000) for _ in range(1500)]
    assert isinstance(world.vault, MemoryVault)
    with world.open() as repository:
        with repository.writer() as writer:
            ids = [writer.chunk(data) for data in datas]
            again = [writer.chunk(data) for data in datas]
            waiting = len(writer._pending)
            counts = writer.finish()
        assert (again, counts.chunks) == (ids, 1500)
        assert counts.segments >= 10
        assert waiting < 1000
        assert [bytes(data) for data in repository.reader().chunks(ids)] == datas
