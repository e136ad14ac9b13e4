"""The cache on disk in front of a vault: what it saves, how it is bounded, and what it makes of damage."""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some

from cas.errors import ObjectMissing, PackDamaged
from cas.store.formats import PackKind
from cas.vault.caching import PIECE, CachingVault
from cas.vault.memory import MemoryVault
from tests.engine import World, cheap_keys, make_world
from tests.faults import CountingVault

_PACK = "repositories/ab/data/cd/" + "cd" * 32
_TREE = "repositories/ab/tree/ef/" + "ef" * 32
_CONTENT = random.Random(7).randbytes(9 * PIECE + 1234)
_FILE_BYTES = PIECE + 32


class _Clock:
    now = 1e9

    def __call__(self) -> float:
        self.now += 1  # so that what is used later is used later
        return self.now


def _vaults(directory: Path, limit: int = 1 << 30) -> tuple[CountingVault, CachingVault]:
    inner = MemoryVault()
    for name in (_PACK, _TREE):
        inner.put(name, [_CONTENT])
    counting = CountingVault(inner)
    return counting, CachingVault(counting, directory, limit, _Clock())


def _files(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]


def test_what_was_read_once_is_not_fetched_again(tmp_path: Path) -> None:
    counting, vault = _vaults(tmp_path)
    for name in (_PACK, _TREE):
        assert vault.get(name, 100, PIECE) == _CONTENT[100 : 100 + PIECE]
    assert counting.count("get") == 2
    other = CachingVault(counting, tmp_path, 1 << 30)
    for name in (_PACK, _TREE):
        assert vault.get(name, 5000, 10) == _CONTENT[5000:5010]
        assert other.get(name, PIECE - 5, 10) == _CONTENT[PIECE - 5 : PIECE + 5]
    assert counting.count("get") == 2
    # Of what is only partly there, one read fetches what is missing.
    assert vault.get(_PACK, 0, 5 * PIECE) == _CONTENT[: 5 * PIECE]
    assert counting.operations[-1] == ("get", _PACK, 3 * PIECE)
    assert (vault.hits, vault.misses) == (2 + 2, 2 + 2 + 3)


def test_the_end_of_a_pack_is_never_kept(tmp_path: Path) -> None:
    _, vault = _vaults(tmp_path)
    for _ in range(2):
        assert vault.get(_PACK, 9 * PIECE - 10, 5000) == _CONTENT[9 * PIECE - 10 :]
        assert vault.get(_PACK, len(_CONTENT) + 5, 10) == b""
        assert vault.get(_PACK, 40 * PIECE, 10) == b""
    assert len(_files(tmp_path)) == 1


def test_only_ranges_of_packs_are_kept(tmp_path: Path) -> None:
    _, vault = _vaults(tmp_path)
    vault.put("repositories/ab/points/1", [b"x" * 2 * PIECE])
    for _ in range(2):
        assert vault.get(_PACK) == _CONTENT
        assert vault.get(_PACK, 1000) == _CONTENT[1000:]
        assert vault.get(_PACK, 0, 0) == b""
        assert vault.get("repositories/ab/points/1", 0, PIECE) == b"x" * PIECE
    assert not _files(tmp_path)
    with pytest.raises(ObjectMissing):
        vault.get(_PACK + "00", 0, 10)


@pytest.mark.parametrize(
    "harm",
    [
        lambda data: data[:-1],
        lambda data: data[:20],
        lambda data: b"",
        lambda data: data + b"x",
        lambda data: data[:5000] + bytes([data[5000] ^ 1]) + data[5001:],
        lambda data: bytes([data[0] ^ 1]) + data[1:],
        lambda data: bytes(len(data)),
    ],
    ids=["cut", "cut short", "empty", "longer", "changed", "checksum changed", "zeros"],
)
def test_a_damaged_file_of_the_cache_is_fetched_anew(tmp_path: Path, harm: Callable[[bytes], bytes]) -> None:
    counting, vault = _vaults(tmp_path)
    vault.get(_PACK, 0, PIECE)
    (file,) = _files(tmp_path)
    file.write_bytes(harm(file.read_bytes()))
    assert vault.get(_PACK, 0, PIECE) == _CONTENT[:PIECE]
    assert counting.count("get") == 2
    assert vault.get(_PACK, 0, PIECE) == _CONTENT[:PIECE]
    assert counting.count("get") == 2


def test_a_file_in_the_place_of_another_is_not_taken_for_it(tmp_path: Path) -> None:
    _, vault = _vaults(tmp_path)
    vault.get(_PACK, 0, 2 * PIECE)
    first, second = sorted(_files(tmp_path))
    first.write_bytes(second.read_bytes())
    assert vault.get(_PACK, 0, 2 * PIECE) == _CONTENT[: 2 * PIECE]


def test_it_is_bounded_and_keeps_what_was_used_last(tmp_path: Path) -> None:
    inner = MemoryVault()
    names = [f"repositories/ab/data/{number:02x}/{number:064x}" for number in range(40)]
    for name in names:
        inner.put(name, [_CONTENT])
    counting = CountingVault(inner)
    limit = 16 * _FILE_BYTES
    clock = _Clock()
    vault = CachingVault(counting, tmp_path, limit, clock)
    for name in names:
        clock.now += 1000
        assert vault.get(name, 0, PIECE) == _CONTENT[:PIECE]
        vault.get(names[0], 0, PIECE)
        assert sum(path.stat().st_size for path in _files(tmp_path)) <= limit
    assert counting.count("get", names[0]) == 1
    assert len(_files(tmp_path)) >= 12
    other = CachingVault(counting, tmp_path, limit, clock)  # which must find out how much is there
    for name in names[:10]:
        other.get(name, PIECE, PIECE)
        assert sum(path.stat().st_size for path in _files(tmp_path)) <= limit
    assert CachingVault(counting, tmp_path / "none", 1000).get(names[0], 0, 10) == _CONTENT[:10]
    assert not _files(tmp_path / "none")


def test_a_directory_that_cannot_be_used_is_told_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    directory = tmp_path / "file" / "cache"
    directory.parent.write_bytes(b"")
    counting, vault = _vaults(directory)
    with caplog.at_level(logging.WARNING):
        for number in range(200):
            assert vault.get(_PACK, number, 10) == _CONTENT[number : number + 10]
    assert [record.name for record in caplog.records] == ["backdrive.vault"]
    assert counting.count("get") == 200


def test_what_killed_processes_left_goes(tmp_path: Path) -> None:
    _, vault = _vaults(tmp_path)
    left, young = (tmp_path / "00" / f"tmp-{number}-{number:016x}" for number in (1, 2))
    left.parent.mkdir()
    for path, used in ((left, 1.0), (young, 1e9)):
        path.write_bytes(b"half")
        os.utime(path, (used, used))
    vault.get(_PACK, 0, 10)
    assert young.exists() and not left.exists()


def test_deleting_forgets(tmp_path: Path) -> None:
    _, vault = _vaults(tmp_path)
    vault.get(_PACK, 0, 3 * PIECE)
    vault.get(_TREE, 0, PIECE)
    vault.delete(_PACK)
    assert len(_files(tmp_path)) == 1
    with pytest.raises(ObjectMissing):
        vault.get(_PACK, 0, 10)


def test_many_readers_of_a_small_cache_read_right(tmp_path: Path) -> None:
    counting, vault = _vaults(tmp_path, 4 * _FILE_BYTES)
    other = CachingVault(counting, tmp_path, 4 * _FILE_BYTES)

    def read(seed: int) -> None:
        numbers = random.Random(seed)
        for _ in range(60):
            start, length = numbers.randrange(len(_CONTENT)), numbers.randrange(1, 2 * PIECE)
            reader = (vault, other)[seed % 2]
            assert reader.get(numbers.choice((_PACK, _TREE)), start, length) == _CONTENT[start : start + length]

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(read, range(8)))


@given(ranges=some.lists(some.tuples(some.integers(0, len(_CONTENT) + 10), some.integers(0, 3 * PIECE)), max_size=8))
def test_any_range(tmp_path_factory: pytest.TempPathFactory, ranges: list[tuple[int, int]]) -> None:
    _, vault = _vaults(tmp_path_factory.mktemp("cache"), 6 * _FILE_BYTES)
    for start, length in ranges:
        assert vault.get(_PACK, start, length) == _CONTENT[start : start + length]


def test_old_damage_does_not_outlive_the_repair_of_the_vault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cheap_keys(monkeypatch)
    memory = MemoryVault()
    world: World = make_world(memory, tmp_path / "cache")
    data = random.Random(3).randbytes(3 * PIECE)
    with world.open() as repository, repository.writer() as writer:
        chunks = [writer.chunk(data[start : start + 10_000]) for start in range(0, len(data), 10_000)]
        writer.finish()
        names = [entry.name for entry in memory.list(repository.layout.packs(PackKind.DATA))]
    good = {name: memory.get(name) for name in names}
    for name, pack in good.items():
        memory._objects[name] = pack[:-20_000] + bytes(20_000)
    vault = CachingVault(memory, tmp_path / "disk", 1 << 30)
    with world.open(vault) as repository:
        with pytest.raises(PackDamaged):
            list(repository.reader().chunks(chunks))
        memory._objects.update(good)
        assert b"".join(repository.reader().chunks(chunks)) == data
        before = vault.misses
        for file in _files(tmp_path / "disk"):
            file.write_bytes(b"x" * file.stat().st_size)
        assert b"".join(repository.reader().chunks(chunks)) == data
        assert vault.misses > before
