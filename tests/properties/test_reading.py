"""Whatever is read from a drive, in whatever order and with however little memory, is what was written."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from cas.ids import PointId
from cas.model import Extra, Node, Owner, Point
from cas.repository import Repository
from cas.store.trees import write_tree
from cas.store.writer import Writer
from cas.vault.memory import MemoryVault
from mount.inodes import ROOT
from mount.view import MustWait, View
from tests.engine import MACHINE, cheap_keys, make_world

_RNG = random.Random(17)


@dataclass
class _Drive:
    repository: Repository
    point: Point
    contents: list[bytes]


class _Read(NamedTuple):
    file: int
    offset: int
    size: int
    wait: bool


def _add(writer: Writer, data: bytes) -> tuple[bytes, int, int]:
    left = memoryview(data)

    def readinto(view: memoryview) -> int:
        nonlocal left
        count = min(len(view), len(left))
        view[:count] = left[:count]
        left = left[count:]
        return count

    return writer.file(readinto, len(data))


@pytest.fixture(scope="module")
def drive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Drive]:
    """Files of all sizes, one of them sparse, one made of pieces of the others, one of text."""
    datas = [_RNG.randbytes(size) for size in (0, 1, 5000, 16 << 10, 40_000, 700_000, 2_500_000)]
    datas += [_RNG.randbytes(3000) for _ in range(20)]
    datas.append(b"".join(_RNG.choice(datas[5:7])[start : start + 50_000] for start in range(0, 600_000, 50_000)))
    datas.append(b"".join(b"line %d of a text\n" % number for number in range(60_000)))
    with pytest.MonkeyPatch.context() as patch:
        cheap_keys(patch)
        world = make_world(MemoryVault(), tmp_path_factory.mktemp("cache"))
    with world.open() as repository:
        with repository.writer() as writer:
            nodes = []
            for number, data in enumerate(datas):
                content, depth, size = _add(writer, data)
                nodes.append(Node(b"%03d" % number, 0, 0o644, 0, size, 0, 0, 0, content, depth))
            extents = [(1000, 50_000), (51_000, 7), (600_000, 200_000)]
            holes = bytearray(900_000)
            for offset, length in extents:
                holes[offset : offset + length] = datas[6][offset : offset + length]
            content, depth, _ = _add(writer, b"".join(holes[offset : offset + length] for offset, length in extents))
            extra = Extra(extents=extents)
            nodes.append(Node(b"sparse", 0, 0o644, 0, len(holes), 0, 0, 0, content, depth, extra))
            datas.append(bytes(holes))
            root = write_tree(writer.meta, [Owner(0, 0)], nodes)
            writer.finish()
        point = Point(
            id=PointId("1" * 32), machine_id=MACHINE.id, machine="m", started=1, finished=1, paths=[b"/"], root=root
        )
        yield _Drive(repository, point, datas)


_READS = some.lists(
    some.builds(
        _Read,
        some.integers(0, 29),
        some.one_of(some.integers(0, 3_000_000), some.integers(0, 5000)),
        some.one_of(some.integers(0, 1 << 20), some.integers(0, 5000)),
        some.booleans(),
    ),
    max_size=25,
)


@settings(max_examples=60)
@given(reads=_READS, cache=some.sampled_from([1, 50_000, 300_000, 64 << 20]), runs=some.sampled_from([1, 30, 1 << 15]))
def test_any_reads_in_any_order(drive: _Drive, reads: list[_Read], cache: int, runs: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mount.files._OPEN_FILES", 3)
        patch.setattr("mount.files._RUNS_MOST", runs)
        view = View(drive.repository.reader(cache), drive.point)
        names = [b"sparse" if number == 29 else b"%03d" % number for number in range(30)]
        held: list[tuple[bytes | memoryview, bytes]] = []
        for read in reads:
            found = view.lookup(ROOT, names[read.file], hold=True)
            assert found is not None
            expected = drive.contents[read.file][read.offset : read.offset + read.size]
            try:
                got = view.read(found.inode, read.offset, read.size, wait=read.wait)
            except MustWait:
                assert not read.wait
                continue
            assert got == expected
            held.append((got, expected))
        assert all(got == expected for got, expected in held)  # whatever happened to the cache since
        view.close()
