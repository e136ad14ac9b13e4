"""Reading ahead: who is taken for a sequential reader, and what is opened for it."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cas.ids import PointId
from cas.model import Node, Owner, Point
from cas.repository import Repository
from cas.store.trees import write_tree
from cas.store.writer import Writer
from cas.vault.memory import MemoryVault
from mount import ahead
from mount.ahead import Streams, Walk
from mount.inodes import ROOT
from mount.view import MustWait, View
from tests.engine import MACHINE, World, cheap_keys, make_world
from tests.faults import CountingVault

_RNG = random.Random(5)
_KIB = 1 << 10
_MIB = 1 << 20


# --- who reads on -----------------------------------------------------------------------------------------------------


def _known(streams: Streams, reads: list[tuple[int, int]]) -> list[bool]:
    return [streams.note(start, start + size) is not None for start, size in reads]


def test_who_reads_on_is_known_at_the_third_read() -> None:
    assert _known(Streams(), [(n * 4096, 4096) for n in range(5)]) == [False, False, True, True, True]


def test_who_jumps_about_is_not_taken_for_a_sequential_reader() -> None:
    places = [_RNG.randrange(2000) * _MIB for _ in range(200)]
    assert not any(_known(Streams(), [(place, 64 * _KIB) for place in places]))
    near = [(place * 64 * _KIB, 4096) for place in (0, 2, 4, 6, 3, 1, 9)]  # gaps between small reads
    assert not any(_known(Streams(), near))


def test_large_requests_may_overtake_each_other() -> None:
    order = [0, 2, 1, 3, 5, 4, 6, 7]
    assert _known(Streams(), [(n * _MIB, _MIB) for n in order])[2:] == [True] * 6


def test_several_readers_of_one_file_are_told_apart() -> None:
    streams = Streams()
    starts = [0, 500 * _MIB, 900 * _MIB]
    for step in range(20):
        for start in starts:
            assert (streams.note(start + step * 4096, start + (step + 1) * 4096) is not None) == (step >= 2)
        _known(streams, [(_RNG.randrange(100, 400) * _MIB, 4096) for _ in range(3)])  # and one who jumps about


# --- what is opened ---------------------------------------------------------------------------------------------------


class _Shelf:
    """Files in the folder of a point."""

    def __init__(self, cache: Path) -> None:
        self.vault = CountingVault(MemoryVault())
        self.world: World = make_world(self.vault, cache)
        self.files: dict[bytes, bytes] = {}
        self.nodes: list[Node] = []

    def add(self, writer: Writer, name: bytes, data: bytes) -> None:
        left = memoryview(data)

        def readinto(view: memoryview) -> int:
            nonlocal left
            count = min(len(view), len(left))
            view[:count] = left[:count]
            left = left[count:]
            return count

        content, depth, size = writer.file(readinto, len(data))
        self.files[name] = data
        self.nodes.append(Node(name, 0, 0o644, 0, size, 0, 0, 0, content, depth))

    def finish(self, writer: Writer, point: str) -> Point:
        root = write_tree(writer.meta, [Owner(0, 0)], self.nodes)
        writer.finish()
        return Point(
            id=PointId(point),
            machine_id=MACHINE.id,
            machine="box",
            started=1,
            finished=1,
            paths=[b"/"],
            root=root,
        )


@pytest.fixture
def small_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[_Shelf, Repository, Point]]:
    """200 small files, in blocks of about eight."""
    cheap_keys(monkeypatch)
    shelf = _Shelf(tmp_path / "cache")
    with shelf.world.open() as repository:
        # With one thread to seal, the blocks lie in the order of the files; with more, in about that order.
        parts = repository.vault, repository.layout, repository.keys, repository.parameters, repository.index
        with Writer(*parts, sealers=1) as writer:
            for number in range(200):
                shelf.add(writer, b"%03d" % number, _RNG.randbytes(4000))
            point = shelf.finish(writer, "1" * 32)
        shelf.vault.reset()
        yield shelf, repository, point


def _inodes(view: View) -> list[int]:
    handle = view.open_directory(ROOT)
    found: list[int] = []
    while batch := list(view.entries(handle, len(found))):
        found += [entry.attributes.inode for entry in batch]
    view.close_directory(handle)
    return found


def _without_waiting(view: View, inode: int, offset: int, size: int) -> bytes | memoryview:
    """What a read gives once others have opened the blocks: it never fetches anything itself."""
    deadline = time.monotonic() + 30
    while True:
        try:
            return view.read(inode, offset, size, wait=False)
        except MustWait:
            assert time.monotonic() < deadline, "nothing was read ahead"
            time.sleep(0.002)


def _settle(view: View) -> None:
    """Wait until what is opened in the background is open."""
    quiet = 0
    while quiet < 3:
        time.sleep(0.002)
        busy = view._reader._blocks._pending or not view._prefetcher._work.empty()
        quiet = 0 if busy else quiet + 1


def test_a_walk_over_small_files_has_the_next_blocks_opened(small_files: tuple[_Shelf, Repository, Point]) -> None:
    shelf, repository, point = small_files
    view = View(repository.reader(), point)
    waited = 0
    for inode, data in zip(_inodes(view), shelf.files.values(), strict=True):
        if waited < 2:  # blocks, until it is known as a walk
            try:
                assert view.read(inode, 0, 5000, wait=False) == data
            except MustWait:
                assert view.read(inode, 0, 5000) == data
                waited += 1
        else:
            assert _without_waiting(view, inode, 0, 5000) == data
    view.close()
    data_reads = sum("/data/" in operation.name for operation in shelf.vault.operations)
    assert 20 < data_reads < 40


def test_a_walk_may_meet_blocks_out_of_order_but_not_jump() -> None:
    walk = Walk(5, 10, 1000)
    assert not walk.goes_on(5, 11, 1000, 0)  # the block was hardly read
    walk.high = 900
    for block in (11, 12, 13, 9, 8, 7):
        assert walk.goes_on(5, block, 1000, 100)
        assert not walk.goes_on(5, block, 1000, 500)  # not from its beginning
    for pack, block in ((5, 14), (5, 6), (9, 0), (6, 3), (4, 0)):
        assert not walk.goes_on(pack, block, 1000, 0)
    assert walk.goes_on(6, 0, 1000, 0) and walk.goes_on(8, 2, 1000, 0)
    walk.step(5, 12, 1000)
    walk.high = 900
    assert walk.goes_on(5, 11, 1000, 0)
    walk.step(5, 11, 1000)
    assert (walk.pack, walk.block, walk.front_block, walk.length) == (5, 11, 12, 2)
    walk.high = 900
    assert walk.goes_on(5, 15, 1000, 0)
    walk.step(6, 0, 1000)
    walk.high = 900
    assert walk.goes_on(5, 16, 1000, 0)
    walk.step(5, 16, 1000)
    assert (walk.front_pack, walk.front_block) == (6, 0)


def test_small_files_read_at_random_cost_their_own_block_only(small_files: tuple[_Shelf, Repository, Point]) -> None:
    shelf, repository, point = small_files
    reader = repository.reader()
    view = View(reader, point)
    inodes = _inodes(view)
    contents = list(shelf.files.values())
    for number in random.Random(1).sample(range(0, 200, 16), 12):
        assert view.read(inodes[number], 0, 5000) == contents[number]
    _settle(view)
    assert reader.counts.ahead == 0
    view.close()


@pytest.fixture(scope="module")
def large_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[_Shelf, Repository, Point]]:
    """One file of 3 MiB, in blocks of 16 to 32 KiB."""
    with pytest.MonkeyPatch.context() as patch:
        cheap_keys(patch)
        shelf = _Shelf(tmp_path_factory.mktemp("cache"))
        with shelf.world.open() as repository:
            with repository.writer() as writer:
                shelf.add(writer, b"large", _RNG.randbytes(3 * _MIB))
                point = shelf.finish(writer, "2" * 32)
            yield shelf, repository, point


def test_two_readers_of_a_large_file_at_once(
    large_file: tuple[_Shelf, Repository, Point], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ahead, "_FIRST_WINDOW", 64 * _KIB)
    monkeypatch.setattr(ahead, "_WINDOW_LEAST", 16 * _KIB)
    shelf, repository, point = large_file
    data = shelf.files[b"large"]
    reader = repository.reader()
    view = View(reader, point)
    (inode,) = _inodes(view)
    for step in range(12):
        for start in (100_000, 2_000_000):
            offset = start + step * 8192
            found = view.read(inode, offset, 8192) if step < 3 else _without_waiting(view, inode, offset, 8192)
            assert found == data[offset : offset + 8192]
    assert reader.counts.ahead >= 6
    view.close()


def test_what_is_read_ahead_stays_within_a_share_of_the_cache(large_file: tuple[_Shelf, Repository, Point]) -> None:
    shelf, repository, point = large_file
    reader = repository.reader(512 * _KIB)
    view = View(reader, point)
    (inode,) = _inodes(view)
    for offset in range(0, 64 * _KIB, 8192):
        view.read(inode, offset, 8192)
    _settle(view)
    held = sum(cache.size for cache in reader._blocks._caches.values())
    assert reader.counts.ahead > 0 and held <= 512 * _KIB
    for offset in itertools.chain(range(64 * _KIB, 3 * _MIB, 100_000), range(0, 3 * _MIB, 65536)):
        assert view.read(inode, offset, 65536) == shelf.files[b"large"][offset : offset + 65536]
    assert sum(cache.size for cache in reader._blocks._caches.values()) <= 512 * _KIB
    view.close()


def test_a_closed_view_reads_nothing_ahead(small_files: tuple[_Shelf, Repository, Point]) -> None:
    shelf, repository, point = small_files
    reader = repository.reader()
    view = View(reader, point)
    inodes = _inodes(view)
    view.close()
    for inode, data in zip(inodes, shelf.files.values(), strict=True):
        assert view.read(inode, 0, 5000) == data
    assert reader.counts.ahead == 0
    assert not [thread for thread in view._prefetcher._threads if thread.is_alive()]
