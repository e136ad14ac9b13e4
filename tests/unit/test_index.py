"""The index file: what it finds, how it grows, and that losing or spoiling it costs nothing."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cas.errors import CacheUnusable
from cas.ids import ChunkId
from cas.store import index as index_module
from cas.store.formats import PACK_HEADER_BYTES, BlockRecord, PackKind, PackRecord
from cas.store.index import Index, Location

RNG = random.Random(9)
ROOT = Path(__file__).resolve().parent.parent.parent


def record(chunks: int, blocks: int = 2, kind: PackKind = PackKind.DATA) -> PackRecord:
    """A pack whose chunks have lengths 1, 2, 3..."""
    found = []
    for _ in range(blocks):
        lengths = list(range(1, chunks + 1))
        ids = RNG.randbytes(32 * chunks)
        found.append(BlockRecord(sum(lengths) + 16, sum(lengths), 0, ids, lengths))
    return PackRecord(RNG.randbytes(32), kind, 10_000, RNG.randbytes(32), found)


def ids_of(packed: PackRecord) -> list[ChunkId]:
    return [ChunkId(block.ids[at : at + 32]) for block in packed.blocks for at in range(0, len(block.ids), 32)]


@pytest.fixture
def small_map(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "_MAP_BYTES", 1 << 17)


def test_what_is_loaded_is_found(tmp_path: Path) -> None:
    index = Index(tmp_path / "index")
    first, second = record(3), record(4, kind=PackKind.TREE)
    index.load("s1", [first, second])
    number = {info.id: number for number, info in index.packs()}
    assert index.find(ids_of(first)[4]) == Location(number[first.id], 1, 1, 2)  # type: ignore[index]
    assert index.find(ChunkId(bytes(32))) is None
    assert index.find_many([ids_of(second)[0], ChunkId(bytes(32))]) == [Location(number[second.id], 0, 0, 1), None]  # type: ignore[index]
    info = index.pack(number[second.id])  # type: ignore[index]
    assert (info.id, info.kind, info.size, info.salt) == (second.id, PackKind.TREE, 10_000, second.salt)
    blocks = index.blocks(number[first.id])  # type: ignore[index]
    assert [block.offset for block in blocks] == [PACK_HEADER_BYTES, PACK_HEADER_BYTES + first.blocks[0].sealed]
    assert blocks[1] == index.block(number[first.id], 1)  # type: ignore[index]
    assert (index.segments(), index.chunk_count()) == ({"s1"}, 14)
    for call in (lambda: index.pack(99), lambda: index.block(0, 99)):
        with pytest.raises(CacheUnusable):
            call()
    index.close()
    again = Index(tmp_path / "index")
    assert again.chunk_count() == 14
    again.clear()
    assert (again.chunk_count(), again.packs(), again.segments()) == (0, [], set())
    again.close()


def test_duplicates_keep_their_first_place(tmp_path: Path) -> None:
    index = Index(tmp_path / "index")
    first = record(3)
    index.load("s1", [first])
    where = index.find_many(ids_of(first))
    moved = PackRecord(RNG.randbytes(32), 1, 10_000, RNG.randbytes(32), first.blocks)
    index.load("s2", [first, moved])
    index.load("s2", [first, moved])
    assert index.find_many(ids_of(first)) == where
    assert len(index.packs()) == 2
    index.close()


def test_objects_and_notes(tmp_path: Path) -> None:
    index = Index(tmp_path / "index")
    index.remember({"points/b": b"2", "points/a": b"1", "z": b"3"})
    assert index.recall("points/a") == b"1"
    assert index.recall("points/c") is None
    assert index.remembered("points/") == ["points/a", "points/b"]
    index.note("session 1")
    index.note("session 2")
    index.forget_note("session 1")
    index.forget_note("never was")
    assert index.notes("session ") == ["session 2"]
    index.clear()
    assert (index.notes(""), index.recall("z")) == ([], None)
    index.close()


def test_the_map_grows(tmp_path: Path, small_map: None) -> None:
    index = Index(tmp_path / "index")
    packs = [record(2000) for _ in range(20)]
    for number, packed in enumerate(packs):
        index.load(f"s{number}", [packed])
    assert None not in index.find_many([chunk for packed in packs for chunk in ids_of(packed)])
    index.close()


def test_the_map_grows_under_readers(tmp_path: Path, small_map: None) -> None:
    """LMDB ends all transactions when the map grows; nobody may notice."""
    index = Index(tmp_path / "index")
    known = record(500)
    index.load("s", [known])
    chunks = ids_of(known)
    stop = threading.Event()
    failures: list[BaseException] = []

    def read() -> None:
        membership = index.membership()
        try:
            while not stop.is_set():
                assert all(chunk in membership for chunk in chunks[:50])
                assert None not in index.find_many(chunks[:50])
                membership.renew()
                time.sleep(0.002)  # or else the readers keep the interpreter to themselves
        except BaseException as error:  # noqa: BLE001 - told to the test
            failures.append(error)
        finally:
            membership.close()

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for number in range(12):
        index.load(f"t{number}", [record(2000)])
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert index.chunk_count() == 1000 + 12 * 4000
    index.close()


OTHER = """
import sys
from pathlib import Path
from tests.unit.test_index import Index, index_module, record, RNG
index_module._MAP_BYTES = 1 << 17
RNG.seed(int(sys.argv[2]))
index = Index(Path(sys.argv[1]))
for number in range(8):
    index.load(f"{sys.argv[2]}-{number}", [record(1500)])
index.close()
"""


def test_two_processes_share_it(tmp_path: Path, small_map: None) -> None:
    """Both grow the map, and see what the other has put in."""
    index = Index(tmp_path / "index")
    running = [
        subprocess.Popen([sys.executable, "-c", OTHER, str(tmp_path / "index"), str(seed)], cwd=ROOT) for seed in (1, 2)
    ]
    membership = index.membership()
    for number in range(8):
        packed = record(1000)
        index.load(f"own-{number}", [packed])
        membership.renew()
        assert ids_of(packed)[0] in membership
    assert [process.wait(60) for process in running] == [0, 0]
    membership.renew()
    membership.close()
    assert index.chunk_count() == 2 * 8 * 3000 + 8 * 2000
    assert len(index.segments()) == 24
    index.close()


@pytest.mark.parametrize("damage", ["garbage", "empty", "cut", "another layout"])
def test_a_spoilt_file_is_made_anew(tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    index = Index(tmp_path / "index")
    index.load("s", [record(200)])
    index.close()
    file = tmp_path / "index/data.mdb"
    if damage == "garbage":
        file.write_bytes(b"garbage" * 5000)
    elif damage == "empty":
        file.write_bytes(b"")
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:5000])
    else:
        monkeypatch.setattr(index_module, "_LAYOUT", b"another")
    index = Index(tmp_path / "index")
    assert index.chunk_count() == 0
    index.load("s", [record(200)])
    assert index.chunk_count() == 400
    index.close()


def test_a_place_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CacheUnusable):
        Index(tmp_path / "file/index")
